"""Quality facts say what a person would, whatever the picture's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edkit.measure import quality


def textured(size: int = 480, seed: int = 0) -> Image.Image:
    """Detail of every scale, as a photo has it."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size))
    for cells in (4, 8, 16, 32, 64, 128, 240):
        layer = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        total += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC)) * (4 / cells) ** 0.7
    total = (total - total.min()) / (total.max() - total.min())
    return Image.fromarray((total * 255).astype(np.uint8))


def sharpness(gray: Image.Image) -> float:
    scaled = quality.at_scale(gray)
    return quality.sharpness(np.asarray(scaled), quality.variance(quality.histogram(scaled)))


def test_blur_lowers_sharpness_step_by_step() -> None:
    im = textured()
    values = [sharpness(im.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * values[2]


def test_sharpness_ends_at_0_for_a_blank_page_and_1_for_noise() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 240), dtype=np.uint8))
    assert sharpness(Image.new("L", (240, 240), 90)) == 0.0
    assert sharpness(noise) > 0.95


def test_a_sharp_subject_before_a_blurred_ground_is_sharp() -> None:
    im = textured()
    portrait = im.filter(ImageFilter.GaussianBlur(8))
    portrait.paste(im.crop((120, 120, 360, 360)), (120, 120))
    assert sharpness(portrait) > 0.8 * sharpness(im)


def test_contrast_hardly_changes_sharpness() -> None:
    im = textured()
    pale = im.point(lambda grey: 96 + grey // 4)
    assert sharpness(pale) == pytest.approx(sharpness(im), rel=0.25)


def test_photos_are_sharp_and_blurred_photos_are_not_at_any_size(shared_data: Path) -> None:
    for path in sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:20]:
        im = Image.open(path).convert("L")
        sharp = sharpness(im)
        assert sharp > 0.12
        assert sharpness(im.filter(ImageFilter.GaussianBlur(2))) < 0.1
        half = im.resize((im.width // 2, im.height // 2), Image.Resampling.LANCZOS)
        double = im.resize((im.width * 2, im.height * 2), Image.Resampling.BICUBIC)
        assert sharpness(double) == pytest.approx(sharp, rel=0.25)
        assert sharpness(half) == pytest.approx(sharp, rel=0.35)


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (3, 3), (17, 5), (5000, 3)])
def test_odd_sizes_have_a_sharpness_between_0_and_1(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, size[::-1], dtype=np.uint8)
    assert 0.0 <= sharpness(Image.fromarray(noise)) <= 1.0


def test_brightness_contrast_and_entropy_at_their_ends() -> None:
    black, white = (quality.histogram(Image.new("L", (8, 8), grey)) for grey in (0, 255))
    halves = Image.new("L", (8, 8))
    halves.paste(255, (0, 0, 4, 8))
    half = quality.histogram(halves)
    levels = quality.histogram(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    assert [quality.brightness(shares) for shares in (black, white, half)] == pytest.approx([0, 1, 0.5])
    assert [quality.contrast(shares) for shares in (black, white, half)] == pytest.approx([0, 0, 1])
    assert [quality.entropy(s) for s in (black, half, levels)] == pytest.approx([0, 1, 8])


def test_saturation_is_0_for_grey_and_1_for_pure_colours() -> None:
    def saturation(colour: tuple[int, int, int]) -> float:
        return quality.saturation(quality.chroma(Image.new("RGB", (9, 9), colour)))

    assert saturation((80, 80, 80)) == 0.0
    assert saturation((255, 0, 0)) == 1.0
    assert saturation((255, 204, 204)) == pytest.approx(0.2)
