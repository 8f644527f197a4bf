"""How fast training goes: edkit's whole loop beside a bare one, and beside diffusers' own training script.

    python benchmarks/train_speed.py [--photos DIR] [--diffusers-script PATH] [--steps 60] [--rounds 2]
        [--memory-steps 2000] [--checkpoint-gb 0.5]

Models: the one that ships (nano, 64 pixels) and a Stable Diffusion 1 of 0.8 million U-Net parameters (128 pixels), both
in fp32 with batches of 8 from 80 square photos. *Bare* is the same U-Net, shapes, loss, clipping and fused AdamW on
tensors that lie ready: no data, no text, no log. *edkit* is `train` as a user has it: plan, latents from the cache,
captions, noise, metrics, TensorBoard. *diffusers* is `examples/text_to_image/train_text_to_image.py` of diffusers'
source, whose path `--diffusers-script` (or EDKIT_BENCH_DIFFUSERS) gives; it runs on the same torch and diffusers, in a
virtual environment that adds only `datasets`. Each runs in a fresh process, all in turns; a hook that torch calls after
every optimizer step notes the time, so nobody's start, loading and saving counts. The first epochs, which fill caches,
are compared on their own.

Then: resident memory over a long run, and what a checkpoint costs beside writing and flushing as many bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import DIFFUSERS, by_turns, machine, median_ratio, peer_python, photos, tell

BATCH, PHOTOS = 8, 80
EPOCH = PHOTOS // BATCH  # steps
WORDS = ("red", "small", "house", "dog", "tree", "car", "night", "snow", "street", "boat")


# ---- one training, in a process of its own; each calls `optimizer.step`, which is what is timed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process trains, and how."""

    way: str  # edkit, bare or diffusers
    model: str  # a folder, or nano
    side: int  # pixels
    data: str
    out: str  # a folder that is not there yet
    steps: int
    batch: int = BATCH
    device: str = "cpu"
    precision: str = "fp32"
    method: str = "full"
    more: dict[str, Any] = field(default_factory=dict)  # settings of edkit's
    script: str = ""  # diffusers'
    workers: int = 0  # of its data loader


class Steps:
    """When each optimizer step of this process ended: seconds of wall time, of all threads' CPU time, resident MB."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.rows: list[tuple[float, float, float]] = []
        register_optimizer_step_post_hook(lambda *_: self.note())

    def note(self) -> None:
        self.rows.append((time.perf_counter(), time.process_time(), resident_mb()))


def resident_mb() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0.0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def bare(job: Job) -> None:
    import torch
    from torch.nn.functional import mse_loss

    from edkit.train.families import load_family
    from edkit.train.families.base import DTYPES
    from edkit.train.lora import add_lora

    family = load_family(job.model)
    family.place(torch.device(job.device))
    name, unet = next(iter(family.parts().items()))
    if job.method == "lora":
        weights = list(add_lora(unet, name, rank=16, alpha=16, dropout=0.0, targets="attention", seed=1).values())
    else:
        weights = list(unet.train().requires_grad_(True).parameters())
    shape = (job.batch, family.latent_channels, job.side // family.vae_factor, job.side // family.vae_factor)
    noisy, target = (torch.randn(shape, device=job.device) for _ in range(2))
    with torch.no_grad():
        ids = family.tokenize([" ".join(WORDS)] * job.batch)
        text = family.encode_text({key: rows.to(job.device) for key, rows in ids.items()})
    timesteps = torch.randint(family.num_timesteps, (job.batch,), device=job.device)
    sizes = torch.tensor([[job.side, job.side, 0, 0, job.side, job.side]] * job.batch, device=job.device)
    optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.01, fused=True)
    for _ in range(job.steps):
        with torch.autocast(job.device, dtype=DTYPES[job.precision], enabled=job.precision != "fp32"):
            said = family.predict(noisy, timesteps, text, sizes)
        mse_loss(said.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if job.device == "cuda":
            torch.cuda.synchronize()


class Watching:
    """Progress that notes when each task began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    @contextmanager
    def task(self, what: str, total: int | None = None, unit: str = "images") -> Iterator[Any]:
        self.began.setdefault(what, time.perf_counter())
        yield lambda n=1, note="": None

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)


def edkit(job: Job) -> float:
    """Returns when its first task began, which reads the folder."""
    from edkit.train.run import train
    from edkit.train.settings import TrainSettings

    watching = Watching()
    settings: dict[str, Any] = {
        "data_root": job.data, "model": job.model, "out": Path(job.out), "state_dir": Path(f"{job.out}-state"),
        "resolution": job.side, "batch_size": job.batch, "max_steps": job.steps, "lr": 1e-5, "device": job.device,
        "precision": job.precision, "method": job.method,
    }  # fmt: skip
    train(TrainSettings(**settings, **job.more), progress=watching)
    return min(watching.began.values())


def diffusers(job: Job) -> None:
    import runpy

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{job.out}-hub"}
    sys.argv = [
        job.script, "--pretrained_model_name_or_path", job.model, "--train_data_dir", job.data, "--output_dir", job.out,
        "--resolution", str(job.side), "--center_crop", "--train_batch_size", str(job.batch),
        "--max_train_steps", str(job.steps), "--learning_rate", "1e-5", "--lr_scheduler", "constant",
        "--lr_warmup_steps", "0", "--seed", "1", "--dataloader_num_workers", str(job.workers),
        "--checkpointing_steps", "1000000", "--cache_dir", f"{job.out}-datasets",
    ]  # fmt: skip
    if job.precision != "fp32":
        sys.argv += ["--mixed_precision", job.precision]
    runpy.run_path(job.script, run_name="__main__")


def child(job: Job) -> None:
    """Train once and print what was noted."""
    import torch

    began, steps, reading = time.perf_counter(), Steps(), None
    if job.way == "bare":
        bare(job)
    elif job.way == "edkit":
        reading = edkit(job)
    else:
        diffusers(job)
    peak = torch.cuda.max_memory_allocated() / 1e9 if job.device == "cuda" else 0.0
    print(json.dumps({"began": began, "reading": reading, "steps": steps.rows, "peak": peak}))


def once(job: Job, python: str = sys.executable) -> Any:
    """What a fresh process noted; its files are gone afterwards."""
    done = subprocess.run(
        [python, __file__, "--child", json.dumps(asdict(job))],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    out = Path(job.out)
    for left in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(left)
    if done.returncode:
        sys.exit(f"{job.way}: {done.stderr.strip()[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def python_with_datasets() -> str:
    """The interpreter that diffusers' script runs in: this one's packages, and datasets."""
    return str(peer_python("datasets", "datasets", over=True))


# ---- the benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--diffusers-script", type=Path, default=os.environ.get(DIFFUSERS), metavar="PATH")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory-steps", type=int, default=2000)
    parser.add_argument("--checkpoint-gb", type=float, default=0.5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        child(Job(**json.loads(settings.child)))
        return
    from edkit.train.initial import init_model

    print(f"{machine('torch', 'diffusers', 'transformers')}; {settings.rounds} rounds of {settings.steps} steps.\n")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        data = squares(photos(settings.photos, scratch, PHOTOS)[:PHOTOS], scratch / "squares")
        tiny = init_model("sd1", size="tiny", out=scratch / "tiny").out
        job = Job(way="", model="nano", side=64, data=str(data), out=str(scratch / "run"), steps=settings.steps)
        compare("nano, 64 px", job, settings.rounds)
        script = str(settings.diffusers_script or "")
        if not script:
            print("Without --diffusers-script, its loop is not measured.\n")
        compare("tiny SD, 128 px", replace(job, model=str(tiny), side=128, script=script), settings.rounds)
        if settings.memory_steps:
            memory(replace(job, way="edkit", steps=settings.memory_steps, batch=1))
        if settings.checkpoint_gb:
            checkpoints(scratch, settings.checkpoint_gb)


def squares(some: list[Path], into: Path, side: int = 480) -> Path:
    """Photos cut to squares of that side in pixels, so that every way sees one shape; captions in their names and in
    metadata.jsonl.
    """
    from PIL import Image, ImageOps

    into.mkdir()
    rows = []
    for n in range(PHOTOS):
        caption = f"a {WORDS[n % 10]} {WORDS[n // 10]}"
        name = f"{caption}_({n}).jpg"
        with Image.open(some[n % len(some)]) as im:
            ImageOps.fit(im.convert("RGB"), (side, side)).save(into / name, quality=90)
        rows.append({"file_name": name, "text": caption})
    (into / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return into


def compare(name: str, job: Job, rounds: int) -> None:
    """Print a table of one model; diffusers' script is in it where the job names it."""
    ways = {way: partial(once, replace(job, way=way, script="")) for way in ("edkit", "bare")}
    if job.script:
        there = python_with_datasets()
        for workers in (0, 2):
            theirs = replace(job, way="diffusers", workers=workers)
            ways[f"diffusers, {workers} workers"] = partial(once, theirs, there)
    runs = by_turns(ways, rounds, warm_up=False)  # every process leaves its own first steps out
    rates = {way: [rate(run) for run in some] for way, some in runs.items()}
    print(f"| {name} | images/s | edkit is | CPU ms a step | first epoch, images/s | start to its end, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, some in runs.items():
        begun = statistics.median(run["steps"][EPOCH - 1][0] - run["began"] for run in some)
        first = "" if way == "bare" else f"{statistics.median(map(first_epoch, some)):.1f}"
        print(
            f"| {way} | {statistics.median(rates[way]):.1f} | {median_ratio(rates['edkit'], rates[way]):.2f} |"
            f" {statistics.median(map(cpu_ms, some)):.1f} | {first} | {begun:.1f} |"
        )
    print()
    mine, floor = statistics.median(rates["edkit"]), statistics.median(rates["bare"])
    share = median_ratio(rates["edkit"], rates["bare"])
    tell(
        f"train, {name}",
        edkit=mine,
        unit="images/s",
        floor="a bare loop",
        limit=floor,
        aim="0.95",
        reached=share >= 0.95,
    )
    peers = [way for way in runs if way.startswith("diffusers")]
    if not peers:
        return
    best = max(peers, key=lambda way: statistics.median(rates[way]))
    theirs = statistics.median(rates[best])
    tell(
        f"train, {name}, latents cached", edkit=mine, unit="images/s", peer=best, value=theirs, aim="3",
        reached=mine >= 3 * theirs,
    )  # fmt: skip
    best = max(peers, key=lambda way: statistics.median(map(first_epoch, runs[way])))
    one, other = (statistics.median(map(first_epoch, runs[way])) for way in ("edkit", best))
    tell(
        f"train, {name}, first epoch, nothing cached", edkit=one, unit="images/s", peer=best, value=other, aim="1.0",
        reached=one >= other,
    )  # fmt: skip


def rate(run: Any, batch: int = BATCH) -> float:
    """Images a second after the first epochs."""
    rows = run["steps"][min(2 * EPOCH, len(run["steps"]) // 2) :]
    return batch * (len(rows) - 1) / (rows[-1][0] - rows[0][0])


def cpu_ms(run: Any) -> float:
    rows = run["steps"][min(2 * EPOCH, len(run["steps"]) // 2) :]
    return 1e3 * (rows[-1][1] - rows[0][1]) / (len(rows) - 1)


def first_epoch(run: Any) -> float:
    """Images a second of the first epoch; edkit's begins with the folder that is read, all else's with a step."""
    rows = run["steps"][:EPOCH]
    if run["reading"]:
        return PHOTOS / (rows[-1][0] - run["reading"])
    return BATCH * (EPOCH - 1) / (rows[-1][0] - rows[0][0])


def memory(job: Job) -> None:
    """Resident memory of a long run: the slope of its second half."""
    import numpy as np

    run, num_steps = once(job), job.steps
    resident = np.array([row[2] for row in run["steps"]])
    half = resident[len(resident) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000
    print(f"Resident memory of {num_steps:,} steps (nano, batch {job.batch}): {resident[EPOCH]:.0f} MB after {EPOCH},")
    print(f"{half[0]:.0f} MB after half, {resident[-1]:.0f} MB at the end; {slope:+.2f} MB in 1,000 steps.\n")
    tell(
        f"memory, {num_steps:,} steps: growth in 1,000",
        edkit=slope,
        unit="MB",
        aim="none (below 1 MB)",
        reached=slope < 1,
    )


def checkpoints(scratch: Path, gigabytes: float) -> None:
    """A checkpoint of weights and two moments each, beside a file of as many bytes written and flushed."""
    import torch

    from edkit.train.checkpoint import save_checkpoint

    each = int(gigabytes * 1e9 / 4 / 3 / 64)
    weights = {f"block.{n}.weight": torch.randn(each) for n in range(64)}
    moments = {f"{name}|{entry}": torch.randn(each) for name in weights for entry in ("exp_avg", "exp_avg_sq")}
    size = 3 * 64 * each * 4 / 1e9

    def ours() -> float:
        began = time.perf_counter()
        save_checkpoint(scratch, step=1, state={}, tensors={"weights": weights, "optimizer": moments}, keep=1)
        return (time.perf_counter() - began) / size

    def plain() -> float:
        began = time.perf_counter()
        with (scratch / "plain").open("wb") as file:
            for part in (*weights.values(), *moments.values()):
                file.write(part.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / size

    found = by_turns({"edkit": ours, "plain": plain}, 3)
    mine, floor = statistics.median(found["edkit"]), statistics.median(found["plain"])
    print(f"A checkpoint of {size:.2f} GB: {mine:.2f} s a GB; the same bytes written and flushed: {floor:.2f} s a GB.")
    tell("checkpoint, a GB", edkit=mine, unit="s", floor="the bytes written and flushed", limit=floor, aim="2 s",
         reached=mine < 2)  # fmt: skip


if __name__ == "__main__":
    main()
