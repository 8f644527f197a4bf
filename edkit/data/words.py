"""The words of a caption."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order, folded in case; signs and underscores stand between words."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())
