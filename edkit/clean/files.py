"""The image files of a folder, the sidecars that belong to them, and how both are set aside together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, StateError, UsageError
from edkit.data.journal import Applied, Change, Trash, apply
from edkit.data.progress import SILENT, Progress
from edkit.data.redo import unfinished
from edkit.data.walk import nfc, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images of some folders, and which sidecars each has."""

    images: tuple[Path, ...]  # absolute, each file once, by folder and name
    sidecars: Mapping[Path, tuple[Path, ...]] = field(repr=False)  # only images that have any
    siblings: Mapping[tuple[str, str], int] = field(repr=False)  # (folder, NFC stem) -> images of that stem
    masks: Mapping[Path, Path] = field(default_factory=dict, repr=False)  # only images that have one
    links: Mapping[Path, Path] = field(default_factory=dict, repr=False)  # further names of images -> the image

    def under(self, folders: Iterable[Path]) -> frozenset[Path]:
        """The images that lie in any of these folders, under whichever name."""
        there = {file_id(path) for folder in folders for path in list_images([folder]).images}
        return frozenset(path for path in self.images if file_id(path) in there) if there else frozenset()


def list_images(folders: Sequence[Path]) -> Listing:
    """Walk folders as the data root is walked: sorted, past everything that begins with a dot.

    A file that links give several names is one image, by the name without a link where it has one here.
    Raises UsageError where a folder is not there, or is a file.
    """
    images: dict[Path, None] = {}
    sidecars: dict[Path, tuple[Path, ...]] = {}
    siblings: dict[tuple[str, str], int] = defaultdict(int)
    masks: dict[Path, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            if Path(folder).exists():
                raise UsageError("not a folder", where=str(folder), mend="name the folder of images")
            raise UsageError("no such folder", where=str(folder))
        for _, listing in walk(_absolute(folder)):
            for name in listing.images:
                path = Path(listing.path, name)
                if path in images:
                    continue
                images[path] = None
                stem = nfc(path.stem)
                siblings[listing.path, stem] += 1
                if stem in listing.sidecars:
                    sidecars[path] = tuple(Path(listing.path, text) for text in listing.sidecars[stem].values())
                if stem in listing.masks:
                    masks[path] = Path(listing.path, listing.masks[stem])
    links = links_among(images, folders)
    return Listing(
        images=tuple(path for path in images if path not in links),
        sidecars=sidecars,
        siblings=dict(siblings),
        masks=masks,
        links=links,
    )


def links_among(paths: Iterable[Path], folders: Sequence[Path]) -> dict[Path, Path]:
    """Of paths that name the same file, all but one -> that one: where it can be, one that no link leads to."""
    first: dict[object, Path] = {}
    again: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        id = file_id(path)
        if first.setdefault(id, path) is not path:
            again[id].append(path)
    links: dict[Path, Path] = {}
    for id, more in again.items():
        same = [first[id], *more]
        image = min(same, key=lambda path: _through_link(path, folders))
        links |= {path: image for path in same if path != image}
    return links


def file_id(path: Path) -> object:
    """What all names of one file have in common; hard links are files of their own."""
    try:
        info = path.stat()
    except OSError:  # gone since it was listed
        return str(path)
    return (info.st_dev, info.st_ino) if info.st_ino and info.st_nlink == 1 else os.path.realpath(path)


def _through_link(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a link leads to an image from the folder that was given."""
    above = [Path(_absolute(folder)) for folder in folders]
    folder = next((folder for folder in above if folder in path.parents), path.parent)
    return os.path.realpath(path) != os.path.join(os.path.realpath(folder), path.relative_to(folder))  # noqa: PTH118


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """An image to set aside, why, and what was measured."""

    path: Path
    reason: str
    facts: Mapping[str, object] = field(default_factory=dict)


def set_aside(
    catalog: Catalog,
    listing: Listing,
    unwanted: Sequence[Unwanted],
    *,
    more: Sequence[Change] = (),
    verb: str,
    command: str = "",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Applied:
    """Move images to the trash as one journaled operation, each with its sidecars and mask; `more` belong to it.

    A sidecar that an image staying behind has too (`a.txt` of `a.jpg` and `a.png`) stays with it. What is
    an image that stays, by a name through a linked folder, is refused.
    """
    through = {one.path for one in unwanted if one.path in listing.links and not one.path.is_symlink()}
    images = {one.path for one in unwanted} - through
    refused = [
        (Trash(one.path, one.reason), f"the same file as {listing.links[one.path]}, which stays")
        for one in unwanted
        if one.path in through and listing.links[one.path] not in images
    ]
    unwanted = [one for one in unwanted if one.path not in through]
    going: dict[tuple[str, str], int] = defaultdict(int)
    for one in unwanted:
        going[str(one.path.parent), nfc(one.path.stem)] += 1
    changes: list[Change] = []
    gone: set[Path] = set()
    for one in unwanted:
        changes.append(Trash(one.path, one.reason, facts=one.facts))
        key = str(one.path.parent), nfc(one.path.stem)
        if going[key] < listing.siblings.get(key, 1):
            continue
        follow = [("sidecar", sidecar) for sidecar in listing.sidecars.get(one.path, ())]
        follow += [("mask", listing.masks[one.path])] if one.path in listing.masks else []
        for what, path in follow:
            if path not in gone:
                gone.add(path)
                changes.append(Trash(path, f"{what} of {one.path.name}: {one.reason}"))
    done = apply(catalog, [*changes, *more], verb=verb, command=command, dry_run=dry_run, progress=progress)
    return replace(done, skipped=[*done.skipped, *refused])


def open_catalog(
    root: Path,
    *,
    state_dir: Path | None,
    changes: bool,
    finish: bool = False,
    command: str,
    progress: Progress = SILENT,
) -> Catalog:
    """The catalog of a data root: for writing where `changes` are to be made, else as the folder allows.

    Where nothing is to be changed, measured facts are still kept if the root has a state already; a state
    that can't be written (another edkit at work, a read-only disk) then costs only time. What was interrupted is
    finished where `changes` or `finish` say so; else BadInput is raised, as files may be hidden.
    """
    from edkit.data.catalog import state_dir_for

    if changes:
        return Catalog.open(root, state_dir=state_dir, command=command, progress=progress)
    keeps = state_dir_for(root, state_dir).is_dir()
    if keeps and not finish:
        with Catalog.open(root, state_dir=state_dir, write=False, command=command, progress=progress) as catalog:
            for number, verb in unfinished(catalog.site()):
                raise BadInput(
                    f"operation {number} ({verb}) is under way, or was interrupted, and may hide files",
                    where=str(root),
                    mend="let its command end; edkit check DIR finishes an interrupted one",
                )
    if keeps:
        try:
            return Catalog.open(root, state_dir=state_dir, command=command, progress=progress)
        except StateError as error:
            progress.say(f"what is measured now is not kept: {error}")
    return Catalog.open(root, state_dir=state_dir, write=False, command=command, progress=progress)


def shown(path: Path, root: Path) -> str:
    """A path as a person reads it: relative to the data root where it lies there, with "/"."""
    try:
        return path.relative_to(_absolute(root)).as_posix()
    except ValueError:
        return str(path)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - removes ".." without resolving links
