"""Is this the data that a model was trained on? What it says itself, against what lies in the folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.errors import BadInput, StateError
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Options
from edkit.train.record import DATASET_FILE, Entry, Record, entries_of, read_record
from edkit.train.settings import SettingError, TrainSettings

_LARGEST_HEADER = 1 << 27  # bytes; the safetensors format allows 100 MB


@dataclass(frozen=True, kw_only=True)
class Change:
    """One image that trained otherwise than it lies there now."""

    key: str
    was: str
    now: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What differs between the images a model was trained on and a folder; all empty where it is the same data."""

    model: Path
    same: bool
    num_images: int  # in the folder
    added: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: tuple[Change, ...]  # the same bytes under another name
    contents: tuple[Change, ...]  # other bytes under the same name: SHA-256
    captions: tuple[Change, ...]
    options: tuple[Change, ...]
    details: bool  # False: only the root's hash is known, so that what differs can't be told
    num_held_out: int  # of the model's images, those that never trained
    edkit_version: str
    base_model: str  # hash
    step: int | None


def verify(
    model: Path | str,
    folders: Path | str | Sequence[Path],
    *,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Compare a data root with the record of an export (its folder, a file in it, or a run's folder).

    Several `folders` stand for the several of the run's data root, in its order. They are read as the run read them:
    what a silent folder means stands in the record. A file taken out of its export knows the root's hash alone. Raises
    BadInput where the model says nothing of its data.
    """
    model, folders = Path(model), [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    said = metadata(model)
    record = record_of(model)
    reading = record.reading if record is not None else _reading(said, model)
    now = _now(folders, reading, state_dir=state_dir, progress=progress)
    same = now.root_hash == said["edkit_dataset"]
    changes = _compared(record.entries, now.entries) if record is not None else _NOTHING
    return Verified(
        model=model,
        same=same,
        num_images=len(now.entries),
        **changes,
        details=record is not None,
        num_held_out=0 if record is None else len(record.held_out()),
        edkit_version=said.get("edkit_version", ""),
        base_model=said.get("edkit_base_model", ""),
        step=int(said["edkit_step"]) if said.get("edkit_step", "").isdecimal() else None,
    )


def metadata(model: Path) -> Mapping[str, str]:
    """What edkit wrote into a model's weights; BadInput where it wrote nothing, or the file is none."""
    if said := said_by(model):
        return said
    if not _exported(model).exists():
        raise BadInput("no such model", where=str(model))
    raise BadInput("does not say what it was trained on", where=str(model), mend="edkit train writes it into exports")


def said_by(model: Path) -> Mapping[str, str]:
    """What edkit wrote into a model's weights; empty for a model from elsewhere. BadInput: no .safetensors file."""
    place = _exported(model)
    files = sorted(place.glob("*.safetensors")) + sorted(place.glob("*/*.safetensors"))
    for file in [place] if place.is_file() else files:
        said = _header(file).get("__metadata__", {})
        if isinstance(said, dict) and "edkit_dataset" in said:
            return said
    return {}


def record_of(model: Path) -> Record | None:
    """The list of images beside a model's weights; None where there is none, or a file lies beside another model's.

    Raises BadInput where an export's list is damaged, or not that of its weights.
    """
    place = _exported(model)
    beside = (place if place.is_dir() else place.parent) / DATASET_FILE
    said = said_by(place) if beside.is_file() else {}
    if not said:
        return None
    record = read_record(beside)
    if record.root_hash == said["edkit_dataset"]:
        return record
    if place.is_dir():
        raise BadInput("is not the list of the weights beside it", where=str(beside))
    return None


def _exported(model: Path) -> Path:
    return model / "export" if (model / "export").is_dir() else model


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file's header: 8 bytes of its length, then JSON."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError("its header has no end")
            found = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise BadInput(f"is no .safetensors file: {error}", where=str(file)) from None
    return found if isinstance(found, dict) else {}


def settings_in(said: Mapping[str, str], names: Iterable[str], *, where: Path) -> dict[str, Any]:
    """Those of the run's settings that `said_by` tells of; BadInput where they are none."""
    try:
        settings = tomllib.loads(said.get("edkit_settings", ""))
        found = {name: settings[name] for name in names if name in settings}
        TrainSettings(data_root=".", model=".", **found)
    except (tomllib.TOMLDecodeError, TypeError, SettingError) as error:
        raise BadInput(f"its weights hold settings that no run has: {error}", where=str(where)) from None
    return found


def _reading(said: Mapping[str, str], model: Path) -> dict[str, Any]:
    """How the run read its folder, by its settings."""
    names = ("caption_fallback", "cond_dropout", "flip_p", "shuffle_tags", "keep_tags", "max_caption_length")
    return dict.fromkeys(names) | settings_in(said, names, where=model)


def _now(folders: Sequence[Path], reading: Mapping[str, Any], *, state_dir: Path | None, progress: Progress) -> Record:
    """The data root as it lies there, without what no run would train on."""
    for folder in folders:
        if not folder.exists():
            raise BadInput("no such folder or manifest", where=str(folder))
    options = {name: value for name, value in reading.items() if name != "caption_fallback"}
    with _catalog(folders[0], state_dir, progress) as catalog:
        dataset = read(
            folders if len(folders) > 1 else folders[0],
            defaults=Options(**options),
            caption_fallback=reading.get("caption_fallback"),
            catalog=catalog,
            progress=progress,
        )
        dataset, _ = dataset.without_errors()
        ids = catalog.content_ids(dataset.paths, progress=progress)
    return Record(entries=tuple(entries_of(dataset, ids, "train")), reading=reading)


def _catalog(folder: Path, state_dir: Path | None, progress: Progress) -> Catalog:
    try:
        return Catalog.open(folder, state_dir=state_dir, command="verify", progress=progress)
    except StateError:  # a run may be writing to it
        return Catalog.open(folder, state_dir=state_dir, write=False, command="verify", progress=progress)


_NOTHING: dict[str, Any] = dict.fromkeys(("added", "removed", "renamed", "contents", "captions", "options"), ())


def _compared(before: Collection[Entry], now: Collection[Entry]) -> dict[str, Any]:
    then, there = {e.key: e for e in before}, {e.key: e for e in now}
    gone = [e for e in before if e.key not in there]
    new = {e.content: e for e in now if e.key not in then}
    renamed = [(e, new.pop(e.content)) for e in gone if e.content in new]
    moved = {e.key for e, _ in renamed} | {e.key for _, e in renamed}
    both = [(e, there[e.key]) for e in before if e.key in there] + renamed
    return {
        "added": tuple(sorted(e.key for e in now if e.key not in then and e.key not in moved)),
        "removed": tuple(sorted(e.key for e in gone if e.key not in moved)),
        "renamed": tuple(Change(key=b.key, was=b.key, now=a.key) for b, a in renamed),
        "contents": _changes((b.key, b.content, a.content) for b, a in both),
        "captions": _changes((b.key, _caption(b), _caption(a)) for b, a in both),
        "options": _changes((b.key, *_options(b, a)) for b, a in both),
    }


def _changes(rows: Iterable[tuple[str, str, str]]) -> tuple[Change, ...]:
    return tuple(Change(key=key, was=was, now=now) for key, was, now in sorted(rows) if was != now)


def _caption(e: Entry) -> str:
    weighed = (text if weight == 1 else f"{text} ({weight:g})" for text, weight in e.tags)
    return ", ".join([e.caption, *weighed])


def _options(before: Entry, now: Entry) -> tuple[str, str]:
    """The options that differ, as `name value`, before and now."""
    names = sorted({*before.options, *now.options})
    differ = [name for name in names if before.options.get(name) != now.options.get(name)]
    was, is_ = (", ".join(f"{name} {_shown(e.options.get(name))}" for name in differ) for e in (before, now))
    return was, is_


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
