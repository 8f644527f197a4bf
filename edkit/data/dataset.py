"""A data root as samples: what `read` makes of folders and manifests, in columns, and back as `Sample`s.

The folder is the truth: reading changes nothing. What could not be read is named in `skipped`, what is
wrong or odd in `problems`.
"""

# ruff: noqa: PTH122 - plain strings, as this runs a million times over

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.known import Cache
from edkit.data.progress import SILENT, Progress
from edkit.data.reader import BY_FALLBACK, BY_NAME, UNFINISHED, Columns, Reader, Skipped
from edkit.data.sample import DEFAULTS, NOTHING_SAID, Caption, Options, Sample
from edkit.data.walk import nfc

DataRoot = Path | str | Sequence[Any] | Mapping[str, Any]
"""A folder, a manifest, a list of those, or {"resolver": "directory"|"json"|"multi", ...}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder that holds images of the set."""

    path: Path
    key: str  # below the data root, "/"-separated; "" is the root itself
    count: int  # images
    multiply: Decimal | None  # None where its images differ


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An image that `without_errors` left out, and the error it was left out for."""

    path: str
    problem: Problem


class Dataset:
    """The samples of a data root. Sized, iterable, picklable; made by `read`."""

    def __init__(
        self,
        columns: Columns,
        *,
        roots: tuple[Path, ...],
        problems: Iterable[Problem] = (),
        blocked: Mapping[int, Problem] | None = None,
        skipped: Iterable[Skipped] = (),
    ) -> None:
        self.roots = roots
        self.problems: list[Problem] = list(problems)
        self.skipped: list[Skipped] = list(skipped)
        self.folder_ids: NDArray[np.int32] = np.asarray(columns.folders, np.int32)
        self.option_ids: NDArray[np.int32] = np.asarray(columns.options, np.int32)
        self.option_table: list[Options] = list(columns.option_table)
        self.widths: NDArray[np.int32] = np.zeros(len(columns.names), np.int32)  # pixels, upright; 0: not probed
        self.heights: NDArray[np.int32] = np.zeros(len(columns.names), np.int32)
        self.widths[: len(columns.widths)], self.heights[: len(columns.heights)] = columns.widths, columns.heights
        self._names = columns.names
        self.caption_ids: NDArray[np.int32] = np.asarray(columns.captions, np.int32)
        self._captions: list[str | Caption] = list(columns.caption_table)
        self._source_ids: NDArray[np.int32] = np.asarray(columns.sources, np.int32)
        self._source_table = list(columns.source_table)
        self._folder_paths, self._folder_keys = columns.folder_paths, columns.folder_keys
        self._repeats = columns.repeats
        self._masks = columns.masks
        self._blocked: dict[int, Problem] = dict(blocked or {})

    # -- reading

    @property
    def root(self) -> Path:
        """The (first) folder or manifest that was read."""
        return self.roots[0]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(i) for i in range(len(self)))

    def sample(self, i: int) -> Sample:
        """The i-th sample."""
        return Sample(
            key=self.key(i),
            path=self.path(i),
            caption=self.caption(i),
            options=self.options(i),
            sources=self.sources(i),
            width=int(self.widths[i]),
            height=int(self.heights[i]),
            mask=self.mask(i),
        )

    def path(self, i: int) -> Path:
        """Where the image stands."""
        return Path(self._folder_paths[self.folder_ids[i]], self._names[i])

    def where(self, i: int) -> str:
        """`path` as text: a Path costs more than all else where a hundred thousand are named."""
        return os.path.join(self._folder_paths[self.folder_ids[i]], self._names[i])  # noqa: PTH118

    def key(self, i: int) -> str:
        """The image's name in every random draw: its path below the root, in composed Unicode, with "/"."""
        folder = self._folder_keys[self.folder_ids[i]]
        key = f"{folder}/{nfc(self._names[i])}" if folder else nfc(self._names[i])
        return f"{key}#{self._repeats[i]}" if i in self._repeats else key

    def caption(self, i: int) -> Caption:
        """What the sources say the image shows."""
        return self.caption_of(int(self.caption_ids[i]))

    def caption_of(self, id: int) -> Caption:
        """The caption that `caption_ids` calls by this number: images with the same one share it."""
        caption = self._captions[id]
        return Caption(text=caption) if isinstance(caption, str) else caption

    def options(self, i: int) -> Options:
        """How the image trains, resolved down to the defaults."""
        return self.option_table[int(self.option_ids[i])]

    def sources(self, i: int) -> tuple[Path, ...]:
        """The files that gave the caption, strongest first; the image itself for its name."""
        image = self.path(i)
        found = []
        for source in self._source_table[self._source_ids[i]]:
            if source == BY_NAME:
                found.append(image)
            elif source.startswith("."):
                found.append(image.with_name(os.path.splitext(image.name)[0] + source))
            elif source != BY_FALLBACK:
                found.append(Path(source))
        return tuple(found)

    def mask(self, i: int) -> Path | None:
        """Where the image's mask stands (`-masklabel.png` beside it), if it has one."""
        name = self._masks.get(i)
        return None if name is None else Path(self._folder_paths[self.folder_ids[i]], name)

    @property
    def num_masks(self) -> int:
        """Images that have a mask."""
        return len(self._masks)

    @property
    def paths(self) -> list[Path]:
        """Every image's path, in order."""
        return [self.path(i) for i in range(len(self))]

    @cached_property
    def folders(self) -> list[Folder]:
        """The folders that hold images, in order, with count and multiply."""
        counts = np.bincount(self.folder_ids, minlength=len(self._folder_paths))
        num_options = max(1, len(self.option_table))
        pairs = np.unique(self.folder_ids.astype(np.int64) * num_options + self.option_ids)
        said: dict[int, set[Decimal]] = {}
        for folder, option in (divmod(pair, num_options) for pair in pairs.tolist()):
            said.setdefault(folder, set()).add(self.option_table[option].multiply or Decimal(0))
        return [
            Folder(
                path=Path(self._folder_paths[f]),
                key=self._folder_keys[f],
                count=int(counts[f]),
                multiply=next(iter(said[f])) if len(said[f]) == 1 else None,
            )
            for f in range(len(self._folder_paths))
            if counts[f]
        ]

    @property
    def errors(self) -> list[Problem]:
        """The problems that block training."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that block nothing."""
        return [problem for problem in self.problems if problem.level == "warning"]

    @property
    def num_empty_captions(self) -> int:
        """Images whose caption is meant to be empty (an empty sidecar)."""
        empty = [i for i, c in enumerate(self._captions) if not (c if isinstance(c, str) else c.text or c.tags)]
        named = ~np.isin(np.arange(len(self)), np.fromiter(self._blocked, np.int64, len(self._blocked)))
        return int((np.isin(self.caption_ids, empty) & named).sum())

    def must_be_whole(self) -> None:
        """Raise BadInput where a change that is under way, or was interrupted, hides images of the set."""
        for problem in self.problems:
            if problem.code == UNFINISHED:
                raise BadInput(problem.what, where=problem.where, mend=problem.mend)

    # -- leaving out

    def drop(self, indices: Iterable[int]) -> Dataset:
        """The set without these samples; all else as it was (their problems go with them)."""
        keep = np.ones(len(self), np.bool_)
        keep[list(indices)] = False
        kept = np.flatnonzero(keep)
        gone = {id(p) for i, p in self._blocked.items() if not keep[i]}
        still = {id(p) for i, p in self._blocked.items() if keep[i]}
        new_row = {int(old): new for new, old in enumerate(kept)}
        columns = Columns(
            names=[self._names[i] for i in kept.tolist()],
            folder_paths=self._folder_paths,
            folder_keys=self._folder_keys,
            repeats={new_row[i]: n for i, n in self._repeats.items() if i in new_row},
            masks={new_row[i]: name for i, name in self._masks.items() if i in new_row},
        )
        out = Dataset(
            columns,
            roots=self.roots,
            problems=[p for p in self.problems if id(p) not in gone - still],
            blocked={new_row[i]: p for i, p in self._blocked.items() if i in new_row},
            skipped=self.skipped,
        )
        out.folder_ids, out.option_ids = self.folder_ids[kept], self.option_ids[kept]
        out.option_table, out._captions, out._source_table = (
            self.option_table,
            self._captions,
            self._source_table,
        )
        out.caption_ids, out._source_ids = self.caption_ids[kept], self._source_ids[kept]
        out.widths, out.heights = self.widths[kept], self.heights[kept]
        return out

    def without_errors(self) -> tuple[Dataset, list[LeftOut]]:
        """The set without everything that an error stands against, and the list of what that left out.

        Raises BadInput as `must_be_whole` does: what can't be seen can't be listed.
        """
        self.must_be_whole()
        left_out = [LeftOut(path=str(self.path(i)), problem=p) for i, p in sorted(self._blocked.items())]
        # what never became a sample: a manifest's bad rows and missing images, what can't be read or named
        nowhere = ("missing-image", "bad-row", "unreadable-folder", "not-unicode")
        left_out += [LeftOut(path=p.where, problem=p) for p in self.errors if p.code in nowhere]
        out = self.drop(self._blocked) if self._blocked else copy.copy(self)
        out.problems = out.warnings
        return out, left_out

    def error(self, i: int) -> Problem | None:
        """The error that stands against the i-th sample, if there is one."""
        return self._blocked.get(i)


def read(
    root: DataRoot,
    *,
    defaults: Options | None = None,
    caption_fallback: str | None = None,
    sizes: bool = True,
    catalog: Cache | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Read a data root.

    `defaults` is the command line's word, weaker than every file's. `caption_fallback` captions images
    whose name is no caption. `sizes` reads every image's header (from `catalog` where that knows it).
    Content that is wrong becomes a problem of the dataset; BadInput is raised only where the root itself
    can't be read.
    """
    reader = Reader(
        base=(defaults or NOTHING_SAID).over(DEFAULTS),
        fallback=caption_fallback,
        sizes=sizes,
        cache=catalog,
        progress=progress,
    )
    places = _places(root)
    for number, place in enumerate(places):
        prefix = f"{number}:" if len(places) > 1 else ""
        if place.is_dir():
            reader.directory(place, prefix)
        else:
            reader.manifest(place, prefix)
    reader.warn_of_repeats()
    return Dataset(
        reader.columns,
        roots=tuple(places),
        problems=reader.problems,
        blocked=reader.blocked,
        skipped=reader.skipped,
    )


def _places(root: Any) -> list[Path]:
    """The folders and manifests that a data root names; raises UsageError or BadInput."""
    if isinstance(root, str | os.PathLike):
        path = Path(root)
        if not path.exists():
            raise BadInput("no such folder or manifest", where=str(path))
        if not path.is_dir() and path.suffix.lower() != ".json":
            raise BadInput("neither a folder nor a .json manifest", where=str(path))
        return [Path(os.path.abspath(path))]  # noqa: PTH100 - links stay links
    if isinstance(root, Mapping):
        kind, known = root.get("resolver"), {"resolver", "path", "resolvers"}
        if unknown := set(root) - known:
            raise UsageError(f"data root: unknown key {sorted(unknown)[0]!r}", mend="known: resolver, path, resolvers")
        if kind == "multi" and isinstance(root.get("resolvers"), Sequence):
            return _places(root["resolvers"])
        if kind in ("directory", "json") and isinstance(root.get("path"), str | os.PathLike):
            (place,) = _places(root["path"])
            if place.is_dir() != (kind == "directory"):
                raise UsageError(f"data root: {place} is no {'folder' if kind == 'directory' else 'manifest'}")
            return [place]
        raise UsageError(
            "data root: a mapping needs a resolver and what it reads",
            mend='{"resolver": "directory"|"json", "path": ...} or {"resolver": "multi", "resolvers": [...]}',
        )
    if isinstance(root, Sequence) and root:
        return [place for part in root for place in _places(part)]
    raise UsageError("data root: a folder, a manifest, or a list of those is needed")
