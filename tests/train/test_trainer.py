"""What saves memory or time changes no weight."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edkit.data.errors import BadInput, UsageError
from edkit.train import checkpoint as ck
from edkit.train.run import Run, train
from edkit.train.settings import TrainSettings, resolve
from edkit.train.trainer import _compile
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]
LEAN: dict[str, Any] = {"optimizer": "adafactor", "fused_backward": True}


def weights(run: Run) -> dict[str, torch.Tensor]:
    assert run.checkpoint is not None
    return ck.load_tensors(run.checkpoint, "weights")


def close(one: Run, other: Run, *, atol: float = 1e-6) -> None:
    found, wanted = weights(one), weights(other)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=atol)


def equal(one: Run, other: Run) -> None:
    found, wanted = weights(one), weights(other)
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.fixture
def mixed(tmp_path: Path, draw_pictures: Callable[..., Path]) -> str:
    """Pictures of three shapes, so that steps have several micro-batches."""
    return str(draw_pictures(tmp_path / "mixed", 9, sizes=((40, 40), (64, 32), (32, 64))))


def test_gradient_checkpointing_gives_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    more = {"train_text_encoder": True, "max_steps": 3}
    plain = train(settings(out=tmp_path / "plain", **more))
    equal(train(settings(out=tmp_path / "less", gradient_checkpointing=True, **more)), plain)


def test_fused_backward_gives_the_same_weights_whatever_a_step_is_made_of(
    settings: Settings, tmp_path: Path, mixed: str
) -> None:
    more = {"data_root": mixed, "optimizer": "adafactor", "clip_grad_norm": 0, "max_steps": 4, "batch_size": 6}
    more |= {"train_text_encoder": True}
    plain = train(settings(out=tmp_path / "plain", **more))
    fused = train(settings(out=tmp_path / "fused", fused_backward=True, **more))
    equal(fused, plain)
    assert "grad_norm" in read_metrics(plain.run_dir)[0] and "grad_norm" not in read_metrics(fused.run_dir)[0]


def test_fused_backward_stops_before_a_loss_that_is_not_finite_moves_a_weight(settings: Settings) -> None:
    with pytest.raises(BadInput, match=r"not finite; the batch has .*paint_\("):
        train(settings(lr=1e30, max_steps=50, **LEAN))


def test_weights_in_halves_learn_and_resume_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    half = {"precision": "bf16", "weights_precision": "bf16", "lr": 3e-3, "batch_size": 8, "cond_dropout": 0.0}
    straight = train(
        settings(out=tmp_path / "straight", max_steps=16, save_every_steps=8, keep_checkpoints=9, **half, **LEAN)
    )
    assert straight.last_loss < straight.first_loss
    assert {value.dtype for value in weights(straight).values()} == {torch.bfloat16}
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(ck.checkpoints(tmp_path / "cut")[-1])
    equal(train(resume=tmp_path / "cut"), straight)


def test_adapters_stay_in_fp32_over_weights_in_halves(settings: Settings) -> None:
    run = train(settings(method="lora", precision="bf16", weights_precision="bf16", max_steps=2))
    assert {value.dtype for value in weights(run).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adamw", "fused_backward": True}, "adafactor"),
        ({**LEAN, "clip_grad_norm": 1.0}, "never sees all gradients at once: set 0"),
        ({**LEAN, "precision": "fp16"}, "scaler"),
        ({"weights_precision": "bf16"}, 'precision = "bf16"'),
        ({"weights_precision": "bf16", "precision": "bf16"}, "only adafactor rounds"),
        ({"weights_precision": "bf16", "precision": "bf16", "ema_decay": 0.9, **LEAN}, "fp32"),
    ],
)
def test_what_does_not_go_together_is_said(settings: Settings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        settings(**changes)


def test_clipping_is_at_one_unless_something_is_said() -> None:
    def clip(**said: Any) -> float | None:
        s = TrainSettings(data_root="photos", model="m", **said)
        return resolve(s, resolution=512, bucket_step=64, num_timesteps=1000, family="sd1").clip_grad_norm

    assert (clip(), clip(clip_grad_norm=0), clip(clip_grad_norm=2.0), clip(**LEAN)) == (1.0, 0.0, 2.0, 0.0)


def test_channels_last_trains_the_same(settings: Settings, tmp_path: Path) -> None:
    plain = train(settings(out=tmp_path / "plain", max_steps=2, optimizer="adafactor"))
    close(train(settings(out=tmp_path / "last", max_steps=2, optimizer="adafactor", channels_last=True)), plain)


def test_compiling_without_a_compiler_is_told_in_one_line(settings: Settings) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    said = r"can't compile here: .*\(install a C\+\+ compiler, or leave compile out\)"
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UsageError, match=said):
        train(settings(compile=True))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch finds no compiler here")
def test_a_compiled_part_says_the_same_and_is_compiled_once_for_any_number_of_images() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
    compiled = copy.deepcopy(plain)
    _compile(compiled, torch.device("cpu"))
    counters.clear()
    for shape in ((3, 4, 8, 8), (5, 4, 8, 8), (2, 4, 8, 12), (4, 4, 8, 12), (6, 4, 8, 8)):
        noisy = torch.randn(shape)
        torch._dynamo.maybe_mark_dynamic(noisy, 0)
        torch.testing.assert_close(compiled(noisy), plain(noisy))
    assert counters["stats"]["unique_graphs"] == 2  # one for each size
