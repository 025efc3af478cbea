"""Jobs in processes of this machine that stop when they are told to, and end when the one that started them does."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from raymerge.errors import RaymergeError
from raymerge.interrupts import interrupts_held

Job = TypeVar("Job")
Result = TypeVar("Result")

IMAGES_PER_PROCESS = 1000
"""A process takes about as long to start as it takes to decode so many images."""
MAX_WORKERS = 16
"""Unless asked for more: each takes 0.4 GB for torch, and so many fill a fast disk."""
WAITING_PER_PROCESS = 1
"""Jobs that are handed out before a process is free for them, so that none has to wait for the next."""

_stop: Any = None


def default_workers(num_images: int) -> int:
    """How many processes are worth starting: one for every core, up to 16, or fewer where there are few images."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MAX_WORKERS, math.ceil(num_images / IMAGES_PER_PROCESS)))


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Each job with its result, in the order in which they are done. Jobs are taken when there is room for them.

    With one worker, jobs are done in this process, one after the other. Close the iterator to stop early: what runs
    then ends at its next call of `go_on`.

    Args:
        function: of a module, so that it pickles; as do jobs and results.
    Raises:
        RaymergeError: a process was killed. Other errors are those of `function`.
    """
    if workers == 1:
        for job in jobs:
            yield job, function(job)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch and pyarrow half
    stop = context.RawValue("b", 0)  # an Event has a lock, which a process that is killed may take with it
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(stop,))
    remaining, running = iter(jobs), {}
    try:
        while True:
            while len(running) < workers * (1 + WAITING_PER_PROCESS):
                job = next(remaining, None)
                if job is None:
                    break
                with _away_from_signals():
                    running[pool.submit(function, job)] = job
            if not running:
                return
            done: set[Future[Result]] = wait(running, return_when=FIRST_COMPLETED).done
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise RaymergeError(
            "a process was killed from outside, perhaps because memory ran out. Start the same command again, "
            "with fewer --workers if there is little memory."
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def go_on() -> None:
    """Called now and then by what a job runs: ends the job if nobody waits for it any more."""
    if _stop is not None and _stop.value:
        raise _Stopped


class _Stopped(Exception):
    pass


def _begin(stop: Any) -> None:
    global _stop
    _stop = stop
    warnings.simplefilter("ignore")  # of image libraries, about files that open all the same
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _away_from_signals() -> Iterator[None]:
    """A process that starts meanwhile never sees Ctrl-C or SIGTERM: its parent does, and tells it to stop.

    The parent does so after the block: a process that was started and not told what to do ends with a traceback.
    """
    with interrupts_held():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
