"""Duplicates are found, the best is kept, nothing unlike is chained in, and all of it can be undone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from edkit.clean import dedupe as module
from edkit.clean.check import check
from edkit.clean.dedupe import Deduped, dedupe
from edkit.data.catalog import Catalog
from edkit.data.errors import UsageError
from edkit.data.journal import undo, why

Draw = Callable[..., Path]


def left(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and ".edkit" not in p.parts)


def groups(result: Deduped) -> list[tuple[str, list[str]]]:
    return [(group.kept.name, sorted(m.path.name for m in group.members)) for group in result.groups]


def test_real_photos_resized_found_mirror_told_apart_corrupt_reported(tmp_path: Path, shared_data: Path) -> None:
    root = tmp_path / "duplicates"
    shutil.copytree(shared_data / "duplicates", root)
    result = dedupe(root)
    assert groups(result) == [("ukbench00120.jpg", ["ukbench00120_resize.jpg"])]
    assert [(p.path.name, p.mirror_of.name) for p in result.mirrored] == [
        ("ukbench00120_hflip.jpg", "ukbench00120.jpg")
    ]
    assert [Path(one.where).name for one in result.broken] == ["ukbench09268_corrupt.jpg"]
    assert left(root) == [
        "ukbench00120.jpg",
        "ukbench00120_hflip.jpg",
        "ukbench00120_rotation.jpg",
        "ukbench09268.jpg",
        "ukbench09268_corrupt.jpg",
    ]


def test_real_photos_are_no_duplicates_of_each_other(tmp_path: Path, shared_data: Path) -> None:
    result = dedupe(shared_data / "coco-mini" / "train2017", state_dir=tmp_path / "state", dry_run=True)
    assert result.num_images == 80
    assert result.groups == ()


def test_copies_of_many_kinds_join_the_largest(tmp_path: Path, draw: Draw) -> None:
    draw("best.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    draw("compressed.jpg", 1, (320, 240))
    draw("darker.png", 1, (320, 240), f=lambda im: ImageEnhance.Brightness(im).enhance(0.8))
    draw("blurred.png", 1, (320, 240), f=lambda im: im.filter(ImageFilter.GaussianBlur(2)))
    shutil.copy(tmp_path / "best.png", tmp_path / "copy of best.png")
    draw("other.png", 2)
    result = dedupe(tmp_path)
    assert groups(result) == [
        ("best.png", ["blurred.png", "compressed.jpg", "copy of best.png", "darker.png", "small.png"])
    ]
    assert left(tmp_path) == ["best.png", "other.png"]
    assert result.num_trashed == 5


def test_the_trashed_image_knows_why(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    small = draw("small.png", 1, (160, 120))
    dedupe(tmp_path)
    (decision,) = why(small).decisions
    assert decision.verb == "dedupe"
    assert decision.reason == ("near-duplicate of large.png, distance 0, large.png is larger (640x480 over 160x120)")
    assert decision.facts == {"distance": 0.0, "kept": "large.png", "size": "160x120", "kept_size": "640x480"}


def test_undo_brings_everything_back(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    small = draw("small.png", 1, (160, 120))
    small.with_suffix(".txt").write_text("a caption", encoding="utf-8")
    before = {path: (tmp_path / path).read_bytes() for path in left(tmp_path)}
    result = dedupe(tmp_path)
    assert left(tmp_path) == ["large.png"]
    assert result.groups[0].members[0].caption_lost
    undo(tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in left(tmp_path)} == before


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    dry = dedupe(tmp_path, dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.png", "small.png"]
    real = dedupe(tmp_path)
    assert (dry.groups, dry.num_trashed, dry.num_bytes) == (real.groups, real.num_trashed, real.num_bytes)
    assert dry.operation is None and real.operation is not None


def test_groups_never_chain(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """a-b and b-c are near, a-c is not: c may not go with a."""
    for number, name in enumerate(("a", "b", "c")):
        draw(f"{name}.png", number, (300 - 10 * number, 200))  # a is the largest
    hashes = {300: 0, 290: 0b1111, 280: 0b1111_1111}

    true_measure = module.measure  # type: ignore[attr-defined]

    def hashed(*args: object, **options: object) -> object:
        found = true_measure(*args, **options)  # type: ignore[arg-type]
        one = next(iter(found.values()))
        return {
            path: {**facts, "phash": f"{hashes[facts['width']]:016x}", "thumb": one["thumb"]}  # type: ignore[index,dict-item]
            for path, facts in found.items()
        }

    monkeypatch.setattr(module, "measure", hashed)
    result = dedupe(tmp_path, radius=4, dry_run=True)
    assert groups(result) == [("a.png", ["b.png"])]
    assert groups(dedupe(tmp_path, radius=8, dry_run=True)) == [("a.png", ["b.png", "c.png"])]


def test_every_member_is_within_the_radius_of_the_kept_one(tmp_path: Path, draw: Draw) -> None:
    for step in range(12):
        draw(
            f"{step}.png",
            1,
            (320 - step, 240),
            f=lambda im, s=step: im.crop((0, 0, im.width - 6 * s, im.height)),
        )
    result = dedupe(tmp_path, radius=6, dry_run=True)
    assert sum(len(group.members) for group in result.groups) > 3
    assert all(member.distance <= 6 for group in result.groups for member in group.members)
    assert len(result.groups) > 1


def test_pictures_that_differ_in_colour_alone_are_no_duplicates(tmp_path: Path) -> None:
    for colour in ("#c04040", "#207f20", "#4860d8"):
        im = Image.new("RGB", (128, 128), "#808080")
        ImageDraw.Draw(im).ellipse((30, 30, 100, 100), fill=colour)
        im.save(tmp_path / f"{colour}.png")
    for grey in ("black", "white", "#777777"):
        Image.new("RGB", (128, 128), grey).save(tmp_path / f"{grey}.png")
    assert dedupe(tmp_path, dry_run=True).groups == ()


def test_mirrored_copies_stay_unless_asked_for(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1)
    draw("b.png", 1, f=ImageOps.mirror)
    result = dedupe(tmp_path)
    assert result.groups == ()
    assert [(p.path.name, p.mirror_of.name, p.distance) for p in result.mirrored] in (
        [("b.png", "a.png", 0.0)],
        [("a.png", "b.png", 0.0)],
    )
    asked = dedupe(tmp_path, mirrored=True)
    ((member,),) = [group.members for group in asked.groups]
    assert member.mirrored
    assert "mirrored near-duplicate" in member.reason
    assert len(left(tmp_path)) == 1


def test_exact_finds_equal_bytes_alone(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1)
    draw("small.png", 1, (160, 120))
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    result = dedupe(tmp_path, method="exact")
    assert result.num_trashed == 1
    assert left(tmp_path) in (["a.png", "small.png"], ["b.png", "small.png"])
    assert result.groups[0].members[0].reason.startswith("the same bytes as")


def test_of_equal_files_the_captioned_one_is_kept(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a caption", encoding="utf-8")
    result = dedupe(tmp_path)
    assert left(tmp_path) == ["b.png", "b.txt"]
    assert (
        result.groups[0].members[0].reason
        == 'the same bytes as b.png, b.png has the better caption ("a caption" over "a")'
    )


def test_prefer_sharpest_and_oldest(tmp_path: Path, draw: Draw) -> None:
    draw("large soft.png", 1, (640, 480), f=lambda im: im.filter(ImageFilter.GaussianBlur(6)))
    draw("sharp.png", 1, (320, 240))
    old = draw("old.png", 1, (240, 180), f=lambda im: im.filter(ImageFilter.GaussianBlur(1)))
    os.utime(old, (1_000_000, 1_000_000))
    for prefer, kept in (("largest", "large soft.png"), ("sharpest", "sharp.png"), ("oldest", "old.png")):
        assert [g.kept.name for g in dedupe(tmp_path, prefer=prefer, dry_run=True).groups] == [kept]


def test_protected_images_always_stay_and_win(tmp_path: Path, draw: Draw) -> None:
    draw("mine/small.png", 1, (160, 120))
    draw("mine/small too.png", 1, (150, 110))
    draw("pool/large.png", 1, (640, 480))
    result = dedupe([tmp_path / "pool", tmp_path / "mine"], protect=[tmp_path / "mine"])
    assert left(tmp_path) == ["mine/small too.png", "mine/small.png"]
    (group,) = result.groups
    assert group.kept.name == "small.png"
    assert {m.path.name: m.protected for m in group.members} == {"small too.png": True, "large.png": False}
    assert (tmp_path / "pool" / ".edkit").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_a_file_that_links_lead_to_is_no_duplicate_of_itself(tmp_path: Path, draw: Draw) -> None:
    real = draw("set/z.png", 1)
    (tmp_path / "set" / "a_link.png").symlink_to(real)
    (tmp_path / "set" / "folder").symlink_to(tmp_path / "set2")
    draw("set2/b.png", 2)
    (tmp_path / "set" / "twice").symlink_to(tmp_path / "set2")
    result = dedupe(tmp_path / "set")
    assert (result.num_images, result.num_trashed) == (2, 0)
    checked = check(tmp_path / "set", set_aside=["near-duplicate"], heads=False)
    assert checked.fixed is not None and checked.fixed.mended == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_a_protected_image_is_known_through_links(tmp_path: Path, draw: Draw) -> None:
    mine = draw("mine/small.png", 1, (200, 150))
    draw("set/large.png", 1, (800, 600))
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "mine")
    result = dedupe(tmp_path / "set", protect=[tmp_path / "mine"])
    (group,) = result.groups
    assert group.kept == tmp_path / "set" / "linked" / "small.png"
    assert mine.is_file()
    assert [member.path.name for member in group.members] == ["large.png"]


def test_an_unreadable_file_is_left_and_reported(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1)
    (tmp_path / "broken.png").write_bytes(b"")
    result = dedupe(tmp_path)
    assert [one.what for one in result.broken] == ["the file is empty"]
    assert left(tmp_path) == ["a.png", "broken.png"]


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    assert dedupe(tmp_path).num_images == 0


def test_many_equal_hashes_are_no_quadratic_trap(tmp_path: Path) -> None:
    for grey in range(60):
        Image.new("RGB", (16 + grey, 16), "white").save(tmp_path / f"{grey}.png")
    result = dedupe(tmp_path)
    assert [len(group.members) for group in result.groups] == [59]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "magic"}, "exact, pixels, phash, embedding"),
        ({"method": "embedding"}, "needs a model"),
        ({"prefer": "nicest"}, "largest, sharpest, oldest"),
        ({"radius": 40}, "0..31"),
        ({"threshold": 1.5}, "threshold"),
        ({"protect": [Path("no/such/folder")]}, "no such folder to protect"),
    ],
)
def test_wrong_options_are_told_in_one_line(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        dedupe(tmp_path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_facts_are_kept_for_the_next_run(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("a.png", 1)
    draw("b.png", 2)
    dedupe(tmp_path)
    from edkit.measure import measure
    from edkit.measure.facts import FACTS

    monkeypatch.delattr(measure, "measure_file")
    assert dedupe(tmp_path).num_images == 2
    with Catalog.open(tmp_path, write=False) as catalog:
        assert len(catalog.facts(catalog.content_ids([tmp_path / "a.png"]).values(), [FACTS["phash"].key])) == 1


def test_a_turned_photo_is_reported_and_stays(tmp_path: Path, shared_data: Path) -> None:
    root = tmp_path / "duplicates"
    shutil.copytree(shared_data / "duplicates", root)
    (pair,) = dedupe(root).turned
    assert {pair.path.name, pair.turned_from.name} == {"ukbench00120.jpg", "ukbench00120_rotation.jpg"}
    assert abs(pair.degrees) == pytest.approx(30, abs=4)
    assert (root / "ukbench00120_rotation.jpg").exists()
    assert dedupe(root, turned=False, dry_run=True).turned == ()


@pytest.mark.parametrize("degrees", [90, 180, -45])
def test_turns_of_any_angle_are_told(tmp_path: Path, draw: Draw, degrees: int) -> None:
    draw("a.png", 1, (320, 240))
    draw("b.png", 1, (320, 240), f=lambda im: im.rotate(degrees, resample=Image.Resampling.BICUBIC))
    draw("c.png", 2, (320, 240))
    (pair,) = dedupe(tmp_path, dry_run=True).turned
    forth = pair.path.name == "b.png"
    assert abs((pair.degrees * (1 if forth else -1) - degrees + 180) % 360 - 180) < 4


def test_pixels_finds_the_same_picture_in_another_file(tmp_path: Path, draw: Draw) -> None:
    path = draw("a.png", 1)
    with Image.open(path) as im:
        im.save(tmp_path / "again.png", compress_level=1)
        im.save(tmp_path / "bitmap.bmp")
        im.convert("RGBA").save(tmp_path / "opaque.webp", lossless=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        im.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        im.save(tmp_path / "lossy.webp", quality=95)
        pixels = im.load()
        assert pixels is not None
        pixels[3, 3] = (0, 0, 0)
        im.save(tmp_path / "dot.png")
    result = dedupe(tmp_path, method="pixels")
    assert groups(result) == [("bitmap.bmp", ["a.png", "again.png", "opaque.webp", "turned.png"])]
    assert left(tmp_path) == ["bitmap.bmp", "dot.png", "lossy.webp"]


def test_embedding_finds_what_a_model_holds_for_alike(tmp_path: Path, draw: Draw, small_clip: dict[str, str]) -> None:
    draw("a.png", 1, (320, 240))
    draw("small.png", 1, (160, 120))
    draw("crop.png", 1, (320, 240), f=lambda im: im.crop((20, 10, 300, 230)))
    draw("other.png", 2, (320, 240))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    options = {"method": "embedding", "threshold": 0.996, **small_clip}
    dry = dedupe(tmp_path, dry_run=True, **options)  # type: ignore[arg-type]
    assert groups(dry) == [("a.png", ["crop.png", "small.png"])]
    assert all(member.distance <= 0.004 for group in dry.groups for member in group.members)
    result = dedupe(tmp_path, **options)  # type: ignore[arg-type]
    assert left(tmp_path) == ["a.png", "broken.png", "other.png"]
    assert "distance 0.0" in why(tmp_path / "crop.png").decisions[0].reason
    assert [Path(one.where).name for one in result.broken] == ["broken.png"]
    undo(tmp_path)
    assert len(left(tmp_path)) == 5
    assert dedupe(tmp_path, dry_run=True, **{**options, "threshold": 1.0}).groups == ()  # type: ignore[arg-type]


def test_a_ring_of_another_colour_is_no_copy_but_its_edits_are(tmp_path: Path) -> None:
    """Hashes see grey shapes alone: at radius 8 a red ring was a green one's duplicate."""

    def ring(colour: str, ground: str = "#d8d0c0") -> Image.Image:
        im = Image.new("RGB", (256, 256), ground)
        ImageDraw.Draw(im).ellipse((60, 60, 196, 196), outline=colour, width=24)
        return im

    for colour in ("#c83c3c", "#3c8c3c", "#4660c0"):
        ring(colour).save(tmp_path / f"ring {colour}.png")
    assert dedupe(tmp_path, dry_run=True).groups == ()
    red = ring("#c83c3c")
    red.save(tmp_path / "coarse.jpg", quality=30)
    ImageEnhance.Brightness(red).enhance(0.75).save(tmp_path / "dark.png")
    ImageEnhance.Color(red).enhance(0.8).save(tmp_path / "pale.png")
    (group,) = dedupe(tmp_path, dry_run=True).groups
    assert {group.kept.name, *(m.path.name for m in group.members)} == {
        "ring #c83c3c.png",
        "coarse.jpg",
        "dark.png",
        "pale.png",
    }


def test_the_colour_check_costs_no_recall_on_edited_photos(tmp_path: Path, shared_data: Path) -> None:
    photos = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[::5]
    for path in photos:
        with Image.open(path) as file:
            im = file.convert("RGB")
            im.save(tmp_path / path.name, quality=95)
            small = im.resize((im.width // 2, im.height // 2))
            ImageEnhance.Brightness(small).enhance(1.3).save(tmp_path / f"{path.stem} bright.jpg", quality=80)
            ImageEnhance.Brightness(small).enhance(0.7).save(tmp_path / f"{path.stem} dark.jpg", quality=80)
            ImageEnhance.Contrast(small).enhance(1.2).save(tmp_path / f"{path.stem} hard.jpg", quality=80)
            small.save(tmp_path / f"{path.stem} coarse.jpg", quality=30)
    result = dedupe(tmp_path, dry_run=True)
    assert all(one.path.stem.split()[0] == group.kept.stem for group in result.groups for one in group.members)
    found = sum(len(group.members) for group in result.groups)
    assert found >= 0.95 * 4 * len(photos)


def test_the_better_caption_decides_between_equal_files(tmp_path: Path, draw: Draw) -> None:
    draw("IMG_1234.png", 1)
    for name in ("a dog.png", "a brown dog on a beach.png", "a dog (2).png", "Copy of a dog.png"):
        shutil.copy(tmp_path / "IMG_1234.png", tmp_path / name)
    result = dedupe(tmp_path)
    assert left(tmp_path) == ["a brown dog on a beach.png"]
    (group,) = result.groups
    reasons = {m.path.name: m.reason for m in group.members}
    assert reasons["IMG_1234.png"].endswith('has the better caption ("a brown dog on a beach" over none)')


def test_captions_of_the_dropped_go_into_the_kept_ones_sidecar(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    draw("smaller.png", 1, (150, 112))
    (tmp_path / "large.txt").write_text("a dog, sunny", encoding="utf-8")
    (tmp_path / "small.txt").write_text("A dog, beach, Sunny", encoding="utf-8")
    (tmp_path / "smaller.txt").write_text("a brown dog, beach, low tide", encoding="utf-8")
    before = {path: (tmp_path / path).read_bytes() for path in left(tmp_path)}
    result = dedupe(tmp_path, merge_captions=True)
    assert left(tmp_path) == ["large.png", "large.txt"]
    text = (tmp_path / "large.txt").read_text(encoding="utf-8")
    assert text == "a dog, sunny, beach, a brown dog, low tide\n"
    (merged,) = result.merged
    assert (merged.before, merged.after) == ("a dog, sunny", "a dog, sunny, beach, a brown dog, low tide")
    assert "captions of small.png, smaller.png merged" in why(tmp_path / "large.txt").decisions[0].reason
    undo(tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in left(tmp_path)} == before


def test_a_caption_moves_to_a_kept_image_that_has_none(tmp_path: Path, draw: Draw) -> None:
    draw("IMG_0001.png", 1, (640, 480))
    draw("a dog, beach_1.png", 1, (160, 120))
    dedupe(tmp_path, merge_captions=True)
    assert (tmp_path / "IMG_0001.txt").read_text(encoding="utf-8") == "a dog, beach\n"
    undo(tmp_path)
    assert left(tmp_path) == ["IMG_0001.png", "a dog, beach_1.png"]


def test_captions_are_found_by_a_root_with_dots_in_it(tmp_path: Path, draw: Draw) -> None:
    draw("set/IMG_0001.png", 1, (640, 480))
    draw("set/a dog.png", 1, (160, 120))
    (merged,) = dedupe(tmp_path / "set" / ".." / "set", merge_captions=True).merged
    assert merged.after == "a dog"


def test_yaml_keeps_its_options_and_weights_and_reads_back(tmp_path: Path, draw: Draw) -> None:
    from edkit.data.dataset import read

    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    (tmp_path / "large.yaml").write_text("main_prompt: a dog\ntags: [sunny]\nmultiply: 2\n", encoding="utf-8")
    (tmp_path / "small.yaml").write_text("main_prompt: a dog\ntags: [{tag: red hair, weight: 2}]\n", encoding="utf-8")
    dedupe(tmp_path, merge_captions=True)
    (sample,) = read(tmp_path, sizes=False)
    assert sample.main_prompt == "a dog"
    assert [(tag.text, tag.weight) for tag in sample.tags] == [("sunny", 1.0), ("red hair", 2.0)]
    assert sample.options.multiply == 2


def test_a_merge_leaves_what_else_a_yaml_says_as_it_is_written(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    text = "main_prompt: a dog  # Rex\ntags: [yes, 12:30, 007, 2.50]\n"
    (tmp_path / "large.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "small.txt").write_text("a dog, sunny", encoding="utf-8")
    dedupe(tmp_path, merge_captions=True)
    assert (tmp_path / "large.yaml").read_text(encoding="utf-8") == text.replace("2.50]", "2.50, sunny]")


def test_an_image_named_as_an_option_file_gets_no_option_file(tmp_path: Path, draw: Draw) -> None:
    draw("multiply.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    (tmp_path / "small.txt").write_text("a dog, red", encoding="utf-8")
    (merged,) = dedupe(tmp_path, merge_captions=True).merged
    assert merged.sidecar == tmp_path / "multiply.caption"


def test_a_yaml_that_cannot_be_read_stops_no_merge(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    (tmp_path / "large.yaml").write_text("main_prompt: 2024-13-45\n", encoding="utf-8")
    (tmp_path / "small.txt").write_text("a dog, sunny", encoding="utf-8")
    (merged,) = dedupe(tmp_path, merge_captions=True).merged
    assert merged.after == "2024-13-45, a dog, sunny"
    assert left(tmp_path) == ["large.png", "large.yaml"]


def test_an_intended_empty_caption_and_mirrored_words_change_nothing(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    (tmp_path / "large.txt").write_text("", encoding="utf-8")
    (tmp_path / "small.txt").write_text("a dog", encoding="utf-8")
    assert dedupe(tmp_path, merge_captions=True).merged == ()
    undo(tmp_path)
    (tmp_path / "large.txt").write_text("a cat", encoding="utf-8")
    flipped = ImageOps.mirror(Image.open(tmp_path / "small.png"))
    flipped.save(tmp_path / "small.png")
    assert dedupe(tmp_path, merge_captions=True, mirrored=True).merged == ()
    assert (tmp_path / "large.txt").read_text(encoding="utf-8") == "a cat"


def test_the_page_shows_every_group_and_why(tmp_path: Path, draw: Draw) -> None:
    draw("set/<b>large.png", 1, (640, 480))
    draw("set/small.png", 1, (160, 120))
    draw("set/flipped.png", 1, (200, 150), f=ImageOps.mirror)
    result = dedupe(tmp_path / "set", report=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert result.page == tmp_path / "page.html"
    assert page.count("<img") == 4
    assert "&lt;b&gt;large.png is larger (640x480 over 160x120)" in page and "<b>large" not in page
    assert "set aside" in page and "Mirrored" in page
    assert "http" not in page.replace("http-equiv", "")


def test_nothing_is_written_into_a_protected_folder(tmp_path: Path, draw: Draw) -> None:
    draw("mine/a.png", 1, (160, 120))
    draw("pool/b.png", 1, (640, 480))
    (tmp_path / "pool" / "b.txt").write_text("a dog", encoding="utf-8")
    result = dedupe([tmp_path / "pool", tmp_path / "mine"], protect=[tmp_path / "mine"], merge_captions=True)
    assert result.num_trashed == 1 and result.merged == ()
    assert left(tmp_path) == ["mine/a.png"]


def test_a_mirror_image_is_told_apart_by_embedding_too(tmp_path: Path, draw: Draw, small_clip: dict[str, str]) -> None:
    draw("a.png", 1, (320, 240))
    draw("b.png", 1, (300, 225), f=ImageOps.mirror)
    options = {"method": "embedding", "threshold": 0.9, **small_clip}
    result = dedupe(tmp_path, **options)  # type: ignore[arg-type]
    assert result.groups == ()
    assert [(pair.path.name, pair.mirror_of.name) for pair in result.mirrored] == [("b.png", "a.png")]
    asked = dedupe(tmp_path, mirrored=True, **options)  # type: ignore[arg-type]
    assert [member.mirrored for group in asked.groups for member in group.members] == [True]
