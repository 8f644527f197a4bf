"""The computed peak is what real steps take: counted on the same model with numbers in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edkit.train import memory
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.settings import TrainSettings, resolve
from edkit.train.trainer import Trainer

Models = Callable[[str], Path]


def settled(family: Family, **said: Any) -> TrainSettings:
    return resolve(
        TrainSettings(data_root="data", model="model", **said),
        resolution=family.resolution,
        bucket_step=family.bucket_step,
        num_timesteps=family.num_timesteps,
        family=family.name,
    )


def real_step(trainer: Trainer, *, side: int, images: int) -> int:
    """What a step of a real model takes beside its weights, counted block by block."""
    family = trainer.family
    latent = side // family.vae_factor
    tokens = family.tokenize(["a"] * images)
    with torch.no_grad():
        text = family.encode_text(tokens)
    with memory._counted(memory._modules(family)) as live:
        noisy = torch.zeros(images, family.latent_channels, latent, latent)
        timesteps = torch.full((images,), 500)
        said = family.predict(noisy, timesteps, text, torch.zeros(images, 6, dtype=torch.long))
        torch.nn.functional.mse_loss(said.float(), torch.zeros_like(noisy)).backward()  # type: ignore[no-untyped-call]
    return live.peak - live.start


@pytest.mark.parametrize(
    ("name", "said"), [("sd1", {}), ("sd1", {"method": "lora"}), ("sdxl", {"gradient_checkpointing": True})]
)
def test_the_computed_step_is_the_real_one(models: Models, name: str, said: dict[str, Any]) -> None:
    family = load_family(models(name))
    s = settled(family, **said)
    twin = memory.on_meta(family, s, resting=frozenset())
    computed = memory.passing_bytes(twin, size=(family.resolution,) * 2, images=2)
    real = real_step(
        Trainer(s, family, torch.device("cpu"), total_steps=1, where=Path()), side=family.resolution, images=2
    )
    assert computed == pytest.approx(real, rel=0.05)


def test_the_family_stays_as_it_is_and_more_takes_more(models: Models) -> None:
    family = load_family(models("sd1"))
    before = {name: tensor.clone() for name, tensor in family.parts()["unet"].state_dict().items()}
    size = (family.resolution,) * 2

    def peak(images: int = 1, passes: int = 1, **said: Any) -> memory.Peak:
        return memory.peak(family, settled(family, **said), size=size, images=images, passes=passes)

    one, four = peak(), peak(images=4, ema_decay=0.99, gradient_checkpointing=True)
    assert four.passing > one.passing and four.average > 0 == one.average
    assert peak(images=4).passing > four.passing
    small = peak(passes=2, optimizer="adafactor", fused_backward=True)
    assert small.moments < one.moments
    assert one.needed_bytes > one.num_bytes >= one.weights + one.moments
    after = family.parts()["unet"].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion"])
def test_moments_are_counted_as_the_optimizers_keep_them(models: Models, optimizer: str) -> None:
    pytest.importorskip("lion_pytorch")
    family = load_family(models("sd1"))
    trainer = Trainer(settled(family, optimizer=optimizer), family, torch.device("cpu"), total_steps=1, where=Path())
    for parameter in trainer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    kept = sum(
        value.numel() * value.element_size()
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )
    computed = memory.moment_bytes(trainer)
    if optimizer == "adafactor":
        computed -= 16 * max(p.numel() for p in trainer.parameters.values())
    assert computed == pytest.approx(kept, rel=0.02)
