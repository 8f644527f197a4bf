"""Tensors that cost time to make, by what they were made from: in memory while there is room, and on disk."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from edkit.data.database import close_database, open_database, told, transaction
from edkit.data.errors import BadInput, StateError
from edkit.data.progress import SILENT, Progress

_SCHEMA = """
CREATE TABLE tensors (key BLOB NOT NULL, name TEXT NOT NULL, dtype TEXT, shape TEXT, data BLOB);
CREATE UNIQUE INDEX tensors_key ON tensors (key, name);
CREATE TABLE entries (key BLOB PRIMARY KEY, num_bytes INTEGER, day INTEGER) WITHOUT ROWID
"""
_VERSION = 1
_ASK = 500  # keys a statement
_FLUSH = 16  # entries a transaction
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_T = TypeVar("_T")

Entry = dict[str, Tensor]
"""What was made of one thing: named tensors on the CPU."""


def key_of(*parts: object) -> bytes:
    """The key of what was made from these parts: BLAKE2b over their texts, each with its length."""
    texts = [str(part).encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.blake2b(b"".join(b"%d:%s" % (len(text), text) for text in texts), digest_size=20).digest()


class Store:
    """A database of entries with the day each was last asked for, so that those nobody uses can go.

    One for all models of a data root. What was put in survives a kill. Safe to share between threads.
    """

    def __init__(self, path: Path, *, limit_bytes: int = 50 * 10**9, progress: Progress = SILENT) -> None:
        """Raises StateError where the database can't be opened; a damaged one is begun anew, and told."""
        self._path, self._limit, self._progress = path, limit_bytes, progress
        self._today = int(time.time() // 86400)
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except StateError as error:
            if "damaged" not in error.what:
                raise
            progress.say(f"{path}: damaged; what it held is made anew")
            for name in (path.name, path.name + "-wal", path.name + "-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        say = self._progress.say
        db = open_database(self._path, schema=_SCHEMA, version=_VERSION, write=True, durable=False, say=say)
        with told(self._path):
            if db.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.execute("VACUUM")
        return db

    def close(self) -> None:
        with self._lock:
            close_database(self._db, write=True)

    def have(self, keys: Iterable[bytes]) -> set[bytes]:
        """Which of the keys have an entry; they count as used today."""
        found: set[bytes] = set()
        with self._lock, told(self._path), transaction(self._db):
            for some in batches(keys, _ASK):
                marks = ",".join("?" * len(some))
                found.update(k for (k,) in self._db.execute(f"SELECT key FROM entries WHERE key IN ({marks})", some))
                self._db.execute(
                    f"UPDATE entries SET day = ? WHERE key IN ({marks}) AND day <> ?", (self._today, *some, self._today)
                )
        return found

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """The entries of those keys that have one."""
        found: dict[bytes, Entry] = {}
        for some in batches(keys, _ASK):
            marks = ",".join("?" * len(some))
            with self._lock, told(self._path):
                rows = self._db.execute(
                    f"SELECT key, name, dtype, shape, data FROM tensors WHERE key IN ({marks})", some
                ).fetchall()
            for key, name, dtype, shape, data in rows:
                sides = [int(side) for side in shape.split()]
                value = torch.empty(sides, dtype=_DTYPES[dtype])  # memory of torch's own, aligned as torch aligns
                value.view(-1).copy_(torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]))
                found.setdefault(key, {})[name] = value
        self.have(found)
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep entries, all or none."""
        rows = [
            (key, name, _NAMES[value.dtype], " ".join(map(str, value.shape)), _bytes(value))
            for key, entry in entries.items()
            for name, value in entry.items()
        ]
        sizes = [(key, num_bytes(entry), self._today) for key, entry in entries.items()]
        with self._lock, told(self._path), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO tensors VALUES (?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", sizes)

    def collect(self) -> int:
        """Remove what was not used for the longest time, as far as all entries take more than the limit; what was
        used today stays. Gives back, and tells, how many went.
        """
        with self._lock, told(self._path):
            total = int(self._db.execute("SELECT coalesce(sum(num_bytes), 0) FROM entries").fetchone()[0])
            if total <= self._limit:
                return 0
            gone, freed = [], 0
            old = "SELECT key, num_bytes FROM entries WHERE day < ? ORDER BY day, key"
            for key, size in self._db.execute(old, (self._today,)):
                if total - freed <= self._limit:
                    break
                gone.append((key,))
                freed += size
            with transaction(self._db):
                self._db.executemany("DELETE FROM tensors WHERE key = ?", gone)
                self._db.executemany("DELETE FROM entries WHERE key = ?", gone)
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
        name, limit = self._path, f"{self._limit / 1e9:.3g} GB"
        if gone:
            self._progress.say(f"{name}: {len(gone):,} unused entries removed ({freed / 1e9:.3g} GB), limit {limit}")
        if total - freed > self._limit:
            self._progress.say(f"{name}: this run's own entries take {(total - freed) / 1e9:.3g} GB, limit {limit}")
        return len(gone)


class Cache(Generic[_T]):
    """Entries by what they are made from: out of memory, else out of the store, else made and kept in both."""

    def __init__(
        self,
        store: Store | None,
        *,
        key: Callable[[_T], bytes],
        make: Callable[[Sequence[_T]], Iterator[tuple[_T, Entry | BadInput]]],
        memory_bytes: int,
    ) -> None:
        """`make` gives an entry, or why there is none, for each item in any order; threads may call it at once."""
        self._store, self._key, self._make, self._room = store, key, make, memory_bytes
        self._kept: dict[bytes, Entry] = {}
        self._lock = threading.Lock()
        self.num_made = 0

    def get(self, items: Sequence[_T]) -> list[Entry]:
        """The entry of each item; raises the BadInput of one that can't be made."""
        keys = [self._key(item) for item in items]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        if missing:
            stored = self._store.get(missing) if self._store else {}
            self._keep(stored)
            found |= stored
            for key, made in self._made([item for key, item in missing.items() if key not in stored]):
                if isinstance(made, BadInput):
                    raise made
                found[key] = made
        return [found[key] for key in keys]

    def warm(self, items: Iterable[_T], *, what: str, progress: Progress = SILENT) -> list[tuple[_T, BadInput]]:
        """Make what is not there yet, and load what fits in memory; gives back what can't be made, and why."""
        wanted = {self._key(item): item for item in items}
        broken: list[tuple[_T, BadInput]] = []
        there = self._store.have(wanted) if self._store else set()
        for some in batches((key for key in wanted if key in there and key not in self._kept), _ASK):
            if self._store is None or not self._keep(self._store.get(some)):
                break
        missing = [item for key, item in wanted.items() if key not in there and key not in self._kept]
        if missing:
            with progress.task(what, total=len(missing)) as advance:
                for key, made in self._made(missing):
                    advance(1)
                    if isinstance(made, BadInput):
                        broken.append((wanted[key], made))
        return broken

    def _made(self, items: Sequence[_T]) -> Iterator[tuple[bytes, Entry | BadInput]]:
        """Make entries; each is durable before it is given out."""
        fresh: dict[bytes, Entry] = {}

        def kept() -> list[tuple[bytes, Entry]]:
            pairs = list(fresh.items())
            if self._store and pairs:
                self._store.put(fresh)
            self._keep(fresh)
            with self._lock:
                self.num_made += len(pairs)
            fresh.clear()
            return pairs

        try:
            for item, made in self._make(items):
                if isinstance(made, BadInput):
                    yield self._key(item), made
                    continue
                fresh[self._key(item)] = made
                if len(fresh) >= _FLUSH:
                    yield from kept()
            yield from kept()
        finally:
            kept()  # also what was made before a failure

    def _keep(self, entries: Mapping[bytes, Entry]) -> bool:
        """Hold entries in memory; whether there was room for all of them."""
        with self._lock:
            for key, entry in entries.items():
                size = num_bytes(entry)
                if key not in self._kept and size <= self._room:
                    self._room -= size
                    self._kept[key] = entry
            return all(key in self._kept for key in entries)


def num_bytes(entry: Entry) -> int:
    """What an entry's tensors take."""
    return sum(math.prod(t.shape) * t.element_size() for t in entry.values())


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def batches(items: Iterable[_T], n: int) -> Iterator[list[_T]]:
    """The items in lists of n, the last one shorter."""
    source = iter(items)
    while some := list(islice(source, n)):
        yield some
