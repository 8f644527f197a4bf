"""Facts of many files: from the catalog where they are known, else measured on all cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import EdkitError, Problem
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import BROKEN, FACTS, Facts, Outcome, Value, known, measure_file

_CHUNK = 32  # files a worker takes at once
_FEW = 256  # below this many files, starting processes takes longer than they save
_KEEP_EVERY = 1024  # files between two commits: what a kill costs

Job = tuple[str, str]  # content id, path


def measure(
    catalog: Catalog,
    paths: Iterable[Path],
    names: Iterable[str],
    *,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress = SILENT,
) -> dict[Path, Facts | Problem]:
    """The named facts of every file, or the Problem (error, `unreadable-image`) why there are none.

    Facts stand in the catalog by content, so a second run over unchanged files reads none of them.
    `workers`: processes (None: one a core; 1: none besides this one). What was measured before an
    interruption is kept. Raises UsageError for a name that no fact has.
    """
    wanted = known(names)
    keys = {FACTS[name].key: name for name in wanted}
    files = list(paths)
    ids = catalog.content_ids(files, progress=progress)
    unreadable = {path: str(id) for path, id in ids.items() if isinstance(id, Unreadable)}
    stored = catalog.facts((id for id in ids.values() if not isinstance(id, Unreadable)), (*keys, BROKEN))
    jobs: dict[str, Job] = {}  # one file of each content
    for path in files:
        id = ids[path]
        if not isinstance(id, Unreadable) and not _complete(stored.get(id, {}), keys):
            jobs.setdefault(id, (id, os.fspath(path)))
    failed: dict[str, str] = {}  # content id -> why the file couldn't be read this time
    fresh: list[tuple[str, str, Value]] = []
    kept = 0
    try:
        for id, outcome in _outcomes(list(jobs.values()), wanted, workers, max_pixels, progress):
            fresh += [(id, key, value) for key, value in outcome.facts.items()]
            stored[id] = {**stored.get(id, {}), **outcome.facts}
            if outcome.unreadable is not None:
                failed[id] = outcome.unreadable
            kept += 1
            if kept % _KEEP_EVERY == 0:
                catalog.put_facts(fresh)
                fresh.clear()
    finally:  # Ctrl-C too: the next run goes on from here
        catalog.put_facts(fresh)

    result: dict[Path, Facts | Problem] = {}
    for path in files:
        id = ids[path]
        why = unreadable.get(path) or failed.get(id) or stored.get(id, {}).get(BROKEN)
        if why is not None:
            result[path] = Problem(
                level="error",
                code="unreadable-image",
                where=os.fspath(path),
                what=str(why),
                mend="fetch or export it again, or remove it",
            )
        else:
            facts = stored[id]
            result[path] = {name: facts[key] for key, name in keys.items()}
    return result


def _complete(facts: Facts, keys: Iterable[str]) -> bool:
    return BROKEN in facts or all(key in facts for key in keys)


def _outcomes(
    jobs: Sequence[Job], names: tuple[str, ...], workers: int | None, max_pixels: int, progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    """(content id, outcome) of every job, in no particular order."""
    if not jobs:
        return
    num_workers = min(workers or os.cpu_count() or 1, max(1, len(jobs) // _CHUNK))
    with progress.task("measuring", total=len(jobs)) as advance:
        alone = num_workers == 1 or (workers is None and len(jobs) < _FEW)
        found = _here(jobs, names, max_pixels) if alone else _spread(jobs, names, num_workers, max_pixels, progress)
        for done in found:
            yield done
            advance(1)  # only now has the caller taken it


def _here(jobs: Iterable[Job], names: tuple[str, ...], max_pixels: int) -> Iterator[tuple[str, Outcome]]:
    for id, path in jobs:
        yield id, measure_file(path, names, max_pixels=max_pixels)


def _spread(
    jobs: Sequence[Job], names: tuple[str, ...], num_workers: int, max_pixels: int, progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    """Over worker processes; a file whose decoder takes its process down is found out and reported."""
    left = dict(jobs)
    try:
        for done in _pooled(_chunks(jobs), names, num_workers, max_pixels):
            del left[done[0]]
            yield done
    except BrokenProcessPool:
        progress.say(f"a worker process died; its files are measured one by one ({len(left):,} left)")
    deaths = 0
    while left:  # one process, one file at a time: the first that is missing killed it
        try:
            for done in _pooled(([job] for job in list(left.items())), names, 1, max_pixels):
                del left[done[0]]
                deaths = 0
                yield done
        except BrokenProcessPool as error:
            deaths += 1
            if deaths > 3:
                raise EdkitError(
                    "worker processes die one after another (too little memory, or a script without "
                    'its `if __name__ == "__main__":`)',
                    mend="use workers=1",
                ) from error
            id = next(iter(left))
            del left[id]
            yield id, Outcome(facts={}, unreadable="decoding it kills the process")


def _pooled(
    chunks: Iterable[list[Job]], names: tuple[str, ...], num_workers: int, max_pixels: int
) -> Iterator[tuple[str, Outcome]]:
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_worker)
    running: set[Future[list[tuple[str, Outcome]]]] = set()
    ahead = num_workers * 3 if num_workers > 1 else 1
    try:
        for chunk in chunks:
            running.add(pool.submit(_measure_chunk, chunk, names, max_pixels))
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


def _worker() -> None:
    """Ctrl-C reaches every process of a terminal: the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure_chunk(chunk: list[Job], names: tuple[str, ...], max_pixels: int) -> list[tuple[str, Outcome]]:
    return list(_here(chunk, names, max_pixels))


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), _CHUNK):
        yield list(jobs[start : start + _CHUNK])
