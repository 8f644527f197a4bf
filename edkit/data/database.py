"""SQLite files as edkit's state needs them: checked schema, one writer, readers that create nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from edkit.data.errors import NoSpace, StateError

_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "fuse.sshfs", "ncpfs", "ceph", "glusterfs", "beegfs", "lustre")
_BUSY_SECONDS = 30.0


def open_database(
    path: Path,
    *,
    schema: str,
    version: int,
    write: bool,
    durable: bool,
    say: Callable[[str], None],
    upgrades: Mapping[int, str] = MappingProxyType({}),
) -> sqlite3.Connection:
    """Open one database; for reading, an absent file is an empty one in memory.

    `upgrades[n]` is what brings version n - 1 to n; a reader leaves an older file as it is. `durable`
    commits wait for the disk. WAL where it works, else a rollback journal (said through `say`).
    Raises StateError for a damaged file or one that a newer edkit wrote.
    """
    with told(path):
        if write:
            db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        elif path.is_file():
            db = _open_reading(path)
        else:
            db = _empty(schema)
        known = int(db.execute("PRAGMA user_version").fetchone()[0])
        if known > version:
            db.close()
            raise StateError(
                f"written by a newer edkit (schema {known}, this one knows {version})",
                where=str(path),
                mend="pip install --upgrade edkit",
            )
        if not write:
            if known == 0:  # killed before it had a schema: nothing was ever in it
                db.close()
                return _empty(schema)
            return db
        _set_journal_mode(db, path, say)
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        db.execute("PRAGMA cache_size = -32768")  # KiB
        if known == 0:
            with transaction(db):
                _create(db, schema, version)
        elif known < version:
            with transaction(db):
                for number in range(known + 1, version + 1):
                    _create(db, upgrades[number], number)
        return db


def close_database(db: sqlite3.Connection, *, write: bool) -> None:
    """Close; a writer leaves one plain file, which a read-only folder can hold and a copy takes along."""
    if write:
        db.execute("PRAGMA busy_timeout = 0")
        with contextlib.suppress(sqlite3.OperationalError):  # a reader is still there: the WAL stays for it
            db.execute("PRAGMA journal_mode = DELETE")
    db.close()


class transaction:
    """One transaction: committed at the end, rolled back where anything was raised."""

    # A class, not a generator: Ctrl-C on the way out of a generator's __enter__ leaves its BEGIN standing, and what
    # the caller then wants to keep meets "a transaction within a transaction".

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        if self._db.in_transaction:  # Ctrl-C came between BEGIN and the block
            self._db.execute("ROLLBACK")
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about `path` into edkit's one-line errors."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "disk is full" in text:
            raise NoSpace("the disk is full", where=str(path), mend="free some space and run again") from error
        if "readonly" in text or "unable to open" in text:
            raise StateError(
                f"can't be opened: {text}", where=str(path), mend="keep the state elsewhere: --state-dir"
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise StateError(text, where=str(path)) from error
        raise StateError(f"damaged: {text}", where=str(path), mend=_mend(path)) from error


def _mend(path: Path) -> str:
    if path.name == "facts.db":
        return "delete it; what it holds is measured again"
    return "move it away to start a new journal, or bring back a copy"


def _create(db: sqlite3.Connection, schema: str, version: int) -> None:
    for statement in schema.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {version}")


def _empty(schema: str) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _create(db, schema, 0)
    return db


def _open_reading(path: Path) -> sqlite3.Connection:
    name = quote(os.fsencode(path.absolute().as_posix()))
    # "file:/C:/x", "file:/home/x", "file:////server/share/x": SQLite knows no host in its addresses
    uri = "file:" + ("//" + name if name.startswith("//") else name if name.startswith("/") else "/" + name)

    def attempt(options: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{uri}?{options}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error:
            db.close()
            raise
        return db

    try:
        return attempt("mode=ro")
    except sqlite3.OperationalError:
        # a WAL left by a killed writer, in a folder where its index can't be made: nobody can write here
        if os.access(path.parent, os.W_OK):
            raise
        return attempt("mode=ro&immutable=1")


def _set_journal_mode(db: sqlite3.Connection, path: Path, say: Callable[[str], None]) -> None:
    if on_network(path):
        mode, why = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0], "a network drive"
    else:
        try:
            mode, why = db.execute("PRAGMA journal_mode = WAL").fetchone()[0], "this file system"
        except sqlite3.OperationalError as error:
            if "locked" in str(error):  # a reader of the plain file: as good without the WAL, this once
                return
            mode, why = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0], "this file system"
    if mode != "wal":
        say(f"{path}: {why} can't hold a write-ahead log; using a rollback journal (slower, as safe)")


def on_network(path: Path) -> bool:
    """Whether a path lies on a network drive, as far as the system says so."""
    if sys.platform == "win32":
        import ctypes

        anchor = path.absolute().anchor
        return anchor.startswith("\\\\") or ctypes.windll.kernel32.GetDriveTypeW(anchor) == 4  # DRIVE_REMOTE
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux: SQLite's own refusal is the only sign
        return False
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest.split(" ")[0]
    return kind.startswith(_NETWORK)
