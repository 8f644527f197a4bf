"""The rules say what docs/evaluate.md says."""

from __future__ import annotations

import pytest

from edkit.prove.intervals import Interval
from edkit.prove.verdict import bled, kept, learned


def at(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("change", "word"),
    [(at(-0.2, -0.3, -0.1), "learned"), (at(-0.2, -0.5, 0.1), "not learned"), (at(0.0, 0.0, 0.0), "not learned")],
)
def test_learned_is_a_loss_that_surely_fell(change: Interval, word: str) -> None:
    assert learned(change).word == word


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (at(0.0, 0.0, 0.0), "kept"),
        (at(0.05, 0.04, 0.06), "kept"),  # surely more, and allowed
        (at(0.06, 0.04, 0.08), "forgot"),
        (at(0.06, -0.01, 0.2), "unclear"),
        (at(-0.1, -0.2, -0.05), "kept"),
    ],
)
def test_forgot_is_a_loss_that_surely_rose_by_more_than_allowed(change: Interval, word: str) -> None:
    assert kept(change, max_drift=0.05).word == word


def test_bled_wants_both_size_and_certainty() -> None:
    assert bled(at(0.3, 0.1, 0.5), limit=0.1, what="").word == "bled"
    assert bled(at(0.3, 0.0, 0.5), limit=0.1, what="").word == "not bled"
    assert bled(at(0.05, 0.01, 0.1), limit=0.1, what="").word == "not bled"
