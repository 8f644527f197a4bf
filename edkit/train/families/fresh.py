"""What the U-Net families are made of, with weights not learned yet: random ones, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edkit.data.errors import UsageError
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

_END = "<|endoftext|>"
_UP = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
PLAIN, ATTENDING = "DownBlock2D", "CrossAttnDownBlock2D"
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_UNET = {"layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16}
VAE = {"block_out_channels": (128, 256, 512, 512), "sample_size": 512, "scaling_factor": 0.18215}
TINY_VAE = {"block_out_channels": (8, 16, 24, 24), "sample_size": 128, "norm_num_groups": 4, "layers_per_block": 1}


def random_parts(sizes: Mapping[str, Any], *, prediction: str, folder: Path) -> dict[str, Any]:
    """The parts of a U-Net family of these sizes, drawn from torch's generator as it stands."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    if prediction not in ("epsilon", "v_prediction"):
        raise UsageError(f"{prediction}: this family predicts epsilon or v_prediction")
    # OpenCLIP's encoders pad with an exclamation mark, which is token 0; OpenAI's with the end marker
    words = [clip_tokenizer(pad="!" if text.get("hidden_act") == "gelu" else _END) for text in sizes["texts"]]
    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders = [clip_encoder(*of) for of in zip(classes, sizes["texts"], words, strict=False)]
    return {
        "folder": folder,
        **unet_and_vae(sizes["unet"], sizes["vae"]),
        "text_encoders": dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False)),
        "tokenizers": dict(zip(("tokenizer", "tokenizer_2"), words, strict=False)),
        "scheduler": SD_NOISE | {"prediction_type": prediction},
    }


def parts_of(configs: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """The parts that `UNetModel.configs` told of; KeyError, TypeError or ValueError where they make none."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    return {
        "folder": folder,
        "unet": UNet2DConditionModel.from_config(configs["unet"]),
        "vae": AutoencoderKL.from_config(configs["vae"]),
        "text_encoders": {
            name: classes[name](CLIPTextConfig.from_dict(config)) for name, config in configs["text_encoders"].items()
        },
        "tokenizers": {name: clip_tokenizer(pad=pad) for name, pad in configs["pad_tokens"].items()},
        "scheduler": configs["scheduler"],
    }


def unet_and_vae(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
    """A U-Net and an autoencoder; what their configs don't say is Stable Diffusion 1's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    down = tuple(unet["down_block_types"])
    levels = len(vae["block_out_channels"])
    coders = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
    }
    return {
        "unet": UNet2DConditionModel(**{"up_block_types": tuple(_UP[kind] for kind in reversed(down)), **unet}),
        "vae": AutoencoderKL(**{**coders, **vae}),
    }


def clip_encoder(cls: Any, text: Mapping[str, Any], tokenizer: Any) -> Any:
    """A CLIP text encoder that reads what the tokenizer says."""
    from transformers import CLIPTextConfig

    said = {
        "projection_dim": text["hidden_size"],
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return cls(CLIPTextConfig(**{**said, **text}))


def clip_tokenizer(*, pad: str = _END) -> Any:
    """CLIP's tokenizer as Stable Diffusion 1 has it: 49,408 tokens, 77 positions."""
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=pad)
