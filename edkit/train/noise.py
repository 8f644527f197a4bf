"""Noise that is a pure function of what it is for: no order, thread or process changes a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edkit.data.random import Item, integer

Name = tuple[Item, ...]
"""What a row of noise is for: (item, epoch, occurrence), or whatever tells it from all others."""


def normal(shape: tuple[int, ...], seed: int, purpose: str, names: Sequence[Name]) -> Tensor:
    """Standard normal noise (len(names), *shape), fp32; each row a function of (seed, purpose, its own name)
    alone.
    """
    out = torch.empty(len(names), *shape)  # filled in place: memory aligned as torch aligns
    rows = out.numpy()
    for i, name in enumerate(names):
        # a key of 128 bits, given outright: no SeedSequence; about 10 microseconds a row
        key = integer(1 << 128, seed, purpose, *name)
        np.random.Generator(np.random.Philox(key=key, counter=0)).standard_normal(dtype=np.float32, out=rows[i])
    return out
