"""Stable Diffusion 1 and 2: one CLIP text encoder, whose last states (or earlier ones) the U-Net reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edkit.train.families.base import Family, Text
from edkit.train.families.unet import (
    UNetModel,
    clip_states,
    clip_tokens,
    joined,
    load_text,
    load_tokenizer,
    load_unet_parts,
)

PIPELINES = ("StableDiffusionPipeline",)


class SD1(UNetModel):
    """A Stable Diffusion 1 or 2 model. 2 has OpenCLIP's text encoder, saved without its last layer."""

    pipeline = "StableDiffusionPipeline"

    def __init__(
        self,
        *,
        folder: Path,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Mapping[str, Any],
    ) -> None:
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        super().__init__(
            folder=folder,
            unet=unet,
            vae=vae,
            text_encoders={"text_encoder": text_encoder},
            tokenizers={"tokenizer": tokenizer},
            scheduler=scheduler,
        )
        # OpenAI's CLIP was trained with another GELU than OpenCLIP's
        self.name = "sd1" if text_encoder.config.hidden_act == "quick_gelu" else "sd2"

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
        text_encoder=load_text(CLIPTextModel, folder / "text_encoder"),
        tokenizer=load_tokenizer(folder / "tokenizer"),
    )
