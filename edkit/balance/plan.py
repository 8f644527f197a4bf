"""`plan`: what training would see of a data root, counted before it starts."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edkit import nano
from edkit.data.errors import BadInput, MissingExtra, Problem, StateError, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.measure.families import FAMILIES, Family, unread
from edkit.measure.families import family as family_of

if TYPE_CHECKING:
    from edkit.balance.others import Mirror, Trainer
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import Dataset
    from edkit.data.plan import Plan
    from edkit.data.rates import Rate

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

    @property
    def read(self) -> str:
        """The part that is read to its end."""
        return self.caption.removesuffix(self.lost)


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
    seed: int
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
    max_tokens: int | None  # that the family's text encoder reads
    cut_captions: tuple[CutCaption, ...] | None  # None: no tokenizer, or no family given that cuts
    rate: Rate | None  # of the last run at this resolution on this machine, of this family
    seconds: float | None  # at that rate
    latent_bytes: int | None
    text_bytes: int | None
    kinds: tuple[Kind, ...]
    problems: tuple[Problem, ...]
    schedule: Path | None
    mirror: Mirror | None  # what another trainer would have made of the folder


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
    as_: Trainer | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Planned:
    """Count what training would see: picks, buckets, crops, steps, cut captions, room for the caches.

    Changes nothing. `schedule` is a file to write with every step, one JSON object a line. `as_` names another
    trainer, whose way with the same folder is set beside. A seed of -1 draws one. Images that an error
    stands against are left out of the counts, as `problems` says; BadInput where none is left.
    """
    import numpy as np

    from edkit.data.dataset import read
    from edkit.data.plan import Plan, PlanSettings
    from edkit.data.random import draw_seed
    from edkit.data.rates import last_rate

    seed = draw_seed() if seed == -1 else seed
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
        named = family if family in FAMILIES else None
        rate = last_rate(catalog, resolution=wanted, family=named) if catalog else None
    dataset, _ = whole.without_errors()
    if not len(whole):
        raise BadInput("no images in it", where=str(root))
    if not len(dataset):
        first = str(whole.errors[0]).removeprefix("error: ")
        raise BadInput(
            f"an error stands against every one of its {len(whole):,} images; the first: {first}",
            where=str(root),
        )
    plan = Plan(dataset, settings)
    made = []
    with progress.task("planning", total=epochs, unit="epochs") as advance:
        for number in range(epochs):
            epoch = plan.epoch(number, last=number == epochs - 1)
            made.append((epoch.num_picks, len(epoch), epoch.num_mixed))
            advance(1)
    if schedule is not None:
        _write_schedule(plan, schedule, epochs, progress)

    cuts = plan.cuts()[plan.trains]
    sizes = tuple(_buckets(plan))
    problems = (*whole.problems, *plan.problems)
    ids, num_images = np.unique(dataset.caption_ids[plan.trains], return_counts=True)
    cut_captions = _cut_captions(dataset, ids, num_images, shape) if shape else None
    mirrored = None
    if as_ is not None:
        from edkit.balance.others import Look, mirror

        # they train CLIP's families where none is named
        cut = cut_captions if shape else _cut_captions(dataset, ids, num_images, family_of("sd1"))
        num_cut = None if cut is None else sum(one.num_images for one in cut)
        mirrored = mirror(as_, Look(whole=whole, dataset=dataset, plan=plan, num_cut=num_cut))
    return Planned(
        root=whole.root,
        epochs=epochs,
        batch_size=batch_size,
        resolution=wanted,
        family=family,
        seed=seed,
        num_images=len(whole),
        num_training=len(cuts),
        folders=tuple(_folders(plan, dataset, epochs)),
        buckets=sizes,
        picks=tuple(picks for picks, _, _ in made),
        steps=tuple(steps for _, steps, _ in made),
        mixed_steps=tuple(mixed for _, _, mixed in made),
        total_steps=sum(steps for _, steps, _ in made),
        num_small=len(plan.small),
        num_deep_cuts=int((cuts > DEEP_CUT).sum()),
        cut=float(cuts.mean()),
        num_captions=len(ids),
        num_empty_captions=dataset.num_empty_captions,
        max_tokens=shape.max_tokens if shape else None,
        cut_captions=cut_captions,
        rate=rate,
        seconds=sum(picks for picks, _, _ in made) / rate.images_per_second if rate else None,
        latent_bytes=_latent_bytes(sizes, shape) if shape else None,
        text_bytes=len(ids) * shape.text_values * BYTES_A_VALUE if shape else None,
        kinds=_kinds(problems),
        problems=problems,
        schedule=schedule,
        mirror=mirrored,
    )


def _catalog(root: Path, state_dir: Path | None, progress: Progress) -> AbstractContextManager[Catalog | None]:
    """The catalog for what it knows of headers and captions; looking makes no state where there is none."""
    from edkit.data.catalog import Catalog, state_dir_for

    if not state_dir_for(root, state_dir).is_dir():
        return nullcontext()
    try:
        return Catalog.open(root, state_dir=state_dir, command="plan", progress=progress)
    except StateError:  # another command writes, or the folder is read-only: then what we find isn't kept
        return Catalog.open(root, state_dir=state_dir, write=False, progress=progress)


def _buckets(plan: Plan) -> Iterator[BucketPart]:
    """The sizes in use, from tall to wide; those of full resolution first."""
    import numpy as np

    of = plan.bucket_ids[plan.trains]
    counts = np.bincount(of, minlength=len(plan.buckets))
    lost = np.bincount(of, plan.cuts()[plan.trains], len(plan.buckets))
    # by size: a small resolution may have one size at two levels
    for size in dict.fromkeys(plan.buckets):
        levels = [i for i, bucket in enumerate(plan.buckets) if bucket == size]
        num_images = int(counts[levels].sum())
        if num_images:
            cut = float(lost[levels].sum()) / num_images
            yield BucketPart(width=size[0], height=size[1], num_images=num_images, cut=cut)


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


def _cut_captions(dataset: Dataset, ids: Any, num_images: Any, family: Family) -> tuple[CutCaption, ...] | None:
    """The captions (by `caption_ids`, with how many images have each) that the family's text encoder cuts."""
    try:
        count = unread(family)
    except MissingExtra:
        return None
    found = []
    for id, num in zip(ids.tolist(), num_images.tolist(), strict=True):
        caption = dataset.caption_of(id)
        text = ", ".join(part for part in (caption.text, *(tag.text for tag in caption.tags)) if part)
        num_tokens, lost = count(text)
        if lost:
            found.append(CutCaption(caption=text, num_images=num, num_tokens=num_tokens, lost=lost))
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
