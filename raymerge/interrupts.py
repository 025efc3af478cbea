"""Who answers Ctrl-C and SIGTERM, and steps that they must not cut in two."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], object]


def in_main_thread() -> bool:
    """Whether handlers can be set here. They run in the main thread, whoever receives the signal."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def answering(handler: Handler, numbers: Sequence[signal.Signals] = INTERRUPTS) -> Iterator[None]:
    """Let `handler` answer signals until the block ends. Changes nothing in other threads than the main one."""
    if not in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # somebody set it outside of Python, where it cannot be put back
                signal.signal(number, earlier)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let no handler of SIGINT or SIGTERM, which may raise, run before the block has ended; then they run.

    To block the signals is not enough: a thread of a library may receive them, and the handlers run in the main thread
    all the same.
    """
    received: list[int] = []
    numbers = [number for number in INTERRUPTS if callable(signal.getsignal(number))]
    try:
        with answering(lambda signum, frame: received.append(signum), numbers):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)
