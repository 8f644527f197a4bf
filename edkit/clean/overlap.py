"""Find what stands in the training set and in the preservation set, also mirrored, cropped or recompressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.clean.crops import pieces
from edkit.clean.files import Unwanted, file_id, list_images, open_catalog, set_aside, shown
from edkit.clean.fingerprints import littles
from edkit.clean.likeness import ByHash
from edkit.data.catalog import Catalog
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import Facts
from edkit.measure.measure import measure

if TYPE_CHECKING:
    from edkit.page.html import Html

HOWS = ("same bytes", "near-duplicate", "mirrored", "crop", "mirrored crop", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A preservation image that shows what a training image shows; of several the most alike."""

    path: Path  # the preservation image
    train: Path
    how: str  # one of `HOWS`
    distance: float  # bits of the hash, 1 - correlation of a crop, 1 - cosine of embeddings
    share: float  # the crop's share of the other picture's area; 1 where both show all of it
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What `overlap` found."""

    num_train: int
    num_preservation: int
    shared: tuple[Shared, ...]
    num_moved: int
    broken: tuple[Problem, ...]  # not compared
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    operation: int | None
    page: Path | None = None


_SIDES = ("width", "height")
FACTS_NEEDED = ("width", "height", "num_bytes", "phash", "phash_mirror", "thumb")


def overlap(
    train: Path,
    preservation: Path,
    *,
    radius: int = 8,
    crops: bool = True,
    clip: str | None = None,
    pretrained: str | None = None,
    threshold: float = 0.95,
    move: bool = False,
    report: Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Overlap:
    """Find preservation images that show what a training image shows; `move` sets them aside.

    Found are equal files, near-duplicates by hash and colour (also mirrored), and with `crops` pictures of which
    one is a piece of the other (also mirrored; about two thirds by two thirds of it or more); where a
    CLIP model is named, also what its embeddings hold for alike (`threshold`: least cosine). A folder
    inside the other one, or linked from there, counts as its own side only. Nothing of the training side is ever
    moved, nor what its links lead to; the state is that of the preservation folder.
    """
    if train.resolve() == preservation.resolve():
        raise UsageError("both sides are the same folder", where=str(train))
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31", mend="8 finds copies, above 12 strangers meet")
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is not above 0 and at most 1")
    if pretrained is not None and clip is None:
        raise UsageError("--pretrained needs the model it belongs to", mend="--clip ViT-L-14-quickgelu")
    one, other = list_images([train]), list_images([preservation])
    mine, theirs = list(one.images), list(other.images)
    if not train.resolve().is_relative_to(preservation.resolve()):
        mine = _outside(mine, preservation)
    if not preservation.resolve().is_relative_to(train.resolve()):
        theirs = _outside(theirs, train)
    trained = {file_id(path) for path in (*mine, *_outside(one.links, preservation))}
    with open_catalog(
        preservation, state_dir=state_dir, changes=move and not dry_run, command="overlap", progress=progress
    ) as catalog:
        measured = measure(catalog, [*mine, *theirs], FACTS_NEEDED, workers=workers, progress=progress)
        facts = {path: found for path, found in measured.items() if not isinstance(found, Problem)}
        mine, theirs = [path for path in mine if path in facts], [path for path in theirs if path in facts]
        ids = catalog.content_ids(facts)
        found: dict[Path, Shared] = {}
        looks = [_by_hash(mine, theirs, facts, ids, radius)]
        if crops:
            looks.append(_by_crops(catalog, mine, theirs, facts, ids, workers, progress))
        if clip is not None:
            looks.append(_by_embedding(catalog, mine, theirs, clip, pretrained, threshold, progress))
        for look in looks:  # each finds more than the one before it, and costs more
            for pair in look:
                best = found.get(pair.path)
                if best is None or (HOWS.index(pair.how), pair.distance) < (HOWS.index(best.how), best.distance):
                    found[pair.path] = pair
        shared = [found[path] for path in theirs if path in found]
        bound = {pair.path for pair in shared if file_id(pair.path) in trained and not pair.path.is_symlink()}
        page = _page(shared, facts, len(mine), len(theirs), report, move=move and not dry_run) if report else None
        switches = " --no-crops" * (not crops) + (f" --clip {clip}" if clip else "")
        applied = set_aside(
            catalog,
            other,
            [
                Unwanted(
                    path=pair.path,
                    reason=pair.reason,
                    facts={"distance": round(pair.distance, 4), "train": shown(pair.train, preservation)},
                )
                for pair in (shared if move else [])
                if pair.path not in bound
            ],
            verb="overlap",
            command=f"overlap {train} {preservation} --radius {radius}{switches} --move",
            dry_run=dry_run or not move,
            progress=progress,
        )
    if page is not None and report is not None:
        from edkit.page.layout import write

        write(report, page)
    skipped = tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash))
    if move:
        skipped += tuple((path, "the training set links to this very file") for path in sorted(bound))
    return Overlap(
        num_train=len(mine),
        num_preservation=len(theirs),
        shared=tuple(shared),
        num_moved=len(shared) - len(skipped) if move else 0,
        broken=tuple(found for found in measured.values() if isinstance(found, Problem)),
        skipped=skipped,
        operation=applied.operation,
        page=report,
    )


def _outside(paths: Iterable[Path], folder: Path) -> list[Path]:
    """The paths whose folder is, links followed, neither this one nor below it."""
    paths, top = list(paths), folder.resolve()
    real = {parent: parent.resolve() for parent in {path.parent for path in paths}}
    return [path for path in paths if not real[path.parent].is_relative_to(top)]


def _shared(path: Path, train: Path, how: str, distance: float, share: float = 1.0, *, part: str = "") -> Shared:
    said = {
        "same bytes": f"the same bytes as {train.name}",
        "near-duplicate": f"near-duplicate of {train.name}, distance {distance:.0f}",
        "mirrored": f"mirrored near-duplicate of {train.name}, distance {distance:.0f}",
        "embedding": f"looks like {train.name} to the model, cosine {1 - distance:.3f}",
    }.get(how, f"{part}, correlation {1 - distance:.2f}")
    reason = f"{said}, which is trained on: preservation must not show it"
    return Shared(path=path, train=train, how=how, distance=distance, share=share, reason=reason)


def _by_hash(
    mine: Sequence[Path], theirs: Sequence[Path], facts: Mapping[Path, Facts], ids: Mapping[Path, str], radius: int
) -> Iterator[Shared]:
    first: dict[str, Path] = {}
    for path in mine:
        first.setdefault(ids[path], path)
    files = [*mine, *theirs]
    alike = ByHash([facts[path] for path in files], radius)
    for number, path in enumerate(theirs, len(mine)):
        if ids[path] in first:
            yield _shared(path, first[ids[path]], "same bytes", 0.0)
            continue
        for how, near in (("near-duplicate", alike.near(number)), ("mirrored", alike.near_mirror(number))):
            best = min(((distance, other) for other, distance in near if other < len(mine)), default=None)
            if best is not None:
                yield _shared(path, files[best[1]], how, best[0])
                break


def _by_crops(
    catalog: Catalog,
    mine: Sequence[Path],
    theirs: Sequence[Path],
    facts: Mapping[Path, Facts],
    ids: Mapping[Path, str],
    workers: int | None,
    progress: Progress,
) -> Iterator[Shared]:
    files = {ids[path]: path for path in (*mine, *theirs)}
    aspects = {id: float(facts[path]["width"] or 1) / float(facts[path]["height"] or 1) for id, path in files.items()}
    known = littles(catalog, files, aspects, workers=workers, progress=progress)
    mine, theirs = [path for path in mine if ids[path] in known], [path for path in theirs if ids[path] in known]
    ours, others = [known[ids[path]] for path in mine], [known[ids[path]] for path in theirs]
    with progress.task("looking for crops", total=2, unit="sides") as advance:
        for piece in pieces(ours, others):
            train, path = mine[piece.whole], theirs[piece.piece]
            part = f"it shows {piece.share:.0%} of {train.name}{', mirrored' * piece.mirrored}"
            how = "mirrored crop" if piece.mirrored else "crop"
            yield _shared(path, train, how, 1 - piece.correlation, piece.share, part=part)
        advance(1)
        for piece in pieces(others, ours):
            path, train = theirs[piece.whole], mine[piece.piece]
            part = f"{train.name} shows {piece.share:.0%} of it{', mirrored' * piece.mirrored}"
            how = "mirrored crop" if piece.mirrored else "crop"
            yield _shared(path, train, how, 1 - piece.correlation, piece.share, part=part)
        advance(1)


def _by_embedding(
    catalog: Catalog,
    mine: Sequence[Path],
    theirs: Sequence[Path],
    clip: str,
    pretrained: str | None,
    threshold: float,
    progress: Progress,
) -> Iterator[Shared]:
    import numpy as np

    from edkit.measure.embed import Encoder, resolve

    encoder = Encoder(resolve(clip, pretrained, progress=progress), progress=progress)
    vectors = encoder.embeddings(catalog, [*mine, *theirs], progress=progress)
    known = [path for path in mine if not isinstance(vectors[path], Problem)]
    if not known:
        return
    matrix = np.stack([np.asarray(vectors[path], dtype=np.float32) for path in known])
    for path in theirs:
        vector = vectors[path]
        if isinstance(vector, Problem):
            continue
        cosines = matrix @ vector
        best = int(np.argmax(cosines))
        if float(cosines[best]) >= threshold:
            yield _shared(path, known[best], "embedding", max(0.0, 1.0 - float(cosines[best])))


def _page(
    shared: Sequence[Shared], facts: Mapping[Path, Facts], num_train: int, num_other: int, path: Path, *, move: bool
) -> Html:
    from edkit.page.layout import Figure, key_figures, prose, render, section
    from edkit.page.pictures import Pair, Picture, pairs

    folder = path.absolute().parent

    def picture(file: Path, *, linked: bool = True) -> Picture:
        return Picture(
            source=file, caption=file.name, note="x".join(str(facts[file][side]) for side in _SIDES), linked=linked
        )

    parts = [
        key_figures(
            [
                Figure(value=f"{num_train:,}", label="training images"),
                Figure(value=f"{num_other:,}", label="preservation images"),
                Figure(value=f"{len(shared):,}", label="stand in both", note="set aside" if move else ""),
            ]
        )
    ]
    for how in HOWS:
        rows = [
            Pair(
                before=picture(pair.train),
                after=picture(pair.path, linked=not move),
                label=pair.reason.partition(", which is trained on")[0],
            )
            for pair in shared
            if pair.how == how
        ]
        if rows:
            drawn = pairs(rows[:300], page_dir=folder, before="training", after="preservation", at_first=24)
            note = f"The first 300 of {len(rows):,}." if len(rows) > 300 else ""
            parts.append(section(how.capitalize(), drawn, note=note))
    if not shared:
        parts.append(section("Nothing", prose("No image stands in both.")))
    lead = "Preservation images keep the model as it was; one that shows the subject keeps it from learning."
    return render("Overlap", *parts, lead=lead)
