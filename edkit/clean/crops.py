"""Which pictures are a piece of another one: candidates by hashes of many windows, each confirmed by fitting it in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edkit.clean.fingerprints import COLOURS, SIDE, Little, Pixels
from edkit.measure.search import matches_within

_SHARES = (1.0, 0.92, 0.84, 0.76, 0.68)  # of a side that a window spans
_STEP = 0.08  # of a side, from window to window
_RADIUS = 12  # bits between a window's hash and the piece's
_BATCH = 1024  # wholes whose windows are searched at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A picture that shows a part of another one: (left, top, right, bottom) as shares of the whole's sides."""

    whole: int
    piece: int
    box: tuple[float, float, float, float]
    correlation: float  # of the grey pixels, 0..1
    mirrored: bool

    @property
    def share(self) -> float:
        """The piece's share of the whole's area."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@cache
def _windows() -> list[tuple[float, float]]:
    """(start, length) of the windows along one side, as shares of it."""
    found = []
    for share in _SHARES:
        steps = round((1 - share) / _STEP)
        found += [(((1 - share) * k / steps) if steps else 0.0, share) for k in range(steps + 1)]
    return found


@cache
def _transform() -> NDArray[np.float32]:
    """(windows, 8, 64): the first 8 waves of a cosine transform of each window of 64 pixels."""
    rows = []
    k = np.arange(8)[:, None]
    at = (np.arange(SIDE) + 0.5) / SIDE
    for start, share in _windows():
        inside = np.clip((np.arange(SIDE) + 1) / SIDE - start, 0, 1 / SIDE) * SIDE
        inside = np.minimum(inside, np.clip(start + share - np.arange(SIDE) / SIDE, 0, 1 / SIDE) * SIDE)
        rows.append(np.cos(np.pi * k * (at - start) / share) * inside / share)
    return np.stack(rows).astype(np.float32)


def _hashes(grays: Sequence[Pixels], transform: NDArray[np.float32], *, block: int = 64) -> NDArray[np.uint64]:
    """pHash of every window (rows x columns, flat) of each grey picture (64, 64): (pictures * windows,)."""
    count = len(transform)
    waves = transform.reshape(-1, SIDE)  # (windows * 8, 64)
    found = []
    for start in range(0, len(grays), block):
        some = np.stack(grays[start : start + block]).astype(np.float32)  # (B, 64, 64)
        across = (some.reshape(-1, SIDE) @ waves.T).reshape(len(some), SIDE, -1)  # one product for all of them
        low = (across.transpose(0, 2, 1).reshape(-1, SIDE) @ waves.T).reshape(len(some), count, 8, count, 8)
        low = low.transpose(0, 3, 1, 4, 2).reshape(-1, 64)  # picture, row window, column window, row wave, column wave
        middle = np.partition(low, (31, 32), axis=1)[:, 31:33].mean(axis=1, keepdims=True)  # the median
        found.append(np.packbits(low > middle, axis=1).view(">u8").reshape(-1).astype(np.uint64))
    return np.concatenate(found)


def pieces(
    wholes: Sequence[Little], parts: Sequence[Little], *, least: float = 0.93, radius: int = _RADIUS
) -> Iterator[Piece]:
    """Every part (of `parts`) that shows a piece, at least about two thirds by two thirds, of a whole (of `wholes`).

    Found mirrored too. Whole pictures that are alike are found as well, as pieces of share 1.
    """
    if not wholes or not parts:
        return
    whole_only = _transform()[:1]
    straight = _hashes([one.gray for one in parts], whole_only)
    flipped = _hashes([one.gray[:, ::-1] for one in parts], whole_only)
    targets = np.concatenate([straight, flipped])
    count = len(_windows())
    for start in range(0, len(wholes), _BATCH):
        batch = wholes[start : start + _BATCH]
        hashes = _hashes([one.gray for one in batch], _transform())
        near = matches_within(hashes, targets, radius)
        best: dict[tuple[int, int], tuple[int, int]] = {}  # (whole, target) -> (distance, window)
        for left, right, distance in zip(near.left.tolist(), near.right.tolist(), near.distance.tolist(), strict=True):
            key = left // (count * count) + start, right
            best[key] = min(best.get(key, (99, 0)), (distance, left % (count * count)))
        for (whole, target), (_, window) in sorted(best.items()):
            part, mirrored = target % len(parts), target >= len(parts)
            found = _fit(wholes[whole], parts[part].mirrored if mirrored else parts[part], window)
            if found is not None and found[1] >= least:
                yield Piece(whole=whole, piece=part, box=found[0], correlation=found[1], mirrored=mirrored)


def _fit(whole: Little, part: Little, window: int) -> tuple[tuple[float, float, float, float], float] | None:
    """Where the part fits best into the whole near a window, and how well; None where the colours speak against it.

    Correlation of the part with the whole's pixels below it, refined by moving the four edges.
    """
    rows = _windows()
    (top, high), (left, wide) = rows[window // len(rows)], rows[window % len(rows)]
    box = np.array([left, top, left + wide, top + high])
    target = _normal(_shrunk(part.gray))
    score = _score(whole.gray, box, target)
    if score < 0.3:  # of 1,000 true pairs few begin below 0.5, most chance ones do
        return None
    step = 0.04
    while step > 0.008:
        better = False
        for moves in _MOVES:
            tried = np.clip(box + step * np.asarray(moves), 0.0, 1.0)
            if tried[2] - tried[0] < 0.5 or tried[3] - tried[1] < 0.5:
                continue
            now = _score(whole.gray, tried, target)
            if now > score + 1e-4:
                box, score, better = tried, now, True
        if not better:
            step /= 2
            if score < 0.6:  # nothing near fits
                return None
    if not _same_colours(whole.rgb, part.rgb, box):
        return None
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3])), score


_MOVES = (
    *((1, 0, 1, 0), (-1, 0, -1, 0), (0, 1, 0, 1), (0, -1, 0, -1)),  # the box moves
    *((1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0)),  # one edge moves
    *((0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)),
    *((1, 1, -1, -1), (-1, -1, 1, 1)),  # it shrinks, it grows
)
_FINE = 32  # side at which the part is fitted


def _shrunk(gray: Pixels) -> NDArray[np.float32]:
    blocks = gray.reshape(_FINE, SIDE // _FINE, _FINE, SIDE // _FINE)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def _normal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-3), dtype=np.float32)


def _score(gray: Pixels, box: NDArray[np.float64], target: NDArray[np.float32]) -> float:
    """Correlation of the target with the box of the whole, both at 32 x 32."""
    return float((_normal(_cut(gray, box, _FINE)) * target).sum())


def _cut(pixels: Pixels, box: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """A box (shares of the sides) of a square picture, averaged to `side` x `side` (x 3, if it is coloured)."""
    count = len(pixels)
    down, across = _taps(box[1], box[3], side, count), _taps(box[0], box[2], side, count)
    if pixels.ndim == 2:
        return np.asarray(down @ pixels.astype(np.float32) @ across.T)
    return np.stack([down @ pixels[:, :, k].astype(np.float32) @ across.T for k in range(3)], axis=2)


def _taps(low: float, high: float, side: int, count: int) -> NDArray[np.float32]:
    """(side, count): how much each of `count` pixels counts in each of `side` between two shares of the length."""
    number = np.arange(2 * side)  # two taps for each
    at = np.clip((low + (number + 0.5) / (2 * side) * (high - low)) * count - 0.5, 0, count - 1.001)
    left = at.astype(np.int64)
    taps = np.zeros((2 * side, count), dtype=np.float32)
    taps[number, left] = 1 - (at - left)
    taps[number, left + 1] = at - left
    return np.asarray((taps[::2] + taps[1::2]) / 2)


def _same_colours(whole: Pixels, part: Pixels, box: NDArray[np.float64]) -> bool:
    from edkit.measure.hashes import colour_distance

    there = _cut(whole, box, 8) / 255.0
    factor = COLOURS // 8
    mine = part.reshape(8, factor, 8, factor, 3).mean(axis=(1, 3)) / 255.0
    return colour_distance(there.astype(np.float64), mine) <= 0.1
