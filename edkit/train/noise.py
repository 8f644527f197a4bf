"""Noise that is a pure function of what it is for: no order, thread or process changes a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from edkit.data.random import Item, integer, unit

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


def training_noise(
    shape: tuple[int, int, int], seed: int, names: Sequence[Name], *, offset: float = 0.0, pyramid: float = 0.0
) -> Tensor:
    """The noise (len(names), *shape) that training adds to latents, fp32; a function of the names alone.

    `offset` adds one more normal number, times `offset`, to each channel of an image, so that a model learns
    to make pictures darker or brighter than the mean: Guttenberg 2023, "Diffusion with offset noise".
    `pyramid` adds coarser and coarser noise, each level half as fine as the last and weighing `pyramid` of it,
    and brings the sum back to unit deviation: Whitaker 2023, "Multi-resolution noise for diffusion model
    training". 0 is off.
    """
    noise: Tensor = normal(shape, seed, "noise", names)
    channels, height, width = shape
    if pyramid:
        level, weight = 1, pyramid
        while min(height >> level, width >> level) >= 1:
            coarse = normal((channels, height >> level, width >> level), seed, f"pyramid noise {level}", names)
            noise.add_(interpolate(coarse, (height, width), mode="bilinear", align_corners=False), alpha=weight)
            level, weight = level + 1, weight * pyramid
        noise.div_(noise.std(dim=(1, 2, 3), keepdim=True, correction=0))
    if offset:
        noise.add_(normal((channels, 1, 1), seed, "offset noise", names), alpha=offset)
    return noise


def timestep_draws(
    names: Sequence[Name],
    seed: int,
    *,
    distribution: Literal["uniform", "logit_normal"] = "uniform",
    shift: float = 1.0,
) -> Tensor:
    """Where between the first timestep (0) and the last (1) each row trains, (N,) in float64, a function of its name.

    `logit_normal` draws the middle more often than the ends; a `shift` above 1 moves all draws towards noise, as large
    pictures need it: Esser et al. 2024, "Scaling rectified flow transformers", arXiv:2403.03206, sections 3.1 and
    5.3.2.
    """
    draws = torch.tensor([unit(seed, "timestep", *name) for name in names], dtype=torch.float64)
    if distribution == "logit_normal":
        draws = torch.sigmoid(torch.special.ndtri(draws))
    return shift * draws / (1 + (shift - 1) * draws) if shift != 1 else draws


def perturbed(states: Tensor, gamma: float, seed: int, names: Sequence[Name]) -> Tensor:
    """Text states (N, L, D) with normal noise of deviation gamma / sqrt(D): conditional embedding
    perturbation, Chen et al. 2024, "Slight corruption in pre-training data makes better diffusion models",
    arXiv:2405.20494, section 5.
    """
    noise = normal(tuple(states.shape[1:]), seed, "embedding perturbation", names)
    deviation = float(gamma / states.shape[-1] ** 0.5)
    return states + (noise * deviation).to(states)
