"""Everything a run needs to go on, written so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edkit.data import atomic
from edkit.data.errors import BadInput, NoSpace

FOLDER = "checkpoints"
_STATE = "state.json"
_FORMAT = 1


def save_checkpoint(
    run_dir: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    keep: int,
) -> Path:
    """Write `checkpoints/step-N` (one safetensors file per entry of `tensors`, and state.json), then drop all
    but `keep`.

    Files are synced before the folder gets its name. Raises NoSpace before anything is written where the disk
    can't hold it.
    """
    parent = run_dir / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    need_room(parent, sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values()))
    final = parent / f"step-{step:08d}"
    part = parent / f".edkit-{secrets.token_hex(6)}"
    part.mkdir()
    try:
        for name, values in tensors.items():
            write_tensors(part / f"{name}.safetensors", values)
        text = json.dumps({"format": _FORMAT, "step": step, **state}, indent=1)
        atomic.write_synced(part / _STATE, text.encode())
        atomic.sync_folder(part)
        if final.exists():  # the same step again, after a resume from before it
            shutil.rmtree(final)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    atomic.sync_folder(parent)
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest step first; what a killed run left half-written is not among
    them.
    """
    found = (run_dir / FOLDER).glob("step-*")
    return sorted(path for path in found if (path / _STATE).is_file())


def clear_unfinished(run_dir: Path) -> None:
    """Remove what a killed run was writing."""
    for parent in (run_dir / FOLDER, run_dir / "exports", run_dir):
        for path in parent.glob(".edkit-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says; BadInput where it was written by a newer edkit or is damaged."""
    path = checkpoint / _STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path), mend="remove this checkpoint and resume") from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise BadInput("is a checkpoint of another edkit version", where=str(path))
    return state


def load_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checkpoint / f"{name}.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path), mend="remove this checkpoint and resume") from None
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file, synced."""
    from safetensors.torch import save_file

    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()},
        path,
        metadata={"format": "pt", **(metadata or {})},
    )
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def need_room(folder: Path, num_bytes: int) -> None:
    """Raise NoSpace where the disk of `folder` hasn't room for that many bytes and some more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes * 1.02 + (1 << 20):
        raise NoSpace(
            f"{num_bytes / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free",
            where=str(folder),
            mend="free some space, then resume the run",
        )
