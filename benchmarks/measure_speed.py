"""How fast one core measures photos, beside the peer's way: full decode, then imagehash's pHash alone.

    python benchmarks/measure_speed.py PHOTOS_DIR [--megapixels 1.4] [--images 40] [--search 1000000]

Photos are brought to one size first (JPEG, quality 90). Both ways run on the same files in turns; CPU time
of this process, best of the rounds. `--search N` also times finding all pairs within 8 bits among N hashes.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from edkit.measure.facts import FACTS, measure_file
from edkit.measure.search import pairs_within


def prepared(folder: Path, into: Path, number: int, megapixels: float) -> list[Path]:
    """Photos scaled to one area."""
    paths = []
    for path in sorted(folder.rglob("*.jpg"))[:number]:
        with Image.open(path) as im:
            scale = (megapixels * 1e6 / (im.width * im.height)) ** 0.5
            size = round(im.width * scale), round(im.height * scale)
            im.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(into / path.name, quality=90)
        paths.append(into / path.name)
    return paths


def peer(path: Path) -> None:
    """PIL's full decode and imagehash's pHash."""
    with Image.open(path) as im:
        imagehash.phash(im)


def draft(path: Path) -> None:
    """PIL's decode at 1/8 where the file allows, and imagehash's pHash."""
    with Image.open(path) as im:
        im.draft("L", (im.width // 8, im.height // 8))
        imagehash.phash(im)


def rate(work: Callable[[Path], object], paths: list[Path]) -> float:
    start = time.process_time()
    for path in paths:
        work(path)
    return len(paths) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--megapixels", type=float, default=1.4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--search", type=int, default=0, metavar="N")
    settings = parser.parse_args()
    ways: dict[str, Callable[[Path], object]] = {
        "PIL full decode + imagehash pHash": peer,
        "PIL draft decode + imagehash pHash": draft,
        "edkit, pHash and its mirror": lambda path: measure_file(path, ["phash", "phash_mirror"]),
        f"edkit, all {len(FACTS)} facts": lambda path: measure_file(path, FACTS),
    }
    versions = f"Pillow {Image.__version__}, NumPy {np.__version__}"
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        paths = prepared(settings.photos, Path(folder), settings.images, settings.megapixels)
        if not paths:
            sys.exit(f"no .jpg below {settings.photos}")
        for work in ways.values():  # imports and file cache
            work(paths[0])
        best = dict.fromkeys(ways, 0.0)
        for _ in range(settings.rounds):
            for name, work in ways.items():
                best[name] = max(best[name], rate(work, paths))
    base = next(iter(best.values()))
    print(f"{len(paths)} JPEGs of {settings.megapixels:g} MP, one core, best of {settings.rounds}")
    for name, images in best.items():
        print(f"{name:38} {images:7.1f} images/s   {images / base:5.2f} x")
    if settings.search:
        rng = np.random.default_rng(0)
        hashes = rng.integers(0, 2**64, settings.search, dtype=np.uint64)
        hashes[1000:2000] = hashes[:1000] ^ np.uint64(0x8040_2010_0804_0201)  # 8 bits apart
        start = time.process_time()
        found = len(pairs_within(hashes, 8))
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{settings.search:,} hashes, radius 8: {found:,} pairs in {seconds:.1f} s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
