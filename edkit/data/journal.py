"""What edkit changes in a person's folder: journaled before it is done, done so that it can be undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Move:
    """Rename or move a file; swaps and rings of moves within one `apply` are fine."""

    src: Path
    dst: Path
    reason: str = ""
    kind: str = "rename"  # the word for it in the history
    facts: Mapping[str, object] = field(default_factory=dict, kw_only=True)  # what was measured, as JSON


@dataclass(frozen=True, slots=True)
class Trash:
    """Set a file aside in the trash."""

    path: Path
    reason: str = ""
    facts: Mapping[str, object] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, slots=True)
class Write:
    """Write a small file, new or over an old one (whose content is kept in the trash)."""

    path: Path
    content: bytes
    reason: str = ""
    facts: Mapping[str, object] = field(default_factory=dict, kw_only=True)


Change = Move | Trash | Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply` did."""

    operation: int | None  # its number in the history; None where there was nothing to do, or on a dry run
    num_done: int
    skipped: list[tuple[Change, str]]  # with the reason


def apply(
    catalog: Catalog,
    changes: Sequence[Change],
    *,
    verb: str,
    command: str = "",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Applied:
    """Carry out changes to a person's files. (Being built: signatures only.)"""
    raise NotImplementedError
