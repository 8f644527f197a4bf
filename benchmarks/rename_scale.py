"""How long `rename-captions` takes for a large folder, journaled, and its undo.

python benchmarks/rename_scale.py [--files 100000] [--dir FOLDER] [--rounds 2] [--sidecars] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench import machine, peak_mb, tell
from PIL import Image

from edkit.caption.rename import rename_captions
from edkit.data.journal import undo

T = TypeVar("T")
Row = tuple[str, int, float, float, float]  # step, files, seconds, CPU seconds, seconds of the bare renames
IN_A_FOLDER = 1000


def main() -> None:
    """Make the files, rename and undo them twice, print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--files", type=int, default=100_000)
    options.add_argument("--dir", type=Path, default=None, help="work in this folder (default: a temporary one)")
    options.add_argument("--rounds", type=int, default=2, choices=(1, 2, 3))
    options.add_argument("--sidecars", action="store_true", help="then rename by sidecars, which doubles the files")
    options.add_argument("--profile", action="store_true", help="print where the time went")
    args = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        root = Path(folder)
        profile = cProfile.Profile() if args.profile else None
        if profile is not None:
            profile.enable()
        measure(root, args.files, rows, rounds=args.rounds, sidecars=args.sidecars)
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    print(f"{machine()}, SQLite {sqlite3.sqlite_version}; {peak_mb():,.0f} MB at most.\n")
    print("| step | files | seconds | CPU seconds | files/s | times the bare renames |")
    print("|---|---:|---:|---:|---:|---:|")
    for what, n, seconds, cpu, bare in rows:
        print(f"| {what} | {n:,} | {seconds:.2f} | {cpu:.2f} | {n / seconds:,.0f} | {seconds / bare:.1f} |", flush=True)
    for what, stage in (("rename-captions --caption person", "rename"), ("undo", "undo the rename of")):
        n, seconds, bare = next((n, seconds, bare) for name, n, seconds, _, bare in rows if name == what)
        tell(
            f"{stage} {n:,} files", edkit=seconds, unit="s", floor="bare renames, nothing kept", limit=bare,
            aim="30 s for 100,000", reached=seconds <= 30 * n / 100_000,
        )  # fmt: skip


def measure(root: Path, num_files: int, rows: list[Row], *, rounds: int, sidecars: bool) -> None:
    """Time `rename-captions --caption person`, its undo and (where asked) a rename by sidecars, in folders of 1000."""
    Image.new("RGB", (8, 8), (200, 30, 40)).save(root / "one.png")
    png = (root / "one.png").read_bytes()
    (root / "one.png").unlink()
    bare = root / "bare"
    photos = root / "photos"
    for place in (bare, photos):
        for i in range(num_files):
            name = place / f"{i // IN_A_FOLDER:03d}" / f"IMG_{i:06d}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(png + i.to_bytes(8, "big"))
            os.utime(name, (1.6e9, 1.6e9))

    def timed(work: Callable[[], T]) -> tuple[T, float, float]:
        began, busy = time.perf_counter(), time.process_time()
        result = work()
        return result, time.perf_counter() - began, time.process_time() - busy

    def plainly() -> None:
        # what the file manager's F2 does: no journal, no check, no wait for the disk
        for folder in sorted(bare.iterdir()):
            for n, name in enumerate(sorted(os.listdir(folder)), 1):  # noqa: PTH208
                os.rename(folder / name, folder / f"person_({n}).png")  # noqa: PTH104

    _, base, cpu = timed(plainly)
    rows.append(("bare renames, nothing kept", num_files, base, cpu, base))
    shutil.rmtree(bare)
    for again in ("", ", again", ", a third time")[:rounds]:
        done, seconds, cpu = timed(lambda: rename_captions(photos, caption="person"))
        assert (done.num_renamed, len(done.left)) == (num_files, 0)
        rows.append((f"rename-captions --caption person{again}", num_files, seconds, cpu, base))
        same, seconds, cpu = timed(lambda: rename_captions(photos, caption="person"))
        assert same.operation is None
        rows.append((f"the same command again, nothing to do{again}", num_files, seconds, cpu, base))
        back, seconds, cpu = timed(lambda: undo(photos))
        assert (back.num_done, back.left) == (num_files, [])
        rows.append((f"undo{again}", num_files, seconds, cpu, base))
    if not sidecars:
        return
    for i in range(num_files):
        name = photos / f"{i // IN_A_FOLDER:03d}" / f"IMG_{i:06d}.txt"
        name.write_text(f"a person number {i % 77}", encoding="utf-8")
        os.utime(name, (1.6e9, 1.6e9))
    done, seconds, cpu = timed(lambda: rename_captions(photos))
    assert (done.num_renamed, done.num_followed) == (num_files, num_files)
    rows.append(("rename-captions by sidecars, which follow", 2 * num_files, seconds, cpu, base))
    back, seconds, cpu = timed(lambda: undo(photos))
    assert (back.num_done, back.left) == (2 * num_files, [])
    rows.append(("undo of that", 2 * num_files, seconds, cpu, base))


if __name__ == "__main__":
    main()
