"""Where the numbers and pictures of a run are shown while it runs: TensorBoard, and Weights & Biases on request."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edkit.data import atomic
from edkit.data.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from PIL import Image


class Board(Protocol):
    """Takes numbers and pictures by name."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured after so many steps."""

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """What was drawn after so many steps."""

    def close(self) -> None:
        """Bring everything to where it is shown, and end."""


def need_packages(*, tensorboard: bool, wandb: bool) -> None:
    """Say before anything is made that a board's package is missing."""
    if tensorboard and find_spec("tensorboard") is None:
        raise MissingExtra("train", "tensorboard")
    if wandb and find_spec("wandb") is None:
        raise UsageError("wandb = true, but wandb is not installed", mend="pip install wandb")


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Go on from `step`: what a killed run wrote beyond it is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases, as the environment says (WANDB_PROJECT, WANDB_MODE=offline, ...)."""

    def __init__(self, run_dir: Path, *, config: Mapping[str, Any]) -> None:
        """Start it, or go on with the one that this run's folder began."""
        import wandb

        name = run_dir / "wandb" / "run-id.txt"
        if not name.exists():
            name.parent.mkdir(exist_ok=True)
            atomic.write_text(name, secrets.token_hex(4))
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            dir=str(run_dir),
            project=os.environ.get("WANDB_PROJECT", "edkit"),
            name=run_dir.name,
            id=name.read_text(encoding="utf-8"),
            resume="allow",
            config=dict(config),
        )
        # a step of our own: its own counter refuses to go back to where a killed run's checkpoint was
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        self._run.log({"step": step, **{name: self._wandb.Image(picture) for name, picture in pictures.items()}})

    def close(self) -> None:
        self._run.finish()
