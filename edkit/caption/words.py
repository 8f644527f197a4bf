"""`caption words`: which words and tags the captions of each folder have, and which stand in nearly all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edkit.caption.sources import chosen_folder, folder_at
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Caption, CaptionStyle
from edkit.data.words import words_of

NEARLY_ALL = 0.9
_FEW = 5  # below so many captions, "nearly all" says nothing
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the this that of in on at to for from with by and or is are was were be has have it its his her their "
        "as into up down over under near next front there some two one while which who",
    )
)
"""English words that stand in nearly every sentence and say nothing of the picture."""


_Table = Counter[tuple[Caption, CaptionStyle]]  # captions -> images


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many captions have a word, a phrase or a tag."""

    text: str
    num_captions: int
    share: float  # of the captions counted, 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderWords:
    """The words of one folder's captions; "" is the root itself."""

    folder: str
    num_images: int
    num_captions: int  # images that have a caption
    num_different: int  # captions that differ
    words: tuple[Count, ...]  # most frequent first
    tags: tuple[Count, ...]
    phrases: tuple[Count, ...]
    always: tuple[Count, ...]  # words, phrases and tags that stand in nearly every caption


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What `caption_words` found."""

    root: Path
    num_images: int
    num_empty: int  # captions meant to be empty
    num_missing: int  # images that nothing gives a caption
    total: FolderWords
    folders: tuple[FolderWords, ...]


def caption_words(
    root: Path | str,
    *,
    folder: str | None = None,
    ngrams: int = 1,
    small_words: bool = False,
    nearly_all: float = NEARLY_ALL,
    limit: int | None = None,
    progress: Progress = SILENT,
) -> Words:
    """Count the words and tags of every folder's captions; a word counts once a caption.

    `ngrams`: also phrases of two to so many words. What stands in at least `nearly_all` of a folder's captions
    is learned together with what the pictures share. `small_words` counts a, the, of, ... too. `limit` keeps
    the most frequent of each. Words are folded in case, tags are as they are written.

    Raises UsageError for a share outside 0 to 1, BadInput where there are no images.
    """
    from edkit.data.dataset import read

    if not 0 < nearly_all <= 1:
        raise UsageError(f"{nearly_all} is no share", where="--nearly-all", mend="from 0 to 1: 0.9")
    if not 1 <= ngrams <= 5:
        raise UsageError("phrases have 1 to 5 words", where="--ngrams")
    root = folder_at(root)
    below = chosen_folder(root, folder)
    dataset = read(root, sizes=False, progress=progress)
    dataset.must_be_whole()
    if not len(dataset):
        raise BadInput("no images in it", where=str(root))
    tables: dict[str, _Table] = {}
    missing: Counter[str] = Counter()
    for i in range(len(dataset)):
        place = dataset.path(i).parent
        if below is not None and below not in (place, *place.parents):
            continue
        key = "" if place == root else place.relative_to(root).as_posix()
        table = tables.setdefault(key, Counter())
        error = dataset.error(i)
        if error is not None and error.code in ("camera-name", "no-caption"):
            missing[key] += 1
        else:
            table[dataset.caption(i), dataset.options(i).caption_style or "tags"] += 1
    everything: _Table = Counter()
    folders = []
    counted = partial(_counted, ngrams=ngrams, small_words=small_words, nearly_all=nearly_all, limit=limit)
    with progress.task("counting", total=len(tables), unit="folders") as advance:
        for key, table in tables.items():
            everything.update(table)
            folders.append(counted(key, table, missing[key]))
            advance(1)
    empty = sum(n for (caption, _), n in everything.items() if not caption.text and not caption.tags)
    return Words(
        root=root,
        num_images=everything.total() + missing.total(),
        num_empty=empty,
        num_missing=missing.total(),
        total=counted("", everything, missing.total()),
        folders=tuple(folders),
    )


def _counted(
    folder: str,
    table: _Table,
    num_missing: int,
    *,
    ngrams: int,
    small_words: bool,
    nearly_all: float,
    limit: int | None,
) -> FolderWords:
    words: Counter[str] = Counter()
    phrases: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    for (caption, style), n in table.items():
        main, said = caption.split(style)
        pieces = [main, *(tag.text for tag in said)]
        own_words: set[str] = set()
        own_phrases: set[str] = set()
        for piece in pieces:
            found = words_of(piece)
            own_words.update(word for word in found if small_words or word not in _SMALL_WORDS)
            own_phrases.update(_phrases(found, ngrams, small_words=small_words))
        for counter, own in (
            (words, own_words),
            (phrases, own_phrases),
            (tags, {tag.text for tag in said}),
        ):
            for text in own:
                counter[text] += n
    num_captions = table.total()

    def ranked(counter: Counter[str], least: float = 0.0, most: int | None = limit) -> tuple[Count, ...]:
        order = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
        found = [Count(text=t, num_captions=n, share=n / num_captions) for t, n in order if n / num_captions >= least]
        return tuple(found[:most])

    always: tuple[Count, ...] = ()
    if num_captions >= _FEW:
        always = ranked(words | phrases | Counter({t: n for t, n in tags.items() if " " in t}), nearly_all, None)
    return FolderWords(
        folder=folder,
        num_images=num_captions + num_missing,
        num_captions=num_captions,
        num_different=len(table),
        words=ranked(words),
        tags=ranked(tags),
        phrases=ranked(phrases),
        always=always,
    )


def _phrases(words: list[str], longest: int, *, small_words: bool) -> Iterable[str]:
    for n in range(2, longest + 1):
        for start in range(len(words) - n + 1):
            part = words[start : start + n]
            # "of a" is no phrase, "bowl of soup" is one
            if small_words or (part[0] not in _SMALL_WORDS and part[-1] not in _SMALL_WORDS):
                yield " ".join(part)
