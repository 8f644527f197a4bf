"""The one door to edkit's databases: content ids, facts, small caches and the ledger of a data root.

The state folder holds `edkit.db` (ledger and journal: what can't be made again; every commit waits for the
disk), `facts.db` (what costs only time to make again), `cache/`, `trash/` and `lock`. All paths in the
interface are absolute; the databases hold them relative to the folder the state belongs to.
"""

# text paths: Path objects cost more than the work itself in loops over a million files
# ruff: noqa: PTH116
from __future__ import annotations

import errno
import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from edkit.data.atomic import sha256_of
from edkit.data.database import close_database, open_database, told, transaction
from edkit.data.errors import BadInput, NoSpace, StateError
from edkit.data.lock import Lock
from edkit.data.places import SETTLED_NS, Places, state_dir_for
from edkit.data.progress import SILENT, Progress
from edkit.data.redo import Site, finish_unfinished

__all__ = [
    "Catalog",
    "FactValue",
    "Gathering",
    "LedgerRow",
    "Tried",
    "Unreadable",
    "has_state",
    "opened",
    "state_dir_for",
]

FactValue = int | float | str | bytes | None
"""What a fact can be: ints of 64 bits with sign; anything larger goes as bytes or text."""

_T = TypeVar("_T")
_ASK = 500  # names or ids asked for in one SQL statement
_NONE = b"\0none"  # a fact that is known to be None, where NULL is one that is not known
_JSON = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder anew each time

_GATHERED_SCHEMA = """
CREATE TABLE gathering (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, ended REAL, who TEXT NOT NULL, pid INTEGER NOT NULL,
    command TEXT NOT NULL, query TEXT NOT NULL, folder NOT NULL
);
CREATE TABLE gathered (gathering INTEGER NOT NULL, outcome TEXT NOT NULL, num_rows INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL, PRIMARY KEY (gathering, outcome)) WITHOUT ROWID
"""
_EDKIT_VERSION = 2
_EDKIT_UPGRADES = {2: _GATHERED_SCHEMA}
_EDKIT_SCHEMA = f"""
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, outcome TEXT NOT NULL, url TEXT,
    final_url TEXT, http_status INTEGER, reason TEXT, sha256 TEXT, num_bytes INTEGER, width INTEGER,
    height INTEGER, caption TEXT, licence TEXT, author TEXT, source TEXT, row INTEGER, path, query TEXT,
    extra TEXT
);
CREATE INDEX ledger_url ON ledger (url);
CREATE INDEX ledger_sha256 ON ledger (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX ledger_path ON ledger (path) WHERE path IS NOT NULL;
CREATE INDEX ledger_query ON ledger (query, outcome);
CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, who TEXT NOT NULL, pid INTEGER NOT NULL,
    verb TEXT NOT NULL, command TEXT NOT NULL, kind TEXT NOT NULL, token TEXT NOT NULL,
    phase INTEGER NOT NULL, undoes INTEGER, undone_by INTEGER
);
CREATE INDEX operation_unfinished ON operation (phase) WHERE phase < 4;
CREATE TABLE change (
    operation INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, label TEXT NOT NULL, src, dst,
    hop INTEGER NOT NULL, reason TEXT NOT NULL, facts TEXT, size INTEGER, mtime_ns INTEGER, sha256 TEXT,
    before_size INTEGER, before_mtime_ns INTEGER, before_sha256 TEXT,
    step INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '', undone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (operation, seq)
) WITHOUT ROWID;
CREATE INDEX change_src ON change (src) WHERE src IS NOT NULL;
CREATE INDEX change_dst ON change (dst) WHERE dst IS NOT NULL;
CREATE INDEX change_sha256 ON change (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX change_before ON change (before_sha256) WHERE before_sha256 IS NOT NULL;
CREATE TABLE staged (operation INTEGER NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (operation, seq));
{_GATHERED_SCHEMA}
"""

_FACTS_VERSION = 1
_FACTS_SCHEMA = """
CREATE TABLE seen (path PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE cached (path, kind TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, value,
    PRIMARY KEY (path, kind)) WITHOUT ROWID;
CREATE TABLE content (id INTEGER PRIMARY KEY, key NOT NULL UNIQUE);
CREATE TABLE name (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE fact (content INTEGER NOT NULL, name INTEGER NOT NULL, value, PRIMARY KEY (content, name))
    WITHOUT ROWID
"""


class Unreadable(str):
    """Stands where a content id would: why the file could not be read."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """What became of one candidate: where it came from, how the fetch ended, and the file that holds it."""

    outcome: str  # "ok", or a stable word for what went wrong
    url: str | None = None
    final_url: str | None = None  # after redirects
    time: float | None = None  # seconds since 1970; None: now
    http_status: int | None = None
    reason: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    licence: str | None = None
    author: str | None = None
    source: str | None = None  # the table it was found in
    row: int | None = None
    path: Path | None = None  # as it was when it was fetched; `why` follows later renames
    query: str | None = None  # id of the search it was found by
    extra: Mapping[str, object] | None = None  # anything else, as JSON
    who: str | None = None  # None: this user on this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """One run of a command that gathers: what it tried, as it stood when the run ended or was killed."""

    id: int
    time: float  # seconds since 1970
    ended: float | None  # None: interrupted, killed, or still at it
    who: str  # user@host
    pid: int
    command: str
    query: str
    folder: Path
    outcomes: Mapping[str, int]  # ledger code -> rows
    num_bytes: int  # of what was kept

    @property
    def num_tried(self) -> int:
        """Rows of the ledger this run wrote."""
        return sum(self.outcomes.values())

    @property
    def num_kept(self) -> int:
        """Images it added."""
        return self.outcomes.get("ok", 0)

    @property
    def num_failed(self) -> int:
        """Rows that gave no image: neither kept, nor good and not needed."""
        return sum(n for code, n in self.outcomes.items() if code not in ("ok", "duplicate", "surplus"))


class Tried(NamedTuple):
    """The little of a ledger row that says whether its URL is to be tried again."""

    outcome: str
    query: str | None
    path: str | None  # absolute; no Path, which costs more than the look-up
    extra: str | None  # JSON


_LEDGER_COLUMNS = tuple(field.name for field in fields(LedgerRow))


class Catalog:
    """A data root's databases, open for reading or (one process at a time) for writing. A context manager.

    Opened for reading, it creates nothing; facts and cache entries put into it live as long as it does.
    Methods may be called from any thread.
    """

    def __init__(
        self, root: Path, state_dir: Path, *, write: bool, command: str = "", progress: Progress = SILENT
    ) -> None:
        self.root, self.state_dir, self.writable, self.command = root, state_dir, write, command
        self.cache_dir, self.trash_dir = state_dir / "cache", state_dir / "trash"
        self.places = Places(state_dir)
        self.who = _who()
        self.recovered: list[int] = []  # operations of a killed process that were finished on opening
        self._guard = threading.RLock()
        self._lock: Lock | None = None
        # a reader's own findings, gone when it closes
        self._facts: dict[tuple[str, str], FactValue] = {}
        self._seen: dict[Path, tuple[int, int, str]] = {}
        self._cached: dict[tuple[str, Path], tuple[int, int, object]] = {}
        if write:
            _make(state_dir)
            self._lock = Lock(state_dir / "lock", command=command)
        try:
            self.db = open_database(
                state_dir / "edkit.db",
                schema=_EDKIT_SCHEMA,
                version=_EDKIT_VERSION,
                write=write,
                durable=True,
                say=progress.say,
                upgrades=_EDKIT_UPGRADES,
            )
            try:
                self._facts_db = open_database(
                    state_dir / "facts.db",
                    schema=_FACTS_SCHEMA,
                    version=_FACTS_VERSION,
                    write=write,
                    durable=False,
                    say=lambda line: None,
                )
            except BaseException:
                self.db.close()
                raise
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    @staticmethod
    def open(
        root: Path,
        *,
        state_dir: Path | None = None,
        write: bool = True,
        command: str = "",
        progress: Progress = SILENT,
    ) -> Catalog:
        """Open the catalog of a data root (a folder or a manifest).

        `write` takes the lock and finishes what a killed process left half done. Raises StateError where
        another process writes, where the state is damaged or newer than this edkit.
        """
        found = state_dir_for(root, state_dir)
        catalog = Catalog(Path(root).absolute(), found, write=write, command=command, progress=progress)
        if write:
            try:
                catalog.recovered = finish_unfinished(catalog.site(progress))
            except BaseException:
                catalog.close()
                raise
        return catalog

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the databases and let go of the lock."""
        try:
            close_database(self._facts_db, write=self.writable)
            close_database(self.db, write=self.writable)
        finally:
            if self._lock is not None:
                self._lock.release()

    # ------------------------------------------------------------------ contents

    def content_ids(self, paths: Iterable[Path], *, progress: Progress = SILENT) -> dict[Path, str]:
        """The SHA-256 (hex) of every file; an `Unreadable` with the reason for those that can't be read.

        A file whose size and modification time are known is not read again.
        """
        found: dict[Path, str] = {}
        missing: list[tuple[Path, int, int]] = []
        for path, size, mtime_ns, known in self._look_up(paths, found):
            if known is not None:
                found[path] = known
            else:
                missing.append((path, size, mtime_ns))
        if missing:
            fresh: list[tuple[Path, int, int, str]] = []
            with (
                progress.task("hashing", total=len(missing), unit="files") as advance,
                ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            ):
                for part in _batches(missing, 2048):
                    for (path, size, mtime_ns), sha256 in zip(part, pool.map(_hash, part), strict=True):
                        found[path] = sha256
                        if not isinstance(sha256, Unreadable):
                            fresh.append((path, size, mtime_ns, sha256))
                        advance(1)
                    self.put_seen(fresh)
                    fresh.clear()
        return found

    def _look_up(self, paths: Iterable[Path], found: dict[Path, str]) -> Iterator[tuple[Path, int, int, str | None]]:
        """(path, size, mtime_ns, content id where known); what can't be looked at goes into `found`."""
        for part in _batches(paths, _ASK):
            keys = [self.places.key(path) for path in part]
            marks = ",".join("?" * len(keys))
            with self._facts_told():
                rows = self._facts_db.execute(
                    f"SELECT path, size, mtime_ns, sha256 FROM seen WHERE path IN ({marks})", keys
                ).fetchall()
            known = {row[0]: row for row in rows}
            for path, key in zip(part, keys, strict=True):
                try:
                    info = os.stat(path)
                except OSError as error:
                    found[path] = Unreadable(error.strerror or str(error))
                    continue
                size, mtime_ns = info.st_size, info.st_mtime_ns
                own = self._seen.get(path)
                if own is not None and own[:2] == (size, mtime_ns):
                    yield path, size, mtime_ns, own[2]
                elif key in known and known[key][1:3] == (size, mtime_ns):
                    yield path, size, mtime_ns, known[key][3].hex()
                else:
                    yield path, size, mtime_ns, None

    def put_seen(self, rows: Iterable[tuple[Path, int, int, str]]) -> None:
        """Remember content ids already known: (path, size, mtime_ns, sha256) as it was when read."""
        now = time.time_ns()
        settled = [row for row in rows if abs(now - row[2]) > SETTLED_NS]
        if not self.writable:
            self._seen.update((path, (size, mtime_ns, sha256)) for path, size, mtime_ns, sha256 in settled)
            return
        with self._facts_told(), transaction(self._facts_db):
            self._facts_db.executemany(
                "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)",
                ((self.places.key(path), size, mtime, bytes.fromhex(sha)) for path, size, mtime, sha in settled),
            )

    # ------------------------------------------------------------------ facts

    def facts(self, ids: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, FactValue]]:
        """The known facts of some contents: id -> {fact name: value}; an id without any is left out."""
        wanted = list(dict.fromkeys(names))
        found: dict[str, dict[str, FactValue]] = {}
        asked = list(dict.fromkeys(ids))
        with self._facts_told():
            numbers = self._facts_db.execute(
                f"SELECT name, id FROM name WHERE name IN ({_marks(wanted)})", wanted
            ).fetchall()
        for part in _batches(asked, _ASK) if numbers else ():
            with self._facts_told():
                found.update(self._facts_of(part, numbers))
        if self._facts:
            for id in asked:
                for name in wanted:
                    if (id, name) in self._facts:
                        found.setdefault(id, {})[name] = self._facts[id, name]
        return found

    def _facts_of(self, ids: Sequence[str], numbers: Sequence[tuple[str, int]]) -> dict[str, dict[str, FactValue]]:
        """The facts by those names (and their numbers) of a few contents."""
        found: dict[str, dict[str, FactValue]] = {}
        marks, keys = _marks(ids), [_packed(id) for id in ids]
        names = [name for name, _ in numbers]
        # one row a content: a Python loop over single facts would take longer than SQLite does
        values = ", ".join(
            f"(SELECT value FROM fact WHERE content = c.id AND name = {number})" for _, number in numbers
        )
        for row in self._facts_db.execute(f"SELECT key, {values} FROM content AS c WHERE key IN ({marks})", keys):
            facts = dict(zip(names, row[1:], strict=True))
            if None in row:
                facts = {name: value for name, value in facts.items() if value is not None}
            if _NONE in row:
                facts = {name: None if value == _NONE else value for name, value in facts.items()}
            if facts:
                found[_unpacked(row[0])] = facts
        return found

    def put_facts(self, rows: Iterable[tuple[str, str, FactValue]]) -> None:
        """Remember facts: (content id, fact name with its version, value), in one transaction."""
        if not self.writable:
            self._facts.update(((id, name), value) for id, name, value in rows)
            return
        given = [(_packed(id), name, value) for id, name, value in rows]
        if not given:
            return
        keys = list({key for key, _, _ in given})
        with self._facts_told(), transaction(self._facts_db):
            db = self._facts_db
            db.executemany("INSERT OR IGNORE INTO content (key) VALUES (?)", ((key,) for key in keys))
            db.executemany("INSERT OR IGNORE INTO name (name) VALUES (?)", {(name,) for _, name, _ in given})
            names = dict(db.execute("SELECT name, id FROM name").fetchall())
            contents: dict[object, int] = {}
            for part in _batches(keys, _ASK):
                contents.update(db.execute(f"SELECT key, id FROM content WHERE key IN ({_marks(part)})", part))
            db.executemany(
                "INSERT OR REPLACE INTO fact (content, name, value) VALUES (?, ?, ?)",
                ((contents[key], names[name], _NONE if value is None else value) for key, name, value in given),
            )

    # ------------------------------------------------------------------ small caches by path

    def cached(self, kind: str, path: Path) -> object | None:
        """A small value kept for a file as it is now (path, size, time); None where there is none."""
        return self.cached_many(kind, [path]).get(path)

    def put_cached(self, kind: str, path: Path, value: object) -> None:
        """Keep a small value (JSON or bytes) for a file as it is now."""
        self.put_cached_many(kind, {path: value})

    def cached_many(
        self, kind: str, paths: Iterable[Path], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> dict[Path, object]:
        """The values kept for those files that have one; `stats` (size, mtime_ns) saves a look at each."""
        found: dict[Path, object] = {}
        for part in _batches(paths, _ASK):
            keys = [self.places.key(path) for path in part]
            with self._facts_told():
                rows = self._facts_db.execute(
                    f"SELECT path, size, mtime_ns, value FROM cached WHERE kind = ? AND path IN ({_marks(keys)})",
                    [kind, *keys],
                ).fetchall()
            known = {row[0]: row for row in rows}
            for path, key in zip(part, keys, strict=True):
                own, row = self._cached.get((kind, path)), known.get(key)
                if own is None and row is None:
                    continue
                stat = _stat(path, stats)
                if own is not None and own[:2] == stat:
                    found[path] = own[2]
                elif row is not None and row[1:3] == stat:
                    found[path] = json.loads(row[3]) if isinstance(row[3], str) else row[3]
        return found

    def put_cached_many(
        self, kind: str, values: Mapping[Path, object], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> None:
        """Keep small values (JSON or bytes); `stats` says what each file was like when its value was made."""
        now = time.time_ns()
        settled = [
            (path, *stat, value)
            for path, value in values.items()
            if (stat := _stat(path, stats)) is not None and abs(now - stat[1]) > SETTLED_NS
        ]
        if not self.writable:
            self._cached.update(((kind, path), (size, mtime, value)) for path, size, mtime, value in settled)
            return
        with self._facts_told(), transaction(self._facts_db):
            self._facts_db.executemany(
                "INSERT OR REPLACE INTO cached (path, kind, size, mtime_ns, value) VALUES (?, ?, ?, ?, ?)",
                (
                    (self.places.key(p), kind, size, mtime, v if isinstance(v, bytes) else json.dumps(v))
                    for p, size, mtime, v in settled
                ),
            )

    # ------------------------------------------------------------------ ledger

    def ledger_add(self, rows: Iterable[LedgerRow], *, gathering: int | None = None) -> None:
        """Add rows to the ledger in one transaction that is on the disk when this returns.

        `gathering` is the run whose tally they count in.
        """
        if not self.writable:
            raise StateError("opened for reading: the ledger can't be written", where=str(self.state_dir))
        columns, now = _LEDGER_COLUMNS, time.time()
        tally: dict[str, list[int]] = {}

        def values() -> Iterator[list[object]]:
            for row in rows:
                counted = tally.setdefault(row.outcome, [0, 0])
                counted[0] += 1
                counted[1] += row.num_bytes or 0
                yield self._ledger_values(row, now)

        with self.told(), transaction(self.db):
            self.db.executemany(f"INSERT INTO ledger ({', '.join(columns)}) VALUES ({_marks(columns)})", values())
            if gathering is not None:
                self.db.executemany(
                    "INSERT INTO gathered VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "num_rows = num_rows + excluded.num_rows, num_bytes = num_bytes + excluded.num_bytes",
                    [(gathering, code, n, num_bytes) for code, (n, num_bytes) in tally.items()],
                )

    def gathering_begin(self, *, query: str, folder: Path, since: float) -> int:
        """Enter a run of this catalog's command into the history; its number."""
        with self.told(), transaction(self.db):
            number = self.db.execute(
                "INSERT INTO gathering (time, who, pid, command, query, folder) VALUES (?, ?, ?, ?, ?, ?)",
                [since, self.who, os.getpid(), _storable(self.command), query, self.places.key(folder)],
            ).lastrowid
        assert number is not None
        return number

    def gathering_end(self, number: int) -> None:
        """Say that a run came to its end."""
        with self.told(), transaction(self.db):
            self.db.execute("UPDATE gathering SET ended = ? WHERE id = ?", [time.time(), number])

    def gatherings(self) -> list[Gathering]:
        """All runs that gathered, oldest first."""
        with self.told():
            if not self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'gathering'").fetchone():
                return []  # an older edkit's state, opened for reading
            tally: dict[int, dict[str, tuple[int, int]]] = {}
            for number, code, num_rows, num_bytes in self.db.execute("SELECT * FROM gathered"):
                tally.setdefault(number, {})[code] = (num_rows, num_bytes)
            rows = self.db.execute(
                "SELECT id, time, ended, who, pid, command, query, folder FROM gathering ORDER BY id"
            ).fetchall()
        return [
            Gathering(
                **dict(zip(("id", "time", "ended", "who", "pid", "command", "query"), row[:7], strict=True)),
                folder=Path(self.places.path(row[7])),
                outcomes={code: n for code, (n, _) in tally.get(row[0], {}).items()},
                num_bytes=tally.get(row[0], {}).get("ok", (0, 0))[1],
            )
            for row in rows
        ]

    def ledger_tried(self, urls: Iterable[str]) -> dict[str, list[Tried]]:
        """What was tried of these URLs before, oldest first; a URL never tried is left out."""
        found: dict[str, list[Tried]] = {}
        path_of = self.places.path
        for part in _batches(urls, _ASK):
            asked = [_storable(url) for url in part]
            with self.told():
                rows = self.db.execute(
                    f"SELECT url, outcome, query, path, extra FROM ledger WHERE url IN ({_marks(asked)}) ORDER BY id",
                    asked,
                ).fetchall()
            for url, outcome, query, path, extra in rows:
                found.setdefault(url, []).append(Tried(outcome, query, path and path_of(path), extra))
            for url, stored in zip(part, asked, strict=True):
                if url != stored and stored in found:
                    found[url] = found[str(stored)]
        return found

    def ledger_holding(self, ids: Iterable[str], *, outcome: str = "ok") -> dict[str, list[LedgerRow]]:
        """The rows of this outcome for each of some contents (SHA-256, hex), oldest first."""
        found: dict[str, list[LedgerRow]] = {}
        for part in _batches(ids, _ASK):
            with self.told():
                rows = self.db.execute(
                    f"SELECT {', '.join(_LEDGER_COLUMNS)} FROM ledger "
                    f"WHERE sha256 IN ({_marks(part)}) AND outcome = ? ORDER BY id",
                    [*part, outcome],
                ).fetchall()
            for row in map(self._ledger_row, rows):
                found.setdefault(str(row.sha256), []).append(row)
        return found

    def _ledger_values(self, row: LedgerRow, now: float) -> list[object]:
        values: dict[str, object] = {name: getattr(row, name) for name in _LEDGER_COLUMNS}
        values["time"] = now if row.time is None else row.time
        values["who"] = row.who or self.who
        values["path"] = None if row.path is None else self.places.key(row.path)
        values["extra"] = None if row.extra is None else _JSON(dict(row.extra))
        return [_storable(value) for value in values.values()]

    def ledger(
        self,
        *,
        url: str | None = None,
        sha256: str | None = None,
        path: Path | None = None,
        query: str | None = None,
        source: str | None = None,
        outcome: str | None = None,
    ) -> Iterator[LedgerRow]:
        """The ledger's rows that match all that is given, oldest first."""
        where, values = self._ledger_where(
            url=url, sha256=sha256, path=path, query=query, source=source, outcome=outcome
        )
        last = 0
        while True:  # by pages, so that the ledger may grow while it is read
            with self.told():
                rows = self.db.execute(
                    f"SELECT id, {', '.join(_LEDGER_COLUMNS)} FROM ledger WHERE {where} AND id > ? "
                    "ORDER BY id LIMIT 5000",
                    [*values, last],
                ).fetchall()
            for row in rows:
                yield self._ledger_row(row[1:])
            if len(rows) < 5000:
                return
            last = rows[-1][0]

    def add_derived(self, pairs: Iterable[tuple[str, str, Path]], *, by: str) -> None:
        """Remember what contents were made from: (new sha256, sha256 of what it was made from, its path).

        They are ledger rows of outcome "derived", so whoever asks where a file came from finds its source.
        """
        self.ledger_add(
            LedgerRow(outcome="derived", sha256=new, path=path, reason=f"made by {by}", extra={"from": old})
            for new, old, path in pairs
            if new != old
        )

    def origin(self, sha256: str) -> str:
        """The content that this one was made from by edkit, at the first source; itself where it was not made."""
        return self.origins([sha256])[sha256]

    def origins(self, ids: Iterable[str]) -> dict[str, str]:
        """`origin` of many contents."""
        asked = list(dict.fromkeys(ids))
        found = {id: id for id in asked}
        parents: dict[str, str | None] = {}
        ahead = asked
        while ahead:
            parents.update(dict.fromkeys(ahead))
            for part in _batches(ahead, _ASK):
                with self.told():
                    rows = self.db.execute(
                        "SELECT sha256, json_extract(extra, '$.from') FROM ledger "
                        f"WHERE outcome = 'derived' AND sha256 IN ({_marks(part)}) ORDER BY id",
                        part,
                    ).fetchall()
                parents.update(dict(rows))
            ahead = [old for new in ahead if (old := parents[new]) is not None and old not in parents]
        for id in asked:
            seen = {id}
            while (old := parents.get(found[id])) is not None and old not in seen:
                seen.add(old)
                found[id] = old
        return found

    def ledger_count(self, *, query: str | None = None, source: str | None = None, outcome: str | None = None) -> int:
        """How many rows of the ledger match all that is given."""
        where, values = self._ledger_where(query=query, source=source, outcome=outcome)
        with self.told():
            return int(self.db.execute(f"SELECT count(*) FROM ledger WHERE {where}", values).fetchone()[0])

    def _ledger_where(self, **given: object) -> tuple[str, list[object]]:
        terms, values = ["1"], []
        for name, value in given.items():
            if value is not None:
                terms.append(f"{name} = ?")
                values.append(self.places.key(value) if isinstance(value, Path) else value)
        return " AND ".join(terms), values

    def _ledger_row(self, row: Sequence[object]) -> LedgerRow:
        values = dict(zip(_LEDGER_COLUMNS, row, strict=True))
        if isinstance(values["path"], str | bytes):
            values["path"] = Path(self.places.path(values["path"]))
        if isinstance(values["extra"], str):
            values["extra"] = json.loads(values["extra"])
        return LedgerRow(**values)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ for the journal

    def site(self, progress: Progress = SILENT) -> Site:
        """What carrying out journaled changes needs."""
        return Site(
            db=self.db,
            told=self.told,
            places=self.places,
            trash_dir=os.fspath(self.trash_dir),
            take_seen=self._take_seen,
            give_seen=self._give_seen,
            progress=progress,
        )

    def known_content_ids(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The content ids of those files that are known without reading them."""
        unreadable: dict[Path, str] = {}
        return {path: known for path, _, _, known in self._look_up(paths, unreadable) if known is not None}

    def _take_seen(self, names: Sequence[str]) -> dict[str, object]:
        # taken out before the files move: a crash then costs a second look, and never a wrong answer
        taken: dict[str, list[tuple[str, Sequence[object]]]] = {}
        keys = {self.places.key(name): name for name in names}
        with self._facts_told(), transaction(self._facts_db):
            for part in _batches(keys, _ASK):
                for table in ("seen", "cached"):
                    where = f"FROM {table} WHERE path IN ({_marks(part)})"
                    for row in self._facts_db.execute(f"SELECT * {where}", part):
                        taken.setdefault(keys[row[0]], []).append((table, row[1:]))
                    self._facts_db.execute(f"DELETE {where}", part)
        return dict(taken)

    def _give_seen(self, files: Iterable[tuple[str, object]]) -> None:
        rows: dict[str, list[Sequence[object]]] = {"seen": [], "cached": []}
        for name, entries in files:
            for table, values in cast("list[tuple[str, Sequence[object]]]", entries):
                rows[table].append((self.places.key(name), *values))
        with self._facts_told(), transaction(self._facts_db):
            for table, values in rows.items():
                if values:
                    marks = _marks(values[0])
                    self._facts_db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)

    # ------------------------------------------------------------------ inner

    @contextmanager
    def told(self, name: str = "edkit.db") -> Iterator[None]:
        """One thread at a time, and SQLite's errors told in one line."""
        with self._guard, told(self.state_dir / name):
            yield

    def _facts_told(self) -> AbstractContextManager[None]:
        return self.told("facts.db")


@contextmanager
def opened(
    root: Path | Catalog,
    state_dir: Path | None = None,
    *,
    write: bool,
    command: str = "",
    progress: Progress = SILENT,
    may_be_gone: bool = False,
) -> Iterator[Catalog]:
    """A catalog that is open already, or the one of a data root for as long as the block lasts.

    Raises BadInput where there is no such data root, unless it `may_be_gone`.
    """
    if isinstance(root, Catalog):
        yield root
        return
    if not may_be_gone and not Path(root).exists():
        raise BadInput("no such folder or file", where=str(root))
    with Catalog.open(root, state_dir=state_dir, write=write, command=command, progress=progress) as catalog:
        yield catalog


def has_state(root: Path | Catalog, state_dir: Path | None = None) -> bool:
    """Whether edkit has a state of this data root: without one, there is nothing to look back on."""
    return isinstance(root, Catalog) or state_dir_for(root, state_dir).is_dir()


def _make(state_dir: Path) -> None:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace("the disk is full", where=str(state_dir)) from error
        raise StateError(
            f"can't be made: {error.strerror}",
            where=str(state_dir),
            mend="keep the state elsewhere: --state-dir",
        ) from error


def _hash(file: tuple[Path, int, int]) -> str:
    path, size, mtime_ns = file
    try:
        sha256 = sha256_of(os.path.realpath(path))
        after = os.stat(path)
    except OSError as error:
        return Unreadable(error.strerror or str(error))
    if (after.st_size, after.st_mtime_ns) != (size, mtime_ns):
        return Unreadable("it changed while it was read")
    return sha256


def _stat(path: Path, stats: Mapping[Path, tuple[int, int]] | None) -> tuple[int, int] | None:
    if stats is not None:
        return stats.get(path)
    try:
        info = os.stat(path)
    except OSError:  # what is not there has no cached value
        return None
    return info.st_size, info.st_mtime_ns


def _batches(items: Iterable[_T], n: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, n)):
        yield batch


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _packed(id: str) -> bytes | str:
    """A content hash as 32 bytes; any other id as it is."""
    if len(id) == 64:
        try:
            return bytes.fromhex(id)
        except ValueError:
            return id
    return id


def _unpacked(key: bytes | str) -> str:
    return key.hex() if isinstance(key, bytes) else key


def _storable(value: object) -> object:
    """Text that is not Unicode (an odd URL or caption) with its odd parts replaced."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{platform.node()}"
