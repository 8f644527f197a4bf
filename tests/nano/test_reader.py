"""The reader is right on at least 99 of 100 drawn pictures, resized and as JPEG too, and says None where nothing is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edkit.nano import reader, world

NUM = 200


def _as_jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)


@pytest.mark.parametrize(("size", "jpeg"), [(64, False), (64, True), (256, False)])
def test_colour_and_shape_are_right_on_drawn_pictures(size: int, jpeg: bool) -> None:
    right, placed = [], []
    for index in range(NUM if size == 64 else NUM // 4):
        scene, picture = world.training_picture(index, 99, size=size)
        reading = reader.read(_as_jpeg(picture) if jpeg else picture)
        right.append(reading.shows(scene))
        placed.append(reading.position == scene.position)
    assert _share(right) >= 0.99
    assert _share(placed) >= 0.99


@pytest.mark.parametrize(("size", "jpeg"), [(64, False), (64, True), (256, False)])
def test_the_subject_is_told_from_plain_members_of_its_class(size: int, jpeg: bool) -> None:
    found, mistaken = [], []
    colours = tuple(world.COLOURS)
    for index in range(NUM // 4):
        picture = world.draw_subject(index, 5, size=size)
        found.append(reader.read(_as_jpeg(picture) if jpeg else picture).subject)
        plain = world.Scene(
            colour=colours[index % len(colours)],
            shape=world.SUBJECT_CLASS,
            background=tuple(world.BACKGROUNDS)[index % len(world.BACKGROUNDS)],
            position="centre",
        )
        picture = world.draw(plain, index, size=size)
        mistaken.append(reader.read(_as_jpeg(picture) if jpeg else picture).subject)
    assert _share(found) >= 0.99
    assert _share(mistaken) <= 0.01


def test_an_empty_ground_and_plain_noise_show_nothing() -> None:
    rng = np.random.default_rng(3)
    for ground in world.BACKGROUNDS:
        picture = world.finish(world.ground_texture(ground, rng, 64), rng)
        assert reader.read(picture).shape is None, ground
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "RGB")
    assert reader.read(noise).shape is None


def test_a_wrong_colour_or_shape_is_no_right_picture() -> None:
    scene = world.Scene(colour="red", shape="star", background="sand", position="left")
    other = world.Scene(colour="red", shape="heart", background="sand", position="left")
    blue = world.Scene(colour="blue", shape="star", background="sand", position="left")
    reading = reader.read(world.draw(scene, 1))
    assert reading.shows(scene)
    assert not reading.shows(other)
    assert not reading.shows(blue)
