"""Duplicates are found, the best is kept, nothing unlike is chained in, and all of it can be undone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from edkit.clean import dedupe as module
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

    true_measure = module.measure

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
    assert result.groups[0].members[0].reason == "the same bytes as b.png, b.png has the better caption (\"a caption\" over \"a\")"


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

    monkeypatch.delattr(measure, "measure_file")
    assert dedupe(tmp_path).num_images == 2
    with Catalog.open(tmp_path, write=False) as catalog:
        assert len(catalog.facts(catalog.content_ids([tmp_path / "a.png"]).values(), ["phash/1"])) == 1
