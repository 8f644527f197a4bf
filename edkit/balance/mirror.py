"""Choosing out of a pool what looks and reads like a training set: numbers in, numbers out.

Two distributions of the training set are mirrored at once.

*Shapes.* Every image has the shape of its bucket (nearest in log aspect). The picks take the shapes in turn as seats
are given to parties (Sainte-Lague: the shape whose share divided by 2n + 1 is largest, n being its picks so far), so
that at every number of picks the shares are as near to the training set's as whole images allow. A shape that the
pool has no more of hands its share and its count to the nearest one in log aspect.

*Words.* An image's caption spreads one unit of mass over its words, so that a set's words are a distribution, whatever
the captions' lengths. The divergence KL(training set || picks) is least where

    F(picks) = sum over words v of  t(v) * log(t(v) + mass of v in the picks)

is largest, t being the training set's distribution (it stands inside the logarithm as one pick's worth of prior, so
that a word nobody has picked yet is no infinity). F is submodular: what an image adds only shrinks as others are
picked. Taking the image that adds most, shape by shape, therefore reaches at least half of what the best choice adds
(Fisher, Nemhauser and Wolsey 1978), and a gain computed earlier is a bound for the gain now, so that few are computed
anew (Minoux's lazy evaluation, 1978). Words that the training set does not have take mass and add nothing:
they are avoided, not forbidden.

Ties fall by a seeded order. More picks begin with the same ones: a larger limit only adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DIGITS = 12  # gains nearer than this are ties, so that the last bit of a logarithm decides nothing
_TOP = 256  # captions whose bounds are renewed at every pick


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Images by shape and caption."""

    shapes: NDArray[np.int64]  # (n,): number of each one's shape
    captions: NDArray[np.int64]  # (n,): number of each one's caption
    words: Sequence[Mapping[str, float]]  # of each caption: word -> its mass; the masses add up to 1, or there is none
    weights: NDArray[np.float64]  # (n,): how much each one counts


def masses(words: Sequence[str]) -> dict[str, float]:
    """One unit of mass spread over some words; a word that stands twice has two parts."""
    found: dict[str, float] = {}
    for word in words:
        found[word] = found.get(word, 0.0) + 1 / len(words)
    return found


def shape_shares(of: Described, num_shapes: int) -> NDArray[np.float64]:
    """(num_shapes,): the part of each shape; adds up to 1."""
    counts = np.bincount(of.shapes, of.weights, num_shapes)
    return counts / max(float(counts.sum()), 1e-300)


def word_shares(of: Described) -> dict[str, float]:
    """The part of each word; adds up to 1 where any caption has words."""
    weights = np.bincount(of.captions, of.weights, len(of.words))
    found: dict[str, float] = {}
    for caption in np.flatnonzero(weights).tolist():
        for word, mass in of.words[caption].items():
            found[word] = found.get(word, 0.0) + float(weights[caption]) * mass
    total = sum(found.values())
    return {word: mass / total for word, mass in found.items()} if total else {}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Jensen-Shannon divergence of two distributions, in bits: 0 where they are equal, 1 where they share nothing."""
    found = 0.0
    for p, q in ((one, other), (other, one)):
        found += sum(share * math.log2(2 * share / (share + q.get(key, 0.0))) for key, share in p.items() if share > 0)
    return min(1.0, max(0.0, found / 2))


def choose(
    train: Described,
    pool: Described,
    *,
    log_aspects: Sequence[float],  # of each shape
    limit: int,
    order: NDArray[np.int64],
    before: Sequence[int] = (),
    accept: Callable[[int], bool] = lambda i: True,
) -> list[int]:
    """Positions in the pool, in the order they are picked, until they and those picked `before` are `limit`.

    `order` is the seeded order in which equal ones come. `accept` is asked of each one that is about to be picked;
    one that it refuses is passed over. Fewer come where the pool is at its end.
    """
    seats = _Seats(shape_shares(train, len(log_aspects)), log_aspects)
    words = _Words(word_shares(train), pool.words)
    for i in before:
        seats.take(int(pool.shapes[i]))
        words.add(int(pool.captions[i]))
    left = np.ones(len(pool.shapes), np.bool_)
    left[list(before)] = False
    open_ = {shape: _Shape(rows, pool, words) for shape, rows in _by_shape(pool.shapes, order[left[order]])}
    seats.close(set(range(len(log_aspects))) - open_.keys())
    found: list[int] = []
    while len(found) + len(before) < limit and open_:
        shape = seats.next()
        i = open_[shape].pop()
        if accept(i):
            found.append(i)
            seats.take(shape)
            words.add(int(pool.captions[i]))
        if not open_[shape].num_left:
            del open_[shape]
            seats.close({shape})
    return found


class _Seats:
    """Which shape is next: shares and picks so far, and to whom a shape that is used up leaves both."""

    def __init__(self, shares: NDArray[np.float64], log_aspects: Sequence[float]) -> None:
        self._shares, self._counts = shares.tolist(), [0] * len(shares)
        self._log_aspects = log_aspects
        self._open = set(range(len(shares)))
        self._heir = list(range(len(shares)))

    def next(self) -> int:
        return max(self._open, key=lambda s: (self._shares[s] / (2 * self._counts[s] + 1), -self._counts[s], -s))

    def take(self, shape: int) -> None:
        while self._heir[shape] != shape:
            shape = self._heir[shape]
        self._counts[shape] += 1

    def close(self, shapes: set[int]) -> None:
        self._open -= shapes
        for shape in sorted(shapes):
            if self._open:
                aspect = self._log_aspects[shape]
                heir = min(self._open, key=lambda s: (abs(self._log_aspects[s] - aspect), s))
                self._shares[heir] += self._shares[shape]
                self._counts[heir] += self._counts[shape]
                self._heir[shape] = heir


class _Words:
    """The mass of every word of the training set in what is picked, and what captions would add to F."""

    def __init__(self, target: Mapping[str, float], captions: Sequence[Mapping[str, float]]) -> None:
        number = {word: n for n, word in enumerate(target)}
        self._target = np.asarray(list(target.values()))
        self._has = self._target.copy()  # of one pick that is distributed as the training set
        words: list[int] = []
        mass: list[float] = []
        ends = [0]
        for caption in captions:
            for word, part in caption.items():
                if word in number:
                    words.append(number[word])
                    mass.append(part)
            ends.append(len(words))
        self._words, self._mass, self._ends = np.asarray(words, np.int64), np.asarray(mass), np.asarray(ends)

    def add(self, caption: int) -> None:
        part = slice(self._ends[caption], self._ends[caption + 1])
        self._has[self._words[part]] += self._mass[part]

    def gains(self, captions: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,): what each of some captions would add."""
        starts, lengths = self._ends[captions], self._ends[captions + 1] - self._ends[captions]
        of = np.repeat(np.arange(len(captions)), lengths)
        at = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(of))
        words = self._words[at]
        parts = self._target[words] * np.log1p(self._mass[at] / self._has[words])
        sums = np.bincount(of, parts, len(captions)).astype(np.float64)  # of nothing at all it counts in ints
        return np.asarray(np.round(sums, _DIGITS), np.float64)


def _by_shape(shapes: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The rows of each shape, in the order given."""
    for shape in np.unique(shapes[rows]).tolist():
        yield shape, rows[shapes[rows] == shape]


class _Shape:
    """The images of one shape, and bounds of what each would add. Those of one caption come in the seeded order."""

    def __init__(self, rows: NDArray[np.int64], pool: Described, words: _Words) -> None:
        self._words = words
        captions, first, of = np.unique(pool.captions[rows], return_index=True, return_inverse=True)
        self._captions = captions
        self._first = first  # place in the seeded order of each caption's next image
        by_caption = np.argsort(of, kind="stable")
        self._members = np.split(by_caption, np.flatnonzero(np.diff(of[by_caption])) + 1)
        self._taken = np.zeros(len(captions), np.int64)  # of each caption's images
        self._rows = rows
        self._bounds = words.gains(captions)
        self.num_left = len(rows)

    def pop(self) -> int:
        """The image that adds most to what is picked now; of equal ones the first in the seeded order."""
        bounds = self._bounds
        top = np.argpartition(-bounds, min(_TOP, len(bounds)) - 1)[:_TOP]
        top = top[bounds[top] > -math.inf]
        bounds[top] = self._words.gains(self._captions[top])
        best = bounds[top].max()
        # bounds only shrink: whatever is beneath the best of these now can't be the best
        rivals = np.flatnonzero(bounds >= best)
        bounds[rivals] = self._words.gains(self._captions[rivals])
        best = bounds[rivals].max()
        rivals = rivals[bounds[rivals] == best]
        chosen = int(rivals[np.argmin(self._first[rivals])])
        members = self._members[chosen]
        self._taken[chosen] += 1
        if self._taken[chosen] < len(members):
            self._first[chosen] = members[self._taken[chosen]]
        else:
            bounds[chosen] = -math.inf
        self.num_left -= 1
        return int(self._rows[members[self._taken[chosen] - 1]])
