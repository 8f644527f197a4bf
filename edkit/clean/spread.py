"""One function over many files on all cores, such that no file can end the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from edkit.data.errors import EdkitError
from edkit.data.progress import SILENT, Progress
from edkit.data.workers import start_worker

_J = TypeVar("_J")
_R = TypeVar("_R")

_CHUNK = 4  # jobs a worker takes at once


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
    progress: Progress = SILENT,
) -> Iterator[tuple[_J, _R | Died]]:
    """(job, result) of every job, in no particular order; progress is told as `what` (an -ing word).

    `function` must stand at the top of a module. `workers`: processes (None: one a core; 1: none besides
    this one); below `few` jobs starting processes takes longer than they save.
    """
    if not jobs:
        return
    num_workers = min(workers or os.cpu_count() or 1, max(1, len(jobs) // _CHUNK))
    with progress.task(what, total=len(jobs)) as advance:
        alone = num_workers == 1 or (workers is None and len(jobs) < few)
        found = ((job, function(job)) for job in jobs) if alone else _guarded(function, jobs, num_workers, progress)
        for done in found:
            yield done
            advance(1)  # only now has the caller taken it


def _guarded(
    function: Callable[[_J], _R], jobs: Sequence[_J], num_workers: int, progress: Progress
) -> Iterator[tuple[_J, _R | Died]]:
    left = dict(enumerate(jobs))
    try:
        for number, result in _pooled(function, _chunks(left), num_workers):
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


def _chunks(jobs: dict[int, _J]) -> Iterator[list[tuple[int, _J]]]:
    items = list(jobs.items())
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


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
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(function: Callable[[_J], _R], chunk: list[tuple[int, _J]]) -> list[tuple[int, _R]]:
    return [(number, function(job)) for number, job in chunk]
