"""`edkit convert`: a model from a folder into one file, or out of it, with all its weights."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from edkit.data.errors import UsageError
from edkit.train.checkpoint import need_room
from edkit.train.export import export_model
from edkit.train.families import load_family
from edkit.train.families.base import need_precision
from edkit.train.families.single_file import save_single_file

FORMS = ("single-file", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model in another form."""

    out: Path
    family: str
    to: str
    num_bytes: int


def convert(model: str | Path, *, to: str, out: Path, precision: str = "fp32") -> Converted:
    """Write a model (folder, file or hub id) as one `.safetensors` file in the original layout, or as a diffusers
    folder. Raises UsageError where `out` is there already, BadInput for a model that has no such form.
    """
    if to not in FORMS:
        raise UsageError(f"--to {to}: {' or '.join(FORMS)}")
    need_precision(precision)
    if out.exists():
        raise UsageError("is there already", where=str(out), mend="--out names a new one")
    if to == "single-file" and out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: a single file ends in .safetensors")
    family = load_family(model)
    metadata = {"edkit_converted_from": family.folder.name}
    if to == "diffusers":
        export_model(family, out, precision=precision, metadata=metadata)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        return Converted(out=out, family=family.name, to=to, num_bytes=size)
    out.parent.mkdir(parents=True, exist_ok=True)
    need_room(out.parent, sum(p.numel() for m in family.parts().values() for p in m.parameters()) * 4)
    part = out.with_name(f".edkit-{secrets.token_hex(6)}.safetensors")
    try:
        save_single_file(family, part, precision=precision, metadata=metadata)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return Converted(out=out, family=family.name, to=to, num_bytes=out.stat().st_size)
