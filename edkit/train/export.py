"""A model to use elsewhere: a whole diffusers folder that says in its weights where it comes from."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from edkit.train.checkpoint import need_room
from edkit.train.families.base import DTYPES, Family


def export_model(
    family: Family, out: Path, *, precision: str = "fp32", metadata: Mapping[str, str] | None = None
) -> Path:
    """Write `family` as the diffusers folder `out`, whole or not at all, in place of an older one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    width = DTYPES[precision].itemsize
    weights = [p.numel() for part in family.parts().values() for p in part.parameters()]
    need_room(out.parent, sum(weights) * width)
    part = out.with_name(f".edkit-{secrets.token_hex(6)}")
    part.mkdir()
    try:
        family.save(part, precision=precision, metadata=metadata or {})
        if out.exists():
            aside = out.with_name(f".edkit-{secrets.token_hex(6)}")
            out.replace(aside)
            part.replace(out)
            shutil.rmtree(aside)
        else:
            part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out
