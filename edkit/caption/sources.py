"""Where each image's caption stands: its file name, its own sidecars, or a file that it shares with others."""

# text paths: Path objects cost more than the work in loops over 100,000 files
# ruff: noqa: PTH100, PTH118, PTH119, PTH120, PTH208
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edkit.caption.folder import Companion, companions_of, nfc, split
from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.names import caption_of_stem
from edkit.data.options import (
    FOLDER_FILES,
    SIDECAR_SUFFIXES,
    Said,
    Words,
    caption_words,
    read_text,
    read_yaml,
    said_from_yaml,
)
from edkit.data.reader import joined
from edkit.data.sample import NOTHING_SAID, Caption, CaptionStyle, Options
from edkit.data.walk import option_files

YAML = (".yaml", ".yml")
_MISSING = ("camera-name", "no-caption")
_UNCLEAR = ("bad-encoding", "bad-yaml", "missing-caption-file", "unknown-key", "key-twice", "bad-value", "bad-number")
_OPTIONS_ALONE = FOLDER_FILES - {"local.yaml", "global.yaml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """An image that was left as it is, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file's words towards a caption."""

    path: Path
    words: Words
    text: str = ""  # what the file holds, decoded
    options: Options = NOTHING_SAID

    @property
    def is_yaml(self) -> bool:
        """Whether it is a YAML sidecar (else a caption text)."""
        return self.path.suffix.lower() in YAML


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictured:
    """One image of a folder with all that says something towards its caption."""

    index: int  # in the dataset
    path: Path
    caption: Caption  # as training sees it
    style: CaptionStyle
    sidecars: tuple[Source, ...]  # its own, strongest first
    named: str | None  # the caption its file name gives; None where that is not used or is no caption
    shared: tuple[Source, ...]  # local.yaml, the nearest global.yaml, farther ones: those that say words
    missing: bool  # nothing gives it a caption
    problem: Problem | None  # why its caption can't be told for sure

    @property
    def lead(self) -> Source | None:
        """The sidecar that gives the main prompt; None where the name or a shared file does."""
        return next((source for source in self.sidecars if source.words.prompt is not None), None)

    @property
    def whole(self) -> str:
        """The caption with all its tags."""
        return whole(self.caption)

    def with_words(self, named: str | None, sidecars: Sequence[Words]) -> Caption:
        """The caption as it would be with other words in its name and its sidecars."""
        sources = [(words, ".") for words in sidecars]
        if all(words.prompt is None for words, _ in [*sources, *((s.words, "") for s in self.shared)]):
            sources.append((Words(named or "", True), "name"))
        sources += [(source.words, "shared") for source in self.shared]
        caption, _, _ = joined(sources, self.style)
        return Caption(text=caption) if isinstance(caption, str) else caption


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOfImages:
    """One folder of a data root: its names and its images."""

    path: Path
    entries: list[str]  # all names in it, sorted as walking sorts them
    companions: dict[str, list[Companion]]
    images: list[Pictured]


def folders_of(dataset: Dataset) -> Iterator[FolderOfImages]:
    """The folders of a data root with their images, in its order; every sidecar is read here."""
    root = dataset.root
    members: dict[str, list[int]] = {}
    for i in range(len(dataset)):
        members.setdefault(os.path.dirname(dataset.path(i)), []).append(i)
    shared: dict[str, Source | None] = {}
    for folder, indices in members.items():
        paths = [dataset.path(i) for i in indices]
        names = {path.name for path in paths}
        entries = sorted(os.listdir(folder), key=lambda name: (nfc(name), name))
        companions = companions_of(entries, names)
        above = shared_sources(Path(folder), root, shared)
        images = [_pictured(dataset, i, path, companions, above) for i, path in zip(indices, paths, strict=True)]
        yield FolderOfImages(path=Path(folder), entries=entries, companions=companions, images=images)


def _pictured(
    dataset: Dataset, i: int, path: Path, companions: dict[str, list[Companion]], shared: tuple[Source, ...]
) -> Pictured:
    stem = split(path.name)[0]
    sidecars = sidecars_of(path, companions.get(nfc(stem), ()))
    error = dataset.error(i)
    missing = error is not None and error.code in _MISSING
    by_name = not missing and all(source.words.prompt is None for source in (*sidecars, *shared))
    return Pictured(
        index=i,
        path=path,
        caption=dataset.caption(i),
        style=dataset.options(i).caption_style or "tags",
        sidecars=sidecars,
        named=caption_of_stem(stem) if by_name else None,
        shared=shared,
        missing=missing,
        problem=error if error is not None and _unclear(error) else None,
    )


def _unclear(error: Problem) -> bool:
    """Whether an error leaves open what the caption is; a bad multiply.txt does not."""
    file = re.sub(r":\d+$", "", error.where)
    return error.code in _UNCLEAR and os.path.basename(file).lower() not in _OPTIONS_ALONE


def sidecars_of(image: Path, companions: Sequence[Companion]) -> tuple[Source, ...]:
    """What the sidecars of an image say, strongest first; one that can't be read says nothing here."""
    by_suffix: dict[str, Companion] = {}
    for companion in companions:
        if companion.tail.lower() in SIDECAR_SUFFIXES:
            by_suffix.setdefault(companion.tail.lower(), companion)
    found: list[Source] = []
    blank: Source | None = None
    for suffix in SIDECAR_SUFFIXES:
        if suffix not in by_suffix:
            continue
        path = image.with_name(by_suffix[suffix].name)
        try:
            text = read_text(path)
        except BadInput:  # the dataset tells of it: the image carries the problem
            continue
        if suffix in YAML:
            said = said_from_yaml(text, path)
            source = Source(path=path, words=said.words, text=text, options=said.options)
            if said == Said() and not text.strip():
                blank = blank or Source(path=path, words=Words("", True), text=text)
        else:
            source = Source(path=path, words=caption_words(text), text=text)
        found.append(source)
    # a blank YAML alone is an empty caption, beside another it says nothing
    if blank is not None and all(source.words.prompt is None for source in found):
        found = [blank if source.path == blank.path else source for source in found]
    return tuple(found)


def shared_sources(folder: Path, root: Path, known: dict[str, Source | None]) -> tuple[Source, ...]:
    """local.yaml of the folder and the global.yaml of it and those above, as far as they say words; the nearest first.

    `known` keeps what was read, from one folder to the next.
    """
    found = []
    above = [folder, *folder.parents]
    inside = above[: above.index(root) + 1] if root in above else [folder]
    for place, wanted in ((folder, "local.yaml"), *((place, "global.yaml") for place in inside)):
        key = os.path.join(place, wanted)
        if key not in known:
            name = option_files(place).get(wanted)
            known[key] = None if name is None else Source(path=place / name, words=read_yaml(place / name).words)
        source = known[key]
        if source is not None and (source.words.prompt is not None or source.words.tags):
            found.append(source)
    return tuple(found)


def whole(caption: Caption) -> str:
    """A caption with all its tags, in their order."""
    return ", ".join(part for part in (caption.text, *(tag.text for tag in caption.tags)) if part)


def folder_at(root: Path | str) -> Path:
    """The folder a command was given; UsageError where there is none."""
    path = Path(os.path.abspath(root))
    if not path.is_dir():
        mend = "name the folder of images" if path.is_file() else None
        raise UsageError("not a folder" if path.is_file() else "no such folder", where=str(root), mend=mend)
    return path


def chosen_folder(root: Path, folder: str | None) -> Path | None:
    """The folder below the root that an option limits the command to; None: all of it."""
    if folder is None:
        return None
    for candidate in (Path(os.path.abspath(root / folder)), Path(os.path.abspath(folder))):
        if candidate.is_dir() and (candidate == root or root in candidate.parents):
            return candidate
    raise UsageError(f"no such folder in {root.name}: {folder}", where="--folder")
