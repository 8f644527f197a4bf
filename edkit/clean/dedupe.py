"""Find duplicates, keep the best of each group, set the rest aside."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.clean.files import Listing, Unwanted, list_images, open_catalog, set_aside, shown
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import Facts
from edkit.measure.measure import measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHODS = ("exact", "phash", "embedding")
PREFERENCES = ("largest", "sharpest", "oldest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An image that shows the same as the kept one of its group."""

    path: Path
    distance: float  # bits of the hash (0..64), or 1 - cosine of the embeddings
    same_bytes: bool
    mirrored: bool
    reason: str
    protected: bool = False  # lies in a protected folder: stays
    caption_lost: bool = False  # it has a sidecar, the kept image has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that show the same: every member lies within the radius of the kept one."""

    kept: Path
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPair:
    """Two images that stay, one of them the other's mirror image."""

    path: Path
    mirror_of: Path
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduped:
    """What `dedupe` did."""

    num_images: int  # compared: those that could be measured
    groups: tuple[Group, ...]
    mirrored: tuple[MirrorPair, ...]  # reported, not removed
    num_trashed: int
    num_bytes: int  # of the images set aside
    broken: tuple[Problem, ...]  # not compared, left where they are
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    operation: int | None


def dedupe(
    folders: Path | Sequence[Path],
    *,
    method: str = "phash",
    radius: int = 8,
    threshold: float = 0.95,
    prefer: str = "largest",
    protect: Sequence[Path] = (),
    mirrored: bool = False,
    clip: str | None = None,
    pretrained: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Deduped:
    """Group images that show the same, keep the best of each group, move the others to the trash.

    `method`: "exact" (same bytes), "phash" (hashes within `radius` bits, and alike in colour) or
    "embedding" (cosine of at least `threshold`; needs `clip`). `prefer` says which is best: the largest
    (then the least compressed, the sharpest, the one with a caption, the oldest), the sharpest or the
    oldest. Mirror images are reported, and only with `mirrored` set aside. Images under a `protect` folder
    always stay. The state is that of the first folder.
    """
    roots = [Path(folders)] if isinstance(folders, str | Path) else [Path(one) for one in folders]
    _validate(roots, method, radius, threshold, prefer, clip)
    for folder in protect:
        if not folder.is_dir():
            raise UsageError("no such folder to protect", where=str(folder))
    listing = list_images(roots)
    with open_catalog(
        roots[0], state_dir=state_dir, changes=not dry_run, command="dedupe", progress=progress
    ) as catalog:
        measured = measure(catalog, listing.images, FACTS_NEEDED, workers=workers, progress=progress)
        facts = {path: one for path, one in measured.items() if not isinstance(one, Problem)}
        ids = catalog.content_ids(facts)
        ranking = _Ranking(listing, facts, prefer, listing.under(protect))
        contents = _contents(ranking, ids)
        if method == "exact":
            alike: _Likeness = _Exact()
        elif method == "phash":
            alike = _ByHash([facts[paths[0]] for paths in contents], radius)
        else:
            from edkit.measure.embed import Encoder, resolve

            assert clip is not None
            encoder = Encoder(resolve(clip, pretrained, progress=progress), progress=progress)
            firsts = [paths[0] for paths in contents]
            alike = _ByEmbedding(encoder.embeddings(catalog, firsts, progress=progress), firsts, threshold)
        groups, pairs = _group(contents, alike, mirrored, ranking, roots[0])
        trashed = [(group, member) for group in groups for member in group.members if not member.protected]
        applied = set_aside(
            catalog,
            listing,
            [
                Unwanted(
                    path=member.path,
                    reason=member.reason,
                    facts={"distance": member.distance, "kept": shown(group.kept, roots[0])},
                )
                for group, member in trashed
            ],
            verb="dedupe",
            command=f"--method {method} --radius {radius} --prefer {prefer}",
            dry_run=dry_run,
            progress=progress,
        )
    skipped = tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash))
    left = {path for path, _ in skipped}
    gone = [member.path for _, member in trashed if member.path not in left]
    return Deduped(
        num_images=len(facts),
        groups=tuple(groups),
        mirrored=tuple(pairs),
        num_trashed=len(gone),
        num_bytes=sum(int(facts[path]["num_bytes"] or 0) for path in gone),
        broken=tuple(one for one in measured.values() if isinstance(one, Problem)),
        skipped=skipped,
        operation=applied.operation,
    )


FACTS_NEEDED = ("width", "height", "num_bytes", "sharpness", "phash", "phash_mirror", "thumb")


def _validate(roots: Sequence[Path], method: str, radius: int, threshold: float, prefer: str, clip: str | None) -> None:
    if not roots:
        raise UsageError("no folder was given")
    if method not in METHODS:
        raise UsageError(f"no method is called {method!r}", mend=f"one of {', '.join(METHODS)}")
    if prefer not in PREFERENCES:
        raise UsageError(f"--prefer {prefer} says nothing", mend=f"one of {', '.join(PREFERENCES)}")
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31", mend="8 finds copies, above 12 strangers meet")
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is not above 0 and at most 1")
    if method == "embedding" and clip is None:
        raise UsageError("--method embedding needs a model", mend="--clip ViT-L-14-quickgelu --pretrained openai")


def near_duplicates(
    listing: Listing, facts: Mapping[Path, Facts], ids: Mapping[Path, str], *, radius: int, root: Path
) -> list[Group]:
    """The groups that `dedupe` would find by pHash; `facts` as `FACTS_NEEDED` names them."""
    ranking = _Ranking(listing, facts, "largest", frozenset())
    contents = _contents(ranking, ids)
    alike = _ByHash([facts[paths[0]] for paths in contents], radius)
    return _group(contents, alike, False, ranking, root)[0]


# ---- which image is best


class _Ranking:
    """Which of two images is better, and why in a few words."""

    def __init__(self, listing: Listing, facts: Mapping[Path, Facts], prefer: str, protected: frozenset[Path]) -> None:
        self.listing, self.facts, self.protected = listing, facts, protected
        tests = {"largest": self._larger, "sharpest": self._sharper, "oldest": self._older}
        others = (self._larger, self._less_compressed, self._sharper, self._captioned, self._older)
        self._tests = list(dict.fromkeys([self._guarded, tests[prefer], *others]))
        self._mtimes = {path: _mtime(path) for path in facts}

    def key(self, path: Path) -> tuple[float | str, ...]:
        """Sorts the best first."""
        return (*(-test(path)[0] for test in self._tests), str(path))

    def why(self, kept: Path, other: Path) -> str:
        """What makes the kept one better: `a.jpg is larger (640x480 over 300x300)`."""
        for test in self._tests:
            (one, said), (two, said_of_other) = test(kept), test(other)
            if one > two:
                values = f" ({said} over {said_of_other})" if said and said_of_other else ""
                return f"{kept.name} {self._WORDS[test.__name__]}{values}"
        return f"{kept.name} comes first by name"

    _WORDS = {  # noqa: RUF012
        "_guarded": "is protected",
        "_larger": "is larger",
        "_less_compressed": "is less compressed",
        "_sharper": "is sharper",
        "_captioned": "has a caption beside it",
        "_older": "is older",
    }

    def _guarded(self, path: Path) -> tuple[float, str]:
        return float(path in self.protected), ""

    def _larger(self, path: Path) -> tuple[float, str]:
        width, height = _number(self.facts[path]["width"]), _number(self.facts[path]["height"])
        return width * height, f"{width:.0f}x{height:.0f}"

    def _less_compressed(self, path: Path) -> tuple[float, str]:
        size = _number(self.facts[path]["num_bytes"])
        return size, f"{size:,.0f} bytes"

    def _sharper(self, path: Path) -> tuple[float, str]:
        value = _number(self.facts[path]["sharpness"])
        return value, f"{value:.3f}"

    def _captioned(self, path: Path) -> tuple[float, str]:
        return float(path in self.listing.sidecars), ""

    def _older(self, path: Path) -> tuple[float, str]:
        return -float(self._mtimes[path]), ""


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone since it was measured: whatever is still there is older
        return sys.maxsize


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _contents(ranking: _Ranking, ids: Mapping[Path, str]) -> list[list[Path]]:
    """The files of each content, best first, and the contents by their best file."""
    contents: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(ranking.facts, key=ranking.key):
        contents[ids[path]].append(path)
    return list(contents.values())


# ---- which contents are alike; contents are numbered, best first

_Near = tuple[int, float]  # content, distance


class _Likeness:
    """Says which later contents show the same as one, or its mirror image."""

    def near(self, one: int) -> Iterable[_Near]:
        """Contents like this one, in no order."""
        return ()

    def near_mirror(self, one: int) -> Iterable[_Near]:
        """Contents like the mirror image of this one, in no order."""
        return ()


class _Exact(_Likeness):
    """Contents are told apart by their bytes alone: no two are alike."""


class _ByHash(_Likeness):
    """pHash within a radius, confirmed by the thumbnails' colours."""

    def __init__(self, facts: Sequence[Facts], radius: int) -> None:
        import numpy as np

        from edkit.measure.hashes import as_integers
        from edkit.measure.search import matches_within

        hashes = as_integers([str(one["phash"]) for one in facts])
        mirrors = as_integers([str(one["phash_mirror"]) for one in facts])
        self._thumbs = [one["thumb"] for one in facts]
        # equal hashes share one row: a thousand blank pages are not half a million pairs
        values, self._value = np.unique(hashes, return_inverse=True)
        mirror_values, mirror_value = np.unique(mirrors, return_inverse=True)
        self._of_value = _members(self._value, len(values))
        self._of_mirror = _members(mirror_value, len(mirror_values))
        self._near = _rows(matches_within(values, values, radius), len(values))
        self._near_mirror = _rows(matches_within(values, mirror_values, radius), len(values))

    def near(self, one: int) -> Iterator[_Near]:
        return self._alike(one, self._near, self._of_value, mirrored=False)

    def near_mirror(self, one: int) -> Iterator[_Near]:
        return self._alike(one, self._near_mirror, self._of_mirror, mirrored=True)

    def _alike(
        self,
        one: int,
        rows: Callable[[int], Iterator[tuple[int, int]]],
        members: Sequence[list[int]],
        *,
        mirrored: bool,
    ) -> Iterator[_Near]:
        from edkit.measure.hashes import same_colours

        mine = self._thumbs[one]
        for value, distance in rows(int(self._value[one])):
            for other in members[value]:
                theirs = self._thumbs[other]
                assert isinstance(mine, bytes) and isinstance(theirs, bytes)
                if other != one and same_colours(mine, theirs, mirrored=mirrored):
                    yield other, float(distance)


def _members(values: NDArray[np.int64], num_values: int) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(num_values)]
    for one, value in enumerate(values.tolist()):
        members[value].append(one)
    return members


def _rows(pairs: object, num_rows: int) -> Callable[[int], Iterator[tuple[int, int]]]:
    """The pairs of one left position, from pairs sorted by it."""
    import numpy as np

    from edkit.measure.search import Pairs

    assert isinstance(pairs, Pairs)
    starts = np.searchsorted(pairs.left, np.arange(num_rows + 1))

    def row(left: int) -> Iterator[tuple[int, int]]:
        part = slice(int(starts[left]), int(starts[left + 1]))
        return zip(pairs.right[part].tolist(), pairs.distance[part].tolist(), strict=True)

    return row


class _ByEmbedding(_Likeness):
    """Cosine of the embeddings at least the threshold."""

    def __init__(
        self, found: Mapping[Path, NDArray[np.float32] | Problem], firsts: Sequence[Path], threshold: float
    ) -> None:
        import numpy as np

        known = [None if isinstance(one := found[path], Problem) else one for path in firsts]
        dim = next((len(one) for one in known if one is not None), 0)
        nothing = np.zeros(dim, dtype=np.float32)  # what has no embedding is like nothing else
        self._vectors = np.stack([nothing if one is None else one for one in known]) if known else nothing[None]
        self._threshold = threshold

    def near(self, one: int) -> Iterator[_Near]:
        import numpy as np

        cosines = self._vectors @ self._vectors[one]
        for other in np.flatnonzero(cosines >= self._threshold).tolist():
            if other != one:
                yield other, max(0.0, 1.0 - float(cosines[other]))


# ---- groups


def _group(
    contents: Sequence[Sequence[Path]], alike: _Likeness, mirrored: bool, ranking: _Ranking, root: Path
) -> tuple[list[Group], list[MirrorPair]]:
    """Go from the best content down: each one not yet taken is kept, and takes what is near *it*."""
    taken = bytearray(len(contents))
    groups: list[Group] = []
    keepers: list[int] = []
    for one, paths in enumerate(contents):
        if taken[one]:
            continue
        taken[one] = 1
        keepers.append(one)
        kept = paths[0]
        found = [(one, 0.0, False)]
        near = sorted(alike.near(one), key=lambda pair: (pair[1], pair[0]))
        found += [(other, distance, False) for other, distance in near]
        if mirrored:
            flipped = sorted(alike.near_mirror(one), key=lambda pair: (pair[1], pair[0]))
            found += [(other, distance, True) for other, distance in flipped]
        members: list[Member] = []
        for other, distance, flip in found:
            if other != one:
                if taken[other]:
                    continue
                taken[other] = 1
            members += [
                _member(path, kept, distance, other == one, flip, ranking, root)
                for path in contents[other]
                if path != kept
            ]
        if members:
            groups.append(Group(kept=kept, members=tuple(members)))
    pairs: list[MirrorPair] = []
    if not mirrored:
        kept_ones = set(keepers)
        for one in keepers:
            pairs += [
                MirrorPair(path=contents[other][0], mirror_of=contents[one][0], distance=distance)
                for other, distance in sorted(alike.near_mirror(one))
                if other > one and other in kept_ones
            ]
    return groups, pairs


def _member(
    path: Path, kept: Path, distance: float, same_bytes: bool, flip: bool, ranking: _Ranking, root: Path
) -> Member:
    near = f"{distance:.0f}" if distance == int(distance) else f"{distance:.3f}"
    what = (
        f"the same bytes as {shown(kept, root)}"
        if same_bytes
        else f"{'mirrored ' if flip else ''}near-duplicate of {shown(kept, root)}, distance {near}"
    )
    return Member(
        path=path,
        distance=distance,
        same_bytes=same_bytes,
        mirrored=flip,
        reason=f"{what}, {ranking.why(kept, path)}",
        protected=path in ranking.protected,
        caption_lost=path in ranking.listing.sidecars and kept not in ranking.listing.sidecars,
    )
