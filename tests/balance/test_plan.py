"""`plan`: the counts it shows are the ones training would make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.balance.plan import plan
from edkit.cli.app import app
from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, UsageError
from edkit.data.rates import keep_rate
from edkit.page.layout import duration


def draw(folder: Path, names: list[str], size: tuple[int, int] = (64, 64)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / names[0]
    Image.new("RGB", size, (200, 30, 40)).save(first)
    for name in names[1:]:
        (folder / name).write_bytes(first.read_bytes())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A small set at resolution 64: two shapes, one image too small."""
    draw(tmp_path / "train", [f"my dog_({i}).png" for i in range(6)], (96, 96))
    draw(tmp_path / "pool", [f"a person, standing_({i}).png" for i in range(20)], (160, 80))
    draw(tmp_path / "pool", ["a person_(1).png"], (60, 60))
    (tmp_path / "pool/multiply.txt").write_text("0.5", "utf-8")
    return tmp_path


def test_fifty_and_a_thousand_at_a_fortieth_are_75_picks(tmp_path: Path) -> None:
    draw(tmp_path / "train", [f"my dog_({i}).png" for i in range(50)])
    draw(tmp_path / "preservation", [f"a dog_({i}).png" for i in range(1000)])
    (tmp_path / "preservation/multiply.txt").write_text("0.025", "utf-8")
    result = plan(tmp_path, resolution=64, batch_size=5, epochs=4)
    assert result.picks == (75, 75, 75, 75)
    assert result.steps == (15, 15, 15, 15)
    assert {part.folder: part.picks for part in result.folders} == {
        "preservation": (25, 25, 25, 25),
        "train": (50, 50, 50, 50),
    }
    assert [round(part.share, 4) for part in result.folders] == [0.3333, 0.6667]


def test_buckets_crops_and_small_images_are_counted(photos: Path) -> None:
    draw(photos / "train", ["my dog, wide_1.png"], (250, 64))
    result = plan(photos, resolution=128, batch_size=4, epochs=2)
    assert {(b.width, b.height): b.num_images for b in result.buckets} == {(64, 64): 7, (128, 64): 21}
    cuts = {(b.width, b.height): b.cut for b in result.buckets}
    assert cuts[64, 64] == 0
    assert cuts[128, 64] == pytest.approx((1 - 128 / 250) / 21)  # the wide one alone loses anything
    assert (result.num_small, result.num_deep_cuts) == (28, 1)
    assert {kind.code: kind.count for kind in result.kinds} == {"small-image": 28}


def test_the_schedule_holds_every_pick_once(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    result = plan(photos, resolution=64, batch_size=4, epochs=3, schedule=path)
    steps = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [step["step"] for step in steps] == list(range(result.total_steps))
    picks = [pick for step in steps for micro in step["micro_batches"] for pick in micro["picks"]]
    assert len(picks) == sum(result.picks)
    assert sum(pick["image"].startswith("pool/") for pick in picks) == sum(result.folders[0].picks)
    assert {pick["caption"] for pick in picks} <= {"", "my dog", "a person", "a person, standing"}
    assert not list(tmp_path.glob(".edkit*"))
    sizes = [sum(len(micro["picks"]) for micro in step["micro_batches"]) for step in steps]
    assert set(sizes[:-1]) == {4}
    mixed = [sum(step["epoch"] == e and len(step["micro_batches"]) > 1 for step in steps) for e in range(3)]
    assert result.mixed_steps == tuple(mixed)


def test_a_seed_that_is_drawn_is_recorded(photos: Path) -> None:
    assert plan(photos, resolution=64, seed=-1).seed >= 0
    assert plan(photos, resolution=64, seed=7).seed == 7


def test_what_is_wrong_is_counted_and_left_out(photos: Path) -> None:
    (photos / "train/IMG_1234.png").write_bytes((photos / "train/my dog_(0).png").read_bytes())
    (photos / "train/broken_1.png").write_bytes(b"no picture")
    result = plan(photos, resolution=64)
    errors = {kind.code: kind.count for kind in result.kinds if kind.level == "error"}
    assert errors == {"camera-name": 1, "unreadable-image": 1}
    assert (result.num_images, result.num_training) == (29, 27)
    assert plan(photos, resolution=64, caption_fallback="my dog").num_training == 28


def test_looking_makes_no_state_and_uses_what_is_there(photos: Path) -> None:
    plan(photos, resolution=64)
    assert not (photos / ".edkit").exists()
    with Catalog.open(photos):
        # another command writes meanwhile: looking must still work
        assert plan(photos, resolution=64).num_images == 27


def test_captions_past_the_limit_are_named_with_what_they_lose(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="CLIP's vocabulary comes with the extra `clip`")
    draw(tmp_path, ["a_1.png", "b_1.png"], (64, 64))
    (tmp_path / "a_1.txt").write_text("dog " * 75 + "cat tail", "utf-8")
    result = plan(tmp_path, resolution=64, family="sd1")
    assert result.cut_captions is not None
    (cut,) = result.cut_captions
    assert (cut.num_tokens, cut.lost) == (77, "cat tail")


def test_caches_are_estimated_by_family(photos: Path) -> None:
    result = plan(photos, resolution=64, family="sd1")
    assert result.latent_bytes == 27 * 8 * 8 * 4 * 2
    assert result.text_bytes == 3 * 77 * 768 * 2
    assert plan(photos, resolution=64).latent_bytes is None


def test_wrong_usage_is_told(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean sdxl"):
        plan(photos, family="sdx")
    with pytest.raises(UsageError, match="0 epochs"):
        plan(photos, epochs=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no images"):
        plan(tmp_path / "empty")


def test_time_is_told_at_the_rate_of_the_last_run_here(photos: Path) -> None:
    before = plan(photos, epochs=2)
    assert before.rate is None and before.seconds is None
    with Catalog.open(photos) as catalog:
        keep_rate(catalog, images_per_second=0.5, family="sd1", method="lora", resolution=512, device="cpu")
    after = plan(photos, epochs=2)
    assert after.seconds == sum(after.picks) / 0.5
    assert plan(photos, family="sd1").rate is not None
    assert plan(photos, family="sd1", resolution=256).rate is None
    assert plan(photos, family="sdxl", resolution=512).rate is None
    said = CliRunner().invoke(app, ["plan", str(photos), "--epochs", "2"], catch_exceptions=False).output
    assert f"about {duration(after.seconds)} at the 0.5 images/s of the last run here (sd1, lora, 512" in said
