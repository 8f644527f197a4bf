"""`plan`: what training would see of a data root, counted before it starts."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edkit import nano
from edkit.data.errors import BadInput, MissingExtra, Problem, StateError, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.measure.families import Family, unread
from edkit.measure.families import family as family_of

if TYPE_CHECKING:
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import Dataset
    from edkit.data.plan import Epoch, Plan
    from edkit.data.sample import Caption

DEEP_CUT = 0.2  # part of an image that a crop may take before it is counted


BYTES_A_VALUE = 2  # caches are kept in 16 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPart:
    """What one folder gives."""

    folder: str  # below the data root; "." is the root
    num_images: int
    multiply: str  # as it is written; "several" where images have multiplies of their own
    picks: tuple[int, ...]  # of each epoch looked at
    share: float  # 0..1 of all their picks


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPart:
    """What trains at one size."""

    width: int
    height: int
    num_images: int
    cut: float  # 0..1: the part of an image's area that its crop loses, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCaption:
    """A caption that the text encoder doesn't read to its end."""

    caption: str
    num_images: int
    num_tokens: int
    lost: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of problem, counted."""

    level: Literal["error", "warning"]
    code: str
    count: int
    first: str  # the first of them, in one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What training would see."""

    root: Path
    epochs: int
    batch_size: int
    resolution: int
    family: str | None
    num_images: int
    num_training: int  # those that train in some epoch
    folders: tuple[FolderPart, ...]
    buckets: tuple[BucketPart, ...]
    picks: tuple[int, ...]  # of each epoch
    steps: tuple[int, ...]  # of each epoch
    mixed_steps: tuple[int, ...]  # of these, how many join several buckets
    total_steps: int
    num_small: int  # images smaller than their bucket
    num_deep_cuts: int  # images that lose more than a fifth to their crop
    cut: float  # 0..1: area lost to crops, on average over images
    num_captions: int  # different ones
    num_empty_captions: int
    cut_captions: tuple[CutCaption, ...] | None  # None: no tokenizer, or no family given that cuts
    latent_bytes: int | None
    text_bytes: int | None
    kinds: tuple[Kind, ...]
    problems: tuple[Problem, ...]
    schedule: Path | None


def plan(
    root: Path | str,
    *,
    epochs: int = 3,
    batch_size: int = 8,
    resolution: int | None = None,
    family: str | None = None,
    seed: int = 555,
    small: Literal["smaller", "upscale", "leave"] = "smaller",
    remainder: Literal["join", "duplicate", "drop"] = "join",
    caption_fallback: str | None = None,
    schedule: Path | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Planned:
    """Count what training would see: picks, buckets, crops, steps, cut captions, room for the caches.

    Changes nothing. `schedule` is a file to write with every step, one JSON object a line. Images that an
    error stands against are left out of the counts, as `problems` says; BadInput where none is left.
    """
    import numpy as np

    from edkit.data.dataset import read
    from edkit.data.plan import Plan, PlanSettings

    if epochs < 1:
        raise UsageError(f"{epochs} epochs are no run", where="--epochs", mend="give 1 or more")
    shape = None if family is None else family_of(nano.model_dir() if family == "nano" else family)
    wanted = resolution or (shape.resolution if shape else 512)
    settings = PlanSettings(
        batch_size=batch_size,
        resolution=wanted,
        bucket_step=shape.bucket_step if shape else 64,
        seed=seed,
        small=small,
        remainder=remainder,
    )
    with _catalog(Path(root), state_dir, progress) as catalog:
        whole = read(root, catalog=catalog, caption_fallback=caption_fallback, progress=progress)
    if not len(whole):
        raise BadInput("no images in it", where=str(root))
    dataset, _ = whole.without_errors()
    if not len(dataset):
        first = str(whole.errors[0]).removeprefix("error: ")
        raise BadInput(
            f"an error stands against every one of its {len(whole):,} images; the first: {first}",
            where=str(root),
        )
    plan = Plan(dataset, settings)
    made = []
    mixed = []
    with progress.task("planning", total=epochs, unit="epochs") as advance:
        bucket_of = _bucket_numbers(plan)
        for number in range(epochs):
            epoch = plan.epoch(number, last=number == epochs - 1)
            made.append((epoch.num_picks, len(epoch)))
            mixed.append(_num_mixed(epoch, bucket_of))
            advance(1)
    if schedule is not None:
        _write_schedule(plan, schedule, epochs, progress)

    trains = np.ones(len(dataset), np.bool_)
    trains[[i for i, _ in plan.left_out]] = False
    rows = np.flatnonzero(trains)
    cuts = _cuts(plan, rows)
    sizes = tuple(_buckets(plan, rows, cuts))
    problems = (*whole.problems, *plan.problems)
    captions = _captions(dataset, rows)
    return Planned(
        root=whole.root,
        epochs=epochs,
        batch_size=batch_size,
        resolution=wanted,
        family=family,
        num_images=len(whole),
        num_training=len(rows),
        folders=tuple(_folders(plan, dataset, epochs)),
        buckets=sizes,
        picks=tuple(picks for picks, _ in made),
        steps=tuple(steps for _, steps in made),
        mixed_steps=tuple(mixed),
        total_steps=sum(steps for _, steps in made),
        num_small=len(plan.small),
        num_deep_cuts=int((cuts > DEEP_CUT).sum()),
        cut=float(cuts.mean()),
        num_captions=len(captions),
        num_empty_captions=dataset.num_empty_captions,
        cut_captions=_cut_captions(captions, shape) if shape else None,
        latent_bytes=_latent_bytes(sizes, shape) if shape else None,
        text_bytes=len(captions) * shape.text_values * BYTES_A_VALUE if shape else None,
        kinds=_kinds(problems),
        problems=problems,
        schedule=schedule,
    )


def _catalog(root: Path, state_dir: Path | None, progress: Progress) -> Catalog:
    """The catalog for what it knows of headers and captions; looking makes no state where there is none."""
    from edkit.data.catalog import Catalog, state_dir_for

    if state_dir_for(root, state_dir).is_dir():
        try:
            return Catalog.open(root, state_dir=state_dir, command="plan", progress=progress)
        except StateError:  # another command writes, or the folder is read-only: then what we find isn't kept
            pass
    return Catalog.open(root, state_dir=state_dir, write=False, progress=progress)


def _bucket_numbers(plan: Plan) -> Any:
    import numpy as np

    number = {bucket: i for i, bucket in enumerate(plan.buckets)}
    return np.fromiter((number[plan.bucket(i)] for i in range(len(plan.dataset))), np.int64)


def _num_mixed(epoch: Epoch, bucket_of: Any) -> int:
    """Steps that join images of several buckets."""
    return sum(bool((bucket_of[step] != bucket_of[step[0]]).any()) for step in epoch.indices())


def _buckets(plan: Plan, rows: Any, cuts: Any) -> Iterator[BucketPart]:
    """The sizes in use, from tall to wide; those of full resolution first."""
    import numpy as np

    # by size: a small resolution may have one size at two levels
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, i in enumerate(rows.tolist()):
        by_size.setdefault(plan.bucket(i), []).append(place)
    for width, height in dict.fromkeys(plan.buckets):
        places = by_size.get((width, height))
        if places:
            cut = float(np.mean(cuts[places]))
            yield BucketPart(width=width, height=height, num_images=len(places), cut=cut)


def _cuts(plan: Plan, rows: Any) -> Any:
    """The part of each image's area (0..1) that its crop cuts off."""
    import numpy as np

    from edkit.data.plan import crop_for

    widths, heights = plan.dataset.widths.tolist(), plan.dataset.heights.tolist()
    known: dict[tuple[int, int, int, int], float] = {}
    found = np.zeros(len(rows))
    for place, i in enumerate(rows.tolist()):
        bucket = plan.bucket(i)
        size = (widths[i], heights[i], *bucket)
        if size not in known:
            crop = crop_for(widths[i], heights[i], bucket)
            known[size] = 1 - crop.width * crop.height / (crop.scaled_width * crop.scaled_height)
        found[place] = known[size]
    return found


def _folders(plan: Plan, dataset: Dataset, epochs: int) -> Iterator[FolderPart]:
    from edkit.balance.balance import plain

    by_epoch = [plan.picks_by_folder(epoch) for epoch in range(epochs)]
    total = sum(sum(epoch.values()) for epoch in by_epoch)
    for folder in dataset.folders:
        picks = tuple(epoch[folder.path] for epoch in by_epoch)
        yield FolderPart(
            folder=folder.key or ".",
            num_images=folder.count,
            multiply="several" if folder.multiply is None else plain(folder.multiply),
            picks=picks,
            share=sum(picks) / total if total else 0.0,
        )


def _captions(dataset: Dataset, rows: Any) -> dict[Caption, int]:
    """Every different caption, with how many images have it."""
    found: dict[Caption, int] = {}
    for i in rows.tolist():
        caption = dataset.caption(i)
        found[caption] = found.get(caption, 0) + 1
    return found


def _cut_captions(captions: dict[Caption, int], family: Family) -> tuple[CutCaption, ...] | None:
    try:
        count = unread(family)
    except MissingExtra:
        return None
    found = []
    for caption, num_images in captions.items():
        text = ", ".join(part for part in (caption.text, *(tag.text for tag in caption.tags)) if part)
        num_tokens, lost = count(text)
        if lost:
            found.append(CutCaption(caption=text, num_images=num_images, num_tokens=num_tokens, lost=lost))
    return tuple(sorted(found, key=lambda cut: (-cut.num_tokens, cut.caption)))


def _latent_bytes(buckets: Sequence[BucketPart], shape: Family) -> int:
    latents = sum(
        bucket.num_images * (bucket.width // shape.latent_factor) * (bucket.height // shape.latent_factor)
        for bucket in buckets
    )
    return latents * shape.latent_channels * BYTES_A_VALUE


def _kinds(problems: Sequence[Problem]) -> tuple[Kind, ...]:
    found: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        found.setdefault((problem.level, problem.code), []).append(problem)
    return tuple(
        Kind(level=of[0].level, code=code, count=len(of), first=str(of[0]).removeprefix(f"{level}: "))
        for (level, code), of in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    )


def _write_schedule(plan: Plan, path: Path, epochs: int, progress: Progress) -> None:
    """Every step as a line of JSON, under its real name only when it is whole."""
    part = path.with_name(f".edkit-{secrets.token_hex(6)}")
    number = 0
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            total = plan.total_steps(epochs)
            with progress.task("writing the schedule", total=total, unit="steps") as advance:
                for epoch in range(epochs):
                    for step in plan.epoch(epoch, last=epoch == epochs - 1):
                        line = {"step": number, "epoch": epoch, "micro_batches": _micro_batches(plan, step)}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        number += 1
                        advance(1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _micro_batches(plan: Plan, step: Any) -> list[dict[str, object]]:
    from edkit.data.sample import caption_text, drops_caption

    seed = plan.settings.seed
    found: list[dict[str, object]] = []
    for micro in step:
        picks = []
        for pick in micro.picks:
            sample, crop = plan.dataset.sample(pick.index), pick.crop
            key = {"seed": seed, "epoch": pick.epoch, "occurrence": pick.occurrence}
            picks.append(
                {
                    "image": sample.key,
                    "caption": "" if drops_caption(sample, **key) else caption_text(sample, **key),
                    "epoch": pick.epoch,
                    "occurrence": pick.occurrence,
                    "scaled": [crop.scaled_width, crop.scaled_height],
                    "crop": [crop.left, crop.top, crop.width, crop.height],
                    "flip": crop.flip,
                }
            )
        found.append({"bucket": list(micro.bucket), "batch_id": micro.batch_id, "picks": picks})
    return found
