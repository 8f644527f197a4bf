"""The parts of a diffusers folder: read from safetensors alone, hashed, described, and written again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from edkit.data import atomic
from edkit.data.errors import BadInput
from edkit.train.families.base import own_memory

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data")


def load_text(cls: Any, folder: Path) -> Any:
    """A transformers text encoder in fp32."""
    return ready(from_folder(cls, folder, torch_dtype=torch.float32))


def ready(module: Any) -> Any:
    """Frozen, in evaluation mode, in memory of its own."""
    own_memory(module.requires_grad_(False).eval())
    return module


def from_folder(cls: Any, folder: Path, **options: Any) -> Any:
    """One part of a pipeline, from safetensors alone. BadInput where it is missing, pickled or does not load."""
    if not (folder / "config.json").is_file():
        raise BadInput("has no config.json", where=str(folder), mend="the model folder is not whole")
    if not any(folder.glob("*.safetensors")):
        pickled = any(p.suffix in _PICKLES for p in folder.iterdir())
        what = "has only pickled weights, which can run code" if pickled else "has no weights"
        raise BadInput(what, where=str(folder), mend="save the model as .safetensors")
    named = [file.name for file in folder.glob("*.safetensors")]
    if all(".fp16." in name or ".fp16-" in name for name in named):
        options["variant"] = "fp16"
    try:
        return cls.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"does not load: {first}", where=str(folder)) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer, CLIPTokenizer

    if not folder.is_dir():
        raise BadInput("the model folder has no tokenizer", where=str(folder))
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    named = str(config.get("tokenizer_class", "CLIPTokenizer")).removesuffix("Fast")
    cls = CLIPTokenizer if named == "CLIPTokenizer" else AutoTokenizer
    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"does not load: {str(error).splitlines()[0]}", where=str(folder)) from error


def write_clip_files(tokenizer: Any, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json: transformers 4 and other tools read only those."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if backend.get("type") != "BPE":
        return
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["merges"]]
    atomic.write_text(folder / "vocab.json", json.dumps(backend["vocab"], ensure_ascii=False))
    atomic.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs]) + "\n")


def copy_missing(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix not in _PICKLES and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def config_of(module: Any, precision: str) -> dict[str, Any]:
    if hasattr(module.config, "to_diff_dict"):
        config = dict(module.config.to_dict())
        config["architectures"] = [type(module).__name__]
        config["torch_dtype"] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
        return {key: value for key, value in config.items() if key not in ("dtype", "_name_or_path")}
    config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)
    return cast(dict[str, Any], config)


def text_hash_of(encoders: Iterable[nn.Module], *more: object) -> str:
    """SHA-256 over text encoders' weights and configs, and whatever else decides what they say."""
    said = [(hash_of(encoder), config_of(encoder, "fp32")) for encoder in encoders]
    return hashlib.sha256(json.dumps([said, more], sort_keys=True, default=str).encode()).hexdigest()


def hash_of(module: nn.Module) -> str:
    """SHA-256 over a module's weights by name, as they stand in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if tensor.numel() else b"")
    scaling = getattr(cast(Any, module).config, "scaling_factor", None)
    digest.update(f"scaling {scaling} shift {getattr(cast(Any, module).config, 'shift_factor', None)}".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; BadInput for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise BadInput("is no JSON object", where=str(path))
    return value


def quiet() -> None:
    """No progress bars and load reports of the libraries between ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
