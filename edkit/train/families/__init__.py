"""Model families: what the trainer must know of a model. A new one is a module here and a row in `registry.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

from edkit import nano
from edkit.data.errors import BadInput
from edkit.train.families.base import Family
from edkit.train.families.hub import snapshot
from edkit.train.families.registry import REGISTRY, module_of

__all__ = ["REGISTRY", "find_model", "load_family", "read_index"]


def _silent(line: str) -> None:
    """Tell nobody."""


def load_family(model: str | Path, family: str = "auto", *, say: Callable[[str], None] = _silent) -> Family:
    """Load a diffusers folder, a hub id or a single `.safetensors` file in fp32 on the CPU, as the family named
    or the one its index or its keys name; `say` is told where a hub id is gone and another one is taken.

    Raises BadInput where the folder is no pipeline, of a family edkit doesn't train, or has only pickled
    weights.
    """
    folder = find_model(model, say=say)
    if folder.is_file():
        from edkit.train.families.single_file import load_single_file

        return _as_named(load_single_file(folder), family)
    index = read_index(folder)
    pipeline = str(index.get("_class_name"))
    names = [name for name in REGISTRY if pipeline in module_of(name).PIPELINES]
    if not names:
        raise BadInput(
            f"is a {pipeline}, which is none of the families edkit trains",
            where=str(folder),
            mend=f"families: {', '.join(REGISTRY)}",
        )
    if family not in ("auto", *names):
        raise BadInput(f"is a {' or '.join(names)} model, not {family}", where=str(folder))
    return _as_named(cast(Callable[[Path], Family], module_of(names[0]).load)(folder), family)


def _as_named(found: Family, name: str) -> Family:
    if name not in ("auto", found.name):
        raise BadInput(f"is a {found.name} model, not {name}", where=str(found.folder))
    return found


def find_model(model: str | Path, *, say: Callable[[str], None] = _silent) -> Path:
    """The folder (or the single file) of a model: as named, the small one that ships (`nano`), or the hub's
    snapshot of an id such as `owner/name` (safetensors only).
    """
    folder = Path(model)
    if folder.is_dir():
        return folder.resolve()
    text = str(model)
    if text == "nano":
        return nano.model_dir().resolve()
    if folder.is_file():
        return folder.resolve()
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise BadInput("there is no such model folder", where=text)
    return snapshot(text, say=say)


def read_index(folder: Path) -> dict[str, object]:
    """The `model_index.json` of a diffusers folder."""
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("has no model_index.json: it is no diffusers folder", where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    if not isinstance(index, dict):
        raise BadInput("is no JSON object", where=str(path))
    return index
