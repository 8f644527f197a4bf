"""Perceptual hashes of a picture, and the little picture that confirms what they find.

The values are imagehash's (`phash`, `dhash`, 8 x 8) on the grey picture `View` hands in, which is reduced
the same way whatever the file's format; written here without SciPy, whose import would cost more than a
thousand hashes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
THUMB = 8  # the thumbnail is THUMB x THUMB RGB pixels


@cache
def _cosines() -> NDArray[np.float64]:
    """The first 8 rows of the 32-point DCT-II, scaled as SciPy's default (8, 32)."""
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    return 2 * np.cos(np.pi * k * (2 * n + 1) / 64)


ORIENTATIONS = (
    "same",
    "mirrored",
    "upside down mirrored",
    "turned 180",
    "transposed",
    "turned 270",
    "turned 90",
    "transversed",
)
"""How a copy can lie: turned by that many degrees against the clock, or mirrored besides."""


@cache
def _signs() -> NDArray[np.float64]:
    """What mirroring left to right, top to bottom and both does to the cosines: (4, 8, 8) of 1 and -1."""
    odd = np.where(np.arange(8) % 2, -1.0, 1.0)
    plain = np.ones((8, 8))
    return np.stack([plain, plain * odd, plain * odd[:, None], odd * odd[:, None]])


def phashes(gray: Image.Image) -> tuple[str, ...]:
    """pHash of a grey picture as it is and in its seven other ORIENTATIONS, 16 hex digits each.

    One transform gives all: mirroring flips the signs of odd columns, turning transposes besides.
    """
    pixels = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    cosines = _cosines()
    # a symmetric picture has true zeros here: unrounded, their bits would be noise of the last float digit
    low = np.round(cosines @ pixels @ cosines.T, 6)  # (8, 8)
    every = np.concatenate([low * _signs(), low.T * _signs()]).reshape(8, 64)
    middle = np.partition(every, (31, 32), axis=1)[:, 31:33].mean(axis=1, keepdims=True)  # the median
    digits = np.packbits(every > middle, axis=1).tobytes().hex()
    return tuple(digits[start : start + 16] for start in range(0, 128, 16))


def dhash(gray: Image.Image) -> str:
    """dHash (is each pixel brighter than the one left of it?) of a grey picture, 16 hex digits."""
    pixels = np.asarray(gray.resize((9, 8), Image.Resampling.LANCZOS))
    return _hex(pixels[:, 1:] > pixels[:, :-1])


def thumb(rgb: Image.Image) -> bytes:
    """8 x 8 RGB pixels, row by row: 192 bytes that tell a red ball from a green one of the same grey."""
    return rgb.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def same_colours(
    one: bytes, other: bytes, *, mirrored: bool = False, orientation: str = "same", limit: float = 0.1
) -> bool:
    """Whether two thumbnails show the same colours, but for an evenly brighter or paler picture.

    Hashes see grey shapes only: without this a green ball is a copy of the red one, and a white page of a
    black one. `orientation` (one of ORIENTATIONS; `mirrored` is short for one) brings the other one to where the
    first lies. `limit` is the root mean square of what is left, in units of the full range.
    """
    a, b = _pixels(one), oriented(_pixels(other), "mirrored" if mirrored else orientation)
    return colour_distance(a, b) <= limit


def oriented(pixels: NDArray[np.float64], orientation: str) -> NDArray[np.float64]:
    """Pixels (height, width, ...) mirrored and turned as one of ORIENTATIONS says."""
    number = ORIENTATIONS.index(orientation)
    if number >= 4:
        pixels = pixels.swapaxes(0, 1)
    if number % 4 in (2, 3):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if number % 2 else pixels


def colour_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Root mean square of b against a, after the best common gain (0.7..1.4) and shift (at most 0.2)."""
    da, db = a - a.mean(), b - b.mean()
    power = float((da * da).sum())
    gain = min(1.4, max(0.7, float((da * db).sum()) / power)) if power > 1e-9 else 1.0
    shift = float(b.mean() - a.mean())
    rest = shift - min(0.2, max(-0.2, shift))
    return float(np.sqrt(((db - gain * da) ** 2).mean() + rest**2))


def _pixels(data: bytes) -> NDArray[np.float64]:
    return np.frombuffer(data, dtype=np.uint8).reshape(THUMB, THUMB, 3) / 255.0


def _hex(bits: NDArray[np.bool_]) -> str:
    return np.packbits(bits.reshape(-1)).tobytes().hex()


def as_integers(hashes: list[str]) -> NDArray[np.uint64]:
    """Hashes of 16 hex digits as 64-bit integers (n,)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8").astype(np.uint64)
