"""Plain figures of how a picture looks, taken at one measuring scale so that a resized copy scores alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 240
"""Pixels of the shorter side at the measuring scale; smaller pictures are measured as they are.

A photo of 960 or 1024 rows comes there by JPEG's own decoding at 1/4; blur that shows at 512 still shows.
"""

_NOISE = 25.0  # grey levels squared: JPEG noise on a blank page is not sharpness
_WHITE_NOISE = 20.0  # the Laplacian's mean square over the variance of white noise: 4*4 + 4*1*1
_TILES = 8
_EVEN = 8  # grey levels: what JPEG makes of an even bar
_TINT = 16  # of 255: what JPEG makes of grey


def at_scale(gray: Image.Image) -> Image.Image:
    """The picture with its shorter side at SIDE pixels (up to 3% more), by area averaging; never enlarged."""
    side = min(gray.size)
    if side <= SIDE * 1.03:  # so little averaging only blurs here and there
        return gray
    size = (max(1, round(gray.width * SIDE / side)), max(1, round(gray.height * SIDE / side)))
    return gray.resize(size, Image.Resampling.BOX)


def sharpness(pixels: NDArray[np.uint8], variance: float) -> float:
    """How much of the contrast stands in fine detail where it is sharpest: 0 (blank) .. 1 (white noise).

    sqrt of the mean square of the 4-neighbour Laplacian over the picture's variance, relative to white
    noise. Of 8 x 8 tiles only the sharpest quarter counts, so that a portrait before a blurred background
    is sharp. Takes the grey picture at the measuring scale, and its variance in grey levels squared.
    """
    if min(pixels.shape) < 3:
        return 0.0
    p = pixels.astype(np.int16)
    detail = p[1:-1, 1:-1] << 2  # the Laplacian
    for neighbours in (p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]):
        detail -= neighbours
    height, width = (side // _TILES for side in detail.shape)
    if height >= 2 and width >= 2:
        squares = detail[: height * _TILES, : width * _TILES].astype(np.float32)
        squares *= squares
        rows = np.ones((1, height), dtype=np.float32) @ squares.reshape(_TILES, height, _TILES * width)
        energies = rows.reshape(_TILES, _TILES, width).sum(axis=2).reshape(-1) / (height * width)
        energy = float(np.sort(energies)[-(_TILES * _TILES) // 4 :].mean())
    else:
        energy = float((detail.astype(np.float32) ** 2).mean())
    return min(1.0, float(np.sqrt(energy / (_WHITE_NOISE * (variance + _NOISE)))))


def bars(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Letterbox bars at the left, top, right and bottom edge, in pixels of the grey picture.

    A bar is even from the edge on, and ends at a straight line: three fifths of its last row's neighbours at least are
    not of its grey. So a sky, or the margin around a thing on white, is none; below 1% of the side it is none either.
    """
    top = _bar(pixels)
    bottom = _bar(pixels[::-1]) if top < len(pixels) else 0
    inner = pixels[top : len(pixels) - bottom].T  # columns as rows
    left = _bar(inner)
    right = _bar(inner[::-1]) if left < len(inner) else 0
    return left, top, right, bottom


def _bar(rows: NDArray[np.uint8]) -> int:
    if len(rows) == 0 or int(rows[0].max()) - int(rows[0].min()) > _EVEN:
        return 0
    low, high = rows.min(axis=1).astype(np.int16), rows.max(axis=1).astype(np.int16)
    level = float(rows[0].mean())
    outside = np.flatnonzero((low < level - _EVEN) | (high > level + _EVEN))
    if len(outside) == 0:
        return 0  # one even picture: nothing is left to frame
    end = int(outside[0])
    # what JPEG and scaling smear into the bar's last rows is not yet the picture
    beyond = rows[end : end + 6].astype(np.int16)
    share = np.count_nonzero(np.abs(beyond - level) > _EVEN, axis=1) / beyond.shape[1]
    straight = np.flatnonzero(share >= 0.6)
    if len(straight) == 0 or end < max(2, 0.01 * len(rows)):
        return 0
    return end + int(straight[0])


def histogram(gray: Image.Image) -> NDArray[np.float64]:
    """The share of each of the 256 grey levels."""
    counts = np.asarray(gray.histogram(), dtype=np.float64)
    return np.asarray(counts / counts.sum())


def brightness(shares: NDArray[np.float64]) -> float:
    """Mean grey: 0 (black) .. 1 (white)."""
    return float(shares @ _LEVELS)


def variance(shares: NDArray[np.float64]) -> float:
    """Variance of grey, in grey levels squared."""
    return max(0.0, float(shares @ (_LEVELS - shares @ _LEVELS) ** 2)) * 65025.0


def contrast(shares: NDArray[np.float64]) -> float:
    """Standard deviation of grey, of the most there can be: 0 (one grey) .. 1 (half black, half white)."""
    return min(1.0, 2 * math.sqrt(variance(shares)) / 255.0)


def entropy(shares: NDArray[np.float64]) -> float:
    """Shannon entropy of the grey levels: 0 (one grey) .. 8 bits (all alike often)."""
    some = shares[shares > 0]
    return float(abs(-(some * np.log2(some)).sum()))


def chroma(rgb: Image.Image) -> NDArray[np.uint8]:
    """Distance between each pixel's strongest and weakest channel, (height, width)."""
    pixels = np.asarray(rgb)
    r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.asarray(np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b))


def saturation(distances: NDArray[np.uint8]) -> float:
    """Mean chroma: 0 (grey) .. 1 (pure colours)."""
    return float(distances.mean()) / 255.0


def is_grey(distances: NDArray[np.uint8]) -> bool:
    """Whether no more than a speck of a picture has a colour that an eye would see."""
    return bool(np.count_nonzero(distances > _TINT) <= 0.001 * distances.size)


_LEVELS = np.arange(256) / 255.0
