"""The original layout of Stable Diffusion (CompVis's and Stability's): what each weight is called there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, cast

How = Literal["same", "conv", "transposed", "q", "k", "v"]
"""How a weight stands in the file: as it is, as a convolution of one pixel, transposed, or as a third of a joint."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet_place(unet: Any) -> Callable[[str], tuple[str, How]]:
    """What weights of a U-Net are called: levels are numbered through, each has its layers and one step on."""
    levels = len(unet.config.block_out_channels)
    layers = unet.config.layers_per_block
    attends_up = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    blocks: dict[str, str] = {f"{ours}.": f"{theirs}." for ours, theirs in _UNET_ENDS.items()}
    for i in range(levels):
        for j in range(layers):
            blocks[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{(layers + 1) * i + j + 1}.0."
            blocks[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{(layers + 1) * i + j + 1}.1."
        blocks[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{(layers + 1) * (i + 1)}.0.op."
        for j in range(layers + 1):
            blocks[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{(layers + 1) * i + j}.0."
            blocks[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{(layers + 1) * i + j}.1."
        after = 2 if attends_up[i] else 1
        blocks[f"up_blocks.{i}.upsamplers.0."] = f"output_blocks.{(layers + 1) * i + layers}.{after}."
    blocks |= {"mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1."}
    blocks["mid_block.resnets.1."] = "middle_block.2."

    def place(key: str) -> tuple[str, How]:
        for ours, theirs in blocks.items():
            if key.startswith(ours):
                rest = key.removeprefix(ours)
                if ".resnets." in ours:
                    layer, _, kind = rest.rpartition(".")
                    rest = f"{_RESNET[layer]}.{kind}"
                return theirs + rest, "same"
        raise AssertionError(f"a weight of the U-Net that no rule places: {key}")

    return place


def vae_place(vae: Any) -> Callable[[str], tuple[str, How]]:
    """What weights of an autoencoder are called, and how they stand."""
    top = len(vae.config.block_out_channels) - 1

    def place(key: str) -> tuple[str, How]:
        how: How = "same"
        found = re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)$", key)
        if found:
            if found[2] != "group_norm" and found[3] == "weight":
                how = "conv"  # the original attends by convolutions of one pixel
            return f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}", how
        key = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
        # the original counts the decoder's levels from the image, not from the latents
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{top - int(m[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{top - int(m[1])}.upsample.", key)
        return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out"), how

    return place


def clip_place(key: str) -> tuple[str, How]:
    """What a weight of OpenAI's CLIP is called."""
    return f"text_model.{key}", "same"


def open_clip_place(key: str) -> tuple[str, How]:
    if key in _OPEN_CLIP_ENDS:
        return _OPEN_CLIP_ENDS[key], "same"
    if key == "text_projection.weight":
        return "text_projection", "transposed"
    found = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", key)
    assert found, f"a weight of the text encoder that no rule places: {key}"
    layer, name, kind = f"transformer.resblocks.{found[1]}", found[2], found[3]
    if name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return f"{layer}.attn.in_proj_{kind}", cast(How, name[len("self_attn.")])
    return f"{layer}.{_OPEN_CLIP[name]}.{kind}", "same"
