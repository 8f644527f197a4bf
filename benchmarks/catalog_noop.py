"""How long a run over a folder takes that was measured before and has not changed.

    python benchmarks/catalog_noop.py [--images 100000] [--folder DIR] [--rounds 3]

Makes that many small PNGs (every one another content, 1000 a folder), measures them once, then times the same call
again: walk the folder, open the catalog, look at every file's size and time, bring every fact. `--folder` keeps the
files for another run.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sqlite3
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

from bench import machine, peak_mb, tell

from edkit.clean.files import list_images
from edkit.data.catalog import Catalog
from edkit.data.errors import Problem
from edkit.measure.facts import USUAL
from edkit.measure.measure import measure


def png(number: int) -> bytes:
    """A grey PNG of 4 x 4 pixels that no other number has."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + struct.pack(">I", (number * 2654435761 + row * 97) % 2**32) for row in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    text = chunk(b"tEXt", b"Comment\0%d" % number)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def made(folder: Path, number: int) -> None:
    for start in range(0, number, 1000):
        part = folder / f"{start // 1000:04}"
        if part.is_dir():
            continue
        part.mkdir(parents=True)
        for index in range(start, min(start + 1000, number)):
            (part / f"photo_ ({index}).png").write_bytes(png(index))


def run(folder: Path, names: tuple[str, ...]) -> tuple[float, int]:
    """Seconds of wall time, and how many images have their facts."""
    start = time.perf_counter()
    listing = list_images([folder])
    with Catalog.open(folder) as catalog:
        found = measure(catalog, listing.images, names)
    return time.perf_counter() - start, sum(not isinstance(one, Problem) for one in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    settings = parser.parse_args()
    check = ("format", "width", "height", "num_bytes", "sharpness", "phash", "phash_mirror", "thumb")
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        print(f"making {settings.images:,} files", file=sys.stderr)
        made(folder, settings.images)
        time.sleep(2.1)  # a file this young is read again: it may change within one tick of its clock
        first, _ = run(folder, USUAL)
        print(f"{machine()}, SQLite {sqlite3.sqlite_version}.\n")
        print("| run | images | seconds | images/s |\n|---|---:|---:|---:|")
        each = settings.images / first
        print(f"| the first, all {len(USUAL)} usual facts | {settings.images:,} | {first:.1f} | {each:,.0f} |")
        for title, names in ((f"again, {len(check)} facts as `check` asks for", check), ("again, all of them", USUAL)):
            if settings.profile:
                profile = cProfile.Profile()
                profile.runcall(run, folder, names)
                pstats.Stats(profile).sort_stats("tottime").print_stats(16)
            rounds = [run(folder, names) for _ in range(settings.rounds)]
            best = min(seconds for seconds, _ in rounds)
            assert all(number == settings.images for _, number in rounds)
            print(f"| {title} | {settings.images:,} | {best:.2f} | {settings.images / best:,.0f} |")
            if names is check:
                tell(f"look at {settings.images:,} unchanged images again", edkit=best, unit="s",
                     aim="5 s for 100,000", reached=best <= 5 * settings.images / 1e5)  # fmt: skip
        size = (folder / ".edkit" / "facts.db").stat().st_size / 1e6
        print(f"\nPeak memory {peak_mb():.0f} MB; facts.db {size:.0f} MB. Best of {settings.rounds} rounds, wall time.")


if __name__ == "__main__":
    main()
