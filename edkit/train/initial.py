"""Models of a family's real architecture with random weights: for tests, benchmarks and training from
nothing.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data.errors import BadInput, UsageError
from edkit.train.families.registry import REGISTRY, module_of

if TYPE_CHECKING:
    from edkit.train.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Initialized:
    """A model with random weights was written."""

    out: Path
    family: str
    size: str
    num_parameters: dict[str, int]  # by part


def init_model(
    family: str, *, size: str = "tiny", out: Path, prediction: str | None = None, seed: int = 555
) -> Initialized:
    """Write a diffusers folder of a family's real architecture with random weights; the same for the same
    seed. `prediction`: epsilon or v_prediction; None: as the family was published.
    """
    if family not in REGISTRY:
        raise UsageError(f"{family}: init-model knows {', '.join(REGISTRY)}")
    if size not in ("tiny", "real"):
        raise UsageError(f"{size}: sizes are tiny and real")
    build = partial(module_of(family).build, family, size, prediction=prediction, folder=out.absolute())
    return _written(build, out, seed=seed, size=size)


def make_sd1(
    out: Path,
    *,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,  # None: Stable Diffusion 1's
    tokenizer: Any = None,
    seed: int = 555,
    size: str = "custom",
) -> Initialized:
    """Write a Stable Diffusion 1 or 2 pipeline with random weights from the configs given (what they don't
    say is SD1's).

    `tokenizer`: a CLIPTokenizer; without one, CLIP's own vocabulary of 49,408 tokens. Raises BadInput where
    `out` has something in it.
    """
    from transformers import CLIPTextModel

    from edkit.train.families import fresh
    from edkit.train.families.sd1 import SD1

    def build() -> Family:
        words = tokenizer or fresh.clip_tokenizer()
        return SD1(
            folder=out.absolute(),
            **fresh.unet_and_vae(unet, vae),
            text_encoders={"text_encoder": fresh.clip_encoder(CLIPTextModel, text, words)},
            tokenizers={"tokenizer": words},
            scheduler=fresh.SD_NOISE if scheduler is None else scheduler,
        )

    return _written(build, out, seed=seed, size=size)


def _written(build: Callable[[], Family], out: Path, *, seed: int, size: str) -> Initialized:
    import torch

    out = out.absolute()
    if out.exists() and any(out.iterdir()):
        raise BadInput("is not empty", where=str(out), mend="name a new folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = build()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".edkit-{secrets.token_hex(6)}")
    part.mkdir()
    try:
        family.save(part, precision="fp32", metadata={})
        if out.exists():
            out.rmdir()
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    modules = {**family.parts(), "vae": family.vae}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return Initialized(out=out, family=family.name, size=size, num_parameters=counts)
