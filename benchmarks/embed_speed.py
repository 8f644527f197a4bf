"""Embedding photos from files, beside the bare model on inputs that lie ready in memory.

    python benchmarks/embed_speed.py [--photos DIR] [--clip ViT-B-32] [--images 96] [--batch 32] [--precision fp32]

The model is the real architecture with random weights (what the weights are costs no time). Both sides use the same
batch, precision and threads, in turns; edkit's side includes reading, decoding, resizing and keeping the embeddings in
the catalog. Wall time, median of the rounds' ratios. A second run, and another aesthetic head, are timed too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from bench import machine, photos, tell

from edkit.data.catalog import Catalog
from edkit.data.errors import Problem
from edkit.measure.aesthetic import Head
from edkit.measure.embed import Encoder, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--clip", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--device")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "photos")
        folder.mkdir()
        sources = photos(settings.photos, Path(temporary), settings.images)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(settings.clip).state_dict(), folder / "random.pt")
        paths = []
        for number in range(settings.images):
            paths.append(folder / f"{number:05}.jpg")
            shutil.copyfile(sources[number % len(sources)], paths[-1])
            with paths[-1].open("ab") as file:
                file.write(b"%d" % number)  # every file another content
        encoder = Encoder(
            resolve(settings.clip, str(folder / "random.pt")),
            batch_size=settings.batch,
            device=settings.device,
            precision=settings.precision,
        )
        model, _ = encoder._model
        side = model.visual.image_size
        height, width = (side, side) if isinstance(side, int) else side
        x = torch.randn(settings.batch, 3, height, width, device=encoder.device, dtype=encoder._dtype)
        batches = settings.images // settings.batch

        def bare() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for _ in range(batches):
                    model.encode_image(x).float().cpu()
            return batches * settings.batch / (time.perf_counter() - start)

        def ours(round_: int) -> float:
            with Catalog.open(folder, state_dir=folder / f"state{round_}") as catalog:
                catalog.content_ids([encoder.weights.path])  # the weights' hash is taken once
                start = time.perf_counter()
                found = encoder.embeddings(catalog, paths)
                seconds = time.perf_counter() - start
            assert not any(isinstance(one, Problem) for one in found.values())
            return len(paths) / seconds

        bare()  # warms up
        rates = [(bare(), ours(number)) for number in range(settings.rounds)]
        with Catalog.open(folder, state_dir=folder / "state0") as catalog:
            start = time.perf_counter()
            found = encoder.embeddings(catalog, paths)
            again = time.perf_counter() - start
            head = Head(name="random", weight=torch.randn(encoder.dim).double().numpy(), bias=0.0)
            import numpy as np

            start = time.perf_counter()
            head.score(np.stack([np.asarray(one) for one in found.values()]))
            scoring = time.perf_counter() - start
        ratio = statistics.median(mine / theirs for theirs, mine in rates)
        print(f"{machine('torch', 'open_clip_torch')}; {encoder.device}, {torch.get_num_threads()} threads,")
        print(f"{encoder.precision}; {settings.clip}, batch {settings.batch}, {settings.images} photos.\n")
        print("| round | bare model, images/s | edkit from files, images/s | ratio |\n|---:|---:|---:|---:|")
        for number, (theirs, mine) in enumerate(rates):
            print(f"| {number + 1} | {theirs:.1f} | {mine:.1f} | {mine / theirs:.3f} |")
        print(
            f"\nMedian ratio {ratio:.3f}. Again, nothing changed: {again * 1e3:.0f} ms; another head: {scoring:.4f} s."
        )
        tell(
            f"embed photos, {settings.clip}", edkit=statistics.median(mine for _, mine in rates), unit="images/s",
            floor="the bare model", limit=statistics.median(theirs for theirs, _ in rates), aim="0.9",
            reached=ratio >= 0.9,
        )  # fmt: skip


if __name__ == "__main__":
    main()
