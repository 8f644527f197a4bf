"""How fast latents are cached, beside the bare image encoder at the same batch and precision.

    python benchmarks/cache_speed.py [--photos DIR] [--images 320] [--rounds 3]

Encoders, with random weights: Stable Diffusion 1's own of 34 million parameters at 128 pixels, on few images; that of a
small Stable Diffusion 1 at 128 and 256 pixels; and nano's at 64. Both sides run in one process, in turns, on all cores:
*bare* encodes batches of pixels that lie ready in memory; *edkit* reads every file, checks its hash, decodes, scales
and cuts it, encodes, and keeps the latents in its database. CPU time is of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from bench import by_turns, machine, median_ratio, photos, tell

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.plan import Plan, PlanSettings
from edkit.train.cache import LatentCache, View, encode_batch_size
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.families.fresh import random_parts
from edkit.train.families.sd1 import SD1, SIZES
from edkit.train.store import Store

Seconds = tuple[float, float]  # of wall time, of CPU time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()
    print(f"{machine('torch', 'diffusers', 'pillow')}; {torch.get_num_threads()} threads, fp32;", end=" ")
    print(f"{settings.images} images, {settings.rounds} rounds.\n")
    print("| encoder | bare, images/s | edkit, images/s | edkit is | CPU ms an image, bare | edkit |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = scratch / "photos"
        copies(photos(settings.photos, scratch, settings.images), folder, settings.images)
        few = scratch / "few"
        copies(sorted(folder.iterdir()), few, 16)
        compare("SD 1, 128 px", stable_diffusion("real"), 128, few, scratch, 2)
        compare("nano, 64 px", load_family("nano"), 64, folder, scratch, settings.rounds)
        tiny = stable_diffusion("tiny")
        compare("tiny SD, 128 px", tiny, 128, folder, scratch, settings.rounds)
        compare("tiny SD, 256 px", tiny, 256, folder, scratch, settings.rounds)


def stable_diffusion(vae: str) -> Family:
    """A tiny Stable Diffusion 1 with a tiny or the real autoencoder."""
    sizes = SIZES["sd1"]
    parts = random_parts({**sizes["tiny"], "vae": sizes[vae]["vae"]}, prediction="epsilon", folder=Path("nowhere"))
    return SD1(**parts)


def copies(some: list[Path], folder: Path, num: int) -> None:
    """That many files, every one another content."""
    folder.mkdir()
    for n in range(num):
        (folder / f"a photo_({n}).jpg").write_bytes(some[n % len(some)].read_bytes() + b"%d" % n)


def compare(
    name: str, family: Family, side: int, folder: Path, scratch: Path, rounds: int, *, device: str = "cpu"
) -> None:
    """Print one line; the family stands on the device already."""
    plan = Plan(read(folder), PlanSettings(batch_size=8, resolution=side, bucket_step=family.bucket_step, max_aspect=1))
    with Catalog.open(folder, state_dir=scratch / "state") as catalog:
        ids = catalog.content_ids(plan.dataset.paths)
    crops = {plan.dataset.path(i): plan.crop(i) for i in range(len(plan.dataset))}
    views = [View(path=path, content_id=ids[path], crop=crop) for path, crop in crops.items()]
    batch = encode_batch_size(side, side)
    ways = {
        "bare": partial(bare, family, side, batch, len(views), device),
        "edkit": partial(ours, family, views, scratch, device),
    }
    found = by_turns(ways, rounds)
    rates = {way: [len(views) / wall for wall, _ in some] for way, some in found.items()}
    cpu = {way: statistics.median(busy for _, busy in some) / len(views) * 1e3 for way, some in found.items()}
    floor, mine = statistics.median(rates["bare"]), statistics.median(rates["edkit"])
    share = median_ratio(rates["edkit"], rates["bare"])
    print(
        f"| {name}, batch {batch} | {floor:.1f} | {mine:.1f} | {share:.2f} | {cpu['bare']:.2f} | {cpu['edkit']:.2f} |"
    )
    tell(f"cache latents, {name}", edkit=mine, unit="images/s", floor="the bare encoder", limit=floor, aim="0.9",
         reached=share >= 0.9)  # fmt: skip


def bare(family: Family, side: int, batch: int, num: int, device: str) -> Seconds:
    pixels = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    wall, busy = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for _ in range(0, num, batch):
            family.encode_images(pixels).cpu()
    return time.perf_counter() - wall, time.process_time() - busy


def ours(family: Family, views: list[View], scratch: Path, device: str) -> Seconds:
    with tempfile.TemporaryDirectory(dir=scratch) as state:
        wall, busy = time.perf_counter(), time.process_time()
        store = Store(Path(state, "tensors.db"), limit_bytes=1 << 40)
        cache = LatentCache(store, encode=family.encode_images, encoder_id="bench", device=torch.device(device))
        broken = cache.warm(views)
        cache.close()
        store.close()
        assert not broken and cache.num_encoded == len(views)
        return time.perf_counter() - wall, time.process_time() - busy


if __name__ == "__main__":
    main()
