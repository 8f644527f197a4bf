"""Prior preservation: marked folders train towards what the model said before it learned anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edkit.data.errors import BadInput
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("step-*")) / "weights.safetensors")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_that_is_only_reminded_of_itself_stays_what_it_is(
    method: str, settings: Settings, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    draw_pictures(tmp_path / "both" / "old")
    still = {"data_root": str(tmp_path / "both"), "method": method, "train_text_encoder": True, "weight_decay": 0.0}
    run = train(settings(prior_preservation=["old"], max_steps=3, **still))
    assert [row["loss"] for row in read_metrics(run.run_dir)] == [0.0, 0.0, 0.0]
    moved = train(settings(out=tmp_path / "moved", max_steps=3, **still))
    assert all(row["loss"] > 0 for row in read_metrics(moved.run_dir))
    kept, gone = (weights(one.run_dir / "checkpoints") for one in (run, moved))
    assert any(not torch.equal(kept[name], gone[name]) for name in kept)


def test_only_the_marked_folder_is_held_to_the_old_word(
    settings: Settings, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    root = tmp_path / "both"
    draw_pictures(root / "old", 4)
    draw_pictures(root / "old friends", 4)
    plain = {"data_root": str(root), "batch_size": 8, "max_steps": 1}
    some = train(settings(prior_preservation=["old"], out=tmp_path / "some", **plain))
    none = train(settings(out=tmp_path / "none", **plain))
    # at the first step the model still says what it said: half of the batch has no error at all
    assert 0 < some.first_loss < none.first_loss


def test_a_resumed_run_still_knows_the_untrained_word(
    settings: Settings, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    root = tmp_path / "both"
    draw_pictures(root / "old", 4)
    draw_pictures(root / "new", 4)
    kept = {"data_root": str(root), "prior_preservation": ["old"], "train_text_encoder": True}
    whole = train(settings(out=tmp_path / "whole", max_steps=4, **kept))
    half = train(settings(out=tmp_path / "half", max_steps=2, **kept))
    more = settings(out=half.run_dir, max_steps=4, **kept)
    train(more, resume=half.run_dir, accept_changes=True)
    one, other = (load_file(run.run_dir / "checkpoints/step-00000004/weights.safetensors") for run in (whole, half))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_that_is_not_there_is_told(settings: Settings) -> None:
    with pytest.raises(BadInput, match="prior_preservation: no image lies in 'old'"):
        train(settings(prior_preservation=["old"]))
