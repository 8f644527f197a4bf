"""Time reading and planning a large data root: python benchmarks/plan_scale.py 10000 100000 [1000000] [--in DIR]

Draws a root of that many JPEGs (hard links to a few small ones a folder, 400 sizes in all), a tenth of them with a
.txt sidecar, in folders of a thousand, half of which have a multiply of 0.25. Reads and plans it cold, then warm from
the catalog, each in a process of its own, so that the peak memory is that stage's. Beside the wall clock stand the
processor's own seconds, as the machine may be busy, and the floor: listing the folders and looking at every file's
size and time, which is what tells a warm reader that nothing has changed.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

SIZES = [(640, 480), (480, 640), (640, 427), (512, 512), (1024, 768), (900, 1600), (2000, 700), (300, 300)]
PER_FOLDER = 1000
STAGES = ("floor", "cold", "warm", "plan")


@cache
def jpeg(width: int, height: int) -> bytes:
    """A small JPEG of that size."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 90, height % 256)).save(file, "JPEG", quality=30)
    return file.getvalue()


def draw(root: Path, num: int) -> None:
    """A data root of `num` images that share the bytes of a few."""
    old = time.time() - 3600  # settled files: nothing is remembered of one that is still being written
    for start in range(0, num, PER_FOLDER):
        number = start // PER_FOLDER
        folder = root / f"{number:04}"
        folder.mkdir(parents=True)
        (folder / "multiply.txt").write_text("0.25" if number % 2 else "1", encoding="utf-8")
        sources = []
        for n, (width, height) in enumerate(SIZES):
            sources.append(folder / f"a picture of kind {n}_0.jpg")
            sources[-1].write_bytes(jpeg(width + number % 50, height + number % 50))
            os.utime(sources[-1], (old, old))
        for i in range(len(sources), min(PER_FOLDER, num - start)):
            stem = f"a picture of thing {i * 7919 % 5000}_({start + i})"
            os.link(sources[i % len(sources)], folder / f"{stem}.jpg")
            if i % 10 == 0:
                text = folder / f"{stem}.txt"
                text.write_text(f"a picture of thing {i}, sunny, number {start}", encoding="utf-8")
                os.utime(text, (old, old))


def floor(root: Path) -> str:
    """List the folders and look at every file."""
    num = 0
    for entry in os.scandir(root):
        if not entry.name.startswith("."):
            with os.scandir(entry.path) as scan:
                for file in scan:
                    file.stat()
                    num += 1
    return f"list {num:,} files, and each one's size and time"


def cold(root: Path) -> str:
    """Read with sizes, and remember them."""
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read

    with Catalog.open(root) as catalog:
        read(root, catalog=catalog)
    return "read, cold: every header"


def warm(root: Path) -> str:
    """Read from the catalog and plan an epoch."""
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.plan import Plan, PlanSettings

    with Catalog.open(root, write=False) as catalog:
        dataset = read(root, catalog=catalog)
    steps = len(Plan(dataset, PlanSettings(batch_size=8)).epoch(7))
    return f"read, warm, and plan an epoch ({steps:,} steps)"


def plan(root: Path) -> str:
    """All that `edkit plan` counts."""
    from edkit.balance.plan import plan as verb

    result = verb(root, epochs=3)
    return f"`edkit plan`, warm: 3 epochs, {result.num_training:,} images"


def stage(name: str, root: Path) -> None:
    """One stage in this process, as a row of the table."""
    if name != "floor":
        import edkit.data.dataset  # noqa: F401 - starting is start.py's affair
    wall, cpu = time.perf_counter(), time.process_time()
    what = globals()[name](root)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {what} | {wall:.2f} | {cpu:.2f} | {peak_mb():,.0f} |", flush=True)


def peak_mb() -> float:
    """Most memory this process has held, in MB (Linux counts in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nums", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--in", dest="place", help="folder to draw in")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "DIR"), help="one stage of a set that is drawn already")
    args = parser.parse_args()
    if args.stage:
        stage(args.stage[0], Path(args.stage[1]))
        return
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    print(f"Python {platform.python_version()}, {machine}")
    for num in args.nums:
        with tempfile.TemporaryDirectory(dir=args.place) as scratch:
            root = Path(scratch, "set")
            draw(root, num)
            print(f"\n| {num:,} images | wall, s | CPU, s | peak, MB |\n|---|---:|---:|---:|", flush=True)
            for name in (*STAGES, "warm", "plan"):
                subprocess.run([sys.executable, __file__, "--stage", name, str(root)], check=True)


if __name__ == "__main__":
    main()
