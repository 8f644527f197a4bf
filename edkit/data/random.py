"""Every random choice is a pure function of (seed, purpose, item, epoch, occurrence): no state, no order.

The values come from BLAKE2b and from Philox's raw words alone; both are fixed algorithms, so a plan made on
one machine and Python or numpy version is the plan on every other.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = str | int


def unit(seed: int, purpose: str, *items: Item) -> float:
    """A number in [0, 1), uniform over all keys (53 bits)."""
    return (int.from_bytes(_digest(seed, purpose, items, 8), "little") >> 11) * 2.0**-53


def integer(bound: int, seed: int, purpose: str, *items: Item) -> int:
    """A whole number in [0, bound), uniform; bound at least 1."""
    return int.from_bytes(_digest(seed, purpose, items, 16), "little") * bound >> 128


def words(n: int, seed: int, purpose: str, *items: Item) -> NDArray[np.uint64]:
    """n independent 64-bit words; the first k of them are the same for every n."""
    import numpy as np

    # counter and key given outright: no SeedSequence, whose mixing is numpy's own affair
    philox = np.random.Philox(key=int.from_bytes(_digest(seed, purpose, items, 16), "little"), counter=0)
    return np.asarray(philox.random_raw(n), dtype=np.uint64)


def permutation(n: int, seed: int, purpose: str, *items: Item) -> NDArray[np.int64]:
    """The numbers 0..n-1 in a uniformly drawn order."""
    import numpy as np

    return np.argsort(words(n, seed, purpose, *items), kind="stable").astype(np.int64)


def draw_seed() -> int:
    """A fresh seed (for `--seed -1`), to be recorded and reused on resume."""
    import secrets

    return secrets.randbelow(2**31)


def _digest(seed: int, purpose: str, items: tuple[Item, ...], size: int) -> bytes:
    # length-prefixed, so that ("ab", "c") and ("a", "bc") are different keys, and 1 is not "1"
    parts = [f"{seed}".encode(), purpose.encode()]
    parts += [
        b"i%d" % item if isinstance(item, int) else b"s" + item.encode("utf-8", "surrogatepass") for item in items
    ]
    return hashlib.blake2b(b"".join(b"%d:%s" % (len(part), part) for part in parts), digest_size=size).digest()
