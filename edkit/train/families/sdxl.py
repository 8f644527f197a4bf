"""Stable Diffusion XL: two CLIP text encoders side by side, and a U-Net that is told sizes and crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkit.train.families.base import Family, Text
from edkit.train.families.fresh import (
    ATTENDING,
    CLIP_G,
    CLIP_L,
    PLAIN,
    TINY_TEXT,
    TINY_UNET,
    TINY_VAE,
    VAE,
    parts_of,
    random_parts,
)
from edkit.train.families.parts import load_text, load_tokenizer, read_json
from edkit.train.families.unet import UNetModel, clip_states, clip_tokens, joined, load_unet_parts

PIPELINES = ("StableDiffusionXLPipeline",)


class SDXL(UNetModel):
    """A Stable Diffusion XL model: Podell et al. 2023, arXiv:2307.01952.

    The U-Net reads the next-to-last states of both text encoders beside each other, and besides the second's
    pooled text and six numbers (section 2.2): the picture's size before scaling, where it was cut, the size
    it was cut to, each as height, width in pixels.
    """

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    published_as = ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")

    def __init__(self, *, zeros_for_empty: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.zeros_for_empty = zeros_for_empty  # the empty caption is all zeros, as the published model learned it

    def tokenize(self, captions: Sequence[str]) -> Text:
        names = ("input_ids", "input_ids_2")
        return {
            name: clip_tokens(tokenizer, captions, positions=self._positions(), chunks=self.caption_chunks)
            for name, tokenizer in zip(names, self.tokenizers.values(), strict=True)
        }

    def encode_text(self, tokens: Text) -> Text:
        positions, layer = self._positions(), -1 - self.clip_skip
        states = []
        for ids, encoder in zip(tokens.values(), self.text_encoders.values(), strict=True):
            said = clip_states(encoder, ids, positions=positions)
            states.append(joined(said.hidden_states[layer], len(ids)))
        num = len(states[0])
        text = {
            "states": torch.cat(states, dim=-1),  # (N, chunks * L, D1 + D2)
            "pooled": said.text_embeds.reshape(num, -1, said.text_embeds.shape[-1])[:, 0],  # (N, P)
        }
        if self.zeros_for_empty:
            worded = ~self._is_empty(tokens)
            text = {k: v * worded.view(-1, *[1] * (v.ndim - 1)).to(v) for k, v in text.items()}
        return text

    def conditions(self, text: Text, sizes: Tensor) -> dict[str, Any]:
        return {"added_cond_kwargs": {"text_embeds": text["pooled"], "time_ids": sizes.to(text["pooled"])}}

    def index(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.zeros_for_empty, "add_watermarker": None}

    def _is_empty(self, tokens: Text) -> Tensor:
        """(N,) whether a caption has no word: its end stands right behind its start."""
        return tokens["input_ids"][:, 1].eq(int(self.tokenizers["tokenizer"].eos_token_id))


def load(folder: Path) -> Family:
    """Load a Stable Diffusion XL folder in fp32, from safetensors only; every part in evaluation mode."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    index: Mapping[str, Any] = read_json(folder / "model_index.json")
    return SDXL(
        folder=folder,
        **load_unet_parts(folder),
        text_encoders={
            "text_encoder": load_text(CLIPTextModel, folder / "text_encoder"),
            "text_encoder_2": load_text(CLIPTextModelWithProjection, folder / "text_encoder_2"),
        },
        tokenizers={name: load_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")},
        zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def build(name: str, size: str, *, prediction: str | None, folder: Path) -> Family:
    """A model of this family with random weights; `prediction` None: as the family was published."""
    parts = random_parts(SIZES[size], prediction=prediction or "epsilon", folder=folder)
    return SDXL(zeros_for_empty=True, **parts)


def of_configs(configs: Mapping[str, Any], *, folder: Path) -> SDXL:
    """A model from the configs that `UNetModel.configs` gave."""
    zeros = bool(configs.get("index", {}).get("force_zeros_for_empty_prompt", True))
    return SDXL(zeros_for_empty=zeros, **parts_of(configs, folder=folder))


SIZES: dict[str, dict[str, Any]] = {
    "real": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (PLAIN, ATTENDING, ATTENDING),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
        },
        "vae": {**VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "texts": [CLIP_L, {**CLIP_G, "hidden_act": "gelu"}],
    },
    "tiny": {
        "unet": {
            **TINY_UNET,
            "block_out_channels": (32, 48, 64),
            "down_block_types": (PLAIN, ATTENDING, ATTENDING),
            "transformer_layers_per_block": (1, 1, 2),
            "cross_attention_dim": 32 + 48,
            "attention_head_dim": (2, 3, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 48,
        },
        "vae": {**TINY_VAE, "scaling_factor": 0.13025},
        "texts": [TINY_TEXT, {**TINY_TEXT, "hidden_size": 48, "intermediate_size": 96, "hidden_act": "gelu"}],
    },
}
"""As published, and a small one of the same architecture."""
