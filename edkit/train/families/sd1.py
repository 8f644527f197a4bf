"""Stable Diffusion 1 and 2: one CLIP text encoder, whose last states (or earlier ones) the U-Net reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edkit.train.families.base import Family, Text
from edkit.train.families.fresh import (
    ATTENDING,
    CLIP_H,
    CLIP_L,
    PLAIN,
    TINY_TEXT,
    TINY_UNET,
    TINY_VAE,
    VAE,
    parts_of,
    random_parts,
)
from edkit.train.families.parts import load_text, load_tokenizer
from edkit.train.families.unet import UNetModel, clip_states, clip_tokens, joined, load_unet_parts

PIPELINES = ("StableDiffusionPipeline",)


class SD1(UNetModel):
    """A Stable Diffusion 1 or 2 model. 2 has OpenCLIP's text encoder, saved without its last layer."""

    pipeline = "StableDiffusionPipeline"

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.text_encoder, self.tokenizer = self.text_encoders["text_encoder"], self.tokenizers["tokenizer"]
        # OpenAI's CLIP was trained with another GELU than OpenCLIP's
        self.name = "sd1" if self.text_encoder.config.hidden_act == "quick_gelu" else "sd2"
        number = self.name[-1]
        self.published_as = (f"sd_v{number}", f"stable-diffusion-v{number}")

    def tokenize(self, captions: Sequence[str]) -> Text:
        ids = clip_tokens(self.tokenizer, captions, positions=self._positions(), chunks=self.caption_chunks)
        return {"input_ids": ids}

    def encode_text(self, tokens: Text) -> Text:
        ids = tokens["input_ids"]
        said = clip_states(self.text_encoder, ids, positions=self._positions())
        states: Tensor = said.last_hidden_state
        if self.clip_skip > 1:
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)
            states = inner.final_layer_norm(said.hidden_states[-self.clip_skip])
        return {"states": joined(states, len(ids))}  # (N, chunks * L, D)

    def index(self) -> dict[str, Any]:
        return {"requires_safety_checker": False, "safety_checker": [None, None]}


def load(folder: Path) -> Family:
    """Load a Stable Diffusion 1 or 2 folder in fp32, from safetensors only; every part in evaluation mode."""
    from transformers import CLIPTextModel

    return SD1(
        folder=folder,
        **load_unet_parts(folder),
        text_encoders={"text_encoder": load_text(CLIPTextModel, folder / "text_encoder")},
        tokenizers={"tokenizer": load_tokenizer(folder / "tokenizer")},
    )


def build(name: str, size: str, *, prediction: str | None, folder: Path) -> Family:
    """A model of this family with random weights; `prediction` None: as the family was published."""
    usual = "v_prediction" if name == "sd2" else "epsilon"  # the 768-pixel model says v
    return SD1(**random_parts(SIZES[name][size], prediction=prediction or usual, folder=folder))


def of_configs(configs: Mapping[str, Any], *, folder: Path) -> SD1:
    """A model from the configs that `UNetModel.configs` gave."""
    return SD1(**parts_of(configs, folder=folder))


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "real": {
            "unet": {
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280),
                "down_block_types": (ATTENDING,) * 3 + (PLAIN,),
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
            "vae": VAE,
            "texts": [CLIP_L],
        },
        "tiny": {
            "unet": {
                **TINY_UNET,
                "block_out_channels": (32, 48, 64, 64),
                "down_block_types": (ATTENDING,) * 3 + (PLAIN,),
                "cross_attention_dim": 32,
                "attention_head_dim": 4,
            },
            "vae": {**TINY_VAE, "scaling_factor": 0.18215},
            "texts": [TINY_TEXT],
        },
    },
    "sd2": {
        "real": {
            "unet": {
                "sample_size": 96,
                "block_out_channels": (320, 640, 1280, 1280),
                "down_block_types": (ATTENDING,) * 3 + (PLAIN,),
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
            "vae": {**VAE, "sample_size": 768},
            "texts": [{**CLIP_H, "hidden_act": "gelu"}],
        },
        "tiny": {
            "unet": {
                **TINY_UNET,
                "block_out_channels": (32, 48, 64, 64),
                "down_block_types": (ATTENDING,) * 3 + (PLAIN,),
                "cross_attention_dim": 32,
                "attention_head_dim": (2, 3, 4, 4),
                "use_linear_projection": True,
            },
            "vae": {**TINY_VAE, "scaling_factor": 0.18215},
            "texts": [{**TINY_TEXT, "hidden_act": "gelu"}],
        },
    },
}
"""As published, and small ones of the same architecture."""
