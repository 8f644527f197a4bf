"""The memory that presets need: computed on the meta device, or measured on a GPU.

    python benchmarks/preset_memory.py compute [--family sdxl] [--out figures.jsonl]
    python benchmarks/preset_memory.py choose figures.jsonl
    python benchmarks/preset_memory.py measure sdxl-lora-12gb [--device cuda] [--steps 3]

`compute` runs a step of the published architecture with shapes and no numbers (edkit/train/memory.py) and writes what
it takes, one JSON object a line; it needs neither a GPU nor the weights. `choose` makes the rows of
edkit/train/presets.py out of that. `measure` makes the model with random weights on a GPU, caps the memory of this
process to the preset's size, encodes pictures, trains some steps, and prints torch's own peak beside the computed one;
`--device cpu --tiny` walks the same path without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edkit.train import memory
from edkit.train.families.registry import module_of
from edkit.train.settings import TrainSettings, resolve

GIB = 1 << 30
SIZES = (8, 12, 16, 24, 48)
# (images at once, gradients of earlier micro-batches stand)
RUNS = ((True, 1, True), (True, 4, True), (False, 4, True))
FUSED = ((True, 1, False), (True, 4, False))
LEAST = ((True, 1, True),)
CASES: tuple[tuple[str, str, str, bool, tuple[tuple[bool, int, bool], ...]], ...] = (
    # method, precision, weights, fused, (checkpointing, images, accumulating)
    ("lora", "bf16", "bf16", False, RUNS),
    ("full", "bf16", "bf16", True, FUSED),
    ("full", "bf16", "bf16", False, RUNS),
    ("full", "bf16", "fp32", False, RUNS),
    ("lora", "fp32", "fp32", False, LEAST),
    ("full", "fp32", "fp32", False, LEAST),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    computing = commands.add_parser("compute")
    computing.add_argument("--family", action="append")
    computing.add_argument("--out", type=Path)
    choosing = commands.add_parser("choose")
    choosing.add_argument("figures", type=Path, nargs="+")
    measuring = commands.add_parser("measure")
    measuring.add_argument("preset", nargs="+")
    measuring.add_argument("--device", default="cuda")
    measuring.add_argument("--steps", type=int, default=3)
    measuring.add_argument("--tiny", action="store_true")
    said = parser.parse_args()
    if said.command == "compute":
        compute(said.family or ["sd1", "sd2", "sdxl", "klein"], said.out)
    elif said.command == "choose":
        choose([json.loads(line) for path in said.figures for line in path.read_text("utf-8").splitlines()])
    else:
        for name in said.preset:
            measure(name, said.device, said.steps, tiny=said.tiny)


# ---- computed


def compute(families: list[str], out: Path | None) -> None:
    file = out.open("a", encoding="utf-8") if out else sys.stdout
    for name in families:
        family = published(name)
        side = family.resolution
        for method, precision, weights, fused, runs in CASES:
            s = settings(
                family, method=method, precision=precision, weights_precision=weights, fused_backward=fused,
                optimizer="adafactor" if method == "full" and weights == "bf16" else "adamw",
            )  # fmt: skip
            # on a GPU, what is cached leaves it; a processor's memory holds all of it
            resting = frozenset() if precision == "fp32" else frozenset({*list(family.parts())[1:], "vae"})
            trainer = memory.on_meta(family, s, resting=resting)
            learning = list(trainer.parameters.values())
            row: dict[str, Any] = {
                "family": name, "method": method, "precision": precision, "weights_precision": weights, "fused": fused,
                "weights": memory.weight_bytes(trainer.family, resting=resting),
                "learning": sum(p.numel() for p in learning),
                "adamw": 2 * sum(p.numel() * p.element_size() for p in learning),
                "adafactor": memory.adafactor_bytes(learning),
                "encoding": memory.before_bytes(trainer.family, s, size=(side, side)),
            }  # fmt: skip
            for checkpointing, images, accumulating in runs:
                started = time.perf_counter()
                _set_checkpointing(trainer, checkpointing)
                passing = memory.passing_bytes(trainer, size=(side, side), images=images, accumulating=accumulating)
                figures = {"checkpointing": checkpointing, "images": images, "accumulating": accumulating}
                took = round(time.perf_counter() - started, 1)
                print(json.dumps(row | figures | {"passing": passing, "seconds": took}), file=file, flush=True)


def published(name: str) -> Any:
    """A family's model as published, its weights not filled, on the meta device."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return module_of(name).build(name, "real", prediction=None, folder=Path(name))


def settings(family: Any, **said: Any) -> TrainSettings:
    return resolve(
        TrainSettings(data_root="data", model="model", **said),
        resolution=family.resolution,
        bucket_step=family.bucket_step,
        num_timesteps=family.num_timesteps,
        family=family.name,
    )


def _set_checkpointing(trainer: Any, on: bool) -> None:
    for name, part in trainer.family.parts().items():
        if any(key.startswith(f"{name}.") for key in trainer.parameters):
            (part.enable_gradient_checkpointing if on else part.disable_gradient_checkpointing)()


# ---- chosen


def choose(rows: list[dict[str, Any]]) -> None:
    """Print the rows of presets.py: for each size of memory the first way, from roomy to tight, that fits."""
    for family in dict.fromkeys(row["family"] for row in rows):
        for method in ("full", "lora"):
            of = [row for row in rows if (row["family"], row["method"]) == (family, method)]
            ways = list(_ways([row for row in of if row["precision"] == "bf16"], method))
            for size in SIZES:
                fits = next((way for way in ways if way["needed"] <= size * GIB), None)
                if fits:
                    print(_line(family, method, size, fits))
            for row in of:
                if row["precision"] == "fp32":
                    print(_line(family, method, 0, _way(row, 1, "adamw", row["passing"])))


def _ways(rows: list[dict[str, Any]], method: str) -> Iterator[dict[str, Any]]:
    tiers = [("adamw", "bf16", False)]
    if method == "full":
        tiers = [("adamw", "fp32", False), ("adafactor", "fp32", False), ("adafactor", "bf16", False)]
        tiers.append(("adafactor", "bf16", True))
    for optimizer, weights, fused in tiers:
        of = [row for row in rows if (row["weights_precision"], row["fused"]) == (weights, fused)]
        for checkpointing, images in ((False, 4), (True, 4), (True, 2), (True, 1)):
            known = {r["images"]: r for r in of if r["checkpointing"] == checkpointing}
            if images in known:
                yield _way(known[images], images, optimizer, known[images]["passing"])
            elif images == 2 and {1, 4} <= known.keys():  # activations grow with the images, all else stands
                one, four = known[1]["passing"], known[4]["passing"]
                yield _way(known[1], 2, optimizer, one + (four - one) // 3)


def _way(row: dict[str, Any], images: int, optimizer: str, passing: int) -> dict[str, Any]:
    peak = memory.Peak(
        weights=row["weights"], moments=row[optimizer], average=0, passing=passing, encoding=row["encoding"]
    )
    return row | {"images": images, "optimizer": optimizer, "peak": peak.num_bytes, "needed": peak.needed_bytes}


def _line(family: str, method: str, size: int, way: dict[str, Any]) -> str:
    names = ("images", "checkpointing", "optimizer", "weights_precision", "fused")
    row = (family, method, size, *(way[name] for name in names))
    return f"    {(*row, round(way['peak'] / GIB, 1), round(way['needed'] / GIB, 1))},".replace("'", '"')


# ---- measured


def measure(name: str, device_name: str, steps: int, *, tiny: bool) -> None:
    """Train some steps of a preset on random weights, in no more memory than it is for; print both figures."""
    from edkit.train.families import load_family
    from edkit.train.initial import init_model
    from edkit.train.presets import named
    from edkit.train.run import train

    preset = named(name)
    device = torch.device(device_name)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (preset.gib * GIB - memory.CONTEXT) / total), device)
    with tempfile.TemporaryDirectory() as folder:
        model = init_model(preset.family, size="tiny" if tiny else "real", out=Path(folder) / "model").out
        pictures = _draw(Path(folder) / "pictures", load_family(model).resolution)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        s = TrainSettings(
            data_root=str(pictures), model=str(model), out=Path(folder) / "run", max_steps=steps, device=device_name,
            export_on_save=False, tensorboard=False, **preset.settings(),
        )  # fmt: skip
        run = train(s)
        peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else float("nan")
        on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        said = f"peak {peak:.2f} GiB, computed {preset.peak_gib:.2f}; {run.images_per_second:.2f} images/s"
        print(f"{name}{' (tiny)' if tiny else ''}: {said}; on {on}, torch {torch.__version__}", flush=True)


def _draw(folder: Path, side: int) -> Path:
    from PIL import Image

    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (side, side), (20 * i, 100, 200 - 20 * i)).save(folder / f"a colour_({i}).png")
    return folder


if __name__ == "__main__":
    main()
