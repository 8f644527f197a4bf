"""Intervals hold what they promise, and a distance is the one its papers define."""

from __future__ import annotations

import numpy as np
import pytest

from edkit.prove.intervals import kernel_distance, mean_difference, relative_change


@pytest.mark.parametrize("num", [2, 3, 40])
def test_nothing_changed_is_zero_and_no_wider(num: int) -> None:
    values = np.random.default_rng(num).uniform(0.01, 10, num).tolist()
    change = relative_change(values, values)
    assert (change.value, change.low, change.high) == (0, 0, 0)
    assert change.covers_zero


def test_the_ends_are_those_of_theory_where_there_are_many_images() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 2, 400)
    after = before + rng.normal(0.1, 0.2, 400)
    found = mean_difference(before.tolist(), after.tolist())
    difference = after - before
    half = 1.96 * difference.std(ddof=1) / 20
    assert found.value == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.002)
    # pairs stay together: were they drawn apart, the images' own spread would count
    assert found.high - found.low < 2 * 1.96 * before.std() / 20


def test_the_interval_is_the_percentiles_of_plain_resampling() -> None:
    before, after = [1.0, 2.0, 3.0, 4.0, 2.5], [1.2, 1.9, 3.6, 4.4, 2.4]
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(20_000):
        rows = rng.integers(0, 5, 5)
        ratios.append(sum(after[i] for i in rows) / sum(before[i] for i in rows) - 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    found = relative_change(before, after)
    assert found.value == pytest.approx(13.5 / 12.5 - 1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        before = rng.uniform(1, 2, 40)
        after = before * rng.normal(1.1, 0.1, 40)
        found = relative_change(before.tolist(), after.tolist(), seed=trial)
        held += found.low <= 0.1 <= found.high
    assert 180 <= held <= 198  # 95%, less what the bootstrap loses at 40 images; five deviations


def test_the_same_seed_gives_the_same_interval() -> None:
    before, after = np.random.default_rng(3).uniform(1, 2, (2, 12)).tolist()
    assert relative_change(before, after) == relative_change(before, after)
    assert relative_change(before, after) != relative_change(before, after, seed=1)


def unit_rows(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(shift, 1, (n, 8))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def plainly(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b + 1) ** 3)

    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    terms = [k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs]
    return sum(terms) / len(terms)


def test_a_distance_and_its_error_are_those_of_the_definition() -> None:
    x, y = unit_rows(7, 3), unit_rows(7, 4, shift=1.0)
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(plainly(x, y))
    without = [plainly(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(7)]
    assert error == pytest.approx(np.sqrt(6 / 7 * np.sum((np.array(without) - np.mean(without)) ** 2)))
    assert value > 2 * error  # another cloud altogether


def test_equal_pictures_are_at_no_distance() -> None:
    x = unit_rows(5, 5)
    assert kernel_distance(x, x) == (0.0, 0.0)
    with pytest.raises(ValueError, match="three"):
        kernel_distance(x[:2], x[:2])
