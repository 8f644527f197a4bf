"""What stands in both sets is found however it was edited, little else is, and moving it can be undone."""

from __future__ import annotations

import io
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from edkit.clean.crops import pieces
from edkit.clean.fingerprints import Little, of_picture
from edkit.clean.overlap import Overlap, overlap
from edkit.data.errors import UsageError
from edkit.data.journal import undo, why

Draw = Callable[..., Path]


def hows(result: Overlap) -> dict[str, tuple[str, str]]:
    return {pair.path.name: (pair.how, pair.train.name) for pair in result.shared}


def recompressed(im: Image.Image, quality: int = 60) -> Image.Image:
    buffer = io.BytesIO()
    im.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.fixture
def sets(tmp_path: Path, draw: Draw) -> tuple[Path, Path]:
    for seed in range(3):
        draw(f"train/{seed}.png", seed, (400, 300))
    shutil.copytree(tmp_path / "train", tmp_path / "copied")
    (tmp_path / "pool").mkdir()
    shutil.copy(tmp_path / "train" / "0.png", tmp_path / "pool" / "same.png")
    draw("pool/small.png", 1, (200, 150), f=recompressed)
    draw("pool/flipped.png", 2, (200, 150), f=ImageOps.mirror)
    draw("pool/cropped.png", 1, (400, 300), f=lambda im: im.crop((60, 40, 390, 280)))
    draw("pool/flipped crop.png", 2, (400, 300), f=lambda im: ImageOps.mirror(im.crop((10, 30, 330, 270))))
    draw("pool/other.png", 7)
    (tmp_path / "pool" / "small.txt").write_text("a caption", encoding="utf-8")
    return tmp_path / "train", tmp_path / "pool"


def test_copies_of_every_kind_are_found_and_nothing_else(sets: tuple[Path, Path]) -> None:
    result = overlap(*sets)
    assert hows(result) == {
        "same.png": ("same bytes", "0.png"),
        "small.png": ("near-duplicate", "1.png"),
        "flipped.png": ("mirrored", "2.png"),
        "cropped.png": ("crop", "1.png"),
        "flipped crop.png": ("mirrored crop", "2.png"),
    }
    cropped = next(pair for pair in result.shared if pair.how == "crop")
    assert cropped.share == pytest.approx(330 * 240 / 120_000, abs=0.03)
    assert cropped.reason.startswith("it shows 6")
    assert (result.num_train, result.num_preservation, result.num_moved) == (3, 6, 0)
    assert not (sets[1] / ".edkit").exists()


def test_a_training_image_that_is_a_piece_of_a_preservation_image_is_found(tmp_path: Path, draw: Draw) -> None:
    draw("train/face.png", 1, (400, 300), f=lambda im: im.crop((50, 30, 350, 260)))
    draw("pool/whole.png", 1, (400, 300))
    (pair,) = overlap(tmp_path / "train", tmp_path / "pool").shared
    assert (pair.path.name, pair.how) == ("whole.png", "crop")
    assert pair.reason.startswith("face.png shows 5")


def test_without_crops_only_whole_pictures_are_compared(sets: tuple[Path, Path]) -> None:
    assert set(hows(overlap(*sets, crops=False))) == {"same.png", "small.png", "flipped.png"}


def test_move_sets_the_preservation_side_aside_and_undo_brings_it_back(sets: tuple[Path, Path]) -> None:
    train, pool = sets
    before = {path.name: path.read_bytes() for path in pool.iterdir()}
    kept = {path.name: path.read_bytes() for path in train.iterdir()}
    dry = overlap(train, pool, move=True, dry_run=True)
    assert {path.name: path.read_bytes() for path in pool.iterdir()} == before
    result = overlap(train, pool, move=True)
    assert result.shared == dry.shared and result.num_moved == dry.num_moved == 5
    assert [path.name for path in pool.iterdir() if path.is_file()] == ["other.png"]
    assert {path.name: path.read_bytes() for path in train.iterdir()} == kept
    (decision,) = why(pool / "small.png").decisions
    assert decision.reason.startswith("near-duplicate of 1.png, distance ")
    assert overlap(train, pool).shared == ()
    undo(pool)
    assert {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()} == before


def test_a_preservation_folder_inside_the_training_folder_is_its_own_side(tmp_path: Path, draw: Draw) -> None:
    draw("set/me/1.png", 1)
    draw("set/pool/copy.png", 1, (200, 150))
    draw("set/pool/other.png", 2)
    result = overlap(tmp_path / "set", tmp_path / "set" / "pool")
    assert (result.num_train, result.num_preservation) == (1, 2)
    assert list(hows(result)) == ["copy.png"]
    shutil.copytree(tmp_path / "set" / "pool", tmp_path / "set", dirs_exist_ok=True)
    other = overlap(tmp_path / "set" / "me", tmp_path / "set")
    assert (other.num_train, other.num_preservation) == (1, 4)
    with pytest.raises(UsageError, match="the same folder"):
        overlap(tmp_path / "set", tmp_path / "set")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_what_the_training_set_links_to_stays(tmp_path: Path, draw: Draw) -> None:
    original = draw("pool/1.png", 1)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").symlink_to(original)
    result = overlap(tmp_path / "train", tmp_path / "pool", move=True)
    assert (len(result.shared), result.num_moved) == (1, 0)
    assert result.skipped == ((original, "the training set links to this very file"),)
    assert original.is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_a_linked_preservation_folder_is_its_own_side(tmp_path: Path, draw: Draw) -> None:
    draw("train/1.png", 1)
    draw("pool/copy.png", 1, (200, 150))
    other = draw("pool/other.png", 2)
    (tmp_path / "train" / "pool").symlink_to(tmp_path / "pool")
    result = overlap(tmp_path / "train", tmp_path / "pool", move=True)
    assert (result.num_train, result.num_moved) == (1, 1)
    assert list(hows(result)) == ["copy.png"]
    assert other.is_file()


def test_a_model_finds_more(tmp_path: Path, draw: Draw, small_clip: dict[str, str]) -> None:
    draw("train/1.png", 1, (320, 240))
    draw("pool/bent.png", 1, (320, 240), f=lambda im: im.rotate(5).crop((20, 10, 300, 230)))
    draw("pool/other.png", 2, (320, 240))
    assert overlap(tmp_path / "train", tmp_path / "pool").shared == ()
    result = overlap(tmp_path / "train", tmp_path / "pool", threshold=0.993, **small_clip)  # type: ignore[arg-type]
    assert hows(result) == {"bent.png": ("embedding", "1.png")}
    with pytest.raises(UsageError, match="--clip"):
        overlap(tmp_path / "train", tmp_path / "pool", pretrained="openai")


def test_the_page_shows_both_sides(sets: tuple[Path, Path], tmp_path: Path) -> None:
    overlap(*sets, report=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 10
    assert "it shows 6" in page and "Mirrored crop" in page


def test_a_broken_file_is_reported_and_left(sets: tuple[Path, Path]) -> None:
    (sets[1] / "broken.png").write_bytes(b"")
    assert [Path(one.where).name for one in overlap(*sets, move=True).broken] == ["broken.png"]
    assert (sets[1] / "broken.png").exists()


def test_colours_speak_against_a_crop_of_the_same_shapes(draw: Draw) -> None:
    with Image.open(draw("a.png", 1, (400, 300))) as im:
        whole = im.convert("RGB")
    blue, green, red = whole.crop((40, 30, 380, 280)).split()
    assert len(list(pieces([of_picture(whole)], [of_picture(whole.crop((40, 30, 380, 280)))]))) == 1
    assert list(pieces([of_picture(whole)], [of_picture(Image.merge("RGB", (red, blue, green)))])) == []


def test_recall_of_crops_of_real_photos(shared_data: Path) -> None:
    """5 to 30 percent cut away anywhere, scaled, recompressed, half of them mirrored: the table in docs/clean.md."""
    photos = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[::4]
    rng = random.Random(1)
    wholes = [_photo(path) for path in photos]
    for away in (0.05, 0.15, 0.3):
        parts = []
        for im in wholes:
            share = (1 - away) ** 0.5
            left, top = rng.random() * (1 - share) * im.width, rng.random() * (1 - share) * im.height
            part = im.crop((int(left), int(top), int(left + share * im.width), int(top + share * im.height)))
            part = recompressed(part.resize((int(part.width * 0.7), int(part.height * 0.7))))
            parts.append(of_picture(ImageOps.mirror(part) if rng.random() < 0.5 else part))
        found = [(piece.whole, piece.piece) for piece in pieces(_littles(wholes), parts)]
        assert all(whole == part for whole, part in found)
        assert len(found) >= len(photos) - 1
    assert [(p.whole, p.piece) for p in pieces(_littles(wholes), _littles(wholes)) if p.whole != p.piece] == []


def _photo(path: Path) -> Image.Image:
    with Image.open(path) as im:
        return im.convert("RGB")


def _littles(pictures: list[Image.Image]) -> list[Little]:
    return [of_picture(im) for im in pictures]
