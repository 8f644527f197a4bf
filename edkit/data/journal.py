"""What edkit changes in a person's folder: journaled before it is done, done so that it can be undone.

    with Catalog.open(root) as catalog:
        apply(catalog, [Move(a, b), Move(b, a), Trash(c, "blurred"), Write(d, b"0.5")], verb="tidy")
    undo(root)

All changes of one `apply` are meant of the tree as it stands before: a name that one change leaves, another
may take. They are in the journal, on the disk, before the first is carried out (redo.py tells how they
survive a crash). `undo` is an operation like any other: journaled, finished after a crash, in the history.
"""

# text paths: Path objects cost more than the work itself in loops over a million files
# ruff: noqa: PTH100, PTH112, PTH114, PTH115, PTH117, PTH120
from __future__ import annotations

import json
import os
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256 as sha256_hash
from pathlib import Path

from edkit.data import redo
from edkit.data.atomic import is_file, sha256_of
from edkit.data.catalog import Catalog, Unreadable, has_state, opened
from edkit.data.database import transaction
from edkit.data.errors import BadInput, StateError, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.redo import DONE, TOLD, Row, Site, lstat_or_none, matches
from edkit.data.story import Step, history, step_of, why

__all__ = [
    "Applied",
    "Change",
    "Move",
    "Step",
    "Trash",
    "Undone",
    "Write",
    "apply",
    "history",
    "record",
    "undo",
    "why",
]


@dataclass(frozen=True, slots=True)
class Move:
    """Rename or move a file; swaps and rings of moves within one `apply` are fine.

    A large new file is best prepared in the catalog's `cache_dir` and moved from there: `undo` moves it back.
    """

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

    operation: int | None  # its number in the history; None where there was nothing to do, and on a dry run
    num_done: int  # on a dry run: what would be done
    skipped: list[tuple[Change, str]]  # with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What `undo` did (or, on a dry run, would do)."""

    operations: list[int]  # the operations it reverted, newest first
    num_done: int
    changes: list[Step]
    left: list[tuple[Path, str]]  # files it left as they are, with the reason


def apply(
    catalog: Catalog,
    changes: Sequence[Change],
    *,
    verb: str,
    command: str = "",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Applied:
    """Carry out changes to a person's files as one operation that can be undone.

    What changes nothing (a move to its own name, a write of what is there) is left out. A source that is
    missing or can't be read is skipped with its reason. Raises BadInput, before anything is done, where a
    destination is taken or two changes want the same name: nothing is ever overwritten.
    """
    rows = [_row(seq, change) for seq, change in enumerate(changes)]
    hashes: dict[str, str] = {}
    if not dry_run:
        _must_write(catalog)
        redo.finish_unfinished(catalog.site(progress))
        hashes = _contents(catalog, rows, progress)
    settled = _settle(rows, _Tree(catalog.site(progress)), hashes, strict=True)
    operation = None
    if settled.rows and not dry_run:
        staged = [(seq, c.content) for seq, c in enumerate(changes) if isinstance(c, Write)]
        operation = record(catalog, settled.rows, verb=verb, command=command, kind="apply", staged=staged)
        redo.carry_out(catalog.site(progress), operation)
        settled.after(catalog.site().rows("operation = ?", [operation]))
    skipped = [(changes[seq], why) for seq, why in sorted(settled.skipped.items())]
    return Applied(operation=operation, num_done=settled.num_done, skipped=skipped)


def undo(
    root: Path | Catalog,
    *,
    to: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Undone:
    """Revert the last operation that still stands, or (`to`) all after operation `to` (0: all).

    Files come back byte for byte, with their times. What a person changed, moved or put in the way since
    is left as it is and named. Raises UsageError for a number that is not in the
    history, or lies behind an undo.
    """
    dry_run = dry_run or not has_state(root, state_dir)  # nothing to undo, and no state is made to say so
    with opened(root, state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        site = catalog.site(progress)
        if not dry_run:
            _must_write(catalog)
            redo.finish_unfinished(site)
        targets = _targets(catalog, to)
        tree = _Tree(site)
        steps: list[Step] = []
        left: list[tuple[Path, str]] = []
        num_done = 0
        for target in targets:
            standing = site.rows(f"operation = ? AND step = {DONE} AND NOT undone", [target])
            rows = _inverses(standing, above=_last_seq(catalog, target))
            settled = _settle(rows, tree, {}, strict=False)
            folders = [row for row in rows if row.kind == "rmdir"]
            if dry_run:
                tree.pretend(settled.rows)
            else:
                numbered = [*settled.rows, *folders]
                operation = record(catalog, numbered, verb="undo", command=command, kind="undo", undoes=target)
                redo.carry_out(site, operation)
                settled.after(site.rows("operation = ?", [operation]))
            by_seq = {row.seq: row for row in rows}
            left += [(_subject(by_seq[seq]), why) for seq, why in sorted(settled.skipped.items())]
            steps += [step_of(row) for row in settled.rows if row.kind != "mkdir" and row.step != redo.SKIPPED]
            num_done += settled.num_done
        return Undone(operations=targets, num_done=num_done, changes=steps, left=left)


# ---------------------------------------------------------------------- planning


def _row(seq: int, change: Change) -> Row:
    facts = json.dumps(dict(change.facts), ensure_ascii=True, default=str) if change.facts else None
    match change:
        case Move():
            return Row(
                seq=seq,
                kind="move",
                label=change.kind,
                src=os.path.abspath(change.src),
                dst=os.path.abspath(change.dst),
                reason=change.reason,
                facts=facts,
            )
        case Trash():
            src = os.path.abspath(change.path)
            return Row(seq=seq, kind="trash", label="trash", src=src, reason=change.reason, facts=facts)
        case Write():
            return Row(
                seq=seq,
                kind="write",
                label="write",
                dst=os.path.abspath(change.path),
                reason=change.reason,
                facts=facts,
                size=len(change.content),
                sha256=sha256_hash(change.content).hexdigest(),
            )


def _contents(catalog: Catalog, rows: Sequence[Row], progress: Progress) -> dict[str, str]:
    """The hashes of what goes to the trash, and of what moves where that is known without reading it."""
    trashed = [Path(row.src) for row in rows if row.kind == "trash" and row.src and Path(row.src).is_file()]
    moved = [Path(row.src) for row in rows if row.kind == "move" and row.src]
    found = {**catalog.known_content_ids(moved), **catalog.content_ids(trashed, progress=progress)}
    links = [row.src for row in rows if row.kind == "trash" and row.src and os.path.islink(row.src)]
    hashes = {os.fspath(path): sha256 for path, sha256 in found.items()}
    return {**hashes, **{src: sha256_of(src) for src in links}}


class _Tree:
    """The files as they are, or (dry run of several undos) as they would be."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._now_at: dict[str, str | None] = {}  # would-be name -> where that content is today; None: nowhere
        self._kept: dict[str, str] = {}  # would-be content of the trash

    def find(self, path: str) -> tuple[str, os.stat_result] | None:
        """Where the content under a name is to be read, and its lstat; None where there is none."""
        real = self._now_at.get(path, path)
        info = None if real is None else lstat_or_none(real)
        return None if real is None or info is None else (real, info)

    def keeps(self, sha256: str) -> bool:
        return sha256 in self._kept or os.path.lexists(self.site.trash_path(sha256))

    def pretend(self, rows: Sequence[Row]) -> None:
        lifted: dict[int, str | None] = {}
        for row in rows:
            if row.src is not None:
                lifted[row.seq] = real = self._now_at.get(row.src, row.src)
                self._now_at[row.src] = None
                if row.kind == "trash" and row.sha256 and real:
                    self._kept[row.sha256] = real
        for row in rows:
            if row.dst is not None and row.kind == "move":
                self._now_at[row.dst] = lifted[row.seq]
            elif row.dst is not None and row.kind in ("restore", "write") and row.sha256:
                self._now_at[row.dst] = self._kept.get(row.sha256, self.site.trash_path(row.sha256))


class _Settled:
    """The rows that can be carried out, ready for the journal, and those that can't, with the reason."""

    def __init__(self, rows: list[Row], skipped: dict[int, str]) -> None:
        self.rows, self.skipped = rows, skipped

    @property
    def num_done(self) -> int:
        return sum(row.kind not in redo.FOLDERS and row.seq not in self.skipped for row in self.rows)

    def after(self, journaled: Sequence[Row]) -> None:
        """Take over how it came out."""
        for row in journaled:
            if row.step == redo.SKIPPED and row.kind not in redo.FOLDERS:
                self.skipped[row.seq] = row.note
        self.rows = [row for row in journaled if row.kind not in redo.FOLDERS]


def _settle(rows: list[Row], tree: _Tree, hashes: Mapping[str, str], *, strict: bool) -> _Settled:
    """Check changes against the tree and one another; fill in what they expect; add the folders they need.

    `strict` refuses the whole where a name is taken; else the change is skipped, and what waits for it.
    """
    skipped: dict[int, str] = {}
    last_seq = max((row.seq for row in rows), default=-1)
    rows = [row for row in rows if row.kind != "rmdir" and row.src != row.dst]
    leaving = _by_name(rows, lambda row: row.src, strict=strict, skipped=skipped)
    arriving = _by_name(rows, lambda row: row.dst, strict=strict, skipped=skipped)
    folded_leaving = {_folded(name): row for name, row in leaving.items()}
    unchanged: set[int] = set()

    for row in rows:
        if row.seq not in skipped and row.src is not None:
            why = _check_source(row, tree, hashes)
            if why:
                skipped[row.seq] = why
    for row in rows:
        if row.seq in skipped or row.dst is None:
            continue
        there = tree.find(row.dst)
        if row.kind == "write" and row.dst not in leaving:
            refusal = _check_overwrite(row, there)
            if refusal == "":
                unchanged.add(row.seq)
            elif refusal:
                skipped[row.seq] = refusal
            continue
        if row.kind == "restore" and not tree.keeps(row.sha256 or ""):
            skipped[row.seq] = "its content is no longer in the trash"
        elif there is not None and row.dst not in leaving:
            # a change of case alone, where the file system ignores case: the name is taken by the file itself
            alias = folded_leaving.get(_folded(row.dst))
            if alias is None or not _same_file(alias.src, there[1]):
                _refuse(row, f"{row.dst} exists already", strict=strict, skipped=skipped)

    # whoever waited for the name of a file that stays can't have it
    stuck = [row for row in rows if row.seq in skipped and row.src is not None]
    while stuck:
        waiting = arriving.get(stuck.pop().src or "")
        if waiting is not None and waiting.seq not in skipped:
            skipped[waiting.seq] = f"{waiting.dst} exists already"
            if waiting.src is not None:
                stuck.append(waiting)

    kept = [row for row in rows if row.seq not in skipped and row.seq not in unchanged]
    wanted = {_folded(row.dst) for row in kept if row.dst is not None}
    for row in kept:
        row.hop = row.kind == "move" and _folded(row.src or "") in wanted
    return _Settled([*kept, *_folders(kept, last_seq, strict=strict)], skipped)


def _by_name(
    rows: Sequence[Row], name_of: Callable[[Row], str | None], *, strict: bool, skipped: dict[int, str]
) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        name = name_of(row)
        if name is None:
            continue
        if found.setdefault(name, row) is not row:
            _refuse(row, f"two changes name {name}", strict=strict, skipped=skipped)
    return found


def _refuse(row: Row, why: str, *, strict: bool, skipped: dict[int, str]) -> None:
    if strict:
        what = f"can't {'write' if row.kind == 'write' else 'move'} it: {why}"
        raise BadInput(what, where=row.src or row.dst, mend="nothing was changed; edkit never overwrites a file")
    skipped[row.seq] = why


def _check_source(row: Row, tree: _Tree, hashes: Mapping[str, str]) -> str:
    """Why a file can't leave its place ("" where it can); notes its size, time and content."""
    src = row.src or ""
    found = tree.find(src)
    if found is None:
        return "it is gone" if row.size is not None else "no such file"
    real, info = found
    if not is_file(info):
        return "not a file"
    if row.size is not None:  # an undo, which expects the file as edkit left it
        if not matches(real, info, row):
            return "it was changed since"
    else:
        row.size, row.mtime_ns = info.st_size, info.st_mtime_ns
        row.sha256 = hashes.get(src)
        if isinstance(row.sha256, Unreadable):
            return str(row.sha256)
    if row.dst is not None and os.path.dirname(src) != os.path.dirname(row.dst) and os.path.islink(real):
        target = os.readlink(real)
        if not os.path.isabs(target):
            return f"a link to {target}, which would lead nowhere from another folder"
    return ""


def _check_overwrite(row: Row, there: tuple[str, os.stat_result] | None) -> str | None:
    """Why a file can't be written over (None: it can; "": it says so already); notes the old content."""
    if row.before_sha256 is not None:  # an undo
        before = Row(seq=0, kind="", size=row.before_size, mtime_ns=row.before_mtime_ns, sha256=row.before_sha256)
        if there is None:
            return "it is gone"
        return None if matches(*there, before) else "it was changed since"
    if there is None:
        return None
    real, info = there
    if os.path.islink(real) or not is_file(info):
        return "a link, not a file" if os.path.islink(real) else "not a file"
    row.before_size, row.before_mtime_ns, row.before_sha256 = info.st_size, info.st_mtime_ns, sha256_of(real)
    return "" if row.before_sha256 == row.sha256 else None


def _same_file(path: str | None, info: os.stat_result) -> bool:
    other = None if path is None else lstat_or_none(path)
    return other is not None and os.path.samestat(other, info)


def _folded(name: str) -> str:
    """A name as the most forgiving file system sees it (ASCII, the common case, is quick)."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _folders(kept: Sequence[Row], seq: int, *, strict: bool) -> list[Row]:
    """The folders that must be made first, outermost first, numbered after `seq`."""
    known: set[str] = set()
    made: list[Row] = []
    for row in kept:
        missing = []
        folder = os.path.dirname(row.dst or "")
        while row.dst is not None and folder not in known:
            known.add(folder)
            if os.path.isdir(folder):
                break
            if os.path.lexists(folder) and strict:
                _refuse(row, f"{folder} is a file, not a folder", strict=strict, skipped={})
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            seq += 1
            made.append(Row(seq=seq, kind="mkdir", dst=folder))
    return made


def record(
    catalog: Catalog,
    rows: Sequence[Row],
    *,
    verb: str,
    command: str,
    kind: str,
    undoes: int | None = None,
    staged: Sequence[tuple[int, bytes]] = (),
) -> int:
    """Write an operation and all its changes into the journal, on the disk when this returns; its number."""
    key = catalog.places.key
    kept = {row.seq for row in rows}
    with catalog.told(), transaction(catalog.db):
        operation = catalog.db.execute(
            "INSERT INTO operation (time, who, pid, verb, command, kind, token, phase, undoes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
            [
                time.time(),
                catalog.who,
                os.getpid(),
                verb,
                _text(command or catalog.command),
                kind,
                secrets.token_hex(3),
                undoes,
            ],
        ).lastrowid
        assert operation is not None
        catalog.db.executemany(
            f"INSERT INTO change ({redo.COLUMNS}) VALUES ({', '.join('?' * 18)})",
            (
                (
                    operation,
                    row.seq,
                    row.kind,
                    row.label,
                    row.src and key(row.src),
                    row.dst and key(row.dst),
                    row.hop,
                    _text(row.reason),
                    row.facts,
                    row.size,
                    row.mtime_ns,
                    row.sha256,
                    row.before_size,
                    row.before_mtime_ns,
                    row.before_sha256,
                    redo.PENDING,
                    "",
                    False,
                )
                for row in rows
            ),
        )
        catalog.db.executemany(
            "INSERT INTO staged VALUES (?, ?, ?)",
            ((operation, seq, data) for seq, data in staged if seq in kept),
        )
    return operation


def _text(text: str) -> str:
    """Text as SQLite can hold it: what is not Unicode (a file name in a reason) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------------- undo


def _targets(catalog: Catalog, to: int | None) -> list[int]:
    """The operations to revert, newest first."""
    with catalog.told():
        found = catalog.db.execute("SELECT id, kind, undone_by FROM operation ORDER BY id DESC").fetchall()
        standing = catalog.db.execute(
            f"SELECT DISTINCT operation FROM change WHERE step = {DONE} AND NOT undone AND operation > ? AND {TOLD}",
            [to or 0],
        ).fetchall()
    applied = [(id, undone_by) for id, kind, undone_by in found if kind == "apply"]
    if to is None:
        return [id for id, undone_by in applied if undone_by is None][:1]
    if to != 0 and all(id != to for id, _, _ in found):
        last = found[0][0] if found else 0
        raise UsageError(f"no operation {to} in the history (0 to {last})", mend="edkit history DIR lists them")
    # what stood right after `to` and was undone later can't be brought back: undo only goes backwards
    lost = [id for id, undone_by in applied if id <= to and undone_by is not None and undone_by > to]
    if lost:
        raise UsageError(
            f"can't go back to after operation {to}: operation {max(lost)} stood then and was undone since",
            mend="undo only goes backwards; run that command again",
        )
    # changes of an undone operation that had to be left get a second chance
    again = {row[0] for row in standing}
    return [id for id, undone_by in applied if id > to and (undone_by is None or id in again)]


def _last_seq(catalog: Catalog, operation: int) -> int:
    with catalog.told():
        found = catalog.db.execute("SELECT max(seq) FROM change WHERE operation = ?", [operation]).fetchone()
    return int(found[0] or 0)


def _inverses(rows: Sequence[Row], *, above: int) -> list[Row]:
    """The changes that revert others, under the same numbers.

    The folders that were made come last, innermost first, numbered after `above`.
    """
    back: list[Row] = []
    for row in rows:
        why = row.reason
        match row.kind:
            case "move":
                back.append(
                    Row(
                        seq=row.seq,
                        kind="move",
                        label=row.label,
                        src=row.dst,
                        dst=row.src,
                        reason=why,
                        size=row.size,
                        mtime_ns=row.mtime_ns,
                        sha256=row.sha256,
                    )
                )
            case "trash":
                back.append(
                    Row(
                        seq=row.seq,
                        kind="restore",
                        label="restore",
                        dst=row.src,
                        reason=why,
                        size=row.size,
                        mtime_ns=row.mtime_ns,
                        sha256=row.sha256,
                    )
                )
            case "write" if row.before_sha256 is None:
                back.append(
                    Row(
                        seq=row.seq,
                        kind="trash",
                        label="trash",
                        src=row.dst,
                        reason="edkit wrote it; undone",
                        size=row.size,
                        sha256=row.sha256,
                    )
                )
            case "write":
                back.append(
                    Row(
                        seq=row.seq,
                        kind="write",
                        label="restore",
                        dst=row.dst,
                        reason=why,
                        size=row.before_size,
                        mtime_ns=row.before_mtime_ns,
                        sha256=row.before_sha256,
                        before_size=row.size,
                        before_sha256=row.sha256,
                    )
                )
    made = sorted((row for row in rows if row.kind == "mkdir"), key=lambda row: row.seq, reverse=True)
    back += [Row(seq=above + 1 + n, kind="rmdir", src=row.dst) for n, row in enumerate(made)]
    return back


def _subject(row: Row) -> Path:
    return Path(row.src or row.dst or "")


def _must_write(catalog: Catalog) -> None:
    if not catalog.writable:
        raise StateError("opened for reading: nothing can be changed", where=str(catalog.state_dir), mend="use dry_run")
