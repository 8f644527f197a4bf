"""How sure a figure is: the paired bootstrap, and the distance of two sets of pictures with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure, and where it lies in 95 of 100 such measurements."""

    value: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether it may as well be nothing."""
        return self.low <= 0 <= self.high


def relative_change(before: Sequence[float], after: Sequence[float], *, seed: int = 555) -> Interval:
    """How much larger the mean of `after` is than that of `before`, as a part of it, by the paired bootstrap.

    Both are of the same images in the same order; images are drawn with replacement, each with its pair, and the
    interval's ends are percentiles: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    import numpy as np

    pairs = np.stack([np.asarray(before, np.float64), np.asarray(after, np.float64)])  # (2, N)
    means = _resampled_means(pairs, seed)  # (2, R)
    low, high = _ends(means[1] / means[0] - 1)
    return Interval(value=float(pairs[1].mean() / pairs[0].mean() - 1), low=low, high=high)


def mean_difference(before: Sequence[float], after: Sequence[float], *, seed: int = 555) -> Interval:
    """How much larger the mean of `after` is than that of `before`, by the same bootstrap."""
    import numpy as np

    pairs = np.stack([np.asarray(before, np.float64), np.asarray(after, np.float64)])
    means = _resampled_means(pairs, seed)
    low, high = _ends(means[1] - means[0])
    return Interval(value=float(pairs[1].mean() - pairs[0].mean()), low=low, high=high)


def kernel_distance(one: Any, other: Any) -> tuple[float, float]:
    """The distance of two sets of embeddings (N, D), paired row by row, and its standard error.

    The kernel inception distance of Bińkowski et al. 2018, arXiv:1801.01401, section 4: the squared maximum mean
    discrepancy under the kernel (x·y / D + 1)³. Rows of one pair (same prompt, same noise) are never held against
    each other (Gretton et al. 2012, equation 4), so two equal sets are at distance 0 exactly; the error is the
    jackknife's over pairs. The embeddings have length 1 and are scaled to sqrt(D), as the kernel expects of
    features of about unit variance.
    """
    import numpy as np

    x, y = (np.asarray(rows, np.float64) for rows in (one, other))
    n = len(x)
    if n < 3:
        raise ValueError("a distance wants at least three pairs")

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a @ b.T + 1) ** 3)

    cross = kernel(x, y)
    terms = kernel(x, x) + kernel(y, y) - cross - cross.T  # (N, N)
    np.fill_diagonal(terms, 0)
    total, rows = terms.sum(), terms.sum(axis=1)
    value = total / (n * (n - 1))
    without = (total - 2 * rows) / ((n - 1) * (n - 2))  # the distance with each pair left out
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return float(value), float(error)


def _resampled_means(pairs: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(2, N) => (2, R): the means of R draws of N images, the same draws for both rows."""
    import numpy as np

    from edkit.data.random import words

    n = pairs.shape[1]
    draws = words(NUM_RESAMPLES * n, seed, "bootstrap") % np.uint64(n)
    return np.asarray(pairs[:, draws.astype(np.int64).reshape(NUM_RESAMPLES, n)].mean(axis=2))


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
