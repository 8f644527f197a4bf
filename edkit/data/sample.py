"""A sample: what the folder says about one image, and the caption that the model sees of it.

Nothing here reads a file. The draws (tag order, dropout, flip) are pure functions of the sample's key, the
seed, the epoch and the occurrence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Literal

from edkit.data.random import unit

CaptionStyle = Literal["tags", "prose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an image trains; None where nobody said. `over` lays a stronger word over a weaker one."""

    multiply: Decimal | None = None  # copies an epoch; the fraction is drawn anew in each
    cond_dropout: float | None = None  # 0..1: how often the caption is left empty
    flip_p: float | None = None  # 0..1: how often the image is mirrored
    shuffle_tags: bool | None = None
    keep_tags: int | None = None  # so many tags after the main prompt stay in place
    batch_id: str | None = None  # images of one name share batches
    loss_scale: float | None = None
    max_caption_length: int | None = None  # characters
    rating: float | None = None
    caption_style: CaptionStyle | None = None  # "prose": commas do not make tags

    def over(self, weaker: Options) -> Options:
        """These options, and the weaker ones where these say nothing."""
        if self is NOTHING_SAID:
            return weaker
        if weaker is NOTHING_SAID:
            return self
        said = {name: getattr(self, name) for name in OPTION_NAMES}
        return Options(**{k: getattr(weaker, k) if v is None else v for k, v in said.items()})


OPTION_NAMES = tuple(field.name for field in fields(Options))
NOTHING_SAID = Options()
DEFAULTS = Options(
    multiply=Decimal(1),
    cond_dropout=0.04,
    flip_p=0.0,
    shuffle_tags=False,
    keep_tags=0,
    loss_scale=1.0,
    caption_style="tags",
)
"""What holds where neither the folder nor the command line says anything."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag; a heavier one stands, or is drawn, further to the front."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A caption as its sources gave it.

    Where `verbatim`, `text` is one source's whole text, which is split into main prompt and tags only when
    tags must move; else `text` is the main prompt alone and `tags` stand beside it, joined from all
    sources.
    """

    text: str
    tags: tuple[Tag, ...] = ()
    verbatim: bool = True

    def split(self, style: CaptionStyle = "tags") -> tuple[str, tuple[Tag, ...]]:
        """Main prompt and tags; a verbatim text is cut at comma plus space, unless it is prose."""
        if not self.verbatim:
            return self.text, self.tags
        if style == "prose":
            return self.text, ()
        return split_text(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as the folder describes it; `options` are resolved down to the defaults."""

    key: str  # path below the data root, "/"-separated, NFC: the image's name in every random draw
    path: Path
    caption: Caption
    options: Options
    sources: tuple[Path, ...]  # the files that gave the caption, strongest first; the image itself for its name
    width: int  # pixels, as seen upright; 0 where not probed
    height: int
    mask: Path | None = None  # OneTrainer's `-masklabel.png` beside it

    @property
    def main_prompt(self) -> str:
        """What leads the caption (all of it where it is prose)."""
        return self.caption.split(self.options.caption_style or "tags")[0]

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The tags in their order of mention."""
        return self.caption.split(self.options.caption_style or "tags")[1]


def split_text(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A text cut at comma plus space: the first piece is the main prompt, the others are tags, each once.

    "a crowd, 10,000 people" -> "a crowd", ("10,000 people",).
    """
    main, *rest = text.split(", ")
    pieces = dict.fromkeys(piece for raw in rest if (piece := raw.strip().rstrip(",").rstrip()))
    return main.strip().rstrip(","), tuple(Tag(piece) for piece in pieces)


def caption_text(sample: Sample, *, seed: int, epoch: int, occurrence: int = 0) -> str:
    """What the model sees of this pick (where the caption is not dropped).

    Verbatim unless tags are shuffled, weighted, joined or limited. Unshuffled tags stand by falling weight;
    shuffling keeps the main prompt and `keep_tags` after it, and draws the others to the front in
    proportion to their weight. `max_caption_length` is never exceeded: tags that don't fit are left out
    whole.
    """
    caption, options = sample.caption, sample.options
    limit = options.max_caption_length
    if caption.verbatim and not options.shuffle_tags and (limit is None or len(caption.text) <= limit):
        return caption.text
    main, said = caption.split(options.caption_style or "tags")
    tags = sorted(said, key=lambda tag: -tag.weight)  # stable: equal weights keep their order
    if options.shuffle_tags:
        keep = options.keep_tags or 0

        def place(i: int) -> float:
            # exponential races: the smallest of E/weight comes first in proportion to the weights
            u = unit(seed, "tags", sample.key, epoch, occurrence, i)
            weight = tags[i].weight
            return -math.log1p(-u) / weight if weight > 0 else math.inf

        order = sorted(range(keep, len(tags)), key=lambda i: (place(i), i))
        tags = tags[:keep] + [tags[i] for i in order]
    return _joined(main, [tag.text for tag in tags], limit)


def _joined(main: str, tags: list[str], limit: int | None) -> str:
    if limit is not None and len(main) > limit:
        cut = main[: limit + 1]
        # at a word where there is one; the limit holds in any case
        main = (cut[: cut.rfind(" ")] if " " in cut[1:] else main[:limit]).rstrip(" ,")
    text = main
    for tag in tags:
        longer = f"{text}, {tag}" if text else tag
        if limit is None or len(longer) <= limit:
            text = longer
    return text


def drops_caption(sample: Sample, *, seed: int, epoch: int, occurrence: int = 0) -> bool:
    """Whether this pick trains with an empty caption (`cond_dropout`)."""
    return unit(seed, "cond_dropout", sample.key, epoch, occurrence) < (sample.options.cond_dropout or 0.0)


def flips(sample: Sample, *, seed: int, epoch: int, occurrence: int = 0) -> bool:
    """Whether this pick is mirrored left to right (`flip_p`)."""
    return unit(seed, "flip", sample.key, epoch, occurrence) < (sample.options.flip_p or 0.0)
