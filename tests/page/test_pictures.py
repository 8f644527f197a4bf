"""Pictures stand inside the page; small ones keep their pixels, and a file that can't be read says so."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from edkit.page.pictures import Mark, Pair, Picture, Tile, grid, pairs, sheet, thumbnail

from .test_html import HOSTILE, seen  # isort: skip


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def embedded(markup: str) -> list[tuple[Image.Image, dict[str, str | None]]]:
    found = []
    for name, attrs in seen(markup).tags:
        if name == "img":
            kind, data = str(attrs["src"]).split(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            found.append((Image.open(io.BytesIO(base64.b64decode(data))), attrs))
    return found


def test_a_small_picture_keeps_every_pixel_and_is_scaled_by_a_whole_factor() -> None:
    picture = noise(64, 48)
    [(shown, attrs)] = embedded(thumbnail(picture, box=144))
    assert np.array_equal(np.asarray(shown), np.asarray(picture))
    assert (attrs["width"], attrs["height"], attrs["class"]) == ("128", "96", "pixel")


def test_a_large_picture_becomes_a_thumbnail_within_its_box() -> None:
    [(shown, attrs)] = embedded(thumbnail(noise(900, 300), box=150))
    assert shown.format == "JPEG"
    assert (attrs["width"], attrs["height"]) == ("150", "50")
    assert shown.size == (300, 100)


def test_a_very_long_picture_keeps_a_height() -> None:
    [(shown, attrs)] = embedded(thumbnail(noise(3000, 4), box=100))
    assert attrs["height"] == "1" and shown.height >= 1


def test_a_picture_links_to_its_file_from_where_the_page_lies(tmp_path: Path) -> None:
    path = tmp_path / "set" / "a #1 'cat'?.png"
    path.parent.mkdir()
    noise(8, 8).save(path)
    markup = grid([Picture(source=path, caption="a cat")], page_dir=tmp_path / "report")
    [address] = [attrs["href"] for name, attrs in seen(markup).tags if name == "a"]
    assert (tmp_path / "report" / unquote(str(address))).resolve() == path.resolve()


def test_broken_and_missing_files_become_tiles_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    noise(8, 8).save(tmp_path / "good.png")
    names = ("broken.jpg", "missing.jpg", "good.png")
    markup = grid([Picture(source=tmp_path / name) for name in names], page_dir=tmp_path)
    assert markup.count("can&#39;t be read") == 2
    assert len(embedded(markup)) == 1


def test_hostile_captions_stay_captions() -> None:
    def markup(words: str) -> str:
        one = Picture(source=noise(8, 8), caption=words, note=words, badge=words, good=False)
        return grid([one], page_dir=Path()) + pairs(
            [Pair(before=one, after=one, label=words)], page_dir=Path(), before=words, after=words
        )

    plain = [(name, set(attrs)) for name, attrs in seen(markup("plain")).tags]
    for words in HOSTILE:
        assert [(name, set(attrs)) for name, attrs in seen(markup(words)).tags] == plain


def test_a_pair_shows_both_pictures_in_order_and_what_they_share() -> None:
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    markup = pairs([Pair(before=Picture(source=red), after=Picture(source=blue), label="a star")], page_dir=Path())
    assert [shown.getpixel((0, 0)) for shown, _ in embedded(markup)] == [(255, 0, 0), (0, 0, 255)]
    assert seen(markup).text == "beforeaftera star"


def test_the_same_pictures_give_the_same_markup() -> None:
    pictures = [Picture(source=noise(300, 200), caption="x"), Picture(source=noise(20, 20))]
    assert grid(pictures, page_dir=Path()) == grid(pictures, page_dir=Path())


def test_pictures_past_the_first_are_folded_away_and_none_is_lost() -> None:
    shown = [Picture(source=noise(8, 8), caption=f"no. {i}") for i in range(7)]
    few, many = grid(shown[:4], page_dir=Path(), at_first=4), grid(shown, page_dir=Path(), at_first=4)
    assert "<details" not in few
    before, after = many.split("<details", 1)
    assert (before.count("<li>"), after.count("<li>")) == (4, 3)
    assert "The other 3" in after


def test_marks_lie_where_they_were_meant_and_shade_what_is_cut() -> None:
    marks = (
        Mark(box=(0.25, 0, 0.75, 1), kind="keep", label="what stays"),
        Mark(box=(-0.1, 0.5, 0.3, 1.2), label="a head"),
    )
    markup = grid([Picture(source=noise(300, 200), marks=marks)], page_dir=Path())
    tags = seen(markup).tags
    frames = [attrs for name, attrs in tags if name == "rect"]
    assert [(a["x"], a["y"], a["width"], a["height"]) for a in frames] == [
        ("25.00", "0.00", "50.00", "100.00"),
        ("0.00", "50.00", "30.00", "50.00"),
    ]
    [shade] = [str(attrs["d"]) for name, attrs in tags if name == "path"]
    assert shade.startswith("M0 0H100V100H0Z") and "M25.00 0.00V100.00H75.00V0.00Z" in shade
    assert [attrs["aria-label"] for name, attrs in tags if name == "svg"] == ["what stays; a head"]


def test_a_contact_sheet_links_every_picture_and_keeps_odd_names_text(tmp_path: Path) -> None:
    tiles = [Tile(data=b"RIFF", href=tmp_path / f"{n}.jpg", label=words) for n, words in enumerate(HOSTILE)]
    tiles.append(Tile(data=None, href=tmp_path / "javascript:alert(1)", label="broken"))
    tags = seen(sheet(tiles, page_dir=tmp_path)).tags
    assert [name for name, _ in tags] == ["div", *["a"] * len(HOSTILE), "a", "i"]
    assert all(str(attrs["href"]).startswith("./") for name, attrs in tags if name == "a")
    drawn = [attrs for name, attrs in tags if name == "a" and "style" in attrs]
    assert len(drawn) == len(HOSTILE)
    assert all(attrs["style"] == "background-image:url(data:image/webp;base64,UklGRg==)" for attrs in drawn)
    assert all(set(attrs) == {"href", "title", "style"} for attrs in drawn)
