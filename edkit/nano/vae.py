"""Trains nano's VAE: 64 x 64 x 3 pixels to 16 x 16 x 4 latents and back, on a stream richer than the world."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from edkit.nano import stream, world

Say = Callable[[str], None]
NORM_GROUPS = 8
BLOCK_CHANNELS = (16, 32, 64)
KL_WEIGHT = 1e-4  # per latent element, against losses per pixel element: noise of a few percent of a latent's spread


def new_vae() -> Any:
    """A diffusers AutoencoderKL with random weights: 0.68 M parameters, factor 4, 4 latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=64,
        block_out_channels=BLOCK_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(BLOCK_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(BLOCK_CHANNELS),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=NORM_GROUPS,
    )


def _draw_part(job: tuple[int, int, int]) -> NDArray[np.uint8]:
    start, stop, seed = job
    return np.stack([np.asarray(stream.rich_picture(index, seed)) for index in range(start, stop)])


def draw_pool(num_pictures: int, seed: int, workers: int = 2) -> NDArray[np.uint8]:
    """Draws the first pictures of the rich stream: (N, 64, 64, 3) bytes."""
    part = 500
    jobs = [(i, min(i + part, num_pictures), seed) for i in range(0, num_pictures, part)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(_draw_part, jobs)))


def to_pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Bytes (B, H, W, 3) => floats -1..1 (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _augment(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Flips, quarter turns and, for one batch in four, exchanged colour channels."""
    turn = int(rng.integers(8))
    pixels = torch.rot90(pixels, turn % 4, (2, 3))
    if turn >= 4:
        pixels = pixels.flip(3)
    if rng.uniform() < 0.25:
        pixels = pixels[:, rng.permutation(3).tolist()]
    return pixels.contiguous()


def _loss(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    posterior = vae.encode(pixels).latent_dist
    output = vae.decode(posterior.sample()).sample
    difference = output - pixels
    mse = difference.square().mean()
    across = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = difference.abs().mean() + 2.0 * mse + 0.5 * (across + down) + KL_WEIGHT * kl
    return loss, float(mse.detach()), float(kl.detach())


def _object_weights(pixels: torch.Tensor) -> torch.Tensor:
    """More weight where there is strong colour and at its rims; grounds are large and easy: (B, 1, H, W)."""
    chroma = pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)
    return 1.0 + 4.0 * F.max_pool2d(chroma.sub(0.5).clamp(0.0, 0.5), 3, stride=1, padding=1)


def sharpen_decoder(
    source: Path,
    out: Path,
    *,
    steps: int = 1500,
    batch_size: int = 16,
    lr: float = 1.2e-3,
    num_pictures: int = 8_000,
    seed: int = 8,
    say: Say = print,
) -> Any:
    """Trains a VAE's decoder alone, a little further and with more weight on objects, and saves the whole into `out`.

    The latents stay what they are, so a U-Net trained on them needs no change.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    vae = AutoencoderKL.from_pretrained(str(source)).float()
    vae.requires_grad_(False)
    trained = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    pool = draw_pool(num_pictures, seed)
    judge = np.stack([np.asarray(world.training_picture(i, seed + 1)[1]) for i in range(96)])
    before = psnr(vae, judge)
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    )
    spread = 1.0 / vae.config.scaling_factor
    began = time.monotonic()
    for step in range(1, steps + 1):
        pixels = _augment(to_pixels(pool[rng.integers(num_pictures, size=batch_size)]), rng)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
            # what a U-Net draws is never quite a latent of the encoder's
            latents = latents + torch.randn_like(latents) * (0.04 * spread)
        difference = vae.decode(latents).sample - pixels
        weights = _object_weights(pixels)
        across = (difference[..., :, 1:] - difference[..., :, :-1]).abs() * weights[..., :, 1:]
        down = (difference[..., 1:, :] - difference[..., :-1, :]).abs() * weights[..., 1:, :]
        loss = (difference.abs() * weights).mean() + 2.0 * (difference.square() * weights).mean()
        loss = loss + 0.5 * (across.mean() + down.mean())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 50 == 0:
            say(f"decoder step {step} loss {loss.item():.4f} {time.monotonic() - began:.0f} s")
        if step % 250 == 0 or step == steps:
            vae.save_pretrained(out)
            say(f"decoder step {step} psnr {before:.2f} -> {psnr(vae, judge):.2f} dB")
    return vae


def psnr(vae: Any, pictures: NDArray[np.uint8]) -> float:
    """Mean peak signal to noise of reconstructions, in dB over 0..255."""
    values = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 32):
            pixels = to_pixels(pictures[start : start + 32])
            output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
            mse = (output - pixels).square().mean((1, 2, 3))
            values.append(10.0 * torch.log10(4.0 / mse))
    return float(torch.cat(values).mean())


def latent_std(vae: Any, pictures: NDArray[np.uint8]) -> float:
    """Spread of the latents over the pictures; its inverse is the scaling factor."""
    with torch.inference_mode():
        parts = [
            vae.encode(to_pixels(pictures[start : start + 32])).latent_dist.sample()
            for start in range(0, len(pictures), 32)
        ]
    return float(torch.cat(parts).std())


def train_vae(
    out: Path,
    *,
    steps: int = 5000,
    batch_size: int = 16,
    lr: float = 2e-3,
    num_pictures: int = 20_000,
    seed: int = 7,
    ema_decay: float = 0.998,
    save_every: int = 500,
    say: Say = print,
) -> Any:
    """Trains a VAE for `steps` steps and saves its moving average, scaling factor set, into `out`."""
    torch.manual_seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    began = time.monotonic()
    pool = draw_pool(num_pictures, seed)
    judge = np.stack([np.asarray(world.training_picture(i, seed + 1)[1]) for i in range(192)])
    say(f"drew {num_pictures} pictures in {time.monotonic() - began:.0f} s")
    vae, average = new_vae(), new_vae()
    average.load_state_dict(vae.state_dict())
    average.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    warmup = 150
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps))),
    )
    order = rng.permutation(num_pictures)
    at = 0
    began = time.monotonic()
    for step in range(1, steps + 1):
        if at + batch_size > num_pictures:
            order, at = rng.permutation(num_pictures), 0
        pixels = _augment(to_pixels(pool[order[at : at + batch_size]]), rng)
        at += batch_size
        loss, mse, kl = _loss(vae, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1.0 - decay)
        if step % 50 == 0:
            seconds = time.monotonic() - began
            say(f"step {step} loss {loss.item():.4f} mse {mse:.5f} kl {kl:.2f} {seconds:.0f} s")
        if step % save_every == 0 or step == steps:
            average.register_to_config(scaling_factor=round(1.0 / latent_std(average, judge), 5))
            average.save_pretrained(out)
            say(f"step {step} psnr {psnr(average, judge):.2f} dB, scaling {average.config.scaling_factor}")
    return average
