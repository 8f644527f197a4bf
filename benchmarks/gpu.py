"""How near to its card's own rate edkit trains real-sized models: Stable Diffusion 1.5 at 512 pixels, XL at 1024.

    python benchmarks/gpu.py [--photos DIR] [--diffusers-script PATH] [--steps 60] [--rounds 2] [--tiny]

The models have the real architecture and random weights, which cost as much time as trained ones. First the card's rate
of bf16 matrix products is measured: it is the limit that every step is held against, by the operations torch counts in
it. Then, each in fresh processes and in turns as in train_speed.py: full and LoRA training in bf16 at several batch
sizes, edkit's loop beside the bare step and (SD 1.5) diffusers' script; what `compile` and `gradient_checkpointing`
change; how fast latents are cached; how fast ViT-L/14 embeds. `--tiny` runs the same code with small models on the CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cache_speed
import torch
from bench import DIFFUSERS, by_turns, machine, photos, tell
from train_speed import Job, once, python_with_datasets, rate, squares

from edkit.train.families import load_family
from edkit.train.initial import init_model
from edkit.train.settings import TrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--diffusers-script", default=os.environ.get(DIFFUSERS, ""), metavar="PATH")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small models, 64 pixels, on the CPU: does it run at all")
    settings = parser.parse_args()
    device = "cpu" if settings.tiny else "cuda"
    size = "tiny" if settings.tiny else "real"
    what = "CPU" if settings.tiny else torch.cuda.get_device_name()
    limit = matmul_rate(device, 256 if settings.tiny else 8192)
    print(f"{machine('torch', 'diffusers', 'open_clip_torch')}; {what}: {limit:.1f} TFLOP/s of bf16 products.\n")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        data = squares(photos(settings.photos, scratch, 80), scratch / "squares", side=64 if settings.tiny else 1024)
        for family, side, batches in (("sd1", 512, (8, 32)), ("sdxl", 1024, (4, 8))):
            model = init_model(family, size=size, out=scratch / family).out
            job = Job(
                way="", model=str(model), side=64 if settings.tiny else side, data=str(data), out=str(scratch / "run"),
                steps=settings.steps, device=device, precision="bf16",
            )  # fmt: skip
            script = settings.diffusers_script if family == "sd1" else ""
            flops = flops_an_image(job)
            print(f"{family}, {job.side} px: {flops / 1e12:.3f} TFLOP a training image.\n")
            print("| what | batch | images/s | of the bare step | TFLOP/s | of the card's rate | GB at most |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for method in ("full", "lora"):
                for batch in (2,) if settings.tiny else batches:
                    ways(family, replace(job, method=method, batch=batch, script=script), flops, limit, settings.rounds)
            print()
            latents(family, job, data, scratch, settings.rounds)
    sys.stdout.flush()
    embedding(settings)


def matmul_rate(device: str, n: int) -> float:
    """TFLOP/s of bf16 products of n x n matrices; the best of five runs of ten."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 10 * 2 * n**3 / best / 1e12


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def flops_an_image(job: Job) -> float:
    """What torch counts in the products of one image's forward and backward pass through the whole U-Net."""
    from torch.utils.flop_counter import FlopCounterMode

    family = load_family(job.model)
    family.place(torch.device(job.device))
    next(iter(family.parts().values())).requires_grad_(True)
    latent = torch.randn(1, family.latent_channels, *[job.side // family.vae_factor] * 2, device=job.device)
    with torch.no_grad():
        ids = family.tokenize(["a photo"])
        text = family.encode_text({name: rows.to(job.device) for name, rows in ids.items()})
    sizes = torch.tensor([[job.side, job.side, 0, 0, job.side, job.side]], device=job.device)
    with FlopCounterMode(display=False) as counter:
        family.predict(latent, torch.tensor([10], device=job.device), text, sizes).square().mean().backward()
    return float(counter.get_total_flops())


def ways(family: str, job: Job, flops: float, limit: float, rounds: int) -> None:
    """Lines of the table for one method and batch size."""
    settable = {field.name for field in fields(TrainSettings)}
    more: dict[str, dict[str, Any]] = {"edkit": {}, "edkit, gradient_checkpointing": {"gradient_checkpointing": True}}
    if "compile" in settable:
        more["edkit, compile"] = {"compile": True}
    jobs = {name: replace(job, way="edkit", script="", more=extra) for name, extra in more.items()}
    jobs["bare step"] = replace(job, way="bare", script="")
    calls = {name: lambda job=one: once(job) for name, one in jobs.items()}
    if job.script and job.method == "full":
        peer = replace(job, way="diffusers", workers=8)
        calls["diffusers' script"] = lambda: once(peer, python_with_datasets())
    runs = by_turns(calls, rounds, warm_up=False)
    rates = {name: statistics.median(map(rate_of(job.batch), some)) for name, some in runs.items()}
    for name, images in rates.items():
        done = images * flops / 1e12
        # LoRA computes no gradients of the weights it leaves alone: its operations are not what was counted
        speed = f"{done:.1f} | {done / limit:.2f}" if job.method == "full" else " | "
        peak = max(run["peak"] for run in runs[name])
        share = images / rates["bare step"]
        print(f"| {name}, {job.method} | {job.batch} | {images:.1f} | {share:.2f} | {speed} | {peak:.1f} |", flush=True)
    peers = {"peer": "diffusers' script", "value": rates["diffusers' script"]} if "diffusers' script" in rates else {}
    share = rates["edkit"] / rates["bare step"]
    tell(
        f"train {family} at {job.side} px, {job.method}, batch {job.batch}", edkit=rates["edkit"], unit="images/s",
        floor="the bare step", limit=rates["bare step"], aim="0.95", reached=share >= 0.95, **peers,
    )  # fmt: skip
    if job.method == "full":
        best = max(rates[name] for name in jobs if name.startswith("edkit")) * flops / 1e12
        tell(
            f"train {family} at {job.side} px, batch {job.batch}, of the card's rate", edkit=best, unit="TFLOP/s",
            floor="bf16 products", limit=limit, aim="0.40", reached=best >= 0.4 * limit,
        )  # fmt: skip


def rate_of(batch: int) -> Any:
    return lambda run: rate(run, batch)


def latents(name: str, job: Job, data: Path, scratch: Path, rounds: int) -> None:
    family = load_family(job.model)
    family.place(torch.device(job.device))
    print("| encoder | bare, images/s | edkit, images/s | edkit is | CPU ms an image, bare | edkit |")
    print("|---|---:|---:|---:|---:|---:|")
    cache_speed.compare(f"{name}, {job.side} px", family, job.side, data, scratch, rounds, device=job.device)
    print()


def embedding(settings: argparse.Namespace) -> None:
    """ViT-L/14 by embed_speed.py, which prints a table of its own."""
    words = ["--clip", "ViT-B-32", "--images", "4", "--batch", "2", "--rounds", "1"]
    if not settings.tiny:
        words = ["--clip", "ViT-L-14", "--images", "2048", "--batch", "64", "--precision", "bf16", "--device", "cuda"]
    if settings.photos:
        words += ["--photos", str(settings.photos)]
    subprocess.run([sys.executable, str(Path(__file__).with_name("embed_speed.py")), *words], check=True)


if __name__ == "__main__":
    main()
