"""Large pictures become small ones under their own captions, and all of it can be undone to the byte."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from edkit.clean.compress import Compressed, compress
from edkit.clean.files import list_images
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import UsageError
from edkit.data.journal import undo, why

Draw = Callable[..., Path]


def files(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and ".edkit" not in p.parts
    }


def reasons(result: Compressed) -> dict[str, str]:
    return {path.name: why for path, why in result.left}


def test_a_large_picture_is_scaled_down_and_keeps_its_caption(tmp_path: Path, draw: Draw) -> None:
    draw("a dog_(1).png", 1, (1200, 900))
    (tmp_path / "a dog_(1).txt").write_text("a dog, sunny", encoding="utf-8")
    draw("small.webp", 2, (200, 150))
    result = compress(tmp_path, max_mp=0.25)
    assert sorted(files(tmp_path)) == ["a dog_(1).txt", "a dog_(1).webp", "small.webp"]
    with Image.open(tmp_path / "a dog_(1).webp") as im:
        assert im.width * im.height <= 250_000
        assert abs(im.width / im.height - 4 / 3) < 0.01
    (one,) = result.smaller
    assert (one.size, one.new_size) == ((1200, 900), im.size)
    assert one.new_bytes == (tmp_path / "a dog_(1).webp").stat().st_size < one.num_bytes
    assert reasons(result) == {"small.webp": "small enough already"}


def test_undo_brings_back_every_byte_and_time(tmp_path: Path, draw: Draw) -> None:
    for seed in range(3):
        path = draw(f"{seed}.png", seed, (600, 400))
        os.utime(path, (1_000_000 + seed, 1_000_000 + seed))
    (tmp_path / "0.txt").write_text("a caption", encoding="utf-8")
    before, times = files(tmp_path), {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    compress(tmp_path, max_mp=0.1)
    assert sorted(files(tmp_path)) == ["0.txt", "0.webp", "1.webp", "2.webp"]
    assert (tmp_path / "1.webp").stat().st_mtime_ns == times["1.png"]
    undo(tmp_path)
    assert files(tmp_path) == before
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")} == times
    again = compress(tmp_path, max_mp=0.1)
    assert len(again.smaller) == 3


def test_keep_writes_under_the_same_name(tmp_path: Path, draw: Draw) -> None:
    draw("a.jpg", 1, (800, 600))
    draw("b.PNG", 2, (800, 600))
    draw("c.bmp", 3, (800, 600))
    before = files(tmp_path)
    result = compress(tmp_path, max_mp=0.1, format="keep")
    assert sorted(files(tmp_path)) == ["a.jpg", "b.PNG", "c.bmp"]
    assert {one.to.name for one in result.smaller} == {"a.jpg", "b.PNG"}
    assert "BMP is not written anew" in reasons(result)["c.bmp"]
    for name in ("a.jpg", "b.PNG"):
        with Image.open(tmp_path / name) as im:
            assert im.width * im.height <= 100_000
    undo(tmp_path)
    assert files(tmp_path) == before


def test_orientation_and_profile_are_baked_in(tmp_path: Path) -> None:
    im = Image.new("RGB", (400, 300), (200, 30, 30))
    im.paste((30, 30, 200), (0, 0, 400, 150))  # blue above red as stored
    exif = Image.Exif()
    exif[0x0112], exif[0x8298], exif[0x8825] = 6, "somebody", {1: "N"}
    im.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    lab = Image.new("RGB", (400, 300), (120, 200, 80))
    lab.save(tmp_path / "wide gamut.png", icc_profile=_swapped())
    compress(tmp_path, max_mp=0.05)
    with Image.open(tmp_path / "turned.webp") as out:
        assert out.height > out.width
        assert out.getexif().get(0x0112, 1) == 1
        assert out.getexif()[0x8298] == "somebody"
        assert 0x8825 not in out.getexif()  # the place it was taken
        left, right = out.convert("RGB").getpixel((5, 50)), out.convert("RGB").getpixel((out.width - 5, 50))
    assert left[0] > 150 and right[2] > 150  # type: ignore[index]
    with Image.open(tmp_path / "wide gamut.webp") as out:
        assert not out.info.get("icc_profile")
        red, green, blue = out.convert("RGB").getpixel((20, 20))  # type: ignore[misc]
    want = ImageCms.profileToProfile(
        lab, ImageCms.ImageCmsProfile(io.BytesIO(_swapped())), ImageCms.createProfile("sRGB")
    )
    assert want is not None
    assert np.abs(np.subtract((red, green, blue), want.getpixel((20, 20)))).max() <= 3  # type: ignore[arg-type]
    assert (red, green, blue) != (120, 200, 80)


def _swapped() -> bytes:
    """An RGB profile that is not sRGB: sRGB's own with its red and green primaries' names swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace(b"s\0R\0G\0B", b"o\0d\0d\0!").replace(b"sRGB", b"odd!")


def test_turned_but_small_pictures_are_rewritten_only_when_asked(tmp_path: Path, draw: Draw) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(draw("x.png", 1, (300, 200))) as im:
        im.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "x.png").unlink()
    assert compress(tmp_path, format="keep", dry_run=True).smaller == ()
    compress(tmp_path, format="keep", bake=True)
    with Image.open(tmp_path / "turned.jpg") as out:
        assert out.size == (200, 300)
        assert ImageOps.exif_transpose(out).size == (200, 300)


def test_transparency_survives_where_the_format_holds_it(tmp_path: Path) -> None:
    im = Image.new("RGBA", (400, 400), (255, 0, 0, 0))
    im.paste((0, 0, 255, 255), (100, 100, 300, 300))
    im.save(tmp_path / "a.png", compress_level=0)
    compress(tmp_path, max_mp=0.04)
    with Image.open(tmp_path / "a.webp") as out:
        assert out.mode == "RGBA"
        assert out.getpixel((2, 2))[3] == 0  # type: ignore[index]
    undo(tmp_path)
    compress(tmp_path, max_mp=0.04, format="jpeg")
    with Image.open(tmp_path / "a.jpg") as out:
        assert min(out.getpixel((2, 2))) > 245  # type: ignore[arg-type]


def test_what_is_special_or_would_grow_is_left_with_its_reason(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (300, 300), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    Image.fromarray(np.arange(90_000, dtype=np.uint16).reshape(300, 300)).save(tmp_path / "deep.png")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "coarse.jpg", quality=5)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    before = files(tmp_path)
    result = compress(tmp_path, max_mp=0.15, quality=100)
    assert files(tmp_path) == before
    left = reasons(result)
    assert left["moving.gif"] == "animated (3 frames)" and left["moving.webp"] == "animated (3 frames)"
    assert "more than 8 bits" in left["deep.png"]
    assert "would not become smaller" in left["coarse.jpg"]
    assert [Path(one.where).name for one in result.broken] == ["broken.png"]
    assert result.operation is None


def test_one_picture_that_no_file_can_hold_stops_no_other(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1, (600, 400))
    Image.new("RGB", (20_000, 64)).save(tmp_path / "wide.png")
    frame = Image.new("RGB", (300, 300), "red")
    frame.save(tmp_path / "cut.gif", save_all=True, append_images=[Image.new("RGB", (300, 300), "blue")])
    whole = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: whole.rindex(b",") + 4])
    result = compress(tmp_path)
    assert [one.path.name for one in result.smaller] == ["a.png"]
    assert "can't be written as WEBP: " in reasons(result)["wide.png"]


def test_noise_becomes_a_jpeg_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (one,) = compress(tmp_path, format="jpeg").smaller
    with Image.open(one.to) as im:
        assert im.format == "JPEG" and im.size == (700, 700)


def test_taken_names_are_left_and_named(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1, (600, 400))
    draw("a.bmp", 2, (600, 400))
    draw("b.png", 3, (600, 400))
    draw("b.webp", 4, (100, 80))
    result = compress(tmp_path, max_mp=0.1)
    left = reasons(result)
    assert left["b.png"] == "b.webp is taken by b.webp"
    assert left["a.png"] == "a.webp is taken by a.bmp"
    assert sorted(files(tmp_path)) == ["a.png", "a.webp", "b.png", "b.webp"]


def test_equal_files_are_made_once_and_each_gets_its_own(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1, (600, 400))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    compress(tmp_path, max_mp=0.1)
    found = files(tmp_path)
    assert sorted(found) == ["a.webp", "b.webp"]
    assert found["a.webp"] == found["b.webp"]


def test_the_author_is_still_known_afterwards(tmp_path: Path, draw: Draw) -> None:
    path = draw("a dog_(1).png", 1, (600, 400))
    with Catalog.open(tmp_path) as catalog:
        sha = catalog.content_ids([path])[path]
        row = LedgerRow(
            outcome="ok", url="https://example.org/dog.png", sha256=sha, author="Ann", licence="CC BY 4.0", path=path
        )
        catalog.ledger_add([row])
    compress(tmp_path, max_mp=0.1)
    compress(tmp_path, max_mp=0.05, format="jpeg")
    last = tmp_path / "a dog_(1).jpg"
    told = why(last)
    assert any("licence CC BY 4.0, by Ann" in sentence for sentence in told.sentences)
    assert not any("other content" in sentence for sentence in told.sentences)
    assert any("compressed into a dog_(1).jpg" in sentence for sentence in told.sentences)
    with Catalog.open(tmp_path, write=False) as catalog:
        new = catalog.content_ids([last])[last]
        assert new != sha
        assert catalog.origin(new) == sha
        assert catalog.origin("0" * 64) == "0" * 64


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1, (600, 400))
    before = files(tmp_path)
    dry = compress(tmp_path, max_mp=0.1, dry_run=True)
    assert files(tmp_path) == before and not (tmp_path / ".edkit").exists()
    assert dry.smaller == compress(tmp_path, max_mp=0.1).smaller


def test_killed_in_the_middle_the_same_command_goes_on(tmp_path: Path, draw: Draw) -> None:
    for seed in range(8):
        draw(f"{seed}.png", seed, (400, 300))
        (tmp_path / f"{seed}.txt").write_text(f"caption {seed}", encoding="utf-8")
    before = files(tmp_path)
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from edkit.clean import compress as room\n"
        "made = room._make\n"
        "count = 0\n"
        "def _make(job):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made(job)\n"
        "room._make = _make\n"
        f"room.compress(Path({str(tmp_path)!r}), max_mp=0.05, workers=1)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert files(tmp_path) == before
    staged = {p.name: p.stat().st_ino for p in (tmp_path / ".edkit" / "cache" / "compress").iterdir()}
    assert len(staged) == 4
    result = compress(tmp_path, max_mp=0.05)
    assert len(result.smaller) == 8
    assert set(staged.values()) <= {p.stat().st_ino for p in tmp_path.glob("*.webp")}  # not made twice
    assert not list((tmp_path / ".edkit" / "cache" / "compress").iterdir())
    undo(tmp_path)
    assert files(tmp_path) == before


def test_what_undo_leaves_in_a_visible_state_folder_is_no_image_of_the_set(tmp_path: Path, draw: Draw) -> None:
    path = draw("a.png", 1, (400, 300))
    state = tmp_path / "state"
    compress(tmp_path, max_mp=0.05, state_dir=state)
    undo(tmp_path, state_dir=state)
    assert list_images([tmp_path]).images == (path,)


def test_many_files_are_spread_over_processes(tmp_path: Path, draw: Draw) -> None:
    for seed in range(9):
        draw(f"{seed}.png", seed, (300, 200))
    assert len(compress(tmp_path, max_mp=0.03, workers=2).smaller) == 9


@pytest.mark.parametrize("options", [{"max_mp": 0.0}, {"quality": 0}, {"quality": 101}, {"format": "tga"}])
def test_wrong_settings_are_told_before_anything_is_read(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        compress(tmp_path, **options)  # type: ignore[arg-type]
    assert not (tmp_path / ".edkit").exists()
