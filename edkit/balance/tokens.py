"""How many tokens of a caption CLIP reads, and where it is cut, by the vocabulary that open_clip ships.

The byte-pair encoding of OpenAI's CLIP (Radford et al. 2021), on text as Stable Diffusion's tokenizer sees
it: composed, lower case, white space folded. This only counts; training uses the model's own tokenizer.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

READ = 75  # tokens between the two markers

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_NUM_MERGES = 49152 - 256 - 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A caption's length in tokens, and the part that CLIP doesn't read ("" where it reads all)."""

    num_tokens: int
    lost: str


def available() -> bool:
    """Whether the vocabulary is installed (it comes with the extra `clip`)."""
    return _vocabulary() is not None


def count(text: str) -> Counted:
    """Count a caption's tokens; available() must hold."""
    words, merge = _machine()
    folded = " ".join(unicodedata.normalize("NFC", text).lower().split())
    total, lost_from = 0, len(folded)
    for match in words.finditer(folded):
        total += merge(match.group())
        if total > READ and lost_from == len(folded):
            lost_from = match.start()
    return Counted(num_tokens=total, lost=folded[lost_from:])


def _vocabulary() -> Path | None:
    from importlib.util import find_spec

    if find_spec("regex") is None:
        return None
    spec = find_spec("open_clip")  # found, not imported: that would load torch
    path = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz") if spec and spec.origin else None
    return path if path is not None and path.is_file() else None


@cache
def _machine() -> tuple[Any, Any]:
    """The word pattern, and a function from a word to its number of tokens."""
    import gzip

    path = _vocabulary()
    assert path is not None
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]
    ranks = {tuple(line.split()): i for i, line in enumerate(lines)}
    byte_to_text = _bytes_as_text()

    @cache
    def num_tokens(word: str) -> int:
        parts = [byte_to_text[b] for b in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return len(parts)

    return import_module("regex").compile(_WORDS), num_tokens


def _bytes_as_text() -> dict[int, str]:
    """Every byte as a printable character, as the vocabulary writes them."""
    printable = [i for low, high in ("!~", "¡¬", "®ÿ") for i in range(ord(low), ord(high) + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + n) for n, b in enumerate(others)}}
