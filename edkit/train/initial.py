"""Models of a family's real architecture with random weights: for tests, benchmarks and training from
nothing.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.data.errors import BadInput, UsageError
from edkit.measure.families import clip_vocabulary

# alphas of Stable Diffusion 1, which its samplers and every fine-tune of it assume
SD_NOISE: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}

_SD1: dict[str, dict[str, dict[str, Any]]] = {
    # Stable Diffusion 1.5 as published: U-Net 859.5 M, text 123.1 M, VAE 83.7 M parameters
    "real": {
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "sample_size": 512, "scaling_factor": 0.18215},
        "text": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    },
    "tiny": {
        "unet": {
            "sample_size": 16,
            "block_out_channels": (32, 48, 64, 64),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
        },
        "vae": {
            "block_out_channels": (8, 16, 24, 24),
            "sample_size": 128,
            "scaling_factor": 0.18215,
            "norm_num_groups": 4,
            "layers_per_block": 1,
        },
        "text": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Initialized:
    """A model with random weights was written."""

    out: Path
    family: str
    size: str
    num_parameters: dict[str, int]  # by part


def init_model(family: str, *, size: str = "tiny", out: Path, seed: int = 555) -> Initialized:
    """Write a diffusers folder of a family's real architecture with random weights; the same for the same
    seed.
    """
    if family != "sd1":
        raise UsageError(f"{family}: init-model knows sd1")
    if size not in _SD1:
        raise UsageError(f"{size}: sizes are tiny and real")
    parts = _SD1[size]
    return make_sd1(out, seed=seed, size=size, unet=parts["unet"], vae=parts["vae"], text=parts["text"])


def make_sd1(
    out: Path,
    *,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    scheduler: Mapping[str, Any] = SD_NOISE,
    tokenizer: Any = None,
    seed: int = 555,
    size: str = "custom",
) -> Initialized:
    """Write a Stable Diffusion 1 pipeline with random weights from the configs given (what they don't say is
    SD1's).

    `tokenizer`: a CLIPTokenizer; without one, CLIP's own vocabulary of 49,408 tokens. Raises BadInput where
    `out` has something in it.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from edkit.train.families.sd1 import SD1

    out = out.absolute()
    if out.exists() and any(out.iterdir()):
        raise BadInput("is not empty", where=str(out), mend="name a new folder")
    tokenizer = tokenizer or clip_tokenizer()
    text_config = {
        "projection_dim": text["hidden_size"],
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
    }
    levels = len(vae["block_out_channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = SD1(
            folder=out,
            unet=UNet2DConditionModel(**unet),
            vae=AutoencoderKL(
                **{
                    "down_block_types": ("DownEncoderBlock2D",) * levels,
                    "up_block_types": ("UpDecoderBlock2D",) * levels,
                    "layers_per_block": 2,
                    **vae,
                }
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    **{
                        **text_config,
                        "vocab_size": len(tokenizer),
                        "bos_token_id": tokenizer.bos_token_id,
                        "eos_token_id": tokenizer.eos_token_id,
                        "pad_token_id": tokenizer.pad_token_id,
                        **text,
                    }
                )
            ),
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".edkit-{secrets.token_hex(6)}")
    part.mkdir()
    try:
        family.save(part, precision="fp32", metadata={})
        if out.exists():
            out.rmdir()
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    modules = {**family.parts(), "vae": family.vae}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return Initialized(out=out, family="sd1", size=size, num_parameters=counts)


def clip_tokenizer() -> Any:
    """CLIP's tokenizer as Stable Diffusion 1 has it: 49,408 tokens, 77 positions."""
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
