"""`edkit import coco`: COCO photos with captions, by category, from a folder or from COCO's server."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import is_safe_path
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed, integer
from edkit.gather.candidate import KEPT, Candidate, Funnel
from edkit.gather.collect import Collector
from edkit.gather.fetch import USER_AGENT, FetchSettings
from edkit.gather.local import Imported, Item, Target, absolute, query_of, run_import
from edkit.gather.place import Captions


def import_coco(
    *,
    annotations: Path,
    out: Path,
    images: Path | None = None,
    download: bool = False,
    instances: Path | None = None,
    categories: Sequence[str] = (),
    exclude_categories: Sequence[str] = (),
    min_area: float = 0.0,
    crowds: bool = True,
    caption_choice: Literal["first", "random"] = "first",
    seed: int = 555,
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    concurrency: int = 64,
    per_host: int = 8,
    timeout: float = 30.0,
    retries: int = 2,
    user_agent: str = USER_AGENT,
    allow_private_hosts: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put COCO images (those showing one of `categories`, where given) with a caption each into `out`.

    In the order of the annotations file; every image is decoded first, licence and Flickr page go into the
    ledger (COCO names no authors: the page does). `min_area` is the least share of the image that an object of
    the category must fill; without `crowds`, objects marked as crowds don't count. Raises UsageError (options
    that don't go together, an unknown category) and BadInput (a JSON that is no COCO file).
    """
    started = time.monotonic()
    wanted = tuple(c.strip() for part in categories for c in part.split(",") if c.strip())
    unwanted = tuple(c.strip() for part in exclude_categories for c in part.split(",") if c.strip())
    if (images is None) == (not download):
        raise UsageError("say where the images are: --images DIR, or --download")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: no such folder")
    if bool(wanted or unwanted) != (instances is not None):
        raise UsageError("--category and --instances FILE go together")
    if not 0.0 <= min_area < 1.0 or (min_area and not wanted):
        raise UsageError(f"--min-area {min_area:g}: a share of the image below 1, with --category")
    if caption_choice not in ("first", "random"):
        raise UsageError("--caption-choice first or random")
    target = Target(
        out=out,
        link=link,
        limit=limit,
        captions=captions,
        licence=licence,
        author=author,
        dry_run=dry_run,
        state_dir=state_dir,
        progress=progress,
    )
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
        shown = (
            None if instances is None else images_showing(instances, wanted, unwanted, min_area=min_area, crowds=crowds)
        )
        advance(1 if instances else 0)
        found, funnel = read_captions(
            annotations, shown, caption_choice=caption_choice, seed=seed, licence=licence, author=author
        )
        advance(1)
    asked = [str(annotations.resolve()), sorted(wanted), sorted(unwanted), min_area, crowds, caption_choice, seed]
    if images is not None or dry_run:

        def items(counted: Funnel) -> Iterator[Item]:
            counted.rows, counted.dropped, counted.left = funnel.rows, funnel.dropped, funnel.left
            for candidate in found:
                item = Item(candidate=candidate, source=(images or absolute(out)) / candidate.key)
                if not is_safe_path(candidate.key):
                    item.refused = "unsafe-name"
                yield item

        return run_import("coco", items, target, asked=asked, expected=len(found), seed=seed)
    place, query = absolute(out), query_of("coco", target, asked)
    place.mkdir(parents=True, exist_ok=True)
    with Catalog.open(place, state_dir=state_dir, command="import coco", progress=progress) as catalog:
        work = Collector(catalog, place, query, captions, settings, limit, progress)
        work.run(lambda empty: iter([found]))
    return Imported(
        source="coco",
        out=place,
        query=query,
        dry_run=False,
        rows_read=funnel.rows,
        dropped=funnel.dropped,
        matched=funnel.left,
        skipped=work.counts.skipped,
        outcomes=work.counts.outcomes,
        kept=work.counts.outcomes.get(KEPT, 0),
        total=work.total,
        limit=limit,
        num_bytes=work.counts.num_bytes,
        seconds=time.monotonic() - started,
        seed=seed,
    )


# ---- the annotation files

# what a value of another kind than COCO's raises where it is used
_ODD = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


def read_captions(
    path: Path,
    shown: frozenset[int] | None,
    *,
    caption_choice: Literal["first", "random"],
    seed: int,
    licence: str = "",
    author: str = "",
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
            image_id, name = image["id"], image["file_name"]
            url = image.get("coco_url") or image.get("flickr_url") or f"coco:{name}"
            for text in (name, url):
                if not isinstance(text, str):
                    raise TypeError(f"{text!r} is no text")
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
                    url=url,
                    caption=choices[pick],
                    table=str(path),
                    row=row,
                    width=int(image.get("width", 0)),
                    height=int(image.get("height", 0)),
                    licence=str(licences.get(image.get("license"), "")) or licence,
                    author=author,
                    page=image.get("flickr_url", ""),
                    key=name,
                )
            )
    except _ODD as error:
        raise BadInput(f"not as COCO writes it: {error}", where=str(path)) from error
    funnel.left = len(found)
    return found, funnel


def images_showing(
    path: Path,
    categories: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    min_area: float = 0.0,
    crowds: bool = True,
) -> frozenset[int]:
    """The ids of the images in an instances file that show one of the categories, and none of `exclude`.

    `min_area`: the least share of the image that one such object fills. Raises UsageError for an unknown category,
    naming the nearest.
    """
    data = _load(path, ("annotations", "categories"))
    try:
        ids = {entry["name"].casefold(): entry["id"] for entry in data["categories"]}

        def ids_of(names: Sequence[str], option: str) -> set[int]:
            for name in names:
                if name.casefold() not in ids:
                    near = difflib.get_close_matches(name.casefold(), ids, n=3, cutoff=0.5)
                    hint = ", ".join(near or sorted(ids)[:8])
                    raise UsageError(f"{option} {name}: not in {path.name}; there is {hint}")
            return {ids[name.casefold()] for name in names}

        wanted, unwanted = ids_of(categories, "--category"), ids_of(exclude, "--exclude-category")
        areas: dict[int, float] = {}
        if min_area:
            areas = {image["id"]: image["width"] * image["height"] for image in data.get("images", [])}
            if not areas:
                raise BadInput("has no list of images, which --min-area needs", where=str(path))
        shown, hidden = set(), set()
        for note in data["annotations"]:
            kind, image = note.get("category_id"), note["image_id"]
            if kind in unwanted:
                hidden.add(image)
            if kind in wanted and (crowds or not note.get("iscrowd")):
                area = note.get("area") or 0.0
                if not min_area or area >= min_area * areas.get(image, float("inf")):
                    shown.add(image)
        if not wanted:
            # none asked for: all that show nothing unwanted
            shown = {image["id"] for image in data.get("images", [])} or {n["image_id"] for n in data["annotations"]}
        return frozenset(shown - hidden)
    except _ODD as error:
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
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", where=str(path)) from error
    missing = [key for key in keys if not (isinstance(data, dict) and isinstance(data.get(key), list))]
    if missing:
        raise BadInput(f"no COCO file: it has no list of {' or '.join(missing)}", where=str(path))
    return dict(data)
