"""Does the data path keep up with training? What the loader, the store and a text encoder take, and what a U-Net's
step takes with and without channels_last.

    OMP_NUM_THREADS=1 python benchmarks/train_data.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edkit.data.progress import SILENT
from edkit.train.families import load_family
from edkit.train.initial import init_model
from edkit.train.loader import Loader, Planned
from edkit.train.prepare import prepare
from edkit.train.settings import TrainSettings, resolve
from edkit.train.store import Store, key_of


def seconds(work: Callable[[], object], *, num: int, tries: int = 5) -> float:
    """CPU seconds of this process for one of `num` calls in the fastest of some tries: others may use the machine."""
    best = float("inf")
    for _ in range(tries):
        start = time.process_time()
        for _ in range(num):
            work()
        best = min(best, (time.process_time() - start) / num)
    return best


def loader(folder: Path) -> None:
    """Milliseconds a step of 8 images, latents in memory, by the latents' size."""
    model = init_model("sd1", size="tiny", out=folder / "model").out
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(64):
        pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 640)).save(folder / "photos" / f"a photo of number {i}.jpg")
    for side in (256, 512):
        s = TrainSettings(
            data_root=str(folder / "photos"), model=str(model), resolution=side, cond_dropout=0.1, cache_text=False
        )
        family = load_family(s.model)
        s = resolve(s, resolution=side, bucket_step=64, num_timesteps=1000, family=family.name)
        with prepare(s, family, torch.device("cpu"), dry_run=False, progress=SILENT) as data:
            made = Loader(
                family=family, sample=data.sample, view=data.view, latents=data.latents, seed=1, timesteps=(0, 1000),
                micro_batch_size=None,
            )  # fmt: skip
            planned = [
                Planned(step=step, epoch=e, index=i, last=False)
                for e in range(4)
                for i, step in enumerate(data.steps(e))
            ]
            shape = made.batch(planned[0]).micros[0].noisy.shape
            took = seconds(lambda made=made, planned=planned: [made.batch(one) for one in planned], num=1)
        print(f"loader, {shape[0]} latents of {tuple(shape[1:])}: {1e3 * took / len(planned):.2f} ms a step")


def store(folder: Path) -> None:
    """Milliseconds to write and read one entry, by size."""
    sizes = {"SD1 latents, 512 x 512": (4, 64, 64), "SDXL latents, 1024 x 1024": (4, 128, 128)}
    sizes |= {"SD1 text states": (77, 768), "SDXL text states": (77, 2048)}
    for name, shape in sizes.items():
        kept = Store(folder / f"{len(shape)}{shape[-1]}.db", limit_bytes=1 << 34)
        entry = {"value": torch.randn(shape).half()}
        keys = [key_of(name, i) for i in range(256)]
        writes = seconds(
            lambda kept=kept, keys=keys, entry=entry: [
                kept.put(dict.fromkeys(keys[i : i + 16], entry)) for i in range(0, 256, 16)
            ],
            num=1,
        )
        reads = seconds(lambda kept=kept, keys=keys: kept.get(keys), num=1)
        size, write, read = entry["value"].numel() * 2 / 1e3, 1e3 * writes / 256, 1e3 * reads / 256
        print(f"store, {name} in fp16 ({size:.0f} kB): {write:.2f} ms to write, {read:.2f} to read")
        kept.close()


def text() -> None:
    """Milliseconds that a text encoder of SD1's size takes for one caption, in batches of 8."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
    )
    encoder = CLIPTextModel(config).eval()
    ids = torch.randint(0, 49000, (8, 77))
    with torch.no_grad():
        took = seconds(lambda: encoder(input_ids=ids), num=1, tries=3)
    print(f"text encoder of SD1's size: {1e3 * took / 8:.0f} ms a caption")


def layouts() -> None:
    """Milliseconds of a U-Net's forward and backward pass, by memory layout."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    for channels in ((64, 128, 256), (128, 256, 512)):
        for layout in (torch.contiguous_format, torch.channels_last):
            unet = UNet2DConditionModel(
                sample_size=32, block_out_channels=channels, cross_attention_dim=64, attention_head_dim=8,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            ).to(memory_format=layout)  # fmt: skip
            noisy, times, states = torch.randn(4, 4, 32, 32), torch.arange(4), torch.randn(4, 16, 64)

            def step(unet: torch.nn.Module = unet, args: tuple[torch.Tensor, ...] = (noisy, times, states)) -> None:
                unet(*args, return_dict=False)[0].square().mean().backward()
                unet.zero_grad(set_to_none=True)

            step()
            print(f"U-Net of {channels}, fp32, {str(layout)[6:]}: {1e3 * seconds(step, num=1, tries=3):.0f} ms a step")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as name:
        store(Path(name))
        loader(Path(name))
    text()
    layouts()
