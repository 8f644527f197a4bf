"""Everything a run needs to go on, written so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edkit.data import atomic
from edkit.data.errors import BadInput, NoSpace

FOLDER = "checkpoints"
_STATE = "state.json"
_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


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

    Files are synced before the folder gets its name. Where the disk can't hold one more, older ones go first;
    the newest stays until the new one stands. Raises NoSpace, before anything is written, where that isn't enough.
    """
    parent = run_dir / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
    for old in checkpoints(run_dir)[:-1]:
        if _has_room(parent, num_bytes):
            break
        atomic.remove_folder(old)
    need_room(parent, num_bytes)
    final = parent / f"step-{step:08d}"
    part = parent / f".edkit-{secrets.token_hex(6)}"
    part.mkdir()
    try:
        for name, values in tensors.items():
            write_tensors(part / f"{name}.safetensors", values)
        sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        text = json.dumps({"format": _FORMAT, "step": step, "files": sizes, **state}, indent=1)
        atomic.write_synced(part / _STATE, text.encode())
        atomic.sync_folder(part)
        atomic.replace_folder(part, final)  # in place of one that was damaged
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in checkpoints(run_dir)[:-keep]:
        with contextlib.suppress(PermissionError):  # Windows: somebody reads it; the next save tries again
            atomic.remove_folder(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest step first; what a killed run left half-written is not among
    them.
    """
    found = (run_dir / FOLDER).glob("step-*")
    return sorted(path for path in found if (path / _STATE).is_file())


def latest(run_dir: Path) -> tuple[Path | None, list[BadInput]]:
    """The newest checkpoint that is whole, and what is wrong with those after it; None where there is none."""
    damaged = []
    for folder in reversed(checkpoints(run_dir)):
        try:
            load_state(folder)
        except BadInput as error:
            if error.mend is None:  # another edkit's, and good
                raise
            damaged.append(error)
            continue
        return folder, damaged
    return None, damaged


def clear_unfinished(run_dir: Path) -> None:
    """Remove what a killed run was writing."""
    for path in list(run_dir.rglob(".edkit-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says; BadInput where it is damaged, a file beside it isn't as it was written, or another
    edkit wrote it.
    """
    path = checkpoint / _STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise BadInput("is a checkpoint of another edkit version", where=str(path))
    for name, size in state.get("files", {}).items():
        file = checkpoint / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes and was written with {size:,}"
            raise BadInput(what, where=str(file), mend=_MEND)
    return state


def load_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = checkpoint / f"{name}.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    return tensors


_MEND = "remove this checkpoint and resume from the one before"


def _unreadable(path: Path, error: Exception) -> BadInput:
    return BadInput(f"can't be read: {error}", where=str(path), mend=_MEND)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file, synced. Raises OSError, as other writes do."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(
            {k: v.detach().contiguous() for k, v in tensors.items()},
            path,
            metadata={"format": "pt", **(metadata or {})},
        )
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def full_disk_told(folder: Path, mend: Callable[[], str]) -> Iterator[None]:
    """Turn the OSError of a full disk (or quota, or a file too large for its file system) into NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = (error.strerror or str(error)).lower()
        raise NoSpace(
            f"{what}; nothing half-written was kept",
            where=str(error.filename or folder),
            mend=f"free some space; {mend()}",
        ) from None


def need_room(folder: Path, num_bytes: int) -> None:
    """Raise NoSpace where the disk of `folder` hasn't room for that many bytes and some more."""
    if not _has_room(folder, num_bytes):
        free = shutil.disk_usage(folder).free
        raise NoSpace(
            f"{num_bytes / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free",
            where=str(folder),
            mend="free some space, then resume the run",
        )


def _has_room(folder: Path, num_bytes: int) -> bool:
    return shutil.disk_usage(folder).free >= num_bytes * 1.02 + (1 << 20)
