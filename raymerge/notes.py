"""What a computation wants known about its result: fallbacks and weak inputs, collected for the provenance of a merge.

A function of tensors calls `note`; whoever wants the notes wraps the call in `collected`. Every note is logged too.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_log = logging.getLogger(__name__)
_subject: ContextVar[str] = ContextVar("subject", default="")
_collections: ContextVar[tuple[list[str], ...]] = ContextVar("collections", default=())


def note(text: str) -> None:
    """Say something about the result that is being computed, in one sentence."""
    subject = _subject.get()
    text = f"{subject}: {text}" if subject else text
    _log.info(text)
    for collection in _collections.get():
        collection.append(text)


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Put `subject` before every note of this block."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The notes of this block, in order."""
    notes: list[str] = []
    token = _collections.set((*_collections.get(), notes))
    try:
        yield notes
    finally:
        _collections.reset(token)
