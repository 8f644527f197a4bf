"""Plain figures of how a picture looks, taken at one measuring scale so that a resized copy scores alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

SIDE = 240
"""Pixels of the shorter side at the measuring scale; smaller pictures are measured as they are.

A photo of 960 or 1024 rows comes there by JPEG's own decoding at 1/4; blur that shows at 512 still shows.
"""

_NOISE = 25.0  # grey levels squared: JPEG noise on a blank page is not sharpness
_WHITE_NOISE = 20.0  # the Laplacian's mean square over the variance of white noise: 4*4 + 4*1*1
_TILES = 8


def at_scale(gray: Image.Image) -> Image.Image:
    """The picture with its shorter side at SIDE pixels, by area averaging; never enlarged."""
    side = min(gray.size)
    if side <= SIDE:
        return gray
    size = (max(1, round(gray.width * SIDE / side)), max(1, round(gray.height * SIDE / side)))
    return gray.resize(size, Image.Resampling.BOX)


def sharpness(gray: Image.Image) -> float:
    """How much of the contrast stands in fine detail where it is sharpest: 0 (blank) .. 1 (white noise).

    sqrt of the mean square of the 4-neighbour Laplacian over the picture's variance, relative to white
    noise. Of 8 x 8 tiles only the sharpest quarter counts, so that a portrait before a blurred background
    is sharp. Takes the grey picture at the measuring scale.
    """
    p = np.asarray(gray).astype(np.float32)
    if min(p.shape) < 3:
        return 0.0
    detail = 4 * p[1:-1, 1:-1]  # the Laplacian
    for neighbours in (p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]):
        detail -= neighbours
    height, width = (side // _TILES for side in detail.shape)
    if height >= 2 and width >= 2:
        tiles = detail[: height * _TILES, : width * _TILES].reshape(_TILES, height, _TILES, width)
        energies = np.einsum("aibj,aibj->ab", tiles, tiles).reshape(-1) / (height * width)
        energy = float(np.sort(energies)[-(_TILES * _TILES) // 4 :].mean())
    else:
        energy = float((detail * detail).mean())
    variance = float(p.var())
    return min(1.0, float(np.sqrt(energy / (_WHITE_NOISE * (variance + _NOISE)))))


def histogram(gray: Image.Image) -> NDArray[np.float64]:
    """The share of each of the 256 grey levels."""
    counts = np.asarray(gray.histogram(), dtype=np.float64)
    return np.asarray(counts / counts.sum())


def brightness(shares: NDArray[np.float64]) -> float:
    """Mean grey: 0 (black) .. 1 (white)."""
    return float(shares @ _LEVELS)


def contrast(shares: NDArray[np.float64]) -> float:
    """Standard deviation of grey, of the most there can be: 0 (one grey) .. 1 (half black, half white)."""
    mean = shares @ _LEVELS
    return float(2 * np.sqrt(max(0.0, float(shares @ (_LEVELS - mean) ** 2))))


def entropy(shares: NDArray[np.float64]) -> float:
    """Shannon entropy of the grey levels: 0 (one grey) .. 8 bits (all alike often)."""
    some = shares[shares > 0]
    return float(abs(-(some * np.log2(some)).sum()))


def saturation(rgb: Image.Image) -> float:
    """Mean distance between a pixel's strongest and weakest channel: 0 (grey) .. 1 (pure colours)."""
    r, g, b = rgb.split()
    chroma = ImageChops.subtract(
        ImageChops.lighter(ImageChops.lighter(r, g), b), ImageChops.darker(ImageChops.darker(r, g), b)
    )
    return brightness(histogram(chroma))


_LEVELS = np.arange(256) / 255.0
