"""Tells what a picture of nano's world shows, by plain image analysis: no part of it is learned or asks the model."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edkit.nano import world
from edkit.nano.world import Floats

Mask = NDArray[np.bool_]

READ_SIZE = 64  # pixels a side at which a picture is read
_CANVAS = 40  # side of the canvas on which shapes are compared
_SPREAD = 9.0  # root mean square distance from the centroid to which shapes are scaled on it
_FLOOR = 16.0  # least difference of chroma from the ground, in levels of 255
_DARK = 0.64  # of the ground's luma: darker than this is no ground
_LEAST_AREA = 0.012  # of the picture: less is no object
_LEAST_MATCH = 0.62  # overlap (intersection over union) below which a shape has no name
_LEAST_SHARE = 0.6  # of the object's pixels: what one colour must hold to be its colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a picture shows; a part that can't be told is None.

    `match` is the overlap of the object with the best shape (0..1), `margin` its lead over the next shape, and
    `share` the part of the object that has the named colour. `subject` means nano's made-up subject, a two-coloured
    star; its colour then is the more frequent of the two. `position` is where the object's centre lies.
    """

    colour: str | None
    shape: str | None
    subject: bool
    position: str | None
    match: float
    margin: float
    share: float
    area: float

    def shows(self, scene: world.Scene) -> bool:
        """True when the picture shows what the scene asks for: the subject, or the right colour and shape."""
        if scene.subject:
            return self.subject
        return self.colour == scene.colour and self.shape == scene.shape and not self.subject


_NOTHING = Reading(colour=None, shape=None, subject=False, position=None, match=0.0, margin=0.0, share=0.0, area=0.0)


def read(image: Image.Image) -> Reading:
    """Reads a picture of any size: finds the object against its ground, then its colours and its shape."""
    picture = image.convert("RGB")
    if picture.size != (READ_SIZE, READ_SIZE):
        picture = picture.resize((READ_SIZE, READ_SIZE), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, np.float32)
    mask = find_object(pixels)
    area = float(mask.mean())
    if area < _LEAST_AREA:
        return _NOTHING
    shares = _colour_shares(pixels, mask)
    halves = [shares[name] for name in world.SUBJECT_COLOURS]
    two_coloured = min(halves) > 0.14 and sum(halves) > 0.6
    if two_coloured:  # eyes, an outline and the border between the halves leave gaps
        mask = _closed(_with_dark_rim(pixels, mask))
    filled = _fill_small_holes(mask)
    scores = _match_shapes(filled)
    ranked = sorted(scores, key=lambda name: -scores[name])
    best, match, margin = ranked[0], scores[ranked[0]], scores[ranked[0]] - scores[ranked[1]]
    colour = max(shares, key=lambda name: shares[name])
    subject = two_coloured and best == world.SUBJECT_CLASS and match >= _LEAST_MATCH
    return Reading(
        colour=colour if shares[colour] >= _LEAST_SHARE or subject else None,
        shape=best if match >= _LEAST_MATCH else None,
        subject=subject,
        position=_position(filled),
        match=match,
        margin=margin,
        share=shares[colour],
        area=area,
    )


# --- the object against its ground ------------------------------------------------------------------------------------


def _chroma(pixels: Floats) -> Floats:
    """The two colour differences of each pixel (BT.601 Cb and Cr around 0): (H, W, 2)."""
    luma = pixels @ np.asarray((0.299, 0.587, 0.114), np.float32)
    return np.stack([(pixels[..., 2] - luma) * 0.564, (pixels[..., 0] - luma) * 0.713], -1).astype(np.float32)


def find_object(pixels: Floats) -> Mask:
    """Marks the pixels whose chroma differs from the border's by at least half as much as their neighbourhood's most.

    pixels (64, 64, 3), 0..255 => (64, 64). Small specks are left out.
    """
    chroma = _smooth(_chroma(pixels))
    border = np.concatenate([chroma[:3].reshape(-1, 2), chroma[-3:].reshape(-1, 2), chroma[3:-3, :3].reshape(-1, 2),
                             chroma[3:-3, -3:].reshape(-1, 2)])  # fmt: skip
    difference = np.sqrt(np.square(chroma - np.median(border, axis=0)).sum(-1))
    strongest = float(np.sort(difference, axis=None)[-60:].mean())
    floor = max(_FLOOR, 0.35 * strongest)
    local = _spread_maximum(difference, 4)
    return _keep_large((difference > floor) & (difference > 0.5 * local))


def _with_dark_rim(pixels: Floats, mask: Mask) -> Mask:
    """Adds what lies close to the object and is darker than any ground: outlines, pupils (they have no chroma)."""
    luma = pixels @ np.asarray((0.299, 0.587, 0.114), np.float32)
    border = np.concatenate([luma[:3].ravel(), luma[-3:].ravel(), luma[:, :3].ravel(), luma[:, -3:].ravel()])
    dark = luma < _DARK * np.median(border)
    near = _spread_maximum(mask.astype(np.float32), 2) > 0
    return np.asarray(mask | (dark & near), np.bool_)


def _closed(mask: Mask) -> Mask:
    """Closes gaps up to two pixels wide: grown by one pixel, then shrunk by one."""
    grown = _spread_maximum(mask.astype(np.float32), 1)
    return -_spread_maximum(-grown, 1) > 0.5


def _smooth(values: Floats) -> Floats:
    """A light blur (1 4 1) along both axes, against the sensor's noise."""
    for axis in (0, 1):
        width = [(1, 1) if a == axis else (0, 0) for a in range(values.ndim)]
        padded = np.pad(values, width, mode="edge")
        length = values.shape[axis]
        before, here, after = (np.take(padded, range(i, i + length), axis) for i in range(3))
        values = ((before + 4.0 * here + after) / 6.0).astype(np.float32)
    return values


def _spread_maximum(values: Floats, reach: int) -> Floats:
    """The maximum over a square of 2 reach + 1 pixels around each."""
    for axis in (0, 1):
        width = [(reach, reach) if a == axis else (0, 0) for a in range(2)]
        padded = np.pad(values, width, mode="edge")
        length = values.shape[axis]
        values = np.max([np.take(padded, range(i, i + length), axis) for i in range(2 * reach + 1)], axis=0)
    return values


def _components(mask: Mask) -> tuple[NDArray[np.int32], list[int]]:
    """Numbers the 4-connected parts of a mask from 1 on and returns their sizes."""
    labels = np.zeros(mask.shape, np.int32)
    sizes: list[int] = []
    height, width = mask.shape
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        number = len(sizes) + 1
        labels[start] = number
        stack = [(int(start[0]), int(start[1]))]
        count = 0
        while stack:
            y, x = stack.pop()
            count += 1
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= v < height and 0 <= u < width and mask[v, u] and not labels[v, u]:
                    labels[v, u] = number
                    stack.append((v, u))
        sizes.append(count)
    return labels, sizes


def _keep_large(mask: Mask) -> Mask:
    labels, sizes = _components(mask)
    if not sizes:
        return mask
    least = 0.15 * max(sizes)
    return np.isin(labels, [number for number, size in enumerate(sizes, 1) if size >= least])


def _fill_small_holes(mask: Mask) -> Mask:
    """Closes holes smaller than an eighth of the object (eyes, noise); the hole of a ring is larger."""
    labels, sizes = _components(~mask)
    limit = 0.125 * float(mask.sum())
    edge = set(np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])).tolist())
    small = [number for number, size in enumerate(sizes, 1) if size < limit and number not in edge]
    return mask | np.isin(labels, small)


def _position(mask: Mask) -> str | None:
    down, across = (np.mean(index) / READ_SIZE for index in np.nonzero(mask))
    near = min(world.POSITIONS, key=lambda name: np.hypot(*(np.subtract(world.CENTRES[name], (across, down)))))
    return near if np.hypot(*np.subtract(world.CENTRES[near], (across, down))) < 0.12 else None


# --- shape ------------------------------------------------------------------------------------------------------------


def _on_canvas(mask: Floats) -> Floats:
    """Moves a mask's centroid to the middle of the canvas and scales its spread, as one flat vector."""
    down, across = np.nonzero(mask > 0.5)
    y, x = float(down.mean()), float(across.mean())
    spread = float(np.sqrt(np.square(down - y).mean() + np.square(across - x).mean()))
    scale = max(spread, 1.0) / _SPREAD
    half = _CANVAS / 2.0
    matrix = (scale, 0.0, x + 0.5 - half * scale, 0.0, scale, y + 0.5 - half * scale)
    canvas = Image.fromarray(mask.astype(np.float32), "F").transform(
        (_CANVAS, _CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(canvas, np.float32).ravel()


@cache
def _templates() -> tuple[tuple[str, ...], Floats]:
    """Every shape of the world, turned in steps of 4 degrees: names (T,), canvases (T, P)."""
    names, canvases = [], []
    for shape in world.SHAPES:
        for angle in (0,) if shape in ("circle", "ring") else range(-24, 25, 4):
            mask = world.shape_mask(shape, (0.5, 0.5), 0.3, float(angle), READ_SIZE)
            names.append(shape)
            canvases.append(_on_canvas(mask))
    return tuple(names), np.stack(canvases)


def _match_shapes(mask: Mask) -> dict[str, float]:
    """The best overlap (intersection over union, 0..1) with each shape of the world."""
    names, templates = _templates()
    canvas = _on_canvas(mask.astype(np.float32))
    overlap = np.minimum(templates, canvas).sum(1) / np.maximum(templates, canvas).sum(1)
    scores = dict.fromkeys(world.SHAPES, 0.0)
    for name, value in zip(names, overlap.tolist(), strict=True):
        scores[name] = max(scores[name], value)
    return scores


# --- colour -----------------------------------------------------------------------------------------------------------


@cache
def _hues() -> tuple[tuple[str, ...], Floats]:
    names = tuple(world.COLOURS)
    turns = [colorsys.rgb_to_hsv(*(level / 255.0 for level in world.COLOURS[name]))[0] for name in names]
    return names, np.asarray(turns, np.float32)


def _colour_shares(pixels: Floats, mask: Mask) -> dict[str, float]:
    """The part of the object that is nearest in hue to each colour; its rim, mixed with the ground, doesn't vote."""
    core = mask.copy()
    core[1:] &= mask[:-1]
    core[:-1] &= mask[1:]
    core[:, 1:] &= mask[:, :-1]
    core[:, :-1] &= mask[:, 1:]
    if core.sum() < 0.25 * mask.sum():
        core = mask
    rgb = pixels[core]
    most, least = rgb.max(1), rgb.min(1)
    chroma = np.maximum(most - least, 1.0)
    red, green, blue = rgb.T
    turn = np.where(
        most == red,
        (green - blue) / chroma,
        np.where(most == green, 2.0 + (blue - red) / chroma, 4.0 + (red - green) / chroma),
    )
    hue = (turn / 6.0) % 1.0
    names, known = _hues()
    distance = np.abs(hue[:, None] - known[None])
    nearest = np.minimum(distance, 1.0 - distance).argmin(1)
    return {name: float((nearest == index).mean()) for index, name in enumerate(names)}
