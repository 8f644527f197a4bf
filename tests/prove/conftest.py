"""Nano as the base, pictures of its world and of its subject, and runs of a few steps that end well or badly."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from edkit.nano import world


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six pictures of the subject, and in two folders of `old` ten of the world nano knows."""
    root = tmp_path_factory.mktemp("data")
    subject = [replace(world.subject_scene(i), size="large") for i in range(6)]
    old = [world.training_scene(i, 31) for i in range(10)]
    for folder, scenes in (("subject", subject), ("old/first", old[:5]), ("old/second", old[5:])):
        (root / folder).mkdir(parents=True)
        for i, scene in enumerate(scenes):
            world.draw(scene, i).save(root / folder / f"{world.caption(scene)}_({i}).png")
    return root


def trained(data: Path, out: Path, **changes: Any) -> Path:
    """The folder of a quick run on the subject."""
    from edkit.train.run import train
    from edkit.train.settings import TrainSettings

    quick: dict[str, Any] = {
        "data_root": [str(data / "subject")],  # as the command line says it
        "model": "nano",
        "out": out,
        "max_steps": 4,
        "batch_size": 6,
        "tensorboard": False,
        "num_threads": 1,
        "device": "cpu",
    }
    return train(TrainSettings(**(quick | changes))).run_dir


@pytest.fixture(scope="session")
def ruined(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose learning rate was far too high; it left a model after two steps, too."""
    return trained(data, tmp_path_factory.mktemp("runs") / "ruined", lr=2e-2, save_every_steps=2)


@pytest.fixture(scope="session")
def lora(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA's run."""
    return trained(data, tmp_path_factory.mktemp("runs") / "lora", method="lora", lora_rank=4, lr=1e-2)


@pytest.fixture(scope="session")
def nameless(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images whose names are no captions, and a LoRA's run that read them, and the model, in a manner of its own."""
    root = tmp_path_factory.mktemp("nameless")
    for i, path in enumerate(sorted((data / "subject").glob("*.png"))):
        shutil.copy(path, root / f"IMG_{i:04}.png")
    out = tmp_path_factory.mktemp("runs") / "nameless"
    manner: dict[str, Any] = {"caption_fallback": "a star", "clip_skip": 2, "resolution": 32}
    return root, trained(data, out, data_root=root, method="lora", lora_rank=4, max_steps=1, **manner)


@pytest.fixture(scope="session")
def elsewhere(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA's run on other images."""
    out = tmp_path_factory.mktemp("runs") / "elsewhere"
    return trained(data, out, data_root=data / "old/first", method="lora", lora_rank=4, max_steps=1)
