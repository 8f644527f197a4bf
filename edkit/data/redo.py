"""Carries out journaled changes so that doing any of it a second time, after a crash, is harmless.

An operation runs through phases, and each phase is durable before the next begins:

    0  make folders
    1  vacate: what goes to the trash, and files whose name another one takes (they get a temporary one)
    2  place: moves (from their name or the temporary one), restored and written files
    3  remove folders that undo has emptied
    4  finished

Within a phase no two changes touch one name. So whether a change was already carried out can be told from its
own names alone, and an operation cut off anywhere is finished by running its unfinished phase again. Swaps,
rings and changes of case alone are ordinary here: they pass through the temporary name. A change that can't
be carried out (the file is gone, was changed meanwhile, a name is taken) is skipped with its reason; nothing
is ever overwritten.
"""

# text paths: Path objects cost more than the work itself in loops over a million files
# ruff: noqa: PTH103, PTH105, PTH106, PTH108, PTH114, PTH116, PTH118
# ruff: noqa: PTH120, PTH122, PTH123
from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from edkit.data.atomic import copy_new, move_new, rename_new, same_bytes, sha256_of, sync_folder, write_synced
from edkit.data.database import transaction
from edkit.data.errors import NoSpace
from edkit.data.places import Places, waiting_name
from edkit.data.progress import SILENT, Progress

FINISHED = 4
PENDING, VACATED, DONE, SKIPPED = 0, 1, 2, 3
FOLDERS = ("mkdir", "rmdir")
TOLD = "kind NOT IN ('mkdir', 'rmdir')"  # the changes that people are told of
_BATCH = 1000

COLUMNS = (
    "operation, seq, kind, label, src, dst, hop, reason, facts, size, mtime_ns, sha256, "
    "before_size, before_mtime_ns, before_sha256, step, note, undone"
)
_NAMES = tuple(name.strip() for name in COLUMNS.split(","))
_SYNCS = 16  # waits for the disk at a time: a file system brings them home together


@dataclass(slots=True, kw_only=True)
class Row:
    """One journaled change; paths absolute, hashes hex.

    `size`, `mtime_ns` and `sha256` (where known) are of the content that moves, goes to the trash, is
    restored or written; `before_*` of the content a `write` replaces.
    """

    seq: int
    kind: str  # mkdir, rmdir, move, trash, restore, write, delete
    operation: int = 0
    label: str = ""
    src: str | None = None
    dst: str | None = None
    hop: bool = False  # waits under a temporary name between phases 1 and 2
    reason: str = ""
    facts: str | None = None  # JSON
    size: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    before_size: int | None = None
    before_mtime_ns: int | None = None
    before_sha256: str | None = None
    step: int = PENDING
    note: str = ""  # why it was skipped, or what was different
    undone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What carrying out needs of a catalog."""

    db: sqlite3.Connection
    told: Callable[[], AbstractContextManager[None]]  # one thread at a time; SQLite's errors told in one line
    places: Places
    trash_dir: str
    take_seen: Callable[[Sequence[str]], dict[str, object]]  # what is cached about files by name, taken out
    give_seen: Callable[[Iterable[tuple[str, object]]], None]  # and put back under their new names
    progress: Progress = field(default=SILENT)

    def rows(self, where: str, values: Sequence[object] = (), *, limit: str = "") -> list[Row]:
        """The journaled changes that match, in order."""
        with self.told():
            found = self.db.execute(
                f"SELECT {COLUMNS} FROM change WHERE {where} ORDER BY operation, seq {limit}", values
            ).fetchall()
        return [self._row(values) for values in found]

    def _row(self, values: Sequence[object]) -> Row:
        row = Row(**dict(zip(_NAMES, values, strict=True)))  # type: ignore[arg-type]
        row.src = None if row.src is None else self.places.path(row.src)
        row.dst = None if row.dst is None else self.places.path(row.dst)
        row.hop, row.undone = bool(row.hop), bool(row.undone)
        return row

    def trash_path(self, sha256: str) -> str:
        """Where the trash keeps a content: under its hash, without an image's ending for others to find."""
        return os.path.join(self.trash_dir, sha256[:2], sha256)


class _Skip(Exception):
    """This change can't be carried out; the reason goes into the journal."""


def unfinished(site: Site) -> list[tuple[int, str]]:
    """Number and verb of every operation that a killed process left, or that another process is at."""
    with site.told():
        return site.db.execute(f"SELECT id, verb FROM operation WHERE phase < {FINISHED} ORDER BY id").fetchall()


def finish_unfinished(site: Site) -> list[int]:
    """Carry on with operations that a killed process left; their numbers."""
    found = unfinished(site)
    for operation, verb in found:
        site.progress.say(f"finishing operation {operation} ({verb}), which was interrupted")
        carry_out(site, operation)
    return [operation for operation, _ in found]


def carry_out(site: Site, operation: int) -> None:
    """Bring a journaled operation to its end, from whichever phase it is in.

    Raises NoSpace where the disk is full: the operation stays unfinished and the next writer goes on with it.
    """
    with site.told():
        phase, verb, token, undoes = site.db.execute(
            "SELECT phase, verb, token, undoes FROM operation WHERE id = ?", [operation]
        ).fetchone()
        total = site.db.execute(
            "SELECT count(*) FROM change WHERE operation = ? AND step < ?", [operation, DONE]
        ).fetchone()[0]
    with (
        ThreadPoolExecutor(_SYNCS) as pool,
        site.progress.task(verb, total=total, unit="files") as advance,
    ):
        worker = _Worker(site, operation, token, pool)
        while phase < FINISHED:
            for num_done in worker.run(phase):
                advance(num_done)
            phase += 1
            with site.told(), transaction(site.db):
                if phase == FINISHED:
                    _mark_undone(site.db, operation, undoes)
                site.db.execute("UPDATE operation SET phase = ? WHERE id = ?", [phase, operation])
        worker.drop_unneeded()


def _mark_undone(db: sqlite3.Connection, operation: int, undoes: int | None) -> None:
    db.execute("DELETE FROM staged WHERE operation = ?", [operation])
    if undoes is not None:
        db.execute(
            "UPDATE change SET undone = 1 WHERE operation = ? AND seq IN "
            f"(SELECT seq FROM change WHERE operation = ? AND step = {DONE})",
            [undoes, operation],
        )
        db.execute("UPDATE operation SET undone_by = ? WHERE id = ? AND undone_by IS NULL", [operation, undoes])


_PHASES = (
    f"kind = 'mkdir' AND step = {PENDING}",
    f"(kind IN ('trash', 'delete') OR hop) AND step = {PENDING}",
    f"kind IN ('move', 'restore', 'write') AND step = hop * {VACATED}",
    f"kind = 'rmdir' AND step = {PENDING}",
)


class _Worker:
    """Carries out one operation's changes."""

    def __init__(self, site: Site, operation: int, token: str, pool: ThreadPoolExecutor) -> None:
        self.site, self.operation, self.token, self.pool = site, operation, token, pool
        self.ready: set[int] = set()  # changes whose new content waits, synced, beside its final name
        self.touched: set[str] = set()  # folders whose names changed since the last sync

    def run(self, phase: int) -> Iterator[int]:
        """Carry out a phase in batches; yields how many changes each brought to their end."""
        last = -1
        while rows := self.site.rows(
            f"operation = ? AND seq > ? AND {_PHASES[phase]}", [self.operation, last], limit=f"LIMIT {_BATCH}"
        ):
            last = rows[-1].seq
            self._run_batch(phase, rows)
            yield sum(row.step >= DONE for row in rows)

    def _run_batch(self, phase: int, rows: list[Row]) -> None:
        names = {row.seq: self._from(phase, row) for row in rows}
        seen = self.site.take_seen([name for name in names.values() if name is not None])
        if phase == 2:
            self._prepare([row for row in rows if row.kind == "write"])
        for row in rows:
            try:
                self._step(phase, row)
            except _Skip as skip:
                self._leave(phase, row, str(skip))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpace(
                        "the disk is full",
                        where=error.filename or row.dst or row.src,
                        mend="free some space and run again: the operation is finished then",
                    ) from error
                self._leave(phase, row, error.strerror or str(error))
        self._sync()
        moved = ((self._to(phase, row), seen[old]) for row in rows if (old := names[row.seq]) in seen)
        self.site.give_seen((new, what) for new, what in moved if new is not None)
        key = self.site.places.key
        with self.site.told(), transaction(self.site.db):
            self.site.db.executemany(
                "UPDATE change SET step = ?, note = ?, size = ?, mtime_ns = ? WHERE operation = ? AND seq = ?",
                ((r.step, r.note, r.size, r.mtime_ns, self.operation, r.seq) for r in rows),
            )
            self.site.db.executemany(
                "UPDATE change SET dst = ? WHERE operation = ? AND seq = ?",
                ((r.dst and key(r.dst), self.operation, r.seq) for r in rows if r.note),  # kept under another name
            )

    def _sync(self) -> None:
        """Make the names changed since the last time durable."""
        if len(self.touched) > 2:
            list(self.pool.map(sync_folder, self.touched))
        else:
            for folder in self.touched:
                sync_folder(folder)
        self.touched.clear()

    def _leave(self, phase: int, row: Row, why: str) -> None:
        """Skip a change; a file that waits under its temporary name gets a visible one again."""
        row.step, row.note = SKIPPED, why
        if phase != 2 or not row.hop or not os.path.lexists(self._waiting(row)):
            return
        src = name = _some(row.src)
        if os.path.lexists(src):
            stem, suffix = os.path.splitext(src)
            name = f"{stem} (kept {self.token}-{row.seq}){suffix}"
        rename_new(self._waiting(row), name)
        self._touch(name)
        if name != src:
            row.step, row.dst, row.note = DONE, name, f"{why}, and its old name is taken: kept as {name}"

    def _from(self, phase: int, row: Row) -> str | None:
        return self._waiting(row) if phase == 2 and row.hop else row.src

    def _to(self, phase: int, row: Row) -> str | None:
        """Where the file that was at `_from` stands after the step; None: in the trash."""
        if row.step == SKIPPED:
            return self._from(phase, row)
        return self._waiting(row) if row.step == VACATED else row.dst

    def _waiting(self, row: Row) -> str:
        """The temporary name between vacate and place."""
        assert row.src is not None
        return os.path.join(os.path.dirname(row.src), waiting_name(self.token, row.seq))

    def _part(self, row: Row) -> str:
        """The temporary name of a file that is being written beside its final name."""
        assert row.dst is not None
        return os.path.join(os.path.dirname(row.dst), f".edkit-{self.token}-{row.seq}.part")

    def _step(self, phase: int, row: Row) -> None:
        match row.kind:
            case "mkdir":
                os.makedirs(_some(row.dst), exist_ok=True)
                self._touch(row.dst)
            case "rmdir":
                self._remove_folder(row)
            case "trash":
                self._to_trash(row)
            case "delete":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.site.trash_path(_some(row.sha256)))
            case "move" if phase == 1:
                self._vacate(row)
                return
            case "move":
                self._place(row)
            case "restore":
                self._restore(row)
            case "write":
                self._write(row)
            case kind:
                raise AssertionError(kind)
        row.step = DONE

    # -------------------------------------------------------------- phase 1

    def _vacate(self, row: Row) -> None:
        src, waiting = _some(row.src), self._waiting(row)
        if not os.path.lexists(waiting):
            self._expect(src, row)
            rename_new(src, waiting)
            self._touch(src)
        row.step = VACATED

    def _to_trash(self, row: Row) -> None:
        src, kept = _some(row.src), self.site.trash_path(_some(row.sha256))
        there = os.path.lexists(kept)
        if there and not os.path.lexists(src):
            return  # done before the crash
        self._expect(src, row)
        if there:
            # the same content twice, or a crash between copy and unlink on another volume
            if not same_bytes(src, kept):
                raise _Skip("it changed meanwhile")
            os.unlink(src)
        else:
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            move_new(src, kept, kept + ".part")
            self._touch(kept)
        self._touch(src)

    # -------------------------------------------------------------- phase 2

    def _place(self, row: Row) -> None:
        src, dst = self._waiting(row) if row.hop else _some(row.src), _some(row.dst)
        here, there = lstat_or_none(src), lstat_or_none(dst)
        if here is None:
            if there is not None and matches(dst, there, row):
                return  # done before the crash
            raise _Skip("it is gone")
        if there is not None:
            if here.st_dev != there.st_dev and matches(dst, there, row) and same_bytes(src, dst):
                os.unlink(src)  # a crash between copy and unlink on another volume
                self._touch(src)
                return
            if not row.hop and matches(dst, there, row) and not matches(src, here, row):
                return  # done before the crash, and someone has put a new file under the old name
            raise _Skip(f"{dst} exists already")
        if not row.hop and not matches(src, here, row):
            raise _Skip("it changed meanwhile")
        if move_new(src, dst, self._part(row)):
            info = os.lstat(dst)  # another volume may keep coarser times
            row.size, row.mtime_ns = info.st_size, info.st_mtime_ns
        self._touch(src)
        self._touch(dst)

    def _restore(self, row: Row) -> None:
        dst, sha256 = _some(row.dst), _some(row.sha256)
        kept, there = self.site.trash_path(sha256), lstat_or_none(dst)
        if there is not None:
            if there.st_size != row.size or sha256_of(dst) != sha256:
                raise _Skip("a new file stands there")
        elif not os.path.lexists(kept):
            raise _Skip("its content is no longer in the trash")
        elif self._num_needing(sha256) == 1:
            move_new(kept, dst, self._part(row))
        else:
            copy_new(kept, dst, self._part(row))
        _set_time(dst, row.mtime_ns)
        self._touch(dst)

    def _prepare(self, rows: list[Row]) -> None:
        """The slow part of many writes at once: old contents kept, new ones synced beside their names."""

        def work(row: Row, content: bytes) -> None:
            # what goes wrong here (or is not to be written at all) is met again, and told, in `_write`
            with contextlib.suppress(OSError, _Skip):
                self._keep_old(row)
                write_synced(self._part(row), content)
                self.ready.add(row.seq)

        if len(rows) <= 4:  # not worth the threads
            return
        contents: list[tuple[Row, bytes]] = []
        for row in rows:
            with contextlib.suppress(OSError, _Skip):
                contents.append((row, self._content(row)))
        list(self.pool.map(work, *zip(*contents, strict=True)) if contents else [])
        self._sync()

    def _keep_old(self, row: Row) -> None:
        """Copy what a `write` replaces into the trash, unless it is there already."""
        if row.before_sha256 is None:
            return
        dst, kept = _some(row.dst), self.site.trash_path(row.before_sha256)
        self._expect(
            dst,
            Row(seq=0, kind="", size=row.before_size, mtime_ns=row.before_mtime_ns, sha256=row.before_sha256),
        )
        if not os.path.lexists(kept):
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another file held the same and was quicker
                copy_new(dst, kept, f"{kept}.{row.seq}.part")
            self._touch(kept)

    def _write(self, row: Row) -> None:
        try:
            self._write_over(row)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part(row))

    def _write_over(self, row: Row) -> None:
        dst, part, there = _some(row.dst), self._part(row), lstat_or_none(_some(row.dst))
        if there is not None and there.st_size == row.size and sha256_of(dst) == row.sha256:
            return  # done before the crash
        if row.before_sha256 is None and there is not None:
            raise _Skip("a new file stands there")
        self._keep_old(row)
        if row.seq not in self.ready:
            self._sync()  # the old content must be safe before the new one takes its place
            write_synced(part, self._content(row))
        if there is None:
            _set_time(part, row.mtime_ns)
            rename_new(part, dst)
        else:
            shutil.copymode(dst, part)
            _set_time(part, row.mtime_ns)
            os.replace(part, dst)
        self._touch(dst)

    def _content(self, row: Row) -> bytes:
        """What a row writes: staged with the journal, or (undo) the old content from the trash."""
        with self.site.told():
            staged = self.site.db.execute(
                "SELECT data FROM staged WHERE operation = ? AND seq = ?", [self.operation, row.seq]
            ).fetchone()
        if staged is not None:
            return bytes(staged[0])
        try:
            with open(self.site.trash_path(_some(row.sha256)), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise _Skip("its old content is no longer in the trash") from None

    # -------------------------------------------------------------- phase 3 and after

    def _remove_folder(self, row: Row) -> None:
        try:
            os.rmdir(_some(row.src))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
                raise _Skip("the folder holds other files") from None
            raise
        self._touch(row.src)

    def drop_unneeded(self) -> None:
        """Let go of trashed contents that this operation has put back and no other needs for its undo."""
        back = self.site.rows(
            f"operation = ? AND step = {DONE} AND (kind = 'restore' OR kind = 'write' AND EXISTS "
            "(SELECT 1 FROM operation WHERE id = change.operation AND undoes IS NOT NULL))",
            [self.operation],
        )
        for sha256 in {_some(row.sha256) for row in back}:
            if self._num_needing(sha256) == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.site.trash_path(sha256))

    def _num_needing(self, sha256: str) -> int:
        """How many changes could not be undone without this content in the trash."""
        with self.site.told():
            found = self.site.db.execute(
                "SELECT count(*) FROM change JOIN operation ON operation.id = change.operation "
                f"WHERE change.step = {DONE} AND NOT change.undone AND operation.kind = 'apply' "
                "AND (change.kind = 'trash' AND change.sha256 = ?1 OR change.before_sha256 = ?1)",
                [sha256],
            ).fetchone()
        return int(found[0])

    # -------------------------------------------------------------- shared

    def _expect(self, path: str, row: Row) -> None:
        info = lstat_or_none(path)
        if info is None:
            raise _Skip("it is gone")
        if not matches(path, info, row):
            raise _Skip("it changed meanwhile")

    def _touch(self, path: str | None) -> None:
        self.touched.add(os.path.dirname(_some(path)))


def matches(path: str, info: os.stat_result, row: Row) -> bool:
    """Whether a file is the one that was journaled: by size and time, else (where known) by content."""
    if row.size is not None and info.st_size != row.size:
        return False
    if row.mtime_ns is not None and info.st_mtime_ns == row.mtime_ns:
        return True
    return row.sha256 is not None and sha256_of(path) == row.sha256


def lstat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _set_time(path: str, mtime_ns: int | None) -> None:
    if mtime_ns is None or os.path.islink(path):
        return
    info = os.stat(path)
    if info.st_mtime_ns != mtime_ns:
        with contextlib.suppress(PermissionError):  # someone else's file: its content is what matters
            os.utime(path, ns=(info.st_atime_ns, mtime_ns))


def _some(value: str | None) -> str:
    assert value is not None
    return value
