"""A preset is chosen by the machine, told, and weaker than anything a user says."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edkit.data.errors import UsageError
from edkit.measure.machine import Gpu, Machine
from edkit.train import presets
from edkit.train.families.registry import REGISTRY
from edkit.train.presets import METHODS, PRESETS, fitting, named, over_preset, published_family, smallest
from edkit.train.run import find_run
from edkit.train.settings import TrainSettings


def machine(*, gib: float = 0, memory: int = 64, bf16: bool = True) -> Machine:
    gpu = Gpu(name="a GPU", kind="cuda", memory_bytes=int(gib * 2**30), free_bytes=None, bf16=bf16)
    return Machine(
        system="Linux", processor="x86_64", python="3.12", num_cores=8, memory_bytes=memory << 30, free_bytes=None,
        cards=(), torch=None, gpus=(gpu,) if gib else (),
    )  # fmt: skip


def on(monkeypatch: pytest.MonkeyPatch, here: Machine, family: str | None = "sdxl") -> None:
    monkeypatch.setattr(presets, "look", lambda: here)
    monkeypatch.setattr(presets, "published_family", lambda model: family)


def test_every_preset_makes_settings_and_fits_its_size() -> None:
    assert len({preset.name for preset in PRESETS}) == len(PRESETS)
    assert {preset.family for preset in PRESETS} == set(REGISTRY)
    for preset in PRESETS:
        made = TrainSettings(data_root="data", model="model", **preset.settings())
        assert made.micro_batch_size == preset.images
        assert preset.peak_gib < preset.needed_gib
        assert preset.gib == 0 or preset.needed_gib <= preset.gib


def test_more_memory_never_takes_a_tighter_preset() -> None:
    for family in REGISTRY:
        for method in METHODS:
            of = sorted((p for p in PRESETS if (p.family, p.method) == (family, method) and p.gib), key=lambda p: p.gib)
            for less, more in pairwise(of):
                assert (more.fused, more.weights == "bf16", more.optimizer != "adamw") <= (
                    less.fused,
                    less.weights == "bf16",
                    less.optimizer != "adamw",
                )


def test_the_machine_chooses() -> None:
    # a card sold with 24 GB says 23.7
    assert fitting(machine(gib=23.7), "sdxl", "lora") == named("sdxl-lora-24gb")
    assert fitting(machine(gib=11), "sdxl", "lora") == named("sdxl-lora-8gb")
    assert fitting(machine(gib=139), "sdxl", "lora") == named("sdxl-lora-48gb")
    assert fitting(machine(gib=6), "sdxl", "lora") is None
    assert fitting(machine(memory=64), "sd1", "lora") == named("sd1-lora-cpu")
    assert fitting(machine(memory=2), "sdxl", "full") is None
    assert smallest(machine(memory=2), "sdxl", "full").gib == 0


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no preset 'sdxl-lora-13gb'.*did you mean sdxl-lora-1[26]gb"):
        named("sdxl-lora-13gb")


def test_what_is_said_is_stronger_and_what_is_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, machine(gib=16))
    told: list[str] = []
    said = {"model": "sdxl", "method": "lora", "precision": "fp32", "micro_batch_size": 3}
    got = over_preset(said, name=None, say=told.append)
    assert (got["precision"], got["micro_batch_size"], got["weights_precision"]) == ("fp32", 3, "fp32")
    assert told[0].startswith("preset sdxl-lora-16gb (for a GPU;") and "gradient_checkpointing true" in told[0]
    assert "precision fp32" not in told[0] and "micro_batch_size" not in told[0] and "it needs" not in told[0]
    over_preset({"model": "sdxl", "method": "lora"}, name=None, say=told.append)
    assert "weights_precision bf16" in told[1] and "it needs 9.2 GiB" in told[1]
    assert over_preset(said, name="none") == said


def test_an_old_gpu_gets_fp16_and_what_fits_it_then(monkeypatch: pytest.MonkeyPatch) -> None:
    old = machine(gib=15.6, bf16=False)  # a T4, or a V100
    on(monkeypatch, old)
    got = over_preset({"model": "sdxl", "method": "lora"}, name=None)
    assert (got["precision"], got["weights_precision"]) == ("fp16", "fp32")
    found = fitting(old, "sdxl", "lora")
    # fp32 is 4.8 GiB more than bf16 for SDXL's denoiser
    assert found is not None and 14 < found.needed_gib <= 15.6
    assert fitting(machine(gib=12, bf16=False), "sdxl", "lora") is None
    assert fitting(machine(gib=8, bf16=False), "sd1", "lora") is not None
    assert fitting(old, "sd1", "full") == replace(named("sd1-full-16gb"), precision="fp16")
    assert fitting(old, "sdxl", "full") is None and smallest(old, "sdxl", "full").needed_gib > 24


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        {}, {"precision": "fp32"}, {"precision": "fp16"}, {"ema_decay": 0.999}, {"clip_grad_norm": 1.0},
        {"optimizer": "adamw"}, {"optimizer": "adafactor", "ema_decay": 0.9, "clip_grad_norm": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_preset_goes_with_every_gpu_and_with_what_is_said(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, said: dict[str, Any]
) -> None:
    on(monkeypatch, machine(gib=80, bf16=bf16))
    for preset in PRESETS:
        words = {"data_root": "data", "model": "m", "method": preset.method, **said}
        made = TrainSettings(**over_preset(words, name=preset.name))
        assert all(getattr(made, key) == value for key, value in words.items())
        assert preset.gib == 0 or bf16 or made.precision != "bf16"


def test_another_optimizer_drops_what_only_this_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, machine(gib=12))
    mine = next(p for p in PRESETS if p.optimizer == "adafactor" and p.weights == "bf16")
    got = over_preset({"model": "m", "optimizer": "adamw"}, name=mine.name)
    assert (got["optimizer"], got["fused_backward"], got["weights_precision"]) == ("adamw", False, "fp32")


def test_where_none_fits_it_is_told_and_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, machine(gib=4))
    told: list[str] = []
    said: dict[str, Any] = {"model": "sdxl", "method": "full"}
    assert over_preset(said, name=None, say=told.append) == said
    assert "no preset fits a GPU: the smallest, sdxl-full-" in told[0]


def test_a_preset_of_the_other_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, machine(gib=24))
    with pytest.raises(UsageError, match="is for lora, and the method is full"):
        over_preset({"model": "m", "method": "full"}, name="sdxl-lora-24gb")


def test_small_models_and_resumed_runs_take_none(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert published_family(str(model)) is None and published_family(str(tmp_path / "nothing")) is None
    flags = {"data_root": str(pictures), "model": str(model)}
    settings, _ = find_run(None, flags, run_dir=None, resume=False)
    assert settings == TrainSettings(**flags)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a run that is resumed has its settings"):
        find_run(None, {}, run_dir=tmp_path, resume=True, preset="sd1-full-8gb")


def test_a_model_of_published_size_is_known_by_its_index(models: Any, tmp_path: Path) -> None:
    import shutil

    big = tmp_path / "big"
    shutil.copytree(models("sdxl"), big)
    with (big / "unet" / "more.safetensors").open("wb") as file:
        file.truncate(2 << 30)  # a hole: no byte of it is on the disk
    assert published_family(str(big)) == "sdxl"


def test_presets_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS[0].gib = 1  # type: ignore[misc]
