"""What fails a rule goes to the trash with the rule and its value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from edkit.clean.filter import filter
from edkit.data.errors import UsageError
from edkit.data.journal import undo, why

Draw = Callable[..., Path]


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_file())


@pytest.fixture
def mixed(tmp_path: Path, draw: Draw) -> Path:
    draw("good.png", 1, (320, 240))
    draw("small.png", 2, (64, 48))
    draw("blurred.png", 3, (320, 240), f=lambda im: im.filter(ImageFilter.GaussianBlur(9)))
    Image.new("RGB", (320, 240)).save(tmp_path / "black.png")
    (tmp_path / "small.txt").write_text("a caption", encoding="utf-8")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path


def test_each_rule_drops_what_fails_it(mixed: Path) -> None:
    result = filter(mixed, ["width >= 100", "brightness > 0.05 and contrast > 0.05", "sharpness >= 0.1"])
    assert left(mixed) == ["broken.jpg", "good.png"]
    assert {one.path.name: one.rule for one in result.dropped} == {
        "black.png": "brightness > 0.05 and contrast > 0.05",
        "blurred.png": "sharpness >= 0.1",
        "small.png": "width >= 100",
    }
    assert result.num_images == 4 and result.num_kept == 1
    assert [tally.num_fail for tally in result.tallies] == [1, 1, 2]


def test_reason_and_value_are_remembered(mixed: Path) -> None:
    filter(mixed, ["width >= 100"])
    (decision,) = why(mixed / "small.png").decisions
    assert decision.reason == "width is 64; the rule is width >= 100"
    assert decision.facts == {"width": 64}
    assert not (mixed / "small.txt").exists()


def test_what_can_not_be_measured_stays_and_is_reported(mixed: Path) -> None:
    result = filter(mixed, ["width >= 100000"])
    assert [Path(one.where).name for one in result.broken] == ["broken.jpg"]
    assert left(mixed) == ["broken.jpg"]


def test_spans_tell_the_range_of_kept_and_dropped(mixed: Path) -> None:
    spans = {span.side: span for span in filter(mixed, ["width >= 100"], dry_run=True).spans}
    assert (spans["kept"].num_images, spans["kept"].lowest, spans["kept"].highest) == (3, 320, 320)
    assert (spans["dropped"].num_images, spans["dropped"].median) == (1, 64)


def test_a_dry_run_changes_nothing_and_undo_reverts(mixed: Path) -> None:
    before = {path: path.read_bytes() for path in mixed.iterdir()}
    dry = filter(mixed, ["width >= 100"], dry_run=True)
    assert {path: path.read_bytes() for path in mixed.iterdir()} == before
    assert filter(mixed, ["width >= 100"]).dropped == dry.dropped
    undo(mixed)
    assert {path: path.read_bytes() for path in mixed.iterdir() if path.is_file()} == before


def test_a_wrong_rule_stops_before_anything_is_measured(mixed: Path) -> None:
    with pytest.raises(UsageError, match="did you mean width"):
        filter(mixed, ["widht > 3"])
    with pytest.raises(UsageError, match="no rule"):
        filter(mixed, [])
    assert not (mixed / ".edkit").exists()


def test_real_photos_kept_and_their_blurred_copies_dropped(tmp_path: Path, shared_data: Path) -> None:
    photos = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:10]
    for path in photos:
        with Image.open(path) as im:
            im.save(tmp_path / f"sharp {path.name}", quality=95)
            im.filter(ImageFilter.GaussianBlur(3)).save(tmp_path / f"blurred {path.name}", quality=95)
    filter(tmp_path, ["sharpness >= 0.1"])
    assert left(tmp_path) == [f"sharp {path.name}" for path in photos]
