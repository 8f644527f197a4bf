"""What other trainers would have made of the same folder, beside edkit's plan: counted on the user's own files.

`ed2` are the traps that were measured in EveryDream 2's layout (each silently changed what was trained), `kohya` is
what is generally known of kohya's scripts at their defaults. What is not known is not said: a behaviour whose size
the folder can't tell has no number.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput
from edkit.data.image import look
from edkit.data.names import caption_of_stem
from edkit.data.options import SIDECAR_SUFFIXES, read_text
from edkit.data.plan import Plan
from edkit.data.sample import Sample
from edkit.data.walk import option_files

Trainer = Literal["ed2", "kohya"]
NAMES: dict[Trainer, str] = {"ed2": "EveryDream 2", "kohya": "kohya's scripts"}
_MAY_HAVE_ALPHA = frozenset({".png", ".webp", ".gif", ".tif", ".tiff", ".avif"})
_STRING_TAGS = re.compile(rb"^tags:[ \t]*(?:null|~|[^\[\s#&!|>{-])", re.MULTILINE)
_REPEATS = re.compile(r"(\d+)_(.*)")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """One thing that two trainers do differently with a folder."""

    what: str
    edkit: str
    theirs: str
    num: int  # images (or folders, or picks, as the words say) of this folder that it concerns


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A folder as another trainer would have trained it."""

    trainer: Trainer
    traps: tuple[Trap, ...]  # those that make a difference here
    same: tuple[str, ...]  # those that make none
    beyond: str  # what lies in training itself, and no folder can show


@dataclass(frozen=True, kw_only=True)
class Look:
    """A folder, read and planned."""

    whole: Dataset  # errors and all
    dataset: Dataset  # of the plan
    plan: Plan
    num_cut: int | None  # images whose caption is cut at 75 tokens; None where nothing could count them

    @cached_property
    def sidecars(self) -> list[list[Path]]:
        """The files beside each image that give its caption, strongest first."""
        return [[p for p in self.dataset.sources(i) if self._is_beside(i, p)] for i in range(len(self.dataset))]

    def _is_beside(self, i: int, source: Path) -> bool:
        image = self.dataset.path(i)
        return source != image and source.parent == image.parent and source.stem == image.stem

    def num(self, of: Callable[[int], object]) -> int:
        """How many images something holds for."""
        return sum(bool(of(i)) for i in range(len(self.dataset)))

    def num_by_options(self, of: Callable[[int], object]) -> int:
        """How many images have options (by their place in the table) for which something holds."""
        holds = np.asarray([bool(of(n)) for n in range(len(self.dataset.option_table))], np.bool_)
        return int(holds[self.dataset.option_ids].sum())

    @cached_property
    def duplicated(self) -> tuple[int, int]:
        """Picks of the first epoch, and what they become when each size's last batch is filled up."""
        size = self.plan.settings.batch_size
        picks = self.per_size
        return sum(picks), sum(-(-n // size) * size for n in picks)

    @cached_property
    def per_size(self) -> list[int]:
        """The first epoch's picks by training size."""
        found: Counter[tuple[int, int]] = Counter()
        picks = self.plan.picked(0)
        for number, n in enumerate(np.bincount(self.plan.bucket_ids[picks], minlength=len(self.plan.buckets))):
            found[self.plan.buckets[number]] += int(n)
        return [n for n in found.values() if n]


Rule = Callable[[Look], Trap | None]


def mirror(trainer: Trainer, seen: Look) -> Mirror:
    """The folder as another trainer would have trained it."""
    rules, beyond = {"ed2": (_ED2, _ED2_BEYOND), "kohya": (_KOHYA, _KOHYA_BEYOND)}[trainer]
    traps = [trap for rule in rules if (trap := rule(seen)) is not None]
    return Mirror(
        trainer=trainer,
        traps=tuple(trap for trap in traps if trap.num),
        same=tuple(trap.what for trap in traps if not trap.num),
        beyond=beyond,
    )


def _n(num: int, what: str = "image") -> str:
    plural = {"copy": "copies", "batch": "batches", "epoch": "epochs"}.get(what, f"{what}s")
    return f"{num:,} {what if num == 1 else plural}"


# ---- EveryDream 2


def _fractions(seen: Look) -> Trap:
    pools = [f for f in seen.whole.folders if f.multiply is not None and f.multiply % 1]
    expected = [f"{f.count:,} x {f.multiply:f}" for f in pools[:2]]
    return Trap(
        what="fractions of multiply",
        edkit=f"{_n(len(pools), 'folder')} ({', '.join(expected)}): exact in every epoch, each folder its own",
        theirs="one pool for all folders, early files favoured (12.6% to 6.2% by decile); 10 x 0.1 gave 0 picks,"
        " 1000 x 0.1 gave 99, 20 x 1.5 gave 25 to 33",
        num=len(pools),
    )


def _remainders(seen: Look) -> Trap:
    picks, become = seen.duplicated
    return Trap(
        what="last batch of each size",
        edkit=f"joined: {_n(picks, 'pick')} stay {picks:,}",
        theirs=f"filled up with copies: {picks:,} become {become:,} (by edkit's sizes)",
        num=become - picks,
    )


def _zero(seen: Look) -> Trap:
    num = seen.num_by_options(lambda n: seen.dataset.option_table[n].multiply == 0)
    return Trap(what="multiply 0", edkit=f"{_n(num)} left out", theirs="0 became 1: trained once an epoch", num=num)


def _shapes(seen: Look) -> Trap:
    wide, high = seen.dataset.widths, seen.dataset.heights
    num = int((np.maximum(wide, high) * 10 >= np.minimum(wide, high) * 25).sum()) if len(wide) else 0
    return Trap(
        what="shapes beyond 2.5:1",
        edkit=f"{_n(num)}: wide sizes mirror tall ones",
        theirs="not mirrored: 350x1000 and 1000x350 trained in different shapes; one size had 3.6 times the area",
        num=num,
    )


def _flips(seen: Look) -> Trap:
    num = seen.num_by_options(lambda n: seen.dataset.option_table[n].flip_p)
    return Trap(what="flip_p of folders", edkit=f"{_n(num)} mirrored at random", theirs="never reached them", num=num)


def _alpha(seen: Look) -> Trap:
    def has_alpha(i: int) -> bool:
        path = seen.dataset.path(i)
        if path.suffix.lower() not in _MAY_HAVE_ALPHA:
            return False
        try:
            return look(path)[1].has_alpha
        except BadInput:
            return False

    num = seen.num(has_alpha)
    return Trap(
        what="transparent images",
        edkit=f"{_n(num)}: composed on white",
        theirs="alpha thrown away: what the hidden pixels hold is trained",
        num=num,
    )


def _camera(seen: Look) -> Trap:
    bad = [p for p in seen.whole.errors if p.code == "camera-name"]
    caption = caption_of_stem(Path(bad[0].where).stem) if bad else ""
    return Trap(
        what="camera names",
        edkit=f"{_n(len(bad))} refused until captioned",
        theirs=f"trained under them (first: {caption!r})",
        num=len(bad),
    )


def _cut(seen: Look) -> Trap | None:
    num = seen.num_cut
    if num is None:
        return None
    told = f"{_n(num)}: cut too, but named above with what is lost"
    return Trap(what="captions over 75 tokens", edkit=told, theirs="cut without a word", num=num)


def _keep(seen: Look) -> Trap:
    options = seen.dataset.option_table
    num = seen.num_by_options(lambda n: options[n].shuffle_tags and options[n].keep_tags)
    return Trap(what="keep_tags", edkit=f"kept in {_n(num)}", theirs="always 0: all tags moved", num=num)


def _same_shuffle(seen: Look) -> Trap:
    lengths = Counter(len(sample.tags) for sample in _shuffled(seen) if len(sample.tags) > 1)
    num = sum(n for n in lengths.values() if n > 1)
    return Trap(
        what="equally many tags",
        edkit=f"{_n(num)} shuffled each its own way",
        theirs="all lists of one length got the same order",
        num=num,
    )


def _shuffled(seen: Look) -> Iterator[Sample]:
    options = seen.dataset.option_table
    on = np.asarray([bool(option.shuffle_tags) for option in options], np.bool_)
    if on.any():
        yield from (seen.dataset.sample(i) for i in np.flatnonzero(on[seen.dataset.option_ids]).tolist())


def _lost_shuffle(seen: Look) -> Trap:
    own: dict[Path, bool] = {}
    num = 0
    for sample in _shuffled(seen):
        folder = sample.path.parent
        if folder not in own:
            own[folder] = bool(option_files(folder).keys() & {"shuffle_tags.txt", "local.yaml"})
        num += sample.sources == (sample.path,) or not own[folder]
    return Trap(
        what="shuffle_tags",
        edkit=f"on for {_n(num)} by a folder above or with a file-name caption",
        theirs="lost there",
        num=num,
    )


def _overshoot(seen: Look) -> Trap:
    def over(sample: Sample) -> bool:
        limit, weighted = sample.options.max_caption_length, any(tag.weight != 1 for tag in sample.tags)
        text = ", ".join([sample.main_prompt, *(tag.text for tag in sample.tags)])
        return limit is not None and weighted and len(text) > limit

    num = sum(over(sample) for sample in _shuffled(seen))
    return Trap(
        what="max_caption_length",
        edkit=f"never exceeded ({_n(num)} with weighted tags)",
        theirs="overshot by weighted shuffling",
        num=num,
    )


def _string_tags(seen: Look) -> Trap:
    def hit(i: int) -> bool:
        return any(
            p.suffix.lower() in (".yaml", ".yml") and _STRING_TAGS.search(p.read_bytes()) for p in seen.sidecars[i]
        )

    num = seen.num(hit)
    return Trap(
        what="tags as one text in YAML",
        edkit=f"{_n(num)}: split at comma and space",
        theirs="split into letters; a null crashed",
        num=num,
    )


def _names_a_file(seen: Look) -> Trap:
    num = seen.num(lambda i: Path(seen.dataset.caption(i).text).suffix.lower() in SIDECAR_SUFFIXES)
    return Trap(
        what="captions like a file's name",
        edkit=f"{_n(num)}: trained as they read",
        theirs="if such a file was there, it was opened",
        num=num,
    )


def _marks(seen: Look) -> Trap:
    num = seen.num(lambda i: any(_starts_with_mark(path) for path in seen.sidecars[i]))
    return Trap(what="byte-order marks", edkit=f"taken off in {_n(num)}", theirs="stayed in the caption", num=num)


def _starts_with_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3).startswith(_MARKS)


def _batch_ids(seen: Look) -> Trap:
    num = 0
    for folder in seen.dataset.folders:
        name = option_files(folder.path).get("batch_id.txt")
        if name is not None and b"\n" in (folder.path / name).read_bytes():
            num += folder.count
    return Trap(what="line ends in batch_id.txt", edkit=f"taken off for {_n(num)}", theirs="part of the name", num=num)


def _empty_main(seen: Look) -> Trap:
    num = seen.num(lambda i: not seen.dataset.caption(i).text and seen.dataset.caption(i).tags)
    return Trap(what="no main prompt", edkit=f"{_n(num)}: the tags alone", theirs='began with ", "', num=num)


def _masks(seen: Look) -> Trap:
    num = seen.whole.num_masks
    return Trap(
        what="-masklabel.png (general knowledge)",
        edkit=f"{_n(num, 'mask')} of other images, not trained",
        theirs="images like others",
        num=num,
    )


def _order(seen: Look) -> Trap:
    num = len(seen.dataset.folders)
    return Trap(
        what="order of folders",
        edkit=f"{_n(num, 'folder')}, sorted: the same on every machine",
        theirs="as the file system gave them; the shuffle hung on unrelated draws",
        num=num if num > 1 else 0,
    )


_ED2: tuple[Rule, ...] = (
    *(_fractions, _remainders, _zero, _camera, _cut, _shapes, _alpha, _flips, _masks, _keep, _same_shuffle),
    *(_lost_shuffle, _overshoot, _string_tags, _names_a_file, _marks, _batch_ids, _empty_main, _order),
)
_ED2_BEYOND = (
    "in training itself: a bad config file was printed and training went on; resuming set the step back to 0 and "
    "forgot optimizer, scaler and random state; min-SNR was wrong for v-prediction; the loss was not divided by "
    "gradient accumulation, and the learning rate moved once a micro-step; SIGTERM lost the run"
)


# ---- kohya's scripts, at their defaults


def _kohya_repeats(seen: Look, i: int) -> int | None:
    """The repeats of the folder an image is in; None where no image of that folder is read."""
    folder = seen.dataset.path(i).parent
    match = _REPEATS.fullmatch(folder.name)
    return int(match[1]) if match and folder.parent == seen.dataset.root else None


def _unread(seen: Look) -> Trap:
    read = seen.num(lambda i: _kohya_repeats(seen, i) is not None)
    num = len(seen.dataset) - read
    return Trap(
        what="folders not called NUMBER_NAME",
        edkit=f"every folder is read: {_n(len(seen.dataset))}",
        theirs=f"not read, nor folders in folders: {_n(num)} missing"
        + ("" if read else " (the rows below take them as 1_NAME)"),
        num=num,
    )


def _repeats(seen: Look) -> Trap:
    picks = seen.plan.num_picks(0)
    theirs = sum(1 if (n := _kohya_repeats(seen, i)) is None else n for i in range(len(seen.dataset)))
    return Trap(
        what="how often an image comes",
        edkit=f"multiply.txt: {_n(picks, 'pick')} in the first epoch",
        theirs=f"whole repeats by the folder's name alone: {theirs:,}",
        num=abs(picks - theirs),
    )


def _folder_captions(seen: Look) -> Trap:
    num = sum(not any(p.suffix.lower() in (".txt", ".caption") for p in found) for found in seen.sidecars)
    return Trap(
        what="images without a caption file",
        edkit=f"{_n(num)}: captioned by name or YAML",
        theirs="captioned by the folder: what follows NUMBER_",
        num=num,
    )


def _txt(seen: Look) -> Trap:
    num = sum(any(p.suffix.lower() == ".txt" for p in found) for found in seen.sidecars)
    return Trap(
        what=".txt captions",
        edkit=f"{_n(num)} read by them",
        theirs="read with --caption_extension .txt; the default is .caption",
        num=num,
    )


def _lines(seen: Look) -> Trap:
    def several(i: int) -> bool:
        try:
            return any(len(read_text(p).strip().splitlines()) > 1 for p in seen.sidecars[i] if p.suffix == ".txt")
        except BadInput:
            return False

    num = seen.num(several)
    return Trap(what="captions of several lines", edkit=f"{_n(num)}: all lines", theirs="the first line", num=num)


def _options(seen: Look) -> Trap:
    num = sum(bool(option_files(folder.path)) for folder in seen.dataset.folders)
    return Trap(
        what="option files and YAML",
        edkit=f"hold for {_n(num, 'folder')}",
        theirs="not read (its own are in a dataset .toml)",
        num=num,
    )


def _short_batches(seen: Look) -> Trap:
    size = seen.plan.settings.batch_size
    short = [n % size for n in seen.per_size if n % size]
    steps = sum(-(-n // size) for n in seen.per_size)
    return Trap(
        what="last batch of each size",
        edkit=f"joined into whole steps: {len(seen.plan.epoch(0)):,} in the first epoch",
        theirs=f"trained short: {steps:,} steps, {_n(len(short), 'batch')} with {_n(sum(short))} that weigh more",
        num=len(short),
    )


def _small(seen: Look) -> Trap:
    num = len(seen.plan.small)
    how = {"smaller": "in a smaller size", "upscale": "scaled up, as asked", "leave": "left out, as asked"}
    return Trap(
        what="images smaller than their bucket",
        edkit=f"{_n(num)} {how[seen.plan.settings.small]}",
        theirs="scaled up",
        num=num,
    )


def _kohya_cut(seen: Look) -> Trap | None:
    trap = _cut(seen)
    return trap and replace(trap, theirs="cut, unless --max_token_length 150 or 225")


def _kohya_camera(seen: Look) -> Trap:
    return replace(_camera(seen), theirs="captioned by the folder, without a word")


def _kohya_alpha(seen: Look) -> Trap:
    return replace(_alpha(seen), theirs="alpha thrown away, unless --alpha_mask")


_KOHYA: tuple[Rule, ...] = (
    *(_unread, _repeats, _folder_captions, _txt, _lines, _kohya_camera, _options, _short_batches, _small),
    *(_kohya_cut, _kohya_alpha, _masks),
)
_KOHYA_BEYOND = "from general knowledge of the scripts at their defaults, not from their code"
