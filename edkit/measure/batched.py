"""What a model says of many images: known answers from the catalog, the others in batches, decoded while it works."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, Problem
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import BROKEN, Value

KEEP_SECONDS = 5.0  # between two commits: what a kill costs

_In = TypeVar("_In")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Generic[_In]):
    """A model as `answers` uses it: `prepare` runs in threads, `compute` on whole batches."""

    fact: str  # the catalog's name for its answers; says which weights gave them
    load: Callable[[], object]  # called once, before the first image is read
    prepare: Callable[[Path], _In]  # raises BadInput over a picture that can't be decoded
    compute: Callable[[list[_In]], Sequence[Value]]
    batch_size: int
    doing: str  # an -ing word for the progress bar


def answers(
    catalog: Catalog,
    paths: Iterable[Path],
    model: Model[_In],
    *,
    key: Callable[[Path, str], str] | None = None,
    progress: Progress = SILENT,
) -> dict[Path, Value | Problem]:
    """The model's answer for every file, or the Problem (error, `unreadable-image`) why there is none.

    Kept by content, or by `key(path, content id)` where more than the content decides. An interruption
    costs the last few seconds.
    """
    files = list(paths)
    ids = catalog.content_ids(files, progress=progress)
    good = {path: id for path, id in ids.items() if not isinstance(id, Unreadable)}
    keys = good if key is None else {path: key(path, id) for path, id in good.items()}
    stored = catalog.facts((*keys.values(), *(good.values() if key else ())), (model.fact, BROKEN))
    jobs: dict[str, Path] = {}
    for path, id in keys.items():
        if model.fact not in stored.get(id, {}) and BROKEN not in stored.get(good[path], {}):
            jobs.setdefault(id, path)
    failed: dict[str, str] = {}
    fresh: list[tuple[str, str, Value]] = []
    kept = time.monotonic()
    try:
        for id, value, why in _computed(model, jobs, progress):
            if why is not None:
                failed[id] = why
                continue
            stored.setdefault(id, {})[model.fact] = value
            fresh.append((id, model.fact, value))
            if time.monotonic() - kept > KEEP_SECONDS:
                catalog.put_facts(fresh)
                fresh.clear()
                kept = time.monotonic()
    finally:  # Ctrl-C too: the next run goes on from here
        catalog.put_facts(fresh)
    result: dict[Path, Value | Problem] = {}
    for path in files:
        own = stored.get(keys.get(path, ""), {})
        if model.fact in own:
            result[path] = own[model.fact]
            continue
        if path not in good:
            why = str(ids[path])
        else:
            why = failed.get(keys[path]) or str(stored.get(good[path], {}).get(BROKEN))
        result[path] = unreadable(path, why)
    return result


def unreadable(path: Path, why: str) -> Problem:
    """The finding that an image can't be measured."""
    return Problem(
        level="error",
        code="unreadable-image",
        where=os.fspath(path),
        what=why,
        mend="fetch or export it again, or remove it",
    )


def _computed(
    model: Model[_In], jobs: Mapping[str, Path], progress: Progress
) -> Iterator[tuple[str, Value, str | None]]:
    """(id, answer, None) or (id, None, why not) of every job."""
    if not jobs:
        return
    model.load()
    items = list(jobs.items())
    batches = [items[start : start + model.batch_size] for start in range(0, len(items), model.batch_size)]

    def prepared(path: Path) -> tuple[_In | None, str | None]:
        try:
            return model.prepare(path), None
        except BadInput as error:
            return None, error.what

    with progress.task(model.doing, total=len(items)) as advance:
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            ahead: list[list[Future[tuple[_In | None, str | None]]]] = []
            for number, batch in enumerate(batches):
                for following in batches[number + len(ahead) : number + 2]:
                    ahead.append([pool.submit(prepared, path) for _, path in following])  # noqa: PERF401
                inputs = [future.result() for future in ahead.pop(0)]
                good = [(id, x) for (id, _), (x, why) in zip(batch, inputs, strict=True) if why is None]
                yield from ((id, None, why) for (id, _), (_, why) in zip(batch, inputs, strict=True) if why is not None)
                if good:
                    values = model.compute([x for _, x in good if x is not None])
                    yield from ((id, value, None) for (id, _), value in zip(good, values, strict=True))
                advance(len(batch))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
