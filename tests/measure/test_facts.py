"""One read and one decode give all facts of a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edkit.data.errors import UsageError
from edkit.measure import facts
from edkit.measure.facts import BROKEN, FACTS, View, known, measure_file


def picture(size: tuple[int, int] = (640, 480), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encoded(im: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    im.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def bits(one: object, other: object) -> int:
    return (int(str(one), 16) ^ int(str(other), 16)).bit_count()


def test_every_fact_of_a_photo_lies_in_its_range(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    outcome = measure_file(path, FACTS)
    assert outcome.broken is None and outcome.unreadable is None
    assert set(outcome.facts) == {fact.key for fact in FACTS.values()}
    for fact in FACTS.values():
        low, _, high = fact.range.partition("..")
        value = outcome.facts[fact.key]
        if fact.text or not fact.range:
            assert isinstance(value, str | bytes)
            continue
        assert isinstance(value, int | float)
        assert value >= float(low)
        assert not high or value <= float(high)


def test_one_decode_serves_all_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    decodes = []
    true_open = facts.image.open_image
    monkeypatch.setattr(facts.image, "open_image", lambda *a, **k: decodes.append(1) or true_open(*a, **k))
    measure_file(path, FACTS)
    assert len(decodes) == 1


def test_header_facts_need_no_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    monkeypatch.delattr(facts.image, "open_image")
    found = measure_file(path, ["width", "height", "format"]).facts
    assert found == {"width/1": 640, "height/1": 480, "format/1": "JPEG"}


def test_width_and_height_are_as_seen_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), exif=exif))
    found = measure_file(path, ["width", "height", "orientation", "aspect"]).facts
    assert found == {"width/1": 480, "height/1": 640, "orientation/1": 6, "aspect/1": 0.75}


@pytest.mark.parametrize("size", [(1600, 1200), (640, 480), (300, 200)])
def test_a_jpeg_and_a_png_of_one_picture_measure_alike(size: tuple[int, int]) -> None:
    im = picture(size)
    jpeg, png = View(encoded(im, quality=95)), View(encoded(im, "PNG"))
    assert jpeg.rgb.size == png.rgb.size
    assert bits(jpeg.phashes[0], png.phashes[0]) <= 2
    for name in ("sharpness", "brightness", "contrast", "saturation"):
        values = [FACTS[name].measure(view) for view in (jpeg, png)]
        assert values[0] == pytest.approx(values[1], rel=0.05, abs=0.01)


def test_a_resized_copy_has_nearly_the_same_hash() -> None:
    im = picture((1600, 1200))
    small = im.resize((400, 300), Image.Resampling.LANCZOS)
    assert bits(View(encoded(im)).phashes[0], View(encoded(small)).phashes[0]) <= 2


def test_what_is_no_image_is_one_fact(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"<html>not found</html>")
    outcome = measure_file(path, ["width"])
    assert outcome.broken
    assert outcome.facts == {BROKEN: outcome.broken}
    assert "\n" not in outcome.broken


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_half_a_jpeg_is_broken_with_and_without_an_end_mark(tmp_path: Path, share: float, end: bytes) -> None:
    data = encoded(picture(), quality=90)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: int(len(data) * share)] + end)
    assert measure_file(path, ["phash"]).broken


def test_a_cut_png_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG")[:-40])
    assert measure_file(path, ["phash"]).broken


def test_a_picture_that_ends_in_one_colour_is_whole(tmp_path: Path) -> None:
    im = picture()
    im.paste("white", (0, 300, 640, 480))
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(im))
    assert measure_file(path, ["phash"]).broken is None


def test_a_file_that_is_not_there_is_no_fact_of_any_content(tmp_path: Path) -> None:
    outcome = measure_file(tmp_path / "none.jpg", ["width"])
    assert outcome.facts == {}
    assert outcome.unreadable == "no such file or directory"


def test_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    assert "pixels" in str(measure_file(path, ["phash"], max_pixels=1000).broken)


def test_an_unknown_fact_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean sharpness"):
        known(["sharpnes"])
