"""A little picture of every image, from which copies that were turned or cropped can be told.

It is 64 x 64 grey pixels and 16 x 16 RGB pixels of the whole image, whatever its aspect, kept as a fact of
its content: crops and turns of it are then computed, not decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput
from edkit.data.progress import SILENT, Progress
from edkit.data.workers import Died, spread
from edkit.measure.facts import View

SIDE = 64  # of the grey picture
COLOURS = 16  # side of the coloured one
_FACT = "little/1"
_KEEP_EVERY = 512

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Little:
    """One image in little, both pictures squeezed to squares; `aspect` is width over height as it was."""

    gray: Pixels  # (64, 64)
    rgb: Pixels  # (16, 16, 3)
    aspect: float

    @property
    def mirrored(self) -> Little:
        """Its mirror image."""
        return Little(self.gray[:, ::-1], self.rgb[:, ::-1], self.aspect)


def littles(
    catalog: Catalog,
    files: Mapping[str, Path],
    aspects: Mapping[str, float],
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Little]:
    """The little picture of every content (content id -> a file that holds it); what can't be decoded is left out.

    Made once for each content and kept; an interruption costs little.
    """
    stored = catalog.facts(files, [_FACT])
    jobs = [(id, str(path)) for id, path in files.items() if id not in stored]
    fresh: list[tuple[str, str, bytes]] = []
    try:
        for (id, _), found in spread(_look, jobs, what="looking closer", workers=workers, few=256, progress=progress):
            if isinstance(found, bytes):
                fresh.append((id, _FACT, found))
                stored[id] = {_FACT: found}
            if len(fresh) >= _KEEP_EVERY:
                catalog.put_facts(fresh)
                fresh.clear()
    finally:
        catalog.put_facts(fresh)
    return {
        id: _unpacked(data, aspects[id]) for id in files if isinstance(data := stored.get(id, {}).get(_FACT), bytes)
    }


def of_picture(im: Image.Image) -> Little:
    """The little picture of an open RGB image."""
    return _unpacked(_packed(im), im.width / im.height)


def _look(job: tuple[str, str]) -> bytes | Died:
    try:
        return _packed(View(Path(job[1]).read_bytes()).small)
    except (BadInput, OSError) as error:
        return Died(str(error))


def _packed(im: Image.Image) -> bytes:
    gray = im.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return gray.tobytes() + im.convert("RGB").resize((COLOURS, COLOURS), Image.Resampling.BOX).tobytes()


def _unpacked(data: bytes, aspect: float) -> Little:
    pixels = np.frombuffer(data, dtype=np.uint8)
    return Little(pixels[: SIDE * SIDE].reshape(SIDE, SIDE), pixels[SIDE * SIDE :].reshape(COLOURS, COLOURS, 3), aspect)


# ---- turned by any angle: the disc inside the picture, in polar coordinates

_RINGS, _ANGLES = 12, 96  # 3.75 degrees a step
_WAVES = 10


def turned_pairs(
    pictures: Sequence[Little], *, least: float = 0.9, block: int = 2048
) -> list[tuple[int, int, float, float]]:
    """Pairs left < right of pictures that look alike when one is turned: (left, right, degrees, correlation).

    Degrees count counter-clockwise from left to right, -180..180. Compared is the disc that fits into the
    picture about its centre, so turning must not have scaled it; turns below 8 degrees are not looked for.
    """
    if len(pictures) < 2:
        return []
    discs = np.stack([_polar(one) for one in pictures]).astype(np.float16)  # (N, rings, angles)
    waves = np.stack([_waves(disc) for disc in discs])  # (N, rings * waves)
    found = []
    for start in range(0, len(pictures), block):
        left, right = np.nonzero(waves[start : start + block] @ waves[start:].T >= 0.93)
        later = left < right  # each pair once
        left, right = left[later] + start, right[later] + start
        for at in range(0, len(left), block):
            i, j = left[at : at + block], right[at : at + block]
            steps, correlations = _best_turns(discs[i], discs[j])
            degrees = (steps * 360 / _ANGLES + 180) % 360 - 180
            alike = np.flatnonzero((correlations >= least) & (np.abs(degrees) >= 8)).tolist()
            found += [(int(i[k]), int(j[k]), float(degrees[k]), float(correlations[k])) for k in alike]
    return found


def _waves(polar: NDArray[np.float16]) -> NDArray[np.float32]:
    """What turning doesn't change: how strong each wave around each ring is."""
    waves = np.abs(np.fft.rfft(polar.astype(np.float32), axis=1))[:, :_WAVES].reshape(-1)
    return np.asarray(waves / max(float(np.linalg.norm(waves)), 1e-6), dtype=np.float32)


def _polar(picture: Little) -> NDArray[np.float32]:
    """The disc inside the picture, (rings, angles), mean 0 and length 1."""
    short_x, short_y = min(1.0, 1.0 / picture.aspect), min(1.0, picture.aspect)
    x, y = _circle()
    values = _sampled(picture.gray, SIDE / 2 * (1 + x * short_x) - 0.5, SIDE / 2 * (1 - y * short_y) - 0.5)
    values = values - values.mean()
    values *= _ring_weights()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-3), dtype=np.float32)


@cache
def _circle() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    radii = 0.97 * (np.arange(_RINGS) + 1.0) / _RINGS
    angles = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    return radii[:, None] * np.cos(angles), radii[:, None] * np.sin(angles)


@cache
def _ring_weights() -> NDArray[np.float64]:
    """Each ring counts as its length."""
    return np.sqrt(np.arange(1, _RINGS + 1) / _RINGS)[:, None]


def _sampled(gray: Pixels, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = np.clip(x, 0, SIDE - 1.001), np.clip(y, 0, SIDE - 1.001)
    left, top = x.astype(int), y.astype(int)
    dx, dy = x - left, y - top
    above = gray[top, left] * (1 - dx) + gray[top, left + 1] * dx
    below = gray[top + 1, left] * (1 - dx) + gray[top + 1, left + 1] * dx
    return np.asarray(above * (1 - dy) + below * dy)


def _best_turns(a: NDArray[np.float16], b: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """By how many steps each b (pairs, rings, angles) is its a turned on, and the correlation then."""
    one, other = (np.fft.rfft(discs.astype(np.float32), axis=2) for discs in (a, b))
    products = np.fft.irfft((np.conj(one) * other).sum(axis=1), n=_ANGLES, axis=1)
    best = products.argmax(axis=1)
    return best, products[np.arange(len(best)), best]
