"""Words that stand in nearly every caption of a folder, and the words of each folder by how often they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edkit.data.dataset import Dataset
from edkit.data.sample import caption_text
from edkit.data.words import words_of

NEARLY_ALL = 0.9  # part of a folder's captions
_FEWEST = 5  # captions: fewer say nothing of what is usual
_ARTICLES = (
    "a an the and or of in on at to with for from by as is are was be it its her their this that there some one two"
    " up down over under into near next behind front his she he they who which while"
    " der die das und oder von im am auf mit zu ein eine einer einem einen ist le la les un une des de du et ou en"
    " el los las y o del con"
)
_SMALL = frozenset(_ARTICLES.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word of a folder's captions, and in how many of its images' captions it stands."""

    text: str
    num_captions: int
    num_images: int  # of the folder, with a caption

    @property
    def share(self) -> float:
        """0..1: the part of the captions that have it."""
        return self.num_captions / self.num_images


def words_by_folder(dataset: Dataset) -> dict[Path, list[Word]]:
    """The words of each folder's captions, the most frequent first; articles and the like are left out.

    A word counts once a caption, whatever its case.
    """
    known: dict[str, frozenset[str]] = {}
    counts: dict[Path, Counter[str]] = {}
    images: Counter[Path] = Counter()
    for index in range(len(dataset)):
        if dataset.error(index) is not None:
            continue
        caption = caption_text(dataset.sample(index), seed=0, epoch=0)
        if caption not in known:
            known[caption] = frozenset(word for word in words_of(caption) if word not in _SMALL)
        folder = dataset.path(index).parent
        images[folder] += 1
        counts.setdefault(folder, Counter()).update(known[caption])
    return {
        folder: [
            Word(text=text, num_captions=n, num_images=images[folder])
            for text, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
        ]
        for folder, found in counts.items()
    }


def usual_words(dataset: Dataset) -> Mapping[Path, list[Word]]:
    """The words in nearly every caption, of the folders whose captions say more than these words."""
    found: dict[Path, list[Word]] = {}
    for folder, words in words_by_folder(dataset).items():
        usual = [word for word in words if word.share >= NEARLY_ALL]
        if usual and len(usual) < len(words) and words[0].num_images >= _FEWEST:
            found[folder] = usual
    return found
