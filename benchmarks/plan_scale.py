"""Time reading and planning a large data root: python benchmarks/plan_scale.py 10000 100000 [1000000]

Draws a root of that many JPEGs (hard links to a few small ones), a tenth of them with a .txt sidecar, in
folders of a thousand with a multiply.txt each; reads it without a cache, with a cold and with a warm
catalog, and plans epochs. Seconds are wall-clock; beside them the processor's own, as the machine may be
busy.
"""

from __future__ import annotations

import io
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.plan import Plan, PlanSettings

SIZES = [(640, 480), (480, 640), (640, 427), (512, 512), (1024, 768), (900, 1600), (2000, 700), (300, 300)]
PER_FOLDER = 1000


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
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"| {what} | {time.perf_counter() - wall:.2f} | {time.process_time() - cpu:.2f} |", flush=True)


def measure(num: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "set")
        draw(root, num)
        print(f"\n| {num:,} images | wall, s | CPU, s |\n|---|---:|---:|")
        with timed("read, captions and options alone"):
            read(root, sizes=False)
        with timed("read with sizes, no catalog"):
            read(root)
        with Catalog.open(root) as catalog:
            with timed("read with sizes, cold catalog"):
                read(root, catalog=catalog)
            with timed("read with sizes, warm catalog"):
                dataset = read(root, catalog=catalog)
        with timed("plan"):
            plan = Plan(dataset, PlanSettings(batch_size=8))
        with timed("epoch 0"):
            plan.epoch(0)
        with timed("epoch 7, asked for first"):
            steps = Plan(dataset, PlanSettings(batch_size=8)).epoch(7).steps
        with timed("its first 1,000 steps as picks and crops"):
            _ = steps[:1000]
    print(f"\nsteps an epoch: {len(steps):,}; peak memory so far: {peak_mb():,.0f} MB")


def peak_mb() -> float:
    """Most memory this process has held, in MB (Linux counts in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    print(f"Python {platform.python_version()}, {machine}")
    for argument in sys.argv[1:] or ["10000", "100000"]:
        measure(int(argument))
