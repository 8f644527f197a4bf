"""Low-rank adapters: put into a model to be trained, written for other tools, and merged into a model's weights.

Hu et al. 2021, arXiv:2106.09685: a weight W becomes W + alpha / rank * up @ down, and only up and down learn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from edkit.data.errors import BadInput, UsageError
from edkit.train.families.base import DTYPES, Family, write_safetensors

UI_FILE = "lora.safetensors"  # in the keys that user interfaces read
PEFT_FILE = "pytorch_lora_weights.safetensors"  # in the keys of diffusers and peft

ATTENTION: dict[str, tuple[str, ...]] = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
_MORE: dict[str, tuple[str, ...]] = {
    "unet": ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    "text": ("fc1", "fc2"),
}
_CONVS = ("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj")
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": ATTENTION,
    "transformer": {part: (*ATTENTION[part], *_MORE[part]) for part in ATTENTION},
    "all": {"unet": (*ATTENTION["unet"], *_MORE["unet"], *_CONVS), "text": (*ATTENTION["text"], *_MORE["text"])},
}
"""Which layers get an adapter, by the name of the choice: the ends of their names, in U-Net and text encoders."""

_BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "sdxl": "stable-diffusion-xl-v1-base"}


def add_lora(
    part: nn.Module, name: str, *, rank: int, alpha: float, dropout: float, targets: str, seed: int
) -> dict[str, nn.Parameter]:
    """Put an adapter into each target layer of a model's part (in place) and give the adapters' weights by name.

    `up` starts at zero, so the model is as it was; `down` is drawn from the seed and the part's name alone.
    Raises UsageError where the part has none of the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from edkit.data.random import integer

    wanted = TARGETS[targets]["unet" if name == "unet" else "text"]
    found = [n for n, _ in part.named_modules() if any(n == end or n.endswith(f".{end}") for end in wanted)]
    if not found:
        raise UsageError(f"lora_targets {targets}: the {name} has none of {', '.join(wanted)}")
    part.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=found, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(1 << 62, seed, "lora", name))
        inject_adapter_in_model(config, part)
    return {key: parameter for key, parameter in part.named_parameters() if parameter.requires_grad}


def export_lora(
    family: Family,
    folder: Path,
    *,
    rank: int,
    alpha: float,
    precision: str,
    metadata: Mapping[str, str],
    title: str,
    resolution: int,
    captions: Mapping[str, Counter[str]],
) -> None:
    """Write the adapters of `family` into an empty folder, in both sets of keys.

    `captions`: how often each caption trains, by folder; user interfaces show it as `ss_tag_frequency`. The
    `modelspec.*` keys follow Stability's model metadata standard 1.0.
    """
    dtype = DTYPES[precision]
    adapters = {
        f"{part}.{_full_name(part, layer)}": (down.detach().to("cpu", dtype), up.detach().to("cpu", dtype))
        for part, module in family.parts().items()
        for layer, down, up in _adapters(module)
    }
    two = "text_encoder_2" in family.parts()
    for_uis: dict[str, Tensor] = {}
    for name, (down, up) in adapters.items():
        key = _ui_key(name, two_text_encoders=two)
        for_uis[f"{key}.lora_down.weight"] = down.contiguous()
        for_uis[f"{key}.lora_up.weight"] = up.contiguous()
        for_uis[f"{key}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    said = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": _BASES.get(family.name, family.name),
        "ss_v2": str(family.name == "sd2"),
        "ss_output_name": title,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_tag_frequency": json.dumps({k: dict(v.most_common()) for k, v in captions.items()}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES.get(family.name, family.name)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if family.prediction_type == "v_prediction" else "epsilon",
    }
    write_safetensors(folder / UI_FILE, for_uis, {**said, **metadata})
    # diffusers has no place for alpha in these keys: with it in `up`, alpha is the rank
    scale = alpha / rank
    for_peft = {f"{name}.lora_A.weight": down.contiguous() for name, (down, _) in adapters.items()}
    for_peft |= {f"{name}.lora_B.weight": (up.float() * scale).to(dtype) for name, (_, up) in adapters.items()}
    write_safetensors(folder / PEFT_FILE, for_peft, metadata)


def merge_lora(family: Family, path: Path, *, strength: float = 1.0) -> int:
    """Add an adapter file times `strength` to the family's weights (in place); how many layers it changed.

    `path`: a file in either set of keys, or a folder that `export_lora` wrote. Raises BadInput where a key
    belongs to no layer of this model, or a shape doesn't fit.
    """
    file = path / UI_FILE if path.is_dir() else path
    state = _load(file)
    layers = {
        f"{part}.{_full_name(part, name)}": module
        for part, whole in family.parts().items()
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    two = "text_encoder_2" in family.parts()
    names = {_ui_key(name, two_text_encoders=two): name for name in layers} | {name: name for name in layers}
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, kind = _split(key, file)
        grouped.setdefault(name, {})[kind] = tensor
    unknown = sorted(name for name in grouped if name not in names)
    if unknown:
        raise BadInput(
            f"{len(unknown)} of its {len(grouped)} layers are none of this {family.name} model's ({unknown[0]}, ...)",
            where=str(file),
            mend="give it the kind of model it was trained on",
        )
    for key, parts in grouped.items():
        layer = layers[names[key]]
        if not {"down", "up"} <= parts.keys():
            raise BadInput(f"half of an adapter is missing ({key})", where=str(file))
        down, up = parts["down"].float(), parts["up"].float()
        scale = strength * float(parts.get("alpha", torch.tensor(len(down)))) / len(down)
        change = up.flatten(1) @ down.flatten(1)
        if change.numel() != layer.weight.numel() or len(up) != len(layer.weight):
            raise BadInput(f"does not fit this model ({key} is {tuple(change.shape)})", where=str(file))
        with torch.no_grad():
            layer.weight.add_((scale * change).reshape(layer.weight.shape).to(layer.weight))
    return len(grouped)


# ---- names and keys


def _adapters(part: nn.Module) -> Iterable[tuple[str, Tensor, Tensor]]:
    """(layer's name, down, up) of each adapter in a part."""
    for name, module in part.named_modules():
        downs, ups = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if downs is not None and ups is not None and "default" in downs:
            yield name, downs["default"].weight, ups["default"].weight


def _full_name(part: str, layer: str) -> str:
    """The layer's name as every tool knows it: transformers 5 drops the `text_model.` before CLIP's."""
    if part.startswith("text_encoder") and not layer.startswith(("text_model.", "text_projection")):
        return f"text_model.{layer}"
    return layer


def _ui_key(name: str, *, two_text_encoders: bool) -> str:
    part, _, layer = name.partition(".")
    first = "te1" if two_text_encoders else "te"
    prefix = {"unet": "unet", "text_encoder": first, "text_encoder_2": "te2"}.get(part, part)
    return f"lora_{prefix}_{layer.replace('.', '_')}"


_KINDS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
}


def _split(key: str, file: Path) -> tuple[str, str]:
    for ending, kind in _KINDS.items():
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), kind
    raise BadInput(f"has a key that is no LoRA's: {key}", where=str(file))


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        raise BadInput("is no .safetensors file", where=str(file), mend="other files can run code when they are read")
    try:
        return cast(dict[str, Tensor], load_file(file))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't be read: {error}", where=str(file)) from None


def caption_counts(samples: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """How often each caption stands in each folder, of (folder, caption) pairs."""
    counts: dict[str, Counter[str]] = {}
    for folder, caption in samples:
        counts.setdefault(folder, Counter())[caption] += 1
    return counts
