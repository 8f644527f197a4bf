"""Makes nano anew, from random weights to the folder that ships: draws its world, trains its parts, judges the result.

    python -m edkit.nano.recipe --out nano-build                 # all steps, about two hours on two cores
    python -m edkit.nano.recipe --out nano-build --steps train   # one of: vae init data train evaluate export

Each step works in the folder `--out` and begins from what the steps before it left there. The U-Net and the text
encoder are trained by edkit's own trainer, through its command line, as anyone would train.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edkit.data.names import Namer
from edkit.nano import world

STEPS = ("vae", "init", "data", "train", "evaluate", "export")
NUM_PICTURES = 24_000
WORLD_SEED = 1

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (40, 64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (2, 2, 3),  # diffusers' name for the number of heads a level
    "cross_attention_dim": 96,
    "norm_num_groups": 8,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "projection_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TRAIN = {
    "batch_size": 32,
    "max_steps": 4500,
    "lr": 1.5e-3,
    "text_encoder_lr": 1e-3,
    "train_text_encoder": True,
    "lr_schedule": "cosine",
    "lr_warmup_steps": 200,
    "lr_end": 0.02,
    "betas": [0.9, 0.99],
    "ema_decay": 0.998,
    "min_snr_gamma": 5.0,
    "cond_dropout": 0.1,
    "weight_decay": 0.01,
    "save_every_minutes": 5.0,
    "seed": 555,
    "num_threads": 2,
}
GUIDANCE = 4.0
SAMPLER_STEPS = 25


def main(argv: list[str] | None = None) -> None:
    """Runs the steps asked for, in order."""
    parser = argparse.ArgumentParser(prog="python -m edkit.nano.recipe", description="Make nano anew.")
    parser.add_argument("--out", type=Path, required=True, help="folder to build in")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=1200)
    parser.add_argument("--num-pictures", type=int, default=NUM_PICTURES)
    parser.add_argument("--max-steps", type=int, default=TRAIN["max_steps"])
    parser.add_argument("--ship-to", type=Path, help="folder the finished model is copied to (default: the package's)")
    said = parser.parse_args(argv)
    out: Path = said.out
    out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step not in said.steps:
            continue
        began = time.monotonic()
        if step == "vae":
            from edkit.nano.vae import sharpen_decoder, train_vae

            train_vae(out / "vae", steps=said.vae_steps, say=_say)
            sharpen_decoder(out / "vae", out / "vae", steps=said.decoder_steps, say=_say)
        elif step == "init":
            init(out / "vae", out / "init")
        elif step == "data":
            write_data(out / "data", said.num_pictures)
        elif step == "train":
            train(out, max_steps=said.max_steps)
        elif step == "evaluate":
            report = evaluate(out / "run" / "export", out / "evaluation")
            print(f"right: {report['right']} of {report['num_prompts']}")
        else:
            ship(out / "run" / "export", said.ship_to or Path(__file__).parent / "model")
        print(f"{step}: {time.monotonic() - began:.0f} s", flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def init(vae: Path, out: Path, *, seed: int = 555) -> None:
    """Writes a whole diffusers pipeline: the trained VAE, the other parts with random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from edkit.nano.tokenizer import make_tokenizer

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TEXT,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(str(vae)),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(out))
    for name in ("vae", "text_encoder", "unet"):
        print(f"{name}: {sum(p.numel() for p in getattr(pipeline, name).parameters()) / 1e6:.3f} M parameters")


# --- the data root ----------------------------------------------------------------------------------------------------


def _write_part(job: tuple[Path, tuple[tuple[int, str], ...]]) -> None:
    root, files = job
    for index, name in files:
        world.training_picture(index, WORLD_SEED)[1].save(root / name, compress_level=1)


def write_data(root: Path, num_pictures: int) -> None:
    """Writes the training set as a data root: a folder a ground, files such as `a red star on grass_(7).png`."""
    namers = {background: Namer([]) for background in world.BACKGROUNDS}
    for background in world.BACKGROUNDS:
        (root / background).mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(num_pictures):
        scene = world.training_scene(index, WORLD_SEED)
        name, sidecar = namers[scene.background].name(world.caption(scene), ".png")
        if sidecar is not None:
            raise AssertionError(f"a caption of the world can't name a file: {sidecar}")
        files.append((index, f"{scene.background}/{name}"))
    parts = [(root, tuple(files[i : i + 500])) for i in range(0, len(files), 500)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_part, parts))
    print(f"{num_pictures} pictures in {root}")


# --- training ---------------------------------------------------------------------------------------------------------


def train(out: Path, *, max_steps: int) -> None:
    """Trains U-Net and text encoder with `edkit train`; a run that was cut off goes on from its checkpoint."""
    settings = {**TRAIN, "max_steps": max_steps}
    settings |= {"data_root": str(out / "data"), "model": str(out / "init"), "out": str(out / "run")}
    config = out / "train.toml"
    # JSON's numbers, strings, truths and lists are TOML's as well
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8")
    resume = [str(out / "run"), "--resume"] if (out / "run" / "settings.toml").exists() else ["--config", str(config)]
    subprocess.run([sys.executable, "-m", "edkit", "train", *resume], check=True, env=os.environ | {"PYTHONUTF8": "1"})


# --- judging ----------------------------------------------------------------------------------------------------------


def load(model: Path) -> Any:
    """The pipeline in fp32 on the CPU, offline."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(model), torch_dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_prompts(
    pipeline: Any,
    prompts: list[str],
    *,
    seed: int = 0,
    guidance: float = GUIDANCE,
    steps: int = SAMPLER_STEPS,
    batch_size: int = 16,
) -> list[Any]:
    """Draws one picture a prompt, each from noise of its own (seed + its number)."""
    import torch

    pictures: list[Any] = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        noise = [torch.Generator().manual_seed(seed + start + number) for number in range(len(some))]
        pictures += pipeline(
            some, height=64, width=64, num_inference_steps=steps, guidance_scale=guidance, generator=noise
        ).images
    return pictures


def evaluate(
    model: Path, out: Path | None = None, *, seed: int = 0, guidance: float = GUIDANCE, steps: int = SAMPLER_STEPS
) -> dict[str, Any]:
    """Draws the 96 held-out prompts and lets the reader say how many show the right colour and shape."""
    from PIL import Image

    from edkit.nano.reader import read

    prompts = world.held_out_prompts()
    pictures = draw_prompts(load(model), [p.text for p in prompts], seed=seed, guidance=guidance, steps=steps)
    readings = [read(picture) for picture in pictures]
    rows = [
        {"prompt": p.text, "colour": r.colour, "shape": r.shape, "position": r.position, "right": r.shows(p.scene)}
        for p, r in zip(prompts, readings, strict=True)
    ]
    report = {
        "num_prompts": len(prompts),
        "right": sum(row["right"] is True for row in rows),
        "right_colour": sum(r.colour == p.scene.colour for p, r in zip(prompts, readings, strict=True)),
        "right_shape": sum(r.shape == p.scene.shape for p, r in zip(prompts, readings, strict=True)),
        "right_position": sum(r.position == p.scene.position for p, r in zip(prompts, readings, strict=True)),
        "seed": seed,
        "guidance": guidance,
        "steps": steps,
        "rows": rows,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "held_out.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        sheet = Image.new("RGB", (12 * 66, 8 * 66), "white")
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number % 12 * 66 + 1, number // 12 * 66 + 1))
        sheet.save(out / "held_out.png")
    return report


# --- shipping ---------------------------------------------------------------------------------------------------------


def ship(model: Path, target: Path, *, limit: int = 8_000_000) -> None:
    """Copies a model to `target` in half precision, and refuses what is larger than `limit` bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(model, fresh)
    for path in sorted(fresh.rglob("*.safetensors")):
        tensors = load_file(path)
        half = {
            key: value.to(torch.float16).contiguous() for key, value in tensors.items() if value.is_floating_point()
        }
        whole = {key: value for key, value in tensors.items() if not value.is_floating_point()}
        save_file(half | whole, path, metadata={"format": "pt"})
    for path in fresh.rglob("config.json"):
        config = json.loads(path.read_text("utf-8"))
        config.pop("_name_or_path", None)  # the folder it was built in is nobody's business
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > limit:
        raise SystemExit(f"{fresh} holds {size:,} bytes, more than {limit:,}")
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    print(f"{target}: {size:,} bytes")


if __name__ == "__main__":
    main()
