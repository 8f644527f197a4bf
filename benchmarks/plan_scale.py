"""Time reading and planning a large data root: python benchmarks/plan_scale.py 10000 100000 [1000000] [--in DIR]

Draws a root of that many JPEGs (hard links to a few small ones a folder, 400 sizes in all), a tenth of them with a
.txt sidecar, in folders of a thousand, half of which have a multiply of 0.25. Reads and plans it cold, then warm from
the catalog, each in a process of its own, so that the peak memory is that stage's. Beside the wall clock stand the
processor's own seconds, as the machine may be busy, and the floor: listing the folders and looking at every file's
size and time, which is what tells a warm reader that nothing has changed. The warm stages take turns with the floor;
the round in the middle of three is told of.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from bench import machine, peak_mb, tell

SIZES = [(640, 480), (480, 640), (640, 427), (512, 512), (1024, 768), (900, 1600), (2000, 700), (300, 300)]
PER_FOLDER = 1000
ROUNDS = 3
MANY = 200_000  # images whose every header would take minutes to read cold


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
    for path in sorted(root.iterdir()):
        if not path.name.startswith("."):
            folder = os.open(path, os.O_RDONLY)
            for name in os.listdir(folder):  # noqa: PTH208 - of an open folder
                os.stat(name, dir_fd=folder)
                num += 1
            os.close(folder)
    return f"list {num:,} files, and each one's size and time"


def cold(root: Path) -> str:
    """Read with sizes, and remember them."""
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read

    with Catalog.open(root) as catalog:
        read(root, catalog=catalog)
    return "read, cold: every header"


def fill(root: Path) -> str:
    """Read cold, but the header of a file once, however many names it has."""
    from edkit.data import reader

    probe, known = reader.probe, {}

    def once(path: str) -> object:
        inode = Path(path).stat().st_ino
        if inode not in known:
            known[inode] = probe(path)
        return known[inode]

    reader.probe = once
    cold(root)
    return f"read, cold, but {len(known):,} headers only"


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
    """One stage in this process: what it did, wall and processor's seconds, and its peak in MB."""
    if name != "floor":
        import edkit.data.dataset  # noqa: F401 - starting is start.py's affair
    wall, cpu = time.perf_counter(), time.process_time()
    what = globals()[name](root)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([wall, cpu, peak_mb(), what]))


def run(name: str, root: Path) -> tuple[float, float, float, str]:
    """One stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", name, str(root)]
    return tuple(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def measure(num: int, root: Path) -> None:
    """The table of a root of that many images."""
    draw(root, num)
    rows = [run("fill" if num > MANY else "cold", root)]
    rounds = [[run(name, root) for name in ("floor", "warm", "plan")] for _ in range(ROUNDS)]
    least, read, planned = (sorted(of)[ROUNDS // 2] for of in zip(*rounds, strict=True))
    print(f"\n| {num:,} images | wall, s | CPU, s | peak, MB |\n|---|---:|---:|---:|")
    for wall, cpu, peak, what in (least, *rows, read, planned):
        print(f"| {what} | {wall:.2f} | {cpu:.2f} | {peak:,.0f} |", flush=True)
    if num >= 100_000:
        tell(
            f"scan and plan {num:,} images, warm", edkit=read[0], unit="s", floor="list, and look at every file",
            limit=least[0], aim="10 s, 1 GB" if num == 1_000_000 else f"{num / 1e5:.1f} s: 10 s a million",
            reached=read[0] <= num / 1e5 and read[2] <= 1000,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nums", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--in", dest="place", help="folder to draw in")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "DIR"), help="one stage of a set that is drawn already")
    args = parser.parse_args()
    if args.stage:
        stage(args.stage[0], Path(args.stage[1]))
        return
    print(machine("numpy", "pillow"))
    for num in args.nums:
        with tempfile.TemporaryDirectory(dir=args.place) as scratch:
            measure(num, Path(scratch, "set"))


if __name__ == "__main__":
    main()
