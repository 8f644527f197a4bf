"""How fast one core measures photos, beside imagededup's pHash and beside bare decoding at the same scale.

    python benchmarks/measure_speed.py PHOTOS_DIR [--megapixels 1 1.4 2] [--images 40] [--rounds 7] [--peer VENV]

imagededup runs in a virtual environment of its own (made once, by default in the temporary folder). Photos are brought
to one area first (JPEG, quality 90). All ways run in turns on one core over the same files; CPU time of the process
that does the work, the best of the rounds: what stands beside it on the machine only ever makes a round slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"

import imagehash  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from edkit.measure import quality  # noqa: E402
from edkit.measure.facts import USUAL, measure_file  # noqa: E402

PEER = """
import json, sys, time
from imagededup.methods import PHash
import PIL, imagededup
encoder = PHash(verbose=False)
from importlib.metadata import version
print(json.dumps([version("imagededup"), PIL.__version__]), flush=True)
for line in sys.stdin:
    paths = json.loads(line)
    start = time.process_time()
    for path in paths:
        encoder.encode_image(path)
    print(json.dumps(time.process_time() - start), flush=True)
"""


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


def usual_way(path: Path) -> None:
    """PIL's full decode and imagehash's pHash."""
    with Image.open(path) as im:
        imagehash.phash(im)


def bare(path: Path) -> None:
    """PIL's decode at the scale edkit takes, and nothing else."""
    with Image.open(path) as im:
        im.draft(None, (quality.SIDE, quality.SIDE))
        im.load()


# the catalog knows the file's SHA-256 before anything is measured
FACTS = [name for name in USUAL if name != "sha256"]
WAYS: dict[str, Callable[[Path], object]] = {
    "PIL full decode + imagehash pHash": usual_way,
    "PIL decode at edkit's scale, nothing else": bare,
    "edkit, pHash in all eight orientations": lambda path: measure_file(
        path, ["phash", "phash_mirror", "phash_turned"]
    ),
    f"edkit, all {len(FACTS)} usual facts": lambda path: measure_file(path, FACTS),
}


def seconds(work: Callable[[Path], object], paths: Sequence[Path]) -> float:
    start = time.process_time()
    for path in paths:
        work(path)
    return time.process_time() - start


class Peer:
    """imagededup in its own process; it times itself."""

    def __init__(self, folder: Path) -> None:
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if not python.is_file():
            print(f"installing imagededup into {folder.name}", file=sys.stderr)
            venv.create(folder, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "imagededup"], check=True)
        self.process = subprocess.Popen(
            [python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version, self.pillow = self._answer()

    def _answer(self) -> list[str]:
        assert self.process.stdout is not None
        found: list[str] = json.loads(self.process.stdout.readline())
        return found

    def seconds(self, paths: Sequence[Path]) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 1.4, 2.0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", type=Path, default=Path(tempfile.gettempdir()) / "edkit-imagededup")
    settings = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the peer inherits it
    peer = Peer(settings.peer)
    print(
        f"Python {platform.python_version()}, Pillow {Image.__version__}, NumPy {np.__version__}, {platform.machine()};"
        f" imagededup {peer.version} with Pillow {peer.pillow}. One core, best of {settings.rounds} rounds.\n"
    )
    print("| JPEGs | way | ms an image | images/s | against imagededup | against bare decoding |")
    print("|---|---|---:|---:|---:|---:|")
    for megapixels in settings.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            paths = prepared(settings.photos, Path(folder), settings.images, megapixels)
            if not paths:
                sys.exit(f"no .jpg below {settings.photos}")
            best: dict[str, float] = {}
            for number in range(settings.rounds + 1):
                found = {"imagededup, PHash.encode_image": peer.seconds(paths)}
                found |= {name: seconds(work, paths) for name, work in WAYS.items()}
                if number:  # the first round warms files and imports
                    best = {name: min(best.get(name, value), value) for name, value in found.items()}
        theirs, bare_one = best["imagededup, PHash.encode_image"], best["PIL decode at edkit's scale, nothing else"]
        for name, value in best.items():
            each = value / len(paths)
            print(
                f"| {len(paths)} of {megapixels:g} MP | {name} | {each * 1e3:.2f} | {1 / each:.0f} |"
                f" {theirs / value:.2f} | {bare_one / value:.2f} |"
            )


if __name__ == "__main__":
    main()
