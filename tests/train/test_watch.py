"""What a run tells: every loss by folder and quarter, in the files and on the boards, and nothing twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from edkit.data.errors import UsageError
from edkit.train import checkpoint as ck
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.watch import LEDGER, METRICS, Folders, Watch, means, quarter, read_measured, read_metrics

Settings = Callable[..., TrainSettings]

# a run that tells everything it can
TELLING = {"max_steps": 7, "batch_size": 3, "save_every_steps": 3, "keep_checkpoints": 9, "flip_p": 0.5}
TELLING |= {"validate_every_steps": 2, "validate_train_share": 0.3, "step_ledger": True, "cond_dropout": 0.3}


def test_quarters_and_folders_have_names() -> None:
    assert [quarter(t, 1000) for t in (0, 249, 250, 749, 999, 1000)] == ["1", "1", "2", "3", "4", "4"]
    few = Folders(["a.png", "dog/park/b.png", "dog/c.png"])
    assert [few.of(key) for key in ("a.png", "dog/park/b.png")] == [".", "dog/park"]
    many = Folders(f"people/{i}/x.png" for i in range(99))
    assert many.of("people/7/x.png") == "people"
    assert Folders(f"{i}/x.png" for i in range(99)).of("7/x.png") == ""
    assert means("loss/folder", ["b", "a", "b", ""], [1, 5, 2, 9]) == {"loss/folder/a": 5, "loss/folder/b": 1.5}


def test_lines_beyond_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    watch = Watch(tmp_path, step=0, every=1)
    for step in (1, 2, 3):
        watch.step(step, {"loss": step / 3})
        watch.measured(step, {"val/loss": 1.0})
    watch.close()
    whole = (tmp_path / METRICS).read_text("utf-8").splitlines(keepends=True)
    (tmp_path / METRICS).write_text("".join(whole) + '{"step": 4, "lo', "utf-8")
    Watch(tmp_path, step=2, every=1).close()
    assert (tmp_path / METRICS).read_text("utf-8") == "".join(whole[:4])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2] == [r["step"] for r in read_measured(tmp_path)]
    Watch(tmp_path, step=0, every=1).close()
    assert read_metrics(tmp_path) == []


def test_a_resumed_run_tells_what_the_uninterrupted_one_told(settings: Settings, tmp_path: Path) -> None:
    straight = train(settings(out=tmp_path / "straight", **TELLING))
    cut = tmp_path / "cut"
    shutil.copytree(straight.run_dir, cut)
    for path in ck.checkpoints(cut):
        if ck.load_state(path)["step"] > 3:
            shutil.rmtree(path)
    assert train(resume=cut).resumed_from == 3
    assert (cut / LEDGER).read_bytes() == (straight.run_dir / LEDGER).read_bytes()
    assert read_measured(cut) == read_measured(straight.run_dir)
    assert [row["step"] for row in read_measured(cut)] == [0, 2, 4, 6, 7]


def test_the_ledger_has_every_image_of_every_step(settings: Settings, tmp_path: Path, pictures: Path) -> None:
    (pictures / "red paint_(0).txt").write_text("“rot” ☂", "utf-8")
    run = train(settings(**TELLING))
    rows = [json.loads(line) for line in (run.run_dir / LEDGER).read_text("utf-8").splitlines()]
    assert len(rows) == 21 == run.num_images and [row["step"] for row in rows[::3]] == [1, 2, 3, 4, 5, 6, 7]
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row["loss"])
        assert (pictures / row["file"]).is_file() and row["crop"][2:] == [32, 32] and 0 <= row["timestep"] < 1000
    for told in read_metrics(run.run_dir):
        losses = by_step[int(told["step"])]
        assert sum(losses) / len(losses) == pytest.approx(told["plain_loss"], rel=1e-4)
        assert told["loss/folder/."] == pytest.approx(told["plain_loss"], rel=1e-4)
    assert {row["caption"] for row in rows} == {"", "“rot” ☂", "red paint", "blue paint"}
    assert {row["flip"] for row in rows} == {True, False}


def test_tensorboard_shows_losses_under_tidy_names(settings: Settings) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(
        settings(
            tensorboard=True, log_every_steps=2, validate_train_share=0.3, validate_every_steps=3, max_steps=7,
            sample_prompts=("red paint",), sample_steps=1,
        )
    )  # fmt: skip
    board = EventAccumulator(str(run.run_dir / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"loss", "plain_loss", "lr", "grad_norm", "images_per_s", "loss/folder/.", "stable/loss"} <= tags
    assert {f"stable/quarter/{n}" for n in (1, 2, 3, 4)} <= tags and all(
        t.startswith(("loss", "stable")) or "/" not in t for t in tags
    )
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6, 7]  # the last ones, too
    assert [event.step for event in board.Scalars("stable/loss")] == [0, 3, 6, 7]
    rows = read_metrics(run.run_dir)
    assert board.Scalars("loss")[0].value == pytest.approx((rows[0]["loss"] + rows[1]["loss"]) / 2, rel=1e-4)
    assert board.Tags()["images"] == ["samples/01 red paint"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_board_is_told_before_anything_is_made(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"wandb is not installed \(pip install wandb\)"):
        train(settings(wandb=True))
    assert not (tmp_path / "run").exists()
