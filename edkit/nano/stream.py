"""The pictures nano's VAE learns from: the world, and much more than the world, so that new subjects can be drawn."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from edkit.nano import world
from edkit.nano.world import Floats, Point


def rich_picture(index: int, seed: int, *, size: int = 64) -> Image.Image:
    """Picture number `index` of the stream: a third of it the world, the rest figures of any kind on any ground."""
    rng = world._rng("rich", seed, index)
    if rng.uniform() < 0.35:
        return world.training_picture(index, seed + 1_000_003, size=size)[1]
    picture = _ground(rng, size)
    for _ in range(int(rng.integers(1, 4))):
        picture = _add_figure(picture, rng)
    return world.finish(picture, rng)


def _ground(rng: np.random.Generator, size: int) -> Floats:
    kind = rng.uniform()
    if kind < 0.6:
        ground = world.ground_texture(world._pick(rng, tuple(world.BACKGROUNDS)), rng, size)
        if rng.uniform() < 0.3:
            ground = ground[..., rng.permutation(3)]
        return ground if rng.uniform() < 0.5 else np.ascontiguousarray(ground.transpose(1, 0, 2))
    first, second = _colour(rng), _colour(rng)
    across, down = world._grid(size)
    turn = rng.uniform(0.0, 2.0 * np.pi)
    along = across * np.cos(turn) + down * np.sin(turn)
    if kind < 0.8:
        weight = np.clip(along, 0.0, 1.0)
    else:
        weight = np.clip(0.5 + 2.0 * np.sin(2.0 * np.pi * along * rng.uniform(2.0, 9.0)), 0.0, 1.0)
    return np.asarray(first + (second - first) * weight[..., None], np.float32)


def _colour(rng: np.random.Generator) -> Floats:
    if rng.uniform() < 0.15:
        return np.full(3, rng.choice((15.0, 35.0, 128.0, 225.0, 250.0)), np.float32)
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 1.0), rng.uniform(0.25, 1.0))
    return np.asarray(rgb, np.float32) * 255.0


def _add_figure(picture: Floats, rng: np.random.Generator) -> Floats:
    size = picture.shape[0]
    centre = (float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8)))
    radius = float(rng.uniform(0.1, 0.34))
    points = _random_outline(rng, centre, radius)
    mask = world.polygon_mask(points, size)
    if rng.uniform() < 0.2:
        inner = float(rng.uniform(0.3, 0.7))
        mask = np.clip(mask - world.polygon_mask(_scaled(points, centre, inner), size), 0.0, 1.0)
    colours = _paint(rng, centre, size)
    if rng.uniform() < 0.4:  # an outline of another colour
        rim = _colour(rng) if rng.uniform() < 0.5 else rng.uniform(10.0, 60.0, 3).astype(np.float32)
        core = world.polygon_mask(_scaled(points, centre, float(rng.uniform(0.75, 0.92))), size)[..., None]
        colours = rim + (colours - rim) * core
    picture = picture + (colours - picture) * mask[..., None]
    for _ in range(int(rng.integers(0, 4)) if rng.uniform() < 0.5 else 0):  # spots: eyes, buttons
        spot = (centre[0] + float(rng.normal(0, radius / 3)), centre[1] + float(rng.normal(0, radius / 3)))
        reach = radius * float(rng.uniform(0.08, 0.3))
        outer, inner_colour = _colour(rng), _colour(rng)
        for part, colour in ((1.0, outer), (0.5, inner_colour)):
            dot = world.polygon_mask(world.outline("circle", spot, reach * part, 0.0), size)[..., None]
            picture = picture + (colour - picture) * dot
    return picture.astype(np.float32)


def _scaled(points: list[Point], centre: Point, factor: float) -> list[Point]:
    return [(centre[0] + (x - centre[0]) * factor, centre[1] + (y - centre[1]) * factor) for x, y in points]


def _random_outline(rng: np.random.Generator, centre: Point, radius: float) -> list[Point]:
    if rng.uniform() < 0.4:
        return world.outline(world._pick(rng, world.SHAPES), centre, radius, float(rng.uniform(0.0, 360.0)))
    count = int(rng.integers(3, 13))
    turns = (
        np.sort(rng.uniform(0.0, 2.0 * np.pi, count)) if rng.uniform() < 0.5 else np.arange(count) * 2 * np.pi / count
    )
    reach = rng.uniform(0.4, 1.2, count)
    if rng.uniform() < 0.4:  # a blob: the same points, rounded
        fine = np.linspace(0.0, 2.0 * np.pi, 60, endpoint=False)
        reach = np.interp(fine, turns, reach, period=2.0 * np.pi)
        kernel = np.ones(9) / 9.0
        reach = np.convolve(np.concatenate([reach[-4:], reach, reach[:4]]), kernel, "valid")
        turns = fine
    stretch, lean = rng.uniform(0.5, 1.0), rng.uniform(0.0, 2.0 * np.pi)
    points = []
    for turn, part in zip(turns, reach, strict=True):
        x, y = part * np.cos(turn), stretch * part * np.sin(turn)
        points.append(world._along(centre, float(lean), radius * float(x), radius * float(y)))
    return points


def _paint(rng: np.random.Generator, centre: Point, size: int) -> Floats:
    """Plain, two-coloured, striped, shaded or speckled: (size, size, 3)."""
    first, second = _colour(rng), _colour(rng)
    across, down = world._grid(size)
    turn = rng.uniform(0.0, 2.0 * np.pi)
    along = (across - centre[0]) * np.cos(turn) + (down - centre[1]) * np.sin(turn)
    kind = rng.uniform()
    if kind < 0.35:
        weight = np.zeros((size, size), np.float32)
    elif kind < 0.6:
        weight = np.clip(along * size + 0.5, 0.0, 1.0)
    elif kind < 0.75:
        weight = np.clip(0.5 + 2.0 * np.sin(2.0 * np.pi * along * rng.uniform(4.0, 14.0)), 0.0, 1.0)
    elif kind < 0.9:
        weight = np.clip(0.5 + 2.0 * along, 0.0, 1.0)
    else:
        weight = np.clip(0.5 + 0.5 * world.noise_field(rng, size, int(rng.integers(4, 32))), 0.0, 1.0)
    speckle = 1.0 + 0.05 * world.noise_field(rng, size, 24)[..., None]
    return np.asarray((first + (second - first) * weight[..., None]) * speckle, np.float32)
