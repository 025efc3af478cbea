"""Ctrl-C and SIGTERM: who answers them, and when."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from raymerge.interrupts import INTERRUPTS, answering, interrupts_held
from raymerge.streams import interruptible, stoppable


@pytest.fixture(autouse=True)
def told() -> Iterator[list[int]]:
    """Signals that nobody but the test answers. Handlers are as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    received: list[int] = []
    for number in INTERRUPTS:
        signal.signal(number, lambda signum, frame: received.append(signum))
    mine = {number: signal.getsignal(number) for number in INTERRUPTS}
    yield received
    left = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == mine, "every block puts the handlers back"


def both() -> None:
    for number in INTERRUPTS:
        signal.raise_signal(number)


def in_a_thread(function: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failures == []


def test_a_handler_answers_until_the_block_ends(told: list[int]) -> None:
    mine: list[int] = []

    def failing() -> None:
        with answering(lambda signum, frame: mine.append(signum)):
            both()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        failing()
    assert (mine, told) == ([*INTERRUPTS], [])
    both()
    assert told == [*INTERRUPTS]


def test_only_the_named_signals_are_answered(told: list[int]) -> None:
    mine: list[int] = []
    with answering(lambda signum, frame: mine.append(signum), [signal.SIGTERM]):
        both()
    assert (mine, told) == ([signal.SIGTERM], [signal.SIGINT])


def test_other_threads_set_no_handlers(told: list[int]) -> None:
    def block() -> None:
        with answering(lambda signum, frame: None), interruptible() as proceed, stoppable() as should_stop:
            proceed()
            assert not should_stop()
            assert signal.getsignal(signal.SIGINT) is before

    before = signal.getsignal(signal.SIGINT)
    in_a_thread(block)


def test_held_signals_come_after_the_block(told: list[int]) -> None:
    with interrupts_held():
        both()
        assert told == []
    assert told == [*INTERRUPTS]


def test_ignored_signals_stay_ignored(told: list[int]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held():
            both()
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGTERM]


@pytest.mark.parametrize("number", INTERRUPTS)
def test_the_first_signal_interrupts_and_others_leave_time_to_tidy_up(told: list[int], number: signal.Signals) -> None:
    tidied = []

    def work() -> None:
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                both()
                tidied.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (tidied, told) == ([True], [])


def test_an_interrupt_that_became_an_error_or_was_swallowed_is_one_again() -> None:
    def became_an_error() -> None:
        with interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("from torch") from None

    def was_swallowed() -> None:
        with interruptible(), contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    for work in (became_an_error, was_swallowed):
        with pytest.raises(KeyboardInterrupt):
            work()


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    def work() -> None:
        with interruptible():
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        work()


def test_when_it_is_too_late_the_work_runs_to_its_end(told: list[int]) -> None:
    with interruptible() as proceed:
        proceed()
        both()
    assert told == []


def test_work_that_is_asked_to_stop_is_interrupted_by_the_second_signal() -> None:
    with stoppable() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
