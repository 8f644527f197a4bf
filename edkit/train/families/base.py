"""What the loop needs of any model: one small Protocol, and how its parts are written to disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from edkit.data import atomic
from edkit.data.errors import UsageError
from edkit.train.losses import Prediction
from edkit.train.noise import Name

Text = dict[str, Tensor]
"""What a family's text side makes of captions: named tensors, the first axis of each is the caption."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def need_precision(precision: str) -> None:
    """UsageError where it is none of `DTYPES`."""
    if precision not in DTYPES:
        raise UsageError(f"--precision {precision}: {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class LoraKey:
    """What a file calls the adapter of a layer; layers that are one in the file share a key, each a piece of it."""

    key: str
    piece: int = 0
    pieces: int = 1


class Family(Protocol):
    """A loaded model of one family. Latents are scaled: of about unit variance, as the denoiser sees them."""

    name: str
    folder: Path  # where it was loaded from
    vae_factor: int  # pixels a latent, on each side
    bucket_step: int  # widths and heights are multiples of this, in pixels
    resolution: int  # the side of the square it was made for, in pixels
    latent_channels: int
    num_timesteps: int
    prediction_type: Prediction
    clip_skip: int  # 1: the text states the family was made with; 2: one layer earlier, and so on
    caption_chunks: int  # how many times the encoder's length a caption may have
    refusals: Mapping[str, str]  # settings that mean nothing to this family, by name, and why
    vae: nn.Module

    @property
    def vae_hash(self) -> str:
        """SHA-256 of the image encoder's weights and config: latents made by another one are no good."""

    @property
    def text_hash(self) -> str:
        """SHA-256 of all that decides what `encode_text` makes of token ids, but for `clip_skip`."""

    @property
    def max_tokens(self) -> int:
        """How much of a caption is read, its markers counted."""

    def parts(self) -> dict[str, nn.Module]:
        """The denoiser first, then the text encoders, by the name of their folder."""

    def place(self, device: torch.device, names: Collection[str] | None = None) -> None:
        """Move parts to a device: those of `parts()` and the image encoder, `vae`, by their names; None: all."""

    def tokenize(self, captions: Sequence[str]) -> Text:
        """Token ids (and what else `encode_text` needs), cut and padded to `max_tokens`; each (N, max_tokens) int64,
        on the CPU.
        """

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has, markers counted, cut by nothing."""

    def model_hash(self) -> str:
        """SHA-256 of all weights as they stand."""

    def encode_text(self, tokens: Text) -> Text:
        """What the denoiser reads: from token ids, under grad where the text encoder trains."""

    def perturb(self, text: Text, gamma: float, seed: int, names: Sequence[Name]) -> Text:
        """Text with noise on what the denoiser attends to (`noise.perturbed`), each row's of its own name."""

    def end_at_pure_noise(self) -> None:
        """Stretch the noise schedule so that its last timestep has no signal left: Lin et al. 2023, "Common
        diffusion noise schedules and sample steps are flawed", arXiv:2305.08891, algorithm 1.

        Raises BadInput where the model predicts the noise itself, which there tells nothing, or ends there anyway.
        """

    def lora_targets(self, part: str, choice: str) -> tuple[str, ...]:
        """How the names of a part's layers end that `attention`, `transformer` or `all` mean."""

    def lora_keys(self, part: str, layer: str) -> Sequence[LoraKey]:
        """What files call the adapter of a layer: first as user interfaces read it, then as diffusers does, then
        every other way it is met.
        """

    def lora_metadata(self) -> dict[str, str]:
        """What user interfaces want to know of the base model, as `ss_*` and `modelspec.*` keys."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in -1..1 -> (N, C, H/f, W/f) scaled latents, the mean of what the encoder says."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> (N, 3, H, W) in -1..1."""

    def timesteps(self, draws: Tensor, start: int, end: int) -> Tensor:
        """Uniform draws in 0..1 (N,) -> timesteps from `start` up to but without `end`."""

    def noise_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents and what the denoiser should say about them."""

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio (N,) at each timestep, in float64 on the CPU."""

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """What the denoiser says. `sizes` (N, 6): of each picture its height and width before it was scaled, the
        top and left of the cut, the height and width it was cut to, in pixels; a family may not ask for them.
        """

    def denoise(self, noise: Tensor, text: Text, negative: Text, *, steps: int, guidance: float) -> Tensor:
        """From pure noise to latents, with classifier-free guidance (none at 1)."""

    def save(self, folder: Path, *, precision: str, metadata: Mapping[str, str]) -> None:
        """Write the whole model as a diffusers folder into an empty folder."""


def whole_timesteps(draws: Tensor, start: int, end: int) -> Tensor:
    """Uniform draws in 0..1 (N,) -> whole timesteps from `start` up to but without `end`."""
    return (start + draws.double() * (end - start)).long().clamp_(start, end - 1)


def own_memory(module: nn.Module) -> None:
    """Copy a module's weights into memory aligned as torch aligns it.

    Loaded weights lie where their file happened to put them, and matrix kernels round differently by
    alignment: a model and its own export would not give the same bits.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.clone()


def last_layers(text_encoder: nn.Module, num: int) -> tuple[str, ...]:
    """How the names of a CLIP text encoder's weights begin that belong to its last `num` layers and what follows
    them.
    """
    names = [name for name, _ in text_encoder.named_modules()]
    stack = next(name for name in names if name.endswith("encoder.layers"))
    count = sum(1 for name in names if name.rpartition(".")[0] == stack)
    after = stack.removesuffix("encoder.layers") + "final_layer_norm."
    return (*(f"{stack}.{i}." for i in range(max(0, count - num), count)), after, "text_projection.")


def unwrapped_state(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's weights on the CPU, contiguous, floating ones in `dtype`; shared tensors stand once."""
    seen: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen[tensor.data_ptr()] = name
        kept = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        state[name] = kept.contiguous()
    return state


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One durable safetensors file; `format: pt` is what the readers of this field look for."""
    from safetensors.torch import save

    atomic.write_bytes(path, save(dict(state), metadata={"format": "pt", **metadata}))


def write_json(path: Path, value: object) -> None:
    """One durable JSON file, in UTF-8, indented."""
    atomic.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
