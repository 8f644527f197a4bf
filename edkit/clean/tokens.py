"""How many tokens a caption has, and what a model family doesn't read of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.data.errors import MissingExtra, UsageError
from edkit.measure.facts import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What checks need to know of a model family."""

    name: str
    resolution: int  # pixels, unless told otherwise
    bucket_step: int  # pixels
    max_tokens: int  # without the two markers


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="sd1", resolution=512, bucket_step=64, max_tokens=75),
        Family(name="sd2", resolution=768, bucket_step=64, max_tokens=75),
        Family(name="sdxl", resolution=1024, bucket_step=64, max_tokens=75),
    )
}
NANO = "nano"  # what it reads stands in the model that ships


def family(name: str) -> Family:
    """The family of that name; UsageError names the nearest one where there is none.

    nano's sizes are read from the model that ships, so they need it to be there.
    """
    if name == NANO:
        return _nano()
    if name not in FAMILIES:
        raise UsageError(f"no model family is called {name!r}", mend=nearest(name, [*FAMILIES, NANO]))
    return FAMILIES[name]


def _nano() -> Family:
    folder = _nano_dir()
    unet, vae, tokenizer = (
        json.loads((folder / part).read_text(encoding="utf-8"))
        for part in ("unet/config.json", "vae/config.json", "tokenizer/tokenizer_config.json")
    )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    downs = sum("Down" in block for block in unet["down_block_types"][:-1])
    return Family(
        name=NANO,
        resolution=int(unet["sample_size"]) * factor,
        bucket_step=factor * 2**downs,
        max_tokens=int(tokenizer["model_max_length"]) - 2,
    )


def _nano_dir() -> Path:
    from edkit import nano

    folder: Path = nano.model_dir()  # type: ignore[attr-defined,unused-ignore]
    return folder


def unread(name: str) -> Callable[[str], tuple[int, str]]:
    """A function from a caption to (number of tokens, the end of it that the family doesn't read).

    Stable Diffusion's CLIP vocabulary comes with open_clip. Raises MissingExtra where the tokenizer isn't
    installed.
    """
    limit = family(name).max_tokens
    encode, decode = _nano_tokenizer() if name == NANO else _clip_tokenizer()

    def measure(caption: str) -> tuple[int, str]:
        ids = encode(caption)
        return len(ids), decode(ids[limit:]).strip() if len(ids) > limit else ""

    return measure


def _clip_tokenizer() -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise MissingExtra("clip", "open_clip_torch") from error
    tokenizer = SimpleTokenizer()
    return tokenizer.encode, tokenizer.decode


def _nano_tokenizer() -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise MissingExtra("train", "transformers") from error
    tokenizer: Any = CLIPTokenizer.from_pretrained(_nano_dir() / "tokenizer")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    return encode, decode
