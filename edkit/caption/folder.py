"""Captions in one folder: file names `caption_(n).ext`, sidecars beside them, nothing in the way."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edkit.data.journal import Change, Move, Trash, Write
from edkit.data.names import Namer, can_name, safe_name
from edkit.data.options import FOLDER_FILES, SIDECAR_SUFFIXES
from edkit.data.walk import MASK

_NUMBERED = re.compile(r"(.*)_\(([1-9]\d*)\)", re.DOTALL)
_FILE_REFERENCE = re.compile(rb"\.(?:txt|caption|ya?ml)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One image of a folder, the caption it is to have, and what that means for its sidecars."""

    name: str  # file name
    caption: str
    write: bool = False  # the caption must stand in a .txt sidecar, whether or not it can be a name
    given: bool = False  # a sidecar (or a cascade) that stays gives this caption: no .txt is needed
    aside: frozenset[str] = frozenset()  # its sidecars that say otherwise: these go to the trash
    rewritten: Mapping[str, bytes] = field(default_factory=dict)  # sidecars that get another content, by name
    why: str = "its caption"  # why it is called so, for the journal
    facts: Mapping[str, object] = field(default_factory=dict)  # who gave the caption, for the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A file that goes with an image; its name is the image's stem and a tail (`.txt`, `-masklabel.png`)."""

    name: str
    tail: str


def plan_folder(
    folder: Path, entries: Iterable[str], images: Sequence[Wanted], others: Collection[str] = ()
) -> list[Change]:
    """The changes that name the images of one folder after their captions; none where all is so already.

    `entries` are all names in the folder, the images' too; `others` are images among them that stay as they
    are. An image that has a name of the right form keeps it; the others take the lowest free numbers, in
    natural order (2 before 10). A stem is given once, so that no image comes to share another's sidecar or
    picks up a stray one.
    """
    entries = list(entries)
    order = sorted(images, key=lambda image: natural(image.name))
    companions = companions_of(entries, {*others, *(image.name for image in images)})
    settled = {nfc(split(name)[0]) for name in others}  # stems whose sidecars have an image that stays

    kept: dict[str, str] = {}  # stem -> the image that has it and keeps it
    for image in order:
        stem, _ = split(image.name)
        if named_after(stem, image.caption):
            kept.setdefault(key(stem), image.name)
    keeping = set(kept.values())
    leaving = {image.name for image in order} - keeping
    for image in order:
        stem, _ = split(image.name)
        if key(stem) not in kept and nfc(stem) not in settled:
            leaving.update(companion.name for companion in companions.get(nfc(stem), ()))
    staying = [name for name in entries if name not in leaving]
    namer = Namer(staying)

    changes: list[Change] = []
    gone = {nfc(split(name)[0]) for name in keeping} | settled  # stems whose companions have their image already
    for image in order:
        stem, suffix = split(image.name)
        if image.name in keeping:
            new_stem, first = stem, True
        else:
            name, _ = namer.name(image.caption, suffix)
            new_stem, first = split(name)[0], nfc(stem) not in gone
            gone.add(nfc(stem))
            why = f"{image.why}: {image.caption}"
            changes.append(Move(folder / image.name, folder / name, why, facts=image.facts))
        changes += sidecar_changes(folder, companions.get(nfc(stem), ()), stem, new_stem, image, first=first)
    return _mend_references(folder, changes)


def sidecar_changes(
    folder: Path,
    companions: Sequence[Companion],
    stem: str,
    new_stem: str,
    image: Wanted,
    *,
    first: bool,
    text_name: str = "",
) -> Iterator[Change]:
    """What becomes of an image's sidecars; the `first` of those that share them (a.jpg, a.png) takes them."""
    text_name = text_name or f"{new_stem}.txt"
    needs_text = (image.write or not can_name(image.caption)) and not image.given
    for companion in companions:
        name, target = companion.name, new_stem + companion.tail
        if name in image.aside:
            # written over below: the journal keeps the old content then
            if first and not (needs_text and name == text_name):
                yield Trash(folder / name, "the file name is its caption now")
        elif name in image.rewritten:
            if name != target and first:
                yield Trash(folder / name, "goes on under the image's new name, with what was changed in it")
            yield Write(folder / target, image.rewritten[name], image.why, facts=image.facts)
        elif name == target:
            continue
        elif first:
            yield Move(folder / name, folder / target, "goes with its image")
        elif companion.tail.lower() in SIDECAR_SUFFIXES:
            content = (folder / name).read_bytes()
            yield Write(folder / target, content, f"shared by several images of the name {stem}")
    if needs_text:
        why = image.why
        if new_stem != stem or not image.facts:
            strong = "a cascade is stronger than a file name"
            why += f", whole: {strong if can_name(image.caption) else 'no file name can hold it'}"
        yield Write(folder / text_name, image.caption.encode("utf-8"), why, facts=image.facts)


def companions_of(entries: Iterable[str], images: set[str]) -> dict[str, list[Companion]]:
    """Files that belong to images by their stem: sidecars, masks, and whatever else other tools put there."""
    found: dict[str, list[Companion]] = {}
    for name in entries:
        if name in images or name.lower() in FOLDER_FILES or name.startswith("."):
            continue
        stem, suffix = split(name)
        if suffix:
            stem = stem.removesuffix(MASK)
            found.setdefault(nfc(stem), []).append(Companion(name=name, tail=name[len(stem) :]))
    return found


def _mend_references(folder: Path, changes: list[Change]) -> list[Change]:
    """A YAML sidecar that names a caption file which moves comes to name it by its new name."""
    moves = {
        change.src.name: change.dst.name
        for change in changes
        if isinstance(change, Move) and change.src.suffix.lower() in SIDECAR_SUFFIXES
    }
    mended: list[Change] = []
    for change in changes:
        if isinstance(change, Move) and change.src.suffix.lower() in (".yaml", ".yml"):
            content = change.src.read_bytes()
            if b"caption" in content and _FILE_REFERENCE.search(content):
                new = _renamed_reference(content, {old: to for old, to in moves.items() if old.encode() in content})
                if new != content:
                    mended.append(Trash(change.src, "names a caption file that got another name"))
                    mended.append(Write(change.dst, new, "names the caption file by its new name"))
                    continue
        mended.append(change)
    return mended


def _renamed_reference(content: bytes, moves: Mapping[str, str]) -> bytes:
    for old, new in moves.items():
        # only where the value of `caption` is this very name; the rest of the file stays as it was written
        pattern = rb"(?m)^(\s*caption\s*:\s*)(['\"]?)" + re.escape(old.encode()) + rb"\2(?=\s*(?:#|$))"
        value = "'" + new.replace("'", "''") + "'"
        content = re.sub(pattern, rb"\g<1>" + value.encode().replace(b"\\", rb"\\"), content)
    return content


def named_after(stem: str, caption: str) -> bool:
    """Whether a stem is `caption_(n)` for this caption (its safe form, where it can't be a name itself)."""
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return False
    # some file systems hand names back decomposed
    return unicodedata.normalize("NFC", match[1]) == (caption if can_name(caption) else safe_name(caption))


def split(name: str) -> tuple[str, str]:
    """A file name's stem and ending (with the dot; empty where there is none)."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if dot > 0 else (name, "")


def key(stem: str) -> str:
    """What case-insensitive file systems take for one name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def nfc(stem: str) -> str:
    """A stem in composed form, as images and sidecars are matched."""
    return unicodedata.normalize("NFC", stem)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts names as people count: `a_2` before `a_10`; equal names by their characters."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)], name
