"""Kill a training run again and again with SIGKILL and resume it: does it end with the bits of a run left alone?

`python benchmarks/kill_resume.py --kills 100` trains a Stable Diffusion 1 of 60,000 parameters (full fine-tuning of
U-Net and text encoder, with averaged weights, a learning rate schedule, checkpoints, exports and samples) in forked
children. Every second child is killed after a random time, the others at a random file operation of theirs, so that
many kills fall into the writing of checkpoints. After each kill the newest checkpoint is compared with the one that
the undisturbed run wrote at that step, and the next child resumes; when a run gets to its end, its weights, its export
and its metrics are compared too. Prints one row a kill, as Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from bench import machine
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from edkit.train import checkpoint as ck
from edkit.train.initial import make_sd1
from edkit.train.run import train
from edkit.train.settings import SETTINGS_FILE, TrainSettings
from edkit.train.watch import read_metrics

STEPS = 12
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
VAE = {"block_out_channels": (8, 8, 8), "sample_size": 32, "norm_num_groups": 4, "layers_per_block": 1}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=555)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--optimizer", default="adamw")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kill(Path(folder), args)


def kill(folder: Path, args: argparse.Namespace) -> None:
    s = settings(folder, method=args.method, optimizer=args.optimizer)
    straight = train(s.but(out=folder / "straight", keep_checkpoints=99))
    assert straight.export is not None
    reference = {path.name: digests(path) for path in ck.checkpoints(straight.run_dir)}
    run_dir, said = folder / "killed", folder / "said.txt"
    began, operations = time.monotonic(), folder / "operations"
    child = fork(lambda: train(s.but(out=folder / "clock")), said, below=folder / "clock", count=operations)
    assert os.waitpid(child, 0)[1] == 0, said.read_text()
    length, num_operations = time.monotonic() - began, int(operations.read_text())
    draw = random.Random(args.seed)
    print(f"{machine('torch', 'diffusers')}; one run takes {length:.1f} s and {num_operations} file operations\n")
    print("| kill | run | moment | checkpoint found | steps after it in metrics.jsonl | half-written | equal |")
    print("|---:|---:|---|---|---:|---|---|")
    kills, runs, unequal = 0, 1, 0
    while kills < args.kills or run_dir.exists():
        last = kills >= args.kills
        at = draw.randrange(1, num_operations) if kills % 2 and not last else None
        child = fork(lambda: go_on(s.but(out=run_dir)), said, below=run_dir, kill_at=at)
        moment = f"file operation {at}"
        if at is None and not last:
            seconds = draw.random() * length
            moment = f"{seconds:.2f} s"
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(said.read_text())
        newest, damaged = ck.latest(run_dir)
        equal = not damaged and (newest is None or digests(newest) == reference[newest.name])
        if status:
            kills += 1
            step = int(newest.name[5:]) if newest else 0
            after = sum(row["step"] > step for row in read_metrics(run_dir))
            name = newest.name if newest else "none yet"
            print(
                f"| {kills} | {runs} | {moment} | {name} | {after} | {halves(run_dir)} | {'yes' if equal else 'NO'} |"
            )
        else:
            equal &= newest is not None and newest.name == f"step-{STEPS:08d}"
            equal &= digests(run_dir / "export") == digests(straight.export)
            equal &= rows(run_dir) == rows(straight.run_dir) and not list(run_dir.rglob(".edkit-*"))
            print(
                f"| | {runs} | to its end | | | {halves(run_dir)} | {'**all equal**' if equal else '**NOT EQUAL**'} |"
            )
            shutil.rmtree(run_dir)
            runs += 1
        unequal += not equal
        sys.stdout.flush()
    print(f"\n{kills} kills in {runs - 1} runs, {unequal} not equal")


def settings(folder: Path, **changes: Any) -> TrainSettings:
    """A run that uses all that a checkpoint must hold, on twelve pictures and a tiny model."""
    model = folder / "model"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=24)
    make_sd1(model, unet=UNET, vae=VAE, text=TEXT | {"max_position_embeddings": 24}, tokenizer=tokenizer)
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 100, 255 - 20 * i)).save(pictures / f"paint of shade {i}_.png")
    return TrainSettings(
        data_root=str(pictures), model=str(model), max_steps=STEPS, batch_size=2, lr=1e-3,
        train_text_encoder=True, ema_decay=0.9, lr_schedule="cosine", lr_warmup_steps=3, flip_p=0.5, shuffle_tags=True,
        save_every_steps=2, keep_exports=2, sample_prompts=("paint",), sample_every_steps=6, sample_steps=1,
        tensorboard=False, device="cpu", num_threads=1, **changes,
    )  # fmt: skip


def go_on(s: TrainSettings) -> None:
    assert s.out is not None
    if (s.out / SETTINGS_FILE).exists():
        train(resume=s.out)
    else:
        train(s)


def fork(work: Any, said: Path, *, below: Path, kill_at: int | None = None, count: Path | None = None) -> int:
    """Run `work` in a child that begins with everything imported. At file operation `kill_at` it kills itself."""
    child = os.fork()
    if child:
        return child
    status, seen = 1, 0

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_CREAT | os.O_RDWR | os.O_WRONLY)
        if not (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")):
            return
        if isinstance(values[0], str | os.PathLike) and str(below) in os.fspath(values[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.addaudithook(hook)
        work()
        if count is not None:
            count.write_text(str(seen))
        status = 0
    except BaseException:  # noqa: BLE001 - a child has no caller
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensors of every safetensors file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def rows(run_dir: Path) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["lr"], row["grad_norm"]) for row in read_metrics(run_dir)]


def halves(run_dir: Path) -> str:
    """What stands half-written, by the folder it is in."""
    names = {"checkpoints": "checkpoint", "exports": "export", run_dir.name: "export or file"}
    return ", ".join(sorted({names.get(path.parent.name, path.parent.name) for path in run_dir.rglob(".edkit-*")}))


if __name__ == "__main__":
    main()
