"""Facts of many files: from the catalog where they are known, else measured on all cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import EdkitError, Problem
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.progress import SILENT, Progress
from edkit.data.workers import start_worker
from edkit.measure.batched import unreadable
from edkit.measure.facts import BROKEN, FACTS, Facts, Outcome, Value, known, measure_file
from edkit.measure.models import Models, answered

_CHUNK = 32  # files a worker takes at once
_FEW = 256  # below this many files, starting processes takes longer than they save
_KEEP_EVERY = 1024  # files, and
_KEEP_SECONDS = 5.0  # between two commits: what a kill costs

Job = tuple[str, str]  # content id, path


def measure(
    catalog: Catalog,
    paths: Iterable[Path],
    names: Iterable[str],
    *,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    models: Models | None = None,
    captions: Mapping[Path, str] | None = None,
    progress: Progress = SILENT,
) -> dict[Path, Facts | Problem]:
    """The named facts of every file, or the Problem (error, `unreadable-image`) why there is none.

    Facts stand in the catalog by content (and caption, and model), so a second run over unchanged files reads
    none of them. `workers`: processes (None: one a core; 1: none besides this one). `models` says which ones
    answer for facts that need one, `captions` what those that need a caption are about. What was measured
    before an interruption is kept. Raises UsageError for a name that no fact has, MissingExtra where a model's
    package is not installed.
    """
    wanted = known(names)
    files = list(paths)
    by_model = [name for name in wanted if FACTS[name].needs == "model"]
    found = _measured(catalog, files, [name for name in wanted if name not in by_model], workers, max_pixels, progress)
    if not by_model:
        return found
    said = answered(
        catalog,
        [path for path, one in found.items() if not isinstance(one, Problem)],
        by_model,
        models=models or Models(),
        captions=captions,
        progress=progress,
    )
    for path, one in said.items():
        own = found[path]
        assert not isinstance(own, Problem)
        found[path] = one if isinstance(one, Problem) else {**own, **one}
    return found


def _measured(
    catalog: Catalog,
    files: Sequence[Path],
    wanted: Sequence[str],
    workers: int | None,
    max_pixels: int,
    progress: Progress,
) -> dict[Path, Facts | Problem]:
    """The facts that need no model."""
    keys = {FACTS[name].key: name for name in wanted if name != "sha256"}  # the id is the hash
    ids = catalog.content_ids(files, progress=progress)
    readable = (id for id in ids.values() if not isinstance(id, Unreadable))
    stored = catalog.facts(readable, (*keys, BROKEN)) if wanted else {}
    jobs: dict[str, Job] = {}  # one file of each content
    whole = len(keys)
    for path in files:
        id = ids[path]
        own = stored.get(id)
        if (own is None or (len(own) < whole and BROKEN not in own)) and keys and not isinstance(id, Unreadable):
            jobs.setdefault(id, (id, os.fspath(path)))
    failed: dict[str, str] = {}  # content id -> why the file couldn't be read this time
    fresh: list[tuple[str, str, Value]] = []
    kept, since = 0, time.monotonic()
    try:
        for id, outcome in _outcomes(list(jobs.values()), tuple(keys.values()), workers, max_pixels, progress):
            fresh += [(id, key, value) for key, value in outcome.facts.items()]
            stored[id] = {**stored.get(id, {}), **outcome.facts}
            if outcome.unreadable is not None:
                failed[id] = outcome.unreadable
            kept += 1
            if kept >= _KEEP_EVERY or time.monotonic() - since > _KEEP_SECONDS:
                catalog.put_facts(fresh)
                fresh.clear()
                kept, since = 0, time.monotonic()
    finally:  # Ctrl-C too: the next run goes on from here
        if fresh:
            catalog.put_facts(fresh)

    names = list(keys.items())
    with_hash = "sha256" in wanted
    result: dict[Path, Facts | Problem] = {}
    for path in files:
        id = ids[path]
        own = stored.get(id, {})
        if isinstance(id, Unreadable):
            result[path] = unreadable(path, str(id))
        elif id in failed or BROKEN in own:
            result[path] = unreadable(path, failed.get(id) or str(own[BROKEN]))
        else:
            facts = {name: own[key] for key, name in names}
            result[path] = {**facts, "sha256": id} if with_hash else facts
    return result


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
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=start_worker)
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
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:  # Ctrl-C: nobody waits for half a chunk of large pictures
        _kill(pool)
        raise
    pool.shutdown(wait=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; what they had measured and not yet sent is measured again."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def _measure_chunk(chunk: list[Job], names: tuple[str, ...], max_pixels: int) -> list[tuple[str, Outcome]]:
    return list(_here(chunk, names, max_pixels))


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), _CHUNK):
        yield list(jobs[start : start + _CHUNK])
