"""What looking at a data set needs to know of a model family: its sizes, and how much of a caption it reads.

This is no model: `train/families/` has those. A family is named (`sd1`), or it is the diffusers folder of a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edkit.data.errors import BadInput, EdkitError, MissingExtra, UsageError
from edkit.measure.facts import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Sizes and limits of a family."""

    name: str
    resolution: int  # pixels, unless told otherwise
    bucket_step: int  # pixels
    latent_channels: int
    latent_factor: int  # pixels a latent, along each side
    max_tokens: int  # of a caption, without the two markers
    text_values: int  # numbers a caption becomes, as the text encoders give them
    tokenizer: Path | None = None  # a tokenizer.json; None: the family's published one
    vocabulary: bool = True  # whether the published one is at hand


class NoVocabulary(MissingExtra):
    """Captions can't be counted in a family's tokens: its vocabulary comes with its models alone."""

    def __init__(self, name: str) -> None:
        EdkitError.__init__(self, f"{name}'s vocabulary comes with its models", mend="--for the folder of one")


FAMILIES: dict[str, Family] = {
    name: Family(
        name=name,
        resolution=resolution,
        bucket_step=64,
        latent_channels=4,
        latent_factor=8,
        max_tokens=75,
        text_values=text_values,
    )
    for name, resolution, text_values in (
        ("sd1", 512, 77 * 768),
        ("sd2", 768, 77 * 1024),
        ("sdxl", 1024, 77 * 2048 + 1280),
    )
}
_CHAT = 12  # tokens that klein wraps every caption in
FAMILIES["klein"] = Family(
    name="klein",
    resolution=1024,
    bucket_step=64,
    latent_channels=128,
    latent_factor=16,
    max_tokens=512 - _CHAT,
    text_values=512 * 3 * 2560,
    vocabulary=False,
)


def family(name: str | Path) -> Family:
    """The family of that name, or of the diffusers folder there.

    Raises UsageError, with the nearest name, where there is neither; BadInput where the folder is not whole.
    """
    if str(name) in FAMILIES:
        return FAMILIES[str(name)]
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return _read(folder)
    raise UsageError(f"no model family is called {str(name)!r}", where="--for", mend=nearest(str(name), FAMILIES))


def _read(folder: Path) -> Family:
    def config(part: str) -> dict[str, Any]:
        path = folder / part
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"can't be read: {error}", where=str(path)) from error
        return found

    vae = config("vae/config.json")
    max_length = int(config("tokenizer/tokenizer_config.json").get("model_max_length", 77))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    file = folder / "tokenizer" / "tokenizer.json"
    if config("model_index.json").get("_class_name") == "Flux2KleinPipeline":
        transformer, max_length = config("transformer/config.json"), min(512, max_length)
        return Family(
            name=folder.name,
            resolution=int(vae["sample_size"]),
            bucket_step=64 if int(vae["sample_size"]) >= 512 else 2 * factor,
            latent_channels=int(transformer["in_channels"]),
            latent_factor=2 * factor,
            max_tokens=max_length - _CHAT,
            text_values=max_length * int(transformer["joint_attention_dim"]),
            tokenizer=file if file.is_file() else None,
            vocabulary=file.is_file(),
        )
    unet = config("unet/config.json")
    return Family(
        name=folder.name,
        resolution=int(unet["sample_size"]) * factor,
        bucket_step=factor * 2 ** (len(unet["block_out_channels"]) - 1),
        latent_channels=int(unet["in_channels"]),
        latent_factor=factor,
        max_tokens=max_length - 2,
        text_values=max_length * int(unet["cross_attention_dim"]),
        tokenizer=file if file.is_file() else None,
    )


def unread(of: Family) -> Callable[[str], tuple[int, str]]:
    """A function from a caption to (number of tokens, the end of it that the family doesn't read, "" for none).

    Raises MissingExtra where the tokenizer is not installed, NoVocabulary where the family's is not at hand.
    """
    if of.tokenizer is None and not of.vocabulary:
        raise NoVocabulary(of.name)
    tokenizer = _tokenizer(of.tokenizer)

    def count(caption: str) -> tuple[int, str]:
        encoding = tokenizer.encode(caption, add_special_tokens=False)
        num_tokens = len(encoding.ids)
        if num_tokens <= of.max_tokens:
            return num_tokens, ""
        return num_tokens, caption[encoding.offsets[of.max_tokens][0] :].strip()

    return count


@cache
def _tokenizer(file: Path | None) -> Any:
    """A model's own tokenizer, or CLIP's: the vocabulary comes with open_clip, whose import would load torch."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("clip", "tokenizers") from error
    if file is not None:
        own = tokenizers.Tokenizer.from_file(str(file))
        own.no_padding()
        own.no_truncation()
        return own
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    vocab, merges = clip_vocabulary()
    clip = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
    clip.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    clip.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return clip


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their ids (49,408) and its merges in order, from the list that open_clip ships.

    The ids follow from the merges: 256 bytes, the same at a word's end, the merges, the two markers (Radford et
    al. 2021, the published bpe_simple_vocab_16e6). Raises MissingExtra without open_clip.
    """
    import gzip
    from importlib.util import find_spec

    spec = find_spec("open_clip")  # found, not imported: that would load torch
    if spec is None or spec.origin is None:
        raise MissingExtra("clip", "open_clip_torch")
    text = gzip.decompress(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8")
    merges = [(a, b) for a, b in (line.split() for line in text.split("\n")[1 : 49152 - 256 - 2 + 1])]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """A printable stand-in for each of the 256 bytes, in the order of CLIP's first ids (GPT-2's spelling)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
