"""Models of a family's real architecture with random weights: for tests, benchmarks and training from
nothing.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data.errors import BadInput, UsageError
from edkit.measure.families import clip_vocabulary

if TYPE_CHECKING:
    from edkit.train.families.unet import UNetModel

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

_UP = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
_PLAIN, _ATTENDING = "DownBlock2D", "CrossAttnDownBlock2D"
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_UNET = {"layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16}
_VAE = {"block_out_channels": (128, 256, 512, 512), "sample_size": 512, "scaling_factor": 0.18215}
_TINY_VAE = {"block_out_channels": (8, 16, 24, 24), "sample_size": 128, "norm_num_groups": 4, "layers_per_block": 1}

# as published, and small ones of the same architecture; the parameters stand in tests/train/test_initial.py
_MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "real": {
            "unet": {
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280),
                "down_block_types": (_ATTENDING,) * 3 + (_PLAIN,),
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
            "vae": _VAE,
            "texts": [_CLIP_L],
        },
        "tiny": {
            "unet": {
                **_TINY_UNET,
                "block_out_channels": (32, 48, 64, 64),
                "down_block_types": (_ATTENDING,) * 3 + (_PLAIN,),
                "cross_attention_dim": 32,
                "attention_head_dim": 4,
            },
            "vae": {**_TINY_VAE, "scaling_factor": 0.18215},
            "texts": [_TINY_TEXT],
        },
    },
    "sd2": {
        "real": {
            "unet": {
                "sample_size": 96,
                "block_out_channels": (320, 640, 1280, 1280),
                "down_block_types": (_ATTENDING,) * 3 + (_PLAIN,),
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
            "vae": {**_VAE, "sample_size": 768},
            "texts": [{**_CLIP_H, "hidden_act": "gelu"}],
        },
        "tiny": {
            "unet": {
                **_TINY_UNET,
                "block_out_channels": (32, 48, 64, 64),
                "down_block_types": (_ATTENDING,) * 3 + (_PLAIN,),
                "cross_attention_dim": 32,
                "attention_head_dim": (2, 3, 4, 4),
                "use_linear_projection": True,
            },
            "vae": {**_TINY_VAE, "scaling_factor": 0.18215},
            "texts": [{**_TINY_TEXT, "hidden_act": "gelu"}],
        },
    },
    "sdxl": {
        "real": {
            "unet": {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": (_PLAIN, _ATTENDING, _ATTENDING),
                "transformer_layers_per_block": (1, 2, 10),
                "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 6 * 256 + 1280,
            },
            "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
            "texts": [_CLIP_L, {**_CLIP_G, "hidden_act": "gelu"}],
        },
        "tiny": {
            "unet": {
                **_TINY_UNET,
                "block_out_channels": (32, 48, 64),
                "down_block_types": (_PLAIN, _ATTENDING, _ATTENDING),
                "transformer_layers_per_block": (1, 1, 2),
                "cross_attention_dim": 32 + 48,
                "attention_head_dim": (2, 3, 4),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 48,
            },
            "vae": {**_TINY_VAE, "scaling_factor": 0.13025},
            "texts": [_TINY_TEXT, {**_TINY_TEXT, "hidden_size": 48, "intermediate_size": 96, "hidden_act": "gelu"}],
        },
    },
}
_PREDICTIONS = {"sd2": "v_prediction"}  # as the 768-pixel model was published; the others predict the noise


@dataclass(frozen=True, kw_only=True)
class Initialized:
    """A model with random weights was written."""

    out: Path
    family: str
    size: str
    num_parameters: dict[str, int]  # by part


def init_model(
    family: str, *, size: str = "tiny", out: Path, prediction: str | None = None, seed: int = 555
) -> Initialized:
    """Write a diffusers folder of a family's real architecture with random weights; the same for the same
    seed. `prediction`: epsilon or v_prediction; None: as the family was published.
    """
    if family not in _MODELS:
        raise UsageError(f"{family}: init-model knows {', '.join(_MODELS)}")
    if size not in _MODELS[family]:
        raise UsageError(f"{size}: sizes are tiny and real")
    if prediction not in (None, "epsilon", "v_prediction"):
        raise UsageError(f"{prediction}: models predict epsilon or v_prediction")
    build = _builder(family, size, prediction, out.absolute())
    return _written(build, out, seed=seed, size=size)


def published(family: str, *, prediction: str | None, folder: Path) -> UNetModel:
    """A family's model as published, its weights not filled yet (on the meta device)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return _builder(family, "real", prediction, folder)()


def unfilled(family: str, configs: Mapping[str, Any], *, folder: Path) -> UNetModel:
    """A model of the configs that `UNetModel.configs` gave, its weights not filled yet (on the meta device).

    Raises KeyError, TypeError or ValueError where they make no model.
    """
    from accelerate import init_empty_weights
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with init_empty_weights():
        unet, vae = UNet2DConditionModel.from_config(configs["unet"]), AutoencoderKL.from_config(configs["vae"])
        encoders = {
            name: classes[name](CLIPTextConfig.from_dict(config)) for name, config in configs["text_encoders"].items()
        }
    tokenizers = {name: clip_tokenizer(pad=pad) for name, pad in configs["pad_tokens"].items()}
    parts = {"folder": folder, "unet": unet, "vae": vae, "scheduler": configs["scheduler"]}
    return _assembled(family, parts, encoders, tokenizers, dict(configs.get("index", {})))


def _assembled(
    family: str,
    parts: dict[str, Any],
    encoders: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    index: dict[str, Any],
) -> UNetModel:
    from edkit.train.families.sd1 import SD1
    from edkit.train.families.sdxl import SDXL

    if family == "sdxl":
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return SDXL(**parts, text_encoders=encoders, tokenizers=tokenizers, zeros_for_empty=zeros)
    if family not in ("sd1", "sd2"):
        raise ValueError(f"there is no family {family!r}")
    return SD1(**parts, text_encoder=encoders["text_encoder"], tokenizer=tokenizers["tokenizer"])


def _builder(family: str, size: str, prediction: str | None, folder: Path) -> Callable[[], UNetModel]:
    """What makes a model of one of the sizes above."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = _MODELS[family][size]
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    scheduler = SD_NOISE | {"prediction_type": prediction or _PREDICTIONS.get(family, "epsilon")}

    def build() -> UNetModel:
        # OpenCLIP's encoders pad with an exclamation mark, which is token 0; OpenAI's with the end marker
        words = [
            clip_tokenizer(pad="!" if text.get("hidden_act") == "gelu" else "<|endoftext|>") for text in parts["texts"]
        ]
        encoders = {
            name: _text_encoder(cls, text, tokenizer)
            for (name, cls), text, tokenizer in zip(classes.items(), parts["texts"], words, strict=False)
        }
        tokenizers = dict(zip(("tokenizer", "tokenizer_2"), words, strict=False))
        made = {"folder": folder, **_unet_and_vae(parts["unet"], parts["vae"]), "scheduler": scheduler}
        return _assembled(family, made, encoders, tokenizers, {})

    return build


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
    """Write a Stable Diffusion 1 or 2 pipeline with random weights from the configs given (what they don't
    say is SD1's).

    `tokenizer`: a CLIPTokenizer; without one, CLIP's own vocabulary of 49,408 tokens. Raises BadInput where
    `out` has something in it.
    """
    from transformers import CLIPTextModel

    from edkit.train.families.sd1 import SD1

    def build() -> SD1:
        words = tokenizer or clip_tokenizer()
        return SD1(
            folder=out.absolute(),
            **_unet_and_vae(unet, vae),
            text_encoder=_text_encoder(CLIPTextModel, text, words),
            tokenizer=words,
            scheduler=scheduler,
        )

    return _written(build, out, seed=seed, size=size)


def _unet_and_vae(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
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


def _text_encoder(cls: Any, text: Mapping[str, Any], tokenizer: Any) -> Any:
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


def _written(build: Callable[[], UNetModel], out: Path, *, seed: int, size: str) -> Initialized:
    import torch

    out = out.absolute()
    if out.exists() and any(out.iterdir()):
        raise BadInput("is not empty", where=str(out), mend="name a new folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = build()
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
    return Initialized(out=out, family=family.name, size=size, num_parameters=counts)


def clip_tokenizer(*, pad: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer as Stable Diffusion 1 has it: 49,408 tokens, 77 positions."""
    from transformers import CLIPTokenizer

    vocab, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=pad)
