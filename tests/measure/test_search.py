"""The search finds exactly the pairs that comparing each with each finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edkit.measure import search


def brute(left: NDArray[np.uint64], right: NDArray[np.uint64], radius: int) -> list[tuple[int, int, int]]:
    return [
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if (int(a) ^ int(b)).bit_count() <= radius
    ]


def told(pairs: search.Pairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True))


def crowd(n: int, seed: int) -> NDArray[np.uint64]:
    """Random hashes, half of them near another one."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for i in range(n // 2):
        for bit in rng.integers(0, 64, rng.integers(0, 14)):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
        hashes[n - 1 - i] = hashes[i] if i % 7 == 0 else hashes[n - 1 - i]
    return hashes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.integers(0, 64),
)
def test_finds_what_comparing_each_with_each_finds(left: list[int], right: list[int], radius: int) -> None:
    a, b = np.array(left, dtype=np.uint64), np.array(right, dtype=np.uint64)
    assert told(search.matches_within(a, b, radius)) == brute(a, b, radius)


@pytest.mark.parametrize("radius", [0, 1, 3, 8])
def test_cutting_into_any_number_of_chunks_misses_nothing(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = crowd(300, radius)
    near = hashes.copy()
    near[::2] ^= np.uint64(0x8000_0001_0000_0100)
    expected = brute(hashes, near, radius)
    for chunks in range(1, min(radius + 1, 8) + 1):
        if max(search._num_masks(width, bits) for _, width, bits in search._chunks(radius, chunks)) > 50_000:
            continue  # as exact, but slow
        monkeypatch.setattr(search, "_best_num_chunks", lambda *_, chunks=chunks: chunks)
        assert told(search.matches_within(hashes, near, radius)) == expected


def test_pairs_come_once_and_in_order() -> None:
    hashes = crowd(200, 1)
    pairs = told(search.pairs_within(hashes, 10))
    assert pairs == [pair for pair in brute(hashes, hashes, 10) if pair[0] < pair[1]]
    assert pairs == sorted(pairs)


def test_planted_neighbours_among_a_hundred_thousand_are_all_found() -> None:
    rng = np.random.default_rng(7)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    for i in range(200):  # exactly 8 bits apart, anywhere
        flips = rng.choice(64, 8, replace=False)
        hashes[50_000 + i] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64))
    found = set(told(search.pairs_within(hashes, 8)))
    assert {(i, 50_000 + i, 8) for i in range(200)} <= found


def test_many_equal_hashes_in_one_bucket_are_spread_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BLOCK", 64)
    monkeypatch.setattr(search, "_best_num_chunks", lambda *_: 2)
    hashes = np.full(40, 5, dtype=np.uint64)
    assert len(search.pairs_within(hashes, 2)) == 40 * 39 // 2


@pytest.mark.parametrize("radius", [-1, 65])
def test_a_radius_outside_0_to_64_is_refused(radius: int) -> None:
    with pytest.raises(ValueError, match="radius"):
        search.pairs_within(np.zeros(2, np.uint64), radius)


def test_copies_are_found_once_in_the_orientation_that_fits_best() -> None:
    from edkit.measure.search import copies_within

    rng = np.random.default_rng(7)
    hashes = rng.integers(0, 2**64, (50, 8), dtype=np.uint64)
    hashes[20, 6] = hashes[10, 0] ^ np.uint64(0b111)  # 20 turned is 10
    hashes[30, 0] = hashes[5, 0]
    hashes[30, 1] = hashes[5, 0] ^ np.uint64(1)  # nearly symmetric: as it is comes first
    found = copies_within(hashes, 8)
    assert list(zip(found.left, found.right, found.distance, found.orientation, strict=True)) == [
        (5, 30, 0, 0),
        (10, 20, 3, 6),
    ]
