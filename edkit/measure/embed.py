"""Image embeddings by a CLIP model's image tower, kept as facts of the content and of the model's weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, MissingExtra, Problem, UsageError
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress
from edkit.measure.batched import Model, answers
from edkit.measure.facts import Value, nearest

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEFAULT_CLIP = "ViT-L-14-quickgelu"
DEFAULT_PRETRAINED = "openai"
_VERSION = 2

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Which model makes the embeddings: an open_clip architecture, and the file its weights stand in."""

    name: str  # as open_clip's factory takes it
    pretrained: str | None  # tag or path; None: the folder or hub repository `name` points to has them
    path: Path
    label: str  # for people and for the facts' name
    config: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.config["embed_dim"])


def resolve(clip: str = DEFAULT_CLIP, pretrained: str | None = None, *, progress: Progress = SILENT) -> Weights:
    """Find a CLIP model and its weights (fetched from the hub where needed) without loading them.

    `clip`: an open_clip name, the path of an open_clip model config (.json), or a folder with
    `open_clip_config.json` and weights. `pretrained`: an open_clip tag (default: "openai") or the path of a
    checkpoint. Raises UsageError for unknown names, BadInput where the weights can't be had, MissingExtra
    without open_clip. Says so in one line where a plain architecture meets OpenAI's weights, which were
    trained with QuickGELU.
    """
    open_clip = _open_clip()
    folder = Path(clip)
    if folder.is_dir():
        return _from_folder(folder, pretrained)
    name = clip.replace("/", "-")
    if clip.endswith(".json"):
        name = _register(open_clip, folder)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UsageError(f"no CLIP model is called {clip!r}", mend=nearest(name, open_clip.list_models()))
    if pretrained is None:
        if clip.endswith(".json"):
            raise UsageError("a model config needs its weights too", where=clip, mend="--pretrained PATH")
        pretrained = DEFAULT_PRETRAINED
    path = _weights_file(open_clip, name, pretrained)
    if not config.get("quick_gelu", False) and _are_openai(pretrained, path):
        better = f"{name}-quickgelu"
        known = better in open_clip.list_models()
        progress.say(
            f"{name} with OpenAI's weights gives wrong embeddings: they were trained with QuickGELU"
            f" ({f'use --clip {better}' if known else 'set quick_gelu in the config'})"
        )
    return Weights(name=name, pretrained=pretrained, path=path, label=name, config=config)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("clip", "open_clip_torch") from error
    return open_clip


def _register(open_clip: Any, path: Path) -> str:
    if not path.is_file():
        raise UsageError("no such model config", where=str(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from error
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise BadInput("no open_clip model config: it needs embed_dim, vision_cfg, text_cfg", where=str(path))
    open_clip.add_model_config(path)
    return path.stem


def _from_folder(folder: Path, pretrained: str | None) -> Weights:
    if pretrained is not None:
        raise UsageError("a model folder brings its own weights", where=str(folder), mend="leave out --pretrained")
    file = folder / "open_clip_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        embed_dim = int(config["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no open_clip model folder: {error}", where=str(file)) from error
    names = (
        "open_clip_model.safetensors",
        "model.safetensors",
        "open_clip_pytorch_model.bin",
        "pytorch_model.bin",
    )
    for path in (folder / name for name in names):
        if path.is_file():
            return Weights(
                name=f"local-dir:{folder}",
                pretrained=None,
                path=path,
                label=folder.name,
                config={**config, "embed_dim": embed_dim},
            )
    raise BadInput(f"no weights ({', '.join(names)})", where=str(folder))


def _weights_file(open_clip: Any, name: str, pretrained: str) -> Path:
    file = Path(pretrained)
    if file.is_file():
        if _is_torchscript(file):
            raise BadInput(
                "a TorchScript archive can't be loaded safely",
                where=pretrained,
                mend="use the tag openai, or the same weights as .safetensors",
            )
        return file
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = pretrained.lower().replace("-", "_")
    if tag not in tags:
        if file.suffix or os.sep in pretrained or "/" in pretrained:
            raise UsageError("no such weights file", where=pretrained)
        raise UsageError(f"{name} has no weights called {pretrained!r}", mend=nearest(tag, tags))
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        return Path(download_pretrained(get_pretrained_cfg(name, tag)))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"the weights of {name} ({pretrained}) can't be fetched: {first}",
            mend="go online once, or give a checkpoint's path: --pretrained PATH",
        ) from error


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _are_openai(pretrained: str, path: Path) -> bool:
    return "openai" in f"{pretrained} {path}".lower()


class Encoder:
    """One CLIP model: loaded when the first image needs it, never where all embeddings are known.

    `precision` "auto" computes in bfloat16 where the device has units for it, else in float32.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        batch_size: int = 32,
        device: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        progress: Progress = SILENT,
    ) -> None:
        self.weights, self.batch_size, self.progress = weights, batch_size, progress
        self._device, self._precision = device, precision

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.weights.dim

    def fact(self, catalog: Catalog) -> str:
        """The catalog's name for these embeddings: model, architecture, weights, precision, version."""
        sha = catalog.content_ids([self.weights.path])[self.weights.path]
        if isinstance(sha, Unreadable):
            raise BadInput(f"can't be read: {sha}", where=str(self.weights.path))
        shape = hashlib.sha256(json.dumps(self.weights.config, sort_keys=True, default=str).encode()).hexdigest()
        exact = "" if self.precision == "fp32" else f":{self.precision}"
        return f"embedding:{self.weights.label}:{shape[:8]}:{sha[:16]}{exact}/{_VERSION}"

    def embeddings(
        self, catalog: Catalog, paths: Iterable[Path], *, progress: Progress = SILENT
    ) -> dict[Path, Vector | Problem]:
        """The embedding (dim,) of length 1 of every file, or the Problem why there is none.

        Known ones come from the catalog (float16), the others are computed, kept, and survive an
        interruption.
        """
        model = Model(
            fact=self.fact(catalog),
            load=lambda: self._model,  # a model that can't be loaded is told before the first image is read
            prepare=self._prepared,
            compute=self._encode,
            batch_size=self.batch_size,
            doing="embedding",
        )
        found = answers(catalog, paths, model, progress=progress)
        return {path: vector(one) if isinstance(one, bytes) else _problem(one) for path, one in found.items()}

    def _prepared(self, path: Path) -> NDArray[np.uint8]:
        """The picture as the model takes it, (S, S, 3) of 8 bits: resized and cut out in the middle."""
        height, width = _sides(self._model[0].visual.image_size)
        im = open_image(path, at_least=(width, height))
        # torchvision's rounding, which the weights were trained with; only what stays is computed
        if im.width * height >= im.height * width:
            sizes = (int(height * im.width / im.height), height)
        else:
            sizes = (width, int(width * im.height / im.width))
        left, top = round((sizes[0] - width) / 2), round((sizes[1] - height) / 2)
        x, y = im.width / sizes[0], im.height / sizes[1]
        box = (left * x, top * y, min(im.width, (left + width) * x), min(im.height, (top + height) * y))
        return np.asarray(im.resize((width, height), self._model[1].filter, box=box))

    def _encode(self, inputs: Sequence[NDArray[np.uint8]]) -> list[bytes]:
        """L2-normalised embeddings as bytes of float16."""
        import torch

        model, how = self._model
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(inputs)).to(self.device)  # (B, S, S, 3)
            x = pixels.permute(0, 3, 1, 2).to(self._dtype, memory_format=torch.contiguous_format)
            x = x.mul_(how.gain.to(x)).add_(how.shift.to(x))
            y = torch.nn.functional.normalize(model.encode_image(x).float(), dim=-1)  # (B, dim)
        return [row.tobytes() for row in y.cpu().numpy().astype(np.float16)]

    def text(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings (n, dim) of captions, of length 1; what the model doesn't read of a long one is cut."""
        import torch

        model, _ = self._model
        tokenizer = _open_clip().get_tokenizer(self.weights.name)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(captions), self.batch_size):
                tokens = tokenizer(list(captions[start : start + self.batch_size])).to(self.device)
                rows.append(torch.nn.functional.normalize(model.encode_text(tokens).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    @property
    def device(self) -> str:
        """Where the model runs: the GPU where there is one."""
        import torch

        return self._device or ("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def precision(self) -> Literal["fp32", "bf16"]:
        """What the model computes in."""
        if self._precision != "auto":
            return self._precision
        return "bf16" if _has_bf16(self.device) else "fp32"

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @cached_property
    def _model(self) -> tuple[Any, _Input]:
        """(model in eval mode, how its input is made)."""
        import logging
        import warnings

        open_clip = _open_clip()
        weights = self.weights
        self.progress.say(f"loading {weights.label} from {weights.path.name}")
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # QuickGELU: said by `resolve`
                model, _, transform = open_clip.create_model_and_transforms(
                    weights.name, pretrained=weights.pretrained, device=self.device
                )
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"can't be loaded as {weights.label}: {first}", where=str(weights.path)) from error
        finally:
            quiet.setLevel(level)
        return model.eval().to(self._dtype), _input_of(transform)


@dataclass(frozen=True, slots=True)
class _Input:
    """What a model wants: x * gain + shift of 8-bit pixels, resized by `filter`."""

    gain: torch.Tensor  # (3, 1, 1)
    shift: torch.Tensor
    filter: Image.Resampling


def _input_of(transform: Any) -> _Input:
    """The numbers of open_clip's transform; its steps themselves cost more than the decoding."""
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode

    steps = list(transform.transforms)
    mean, std = next((step.mean, step.std) for step in steps if hasattr(step, "std"))
    mode = next((step.interpolation for step in steps if hasattr(step, "interpolation")), None)
    std_ = torch.tensor(std)[:, None, None]
    return _Input(
        gain=1 / (255 * std_),
        shift=-torch.tensor(mean)[:, None, None] / std_,
        filter=Image.Resampling.BILINEAR if mode == InterpolationMode.BILINEAR else Image.Resampling.BICUBIC,
    )


def _has_bf16(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there, and not just possible."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return bool(amx) or (capabilities == "AVX512" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()))


def _problem(one: Value | Problem) -> Problem:
    assert isinstance(one, Problem)
    return one


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def vector(data: bytes) -> Vector:
    """A kept embedding, of length 1."""
    values = np.frombuffer(data, dtype=np.float16).astype(np.float32)
    return values / max(float(np.linalg.norm(values)), 1e-12)
