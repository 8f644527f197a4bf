"""List everything that is broken or doubtful in a data root, at once, before anything trains on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edkit import nano
from edkit.clean.dedupe import FACTS_NEEDED, near_duplicates
from edkit.clean.files import Listing, open_catalog, shown
from edkit.data.dataset import Dataset, read
from edkit.data.errors import MissingExtra, Problem, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import caption_text
from edkit.measure.facts import Facts
from edkit.measure.families import Family, unread
from edkit.measure.families import family as family_of
from edkit.measure.measure import measure

MIN_SIDE = 256  # pixels, where no family says what it needs
MAX_ASPECT = 4.0  # buckets go no further
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `check` found."""

    num_images: int
    num_errors: int  # each blocks training
    num_warnings: int  # none blocks
    problems: tuple[Problem, ...]  # errors first, then by place
    notes: tuple[str, ...]  # what is worth knowing and no problem
    skipped: tuple[tuple[Path, str], ...]  # files that are not read, and why


def check(
    root: Path,
    *,
    family: str | None = None,
    resolution: int | None = None,
    caption_fallback: str | None = None,
    radius: int = 8,
    workers: int | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Checked:
    """Everything an honest look at a data root finds; changes nothing.

    Errors (unreadable images, captions or options that can't be understood) block training; warnings (too
    small, extreme aspect, wrong ending, near-duplicates, captions cut at the token limit of `family`) do
    not. Raises UsageError for a family nobody knows.
    """
    target = None if family is None else family_of(nano.model_dir() if family == "nano" else family)
    if resolution is None and target is not None:
        resolution = target.resolution
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31")
    root = Path(root)
    with open_catalog(root, state_dir=state_dir, changes=False, command="check", progress=progress) as catalog:
        dataset = read(root, caption_fallback=caption_fallback, sizes=False, catalog=catalog, progress=progress)
        paths = tuple(dict.fromkeys(dataset.paths))
        names = dict.fromkeys(("format", *FACTS_NEEDED))
        measured = measure(catalog, paths, names, workers=workers, progress=progress)
        facts = {path: one for path, one in measured.items() if not isinstance(one, Problem)}
        ids = catalog.content_ids(facts)
    notes: list[str] = []
    found = [*dataset.problems, *_broken(measured.values())]
    for path, one in facts.items():
        found += _mislabelled(path, one)
        found += _shape(path, one, resolution, target)
    found += _duplicates(Listing(images=paths, sidecars={}, siblings={}), facts, ids, radius, root)
    if target is not None:
        try:
            found += _cut(dataset, target, progress)
        except MissingExtra as error:
            notes.append(f"captions were not held against {target.name}'s token limit: {error}")
    skipped = tuple((one.path, one.reason) for one in dataset.skipped)
    if dataset.num_empty_captions:
        notes.append(f"{dataset.num_empty_captions:,} captions are empty on purpose (an empty sidecar)")
    if skipped:
        some = ", ".join(f"{shown(path, root)} ({reason})" for path, reason in skipped[:5])
        notes.append(f"{len(skipped):,} files are not read: {some}{', ...' if len(skipped) > 5 else ''}")
    problems = sorted(_once(found), key=lambda one: (one.level, one.where, one.code))  # "error" < "warning"
    return Checked(
        num_images=len(dataset),
        num_errors=sum(one.level == "error" for one in problems),
        num_warnings=sum(one.level == "warning" for one in problems),
        problems=tuple(problems),
        notes=tuple(notes),
        skipped=skipped,
    )


def _once(problems: Iterable[Problem]) -> list[Problem]:
    """Each finding once, though the folder's reader and the decoder may both have met it."""
    found: dict[tuple[str, str], Problem] = {}
    for one in problems:
        found.setdefault((one.where, one.what), one)
    return list(found.values())


def _broken(measured: Iterable[Facts | Problem]) -> Iterator[Problem]:
    for one in measured:
        if isinstance(one, Problem):
            truncated = one.what.startswith("truncated")
            yield Problem(
                level="error",
                code="truncated-image" if truncated else one.code,
                where=one.where,
                what=one.what,
                mend=one.mend,
            )


def _mislabelled(path: Path, facts: Facts) -> Iterator[Problem]:
    format = str(facts["format"])
    endings = _ENDINGS.get(format, ())
    if endings and path.suffix.lower() not in endings:
        mend = f"rename it to {path.stem}{endings[0]}"
        yield _warning("mislabelled-image", path, f"is {format} by content", mend)


def _shape(path: Path, facts: Facts, resolution: int | None, target: Family | None) -> Iterator[Problem]:
    width, height = _whole(facts["width"]), _whole(facts["height"])
    aspect = max(width, height) / min(width, height)
    if aspect > MAX_ASPECT:
        lost = 1 - MAX_ASPECT / aspect
        yield _warning(
            "extreme-aspect",
            path,
            f"{width}x{height} is {aspect:.1f}:1; buckets go to {MAX_ASPECT:g}:1, {lost:.0%} is cut off",
            "crop it",
        )
    if resolution is None:
        if min(width, height) < MIN_SIDE:
            yield _warning(
                "tiny-image",
                path,
                f"{width}x{height} is small",
                f"{MIN_SIDE} pixels a side or more train well",
            )
        return
    step = 64 if target is None else target.bucket_step
    bucket = _nearest_bucket(width / height, resolution, step)
    if width < bucket[0] or height < bucket[1]:
        yield _warning(
            "tiny-image",
            path,
            f"{width}x{height} is smaller than its bucket ({bucket[0]}x{bucket[1]} at {resolution})",
            "it trains at a smaller size; find a larger copy or leave it out",
        )


def _nearest_bucket(aspect: float, resolution: int, step: int) -> tuple[int, int]:
    """The bucket of the nearest log aspect."""
    return min(_sizes(resolution, step), key=lambda size: abs(math.log(size[0] / size[1] / aspect)))


@cache
def _sizes(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    from edkit.data.plan import buckets

    return tuple(buckets(resolution, step=step, max_aspect=MAX_ASPECT))


def _duplicates(
    listing: Listing, facts: Mapping[Path, Facts], ids: Mapping[Path, str], radius: int, root: Path
) -> Iterator[Problem]:
    for group in near_duplicates(listing, facts, ids, radius=radius, root=root):
        some = ", ".join(
            f"{shown(one.path, root)} ({'same bytes' if one.same_bytes else f'distance {one.distance:.0f}'})"
            for one in group.members[:5]
        )
        more = f" and {len(group.members) - 5:,} more" if len(group.members) > 5 else ""
        number = len(group.members)
        yield _warning(
            "near-duplicate",
            group.kept,
            f"{number:,} near-duplicate{'s' if number > 1 else ''}: {some}{more}",
            f"edkit dedupe {root} --radius {radius}",
        )


def _cut(dataset: Dataset, target: Family, progress: Progress) -> Iterator[Problem]:
    measured = unread(target)
    known: dict[str, tuple[int, str]] = {}
    with progress.task("counting tokens", total=len(dataset)) as advance:
        for index in range(len(dataset)):
            caption = caption_text(dataset.sample(index), seed=0, epoch=0)
            if caption not in known:
                known[caption] = measured(caption)
            number, lost = known[caption]
            if lost:
                end = lost if len(lost) <= 60 else f"{lost[:57]}..."
                yield _warning(
                    "caption-cut",
                    dataset.path(index),
                    f"{number} tokens of caption, {target.name} reads {target.max_tokens}: unread is {end!r}",
                    "shorten it",
                )
            advance(1)


def _warning(code: str, path: Path, what: str, mend: str) -> Problem:
    return Problem(level="warning", code=code, where=os.fspath(path), what=what, mend=mend)


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
