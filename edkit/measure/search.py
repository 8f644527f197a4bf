"""Exact search among 64-bit hashes: every pair within a Hamming radius, none missed.

Few hashes are compared each with each. Many are cut into m chunks: if two hashes differ in at most r bits,
one of their chunks differs in at most its share of them, where the shares add up to r - m + 1 (the
pigeonhole principle as Norouzi, Punjani and Fleet use it in "Fast Exact Search in Hamming Space with Multi-
Index Hashing", 2014). So only hashes that agree that far in a chunk are compared in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

BITS = 64
_BLOCK = 1 << 21  # pairs compared at once: 16 MB of 64-bit words

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of positions and how many bits their hashes differ in: three arrays of one length."""

    left: Positions
    right: Positions
    distance: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.left)


def pairs_within(hashes: Hashes, radius: int) -> Pairs:
    """Every pair left < right of positions whose hashes differ in at most `radius` bits, in order.

    Equal hashes are pairs at distance 0: n of them give n(n-1)/2 pairs, so search unique hashes where many
    are equal.
    """
    found = matches_within(hashes, hashes, radius)
    once = found.left < found.right
    return Pairs(left=found.left[once], right=found.right[once], distance=found.distance[once])


def matches_within(left: Hashes, right: Hashes, radius: int) -> Pairs:
    """Every pair of positions (in left, in right) whose hashes differ in at most `radius` bits, in order.

    Raises ValueError for a radius outside 0..64.
    """
    if not 0 <= radius <= BITS:
        raise ValueError(f"radius {radius} is not in 0..{BITS}")
    num_chunks = _best_num_chunks(len(left), len(right), radius)
    candidates = _all(len(left), len(right)) if num_chunks == 0 else _agreeing(left, right, radius, num_chunks)
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for i, j in candidates:
        near = np.bitwise_count(left[i] ^ right[j]) <= radius
        lefts.append(np.broadcast_to(i, near.shape)[near])
        rights.append(np.broadcast_to(j, near.shape)[near])
    a, b = np.concatenate(lefts), np.concatenate(rights)
    if num_chunks > 1 and len(a):  # two hashes may agree in several chunks
        pairs = np.unique(a * len(right) + b)
        a, b = pairs // len(right), pairs % len(right)
    else:
        order = np.lexsort((b, a))
        a, b = a[order], b[order]
    return Pairs(left=a, right=b, distance=np.bitwise_count(left[a] ^ right[b]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Pairs of pictures of which one is the other, perhaps mirrored or turned: four arrays of one length."""

    left: Positions
    right: Positions
    distance: NDArray[np.uint8]
    orientation: NDArray[np.uint8]  # place in `hashes.ORIENTATIONS`: how the right one must lie to be the left one

    def __len__(self) -> int:
        return len(self.left)


def copies_within(hashes: Hashes, radius: int, orientations: Sequence[int] = range(8)) -> Copies:
    """Every pair left < right within the radius in some of the orientations, once, at its least distance.

    `hashes` (n, 8) are each picture's pHash as it is and in the other orientations, as `hashes.ORIENTATIONS` names
    them; where two orientations are as near, the earlier one counts. Equal hashes are pairs: search unique
    pictures where many are equal.
    """
    lefts, rights, distances, kinds = [], [], [], []
    plain = np.ascontiguousarray(hashes[:, 0])
    for kind in orientations:
        found = matches_within(plain, plain if kind == 0 else np.ascontiguousarray(hashes[:, kind]), radius)
        once = found.left < found.right
        lefts.append(found.left[once])
        rights.append(found.right[once])
        distances.append(found.distance[once])
        kinds.append(np.full(int(once.sum()), kind, dtype=np.uint8))
    left, right = np.concatenate(lefts), np.concatenate(rights)
    distance, kind_ = np.concatenate(distances), np.concatenate(kinds)
    order = np.lexsort((kind_, distance, right, left))
    left, right, distance, kind_ = left[order], right[order], distance[order], kind_[order]
    first = np.ones(len(left), dtype=bool)
    first[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    return Copies(left=left[first], right=right[first], distance=distance[first], orientation=kind_[first])


def _all(num_left: int, num_right: int) -> Iterator[tuple[Positions, Positions]]:
    """Each with each, as (k, 1) and (1, num_right) positions."""
    rows = max(1, _BLOCK // max(1, num_right))
    every = np.arange(num_right)[None, :]
    for start in range(0, num_left, rows):
        yield np.arange(start, min(start + rows, num_left))[:, None], every


def _chunks(radius: int, num_chunks: int) -> list[tuple[int, int, int]]:
    """(lowest bit, width in bits, bits it may differ in) of each chunk."""
    edges = [round(BITS * k / num_chunks) for k in range(num_chunks + 1)]
    shares = radius - num_chunks + 1
    return [
        (low, high - low, shares // num_chunks + (k < shares % num_chunks))
        for k, (low, high) in enumerate(pairwise(edges))
    ]


def _num_masks(width: int, bits: int) -> int:
    return sum(math.comb(width, k) for k in range(bits + 1))


def _best_num_chunks(num_left: int, num_right: int, radius: int) -> int:
    """The number of chunks that costs least for evenly spread hashes; 0: compare each with each."""
    costs = {0: float(num_left) * num_right * 2e-9}  # seconds, measured on one core
    for m in range(1, min(radius + 1, 8) + 1):
        masks = [(_num_masks(width, bits), width) for _, width, bits in _chunks(radius, m)]
        lookups = sum(count for count, _ in masks) * (num_left * 2e-8 + 1e-4)
        compared = sum(count * num_left * num_right / 2.0**width for count, width in masks)
        costs[m] = lookups + compared * 2.5e-8 + (num_left + num_right) * m * 2e-7
    return min(costs, key=lambda m: costs[m])


def _agreeing(left: Hashes, right: Hashes, radius: int, num_chunks: int) -> Iterator[tuple[Positions, Positions]]:
    """Blocks of pairs that nearly agree in a chunk; a pair may come several times."""
    for low, width, bits in _chunks(radius, num_chunks):
        cut = np.uint64((1 << width) - 1)
        left_keys = (left >> np.uint64(low)) & cut
        right_keys = (right >> np.uint64(low)) & cut
        left_order = np.argsort(left_keys, kind="stable")  # near keys look up near places: kind to the cache
        left_keys = left_keys[left_order]
        right_order = np.argsort(right_keys, kind="stable")
        starts, counts, keys = _buckets(right_keys[right_order], width)
        for mask in _masks(width, bits):
            wanted = left_keys ^ mask
            if keys is None:
                bucket = wanted.astype(np.int64)
                number = counts[bucket]
            else:
                bucket = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
                number = np.where(keys[bucket] == wanted, counts[bucket], 0)
            hit = np.flatnonzero(number)
            yield from _spread(left_order[hit], starts[bucket[hit]], number[hit], right_order)


def _buckets(keys: NDArray[np.uint64], width: int) -> tuple[Positions, Positions, NDArray[np.uint64] | None]:
    """Start and length of each key's run in the sorted keys, by key or by its rank in the third array."""
    if width <= 22:
        counts = np.bincount(keys.astype(np.int64), minlength=1 << width)
        return np.cumsum(counts) - counts, counts, None
    unique, starts, counts = np.unique(keys, return_index=True, return_counts=True)
    return starts, counts, unique


def _masks(width: int, bits: int) -> Iterator[np.uint64]:
    for k in range(bits + 1):
        for ones in combinations(range(width), k):
            yield np.uint64(sum(1 << one for one in ones))


def _spread(
    left: Positions, starts: Positions, counts: Positions, right_order: Positions
) -> Iterator[tuple[Positions, Positions]]:
    """Each left position beside every member of its bucket, in blocks of bounded size."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(left):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
        number = counts[first:last]
        total = int(ends[last - 1]) - done
        within = np.arange(total) - np.repeat(ends[first:last] - number - done, number)
        yield np.repeat(left[first:last], number), right_order[np.repeat(starts[first:last], number) + within]
        first = last
