"""A model, or an adapter, to use elsewhere: a whole folder, or none at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from edkit.data import atomic
from edkit.train.checkpoint import need_room
from edkit.train.families.base import DTYPES, Family
from edkit.train.families.single_file import save_single_file


def export_model(
    family: Family,
    out: Path,
    *,
    precision: str = "fp32",
    metadata: Mapping[str, str] | None = None,
    single_file: bool = False,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `family` as the diffusers folder `out`, whole or not at all, in place of an older one, and `files` into it.

    With `single_file` the folder holds `model.safetensors` besides: the same model in the original layout.
    """
    weights = sum(p.numel() for part in family.parts().values() for p in part.parameters())

    def write(part: Path) -> None:
        family.save(part, precision=precision, metadata=metadata or {})
        if single_file:
            save_single_file(family, part / "model.safetensors", precision=precision, metadata=metadata or {})

    num_bytes = (1 + single_file) * weights * DTYPES[precision].itemsize
    return export_folder(out, write, num_bytes=num_bytes, files=files)


def export_folder(
    out: Path, write: Callable[[Path], None], *, num_bytes: int, files: Mapping[str, bytes] | None = None
) -> Path:
    """Let `write` fill a new folder beside `out`, with `files`, and put it in `out`'s place when it is whole.

    Raises NoSpace before anything is written where the disk can't hold `num_bytes`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    need_room(out.parent, num_bytes)
    part = out.with_name(f".edkit-{secrets.token_hex(6)}")
    part.mkdir()
    try:
        write(part)
        for name, data in (files or {}).items():
            atomic.write_bytes(part / name, data)
        atomic.replace_folder(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out
