"""Walking a data root: which files stand in which folder, sorted, the same on every machine."""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

from edkit.data.image import IMAGE_SUFFIXES, is_image
from edkit.data.options import FOLDER_FILES, SIDECAR_SUFFIXES
from edkit.data.places import is_waiting

STATE_NAME = ".edkit"
MASK = "-masklabel"
"""What OneTrainer's masks have between their image's stem and `.png`; a mask belongs to its image and is none."""


NOT_UNICODE = "its name is not Unicode"
"""Why a file or folder was skipped whose name no caption, table or other machine could take (Latin-1 on Linux)."""


@dataclass(slots=True)
class Listing:
    """One folder's files by their role; names as the file system spells them, sorted."""

    path: str
    images: list[str] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)  # of each image, NFC
    sidecars: dict[str, dict[str, str]] = field(default_factory=dict)  # NFC stem -> {".txt": name}
    masks: dict[str, str] = field(default_factory=dict)  # NFC stem of the image -> name of its mask
    options: dict[str, str] = field(default_factory=dict)  # lower-case name -> name
    folders: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    clashes: list[tuple[str, str]] = field(default_factory=list)  # names that differ in case or ending alone
    image_stats: array[int] = field(default_factory=lambda: array("q"))  # of each image: size, mtime_ns
    num_waiting: int = 0  # files that a change under way, or an interrupted one, has taken the names of
    sidecar_stats: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (size, mtime_ns)


def nfc(name: str) -> str:
    """The name in composed form: what one file system composes and another decomposes is one name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_unicode(name: str) -> bool:
    """Whether the name's bytes were Unicode: what was not comes as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_folder(path: str, *, stats: bool = False) -> Listing:
    """The folder's files by role (`stats`: with sizes and times); OSError where it can't be read."""
    found = Listing(path)
    maybe_masks: list[str] = []
    with _scanned(path) as (entries, folder):
        names = "".join([entry.name for entry in entries])
        plain = names.isascii()
        some_odd = not plain and not is_unicode(names)
        if plain:
            entries.sort(key=attrgetter("name"))
        else:
            entries.sort(key=lambda entry: (nfc(entry.name), entry.name))
        for entry in entries:
            name = entry.name
            if some_odd and not is_unicode(name):
                found.skipped.append((os.fsencode(name).decode("utf-8", "backslashreplace"), NOT_UNICODE))
                continue
            try:
                if not entry.is_file():
                    if not entry.is_dir():
                        reason = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
                        found.skipped.append((name, reason))
                    elif not name.startswith("."):
                        found.folders.append(name)
                    elif name != STATE_NAME:
                        found.skipped.append((name, "a hidden folder"))
                    continue
                if name[0] == ".":
                    if is_image(name):
                        found.skipped.append((name, "a hidden file"))
                    elif is_waiting(name):
                        found.num_waiting += 1
                    continue
                stem, _, ending = name.rpartition(".")
                stem, suffix = (stem, f".{ending}") if stem else (name, "")
                if suffix not in IMAGE_SUFFIXES:  # most endings are in small letters already
                    suffix = suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    if stats:
                        stat = entry.stat() if folder is None else os.stat(name, dir_fd=folder)
                        found.image_stats.append(stat.st_size)
                        found.image_stats.append(stat.st_mtime_ns)
                    found.images.append(name)
                    found.stems.append(stem if plain else nfc(stem))
                    if suffix == ".png" and stem.endswith(MASK):
                        maybe_masks.append(name)
                elif (lower := name.lower()) in FOLDER_FILES:
                    if lower in found.options:
                        found.clashes.append((found.options[lower], name))
                    else:
                        found.options[lower] = name
                elif suffix in SIDECAR_SUFFIXES:
                    endings = found.sidecars.setdefault(stem if plain else nfc(stem), {})
                    if suffix in endings:
                        found.clashes.append((endings[suffix], name))
                    else:
                        endings[suffix] = name
                    if stats:
                        stat = entry.stat() if folder is None else os.stat(name, dir_fd=folder)
                        found.sidecar_stats[name] = stat.st_size, stat.st_mtime_ns
                else:
                    found.skipped.append((name, f"{suffix} is not read" if suffix else "no ending"))
            except OSError as error:
                found.skipped.append((name, (error.strerror or str(error)).lower()))
    _find_clashes(found)
    if maybe_masks:
        _part_masks(found, maybe_masks)
    return found


@contextmanager
def _scanned(path: str) -> Iterator[tuple[list[os.DirEntry[str]], int | None]]:
    """The folder's entries, and the folder itself, open, where files can be looked at from there.

    Else (on Windows) sizes and times came with the names, and are the entries' own.
    """
    if os.stat not in os.supports_dir_fd or os.scandir not in os.supports_fd:
        with os.scandir(path) as scan:
            yield list(scan), None
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
        yield entries, folder
    finally:
        os.close(folder)


def option_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """The folder's option files, lower-case name -> name, as `list_folder` finds them; without a look at the others."""
    with os.scandir(path) as scan:
        found = sorted((nfc(e.name), e.name) for e in scan if e.name.lower() in FOLDER_FILES and e.is_file())
    return {name.lower(): name for _, name in reversed(found)}


def _find_clashes(found: Listing) -> None:
    """Note the images whose names differ in case alone."""
    joined = "\0".join(found.images)
    if joined.isascii() and joined == joined.lower():
        return  # names are different, and these are their own lower case
    folded = joined.lower().split("\0") if joined.isascii() else [nfc(name).casefold() for name in found.images]
    if len(set(folded)) == len(folded):
        return
    seen: dict[str, str] = {}
    for key, name in zip(folded, found.images, strict=True):
        if key in seen:
            found.clashes.append((seen[key], name))
        seen[key] = name


def _part_masks(found: Listing, maybe: list[str]) -> None:
    """Take masks out of the images; one whose image is not there stays an image."""
    stems = set(found.stems)
    for name in maybe:
        stem = nfc(name[: -len(f"{MASK}.png")])
        if stem in stems and stem not in found.masks:
            found.masks[stem] = name
    taken = set(found.masks.values())
    kept = [i for i, name in enumerate(found.images) if name not in taken]
    found.images, found.stems = [found.images[i] for i in kept], [found.stems[i] for i in kept]
    if found.image_stats:
        found.image_stats = array("q", (found.image_stats[2 * i + part] for i in kept for part in (0, 1)))


def walk(root: str, *, stats: bool = False) -> Iterator[tuple[str, Listing]]:
    """(key, listing) of the folder and of every folder below it, sorted; the root's key is "".

    Links to folders are followed, unless they lead back to a folder they stand in. A folder that can't be
    read comes as a listing whose one skipped entry "" gives the reason.
    """

    # a stack: trees may be deeper than calls can nest
    ahead: list[tuple[str, str, tuple[str, ...]]] = [(root, "", (os.path.realpath(root),))]
    while ahead:
        path, key, above = ahead.pop()
        try:
            listing = list_folder(path, stats=stats)
        except OSError as error:
            listing = Listing(path)
            listing.skipped.append(("", f"can't be read: {(error.strerror or str(error)).lower()}"))
            yield key, listing
            continue
        below: list[tuple[str, str, tuple[str, ...]]] = []
        for name in listing.folders:
            inner = os.path.join(path, name)  # noqa: PTH118
            chain = above
            if os.path.islink(inner):  # noqa: PTH114
                real = os.path.realpath(inner)
                if any(folder == real or folder.startswith(real.rstrip(os.sep) + os.sep) for folder in above):
                    listing.skipped.append((name, "a link back to a folder it stands in"))
                    continue
                chain = (*above, real)
            else:
                chain = (*above[:-1], os.path.join(above[-1], name))  # noqa: PTH118
            below.append((inner, f"{key}/{nfc(name)}" if key else nfc(name), chain))
        yield key, listing
        ahead += reversed(below)
