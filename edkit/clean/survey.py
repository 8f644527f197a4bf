"""All that a report tells of a data root, gathered in one pass: nothing here draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from edkit.clean.dedupe import FACTS_NEEDED, Group, near_duplicates
from edkit.clean.files import Listing
from edkit.clean.overlap import Overlap
from edkit.clean.usual import Word, words_by_folder
from edkit.data.catalog import Catalog, LedgerRow, Unreadable
from edkit.data.dataset import Dataset, read
from edkit.data.errors import MissingExtra, Problem
from edkit.data.image import is_image
from edkit.data.names import host_of
from edkit.data.progress import Progress
from edkit.data.redo import DONE
from edkit.data.sample import caption_text
from edkit.data.story import history
from edkit.measure.facts import FACTS, Fact, Facts, Value
from edkit.measure.families import Family, unread
from edkit.measure.measure import measure
from edkit.measure.preview import previews

MEASURED = ("sharpness", "brightness", "contrast", "saturation", "entropy", "num_bytes")
"""The facts a report measures where they aren't known; every other number that is known is shown as well."""

_ELSEWHERE = frozenset({"width", "height", "orientation"})  # told by the sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPart:
    """One folder that holds images, and what it gives to an epoch."""

    path: Path
    key: str  # below the data root; "." is the root
    num_images: int
    multiply: str  # "several" where its images differ
    picks: float  # an epoch, on average
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """An image that was set aside and stands so still."""

    path: Path  # as it was called
    kept_at: Path  # its content in the trash (which may have been emptied)
    verb: str
    operation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Where the images came from, as the ledger has it: how many of each licence, author and place."""

    num_known: int
    licences: Mapping[str, int]
    authors: Mapping[str, int]
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A data root, looked at as a whole."""

    root: Path
    dataset: Dataset
    paths: tuple[Path, ...]  # every image once
    facts: Mapping[Path, Facts]  # of those that could be measured
    broken: tuple[Problem, ...]
    previews: Mapping[Path, bytes | None]
    folders: tuple[FolderPart, ...]
    scores: Mapping[str, Mapping[Path, float]]  # fact -> what is known of it
    groups: tuple[Group, ...]
    overlap: Overlap | None  # with another folder, where one was named
    overlap_with: Path | None
    removed: tuple[Removed, ...]
    origins: Origins
    target: Family | None
    resolution: int | None
    num_tokens: tuple[int, ...]  # of each caption; none without a family or its tokenizer
    cut: tuple[tuple[Path, int], ...]  # captions beyond the limit, and their tokens
    words: Mapping[Path, Sequence[Word]]
    notes: tuple[str, ...]


def survey(
    catalog: Catalog,
    root: Path,
    *,
    target: Family | None,
    resolution: int | None,
    radius: int,
    overlap: Overlap | None,
    overlap_with: Path | None,
    caption_fallback: str | None,
    num_previews: int,
    workers: int | None,
    progress: Progress,
) -> Survey:
    """Look at everything; what is known of unchanged files is not measured again."""
    dataset = read(root, caption_fallback=caption_fallback, sizes=True, catalog=catalog, progress=progress)
    paths = tuple(dict.fromkeys(dataset.paths))
    names = dict.fromkeys((*FACTS_NEEDED, "aspect", "megapixels", *MEASURED))
    measured = measure(catalog, paths, names, workers=workers, progress=progress)
    facts = {path: one for path, one in measured.items() if not isinstance(one, Problem)}
    ids = {path: id for path, id in catalog.content_ids(paths).items() if not isinstance(id, Unreadable)}
    notes: list[str] = []
    lengths: list[int] = []
    cut: list[tuple[Path, int]] = []
    if target is not None:
        try:
            lengths, cut = _lengths(dataset, target, progress)
        except MissingExtra as error:
            notes.append(f"captions were not held against {target.name}'s token limit: {error}")
    drawn = spread_out(paths, num_previews)
    return Survey(
        root=root,
        dataset=dataset,
        paths=paths,
        facts=facts,
        broken=tuple(one for one in measured.values() if isinstance(one, Problem)),
        previews=previews(catalog, drawn, workers=workers, progress=progress),
        folders=tuple(_folders(dataset, facts)),
        scores=_scores(catalog, facts, ids),
        groups=tuple(
            near_duplicates(
                Listing(images=paths, sidecars={}, siblings={}),
                facts,
                {path: ids[path] for path in facts},
                radius=radius,
                root=root,
            )
        ),
        overlap=overlap,
        overlap_with=overlap_with,
        removed=tuple(_removed(catalog)),
        origins=_origins(catalog, ids, paths),
        target=target,
        resolution=resolution,
        num_tokens=tuple(lengths),
        cut=tuple(cut),
        words=words_by_folder(dataset),
        notes=tuple(notes),
    )


def spread_out(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many of them, evenly over each folder, folders by their share; all where they fit."""
    if len(paths) <= most:
        return list(paths)
    return [paths[i * len(paths) // most] for i in range(most)]


def _folders(dataset: Dataset, facts: Mapping[Path, Facts]) -> Iterator[FolderPart]:
    picks: dict[Path, Decimal] = {}
    size: Counter[Path] = Counter()
    for index in range(len(dataset)):
        path = dataset.path(index)
        if dataset.error(index) is None and path in facts:
            picks[path.parent] = picks.get(path.parent, Decimal(0)) + (dataset.options(index).multiply or Decimal(0))
        size[path.parent] += _whole(facts[path]["num_bytes"]) if path in facts else 0
    for folder in dataset.folders:
        yield FolderPart(
            path=folder.path,
            key=folder.key or ".",
            num_images=folder.count,
            multiply="several" if folder.multiply is None else f"{folder.multiply.normalize():f}",
            picks=float(picks.get(folder.path, 0)),
            num_bytes=size[folder.path],
        )


def _scores(catalog: Catalog, facts: Mapping[Path, Facts], ids: Mapping[Path, str]) -> dict[str, dict[Path, float]]:
    """Every fact that is a number, of all images for which it is known; the measured ones first."""
    numbers = [fact for fact in FACTS.values() if fact.rule and not fact.text and fact.name not in _ELSEWHERE]
    others = [fact for fact in numbers if not _is_measured(fact, facts)]
    stored = catalog.facts((ids[path] for path in facts), [fact.key for fact in others]) if others else {}
    found: dict[str, dict[Path, float]] = {}
    for fact in numbers:
        values = {
            path: float(value)
            for path, one in facts.items()
            if isinstance(value := _value(fact, one, stored.get(ids[path], {})), int | float)
        }
        if len(values) > 1 and len(set(values.values())) > 1:
            found[fact.name] = values
    return found


def _is_measured(fact: Fact, facts: Mapping[Path, Facts]) -> bool:
    return any(fact.name in one for one in facts.values())


def _value(fact: Fact, measured: Facts, stored: Mapping[str, object]) -> object:
    value: Value | object = measured.get(fact.name)
    return stored.get(fact.key) if value is None else value


def _lengths(dataset: Dataset, target: Family, progress: Progress) -> tuple[list[int], list[tuple[Path, int]]]:
    count = unread(target)
    known: dict[str, tuple[int, str]] = {}
    lengths: list[int] = []
    cut: list[tuple[Path, int]] = []
    with progress.task("counting tokens", total=len(dataset)) as advance:
        for index in range(len(dataset)):
            caption = caption_text(dataset.sample(index), seed=0, epoch=0)
            if caption not in known:
                known[caption] = count(caption)
            lengths.append(known[caption][0])
            if known[caption][1]:
                cut.append((dataset.path(index), known[caption][0]))
            advance(1)
    return lengths, cut


def _removed(catalog: Catalog) -> Iterator[Removed]:
    """Images in the trash by a decision that stands, the newest first."""
    verbs = {operation.id: operation.verb for operation in history(catalog)}
    site = catalog.site()
    for row in reversed(site.rows(f"kind = 'trash' AND step = {DONE} AND NOT undone")):
        if row.src is not None and is_image(row.src) and verbs.get(row.operation) != "undo":
            yield Removed(
                path=Path(row.src),
                kept_at=Path(site.trash_path(row.sha256 or "-")),
                verb=verbs.get(row.operation, ""),
                operation=row.operation,
                reason=row.reason,
            )


def _origins(catalog: Catalog, ids: Mapping[Path, str], paths: Iterable[Path]) -> Origins:
    """What the ledger says of these images; of one that edkit made from another, what it says of that."""
    first = catalog.origins(ids.values())
    wanted = set(first.values())
    rows: dict[str, LedgerRow] = {}
    for row in catalog.ledger(outcome="ok"):
        if row.sha256 in wanted:
            rows[row.sha256] = row
    licences: Counter[str] = Counter()
    authors: Counter[str] = Counter()
    places: Counter[str] = Counter()
    num_known = 0
    for path in paths:
        known = rows.get(first.get(ids.get(path, ""), ""))
        if known is None:
            continue
        num_known += 1
        licences[known.licence or "not stated"] += 1
        authors[known.author or "not stated"] += 1
        places[host_of(known.url or "") or known.source or "unknown"] += 1
    return Origins(
        num_known=num_known,
        licences=dict(licences.most_common()),
        authors=dict(authors.most_common()),
        places=dict(places.most_common()),
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
