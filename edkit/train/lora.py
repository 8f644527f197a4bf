"""Low-rank adapters: put into a model to be trained, written for other tools, and merged into a model's weights.

Hu et al. 2021, arXiv:2106.09685: a weight W becomes W + alpha / rank * up @ down, and only up and down learn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from edkit.data.errors import BadInput, UsageError
from edkit.train.families.base import DTYPES, Family, LoraKey, write_safetensors

UI_FILE = "lora.safetensors"  # in the keys that user interfaces read
PEFT_FILE = "pytorch_lora_weights.safetensors"  # in the keys of diffusers and peft


def add_lora(
    part: nn.Module, name: str, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> dict[str, nn.Parameter]:
    """Put an adapter into each layer of a model's part whose name ends with one of `targets` (in place) and give the
    adapters' weights by name.

    `up` starts at zero, so the model is as it was; `down` is drawn from the seed and the part's name alone.
    Raises UsageError where the part has none of the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from edkit.data.random import integer

    found = list(_targeted(part, targets))
    if not found:
        raise UsageError(f"lora_targets: the {name} has none of {', '.join(targets)}")
    part.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=found, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(1 << 62, seed, "lora", name))
        inject_adapter_in_model(config, part)
    return {key: parameter for key, parameter in part.named_parameters() if parameter.requires_grad}


def adapter_size(part: nn.Module, *, rank: int, targets: Sequence[str]) -> int:
    """How many weights the adapters of a part have that `add_lora` would put in."""
    return sum(rank * (layer.weight[0].numel() + len(layer.weight)) for layer in _targeted(part, targets).values())


def _targeted(part: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    ends = tuple(f".{end}" for end in targets)
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(ends)
    }


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
        (part, layer): (down.detach().to("cpu", dtype), up.detach().to("cpu", dtype))
        for part, module in family.parts().items()
        for layer, down, up in _adapters(module)
    }
    for_uis: dict[str, Tensor] = {}
    shared: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for (part, layer), adapter in adapters.items():
        place = family.lora_keys(part, layer)[0]
        shared.setdefault(place.key, {})[place.piece] = adapter
    for key, pieces in shared.items():
        down, up = _joint([pieces[i] for i in sorted(pieces)])
        for_uis[f"{key}.lora_down.weight"] = down.contiguous()
        for_uis[f"{key}.lora_up.weight"] = up.contiguous()
        for_uis[f"{key}.alpha"] = torch.tensor(float(alpha) * len(pieces), dtype=dtype)
    said = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_output_name": title,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_tag_frequency": json.dumps({k: dict(v.most_common()) for k, v in captions.items()}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        **family.lora_metadata(),
    }
    write_safetensors(folder / UI_FILE, for_uis, {**said, **metadata})
    # diffusers has no place for alpha in these keys: with it in `up`, alpha is the rank
    scale = alpha / rank
    for_peft: dict[str, Tensor] = {}
    for (part, layer), (down, up) in adapters.items():
        key = family.lora_keys(part, layer)[1].key
        for_peft[f"{key}.lora_A.weight"] = down.contiguous()
        for_peft[f"{key}.lora_B.weight"] = (up.float() * scale).to(dtype)
    write_safetensors(folder / PEFT_FILE, for_peft, metadata)


def merge_lora(family: Family, path: Path, *, strength: float = 1.0) -> int:
    """Add an adapter file times `strength` to the family's weights (in place); how many layers it changed.

    `path`: a file that edkit, diffusers, peft or kohya's trainers wrote, or a folder that `export_lora` wrote. Raises
    BadInput where a key belongs to no layer of this model, a shape doesn't fit, or it is no LoRA.
    """
    file = path / UI_FILE if path.is_dir() else path
    state, alphas = _load(file)
    layers: dict[str, list[tuple[LoraKey, nn.Module]]] = {}
    for part, whole in family.parts().items():
        for layer, module in whole.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for place in {place.key: place for place in family.lora_keys(part, layer)}.values():
                    layers.setdefault(place.key, []).append((place, module))
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, kind = _split(key, file)
        grouped.setdefault(name, {})[kind] = tensor
    unknown = sorted(name for name in grouped if name not in layers)
    if unknown:
        raise BadInput(
            f"{len(unknown)} of its {len(grouped)} layers are none of this {family.name} model's ({unknown[0]}, ...)",
            where=str(file),
            mend="give it the kind of model it was trained on",
        )
    changed = 0
    for key, parts in grouped.items():
        if not {"down", "up"} <= parts.keys():
            raise BadInput(f"half of an adapter is missing ({key})", where=str(file))
        down, up = parts["down"].float(), parts["up"].float()
        alpha = float(parts["alpha"]) if "alpha" in parts else alphas.get(key.partition(".")[0], len(down))
        change = strength * alpha / len(down) * (up.flatten(1) @ down.flatten(1))
        for place, module in layers[key]:
            weight = cast(Tensor, module.weight)
            rows = len(change) // place.pieces
            piece = change[place.piece * rows :][:rows]
            if piece.numel() != weight.numel() or rows != len(weight):
                raise BadInput(f"does not fit this model ({key} is {tuple(change.shape)})", where=str(file))
            with torch.no_grad():
                weight.add_(piece.reshape(weight.shape).to(weight))
            changed += 1
    return changed


# ---- names and keys


def _adapters(part: nn.Module) -> Iterable[tuple[str, Tensor, Tensor]]:
    """(layer's name, down, up) of each adapter in a part."""
    for name, module in part.named_modules():
        downs, ups = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if downs is not None and ups is not None and "default" in downs:
            yield name, downs["default"].weight, ups["default"].weight


def _joint(adapters: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One adapter of layers that are one in the file: each reads all and writes its own rows."""
    if len(adapters) == 1:
        return adapters[0]
    return torch.cat([down for down, _ in adapters]), torch.block_diag(*(up for _, up in adapters))  # type: ignore[no-untyped-call]


_KINDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
_OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_mid": "LoCon in Tucker's form", "oft_": "OFT"}


def _split(key: str, file: Path) -> tuple[str, str]:
    for ending, kind in _KINDS.items():
        if key.endswith(ending):
            name = key.removesuffix(ending).replace(".processor.", ".")
            return f"{name}.0" if ".processor." in key and name.endswith(".to_out") else name, kind
    for sign, what in _OTHERS.items():
        if sign in key:
            raise BadInput(f"is a {what}, which edkit does not read ({key})", where=str(file))
    raise BadInput(f"has a key that is no LoRA's: {key}", where=str(file))


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The file's tensors, and the alpha of each part where the file's metadata say it (as diffusers writes it)."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise BadInput("is no .safetensors file", where=str(file), mend="other files can run code when they are read")
    try:
        with safe_open(file, "pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            said = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(file)) from None
    ends = ".lora_alpha"
    return state, {key.removesuffix(ends): float(value) for key, value in said.items() if key.endswith(ends)}


def caption_counts(samples: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """How often each caption stands in each folder, of (folder, caption) pairs."""
    counts: dict[str, Counter[str]] = {}
    for folder, caption in samples:
        counts.setdefault(folder, Counter())[caption] += 1
    return counts
