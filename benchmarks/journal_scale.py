"""How long the journal takes to rename N files and undo it, and the scan to see that nothing changed.

python benchmarks/journal_scale.py --files 100000 [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench import machine

from edkit.data.catalog import Catalog
from edkit.data.journal import Move, Trash, Write, apply, undo

T = TypeVar("T")


def main() -> None:
    """Make the files, run each step once, print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--files", type=int, default=100_000)
    options.add_argument("--dir", type=Path, default=None, help="work in this folder (default: a temporary one)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        measure(Path(folder), args.files)


def measure(root: Path, num_files: int) -> None:
    """Time the journal and the scan on files of 1 kB in folders of 1000."""
    names = [root / f"{i // 1000:03d}" / f"IMG_{i:06d}.jpg" for i in range(num_files)]
    for i, name in enumerate(names):
        name.parent.mkdir(exist_ok=True)
        name.write_bytes(i.to_bytes(8, "big") * 128)
        os.utime(name, (1.6e9, 1.6e9))
    renames = [Move(name, name.with_name(f"person_({i}).jpg"), "its caption") for i, name in enumerate(names)]
    # names shuffled within each folder: nearly every file waits for another's name
    shuffled = [
        move
        for at in range(0, num_files, 1000)
        for move in map(
            Move,
            names[at : at + 1000],
            random.Random(at).sample(names[at : at + 1000], len(names[at : at + 1000])),
        )
    ]
    tenth = names[: num_files // 10]
    rows: list[tuple[str, int, float]] = []

    def timed(what: str, n: int, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        rows.append((what, n, time.perf_counter() - began))
        return result

    with Catalog.open(root, command="benchmark") as catalog:
        timed("content ids, new files", num_files, lambda: catalog.content_ids(names))
        timed("content ids, nothing changed", num_files, lambda: catalog.content_ids(names))
        done = timed("rename", num_files, lambda: apply(catalog, renames, verb="rename"))
        assert (done.num_done, done.skipped) == (num_files, [])
        timed("content ids after the rename", num_files, lambda: catalog.content_ids([m.dst for m in renames]))
        assert not timed("undo the rename", num_files, lambda: undo(catalog)).left
        done = timed("shuffle names within folders", num_files, lambda: apply(catalog, shuffled, verb="shuffle"))
        assert not done.skipped
        assert not timed("undo the shuffle", done.num_done, lambda: undo(catalog)).left
        timed("trash", len(tenth), lambda: apply(catalog, [Trash(name) for name in tenth], verb="trash"))
        assert not timed("undo the trash", len(tenth), lambda: undo(catalog)).left
        writes = [Write(name.with_suffix(".txt"), b"a person") for name in tenth]
        timed("write sidecars", len(tenth), lambda: apply(catalog, writes, verb="write"))
        assert not timed("undo the sidecars", len(tenth), lambda: undo(catalog)).left
        assert all(name.exists() for name in names)
    print(f"{machine()}, SQLite {sqlite3.sqlite_version}.")
    print(f"{'step':<30} {'files':>8} {'seconds':>8} {'files/s':>9}")
    for what, n, seconds in rows:
        print(f"{what:<30} {n:>8,} {seconds:>8.2f} {n / seconds:>9,.0f}")


if __name__ == "__main__":
    main()
