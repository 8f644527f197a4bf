"""Time reading and planning a large data root: python benchmarks/plan_scale.py 10000 100000 [1000000]

Draws a root of that many JPEGs (hard links to a few small ones), a tenth of them with a .txt sidecar, in
folders of a thousand with a multiply.txt each; reads it without a cache, with a cold and with a warm
catalog, and plans epochs. Seconds are wall-clock; beside them the processor's own, as the machine may be
busy.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import machine, peak_mb, tell
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.plan import Plan, PlanSettings

SIZES = [(640, 480), (480, 640), (640, 427), (512, 512), (1024, 768), (900, 1600), (2000, 700), (300, 300)]
PER_FOLDER = 1000
WARM = "read with sizes, warm catalog"


def draw(root: Path, num: int) -> None:
    """A data root of `num` images that share the bytes of a few."""
    originals = []
    for n, size in enumerate(SIZES):
        file = io.BytesIO()
        Image.new("RGB", size, (40 * n, 90, 120)).save(file, "JPEG", quality=30)
        originals.append(file.getvalue())
    for start in range(0, num, PER_FOLDER):
        folder = root / f"{start // PER_FOLDER:04}"
        folder.mkdir(parents=True)
        (folder / "multiply.txt").write_text("0.25" if start % (2 * PER_FOLDER) else "1", encoding="utf-8")
        sources = []
        for n, data in enumerate(originals):
            sources.append(folder / f"a picture of kind {n}_0.jpg")
            sources[-1].write_bytes(data)
        for i in range(len(sources), min(PER_FOLDER, num - start)):
            stem = f"a picture of thing {i * 7919 % 5000}_({start + i})"
            os.link(sources[i % len(sources)], folder / f"{stem}.jpg")
            if i % 10 == 0:
                (folder / f"{stem}.txt").write_text(f"a picture of thing {i}, sunny, number {start}", encoding="utf-8")
    old = time.time() - 3600  # settled files: a catalog remembers no file that is still being written
    for folder_path, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder_path, name), (old, old))


@contextmanager
def timed(what: str, num: int, walls: dict[str, float]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    walls[what], busy = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {what} | {walls[what]:.2f} | {busy:.2f} | {busy / num * 1e6:.1f} |", flush=True)


def measure(num: int) -> None:
    """Print a table of one size; the peak is that of this process alone."""
    walls: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "set")
        draw(root, num)
        print(f"\n| {num:,} images | wall, s | CPU, s | CPU us an image |\n|---|---:|---:|---:|")
        with timed("read, captions and options alone", num, walls):
            read(root, sizes=False)
        with timed("read with sizes, no catalog", num, walls):
            read(root)
        with Catalog.open(root) as catalog:
            with timed("read with sizes, cold catalog", num, walls):
                read(root, catalog=catalog)
            with timed(WARM, num, walls):
                dataset = read(root, catalog=catalog)
        with timed("plan", num, walls):
            plan = Plan(dataset, PlanSettings(batch_size=8))
        with timed("epoch 0", num, walls):
            plan.epoch(0)
        with timed("epoch 7, asked for first", num, walls):
            steps = Plan(dataset, PlanSettings(batch_size=8)).epoch(7).steps
        with timed("its first 1,000 steps as picks and crops", num, walls):
            _ = steps[:1000]
    print(f"\nsteps an epoch: {len(steps):,}; peak memory: {peak_mb():,.0f} MB")
    seconds = walls[WARM] + walls["plan"] + walls["epoch 0"]
    # what a million may take, in proportion
    aims = {"aim": "10 s, 1 GB at a million", "reached": seconds <= num / 1e5 and peak_mb() <= max(200, num / 1e3)}
    tell(f"scan and plan {num:,} images, warm", edkit=seconds, unit="s", **aims)


if __name__ == "__main__":
    if sys.argv[1:2] == ["ONE"]:
        measure(int(sys.argv[2]))
    else:
        print(f"{machine('numpy', 'pillow')}.", flush=True)
        for argument in sys.argv[1:] or ["10000", "100000"]:
            subprocess.run([sys.executable, __file__, "ONE", argument], check=True)
