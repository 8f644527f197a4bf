"""How fast one core measures photos, beside imagededup's pHash and beside bare decoding at the same scale.

    python benchmarks/measure_speed.py [--photos DIR] [--megapixels 1 1.4 2] [--images 40] [--rounds 7]

Photos (without a folder: drawn pictures) are brought to one area first (JPEG, quality 90). All ways run in turns on
one core over the same files; CPU time of the process that does the work, the best of the rounds: what stands beside it
on the machine only ever makes a round slower.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"

import imagehash  # noqa: E402
from bench import by_turns, imagededup_python, machine, photos, tell  # noqa: E402
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


def prepared(some: Sequence[Path], into: Path, megapixels: float) -> list[Path]:
    """Photos scaled to one area."""
    paths = []
    for path in some:
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
DEDUP, DECODE = "imagededup, PHash.encode_image", "PIL decode at edkit's scale, nothing else"
PHASH, ALL = "edkit, pHash in all eight orientations", f"edkit, all {len(FACTS)} usual facts"
WAYS: dict[str, Callable[[Path], object]] = {
    "PIL full decode + imagehash pHash": usual_way,
    DECODE: bare,
    PHASH: lambda path: measure_file(path, ["phash", "phash_mirror", "phash_turned"]),
    ALL: lambda path: measure_file(path, FACTS),
}


def seconds(work: Callable[[Path], object], paths: Sequence[Path]) -> float:
    start = time.process_time()
    for path in paths:
        work(path)
    return time.process_time() - start


class Peer:
    """imagededup in its own process; it times itself."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [imagededup_python(), "-c", PEER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
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
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 1.4, 2.0])
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        some = photos(settings.photos, Path(scratch), settings.images)[: settings.images]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the peer inherits it
        peer = Peer()
        print(f"{machine('pillow', 'numpy')}; imagededup {peer.version} with Pillow {peer.pillow}.")
        print(f"One core, best of {settings.rounds} rounds.\n")
        print("| JPEGs | way | ms an image | images/s | against imagededup | against bare decoding |")
        print("|---|---|---:|---:|---:|---:|")
        for megapixels in settings.megapixels:
            folder = Path(scratch, f"{megapixels:g}")
            folder.mkdir()
            compare(peer, prepared(some, folder, megapixels), megapixels, settings.rounds)


def compare(peer: Peer, paths: Sequence[Path], megapixels: float, rounds: int) -> None:
    ways: dict[str, Callable[[], float]] = {DEDUP: partial(peer.seconds, paths)}
    ways |= {name: partial(seconds, work, paths) for name, work in WAYS.items()}
    best = {name: min(some) / len(paths) for name, some in by_turns(ways, rounds).items()}
    for name, each in best.items():
        print(
            f"| {len(paths)} of {megapixels:g} MP | {name} | {each * 1e3:.2f} | {1 / each:.0f} |"
            f" {best[DEDUP] / each:.2f} | {best[DECODE] / each:.2f} |"
        )
    for what, name, apart in (("all usual facts", ALL, True), ("pHash in all orientations", PHASH, False)):
        mine = best[name]
        tell(
            f"measure, {what}, {megapixels:g} MP", edkit=1 / mine, unit="images/s", peer="imagededup's pHash",
            value=1 / best[DEDUP], floor="decoding at that scale", limit=1 / best[DECODE],
            aim="3 times imagededup" if apart else "3 times imagededup, 0.8 of decoding",
            reached=best[DEDUP] / mine >= 3 and (apart or best[DECODE] / mine >= 0.8),
        )  # fmt: skip


if __name__ == "__main__":
    main()
