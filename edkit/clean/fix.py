"""What `check --fix` mends: faults with one safe, lossless mend, as one operation that `undo` takes back."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.image import suffix_for
from edkit.data.journal import Change, Move, Write, apply
from edkit.data.options import FOLDER_FILES, NUMBER_FILES, decode
from edkit.data.progress import SILENT, Progress
from edkit.data.walk import MASK, Listing, nfc, walk
from edkit.measure.measure import measure

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""The endings that tell the truth about a format."""

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMMA = re.compile(rb"\s*\d*,(\d{1,2}|\d{4,})\s*")  # three digits may as well be thousands
_NUMBER = re.compile(rb"\s*\d+(\.\d+)?\s*")
_NUMBERED = re.compile(r"(.*)_\((\d+)\)", re.DOTALL)
_YML = {"local.yml": "local.yaml", "global.yml": "global.yaml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """One mend: the file as it was called, what was done, and its new name where it has one."""

    path: Path
    what: str
    to: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What `fix` did (on a dry run: would do)."""

    mended: tuple[Mended, ...]
    left: tuple[tuple[Path, str], ...]  # what looked alike and has no safe mend, and why
    operation: int | None


def right_ending(format: str, name: str) -> str | None:
    """The ending a file of that format should have, or None where its own is right."""
    endings = ENDINGS.get(format, ())
    if not endings or os.path.splitext(name)[1].lower() in endings:  # noqa: PTH122 - plain names
        return None
    return suffix_for(format)


def marked(path: Path) -> bool:
    """Whether a text file begins with a byte-order mark (UTF-8's or UTF-16's)."""
    try:
        with path.open("rb") as file:
            return file.read(3).startswith(_MARKS)
    except OSError:
        return False  # told where its caption is read


def fix(
    catalog: Catalog,
    root: Path,
    *,
    uncaptioned: Iterable[Path] = (),
    caption: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Fixed:
    """Mend every fault below a folder that has one safe, lossless mend.

    Endings that lie are put right; images that clash or share a sidecar get names of their own, with their
    caption and mask; `multiply.txt.txt` and its kin get the name that is read; text in UTF-16 or with a mark becomes
    plain UTF-8; a decimal comma in a number file becomes a point. `caption`, where given, is written beside
    each image in `uncaptioned`. Raises UsageError where `root` is no folder (a manifest names its files).
    """
    if not root.is_dir():
        raise UsageError("--fix renames files, and a manifest names them", where=str(root), mend="give the folder")
    folders = [listing for _, listing in walk(os.path.abspath(root))]  # noqa: PTH100 - links stay links
    images = [Path(listing.path, name) for listing in folders for name in listing.images]
    facts = measure(catalog, images, ["format"], workers=workers, progress=progress)
    formats = {path: str(one["format"]) for path, one in facts.items() if not isinstance(one, Problem)}
    bare = {} if caption is None else dict.fromkeys(uncaptioned, caption)
    plans = [_Folder(listing, formats, bare) for listing in folders]
    changes = [change for plan in plans for change in plan.changes]
    applied = apply(
        catalog,
        changes,
        verb="check --fix",
        command="check --fix",
        dry_run=dry_run,
        progress=progress,
    )
    undone = {id(change) for change, _ in applied.skipped}
    return Fixed(
        mended=tuple(one for plan in plans for one, change in plan.mended if id(change) not in undone),
        left=(
            *(left for plan in plans for left in plan.left),
            *((_subject(change), why) for change, why in applied.skipped),
        ),
        operation=applied.operation,
    )


def _subject(change: Change) -> Path:
    return change.src if isinstance(change, Move) else change.path


class _Folder:
    """The mends of one folder; names are settled among all its files before any is changed."""

    def __init__(self, listing: Listing, formats: Mapping[Path, str], bare: Mapping[Path, str]) -> None:
        self.listing, self.formats, self.bare = listing, formats, bare
        self.path = Path(listing.path)
        self.changes: list[Change] = []
        self.mended: list[tuple[Mended, Change]] = []
        self.left: list[tuple[Path, str]] = []
        try:
            names = [path.name for path in self.path.iterdir()]
        except OSError:  # the reader tells of folders that can't be read
            return
        self._taken = {_folded(name) for name in names}
        self._stems = {_folded(os.path.splitext(name)[0]) for name in names}  # noqa: PTH122
        self._moved: set[str] = set()  # text files that get another name
        self._images()
        self._misnamed()
        self._texts()

    def _do(self, change: Change, what: str, path: Path, to: Path | None = None) -> None:
        self.changes.append(change)
        self.mended.append((Mended(path=path, what=what, to=to), change))

    # -- images

    def _images(self) -> None:
        late = {other for _, other in self.listing.clashes}  # differ from an earlier name in case or form alone
        by_stem: dict[str, list[str]] = {}
        for name in self.listing.images:
            by_stem.setdefault(nfc(_stem(name)), []).append(name)
        for name in self.listing.images:
            path, stem = self.path / name, nfc(_stem(name))
            shares = len(by_stem[stem]) > 1 and stem in self.listing.sidecars
            ending = right_ending(self.formats.get(path, ""), name)
            whys = []
            if ending:
                whys.append(f"it is {self.formats[path]} by content")
            if name in late:
                whys.append("another name differs in case alone")
            if shares and name != by_stem[stem][0]:
                whys.append("its sidecar was another image's too")
            new = _stem(name)
            if name in late or (shares and name != by_stem[stem][0]):
                new = self._new_stem(new)
            target = new + (ending or os.path.splitext(name)[1])  # noqa: PTH122
            if ending and new == _stem(name) and _folded(target) in self._taken:
                new = self._new_stem(new)
                target = new + ending
            if target != name:
                self._taken.add(_folded(target))
                move = Move(path, self.path / target, ", and ".join(whys))
                self._do(move, ", and ".join(whys), path, self.path / target)
                if new != _stem(name):
                    self._companions(name, stem, new, copied=len(by_stem[stem]) > 1)
            words = self.bare.get(path)
            if words is not None:
                note = self.path / f"{new}.txt"
                self._do(Write(note, words.encode(), "the caption that was given"), "written: the caption given", note)

    def _new_stem(self, stem: str) -> str:
        """A free stem that says the same caption: `a dog` -> `a dog_(2)`."""
        numbered = _NUMBERED.fullmatch(stem)
        base, n = (numbered[1], int(numbered[2]) + 1) if numbered else (stem, 2)
        while _folded(f"{base}_({n})") in self._stems:
            n += 1
        self._stems.add(_folded(f"{base}_({n})"))
        return f"{base}_({n})"

    def _companions(self, image: str, stem: str, new: str, *, copied: bool) -> None:
        """Sidecars and mask follow their image; those that another image needs as well are copied."""
        mask = self.listing.masks.get(stem)
        names = {name: new + os.path.splitext(name)[1] for name in self.listing.sidecars.get(stem, {}).values()}  # noqa: PTH122
        names |= {} if mask is None else {mask: f"{new}{MASK}.png"}
        for name, new_name in names.items():
            path, target = self.path / name, self.path / new_name
            what = "mask" if name == mask else "sidecar"
            if copied:
                try:
                    content = path.read_bytes() if name == mask else _plain(path.read_bytes(), path)
                except (OSError, BadInput) as error:
                    self.left.append((path, f"not copied for {image}: {error}"))
                    continue
                self._do(Write(target, content, f"copied from {name}"), f"copied for {new}", path, target)
            else:
                self._moved.add(name)
                move = Move(path, target, f"{what} of {image}")
                self._do(move, "follows its image", path, target)

    # -- text files

    def _misnamed(self) -> None:
        """Option files whose name is not read: `multiply.txt.txt`, `local.yml`."""
        stems = {nfc(_stem(name)) for name in self.listing.images}
        for stem, endings in self.listing.sidecars.items():
            for name in endings.values():
                right = _read_as(name)
                if right is None or stem in stems:
                    continue
                path, target = self.path / name, self.path / right
                if right in self.listing.options or _folded(right) in self._taken:
                    self.left.append((path, f"{right} is there already: which of them is meant, only you know"))
                    continue
                if name.lower().endswith(".yaml") and not _NUMBER.fullmatch(_bytes(path)):
                    self.left.append((path, "holds more than a number: rename it by hand, or use local.yaml"))
                    continue
                self._taken.add(_folded(right))
                self._moved.add(name)
                self._do(Move(path, target, "its name was not read"), "its name was not read", path, target)

    def _texts(self) -> None:
        stems = {nfc(_stem(name)) for name in self.listing.images}
        names = [name for stem, found in self.listing.sidecars.items() if stem in stems for name in found.values()]
        for name in [*self.listing.options.values(), *names]:
            path = self.path / name
            if name in self._moved:
                continue
            if marked(path):
                try:
                    content = _plain(path.read_bytes(), path)
                except (OSError, BadInput) as error:
                    self.left.append((path, str(error)))
                    continue
                self._do(Write(path, content, "written as UTF-8"), "written as plain UTF-8", path)
            elif name.lower().removesuffix(".txt") in NUMBER_FILES:
                data = _bytes(path)
                if _COMMA.fullmatch(data):
                    self._do(
                        Write(path, data.replace(b",", b"."), "a point, not a comma"), "a point, not a comma", path
                    )


def _read_as(name: str) -> str | None:
    """The name under which an option file would be read, or None where it is none."""
    lower = name.lower()
    if lower.endswith(".txt") and lower.removesuffix(".txt") in FOLDER_FILES:
        return lower.removesuffix(".txt")
    return "multiply.txt" if lower == "multiply.yaml" else _YML.get(lower)


def _plain(data: bytes, path: Path) -> bytes:
    """The text as UTF-8 without a mark; its line ends as they are."""
    return decode(data, str(path)).encode("utf-8") if data.startswith(_MARKS) else data


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(200)
    except OSError:
        return b""


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - plain names


def _folded(name: str) -> str:
    """A name as the most forgiving file system sees it."""
    return nfc(nfc(name).casefold())
