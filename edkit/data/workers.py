"""One function over many jobs on all cores, such that no job can end the run, and no worker outlives its parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

from edkit.data.errors import EdkitError
from edkit.data.progress import SILENT, Progress

_J = TypeVar("_J")
_R = TypeVar("_R")


class Died(str):
    """Stands where a result would: the job took its worker process down with it."""

    __slots__ = ()


def spread(
    function: Callable[[_J], _R],
    jobs: Sequence[_J],
    *,
    what: str,
    workers: int | None = None,
    few: int = 64,
    chunk: int = 4,
    progress: Progress = SILENT,
) -> Iterator[tuple[_J, _R | Died]]:
    """(job, result) of every job, in no particular order; progress is told as `what` (an -ing word).

    `function` must stand at the top of a module. `workers`: processes (None: one a core; 1: none besides
    this one); below `few` jobs starting processes takes longer than they save. A worker
    takes `chunk` jobs at once. Ctrl-C, and whoever stops asking, ends the workers at once: what they were at is lost.
    """
    if not jobs:
        return
    num_workers = min(workers or os.cpu_count() or 1, max(1, len(jobs) // chunk))
    with progress.task(what, total=len(jobs)) as advance:
        alone = num_workers == 1 or (workers is None and len(jobs) < few)
        found = (
            ((job, function(job)) for job in jobs) if alone else _guarded(function, jobs, num_workers, chunk, progress)
        )
        for done in found:
            yield done
            advance(1)  # only now has the caller taken it


def _guarded(
    function: Callable[[_J], _R], jobs: Sequence[_J], num_workers: int, chunk: int, progress: Progress
) -> Iterator[tuple[_J, _R | Died]]:
    """Over worker processes; a job that takes its process down is found out and told."""
    left = dict(enumerate(jobs))
    try:
        for number, result in _pooled(function, _chunks(left, chunk), num_workers):
            yield left.pop(number), result
    except BrokenProcessPool:
        progress.say(f"a worker process died; its files are done one by one ({len(left):,} left)")
    deaths = 0
    while left:  # one process, one file at a time: the first that is missing killed it
        try:
            for number, result in _pooled(function, ([item] for item in list(left.items())), 1):
                deaths = 0
                yield left.pop(number), result
        except BrokenProcessPool as error:
            deaths += 1
            if deaths > 3:
                raise EdkitError(
                    "worker processes die one after another (too little memory, or a script without "
                    'its `if __name__ == "__main__":`)',
                    mend="use workers=1",
                ) from error
            yield left.pop(next(iter(left))), Died("decoding it kills the process")


def _chunks(jobs: dict[int, _J], size: int) -> Iterator[list[tuple[int, _J]]]:
    items = list(jobs.items())
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pooled(
    function: Callable[[_J], _R], chunks: Iterable[list[tuple[int, _J]]], num_workers: int
) -> Iterator[tuple[int, _R]]:
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=start_worker)
    running: set[Future[list[tuple[int, _R]]]] = set()
    ahead = num_workers * 3 if num_workers > 1 else 1
    try:
        for chunk in chunks:
            running.add(pool.submit(_each, function, chunk))
            if len(running) >= ahead:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:  # Ctrl-C: nobody waits for half a chunk of large pictures
        _kill(pool)
        raise
    pool.shutdown(wait=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; what they had done and not yet sent is done again."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def _each(function: Callable[[_J], _R], chunk: list[tuple[int, _J]]) -> list[tuple[int, _R]]:
    return [(number, function(job)) for number, job in chunk]


def start_worker() -> None:
    """A pool's initializer (spawned processes): a killed parent must not leave its workers waiting for ever."""
    # Ctrl-C reaches every process of a terminal: the parent alone answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="edkit-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
