"""Find everything that is broken or doubtful in a data root, at once, before anything trains on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from edkit import nano
from edkit.clean.dedupe import FACTS_NEEDED, near_duplicates
from edkit.clean.files import Listing, Unwanted, links_among, list_images, open_catalog, set_aside, shown
from edkit.clean.findings import KINDS, Asked, Box, Finding, Look, Spot, file_of, grouped, kind_of
from edkit.clean.fix import Fixed, Mended, fix, marked, right_ending
from edkit.clean.usual import usual_words
from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset, read
from edkit.data.errors import MissingExtra, Problem, UsageError
from edkit.data.journal import Trash, Write, apply
from edkit.data.plan import buckets, crop_for, nearest
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import caption_text
from edkit.measure import facts as measured_facts
from edkit.measure.facts import Facts
from edkit.measure.families import Family, unread
from edkit.measure.families import family as family_of
from edkit.measure.measure import measure

MIN_SIDE = 256  # pixels, where no family says what it needs
MAX_ASPECT = 4.0  # buckets go no further
BURST_SECONDS = 2.0  # between one shot and the next
BURST_BITS = 20  # of 64, between their hashes: 32 is what strangers have
MANY = 400  # pictures: more are not searched for heads unless asked
_SLIVER = 0.004  # of a side: what a crop may take without a look for heads
HEAD_LEAST = 0.05  # of the picture's height: smaller faces are a crowd
HEAD_LOST = 0.1  # part of a head that a crop may cut before it is told
_FORM = ("format", "width", "height")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `check` found."""

    num_images: int
    num_ready: int  # images that no error stands against
    num_errors: int  # each blocks training
    num_warnings: int  # none blocks
    findings: tuple[Finding, ...]  # by kind, errors first
    problems: tuple[Problem, ...]  # one by one, errors first, then by place
    notes: tuple[str, ...]  # what is worth knowing and no problem
    skipped: tuple[tuple[Path, str], ...]  # files that are not read, and why
    fixed: Fixed | None  # what `fix` and `set_aside` did before this was found
    page: Path | None


def check(
    root: Path,
    *,
    family: str | None = None,
    resolution: int | None = None,
    caption_fallback: str | None = None,
    radius: int = 8,
    heads: bool | None = None,
    out: Path | None = None,
    fix: bool = False,
    shorten: bool = False,
    set_aside: Sequence[str] = (),
    dry_run: bool = False,
    workers: int | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Checked:
    """Everything an honest look at a data root finds. Changes nothing unless `fix` or `set_aside` say so.

    Errors (unreadable images, captions or options that can't be understood) block training; warnings (too
    small, cut heads, near-duplicates, captions cut at the token limit of `family`, ...) don't. `heads`: whether
    to look for heads that a crop would cut (None: where a detector is installed and there are at most `MANY`
    pictures, as it takes most of a second each). `out` is an HTML page to write.

    `fix` first mends what has one safe, lossless mend (and writes `caption_fallback` beside images without a
    caption); `shorten` first cuts caption files where `family` stops reading; `set_aside` first moves the
    images, or text files, of these kinds of findings to the trash. All are journaled; on a `dry_run` they only
    say what they would do. Raises UsageError for a family or a kind nobody knows.
    """
    target = None if family is None else family_of(nano.model_dir() if family == "nano" else family)
    asked = Asked(root=Path(root), family=family, resolution=resolution, radius=radius)
    if resolution is None and target is not None:
        resolution = target.resolution
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31")
    for kind in set_aside:
        if kind not in KINDS:
            raise UsageError(
                f"no finding is called {kind!r}", where="--set-aside", mend=measured_facts.nearest(kind, KINDS)
            )
    if shorten and target is None:
        raise UsageError("which model's limit?", where="--shorten", mend="--for sd1, sd2, sdxl, klein or nano")
    if (fix or shorten or set_aside) and not asked.root.is_dir():
        raise UsageError("files are changed in folders alone, not by a manifest", where=str(root))
    if fix and caption_fallback == "WORDS":
        raise UsageError("WORDS stands for what the pictures show", mend='--caption-fallback "my dog"')
    fixed = None
    changes = (fix or shorten or bool(set_aside)) and not dry_run
    with open_catalog(
        asked.root, state_dir=state_dir, changes=changes, finish=not dry_run, command="check", progress=progress
    ) as catalog:

        def look() -> Look:
            return _look(catalog, asked, target, resolution, caption_fallback, heads, workers, progress)

        if fix:
            fixed = _fix(catalog, asked.root, caption_fallback, workers, dry_run, progress)
        seen = look()
        more = []
        if shorten:
            more.append(_shorten(catalog, seen, dry_run=dry_run, progress=progress))
        if set_aside:
            more.append(_set_aside(catalog, seen, set_aside, dry_run=dry_run, progress=progress))
        for done in more:
            fixed = done if fixed is None else _both(fixed, done)
        if any(done.mended for done in more) and not dry_run:
            seen = look()
        page = None
        if out is not None:
            from edkit.clean.check_page import write_page

            page = write_page(seen, out, fixed=fixed, progress=progress)
    spots = [spot for _, members in seen.findings for spot in members]
    counted = [spot.problem for finding, members in seen.findings if finding.level != "note" for spot in members]
    problems = sorted(counted, key=lambda one: (one.level, one.where, one.code))  # "error" < "warning"
    blocked = {file_of(spot.problem.where) for spot in spots if spot.problem.level == "error"}
    return Checked(
        num_images=len(seen.dataset),
        num_ready=sum(
            seen.dataset.error(i) is None and seen.dataset.path(i) not in blocked for i in range(len(seen.dataset))
        ),
        num_errors=sum(one.level == "error" for one in problems),
        num_warnings=sum(one.level == "warning" for one in problems),
        findings=tuple(finding for finding, _ in seen.findings),
        problems=tuple(problems),
        notes=seen.notes,
        skipped=tuple((one.path, one.reason) for one in seen.dataset.skipped),
        fixed=fixed,
        page=page,
    )


def _look(
    catalog: Catalog,
    asked: Asked,
    target: Family | None,
    resolution: int | None,
    caption_fallback: str | None,
    look_for_heads: bool | None,
    workers: int | None,
    progress: Progress,
) -> Look:
    root = asked.root
    dataset = read(root, caption_fallback=caption_fallback, sizes=False, catalog=catalog, progress=progress)
    asked = replace(asked, num_images=len(dataset))
    paths = tuple(dict.fromkeys(dataset.paths))
    names = dict.fromkeys((*_FORM, "taken", *FACTS_NEEDED))
    measured = measure(catalog, paths, names, workers=workers, progress=progress)
    facts = {path: one for path, one in measured.items() if not isinstance(one, Problem)}
    ids = catalog.content_ids(facts)
    notes: list[str] = []
    faces: dict[Path, list[Box]] | None = None
    if look_for_heads is None and len(facts) > MANY:
        notes.append(
            f"no one looked for heads that a crop would cut: in {len(facts):,} pictures that takes long (--heads)"
        )
    elif look_for_heads is not False:
        try:
            faces = _faces(catalog, _cropped(facts, resolution or 512, target), workers, progress)
        except MissingExtra as error:
            if look_for_heads:
                raise
            notes.append(f"no one looked for heads that a crop would cut: {error}")
    listing = Listing(images=paths, sidecars={}, siblings={})
    found = [*map(_from_reader, dataset.problems), *_broken(measured.values())]
    for path, one in facts.items():
        found += _mislabelled(path, one)
        found += _shape(path, one, resolution, target)
        if faces is not None:
            found += _heads(path, one, faces.get(path, ()), resolution or 512, target)
    links = links_among(facts, [root])
    files = {path: one for path, one in facts.items() if path not in links}
    doubled = list(_duplicates(listing, files, ids, asked, root))
    found += doubled
    found += _bursts(files, {path for spot in doubled for path in spot.aside}, root)
    num_tokens: list[int] = []
    if target is not None:
        try:
            num_tokens, cut = _tokens(dataset, target, progress)
            found += cut
        except MissingExtra as error:
            notes.append(f"captions were not held against {target.name}'s token limit: {error}")
    found += _usual(dataset)
    found += _marked(dataset)
    if dataset.num_empty_captions:
        notes.append(f"{dataset.num_empty_captions:,} captions are empty on purpose (an empty sidecar)")
    if dataset.num_masks:
        notes.append(f"{dataset.num_masks:,} images have a mask (-masklabel.png), which is not trained as an image")
    if dataset.skipped:
        some = ", ".join(f"{shown(one.path, root)} ({one.reason})" for one in dataset.skipped[:5])
        more = ", ..." if len(dataset.skipped) > 5 else ""
        notes.append(f"{len(dataset.skipped):,} files are not read: {some}{more}")
    return Look(
        asked=asked,
        target=target,
        resolution=resolution,
        dataset=dataset,
        facts=facts,
        findings=grouped(sorted(_once(found), key=lambda one: one.problem.where), asked),
        num_tokens=num_tokens,
        looked_for_heads=faces is not None,
        notes=tuple(notes),
    )


def _once(spots: Iterable[Spot]) -> list[Spot]:
    """Each finding once, though the folder's reader and the decoder may both have met it."""
    found: dict[tuple[str, str], Spot] = {}
    for one in spots:
        found.setdefault((one.problem.where, one.problem.what), one)
    return list(found.values())


# ---- what the reader and the decoder say

_OF_IMAGES = frozenset({"camera-name", "no-caption", "unreadable-image", "clashing-names", "image-twice"})
_NO_FILE = frozenset(
    {
        "unreadable-folder",
        "unfinished-change",
        "not-unicode",
        "bad-row",
        "missing-image",
        "multiply-zero",
        "prose-shuffled",
    }
)


def _from_reader(problem: Problem) -> Spot:
    kind, path = kind_of(problem), file_of(problem.where)
    if kind in _NO_FILE or path.suffix.lower() == ".json":
        return Spot(problem=problem)
    if kind == "main-prompt-twice" and not path.is_dir():
        return Spot(problem=problem, image=path, aside=_weaker(problem, path))
    if problem.code in _OF_IMAGES:
        return Spot(problem=problem, image=path, aside=(path,))
    return Spot(problem=problem, aside=() if path.is_dir() else (path,))


def _weaker(problem: Problem, image: Path) -> tuple[Path, ...]:
    """The caption files that lose to a stronger one: "... is used, not .txt"."""
    endings = problem.what.rpartition(", not ")[2].split(", ")
    files = (image.with_name(image.stem + ending) for ending in endings if ending.lower() in (".caption", ".txt"))
    return tuple(file for file in files if file.is_file())


def _broken(measured: Iterable[Facts | Problem]) -> Iterator[Spot]:
    for one in measured:
        if isinstance(one, Problem):
            code = "truncated-image" if one.what.startswith("truncated") else one.code
            path = Path(one.where)
            problem = Problem(level="error", code=code, where=one.where, what=one.what, mend=one.mend)
            yield Spot(problem=problem, image=path, aside=(path,))


def _mislabelled(path: Path, facts: Facts) -> Iterator[Spot]:
    ending = right_ending(str(facts["format"]), path.name)
    if ending:
        what = f"is {facts['format']!s} by content"
        yield _spot("mislabelled-image", path, what, f"rename it to {path.stem}{ending}")


# ---- sizes, shapes and heads


def _shape(path: Path, facts: Facts, resolution: int | None, target: Family | None) -> Iterator[Spot]:
    width, height = _whole(facts["width"]), _whole(facts["height"])
    aspect = max(width, height) / min(width, height)
    if aspect > MAX_ASPECT:
        lost = 1 - MAX_ASPECT / aspect
        what = f"{width}x{height} is {aspect:.1f}:1; buckets go to {MAX_ASPECT:g}:1, {lost:.0%} is cut off"
        bucket = bucket_for(width, height, resolution or 512, target)
        yield _spot("extreme-aspect", path, what, "crop it", keep=kept_box(width, height, bucket))
    if resolution is None:
        if min(width, height) < MIN_SIDE:
            mend = f"{MIN_SIDE} pixels a side or more train well"
            yield _spot("tiny-image", path, f"{width}x{height} is small", mend)
        return
    bucket = bucket_for(width, height, resolution, target)
    if width < bucket[0] or height < bucket[1]:
        what = f"{width}x{height} is smaller than its bucket ({bucket[0]}x{bucket[1]} at {resolution})"
        yield _spot("tiny-image", path, what, "it trains at a smaller size; find a larger copy or leave it out")


def bucket_for(width: int, height: int, resolution: int, target: Family | None) -> tuple[int, int]:
    """The size (width, height) that an image of this shape trains at, were it large enough."""
    sizes = _sizes(resolution, 64 if target is None else target.bucket_step)
    return sizes[nearest(width, height, sizes)]


@cache
def _sizes(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    return tuple(buckets(resolution, step, MAX_ASPECT))


def kept_box(width: int, height: int, bucket: tuple[int, int]) -> Box:
    """What the centre crop to a bucket leaves of a picture, as parts of its sides."""
    crop = crop_for(width, height, bucket)
    left, top = crop.left / crop.scaled_width, crop.top / crop.scaled_height
    return left, top, left + crop.width / crop.scaled_width, top + crop.height / crop.scaled_height


def _heads(path: Path, facts: Facts, faces: Sequence[Box], resolution: int, target: Family | None) -> Iterator[Spot]:
    width, height = _whole(facts["width"]), _whole(facts["height"])
    keep = kept_box(width, height, bucket_for(width, height, resolution, target))
    heads = [_head(face) for face in faces if face[3] - face[1] >= HEAD_LEAST]
    cut = tuple(head for head in heads if _lost(head, keep) > HEAD_LOST)
    if cut:
        worst = max(_lost(head, keep) for head in cut)
        bucket = bucket_for(width, height, resolution, target)
        many = "a head" if len(cut) == 1 else f"{len(cut)} heads"
        what = f"its crop to {bucket[0]}x{bucket[1]} cuts {worst:.0%} off {many}"
        yield _spot("head-cut", path, what, "crop it with the head inside", keep=keep, bad=cut)


def _head(face: Box) -> Box:
    """The head around a face: a detector's box runs from brow to chin, and hair stands above and beside it."""
    left, top, right, bottom = face
    wide, tall = right - left, bottom - top
    return max(0.0, left - 0.1 * wide), max(0.0, top - 0.3 * tall), min(1.0, right + 0.1 * wide), min(1.0, bottom)


def _lost(head: Box, keep: Box) -> float:
    """The part of a head's area that lies outside what is kept."""
    area = (head[2] - head[0]) * (head[3] - head[1])
    wide = max(0.0, min(head[2], keep[2]) - max(head[0], keep[0]))
    tall = max(0.0, min(head[3], keep[3]) - max(head[1], keep[1]))
    return 1.0 - wide * tall / area if area > 0 else 0.0


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_FACE = 5  # left, top, right, bottom, score


def _cropped(facts: Mapping[Path, Facts], resolution: int, target: Family | None) -> list[Path]:
    """The pictures that lose enough to their crop for a head to be cut."""
    found = []
    for path, one in facts.items():
        width, height = _whole(one["width"]), _whole(one["height"])
        keep = kept_box(width, height, bucket_for(width, height, resolution, target))
        if max(keep[0], keep[1], 1 - keep[2], 1 - keep[3]) > _SLIVER:
            found.append(path)
    return found


def _faces(
    catalog: Catalog, paths: Sequence[Path], workers: int | None, progress: Progress
) -> dict[Path, list[Box]] | None:
    """Where each picture's faces are; None where this edkit has no detector. Raises MissingExtra."""
    if "faces" not in measured_facts.FACTS or find_spec("edkit.measure.faces") is None:
        return None
    found: dict[Path, list[Box]] = {}
    for path, one in measure(catalog, paths, ["faces"], workers=workers, progress=progress).items():
        if not isinstance(one, Problem):
            numbers = [float(number) for number in _NUMBER.findall(str(one["faces"] or ""))]
            rows = (numbers[i : i + _FACE] for i in range(0, len(numbers) - _FACE + 1, _FACE))
            found[path] = [(left, top, right, bottom) for left, top, right, bottom, _ in rows]
    return found


# ---- pictures of one moment


def _duplicates(
    listing: Listing, facts: Mapping[Path, Facts], ids: Mapping[Path, str], asked: Asked, root: Path
) -> Iterator[Spot]:
    for group in near_duplicates(listing, facts, ids, radius=asked.radius, root=root):
        some = ", ".join(
            f"{shown(one.path, root)} ({'same bytes' if one.same_bytes else f'distance {one.distance:.0f}'})"
            for one in group.members[:5]
        )
        more = f" and {len(group.members) - 5:,} more" if len(group.members) > 5 else ""
        number = len(group.members)
        yield _spot(
            "near-duplicate",
            group.kept,
            f"{number:,} near-duplicate{'s' if number > 1 else ''}: {some}{more}",
            f"edkit dedupe {root} --radius {asked.radius}",
            aside=tuple(one.path for one in group.members),
            others=tuple(
                (one.path, "same bytes" if one.same_bytes else f"distance {one.distance:.0f}") for one in group.members
            ),
        )


def _bursts(facts: Mapping[Path, Facts], gone: set[Path], root: Path) -> Iterator[Spot]:
    """Pictures taken within seconds of one another that look alike, though not alike enough for duplicates."""
    shots = []
    for path, one in facts.items():
        try:
            time = datetime.fromisoformat(str(one["taken"] or ""))
        except ValueError:  # not said, or a camera's nonsense
            continue
        if path not in gone:
            shots.append((path.parent, time.replace(tzinfo=None), path))
    runs: list[list[Path]] = []
    last: tuple[Path, datetime] | None = None
    for folder, time, path in sorted(shots):
        near = last is not None and last[0] == folder and (time - last[1]).total_seconds() <= BURST_SECONDS
        if near and _bits(facts[runs[-1][-1]], facts[path]) <= BURST_BITS:
            runs[-1].append(path)
        else:
            runs.append([path])
        last = folder, time
    for run in runs:
        if len(run) > 1:
            best = max(run, key=lambda path: (_number(facts[path]["sharpness"]), path.name))
            others = [path for path in run if path != best]
            what = f"{len(run)} pictures shot within seconds; {shown(best, root)} is the sharpest"
            yield _spot(
                "burst", best, what, "keep one", aside=tuple(others), others=tuple((path, "") for path in others)
            )


def _bits(one: Facts, other: Facts) -> int:
    """In how many bits the perceptual hashes of two pictures differ."""
    return (int(str(one["phash"]), 16) ^ int(str(other["phash"]), 16)).bit_count()


# ---- captions


def _tokens(dataset: Dataset, target: Family, progress: Progress) -> tuple[list[int], list[Spot]]:
    """The length of every caption in tokens, and those that the family doesn't read to their end."""
    measured = unread(target)
    known: dict[str, tuple[int, str]] = {}
    lengths: list[int] = []
    cut: list[Spot] = []
    with progress.task("counting tokens", total=len(dataset)) as advance:
        for index in range(len(dataset)):
            caption = caption_text(dataset.sample(index), seed=0, epoch=0)
            if caption not in known:
                known[caption] = measured(caption)
            number, lost = known[caption]
            lengths.append(number)
            if lost:
                end = lost if len(lost) <= 60 else f"{lost[:57]}..."
                what = f"{number} tokens of caption, {target.name} reads {target.max_tokens}: unread is {end!r}"
                path = dataset.path(index)
                head = caption[: caption.rfind(lost)]
                spot = _spot("caption-cut", path, what, "shorten it", aside=(), read=head, unread=lost)
                source = next(iter(dataset.sources(index)), path)
                if source.suffix.lower() in (".txt", ".caption") and dataset.caption(index).verbatim:
                    spot = replace(spot, text=source)
                cut.append(spot)
            advance(1)
    return lengths, cut


def _usual(dataset: Dataset) -> Iterator[Spot]:
    for folder, words in usual_words(dataset).items():
        some = ", ".join(f"{word.text} ({word.share:.0%})" for word in words[:8])
        what = f"in nearly every caption of {words[0].num_images:,}: {some}"
        yield Spot(problem=_problem("common-words", folder, what, "see edkit caption words"))


def _marked(dataset: Dataset) -> Iterator[Spot]:
    images = set(dataset.paths)
    texts = {source for index in range(len(dataset)) for source in dataset.sources(index)} - images
    for path in sorted(texts):
        if marked(path):
            yield Spot(problem=_problem("marked-text", path, "is UTF-16, or begins with a byte-order mark", ""))


# ---- mends


def _fix(
    catalog: Catalog, root: Path, caption: str | None, workers: int | None, dry_run: bool, progress: Progress
) -> Fixed:
    bare: list[Path] = []
    if caption is not None:
        problems = read(root, sizes=False, catalog=catalog, progress=progress).problems
        bare = [Path(one.where) for one in problems if one.code in ("camera-name", "no-caption")]
    return fix(catalog, root, uncaptioned=bare, caption=caption, workers=workers, dry_run=dry_run, progress=progress)


def _shorten(catalog: Catalog, seen: Look, *, dry_run: bool, progress: Progress) -> Fixed:
    """Cut caption files where the family stops reading, at a whole word."""
    changes: list[Write] = []
    elsewhere: list[tuple[Path, str]] = []
    for finding, spots in seen.findings:
        if finding.kind != "caption-cut":
            continue
        for spot in spots:
            if spot.text is None:
                elsewhere.append(
                    (Path(spot.problem.where), "its caption isn't a text file of its own: edit it by hand")
                )
                continue
            kept = spot.read
            if kept[-1:].isalnum() and spot.unread[:1].isalnum():
                kept = kept[: kept.rfind(" ") + 1]  # no half word
            kept = kept.rstrip(" ,;:-")
            changes.append(Write(spot.text, kept.encode(), f"cut where the model stops reading: {spot.unread}"))
    changes = list({change.path: change for change in changes}.values())
    applied = apply(catalog, changes, verb="check", command="check --shorten", dry_run=dry_run, progress=progress)
    left = [(change.path, why) for change, why in applied.skipped if isinstance(change, Write)]
    stayed = {path for path, _ in left}
    return Fixed(
        mended=tuple(Mended(path=one.path, what=one.reason) for one in changes if one.path not in stayed),
        left=(*elsewhere, *left),
        operation=applied.operation,
    )


def _set_aside(catalog: Catalog, seen: Look, kinds: Sequence[str], *, dry_run: bool, progress: Progress) -> Fixed:
    """Move the images (with their sidecars) and text files of some kinds of findings to the trash."""
    why: dict[Path, str] = {}
    for finding, spots in seen.findings:
        if finding.kind in kinds:
            for spot in spots:
                for path in spot.aside:
                    why.setdefault(path, spot.problem.what)
    images = set(seen.dataset.paths)
    listing = list_images([seen.asked.root])
    follow = {sidecar for path in why if path in images for sidecar in listing.sidecars.get(path, ())}
    unwanted = [Unwanted(path=path, reason=reason) for path, reason in why.items() if path not in follow]
    command = " ".join(["check", *(f"--set-aside {kind}" for kind in kinds)])
    done = set_aside(catalog, listing, unwanted, verb="check", command=command, dry_run=dry_run, progress=progress)
    left = [(change.path, reason) for change, reason in done.skipped if isinstance(change, Trash)]
    stayed = {path for path, _ in left}
    return Fixed(
        mended=tuple(Mended(path=path, what=f"to the trash: {why[path]}") for path in why if path not in stayed),
        left=tuple(left),
        operation=done.operation,
    )


def _both(one: Fixed, two: Fixed) -> Fixed:
    return Fixed(
        mended=(*one.mended, *two.mended), left=(*one.left, *two.left), operation=two.operation or one.operation
    )


def _spot(
    code: str,
    path: Path,
    what: str,
    mend: str,
    *,
    aside: tuple[Path, ...] | None = None,
    others: tuple[tuple[Path, str], ...] = (),
    keep: Box | None = None,
    bad: tuple[Box, ...] = (),
    read: str = "",
    unread: str = "",
) -> Spot:
    """A warning about an image."""
    return Spot(
        problem=_problem(code, path, what, mend),
        image=path,
        aside=(path,) if aside is None else aside,
        others=others,
        keep=keep,
        bad=bad,
        read=read,
        unread=unread,
    )


def _problem(code: str, path: Path, what: str, mend: str) -> Problem:
    return Problem(level="warning", code=code, where=os.fspath(path), what=what, mend=mend)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
