"""Aesthetic heads: a linear score on a CLIP embedding, from a file, the hub, or LAION's published ones.

v1: one linear layer for OpenAI's ViT-L/14 (or ViT-B/32). v2 (`sac+logos+ava1-l14-linearMSE`): five linear
layers without anything between them, so they are one vector and a bias. Both score about 1 to 10.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edkit.data.atomic import write_bytes
from edkit.data.errors import BadInput, MissingExtra, UsageError

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A head that its makers publish:

    where it is, what it must hash to, and which embeddings it was made for.
    """

    url: str
    sha256: str
    clip: str  # beginning of the open_clip name
    dim: int


_LAION = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/"
_SCHUHMANN = "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "v1": (
        Published(
            url=_LAION + "sa_0_4_vit_l_14_linear.pth",
            sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
            clip="ViT-L-14",
            dim=768,
        ),
        Published(
            url=_LAION + "sa_0_4_vit_b_32_linear.pth",
            sha256="c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
            clip="ViT-B-32",
            dim=512,
        ),
    ),
    "v2": (
        Published(
            url=_SCHUHMANN + "sac%2Blogos%2Bava1-l14-linearMSE.pth",
            sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            clip="ViT-L-14",
            dim=768,
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A linear score: `embedding @ weight + bias`."""

    name: str
    weight: NDArray[np.float64]  # (dim,)
    bias: float

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """The score (n,) of L2-normalised embeddings (n, dim)."""
        return np.asarray(vectors.astype(np.float64) @ self.weight + self.bias)


def load_head(spec: str, *, dim: int, clip: str = "") -> Head:
    """The head that `spec` names, for embeddings of length `dim`.

    `spec`: "v1" or "v2" (fetched once, checked against a pinned hash), the path of a .pth or .safetensors
    state dict, or `hf://owner/repository/file[@revision]`. Raises BadInput in one line where it can't be
    had or doesn't fit.
    """
    if spec in PUBLISHED:
        fits = [head for head in PUBLISHED[spec] if head.dim == dim]
        if not fits:
            made_for = " or ".join(head.clip for head in PUBLISHED[spec])
            raise UsageError(
                f"head {spec} is made for {made_for}, {clip or 'this model'} gives {dim} numbers an image",
                mend=f"--clip {PUBLISHED[spec][0].clip}-quickgelu, or a head of your own: --head PATH",
            )
        path = _published(spec, fits[0])
    elif spec.startswith("hf://"):
        path = _from_hub(spec)
    else:
        path = Path(spec)
        if not path.is_file():
            raise UsageError("no such head", where=spec, mend="v1, v2, a path, or hf://owner/repository/file")
    weight, bias = fold(_state(path), where=spec)
    if len(weight) != dim:
        raise BadInput(f"the head takes {len(weight)} numbers an image, {clip or 'the model'} gives {dim}", where=spec)
    name = spec if spec in PUBLISHED or spec.startswith("hf://") else path.name
    return Head(name=name, weight=weight, bias=bias)


def made_for(spec: str, dim: int) -> str | None:
    """The CLIP model (how its name begins) whose OpenAI embeddings a published head was made for."""
    return next((head.clip for head in PUBLISHED.get(spec, ()) if head.dim == dim), None)


def fold(state: Mapping[str, NDArray[np.float64]], *, where: str | None = None) -> tuple[NDArray[np.float64], float]:
    """A chain of linear layers as one vector (dim,) and a bias.

    Raises BadInput where the tensors are no such chain ending in one number.
    """
    names = sorted((name for name in state if name.endswith("weight")), key=_natural)
    matrices = [state[name] for name in names]
    biases = [state.get(name[: -len("weight")] + "bias") for name in names]
    used = {*names, *(name[: -len("weight")] + "bias" for name in names)}
    if not matrices or any(m.ndim != 2 for m in matrices) or not used >= set(state):
        raise BadInput("no linear head: only layers of weight and bias can be folded", where=where)
    chained = all(a.shape[0] == b.shape[1] for a, b in pairwise(matrices))
    if not chained or matrices[-1].shape[0] != 1:
        shapes = ", ".join("x".join(map(str, m.shape)) for m in matrices)
        raise BadInput(f"its layers ({shapes}) don't lead to one number", where=where)
    weight, bias = np.eye(matrices[0].shape[1]), np.zeros(matrices[0].shape[1])
    for matrix, own in zip(matrices, biases, strict=True):
        weight, bias = matrix @ weight, matrix @ bias + (0.0 if own is None else own)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BadInput("its weights are not all finite", where=where)
    return weight[0], float(bias[0])


def _natural(name: str) -> list[tuple[int, str]]:
    """ "layers.10" after "layers.2"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _state(path: Path) -> dict[str, NDArray[np.float64]]:
    """The tensors of a state dict file, without running anything that stands in it."""
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError as error:
            raise MissingExtra("clip", "safetensors") from error
        try:
            loaded = load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise BadInput(f"can't be read: {error}", where=str(path)) from error
        return {name: np.asarray(value, dtype=np.float64) for name, value in loaded.items()}
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("clip", "torch") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"can't be read as weights: {first}", where=str(path)) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise BadInput("holds no state dict", where=str(path))
    return {str(name): tensor.double().numpy() for name, tensor in content.items()}


def _from_hub(spec: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingExtra("clip", "huggingface_hub") from error
    location, _, revision = spec.removeprefix("hf://").partition("@")
    parts = location.split("/")
    if len(parts) < 3 or not all(parts):
        raise UsageError("no file of a hub repository", where=spec, mend="hf://owner/repository/file[@revision]")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision or None))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"can't be fetched: {first}", where=spec, mend="go online once, or --head PATH") from error


def _published(spec: str, head: Published) -> Path:
    """The published head's file, from edkit's cache or (once) from its makers."""
    folder = Path(os.environ.get("EDKIT_CACHE") or Path.home() / ".cache" / "edkit") / "heads"
    path = folder / f"{head.sha256[:16]}.pth"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == head.sha256:
        return path
    mend = f"go online once, or fetch {head.url} elsewhere and give its path: --head PATH"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise BadInput(f"the head {spec} is not on this machine, and HF_HUB_OFFLINE is set", mend=mend)
    import requests

    try:
        with requests.get(head.url, timeout=(10, 60), stream=True) as answer:
            answer.raise_for_status()
            data = b""
            for part in answer.iter_content(1 << 16):
                data += part
                if len(data) > _MAX_BYTES:
                    break
    except requests.RequestException as error:
        raise BadInput(f"the head {spec} can't be fetched: {type(error).__name__}", mend=mend) from error
    if hashlib.sha256(data).hexdigest() != head.sha256:
        raise BadInput(f"the head {spec} is not the one that was published", where=head.url, mend=mend)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return path
