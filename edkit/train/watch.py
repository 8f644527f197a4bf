"""What a run tells while it runs: metrics.jsonl, the ledger of steps, boards, samples and their grid."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edkit.data.image import Crop
from edkit.train.boards import Board
from edkit.train.generate import Request, grid, write_png
from edkit.train.loader import Batch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

METRICS = "metrics.jsonl"
LEDGER = "steps.jsonl"
_MOST_FOLDERS = 40  # more curves than that nobody reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One image as a step saw it."""

    key: str
    epoch: int
    caption: str  # empty where it was dropped
    crop: Crop
    timestep: int
    loss: float  # plain


def seen(batch: Batch, losses: Tensor) -> list[Seen]:
    """The images of a batch; `losses` (n,) are their plain ones, in the order of its micro-batches."""
    rows = (
        row
        for micro in batch.micros
        for row in zip(micro.samples, micro.captions, micro.views, micro.timesteps.tolist(), strict=True)
    )
    return [
        Seen(key=sample.key, epoch=batch.epoch, caption=caption, crop=view.crop, timestep=t, loss=loss)
        for (sample, caption, view, t), loss in zip(rows, losses.tolist(), strict=True)
    ]


class Watch:
    """The run's own record: a line a step in metrics.jsonl, an image in steps.jsonl; means of some steps on boards."""

    def __init__(
        self,
        run_dir: Path,
        *,
        step: int,
        every: int,
        boards: Sequence[Board] = (),
        keys: Iterable[str] = (),
        num_timesteps: int = 1000,
        ledger: bool = False,
    ) -> None:
        """Go on from `step`: what a killed run wrote beyond it is taken back.

        `keys` are those of all images that may come, `num_timesteps` the model's: losses are told by folder and
        by quarter of the timesteps.
        """
        self._run_dir, self._every, self._boards = run_dir, every, boards
        self._folders, self._num_timesteps = Folders(keys), num_timesteps
        self._step = step  # the last told of
        self._recent: dict[str, list[float]] = defaultdict(list)
        self._file = _opened(run_dir / METRICS, step)
        self._ledger = _opened(run_dir / LEDGER, step) if ledger else None
        earlier = read_measured(run_dir)
        self.measured_step = int(earlier[-1]["step"]) if earlier else None  # the last that `measured` was told of

    def step(self, step: int, values: Mapping[str, float], images: Sequence[Seen] = ()) -> None:
        """One finished optimizer step (counted from 1), and the images it trained on."""
        self._step = step
        told = dict(values)
        for name, value in values.items():
            self._recent[name].append(value)
        groups = {
            "loss/folder": [self._folders.of(image.key) for image in images],
            "loss/quarter": [quarter(image.timestep, self._num_timesteps) for image in images],
        }
        for kind, names in groups.items():
            told |= means(kind, names, [image.loss for image in images])
            for name, image in zip(names, images, strict=True):
                if name:
                    self._recent[f"{kind}/{name}"].append(image.loss)
        if self._ledger is not None:
            self._ledger.writelines(_ledger_row(step, image) for image in images)
        _write(self._file, step, told)
        if step % self._every == 0:
            self.flush(step)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured after so many steps, once and on purpose: a line of its own."""
        self.measured_step = step
        _write(self._file, step, values)
        for board in self._boards:
            board.numbers(step, values)

    def flush(self, step: int) -> None:
        """Bring everything to the files."""
        self._file.flush()
        if self._ledger is not None:
            self._ledger.flush()
        if self._recent:
            recent = {name: sum(values) / len(values) for name, values in self._recent.items()}
            for board in self._boards:
                board.numbers(step, recent)
        self._recent.clear()

    def sync(self) -> None:
        """Wait until the disk has every line: a checkpoint never knows of a step that the files and boards lack."""
        self.flush(self._step)
        for file in (self._file, self._ledger):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())

    def pictures(
        self,
        step: int,
        rows: Sequence[Sequence[Image.Image]],
        requests: Sequence[Request],
        guidance: Sequence[float],
        text: Mapping[str, Any],
    ) -> Path:
        """Write samples/step-N/, a picture for each request (rows) at each guidance (columns), and their grid
        samples/step-N.png.
        """
        folder = self._run_dir / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        named = {}
        for i, (row, request) in enumerate(zip(rows, requests, strict=True), start=1):
            for picture, scale in zip(row, guidance, strict=True):
                more = f" guidance {scale:g}" if len(guidance) > 1 else ""
                said = {"prompt": request.prompt, "negative": request.negative or "", "seed": request.seed}
                path = folder / f"{i:02d}{more.replace(' ', '-')}.png"
                write_png(path, picture, {**said, "guidance": scale, "step": step, **text})
                named[f"samples/{i:02d} {request.prompt[:60]}{more}"] = picture
        for board in self._boards:
            board.pictures(step, named)
        sheet = self.grid_path(step)
        columns = [f"guidance {scale:g}" for scale in guidance]
        write_png(sheet, grid(rows, [request.prompt for request in requests], columns), {"step": step})
        return sheet

    def grid_path(self, step: int) -> Path:
        """Where a step's grid of pictures goes; it is there when all of them are."""
        return self._run_dir / "samples" / f"step-{step:08d}.png"

    def close(self) -> None:
        """Close the files and boards."""
        # a full disk has been told; what it didn't take is done again by whoever resumes
        for one in (self._file, self._ledger, *self._boards):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.close()


class Folders:
    """What losses by folder are called: the folder's key, or the folder above it where there are too many."""

    def __init__(self, keys: Iterable[str]) -> None:
        """`keys`: of all images."""
        folders = {key.rpartition("/")[0] for key in keys}
        deepest = max((len(folder.split("/")) for folder in folders), default=0)
        fits = (d for d in range(deepest, 0, -1) if len({_above(folder, d) for folder in folders}) <= _MOST_FOLDERS)
        self._depth = next(fits, 0)

    def of(self, key: str) -> str:
        """The name of an image's folder; empty where even the topmost folders are too many."""
        return _above(key.rpartition("/")[0], self._depth) if self._depth else ""


def _above(folder: str, depth: int) -> str:
    return "/".join(folder.split("/")[:depth]) or "."


def quarter(timestep: int, num_timesteps: int) -> str:
    """Which quarter of the model's timesteps one lies in: 1 has the least noise, 4 the most."""
    return str(min(3, timestep * 4 // num_timesteps) + 1)


def means(kind: str, names: Collection[str], values: Collection[float]) -> dict[str, float]:
    """`kind/name` -> the mean of the values that bear the name, in the order of the names; none without a name."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        if name:
            grouped[name].append(value)
    return {f"{kind}/{name}": sum(grouped[name]) / len(grouped[name]) for name in sorted(grouped)}


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The steps' rows of metrics.jsonl; a last line that a kill cut short is left out."""
    return [row for row in _rows(run_dir / METRICS) if "loss" in row]


def read_measured(run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl that tell what was measured between steps: validation losses."""
    return [row for row in _rows(run_dir / METRICS) if "loss" not in row]


def _rows(path: Path) -> list[dict[str, float]]:
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def _ledger_row(step: int, image: Seen) -> str:
    crop = image.crop
    row = {
        "step": step,
        "epoch": image.epoch,
        "file": image.key,
        "caption": image.caption,
        "scaled": [crop.scaled_width, crop.scaled_height],
        "crop": [crop.left, crop.top, crop.width, crop.height],
        "flip": crop.flip,
        "timestep": image.timestep,
        "loss": _short(image.loss),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(file: TextIO, step: int, values: Mapping[str, float]) -> None:
    row = {"step": step} | {name: _short(value) for name, value in values.items()}
    file.write(json.dumps(row) + "\n")


def _opened(path: Path, step: int) -> TextIO:
    """The file to append to, without the lines beyond `step` (rows stand in the order of their steps; at step 0 all is
    begun anew).
    """
    with path.open("a+b") as file:
        file.seek(0)
        end = 0
        for line in file:
            try:
                if step == 0 or not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except ValueError:
                break
            end += len(line)
        file.truncate(end)
    # a name that is no Unicode (Linux allows it) stands escaped, as JSON has it
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")


def _short(value: float) -> float:
    return float(f"{value:.6g}")
