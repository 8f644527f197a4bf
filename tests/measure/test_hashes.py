"""The hashes are imagehash's, and colours tell apart what grey hashes can't."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from edkit.measure import hashes


def grain(seed: int, size: tuple[int, int] = (150, 110)) -> Image.Image:
    """A smooth random picture: nothing in it is symmetric."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return cells.resize(size, Image.Resampling.BICUBIC)


def ball(colour: str, ground: str = "#808080") -> Image.Image:
    im = Image.new("RGB", (128, 128), ground)
    ImageDraw.Draw(im).ellipse((40, 30, 90, 80), fill=colour)
    return im


@pytest.mark.parametrize("seed", range(8))
def test_values_are_imagehashs(seed: int) -> None:
    gray = grain(seed).convert("L")
    direct, mirror = hashes.phashes(gray)[:2]
    assert direct == str(imagehash.phash(gray))
    assert mirror == str(imagehash.phash(ImageOps.mirror(gray)))
    assert hashes.dhash(gray) == str(imagehash.dhash(gray))


def test_values_are_imagehashs_on_photos(shared_data: Path) -> None:
    for path in sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:20]:
        gray = Image.open(path).convert("L")
        assert hashes.phashes(gray)[0] == str(imagehash.phash(gray))
        assert hashes.dhash(gray) == str(imagehash.dhash(gray))


def test_a_symmetric_picture_equals_its_mirror_to_the_bit() -> None:
    im = grain(3, (64, 64)).convert("L")
    both = Image.new("L", (128, 64))
    both.paste(im, (0, 0))
    both.paste(ImageOps.mirror(im), (64, 0))
    assert len(set(hashes.phashes(both)[:2])) == 1


def test_integers_keep_every_bit() -> None:
    texts = ["0000000000000001", "ffffffffffffffff", "8000000000000000"]
    assert hashes.as_integers(texts).tolist() == [int(text, 16) for text in texts]
    assert hashes.as_integers([]).tolist() == []


def test_a_red_and_a_green_ball_of_one_grey_differ_in_colour() -> None:
    red, green = ball("#c04040"), ball("#207f20")
    assert not hashes.same_colours(hashes.thumb(red), hashes.thumb(green))


def test_white_and_black_pages_differ_in_colour() -> None:
    white, black = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64))
    assert not hashes.same_colours(hashes.thumb(white), hashes.thumb(black))
    assert hashes.same_colours(hashes.thumb(white), hashes.thumb(white))


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_a_brighter_or_darker_copy_has_the_same_colours(factor: float) -> None:
    im = grain(5)
    assert hashes.same_colours(hashes.thumb(im), hashes.thumb(ImageEnhance.Brightness(im).enhance(factor)))


def test_a_mirrored_copy_has_the_same_colours_only_when_mirrored() -> None:
    one, other = hashes.thumb(grain(6)), hashes.thumb(ImageOps.mirror(grain(6)))
    assert hashes.same_colours(one, other, mirrored=True)
    assert not hashes.same_colours(one, other)


@pytest.mark.parametrize("number", range(8))
def test_a_turned_copy_has_the_same_colours_when_turned_back(number: int) -> None:
    turn = Image.Transpose
    ways = (
        *(None, turn.FLIP_LEFT_RIGHT, turn.FLIP_TOP_BOTTOM, turn.ROTATE_180),
        *(turn.TRANSPOSE, turn.ROTATE_270, turn.ROTATE_90, turn.TRANSVERSE),
    )
    im, way = grain(6), ways[number]
    turned = im if way is None else im.transpose(way)
    assert hashes.same_colours(hashes.thumb(turned), hashes.thumb(im), orientation=hashes.ORIENTATIONS[number])
    assert number == 0 or not hashes.same_colours(hashes.thumb(turned), hashes.thumb(im))
