"""Names from outside: captions as file names, names that no person gave, paths that lead out, hosts in addresses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

MAX_NAME_CHARS = 120
_MAX_NAME_BYTES = 200  # file systems end at 255 bytes; the number and the ending need room as well
_FORBIDDEN = frozenset('_/\\<>:"|?*')
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{device}{n}" for device in ("com", "lpt") for n in "123456789¹²³"}
)

# names that devices and programs give: enough alone, or followed by numbers only
_DEVICE = (
    r"img|imgp|dsc|dscn|dscf|dscp|pxl|mvimg|mvi|mov|vid|pano|cimg|pict|gopr|dji|dcim|kimg|hpim|hdr|"
    r"fb[ _-]?img|img[ _-]?wa|comfyui|screenshot|screen[ _-]?shot|bildschirmfoto|whatsapp[ _-]image|"
    r"mmexport|inbound"
)
# words people use too: a device's name only where nothing but a number, a date or a time follows
_LOOSE = (
    r"image|images|picture|pic|photo|foto|bild|download|downloaded|unnamed|untitled|unknown|scan|scanned|frame|file|"
    r"thumbnail|thumb|original|output|sample|received|signal|snapchat|telegram|tumblr|win|wp|sam|gx|gh|g|p|r|s|dcp|kic|"
    r"burst|capture|clipboard|collage|camera|cam"
)
_MACHINE_TOKEN = re.compile(
    r"\d+|(?=[a-f]*\d)[0-9a-f]{6,}|[0-9a-f]{32,}|\d+x\d+|wa\d+|\d+p|v\d+|[a-z]|am|pm|at|um|edited|edit|copy|kopie|"
    r"portrait|night|mp|burst|cover|hdr|scaled|large|small|medium|full|orig|raw|original|pano|photosphere|ed|ms|ts|jpg|jpeg|png"
)
_DEVICE_TOKEN = re.compile(rf"(?:{_DEVICE})\d*")
_LOOSE_TOKEN = re.compile(rf"(?:{_LOOSE})\d*")
_DEVICE_NAME = re.compile(rf"_*(?:{_DEVICE})[ _.-]*\d*")
_LOOSE_ALONE = re.compile(r"images?|download|downloaded|unnamed|untitled|unknown|thumbnail|thumb|clipboard|received")
_FIRST_WORD = re.compile(r"[^\W_]+")
_MACHINE_FIRST = re.compile(rf"(?:fb|screen|whatsapp|{_DEVICE}).*|(?:{_LOOSE})\d*|[0-9a-f]{{8,}}|\d.*", re.DOTALL)
_UUID = re.compile(r"\{?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\}?")
_OWN_FORM = re.compile(r"([^_]*)_ ?\(\d+\)")  # how edkit itself numbers: `caption_(12)`


def caption_of_stem(stem: str) -> str:
    """The caption that a file name gives: its stem up to the first `_`, in Unicode's composed form (NFC).

    `person_ (12)` -> `person`. Empty where the stem begins with `_`. Composed, because some file systems
    hand a name back decomposed, and the same set must give the same tokens on every machine.
    """
    return unicodedata.normalize("NFC", stem.split("_", 1)[0]).strip()


@lru_cache(maxsize=1 << 16)  # a set asks for the same captions over and over
def can_name(caption: str) -> bool:
    """Whether the caption may stand in a file name as it is, on every system, and reads back exactly."""
    if not caption or caption != caption.strip() or caption.startswith(".") or caption.endswith("."):
        return False
    if not caption.isprintable() or not _FORBIDDEN.isdisjoint(caption):
        return False
    if len(caption) > MAX_NAME_CHARS or len(caption.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        return False
    if _is_reserved(caption) or unicodedata.normalize("NFC", caption) != caption:
        return False
    return not is_camera_name(caption) and not is_camera_name(f"{caption}_(1)")


def safe_name(caption: str) -> str:
    """A readable form of the caption for any file system: never empty, reserved, or over 120 characters."""
    composed = unicodedata.normalize("NFC", caption)
    name = "".join(" " if c in _FORBIDDEN or not c.isprintable() else c for c in composed)
    name = " ".join(name.split()).strip(". ")
    while len(name) > MAX_NAME_CHARS or len(name.encode("utf-8")) > _MAX_NAME_BYTES:
        cut = name[: min(len(name) - 1, MAX_NAME_CHARS)]
        # at a word, where there is one near
        name = (cut[: cut.rfind(" ")] if cut.rfind(" ") > len(cut) // 2 else cut).strip(". ")
    if not name:
        return "untitled"
    return f"{name} -" if _is_reserved(name) else name


def is_safe_path(name: str) -> bool:
    """Whether a relative path from outside stays in its folder, on every system."""
    if not name or "\0" in name or name[0] in "/\\" or (len(name) > 1 and name[1] == ":"):
        return False
    return ".." not in name.replace("\\", "/").split("/")


def host_of(url: str) -> str:
    """The host an address names; "" where it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a table may hold anything
        return ""


def is_camera_name(stem: str) -> bool:
    """Whether a camera, a phone, a browser or a hash function gave this name, so that it is no caption.

    IMG_1234, DSC00017, PXL_2024..., `image (3)`, Screenshot_..., bare numbers, hex, UUIDs; also where such
    a name stands before the first `_` ("0001_a dog"), as the caption ends there.
    """
    return not begins_with_words(stem.split("_", 1)[0]) and _is_camera_name(stem)


@lru_cache(maxsize=1 << 16)
def begins_with_words(head: str) -> bool:
    """Whether no name that begins so can be a camera's: its first word is none that cameras give."""
    first = _FIRST_WORD.search(unicodedata.normalize("NFC", head).casefold())
    return first is not None and not _MACHINE_FIRST.fullmatch(first[0])


def _is_camera_name(stem: str) -> bool:
    name = unicodedata.normalize("NFC", stem).casefold().strip()
    name = f"img{name[3:]}" if name.startswith("_mg_") else name  # Canon's, in Adobe RGB
    caption = caption_of_stem(name)
    own = _OWN_FORM.fullmatch(name)
    if own:
        return bool(caption) and _machine_made(caption, alone=False)
    return _machine_made(name, alone=True) or (bool(caption) and _machine_made(caption, alone=False))


@lru_cache(maxsize=1 << 16)  # large sets say the same captions over and over
def _machine_made(name: str, *, alone: bool) -> bool:
    if _UUID.fullmatch(name) or _DEVICE_NAME.fullmatch(name):
        return True
    tokens = [token for token in re.split(r"[^\w]+|_", name) if token]
    if not tokens:
        return False
    first, rest = tokens[0], tokens[1:]
    if not all(_MACHINE_TOKEN.fullmatch(token) for token in rest):
        # "fb img 12", "whatsapp image 2024 01 01": the device's name has a space in it
        match = re.match(rf"_*(?:{_DEVICE})(?![a-z])", name)
        tail = [token for token in re.split(r"[^\w]+|_", name[match.end() :]) if token] if match else None
        return tail is not None and all(_MACHINE_TOKEN.fullmatch(token) for token in tail)
    numbered = any(c.isdigit() for c in name)
    if _DEVICE_TOKEN.fullmatch(first):
        return True
    if _LOOSE_TOKEN.fullmatch(first):
        return numbered or (alone and not rest and bool(_LOOSE_ALONE.fullmatch(first)))
    return first[0] in "0123456789abcdef" and numbered and _is_number_or_hash(first)


def _is_number_or_hash(token: str) -> bool:
    return bool(re.fullmatch(r"\d+|\d+x\d+|(?=[a-f]*\d)[0-9a-f]{8,}|[0-9a-f]{32,}", token))


def _is_reserved(name: str) -> bool:
    return name.split(".", 1)[0].rstrip(" ").casefold() in _RESERVED


class Namer:
    """Gives images of one folder their names `caption_(n)`, numbered by caption whatever its case.

    `taken` are the names (with endings) that stand in the folder already; a stem is given once, so no two
    images can come to share a sidecar.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._stems = {_key(name[: name.rfind(".")] if name.rfind(".") > 0 else name) for name in taken}
        self._next: dict[str, int] = {}

    def name(self, caption: str, suffix: str) -> tuple[str, str | None]:
        """The next free file name for the caption, and the text of its `.txt` sidecar (None: needs none)."""
        exact = can_name(caption)
        base = caption if exact else safe_name(caption)
        key = _key(base)
        n = self._next.get(key, 1)
        while _key(f"{base}_({n})") in self._stems:
            n += 1
        self._next[key] = n + 1
        self._stems.add(_key(f"{base}_({n})"))
        return f"{base}_({n}){suffix}", None if exact else caption


def _key(name: str) -> str:
    """What case-insensitive file systems take for one name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
