"""One read and one decode give all facts of a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edkit.data.errors import UsageError
from edkit.measure import facts
from edkit.measure.facts import BROKEN, FACTS, USUAL, View, known, measure_file, table


def picture(size: tuple[int, int] = (640, 480), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encoded(im: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    im.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def measured(name: str, view: View) -> object:
    measure = FACTS[name].measure
    assert measure is not None
    return measure(view)


def bits(one: object, other: object) -> int:
    return (int(str(one), 16) ^ int(str(other), 16)).bit_count()


def test_every_fact_of_a_photo_lies_in_its_range(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    measured = [fact for fact in FACTS.values() if fact.measure is not None]
    outcome = measure_file(path, [fact.name for fact in measured])
    assert outcome.broken is None and outcome.unreadable is None
    assert set(outcome.facts) == {fact.key for fact in measured}
    for fact in measured:
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
    for name in ("_opened", "_load"):
        true_one = getattr(facts.image, name)
        monkeypatch.setattr(facts.image, name, lambda *a, _one=true_one, **k: decodes.append(1) or _one(*a, **k))
    measure_file(path, USUAL)
    assert len(decodes) == 2  # one opening, one decoding


def test_header_facts_need_no_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture()))
    monkeypatch.delattr(facts.image, "_load")
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
        values = [measured(name, view) for view in (jpeg, png)]
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
@pytest.mark.parametrize("progressive", [False, True])
def test_half_a_jpeg_is_broken_with_and_without_an_end_mark(
    tmp_path: Path, share: float, end: bytes, progressive: bool
) -> None:
    data = encoded(picture(), quality=90, progressive=progressive)
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


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_table(quality: int) -> None:
    assert measured("jpeg_quality", View(encoded(picture((64, 64)), quality=quality))) == quality
    assert measured("jpeg_quality", View(encoded(picture((64, 64)), "PNG"))) == 0


def test_camera_and_time_come_from_exif_in_one_line() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon\nEOS 5D\0\0junk"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    for format in ("JPEG", "PNG", "WEBP"):
        view = View(encoded(picture((64, 64)), format, exif=exif.tobytes()))
        assert measured("camera", view) == "Canon EOS 5D"
        assert measured("taken", view) == "2024-05-01T12:30:00"
    plain = View(encoded(picture((64, 64))))
    assert (measured("camera", plain), measured("taken", plain)) == ("", "")


def test_a_time_that_never_was_is_not_said() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    assert measured("taken", View(encoded(picture((64, 64)), exif=exif.tobytes()))) == ""


def test_alpha_is_told_from_what_is_stored() -> None:
    assert measured("has_alpha", View(encoded(picture((64, 64)).convert("RGBA"), "PNG"))) == 1
    assert measured("has_alpha", View(encoded(picture((64, 64)), "PNG"))) == 0


def test_the_same_pixels_in_two_files_have_one_pixel_hash() -> None:
    im = picture((200, 150))
    one, other = View(encoded(im, "PNG", compress_level=1)), View(encoded(im, "BMP"))
    assert measured("pixel_hash", one) == measured("pixel_hash", other)
    im.putpixel((199, 149), (1, 2, 3))
    assert measured("pixel_hash", View(encoded(im, "PNG"))) != measured("pixel_hash", one)


def test_a_turned_or_mirrored_copy_has_the_hash_of_its_orientation() -> None:
    im = picture((640, 480), seed=4)
    hashes_of = View(encoded(im, "PNG")).phashes
    turn = Image.Transpose
    ways = (
        *(None, turn.FLIP_LEFT_RIGHT, turn.FLIP_TOP_BOTTOM, turn.ROTATE_180),
        *(turn.TRANSPOSE, turn.ROTATE_270, turn.ROTATE_90, turn.TRANSVERSE),
    )
    for way, hash in zip(ways, hashes_of, strict=True):
        turned = im if way is None else im.transpose(way)
        assert bits(View(encoded(turned, "PNG")).phashes[0], hash) <= 2, way


def test_bars_are_found_and_a_margin_around_a_thing_is_none() -> None:
    framed = Image.new("RGB", (640, 480))
    framed.paste(picture((640, 360)), (0, 60))
    view = View(encoded(framed))
    assert measured("letterbox", view) == pytest.approx(0.25, abs=0.02)
    assert str(measured("bars", view)).split()[0] == "0.0000"
    thing = Image.new("RGB", (640, 480), "white")
    thing.paste(picture((200, 200)), (220, 140))
    assert measured("letterbox", View(encoded(thing))) == 0
    assert measured("letterbox", View(encoded(picture()))) == 0
    assert measured("letterbox", View(encoded(Image.new("RGB", (300, 300))))) == 0


def test_grey_is_told_from_pale_colour() -> None:
    assert measured("greyscale", View(encoded(picture().convert("L")))) == 1
    assert measured("greyscale", View(encoded(picture().convert("L").convert("RGB")))) == 1
    assert measured("greyscale", View(encoded(picture()))) == 0


def test_the_docs_hold_the_table_of_all_facts() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "facts.md"
    assert table() in page.read_text(encoding="utf-8"), (
        "python -c 'from edkit.measure.facts import table; print(table())'"
    )
