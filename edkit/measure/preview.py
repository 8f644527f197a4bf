"""Small pictures of pictures, kept by content: what a page of ten thousand images shows."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress

SIDE = 80  # pixels, the longer side
KIND = "webp"
_KEY = "preview/1"  # the catalog's name for them
_KEEP_EVERY = 512  # pictures between two commits: what a kill costs


def previews(
    catalog: Catalog, paths: Sequence[Path], *, workers: int | None = None, progress: Progress = SILENT
) -> dict[Path, bytes | None]:
    """A WEBP of at most `SIDE` pixels a side for every file, upright; None for those that can't be decoded.

    About 1 kB each. JPEGs are decoded at down to an eighth of their size. Kept in the catalog by content.
    """
    ids = catalog.content_ids(paths, progress=progress)
    stored = catalog.facts((id for id in ids.values() if not isinstance(id, Unreadable)), [_KEY])
    known: dict[str, bytes | None] = {}
    for id, facts in stored.items():
        value = facts.get(_KEY)
        known[id] = value if isinstance(value, bytes) and value else None
    todo = {ids[path]: path for path in reversed(paths) if not isinstance(ids[path], Unreadable)}
    jobs = [(id, path) for id, path in todo.items() if id not in known]
    fresh: list[tuple[str, str, bytes]] = []
    # decoding, scaling and encoding all let other threads run
    num = workers or os.cpu_count() or 1
    try:
        with progress.task("drawing thumbnails", total=len(jobs)) as advance, ThreadPoolExecutor(num) as pool:
            for start in range(0, len(jobs), _KEEP_EVERY):
                part = jobs[start : start + _KEEP_EVERY]
                for (id, _), data in zip(part, pool.map(lambda job: preview(job[1]), part), strict=True):
                    known[id] = data
                    fresh.append((id, _KEY, data or b""))
                    advance(1)
                catalog.put_facts(fresh)
                fresh.clear()
    finally:  # Ctrl-C too: the next run goes on from here
        catalog.put_facts(fresh)
    return {path: known.get(ids[path]) for path in paths}


def preview(path: Path) -> bytes | None:
    """One small picture, None where the file can't be decoded."""
    from PIL import Image

    try:
        im = open_image(path, at_least=(SIDE, SIDE))
    except BadInput:
        return None
    scale = SIDE / max(im.size)
    if scale < 1:
        size = max(1, round(im.width * scale)), max(1, round(im.height * scale))
        im = im.resize(size, Image.Resampling.BOX if scale < 0.25 else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    im.save(buffer, "WEBP", quality=50, method=2)
    return buffer.getvalue()
