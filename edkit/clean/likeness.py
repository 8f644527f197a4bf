"""Which pictures are alike: by their pixels, by hash and colours, or by embedding.

Contents are numbered, best first; a likeness says which others are near one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.data.errors import Problem
from edkit.measure.facts import Facts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Near = tuple[int, float]  # content, distance


class Likeness:
    """Says which later contents show the same as one, or its mirror image."""

    def near(self, one: int) -> Iterable[Near]:
        """Contents like this one, in no order."""
        return ()

    def near_mirror(self, one: int) -> Iterable[Near]:
        """Contents like the mirror image of this one, in no order."""
        return ()


class Exact(Likeness):
    """Contents are told apart by their bytes alone: no two are alike."""


class ByPixels(Likeness):
    """The same pixels to the last bit, however they are stored."""

    def __init__(self, digests: Sequence[str | None]) -> None:
        self._digests = digests
        self._of: dict[str, list[int]] = defaultdict(list)
        for one, digest in enumerate(digests):
            if digest is not None:
                self._of[digest].append(one)

    def near(self, one: int) -> Iterator[Near]:
        digest = self._digests[one]
        return ((other, 0.0) for other in self._of.get(digest or "", ()) if other != one)


class ByHash(Likeness):
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

    def near(self, one: int) -> Iterator[Near]:
        return self._alike(one, self._near, self._of_value, mirrored=False)

    def near_mirror(self, one: int) -> Iterator[Near]:
        return self._alike(one, self._near_mirror, self._of_mirror, mirrored=True)

    def _alike(
        self,
        one: int,
        rows: Callable[[int], Iterator[tuple[int, int]]],
        members: Sequence[list[int]],
        *,
        mirrored: bool,
    ) -> Iterator[Near]:
        from edkit.measure.hashes import same_colours

        mine = self._thumbs[one]
        for value, distance in rows(int(self._value[one])):
            for other in members[value]:
                theirs = self._thumbs[other]
                assert isinstance(mine, bytes) and isinstance(theirs, bytes)
                if (
                    other != one
                    and same_colours(mine, theirs, mirrored=mirrored)
                    and same_hues(mine, theirs, mirrored=mirrored)
                ):
                    yield other, float(distance)


def same_hues(one: bytes, other: bytes, *, mirrored: bool = False) -> bool:
    """Whether two thumbnails (8 x 8 RGB) are coloured in the same places by the same hues.

    What is compared is how each cell's colour, without its brightness, differs from the picture's mean: a thin red
    ring and a thin green one differ little over the whole, and point in opposite directions where they differ.
    Of 80 photos, JPEG 10, blur, 5% crops, half and 1.6 times the saturation, contrast 1.4 and brightness
    0.7 left all correlations above 0.85, brightness 1.4 above 0.59; rings of other hues lie between -1 and 0.1.
    Nearly grey pictures can't be judged so and pass.
    """
    import numpy as np

    a, b = _hues(one), _hues(other)
    if mirrored:
        b = b[:, ::-1]
    strength = float(np.sqrt((a * a).mean())), float(np.sqrt((b * b).mean()))
    if max(strength) < 0.015:
        return True
    return float((a * b).mean()) >= 0.5 * strength[0] * strength[1]


def _hues(thumb: bytes) -> NDArray[np.float64]:
    """(8, 8, 3): each cell's colour less its grey and less the picture's mean."""
    import numpy as np

    pixels = np.frombuffer(thumb, dtype=np.uint8).reshape(8, 8, 3) / 255.0
    colours = pixels - pixels.mean(axis=2, keepdims=True)
    return np.asarray(colours - colours.mean(axis=(0, 1)))


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


class ByEmbedding(Likeness):
    """Cosine of the embeddings at least the threshold; a model hardly sees mirroring, so hashes tell mirror images."""

    def __init__(
        self,
        found: Mapping[Path, NDArray[np.float32] | Problem],
        firsts: Sequence[Path],
        facts: Sequence[Facts],
        *,
        threshold: float,
        radius: int,
    ) -> None:
        import numpy as np

        from edkit.measure.hashes import as_integers

        known = [None if isinstance(one := found[path], Problem) else one for path in firsts]
        dim = next((len(one) for one in known if one is not None), 0)
        nothing = np.zeros(dim, dtype=np.float32)  # what has no embedding is like nothing else
        self._vectors = np.stack([nothing if one is None else one for one in known]) if known else nothing[None]
        self._hashes = as_integers([str(one["phash"]) for one in facts])
        self._mirrors = as_integers([str(one["phash_mirror"]) for one in facts])
        self._threshold, self._radius = threshold, radius

    def near(self, one: int) -> Iterator[Near]:
        return self._alike(one, mirrored=False)

    def near_mirror(self, one: int) -> Iterator[Near]:
        return self._alike(one, mirrored=True)

    def _alike(self, one: int, *, mirrored: bool) -> Iterator[Near]:
        import numpy as np

        cosines = self._vectors @ self._vectors[one]
        for other in np.flatnonzero(cosines >= self._threshold).tolist():
            if other == one:
                continue
            straight = int(self._hashes[one] ^ self._hashes[other]).bit_count()
            flipped = int(self._hashes[one] ^ self._mirrors[other]).bit_count()
            if (flipped <= self._radius and flipped < straight) is mirrored:
                yield other, max(0.0, 1.0 - float(cosines[other]))
