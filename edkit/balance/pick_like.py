"""`pick-like`: ground truth out of a pool whose aspects and words come as they do in a training set."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.balance.mirror import Described, choose, distance, masses, shape_shares, word_shares
from edkit.data import atomic
from edkit.data.catalog import Catalog, Unreadable, state_dir_for
from edkit.data.errors import BadInput, StateError, UsageError
from edkit.data.journal import Change, Move, Write, apply
from edkit.data.progress import SILENT, Progress
from edkit.data.walk import Listing, list_folder, nfc, option_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edkit.data.dataset import Dataset

SHOWN_WORDS = 12
NEAR = 8  # bits in which perceptual hashes of near-duplicates may differ
_SHAPES_OF = 512  # pixels: the resolution whose buckets are the shapes
# another volume, a file system without links, too many of them, or none allowed
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES, errno.ENOSYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape or word, and its part (0..1) of each set."""

    what: str
    train: float
    pool: float
    picked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedLike:
    """What `pick_like` picked, and how like the training set it is."""

    out: Path
    picked: tuple[Path, ...]  # in the pool, in the order they were picked
    places: tuple[Path, ...]  # where they stand (with dry_run: would stand)
    num_before: int  # picked by an earlier run, and still there
    num_train: int
    num_pool: int  # images to choose from
    passed_over: Mapping[str, int]  # why -> images that would have been picked
    shapes: tuple[Row, ...]  # part of the images, from tall to wide
    words: tuple[Row, ...]  # part of the captions that have it; the training set's most frequent ones
    shape_distance: tuple[float, float]  # of the pool and of the picks to the training set: bits, 0 alike to 1
    word_distance: tuple[float, float]
    num_copied_instead: int  # links that no disk could hold
    notes: tuple[str, ...]
    operation: int | None
    seed: int
    dry_run: bool


def pick_like(
    train_dir: Path | str,
    pool_dir: Path | str,
    *,
    out: Path,
    limit: int = 1000,
    link: bool = False,
    seed: int = 555,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> PickedLike:
    """Pick images out of a pool so that their aspects and words come as in a training set (`mirror` tells how).

    The training set's images count as often as they train (`multiply`). No picture comes twice, nor one that
    stands in the training set: by its bytes, and where both sides' perceptual hashes are known (`edkit overlap`
    and `dedupe` measure them) by its looks. Picks go to the same folders below `out` as they have in the pool,
    copied or as hard links, with their sidecars, masks and folder options, their ledger rows (source, licence,
    author), and as one journaled operation. What an earlier run picked counts towards `limit`.

    A seed of -1 draws one. Raises UsageError, BadInput.
    """
    from edkit.data.random import draw_seed

    seed = draw_seed() if seed == -1 else seed
    train_dir, pool_dir, out = (Path(os.path.abspath(path)) for path in (train_dir, pool_dir, out))  # noqa: PTH100
    _check(train_dir, pool_dir, out, limit)
    with ExitStack() as stack:
        catalogs = _Catalogs(stack, progress)
        target = catalogs.of(out, state_dir, write=not dry_run)
        train = _Side.read(train_dir, catalogs.of(train_dir), progress, without=(out,))
        pool = _Side.read(pool_dir, catalogs.of(pool_dir), progress, without=(train_dir, out), to_pick=True)
        return _Picking(train, pool, out, target, seed, progress).run(limit, link=link, dry_run=dry_run)


def _check(train: Path, pool: Path, out: Path, limit: int) -> None:
    for folder in (train, pool):
        if not folder.is_dir():
            raise UsageError("no such folder", where=str(folder))
    if limit < 1:
        raise UsageError(f"--limit {limit}: how many images to have, 1 or more")
    if train.resolve() == pool.resolve():
        raise UsageError("the training set and the pool are the same folder", where=str(pool))
    if out.resolve() in (train.resolve(), pool.resolve()):
        raise UsageError("is one of the folders it is to be picked from", where=f"--out {out}", mend="name another")


class _Catalogs:
    """Each state folder's catalog, opened once: the three folders may share one."""

    def __init__(self, stack: ExitStack, progress: Progress) -> None:
        self._stack, self._progress = stack, progress
        self._open: dict[Path, Catalog] = {}

    def of(self, root: Path, state_dir: Path | None = None, *, write: bool = True) -> Catalog:
        """For writing where that makes no new state, or is needed; else for reading."""
        place = state_dir_for(root, state_dir)
        if place not in self._open:
            needed = write and not self._open  # the first is the one that changes
            if write and (needed or place.is_dir()):
                try:
                    self._open[place] = self._enter(root, state_dir, write=True)
                except StateError:
                    if needed:
                        raise
            if place not in self._open:
                self._open[place] = self._enter(root, state_dir, write=False)
        return self._open[place]

    def _enter(self, root: Path, state_dir: Path | None, *, write: bool) -> Catalog:
        return self._stack.enter_context(
            Catalog.open(root, state_dir=state_dir, write=write, command="pick-like", progress=self._progress)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A folder's images as the choice sees them."""

    root: Path
    catalog: Catalog
    dataset: Dataset
    described: Described
    num_unusable: int  # to be picked from, but for an error that stands against them

    @staticmethod
    def read(
        root: Path, catalog: Catalog, progress: Progress, *, without: Sequence[Path], to_pick: bool = False
    ) -> _Side:
        """The images of a folder that have a size, train at all and lie in none of the folders `without`."""
        import numpy as np

        from edkit.data.dataset import read
        from edkit.data.plan import nearest_many

        dataset = read(root, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        gone = {i for i in range(len(dataset)) if _below(dataset.path(i), without)} if _inside(root, without) else set()
        multiply = np.asarray([float(option.multiply or 0) for option in dataset.option_table] or [0.0])
        gone.update(np.flatnonzero((dataset.widths == 0) | (multiply[dataset.option_ids] == 0)).tolist())
        unusable = {i for i in range(len(dataset)) if dataset.error(i)} if dataset.errors else set()
        dataset = dataset.drop(gone | unusable if to_pick else gone)
        if not len(dataset):
            raise BadInput("no images to go by: each has an error, a multiply of 0, or lies elsewhere", where=str(root))
        return _Side(
            root=root,
            catalog=catalog,
            dataset=dataset,
            described=Described(
                shapes=nearest_many(dataset.widths.astype(np.int64), dataset.heights.astype(np.int64), _shapes()),
                captions=dataset.caption_ids.astype(np.int64),
                words=_words_of(dataset),
                weights=np.ones(len(dataset)) if to_pick else multiply[dataset.option_ids],
            ),
            num_unusable=len(unusable - gone),
        )


def _shapes() -> list[tuple[int, int]]:
    from edkit.data.plan import buckets

    return buckets(_SHAPES_OF)


def _words_of(dataset: Dataset) -> list[dict[str, float]]:
    """The words of every caption that an image of the set has, by `caption_ids`."""
    import numpy as np

    from edkit.data.words import words_of

    found: list[dict[str, float]] = [{}] * (int(dataset.caption_ids.max(initial=-1)) + 1)
    for id in np.unique(dataset.caption_ids).tolist():
        caption = dataset.caption_of(id)
        found[id] = masses(words_of(" , ".join([caption.text, *(tag.text for tag in caption.tags)])))
    return found


def _inside(root: Path, folders: Sequence[Path]) -> bool:
    return any(root in folder.parents for folder in folders)


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


class _Picking:
    """One run: what is taken already, what was passed over and why."""

    def __init__(self, train: _Side, pool: _Side, out: Path, target: Catalog, seed: int, progress: Progress) -> None:
        self.train, self.pool, self.out, self.target = train, pool, out, target
        self.seed, self.progress = seed, progress
        self.ids: dict[int, str] = {}  # content id of each one picked
        self.passed: dict[str, int] = {}
        self.num_copied_instead = 0
        ids = train.catalog.content_ids(train.dataset.paths, progress=progress)
        there = target.content_ids(_images_in(out), progress=progress)
        self._of_train = {id for id in ids.values() if not isinstance(id, Unreadable)}
        self._of_out = {id for id in there.values() if not isinstance(id, Unreadable)}
        self._sizes_out = {path.stat().st_size for path in there}
        self._train_looks, self._own_looks = _Looks(), _Looks()
        for catalog in {id(one): one for one in (train.catalog, pool.catalog, target)}.values():
            self._train_looks.add(catalog, self._of_train)
            self._own_looks.add(catalog, self._of_out)
        self._stems: dict[Path, set[str]] = {}  # of what stands in each folder of `out`

    def run(self, limit: int, *, link: bool, dry_run: bool) -> PickedLike:
        import math

        from edkit.data.random import permutation

        pool, dataset = self.pool.described, self.pool.dataset
        before = self._before()
        with self.progress.task("picking", total=limit - len(before)) as advance:

            def accept(i: int) -> bool:
                why = self._against(i)
                if why:
                    self.passed[why] = self.passed.get(why, 0) + 1
                else:
                    advance(1)
                return not why

            found = choose(
                self.train.described,
                pool,
                log_aspects=[math.log(width / height) for width, height in _shapes()],
                limit=limit,
                order=permutation(len(dataset), self.seed, "pick-like"),
                before=before,
                accept=accept,
            )
        if not found and not before:
            raise BadInput(
                "every image of it is passed over: " + ", ".join(f"{n:,} {why}" for why, n in self.passed.items()),
                where=str(self.pool.root),
            )
        operation: int | None = None
        notes: list[str] = []
        if found and not dry_run:
            operation, notes = self._place(found, link=link)
        short = limit - len(found) - len(before)
        if short > 0:
            notes.append(f"the pool has no more: {len(found) + len(before):,} instead of {limit:,}")
        multiplies = sorted({o.multiply for i in found if (o := dataset.options(i)).multiply not in (None, 1)}, key=str)
        if multiplies:
            said = ", ".join(f"{one:f}" for one in multiplies)
            notes.append(f"the pool's multiply came along ({said}): set it anew with edkit balance")
        chosen = [*before, *found]
        return PickedLike(
            out=self.out,
            picked=tuple(dataset.path(i) for i in found),
            places=tuple(self._place_of(i) for i in found),
            num_before=len(before),
            num_train=len(self.train.dataset),
            num_pool=len(dataset),
            passed_over=dict(sorted(self.passed.items())),
            num_copied_instead=self.num_copied_instead,
            notes=tuple(notes),
            operation=operation,
            seed=self.seed,
            dry_run=dry_run,
            **_compared(self.train.described, pool, chosen),
        )

    # -- what may be picked

    def _before(self) -> list[int]:
        """Images of the pool that stand in `out` already, whatever they are called there."""
        if not self._of_out:
            return []
        dataset = self.pool.dataset
        alike = [i for i, path in enumerate(dataset.paths) if os.stat(path).st_size in self._sizes_out]  # noqa: PTH116
        ids = self.pool.catalog.content_ids([dataset.path(i) for i in alike], progress=self.progress)
        found: dict[str, int] = {}
        # of several with these bytes the one that has its place there
        for i in sorted(alike, key=lambda i: not self._place_of(i).exists()):
            id = ids[dataset.path(i)]
            if id in self._of_out:
                found.setdefault(id, i)
        return sorted(found.values())

    def _against(self, i: int) -> str:
        """Why an image may not be picked; "" where it may, and then it counts as picked."""
        path = self.pool.dataset.path(i)
        id = self.pool.catalog.content_ids([path])[path]
        if isinstance(id, Unreadable):
            return f"can't be read: {id}"
        if id in self._of_train:
            return "stand in the training set"
        if id in self._of_out:
            return "are pictures picked already"
        looks = _looks_of(self.pool.catalog, [id]).get(id)
        if looks is not None and self._train_looks.has(looks):
            return "look like a training image"
        if looks is not None and self._own_looks.has(looks):
            return "look like one picked already"
        place = self._place_of(i)
        if self._taken(place):
            return f"have a name that is taken in {self.out.name}"
        self._of_out.add(id)
        self.ids[i] = id
        if looks is not None:
            self._own_looks.put(looks)
        return ""

    def _place_of(self, i: int) -> Path:
        return self.out / self.pool.dataset.path(i).relative_to(self.pool.root)

    def _taken(self, place: Path) -> bool:
        stems = self._stems.get(place.parent)
        if stems is None:
            there = place.parent.iterdir() if place.parent.is_dir() else ()
            stems = self._stems[place.parent] = {nfc(path.stem).casefold() for path in there}
        return nfc(place.stem).casefold() in stems

    # -- bringing them over

    def _place(self, found: Sequence[int], *, link: bool) -> tuple[int | None, list[str]]:
        """Stage the files, note where they come from, and move all into place as one operation.

        Staged names have no image's ending: a visible state folder in a data root is walked.
        """
        staging = self.target.cache_dir / "pick-like"
        staging.mkdir(parents=True, exist_ok=True)
        dataset, root = self.pool.dataset, self.pool.root
        changes: list[Change] = []
        written: dict[Path, Path] = {}  # place -> file it is a copy of
        notes: list[str] = []
        listings: dict[Path, Listing] = {}
        with self.progress.task("linking" if link else "copying", total=len(found)) as advance:
            for number, i in enumerate(found):
                path, place = dataset.path(i), self._place_of(i)
                listing = listings.get(path.parent)
                if listing is None:
                    listing = listings[path.parent] = list_folder(str(path.parent))
                staged = self._staged(path, staging / self.ids[i], link=link)
                reason = f"picked out of {root.name}, like {self.train.root.name}"
                changes.append(Move(staged, place, reason, kind="pick", facts={"from": str(path)}))
                for beside in _beside(path, listing):
                    written.setdefault(place.with_name(beside.name), beside)
                mask = dataset.mask(i)
                if mask is not None:
                    staged = self._staged(mask, staging / f"{self.ids[i]}-{number}-mask", link=link)
                    changes.append(Move(staged, place.with_name(mask.name), "the mask of its image", kind="pick"))
                advance(1)
        for listing in listings.values():
            written |= {self.out / path.relative_to(root): path for path in _options_of(Path(listing.path), root)}
        for place, path in written.items():
            content = path.read_bytes()
            if not place.exists():
                changes.append(Write(place, content, f"as in {root.name}"))
            elif place.read_bytes() != content:
                notes.append(f"{place.relative_to(self.out)} is not the pool's, and was left as it is")
        self._remember(found)
        applied = apply(self.target, changes, verb="pick-like", command="pick-like", progress=self.progress)
        if not any(staging.iterdir()):
            staging.rmdir()
        notes += [f"{_name(change)}: {why}" for change, why in applied.skipped]
        return applied.operation, notes

    def _staged(self, path: Path, staged: Path, *, link: bool) -> Path:
        """A link to the file, or a copy of it, in the staging folder; what a killed run left there is as good."""
        if staged.exists():
            return staged
        if link:
            try:
                os.link(os.path.realpath(path), staged)
                return staged
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self.num_copied_instead += 1
        atomic.copy_new(os.path.realpath(path), str(staged), f"{staged}.part")
        return staged

    def _remember(self, found: Sequence[int]) -> None:
        """Bring the ledger's rows over: before the files, as a row too many says nothing false."""
        if self.pool.catalog is self.target:
            return
        rows = []
        known = self.target.ledger_holding(self.ids.values())
        for i in found:
            id = self.ids[i]
            if id in known:
                continue
            place: Path | None = self._place_of(i)
            seen: set[str] = set()
            while id not in seen:  # from what it is to what it was made of
                seen.add(id)
                for row in self.pool.catalog.ledger(sha256=id):
                    if row.outcome in ("ok", "derived"):
                        rows.append(replace(row, path=place))
                        if row.outcome == "derived":
                            id = str((row.extra or {}).get("from", id))
                place = None
        self.target.ledger_add(rows)


@dataclass(frozen=True, slots=True)
class _Look:
    phash: int
    mirror: int
    thumb: bytes


class _Looks:
    """Pictures by their perceptual hashes and colours, as far as these are known."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._hashes: NDArray[np.uint64] | None = None  # the first len of them

    def add(self, catalog: Catalog, ids: set[str]) -> None:
        """Pictures by content."""
        self._looks += _looks_of(catalog, sorted(ids)).values()

    def put(self, look: _Look) -> None:
        self._looks.append(look)

    def has(self, look: _Look) -> bool:
        """Whether one of them shows the same, perhaps mirrored."""
        import numpy as np

        from edkit.measure.hashes import same_colours

        if self._hashes is None or len(self._hashes) < len(self._looks):
            more = [one.phash for one in self._looks[0 if self._hashes is None else len(self._hashes) :]]
            fresh = np.asarray(more, np.uint64)
            self._hashes = fresh if self._hashes is None else np.concatenate([self._hashes, fresh])
        for hash, mirrored in ((look.phash, False), (look.mirror, True)):
            near = np.flatnonzero(np.bitwise_count(self._hashes ^ np.uint64(hash)) <= NEAR)
            if any(same_colours(self._looks[i].thumb, look.thumb, mirrored=mirrored) for i in near.tolist()):
                return True
        return False


def _looks_of(catalog: Catalog, ids: Sequence[str]) -> dict[str, _Look]:
    from edkit.measure.facts import FACTS

    phash, mirror, thumb = (FACTS[name].key for name in ("phash", "phash_mirror", "thumb"))
    found = {}
    for id, facts in catalog.facts(ids, [phash, mirror, thumb]).items():
        one, other, colours = facts.get(phash), facts.get(mirror), facts.get(thumb)
        if isinstance(one, str) and isinstance(other, str) and isinstance(colours, bytes):
            found[id] = _Look(int(one, 16), int(other, 16), colours)
    return found


def _images_in(folder: Path) -> list[Path]:
    from edkit.data.walk import walk

    if not folder.is_dir():
        return []
    return [Path(listing.path, name) for _, listing in walk(str(folder)) for name in listing.images]


def _beside(image: Path, listing: Listing) -> Iterator[Path]:
    """An image's sidecars, and the caption files beside them that a YAML among them names."""
    own = listing.sidecars.get(nfc(image.stem), {})
    for suffix, name in own.items():
        path = image.with_name(name)
        yield path
        if suffix in (".yaml", ".yml"):
            text = path.read_bytes()
            for endings in listing.sidecars.values():
                yield from (path.with_name(other) for other in endings.values() if other.encode() in text)


def _options_of(folder: Path, root: Path) -> Iterator[Path]:
    """The option files that hold for a folder's images: its own, and every global.yaml up to the root."""
    for name in option_files(folder).values():
        yield folder / name
    for above in folder.parents:
        if root not in (above, *above.parents):
            return
        options = option_files(above)
        if "global.yaml" in options:
            yield above / options["global.yaml"]


def _name(change: Change) -> str:
    return str(change.dst if isinstance(change, Move) else change.path)


# ---- before and after


def _compared(train: Described, pool: Described, picked: Sequence[int]) -> dict[str, Any]:
    """The fields of `PickedLike` that hold the three sets against each other."""
    import numpy as np

    rows = np.asarray(picked, np.int64)
    ours = Described(
        shapes=pool.shapes[rows], captions=pool.captions[rows], words=pool.words, weights=np.ones(len(rows))
    )
    sides = (train, pool, ours)
    names = [f"{width} x {height}" for width, height in _shapes()]
    shares = [dict(zip(names, shape_shares(side, len(names)).tolist(), strict=True)) for side in sides]
    masses_of = [word_shares(side) for side in sides]
    having = [_having(side) for side in sides]
    most = sorted(having[0], key=lambda word: (-having[0][word], word))[:SHOWN_WORDS]
    return {
        "shapes": tuple(
            Row(what=n, train=shares[0][n], pool=shares[1][n], picked=shares[2][n])
            for n in names
            if shares[0][n] or shares[2][n]
        ),
        "words": tuple(
            Row(what=w, train=having[0][w], pool=having[1].get(w, 0.0), picked=having[2].get(w, 0.0)) for w in most
        ),
        "shape_distance": (distance(shares[0], shares[1]), distance(shares[0], shares[2])),
        "word_distance": (distance(masses_of[0], masses_of[1]), distance(masses_of[0], masses_of[2])),
    }


def _having(of: Described) -> dict[str, float]:
    """The part of the images whose caption has each word."""
    import numpy as np

    weights = np.bincount(of.captions, of.weights, len(of.words))
    found: dict[str, float] = {}
    for caption in np.flatnonzero(weights).tolist():
        for word in of.words[caption]:
            found[word] = found.get(word, 0.0) + float(weights[caption])
    total = float(weights.sum())
    return {word: n / total for word, n in found.items()}
