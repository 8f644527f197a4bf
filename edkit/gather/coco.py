"""`edkit import coco`: COCO photos with captions, by category, from a folder or from COCO's server."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from edkit.data.atomic import sha256_of
from edkit.data.catalog import Catalog, state_dir_for
from edkit.data.errors import BadInput, UsageError
from edkit.data.image import suffix_for, verify
from edkit.data.places import Places
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed, integer
from edkit.gather.candidate import FETCHED, KEPT, Candidate, Funnel
from edkit.gather.collect import Collector, Counts
from edkit.gather.fetch import USER_AGENT, Fetched, FetchSettings, stage_name
from edkit.gather.place import Captions, Placer

_CHUNK = 128  # images verified, then placed together


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCoco:
    """What an import found, took and left."""

    out: Path
    query: str
    dry_run: bool
    rows_read: int  # images in the annotations
    dropped: Mapping[str, int]
    matched: int
    skipped: Mapping[str, int]  # kept before
    outcomes: Mapping[str, int]
    kept: int
    total: int  # of this query over all its runs
    limit: int | None
    num_bytes: int
    seconds: float
    seed: int  # of the caption choice, as drawn where -1 was asked for
    notes: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # (file name, why), the first hundred


def import_coco(
    *,
    annotations: Path,
    out: Path,
    images: Path | None = None,
    download: bool = False,
    instances: Path | None = None,
    categories: Sequence[str] = (),
    caption_choice: Literal["first", "random"] = "first",
    seed: int = 555,
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    concurrency: int = 64,
    per_host: int = 8,
    timeout: float = 30.0,
    retries: int = 2,
    user_agent: str = USER_AGENT,
    allow_private_hosts: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> ImportedCoco:
    """Put COCO images (those showing one of `categories`, where given) with a caption each into `out`.

    In the order of the annotations file; every image is decoded first, licence and Flickr address go into the
    ledger. Raises UsageError (options that don't go together, an unknown category) and BadInput (a JSON that
    is no COCO file).
    """
    started = time.monotonic()
    wanted = tuple(c.strip() for part in categories for c in part.split(",") if c.strip())
    if (images is None) == (not download):
        raise UsageError("say where the images are: --images DIR, or --download")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: no such folder")
    if bool(wanted) != (instances is not None):
        raise UsageError("--category and --instances FILE go together")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: how many images to have, 1 or more")
    if captions not in ("filename", "sidecar", "both") or caption_choice not in ("first", "random"):
        raise UsageError("--captions filename, sidecar or both; --caption-choice first or random")
    settings = FetchSettings(
        concurrency=concurrency,
        per_host=per_host,
        timeout=timeout,
        retries=retries,
        user_agent=user_agent,
        allow_private=allow_private_hosts,
    )
    seed = draw_seed() if seed == -1 else seed
    with progress.task("reading annotations", total=2 if instances else 1, unit="files") as advance:
        shown = None if instances is None else images_showing(instances, wanted)
        advance(1 if instances else 0)
        found, funnel = read_captions(annotations, shown, caption_choice=caption_choice, seed=seed)
        advance(1)
    out = Path(os.path.abspath(out))  # noqa: PTH100 - lexically, as the catalog does
    place = os.fsdecode(Places(state_dir_for(out, state_dir)).key(out))
    asked = json.dumps([str(annotations.resolve()), sorted(wanted), caption_choice, seed, place])
    query = hashlib.sha256(asked.encode()).hexdigest()[:16]
    counts, notes, failed = Counts(), [], []
    if dry_run:
        with Catalog.open(out, state_dir=state_dir, write=False) as catalog:
            total = catalog.ledger_count(query=query, outcome=KEPT)
    else:
        out.mkdir(parents=True, exist_ok=True)
        with Catalog.open(out, state_dir=state_dir, command="import coco", progress=progress) as catalog:
            if images is None:
                work = Collector(catalog, out, query, captions, settings, limit, progress)
                work.run(lambda empty: iter([found]))
                counts, total = work.counts, work.total
            else:
                placer = Placer(catalog, out, query=query, captions=captions)
                local = _Local(placer, images, link=link, limit=limit)
                total = local.run(found, progress)
                counts, failed = local.counts, local.failed
                if local.num_copied_instead:
                    notes.append(f"{local.num_copied_instead:,} files were copied: {out} can't hold links to {images}")
    return ImportedCoco(
        out=out,
        query=query,
        dry_run=dry_run,
        rows_read=funnel.rows,
        dropped=funnel.dropped,
        matched=funnel.left,
        skipped=counts.skipped,
        outcomes=counts.outcomes,
        kept=counts.outcomes.get(KEPT, 0),
        total=total,
        limit=limit,
        num_bytes=counts.num_bytes,
        seconds=time.monotonic() - started,
        seed=seed,
        notes=tuple(notes),
        failed=tuple(failed[:100]),
    )


# ---- the annotation files


def read_captions(
    path: Path, shown: frozenset[int] | None, *, caption_choice: Literal["first", "random"], seed: int
) -> tuple[list[Candidate], Funnel]:
    """The images of a captions file as Candidates, in its order; only those in `shown`, where given."""
    data = _load(path, ("images", "annotations"))
    texts: dict[int, list[tuple[int, str]]] = {}
    try:
        for note in data["annotations"]:
            if "caption" not in note:
                raise BadInput(
                    "no captions in it",
                    where=str(path),
                    mend="it takes captions_*.json; --instances the other",
                )
            texts.setdefault(note["image_id"], []).append((note.get("id", 0), note["caption"].strip()))
        licences = {entry["id"]: entry.get("url") or entry.get("name", "") for entry in data.get("licenses", [])}
        funnel, found = Funnel(), []
        for row, image in enumerate(data["images"]):
            funnel.rows += 1
            image_id = image["id"]
            # by id, so that the order of the file's lines decides nothing
            choices = [text for _, text in sorted(texts.get(image_id, [])) if text]
            if shown is not None and image_id not in shown:
                funnel.drop("--category", 1)
                continue
            if not choices:
                funnel.drop("no caption", 1)
                continue
            pick = 0 if caption_choice == "first" else integer(len(choices), seed, "coco-caption", image_id)
            found.append(
                Candidate(
                    url=image.get("coco_url") or image.get("flickr_url") or f"coco:{image['file_name']}",
                    caption=choices[pick],
                    table=str(path),
                    row=row,
                    width=int(image.get("width", 0)),
                    height=int(image.get("height", 0)),
                    licence=str(licences.get(image.get("license"), "")),
                    page=image.get("flickr_url", ""),
                    key=image["file_name"],
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"not as COCO writes it: {error}", where=str(path)) from error
    funnel.left = len(found)
    return found, funnel


def images_showing(path: Path, categories: Sequence[str]) -> frozenset[int]:
    """The ids of the images in an instances file that show one of the categories.

    Raises UsageError for an unknown category, naming the nearest.
    """
    data = _load(path, ("annotations", "categories"))
    try:
        ids = {entry["name"].casefold(): entry["id"] for entry in data["categories"]}
        wanted = set()
        for name in categories:
            if name.casefold() not in ids:
                near = difflib.get_close_matches(name.casefold(), ids, n=3, cutoff=0.5)
                hint = ", ".join(near or sorted(ids)[:8])
                raise UsageError(f"--category {name}: not in {path.name}; there is {hint}")
            wanted.add(ids[name.casefold()])
        return frozenset(note["image_id"] for note in data["annotations"] if note.get("category_id") in wanted)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"not as COCO writes it: {error}", where=str(path)) from error


def _load(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        # the outlines are nine tenths of an instances file, and nothing here asks for them
        entry.pop("segmentation", None)
        return entry

    try:
        with path.open(encoding="utf-8-sig") as file:
            data = json.load(file, object_hook=slim)
    except OSError as error:
        raise BadInput((error.strerror or str(error)).lower(), where=str(path)) from error
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", where=str(path)) from error
    missing = [key for key in keys if not (isinstance(data, dict) and isinstance(data.get(key), list))]
    if missing:
        raise BadInput(f"no COCO file: it has no list of {' or '.join(missing)}", where=str(path))
    return dict(data)


# ---- from a folder


class _Local:
    """Copies or links images from a folder through the same staging as a download."""

    def __init__(self, placer: Placer, images: Path, *, link: bool, limit: int | None) -> None:
        self.placer, self.images, self.link, self.limit = placer, images, link, limit
        self.counts = Counts()
        self.failed: list[tuple[str, str]] = []
        self.num_copied_instead = 0

    def run(self, found: Sequence[Candidate], progress: Progress) -> int:
        """Import in order; how many images the query has now."""
        total = self.placer.catalog.ledger_count(query=self.placer.query, outcome=KEPT)
        waiting = self._new(found)
        finished = False
        try:
            with (
                ThreadPoolExecutor(min(4, os.cpu_count() or 2)) as pool,
                progress.task("importing", total=len(found), unit="images") as advance,
            ):
                while self.limit is None or total < self.limit:
                    size = _CHUNK if self.limit is None else min(_CHUNK, self.limit - total)
                    chunk = list(islice(waiting, size))
                    if not chunk:
                        break
                    results = list(zip(chunk, pool.map(self._stage, chunk), strict=True))
                    failed = [(c, f) for c, f in results if f.code != FETCHED]
                    placed = self.placer.place([(c, f) for c, f in results if f.code == FETCHED], failed)
                    for candidate, fetched in failed:
                        self.counts.add(fetched.code)
                        self.failed.append((candidate.key, fetched.reason or fetched.code))
                    self.counts.add(KEPT, len(placed.kept))
                    self.counts.add("duplicate", placed.num_duplicates)
                    self.counts.num_bytes += placed.num_bytes
                    total += len(placed.kept)
                    advance(len(chunk))
            finished = True
        finally:
            self.placer.close(finished=finished)
        return total

    def _new(self, found: Sequence[Candidate]) -> Iterator[Candidate]:
        for candidate in found:
            settled = self.placer.settled(candidate)
            # a local file that was broken may be whole by now: only what was kept is settled
            if settled is not None and settled != "failed for good before":
                self.counts.skip(settled)
            else:
                yield candidate

    def _stage(self, candidate: Candidate) -> Fetched:
        """One verified image in the staging folder (in a pool's thread)."""
        source = self.images / candidate.key
        try:
            header = verify(source, max_pixels=FetchSettings().max_pixels)
        except BadInput as error:
            code = "broken-image" if source.is_file() else "missing"
            return Fetched(ticket=0, code=code, reason=error.what)
        staged = self.placer.staging / f"{stage_name(candidate.url)}.img"
        staged.unlink(missing_ok=True)
        self._bring(source, staged)
        return Fetched(
            ticket=0,
            code=FETCHED,
            sha256=sha256_of(staged),
            num_bytes=staged.stat().st_size,
            width=header.width,
            height=header.height,
            suffix=suffix_for(header.format),
            staged=staged,
        )

    def _bring(self, source: Path, staged: Path) -> None:
        if self.link:
            try:
                os.link(os.path.realpath(source), staged)
                return
            except OSError as error:
                # another volume, a file system without links, or too many of them
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES):
                    raise
                self.num_copied_instead += 1
        part = staged.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(staged)
