"""HTML that can't be broken out of: whatever isn't `Html` is text from outside and is escaped."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote


class Html(str):
    """Markup that is already safe to stand in a page; everything else is escaped on its way in."""

    __slots__ = ()


_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_VOID = frozenset({"br", "hr", "img", "meta", "link"})


def escape(value: object) -> Html:
    """The value as text of a page; markup of type `Html` passes as it is.

    Control characters, text-direction overrides and lone surrogates (from odd file names) show as U+FFFD:
    they could make a name read as another, or the file unreadable as UTF-8.
    """
    if isinstance(value, Html):
        return value
    text = str(value)
    if not text.isprintable():
        text = "".join(c if _harmless(c) else "\ufffd" for c in text)
    return Html(text.translate(_ESCAPES))


def _harmless(char: str) -> bool:
    if char in "\n\t\u200c\u200d":  # the joiners spell words in Persian and Hindi, and build emoji
        return True
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn")


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. An attribute's underscores become hyphens, a trailing one (`class_`) goes.

    None and False leave an attribute out, True writes it bare.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {key}")
        elif value is not None and value is not False:
            parts.append(f' {key}="{escape(value).translate(_NO_BREAKS)}"')
    parts.append(">")
    if name not in _VOID:
        parts.extend(escape(child) for child in children)
        parts.append(f"</{name}>")
    return Html("".join(parts))


_NO_BREAKS = str.maketrans({"\n": "&#10;", "\t": "&#9;"})


def join(parts: Iterable[object], separator: str = "") -> Html:
    """The parts one after another, escaped where they are text."""
    return Html(escape(separator).join(escape(part) for part in parts))


def file_url(target: Path, page_dir: Path) -> str:
    """The address of a file as seen from a page in `page_dir`: relative, every odd byte of its name quoted.

    On another drive (Windows) it is an absolute `file:` address.
    """
    target, page_dir = Path(os.path.abspath(target)), Path(os.path.abspath(page_dir))  # noqa: PTH100 - keep links as links
    try:
        relative = Path(os.path.relpath(target, page_dir))
    except ValueError:
        return target.as_uri()
    # "./" keeps a first part like "javascript:x" or "//host" from being read as a scheme or a host
    return "./" + quote(os.fsencode(relative.as_posix()), safe="/")
