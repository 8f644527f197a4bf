"""What a run tells while it runs: metrics.jsonl, TensorBoard, samples and their grid."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edkit.data import atomic
from edkit.data.errors import MissingExtra
from edkit.train.generate import grid, write_png

if TYPE_CHECKING:
    from PIL import Image

METRICS = "metrics.jsonl"


class Watch:
    """The run's own record: one line a step in metrics.jsonl, means of some steps in TensorBoard."""

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool, every: int) -> None:
        """Go on from `step`: what a killed run wrote beyond it is taken back."""
        self._run_dir, self._every = run_dir, every
        self._recent: dict[str, list[float]] = {}
        _cut_after(run_dir / METRICS, step)
        self._file = (run_dir / METRICS).open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._file.close()
                raise MissingExtra("train", "tensorboard") from None
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """One finished optimizer step (counted from 1)."""
        row = {"step": step} | {name: _short(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._recent.setdefault(name, []).append(value)
        if step % self._every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Bring everything to the files."""
        self._file.flush()
        if self._board is not None:
            for name, recent in self._recent.items():
                self._board.add_scalar(name, sum(recent) / len(recent), step)
            self._board.flush()
        self._recent.clear()

    def sync(self) -> None:
        """Wait until the disk has every line: a checkpoint never knows of a step that metrics.jsonl lacks."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def pictures(
        self, step: int, pictures: Sequence[Image.Image], prompts: Sequence[str], text: Mapping[str, Any]
    ) -> Path:
        """Write samples/step-N/, each prompt's picture, and their grid samples/step-N.png."""
        folder = self._run_dir / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
            write_png(folder / f"{i + 1:02d}.png", picture, {"prompt": prompt, "step": step, **text})
            if self._board is not None:
                self._board.add_image(
                    f"samples/{i + 1:02d} {prompt[:60]}", np.asarray(picture), step, dataformats="HWC"
                )
        sheet = self.grid_path(step)
        write_png(sheet, grid(pictures, list(prompts)), {"step": step})
        return sheet

    def grid_path(self, step: int) -> Path:
        """Where a step's grid of pictures goes; it is there when all of them are."""
        return self._run_dir / "samples" / f"step-{step:08d}.png"

    def close(self) -> None:
        """Close the files."""
        # a full disk has been told; what it didn't take is done again by whoever resumes
        with contextlib.suppress(OSError):
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / METRICS).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def _cut_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_metrics(path.parent) if row["step"] <= step]
        atomic.write_text(path, "".join(kept))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
