"""Randomness as a pure function of its key."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edkit.data.random import draw_seed, integer, permutation, unit, words


def test_the_values_are_known_ones_on_every_machine() -> None:
    """A change here changes what every recorded seed means."""
    assert unit(555, "flip", "a.jpg", 0, 0) == UNIT
    assert permutation(8, 555, "order", 0).tolist() == PERMUTATION
    assert integer(1000, 555, "crop", "a.jpg") == INTEGER


UNIT = 0.07227593021014322
PERMUTATION = [0, 7, 4, 2, 3, 6, 1, 5]
INTEGER = 644


def test_keys_that_read_alike_are_different_keys() -> None:
    values = {
        unit(1, "a", "bc"),
        unit(1, "ab", "c"),
        unit(1, "a", "b", "c"),
        unit(1, "a", 1),
        unit(1, "a", "1"),
        unit(11, "a"),
    }
    assert len(values) == 6


@given(st.integers(0, 300), st.integers(), st.text())
def test_a_permutation_holds_every_number_once(n: int, seed: int, purpose: str) -> None:
    assert sorted(permutation(n, seed, purpose).tolist()) == list(range(n))


@given(st.integers(1, 1000), st.integers(0, 50))
def test_an_integer_lies_below_its_bound(bound: int, seed: int) -> None:
    assert 0 <= integer(bound, seed, "x") < bound


def test_the_draws_are_uniform() -> None:
    drawn = np.array([unit(1, "x", n) for n in range(5_000)])
    assert abs(drawn.mean() - 0.5) < 0.02 and np.all(np.abs(np.histogram(drawn, 10, (0, 1))[0] - 500) < 110)
    first = np.bincount([int(permutation(10, 1, "p", n)[0]) for n in range(1000)], minlength=10)
    assert np.all(np.abs(first - 100) < 50)


def test_words_begin_alike_for_every_length() -> None:
    assert words(5, 1, "x").tolist() == words(50, 1, "x")[:5].tolist()


def test_a_drawn_seed_fits_everywhere() -> None:
    assert 0 <= draw_seed() < 2**31
