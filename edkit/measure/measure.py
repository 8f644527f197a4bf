"""Facts of many files: from the catalog where they are known, else measured on all cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import Problem
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.progress import SILENT, Progress
from edkit.data.workers import Died, spread
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
    measured = partial(_measured_job, names=names, max_pixels=max_pixels)
    for (id, _), found in spread(
        measured, jobs, what="measuring", workers=workers, few=_FEW, chunk=_CHUNK, progress=progress
    ):
        yield id, Outcome(facts={}, unreadable=str(found)) if isinstance(found, Died) else found


def _measured_job(job: Job, *, names: tuple[str, ...], max_pixels: int) -> Outcome:
    return measure_file(job[1], names, max_pixels=max_pixels)
