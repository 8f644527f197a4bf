"""Reading folders and manifests into columns: whose word about an image counts, and what is wrong with it.

The captions and options of the layout (docs/data-root.md) are resolved here, image by image, once.
"""

# ruff: noqa: PTH113, PTH118, PTH120, PTH122 - plain strings, as this runs a million times over

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edkit.data.errors import BadInput, Problem
from edkit.data.image import probe
from edkit.data.known import Cache, Known, keep, load, stats_of
from edkit.data.names import begins_with_words, caption_of_stem, is_camera_name
from edkit.data.options import (
    FOLDER_FILES,
    NUMBER_FILES,
    SIDECAR_SUFFIXES,
    Said,
    Words,
    decode,
    one_line_text,
    read_option_file,
    read_text,
    read_yaml,
    said_from_row,
)
from edkit.data.progress import Progress
from edkit.data.sample import NOTHING_SAID, OPTION_NAMES, Caption, Options, Tag, split_text
from edkit.data.walk import NOT_UNICODE, Listing, is_unicode, list_folder, nfc, walk

BY_NAME, BY_FALLBACK = "<name>", "<fallback>"
"""Caption sources that are neither a sidecar (".txt") nor a path."""
UNFINISHED = "unfinished-change"
"""The error of a folder that is in the midst of a change: some of its images are not to be seen."""
PART = 8192  # files read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file or folder that was not read, and why."""

    path: Path
    reason: str


def _ints() -> array[int]:
    return array("i")


@dataclass(slots=True)
class Columns:
    """The set by columns: a row an image, sorted by folder and name (a manifest's in its order)."""

    names: list[str] = field(default_factory=list)
    folders: array[int] = field(default_factory=_ints)
    captions: array[int] = field(default_factory=_ints)
    options: array[int] = field(default_factory=_ints)
    sources: array[int] = field(default_factory=_ints)
    widths: array[int] = field(default_factory=_ints)  # pixels, upright; 0 where not known
    heights: array[int] = field(default_factory=_ints)
    folder_paths: list[str] = field(default_factory=list)
    folder_keys: list[str] = field(default_factory=list)
    caption_table: dict[str | Caption, int] = field(default_factory=dict)  # str: a verbatim text
    option_table: dict[Options, int] = field(default_factory=dict)
    source_table: dict[tuple[str, ...], int] = field(default_factory=dict)
    repeats: dict[int, int] = field(default_factory=dict)  # row -> how often its path came before
    masks: dict[int, str] = field(default_factory=dict)  # row -> its mask's name beside it


@dataclass(slots=True)
class _FolderWord:
    """What a folder says of its images: options resolved down to the defaults, and caption sources."""

    options: Options
    words: list[tuple[Words, str]]  # local.yaml, nearest global.yaml, farther ones; with their paths
    error: Problem | None


class Reader:
    """Gathers columns, problems and skipped files over all places of a data root."""

    def __init__(
        self, *, base: Options, fallback: str | None, sizes: bool, cache: Cache | None, progress: Progress
    ) -> None:
        self.base, self.fallback, self.cache, self.progress = base, fallback, cache, progress
        self.sizes = sizes  # whether every image's header is read
        self.columns = Columns()
        self.problems: list[Problem] = []
        self.blocked: dict[int, Problem] = {}
        self.skipped: list[Skipped] = []
        self._globals: dict[str, tuple[Said, str] | None] = {}
        self._known_said: dict[str, dict[str, Any]] = {}  # folder -> sidecar's name -> a text on one line, or JSON
        self._stale: set[str] = set()  # folders of which something new was found out
        self._captions_of: dict[str, int] = {}  # a name up to its first "_" -> the caption it gives
        self._may_repeat = False

    # -- directories

    def directory(self, root: Path, prefix: str) -> None:
        chains: dict[str, list[tuple[Said, str]]] = {}
        with self.progress.task("reading the folders") as advance:
            for part in _parts(walk(str(root), stats=self.cache is not None)):
                self._read_part(part, prefix, chains)
                advance(sum(len(listing.images) for _, listing in part))

    def _read_part(
        self, part: Sequence[tuple[str, Listing]], prefix: str, chains: dict[str, list[tuple[Said, str]]]
    ) -> None:
        """Some folders' images into the columns; `chains` are the global.yaml files of each folder met so far."""
        listings = [listing for _, listing in part]
        known = load(self.cache, (one.path for one in listings if one.images)) if self.cache is not None else {}
        self._load_sidecars(listings, known)
        first = len(self.columns.names)
        for key, listing in part:
            self._note(listing)
            above = chains.get(key.rpartition("/")[0], []) if key else []
            own = self._global(listing)
            chains[key] = ([own] if own else []) + above
            if listing.images:
                self._folder(listing, prefix + key if key else prefix.rstrip(":"), chains[key])
            elif odd := set(listing.options) - {"global.yaml"}:
                self._warn(
                    "option-without-images",
                    os.path.join(listing.path, listing.options[sorted(odd)[0]]),
                    "holds for this folder alone, and the folder holds no image",
                    "move it beside the images, or use global.yaml",
                )
        self._size_part([listing for listing in listings if listing.images], known, first)
        self._known_said.clear()

    def _size_part(self, listings: Sequence[Listing], known: Mapping[str, Known], first: int) -> None:
        """The sizes of some folders' images, whose rows begin at `first`, and what is to be known next time."""
        nothing = Known()
        found = np.zeros((len(self.columns.names) - first, 2), np.int32)
        if self.cache is not None:
            sizes = [known.get(one.path, nothing).sizes_for(one) for one in listings]
            self._stale.update(
                one.path
                for one, size in zip(listings, sizes, strict=True)
                if (self.sizes and not size.all()) or len(known.get(one.path, nothing).stats) != len(one.images)
            )
            found = np.concatenate(sizes) if sizes else found
        if self.sizes and not found.all():
            paths = [os.path.join(one.path, name) for one in listings for name in one.images]
            stats: list[Any] = [pair for one in listings for pair in stats_of(one).tolist()]
            self._probe(found, first, paths, stats)
        self.columns.widths.frombytes(found[:, 0].tobytes())
        self.columns.heights.frombytes(found[:, 1].tobytes())
        if self.cache is None:
            return
        ends = np.cumsum([len(one.images) for one in listings]).tolist()
        keep(
            self.cache,
            (
                (
                    one,
                    found[end - len(one.images) : end],
                    self._known_said.get(one.path, {}),
                    known.get(one.path, nothing),
                )
                for one, end in zip(listings, ends, strict=True)
                if one.path in self._stale
            ),
        )
        self._stale.clear()

    def _probe(
        self, found: NDArray[np.int32], first: int, paths: Sequence[str], stats: Sequence[Sequence[int] | None]
    ) -> None:
        """Fill in the sizes that are 0: from the cache's row of that file, else from its header."""
        todo = np.flatnonzero(found[:, 0] == 0).tolist()
        by_path: dict[Path, tuple[int, int]] = {}
        if self.cache is not None:
            by_path = {Path(paths[i]): (stat[0], stat[1]) for i in todo if (stat := stats[i]) is not None}
            kept = self.cache.cached_many("header/1", by_path, stats=by_path)
            for i in todo:
                size = kept.get(Path(paths[i]))
                if isinstance(size, list) and len(size) == 2:
                    found[i] = size
            todo = [i for i in todo if found[i, 0] == 0]
        fresh: dict[Path, object] = {}

        def look(i: int) -> tuple[int, int] | BadInput:
            try:
                header = probe(paths[i])
            except BadInput as error:
                return error
            return header.width, header.height

        # threads wait for the disk together; the parsing itself is short
        with ThreadPoolExecutor(8) as pool:
            for i, size in zip(todo, pool.map(look, todo), strict=True):
                if isinstance(size, BadInput):
                    what, mend = size.what, size.mend or ""
                    where = size.where or paths[i]
                    problem = Problem(level="error", code="unreadable-image", where=where, what=what, mend=mend)
                    self._block(first + i, problem)
                else:
                    found[i] = size
                    fresh[Path(paths[i])] = list(size)
        if self.cache is not None and fresh:
            fresh = {path: size for path, size in fresh.items() if path in by_path}
            self.cache.put_cached_many("header/1", fresh, stats=by_path)

    def _folder(self, listing: Listing, key: str, chain: list[tuple[Said, str]]) -> None:
        """One folder's images into the columns."""
        word = self._folder_word(listing, chain)
        columns, sidecars, first, num = self.columns, listing.sidecars, len(self.columns.names), len(listing.images)
        columns.folders.extend([self._new_folder(listing.path, key)] * num)
        # most images of a large set come this way: a caption that was met before, from the name; the folder's options
        captions = [self._captions_of.get(stem.partition("_")[0], -1) for stem in listing.stems]
        columns.captions.extend(captions)
        columns.options.extend([_intern(columns.option_table, word.options)] * num)
        columns.sources.extend([_intern(columns.source_table, (BY_NAME,))] * num)
        lost: list[str] = []
        for i, (stem, caption) in enumerate(zip(listing.stems, captions, strict=True)):
            if word.words or stem in sidecars:
                self._by_sources(listing, i, first + i, word, lost)
            elif caption < 0:
                self._by_name(listing, i, first + i)
        columns.names += listing.images
        if listing.masks:
            columns.masks.update(
                (row, listing.masks[stem]) for row, stem in enumerate(listing.stems, first) if stem in listing.masks
            )
        if word.error is not None:
            for row in range(first, first + num):
                self.blocked.setdefault(row, word.error)
        self._warn_lost(listing.path, lost)
        self._warn_of_prose(listing.path, first)
        if word.options.multiply == 0 and word.error is None:
            self._warn("multiply-zero", listing.path, f"multiply is 0: its {num} images are left out")

    def _by_name(self, listing: Listing, i: int, row: int) -> None:
        """The caption of an image that its name alone captions."""
        columns, head = self.columns, listing.stems[i].partition("_")[0]
        caption = self._captions_of.get(head)  # an image before it may have the same
        if caption is None and begins_with_words(head):
            caption = _intern(columns.caption_table, caption_of_stem(head))
            if len(self._captions_of) >= 1 << 16:
                self._captions_of.clear()
            self._captions_of[head] = caption
        elif caption is None:
            text, from_name = self._named(listing.stems[i], listing.path, listing.images[i], row)
            caption = _intern(columns.caption_table, text)
            if not from_name:
                columns.sources[row] = _intern(columns.source_table, (BY_FALLBACK,))
        columns.captions[row] = caption

    def _by_sources(self, listing: Listing, i: int, row: int, word: _FolderWord, lost: list[str]) -> None:
        """Caption and options of an image of which more is said than its name."""
        columns = self.columns
        beside = listing.sidecars.get(listing.stems[i], {})
        if len(beside) == 1 and not word.words:
            # one text beside it is all: then that is its caption
            ((suffix, name),) = beside.items()
            if suffix in (".txt", ".caption"):
                columns.captions[row] = _intern(columns.caption_table, self._text(listing.path, name, row))
                columns.sources[row] = _intern(columns.source_table, (name[-len(suffix) :],))
                return
        columns.captions[row], columns.options[row], columns.sources[row] = self._image(
            listing, listing.images[i], listing.stems[i], beside, word, lost, row
        )

    def _image(
        self,
        listing: Listing,
        name: str,
        stem: str,
        beside: dict[str, str],
        word: _FolderWord,
        lost: list[str],
        row: int,
        first: Said | None = None,  # a manifest row's word, stronger than any file's
        first_label: str = "",
    ) -> tuple[int, int, int]:
        """One image's caption, options and sources: from its sidecars or manifest row, its folder, its name."""
        own: list[tuple[Words, str]] = []
        blank_yaml: list[str] = []
        options = NOTHING_SAID
        if first is not None:
            own.append((first.words, first_label))
            options = first.options
        for suffix in SIDECAR_SUFFIXES:
            if suffix not in beside:
                continue
            path = os.path.join(listing.path, beside[suffix])
            label = beside[suffix][beside[suffix].rfind(".") :]
            if suffix in (".caption", ".txt"):
                own.append((Words(self._text(listing.path, beside[suffix], row), True), label))
                continue
            said = self._yaml(listing.path, beside[suffix], row)
            options = options.over(said.options)
            own.append((said.words, label))
            if said == Said() and self._is_blank(path):
                blank_yaml.append(label)
        # a manifest's row that gives a caption stands for the sidecars
        if first is not None and first.words.prompt is not None:
            own = own[:1]
        if blank_yaml and all(words.prompt is None for words, _ in own):
            own.append((Words("", True), blank_yaml[0]))
        options = options.over(word.options) if options is not NOTHING_SAID else word.options
        sources = [*own, *word.words]
        if all(words.prompt is None for words, _ in sources):
            text, from_name = self._named(stem, listing.path, name, row)
            sources.insert(len(own), (Words(text, True), BY_NAME if from_name else BY_FALLBACK))
        caption, used, losers = joined(sources, options.caption_style or "tags")
        if losers:
            if all(label.startswith(".") for label in losers):
                winner = next(label for words, label in sources if words.prompt is not None)
                self._warn(
                    "main-prompt-twice",
                    os.path.join(listing.path, name),
                    f"{1 + len(losers)} main prompts: {winner} is used, not {', '.join(losers)}",
                    "keep one of them",
                )
            else:
                lost.append(name)
        columns = self.columns
        return (
            _intern(columns.caption_table, caption),
            _intern(columns.option_table, options),
            _intern(columns.source_table, used),
        )

    def _named(self, stem: str, folder: str, name: str, row: int) -> tuple[str, bool]:
        """The caption that the file name gives (True), or the fallback, or an error and nothing."""
        if is_camera_name(stem):
            what, code = "its name is a camera's or a program's, not a caption", "camera-name"
        else:
            caption = caption_of_stem(stem)
            if caption:
                return caption, True
            what, code = "it has no caption: its name begins with _", "no-caption"
        if self.fallback is not None:
            return self.fallback, False
        mend = "give it a .txt, rename it, or say --caption-fallback"
        self._block(row, Problem(level="error", code=code, where=os.path.join(folder, name), what=what, mend=mend))
        return "", True

    # -- folders

    def _new_folder(self, path: str, key: str) -> int:
        self.columns.folder_paths.append(path)
        self.columns.folder_keys.append(key)
        return len(self.columns.folder_paths) - 1

    def _folder_word(self, listing: Listing, chain: list[tuple[Said, str]]) -> _FolderWord:
        """The folder's own option files over its local.yaml over the globals, nearest first."""
        own, errors = NOTHING_SAID, [p for said, _ in chain for p in said.problems if p.level == "error"]
        for lower in sorted(listing.options.keys() - {"local.yaml", "global.yaml"}):
            said = read_option_file(Path(listing.path, listing.options[lower]))
            own = own.over(said.options)
            self.problems += said.problems
            errors += [p for p in said.problems if p.level == "error"]
        words: list[tuple[Words, str]] = []
        if "local.yaml" in listing.options:
            path = os.path.join(listing.path, listing.options["local.yaml"])
            local = read_yaml(Path(path))
            self.problems += local.problems
            errors += [p for p in local.problems if p.level == "error"]
            for option in OPTION_NAMES:
                mine, theirs = getattr(own, option), getattr(local.options, option)
                if mine is not None and theirs is not None and mine != theirs:
                    self._warn(
                        "said-twice",
                        path,
                        f"{option} is {theirs} here, but {option}.txt says {mine} and wins",
                    )
            own = own.over(local.options)
            words.append((local.words, path))
        for said, path in chain:
            own = own.over(said.options)
            words.append((said.words, path))
        words = [(w, path) for w, path in words if w.prompt is not None or w.tags]
        return _FolderWord(own.over(self.base), words, errors[0] if errors else None)

    def _global(self, listing: Listing) -> tuple[Said, str] | None:
        """The folder's global.yaml, read once."""
        if listing.path not in self._globals:
            name = listing.options.get("global.yaml")
            found = None
            if name is not None:
                path = os.path.join(listing.path, name)
                said = read_yaml(Path(path))
                self.problems += said.problems
                found = (said, path)
            self._globals[listing.path] = found
        return self._globals[listing.path]

    def _note(self, listing: Listing) -> None:
        """What the listing shows besides images: hidden and skipped files, clashes, sidecars of nothing."""
        if listing.num_waiting:
            self._problem(
                "error",
                UNFINISHED,
                listing.path,
                f"a change under way, or an interrupted one, hides {listing.num_waiting:,} of its files",
                "let its command end; edkit check DIR finishes an interrupted one",
            )
        for name, reason in listing.skipped:
            self.skipped.append(Skipped(path=Path(listing.path, name), reason=reason))
            if name == "":
                self._problem("error", "unreadable-folder", listing.path, reason)
            elif reason == NOT_UNICODE:
                where = os.path.join(listing.path, name)
                self._problem("error", "not-unicode", where, f"{reason}, so it is not read", "rename it")
        for one, other in listing.clashes:
            self._warn(
                "clashing-names",
                os.path.join(listing.path, other),
                f"differs from {one} in case alone: Windows and macOS lose one of them",
                "rename one",
            )
        stems = set(listing.stems if listing.sidecars else ())
        by_stem: dict[str, list[str]] = {}
        if stems and len(stems) < len(listing.stems):
            for stem, image in zip(listing.stems, listing.images, strict=True):
                by_stem.setdefault(stem, []).append(image)
        for stem, endings in listing.sidecars.items():
            for suffix, name in endings.items():
                lower = name.lower()
                if lower.removesuffix(".txt") in FOLDER_FILES or lower in (
                    "multiply.yaml",
                    "local.yml",
                    "global.yml",
                ):
                    right = lower.removesuffix(".txt") if lower.endswith(".txt") else _right_name(lower)
                    self._warn(
                        "double-ending",
                        os.path.join(listing.path, name),
                        f"is not read: the name must be {right}",
                        f"rename it to {right}",
                    )
                elif stem not in stems:
                    path = os.path.join(listing.path, name)
                    self._warn("sidecar-without-image", path, "no image of this name stands beside it")
                elif len(images := by_stem.get(stem, ())) > 1 and suffix == next(iter(endings)):
                    self._warn(
                        "shared-sidecar",
                        os.path.join(listing.path, name),
                        f"is the sidecar of {len(images)} images: {', '.join(images)}",
                        "give each image a name of its own",
                    )

    # -- manifests

    def manifest(self, path: Path, prefix: str) -> None:
        """The images of a JSON manifest, in its order."""
        rows = _manifest_rows(path)
        base = path.parent
        listings: dict[str, Listing] = {}
        entries: list[tuple[int, dict[str, Any], str]] = []
        for number, row in enumerate(rows, 1):
            where = f"{path}, row {number}"
            image = row.get("image") if isinstance(row, dict) else None
            if not isinstance(row, dict) or not isinstance(image, str) or not image:
                self._problem("error", "bad-row", where, 'a row must be {"image": path, ...}')
                continue
            full = os.path.normpath(os.path.join(base, image))
            folder = os.path.dirname(full)
            if folder not in listings:
                try:
                    listings[folder] = list_folder(folder, stats=self.cache is not None)
                except (OSError, ValueError):  # ValueError: a NUL or half a character in the path
                    listings[folder] = Listing(folder)
            if not (is_unicode(image) and os.path.isfile(full)):
                self._problem(
                    "error",
                    "missing-image",
                    where,
                    f"{image} is not there",
                    "mend the path, or remove the row",
                )
                continue
            entries.append((number, row, full))
        self._load_sidecars(list(listings.values()), {})
        words: dict[str, tuple[int, _FolderWord]] = {}
        lost: dict[str, list[str]] = {}
        columns = self.columns
        first = len(columns.names)
        with self.progress.task("reading captions", total=len(entries)) as advance:
            for number, row, full in entries:
                folder, name = os.path.split(full)
                if folder not in words:
                    key = _relative(folder, str(base))
                    key = prefix + key if key else prefix.rstrip(":")
                    chain = self._chain(folder, str(base), listings)
                    words[folder] = (
                        self._new_folder(folder, key),
                        self._folder_word(listings[folder], chain),
                    )
                folder_id, word = words[folder]
                index = len(columns.names)
                said = said_from_row(row, path, number)
                self._take(said.problems, index)
                stem = nfc(os.path.splitext(name)[0])
                beside = listings[folder].sidecars.get(stem, {})
                caption, options, sources = self._image(
                    listings[folder],
                    name,
                    stem,
                    beside,
                    word,
                    lost.setdefault(folder, []),
                    index,
                    said,
                    str(path),
                )
                columns.captions.append(caption)
                columns.options.append(options)
                columns.sources.append(sources)
                if stem in listings[folder].masks:
                    columns.masks[index] = listings[folder].masks[stem]
                columns.names.append(name)
                columns.folders.append(folder_id)
                if word.error is not None:
                    self.blocked.setdefault(index, word.error)
                advance(1)
        found = np.zeros((len(entries), 2), np.int32)
        if self.sizes and entries:
            paths = [full for _, _, full in entries]
            stats = {
                os.path.join(one.path, name): stat
                for one in listings.values()
                for name, stat in zip(one.images, stats_of(one).tolist(), strict=self.cache is not None)
            }
            self._probe(found, first, paths, [stats.get(path) for path in paths])
        columns.widths.frombytes(found[:, 0].tobytes())
        columns.heights.frombytes(found[:, 1].tobytes())
        self._may_repeat = True
        for folder, names in lost.items():
            self._warn_lost(folder, names)

    def _chain(self, folder: str, base: str, listings: dict[str, Listing]) -> list[tuple[Said, str]]:
        """The global.yaml files from the image's folder up to the manifest's."""
        found = []
        inside = folder == base or folder.startswith(base.rstrip(os.sep) + os.sep)
        while True:
            if folder not in listings:
                try:
                    listings[folder] = list_folder(folder, stats=self.cache is not None)
                except (OSError, ValueError):  # ValueError: a NUL or half a character in the path
                    listings[folder] = Listing(folder)
            said = self._global(listings[folder])
            if said:
                found.append(said)
            if not inside or folder == base:
                return found
            folder = os.path.dirname(folder)

    def warn_of_repeats(self) -> None:
        """Images that come more than once (in a manifest, or through two places) get keys of their own."""
        columns = self.columns
        if not self._may_repeat and len(columns.folder_paths) == len(set(columns.folder_paths)):
            return
        seen: dict[str, int] = {}
        for row, name in enumerate(columns.names):
            path = os.path.join(columns.folder_paths[columns.folders[row]], name)
            count = seen.get(path, 0)
            if count:
                columns.repeats[row] = count + 1
                if count == 1:
                    self._warn("image-twice", path, "comes more than once in the data root")
            seen[path] = count + 1

    # -- sidecars, through the cache

    def _load_sidecars(self, listings: Sequence[Listing], known: Mapping[str, Known]) -> None:
        """Every sidecar that has an image, as the cache knows it, or read and given to it."""
        if self.cache is None:
            return  # read one by one, when their image comes
        nothing = Known()
        wanted: dict[bool, list[tuple[Listing, str]]] = {False: [], True: []}
        for listing in listings:
            if not listing.sidecars:
                continue
            said = self._known_said[listing.path] = known.get(listing.path, nothing).said_in(listing)
            if len(said) == len(listing.sidecar_stats):
                continue
            stems = set(listing.stems)
            for stem, endings in listing.sidecars.items():
                for suffix, name in endings.items() if stem in stems else ():
                    if name not in said:
                        self._stale.add(listing.path)
                        wanted[suffix in (".yaml", ".yml")].append((listing, name))
        self._from_cache("caption-text/1", wanted[False], self._read_plain)
        self._from_cache("caption-yaml/1", wanted[True], self._read_plain_yaml)

    def _from_cache(self, kind: str, wanted: Sequence[tuple[Listing, str]], make: Callable[[Path], object]) -> None:
        """Learn what these sidecars say from the cache's row of each, else from the file."""
        if not wanted:
            return
        assert self.cache is not None
        paths = [Path(listing.path, name) for listing, name in wanted]
        stats = {
            path: stat
            for path, (listing, name) in zip(paths, wanted, strict=True)
            if (stat := listing.sidecar_stats.get(name)) is not None
        }
        known = self.cache.cached_many(kind, stats, stats=stats)
        fresh: dict[Path, object] = {}
        for path, (listing, name) in zip(paths, wanted, strict=True):
            value = known.get(path)
            if value is None:
                value = make(path)
                if value is not None:
                    fresh[path] = value
            if value is not None:
                self._known_said[listing.path][name] = value
        if fresh:
            self.cache.put_cached_many(kind, fresh, stats=stats)

    def _read_plain(self, path: Path) -> str | None:
        try:
            return one_line_text(read_text(path))
        except BadInput:
            return None  # told when its image comes

    def _read_plain_yaml(self, path: Path) -> object:
        try:
            text = read_text(path)
        except BadInput:
            return None
        said = read_yaml(path)
        # a file with problems is told of every time, and one that names others depends on them
        return None if said.problems or "caption" in text or not text.strip() else _said_to_json(said)

    def _text(self, folder: str, name: str, row: int) -> str:
        """What a text beside an image says; empty where it can't be read."""
        said = self._known_said.get(folder, {}).get(name)
        if said is not None:
            return str(said)
        path = Path(folder, name)
        try:
            return one_line_text(read_text(path))
        except BadInput as error:
            self._block(
                row,
                Problem(
                    level="error",
                    code="bad-encoding",
                    where=error.where or str(path),
                    what=error.what,
                    mend=error.mend or "",
                ),
            )
            # not also an error for its name: the person did caption it
            return ""

    def _yaml(self, folder: str, name: str, row: int) -> Said:
        """What a YAML file beside an image says."""
        known = self._known_said.get(folder, {}).get(name)
        if known is not None:
            return _said_from_json(known)
        said = read_yaml(Path(folder, name))
        self._take(said.problems, row)
        return said

    def _is_blank(self, path: str) -> bool:
        try:
            return not read_text(Path(path)).strip()
        except BadInput:
            return False

    # -- problems

    def _warn(self, code: str, where: str, what: str, mend: str = "") -> None:
        self._problem("warning", code, where, what, mend)

    def _problem(self, level: Any, code: str, where: str, what: str, mend: str = "") -> None:
        self.problems.append(Problem(level=level, code=code, where=where, what=what, mend=mend))

    def _block(self, row: int, problem: Problem) -> None:
        self.problems.append(problem)
        self.blocked.setdefault(row, problem)

    def _take(self, problems: Iterable[Problem], row: int) -> None:
        for problem in problems:
            self.problems.append(problem)
            if problem.level == "error":
                self.blocked.setdefault(row, problem)

    def _warn_lost(self, folder: str, names: list[str]) -> None:
        if names:
            self._warn(
                "main-prompt-twice",
                folder,
                f"{len(names)} images have a main prompt of their own: that of local.yaml or global.yaml"
                f" is not used for them (first: {names[0]})",
            )

    def _warn_of_prose(self, folder: str, start: int) -> None:
        """Warn where tags are shuffled and captions read as sentences."""
        columns = self.columns
        if not any(o.shuffle_tags and o.caption_style != "prose" for o in columns.option_table):
            return
        options, captions = list(columns.option_table), list(columns.caption_table)
        shuffled = [
            captions[columns.captions[row]]
            for row in range(start, len(columns.names))
            if (o := options[columns.options[row]]).shuffle_tags and o.caption_style != "prose"
        ]
        prose = [c for c in shuffled if isinstance(c, str) and _reads_as_prose(c)]
        if prose:
            self._warn(
                "prose-shuffled",
                folder,
                f"tags are shuffled, but {len(prose)} of {len(shuffled)} captions read as prose ({prose[0][:60]})",
                "say caption_style: prose, or turn shuffle_tags off",
            )


def _parts(listings: Iterable[tuple[str, Listing]]) -> Iterator[list[tuple[str, Listing]]]:
    """Listings by the few thousand files: enough for one question to the cache, few enough to hold."""
    part: list[tuple[str, Listing]] = []
    num = 0
    for key, listing in listings:
        part.append((key, listing))
        num += 1 + len(listing.images) + len(listing.sidecar_stats)
        if num >= PART:
            yield part
            part, num = [], 0
    if part:
        yield part


def joined(sources: Sequence[tuple[Words, str]], style: Any) -> tuple[str | Caption, tuple[str, ...], list[str]]:
    """The caption of its sources, strongest first; the labels of those used, and of lost main prompts."""
    lead = next(i for i, (words, _) in enumerate(sources) if words.prompt is not None)
    first, label = sources[lead]
    assert first.prompt is not None
    losers = [label] * len(first.more)
    tags: dict[str, Tag] = {}
    used = []
    others = False  # whether anything stands beside the leading text
    main = first.prompt
    for i, (words, name) in enumerate(sources):
        own: tuple[Tag, ...] = words.tags
        if words.prompt is not None and words.is_text and style != "prose":
            pieces = split_text(words.prompt)
            own = pieces[1] + own
            main = pieces[0] if i == lead else main
        if i != lead and words.prompt is not None:
            losers += [name] * (1 + len(words.more))
        if i == lead or own:
            used.append(name)
        others = others or (bool(words.tags) if i == lead else bool(own))
        for tag in own:
            tags.setdefault(tag.text, tag)
    if first.is_text and not others:
        return first.prompt, (label,), losers
    return Caption(text=main, tags=tuple(tags.values()), verbatim=False), tuple(used), losers


def _reads_as_prose(text: str) -> bool:
    """Whether a caption is sentences rather than tags: ends like one, or its pieces are clauses."""
    pieces = text.split(", ")
    if len(pieces) == 1:
        return False
    sentence = text.rstrip().endswith((".", "!", "?")) or ". " in text
    return sentence or max(len(piece.split()) for piece in pieces[1:]) > 6


def _manifest_rows(path: Path) -> list[Any]:
    text = _read_any(path)

    def refuse(constant: str) -> Any:
        raise BadInput(f"{constant} is not a number", where=str(path))

    try:
        rows = json.loads(text, parse_float=Decimal, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BadInput(f"not valid JSON: {error.msg.lower()}", where=f"{path}:{error.lineno}") from error
    except (ValueError, ArithmeticError) as error:  # Python's limits of digits and exponents
        raise BadInput("not valid JSON: a number has too many digits", where=str(path)) from error
    except RecursionError as error:
        raise BadInput("not valid JSON: nested too deeply", where=str(path)) from error
    if not isinstance(rows, list):
        raise BadInput('a manifest must be a list of {"image": path, ...}', where=str(path))
    return rows


def _read_any(path: Path) -> str:
    """A text file of any length (a manifest), decoded as captions are."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"can't be read: {(error.strerror or str(error)).lower()}", where=str(path)) from error


def _right_name(lower: str) -> str:
    stem = lower.rpartition(".")[0]
    return f"{stem}.txt" if stem in NUMBER_FILES else f"{stem}.yaml"


def _relative(folder: str, base: str) -> str:
    try:
        relative = os.path.relpath(folder, base)
    except ValueError:  # another drive
        relative = folder
    return "" if relative == "." else nfc(relative.replace(os.sep, "/"))


def _multiply(options: Options) -> Decimal:
    return Decimal(1) if options.multiply is None else options.multiply


def _intern(table: dict[Any, int], value: Any) -> int:
    return table.setdefault(value, len(table))


def _said_to_json(said: Said) -> object:
    words, options = said.words, said.options
    return {
        "words": [words.prompt, words.is_text, [[t.text, t.weight] for t in words.tags], list(words.more)],
        "options": {
            name: str(value) if isinstance(value, Decimal) else value
            for name in OPTION_NAMES
            if (value := getattr(options, name)) is not None
        },
    }


def _said_from_json(value: Any) -> Said:
    prompt, is_text, tags, more = value["words"]
    options = dict(value["options"])
    if "multiply" in options:
        options["multiply"] = Decimal(options["multiply"])
    words = Words(prompt, is_text, tuple(Tag(text, weight) for text, weight in tags), tuple(more))
    return Said(words=words, options=Options(**options) if options else NOTHING_SAID)
