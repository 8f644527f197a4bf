"""What a model was trained on, one line an image: written beside every export, read back by `verify` and `evaluate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput
from edkit.data.sample import OPTION_NAMES, Options

DATASET_FILE = "dataset.jsonl"
_FORMAT = 1

Role = Literal["train", "held_out", "left_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of the data root as a run found it."""

    key: str  # its path below the root
    content: str  # SHA-256 of its bytes, hex
    caption: str
    tags: tuple[tuple[str, float], ...]  # (text, weight) of those that stand beside the caption
    options: Mapping[str, Any]  # those that say anything, plain
    role: Role


@dataclass(frozen=True, kw_only=True)
class Record:
    """The images of a run's data root, and how the folder was read."""

    entries: tuple[Entry, ...]
    reading: Mapping[str, Any]  # the settings that say what a silent folder means

    @property
    def root_hash(self) -> str:
        """SHA-256 of every image's name, content, caption and options, whatever became of it."""
        digest = hashlib.sha256()
        for e in sorted(self.entries, key=lambda e: e.key):
            row = [e.key, e.content, e.caption, e.tags, dict(e.options)]
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def held_out(self) -> dict[str, str]:
        """The images that never trained: content -> key."""
        return {e.content: e.key for e in self.entries if e.role == "held_out"}

    def file(self) -> bytes:
        """`dataset.jsonl`: how the folder was read, then a line an image; options stand once, in the first."""
        table = list(dict.fromkeys(json.dumps(dict(e.options), sort_keys=True) for e in self.entries))
        number = {options: i for i, options in enumerate(table)}
        head = {
            "format": _FORMAT,
            "root_hash": self.root_hash,
            "reading": dict(self.reading),
            "options": [json.loads(options) for options in table],
        }
        lines = [json.dumps(head, ensure_ascii=False)]
        for e in self.entries:
            row: dict[str, Any] = {"key": e.key, "content": e.content, "caption": e.caption}
            if e.tags:
                row["tags"] = e.tags
            row["options"] = number[json.dumps(dict(e.options), sort_keys=True)]
            if e.role != "train":
                row["role"] = e.role
            lines.append(json.dumps(row, ensure_ascii=False))
        # a name that is no Unicode (Linux allows it) stands escaped, as JSON has it
        return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def entries_of(dataset: Dataset, ids: Mapping[Path, str], role: Role) -> Iterator[Entry]:
    """The samples of a dataset as entries; `ids`: each file's content."""
    plain = [_plain(options) for options in dataset.option_table]
    for i in range(len(dataset)):
        caption = dataset.caption(i)
        yield Entry(
            key=dataset.key(i),
            content=ids[dataset.path(i)],
            caption=caption.text,
            tags=tuple((tag.text, tag.weight) for tag in caption.tags),
            options=plain[int(dataset.option_ids[i])],
            role=role,
        )


def read_record(path: Path) -> Record:
    """A `dataset.jsonl`; BadInput with the line where it is none, or not whole."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # captions may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    where = f"{path}:1"
    try:
        head = json.loads(lines[0] or "{}")
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise BadInput("is no list of images of this edkit's", where=where)
        entries = []
        for number, line in enumerate(lines[1:], start=2):
            where = f"{path}:{number}"
            entries.append(_entry(json.loads(line), head["options"]))
        where = f"{path}:1"
        record, root_hash = Record(entries=tuple(entries), reading=head["reading"]), head["root_hash"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(f"is damaged: {error}", where=where) from None
    if record.root_hash != root_hash:
        raise BadInput("its lines are not those it was written with", where=str(path))
    return record


def _entry(row: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> Entry:
    return Entry(
        key=row["key"],
        content=row["content"],
        caption=row["caption"],
        tags=tuple((text, weight) for text, weight in row.get("tags", ())),
        options=options[row["options"]],
        role=row.get("role", "train"),
    )


def _plain(options: Options) -> dict[str, Any]:
    said = {name: getattr(options, name) for name in OPTION_NAMES}
    # a multiply of 1 and one of 1.0 are the same
    if options.multiply is not None:
        said["multiply"] = float(options.multiply)
    return {name: value for name, value in said.items() if value is not None}
