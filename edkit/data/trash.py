"""The trash: what edkit has set aside, and the one command that really deletes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from edkit.data import redo
from edkit.data.catalog import Catalog, has_state, opened
from edkit.data.journal import record
from edkit.data.progress import SILENT, Progress
from edkit.data.redo import DONE, Row, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashItem:
    """One content in the trash, and the last decision that put it there."""

    sha256: str
    num_bytes: int
    was: Path | None  # the name it had; None where the journal does not know it
    reason: str
    verb: str
    operation: int | None
    time: float | None
    undoable: bool  # whether an undo still needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashContents:
    """All that is in the trash, the newest first."""

    items: list[TrashItem]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """What `empty` deleted (or, on a dry run, would delete)."""

    operation: int | None
    num_files: int
    num_bytes: int
    num_undoable: int  # of these, how many an undo could have brought back


def contents(root: Path | Catalog, *, state_dir: Path | None = None) -> TrashContents:
    """What is in the trash of a data root."""
    with opened(root, state_dir, write=False) as catalog:
        items = [_item(catalog, file) for file in _files(catalog.trash_dir) if not file.suffix]
    items.sort(key=lambda item: (-(item.time or 0), str(item.was)))
    return TrashContents(items=items, num_bytes=sum(item.num_bytes for item in items))


def empty(
    root: Path | Catalog,
    *,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Emptied:
    """Delete what is in the trash, for good: `undo` can't bring it back. The history tells of it."""
    dry_run = dry_run or not has_state(root, state_dir)  # nothing to delete, and no state is made to say so
    with opened(root, state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        found = contents(catalog)
        operation = None
        if not dry_run and found.items:
            site = catalog.site(progress)
            operation = record(
                catalog, _deletions(site, found.items), verb="trash empty", command=command, kind="empty"
            )
            redo.carry_out(site, operation)
        if not dry_run:
            for file in _files(catalog.trash_dir):
                if file.suffix == ".part":  # a copy that was cut off
                    file.unlink(missing_ok=True)
            for folder in catalog.trash_dir.glob("*"):
                with contextlib.suppress(OSError):  # not empty: a file could not be deleted
                    folder.rmdir()
    return Emptied(
        operation=operation,
        num_files=len(found.items),
        num_bytes=found.num_bytes,
        num_undoable=sum(item.undoable for item in found.items),
    )


def _files(trash_dir: Path) -> list[Path]:
    if not trash_dir.is_dir():
        return []
    return [
        Path(entry.path)
        for folder in sorted(trash_dir.iterdir())
        if folder.is_dir()
        for entry in os.scandir(folder)
        if not entry.is_dir(follow_symlinks=False)
    ]


def _item(catalog: Catalog, file: Path) -> TrashItem:
    sha256 = file.name
    with catalog.told():
        found = catalog.db.execute(
            "SELECT COALESCE(change.src, change.dst), change.reason, operation.verb, operation.id, "
            "operation.time, operation.kind = 'apply' AND NOT change.undone "
            "FROM change JOIN operation ON operation.id = change.operation "
            f"WHERE change.step = {DONE} AND (change.kind = 'trash' AND change.sha256 = ?1 "
            "OR change.before_sha256 = ?1) ORDER BY 6 DESC, operation.id DESC LIMIT 1",
            [sha256],
        ).fetchone()
    name, reason, verb, operation, time, undoable = found or (None, "", "", None, None, False)
    return TrashItem(
        sha256=sha256,
        num_bytes=file.lstat().st_size,
        was=None if name is None else Path(catalog.places.path(name)),
        reason=reason,
        verb=verb,
        operation=operation,
        time=time,
        undoable=bool(undoable),
    )


def _deletions(site: Site, items: list[TrashItem]) -> list[Row]:
    return [
        Row(
            seq=seq,
            kind="delete",
            label="delete",
            src=site.trash_path(item.sha256),
            reason="" if item.was is None else f"it was {item.was.name}",
            size=item.num_bytes,
            sha256=item.sha256,
        )
        for seq, item in enumerate(items)
    ]
