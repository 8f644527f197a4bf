"""One `.safetensors` file with a whole model in the original layout, which user interfaces load: written and read.

The layout is CompVis's and Stability's (`model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*` or
`conditioner.embedders.*`). Where each weight stands follows from a model's own configs, so that models of any size go
there and back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from edkit.data.errors import BadInput
from edkit.train.families.base import DTYPES, Family, unwrapped_state, write_safetensors
from edkit.train.families.original import How, clip_place, open_clip_place, unet_place, vae_place
from edkit.train.families.parts import ready
from edkit.train.families.registry import module_of
from edkit.train.families.unet import UNetModel

CLIP_TOKENS = 49_408
_CONFIGS = "edkit_configs"  # in the file's metadata


@dataclass(frozen=True, slots=True)
class Place:
    """Where one weight of a model stands in the file."""

    key: str  # of its module
    file_key: str
    how: How = "same"


def save_single_file(family: Family, path: Path, *, precision: str, metadata: Mapping[str, str]) -> None:
    """Write all weights of a U-Net family into one file; it loads back equal, and in other tools.

    Raises BadInput for a family that has no such layout, or a vocabulary that isn't CLIP's.
    """
    if not isinstance(family, UNetModel):
        raise BadInput(f"a {family.name} model has no single-file layout that edkit knows", where=str(family.folder))
    strange = [name for name, tokenizer in family.tokenizers.items() if len(tokenizer) != CLIP_TOKENS]
    if strange:
        raise BadInput(
            "has a vocabulary of its own, for which a single file has no room",
            where=str(family.folder / strange[0]),
            mend="use the diffusers folder",
        )
    dtype = DTYPES[precision]
    state: dict[str, Tensor] = {}
    joint: dict[str, dict[str, Tensor]] = {}
    for part, places in _parts(family):
        weights = unwrapped_state(part, dtype)
        for place in places:
            tensor = weights[place.key]
            if place.how in ("q", "k", "v"):
                joint.setdefault(place.file_key, {})[place.how] = tensor
            else:
                state[place.file_key] = _laid(tensor, place.how).contiguous()
    state |= {key: torch.cat([thirds[part] for part in "qkv"]) for key, thirds in joint.items()}
    said = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.prediction_type": "v" if family.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        "edkit_family": family.name,
        _CONFIGS: json.dumps(family.configs(), sort_keys=True),
    }
    write_safetensors(path, state, {**said, **metadata})


def load_single_file(path: Path) -> Family:
    """A model from one file in the original layout, in fp32. Its configs are the file's own, where edkit wrote it, else
    those of the published model that its keys name; its tokenizer is CLIP's. What it holds besides (averages, buffers)
    is left alone.

    Raises BadInput for a pickle, a file of another layout, missing weights, or shapes of another model.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise BadInput(
            "is no .safetensors file", where=str(path), mend="a pickle can run code: save the model as .safetensors"
        )
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            family = _empty(file.metadata() or {}, keys, path)
            for part, places in _parts(family):
                found = [_as_spelled(place, keys) for place in places]
                missing = [place.file_key for place in found if place.file_key not in keys]
                if len(missing) == len(places) and part is family.vae:
                    raise BadInput(
                        "has no image encoder (VAE)",
                        where=str(path),
                        mend="take the model's file that has one (often called full), or its diffusers folder",
                    )
                if missing:
                    raise BadInput(
                        f"lacks {len(missing)} of {len(places)} weights of a {family.name} model's part "
                        f"({missing[0]}, ...)",
                        where=str(path),
                    )
                _fill(part, found, file.get_tensor, path)
                ready(part)
            if "ztsnr" in keys:
                family.end_at_pure_noise()
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    return cast(Family, family)


# ---- where weights stand


def _parts(family: UNetModel) -> Iterator[tuple[Any, Sequence[Place]]]:
    """Every module, and the places of its weights."""
    yield family.unet, _placed(family.unet, "model.diffusion_model.", unet_place(family.unet))
    yield family.vae, _placed(family.vae, "first_stage_model.", vae_place(family.vae))
    encoders = family.text_encoders
    if family.name == "sd1":
        yield _text(encoders["text_encoder"], "cond_stage_model.transformer.", clip_place)
    elif family.name == "sd2":
        yield _text(encoders["text_encoder"], "cond_stage_model.model.", open_clip_place)
    else:
        yield _text(encoders["text_encoder"], "conditioner.embedders.0.transformer.", clip_place)
        yield _text(encoders["text_encoder_2"], "conditioner.embedders.1.model.", open_clip_place)


def _as_spelled(place: Place, keys: set[str]) -> Place:
    """The place as this file has it: some leave out the `text_model.` before CLIP's layers."""
    short = place.file_key.replace(".transformer.text_model.", ".transformer.")
    return replace(place, file_key=short) if place.file_key not in keys and short in keys else place


def _placed(module: Any, prefix: str, place: Callable[[str], tuple[str, How]]) -> list[Place]:
    found = []
    for key in module.state_dict():
        file_key, how = place(key)
        found.append(Place(key, prefix + file_key, how))
    return found


def _text(module: Any, prefix: str, place: Callable[[str], tuple[str, How]]) -> tuple[Any, list[Place]]:
    return module, _placed(module, prefix, lambda key: place(key.removeprefix("text_model.")))


# ---- laying out and taking back


def _laid(tensor: Tensor, how: How) -> Tensor:
    if how == "conv":
        return tensor[:, :, None, None]
    return tensor.T if how == "transposed" else tensor


def _taken(tensor: Tensor, how: How) -> Tensor:
    if how == "conv":
        return tensor.flatten(1)
    if how in ("q", "k", "v"):
        third = len(tensor) // 3
        return tensor["qkv".index(how) * third :][:third]
    return tensor.T if how == "transposed" else tensor


def _fill(part: Any, places: Sequence[Place], tensor_of: Callable[[str], Tensor], path: Path) -> None:
    """Give an unfilled module its weights, in fp32."""
    state = {}
    shapes = {key: tensor.shape for key, tensor in part.state_dict().items()}
    for place in places:
        tensor = _taken(tensor_of(place.file_key), place.how)
        wanted = shapes[place.key]
        if tensor.shape != wanted and tensor.numel() == wanted.numel() and tensor.ndim != len(wanted):
            tensor = tensor.reshape(wanted)  # projections, some of which were saved as convolutions
        if tensor.shape != wanted:
            raise BadInput(f"{place.file_key} is {tuple(tensor.shape)}; {tuple(wanted)} is wanted", where=str(path))
        state[place.key] = tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
    part.load_state_dict(state, strict=False, assign=True)


def _empty(metadata: Mapping[str, str], keys: set[str], path: Path) -> UNetModel:
    """The model that the file holds, its weights unfilled."""
    from accelerate import init_empty_weights

    name = metadata.get("edkit_family") or _named(keys, path)
    prediction = _prediction(metadata, keys, path)
    try:
        with init_empty_weights():
            if _CONFIGS in metadata:
                return cast(UNetModel, module_of(name).of_configs(json.loads(metadata[_CONFIGS]), folder=path))
            return cast(UNetModel, module_of(name).build(name, "real", prediction=prediction, folder=path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"its configs make no model: {error}", where=str(path)) from None


def _prediction(metadata: Mapping[str, str], keys: set[str], path: Path) -> str | None:
    """What the model says, where its metadata, its marker keys or the YAML config beside it tell."""
    said = {"v": "v_prediction", "epsilon": "epsilon"}.get(metadata.get("modelspec.prediction_type", ""))
    if said is None and "v_pred" in keys:
        return "v_prediction"
    config = path.with_suffix(".yaml")
    if said is None and config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        return "v_prediction" if re.search(r"""parameterization:\s*["']?v\b""", text) else "epsilon"
    return said


def _named(keys: set[str], path: Path) -> str:
    signs = {
        "sdxl": "conditioner.embedders.1.model.ln_final.weight",
        "sd2": "cond_stage_model.model.ln_final.weight",
        "sd1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    }
    for name, key in signs.items():
        if key in keys or key.replace(".text_model.", ".") in keys:
            return name
    if any(key.startswith("model.diffusion_model.") for key in keys):
        raise BadInput(
            "has no text encoder of Stable Diffusion 1, 2 or XL",
            where=str(path),
            mend="name the model's diffusers folder",
        )
    raise BadInput(
        "is no Stable Diffusion 1, 2 or XL checkpoint in the original layout",
        where=str(path),
        mend="name the model's diffusers folder",
    )
