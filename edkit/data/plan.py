"""From samples to the steps of every epoch: purely, (dataset, settings, epoch) -> steps.

Epoch e's picks have a closed form, folder by folder, so nothing is drawn in sequence (where ratings leave images out,
earlier epochs are counted). What carries over
from one epoch to the next has one as well: how many picks is the running total modulo the batch size, and
which ones follows from that number and the earlier epoch's own picks alone. Epoch 7 therefore needs epoch
6 (and further ones only where 6 has fewer picks than a batch), never a replay from the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.image import Crop
from edkit.data.random import integer, permutation, unit
from edkit.data.sample import flips

Bucket = tuple[int, int]  # width, height in pixels
_Ints = NDArray[np.int64]
_INT64 = 2**63 - 1

_DUPLICATE = 1_000_000  # added to the occurrence of an image that `remainder="duplicate"` repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What a plan depends on besides the samples. Raises UsageError where a value makes no sense."""

    batch_size: int = 8
    resolution: int = 512
    bucket_step: int = 64  # pixels; a family of small models may state a smaller one
    max_aspect: float = 4.0
    seed: int = 555
    small: Literal["smaller", "upscale", "leave"] = "smaller"  # for images smaller than their bucket
    remainder: Literal["join", "duplicate", "drop"] = "join"
    crop: Literal["centre", "random"] = "centre"
    crops_per_image: int = 0  # random crops an image has, one drawn for each pick; 0: every pick has its own
    rated_dropout: float = 0.0  # 0..1: the part of the rated images that the last of `rated_epochs` leaves out
    rated_epochs: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch size is {self.batch_size}", mend="it must be at least 1")
        if self.seed < 0:
            raise UsageError("a plan needs a seed of 0 or more", mend="-1 is drawn once, recorded and reused")
        if self.crops_per_image < 0:
            raise UsageError(f"crops per image is {self.crops_per_image}", mend="it must not be negative")
        if not 0 <= self.rated_dropout < 1 or (self.rated_dropout and self.rated_epochs < 1):
            raise UsageError(
                f"rated dropout is {self.rated_dropout:g} over {self.rated_epochs} epochs",
                mend="it must lie from 0 up to 1, and the number of epochs must be known",
            )
        for name, known in (
            ("small", ("smaller", "upscale", "leave")),
            ("remainder", ("join", "duplicate", "drop")),
            ("crop", ("centre", "random")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}", mend=f"one of {', '.join(known)}")
        buckets(self.resolution, self.bucket_step, self.max_aspect)


@dataclass(frozen=True, slots=True)
class Pick:
    """One image in one place of an epoch; (epoch, occurrence) key its random draws, wherever it trains."""

    index: int  # into the dataset
    epoch: int  # the epoch it was drawn for; a leftover trains in the next one
    occurrence: int  # 0 for the image's first time in that epoch
    crop: Crop


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Picks of one bucket (and one `batch_id`, unless it is None)."""

    bucket: Bucket
    batch_id: str | None
    picks: tuple[Pick, ...]


Step = tuple[MicroBatch, ...]
"""One step's micro-batches: exactly `batch_size` picks together, but for the run's last step."""


def buckets(resolution: int, step: int = 64, max_aspect: float = 4.0) -> list[Bucket]:
    """The sizes images train at, from the tallest to the widest.

    Sides are multiples of `step`. But for the square, no side can grow by a step without the area exceeding
    resolution squared; the landscape sizes mirror the portrait ones. Raises UsageError where there is none.
    """
    if step < 1 or resolution < step or not 1 <= max_aspect < math.inf:
        raise UsageError(
            f"no bucket fits resolution {resolution} in steps of {step} up to {max_aspect:g}:1",
            mend=f"the resolution must be at least {step}",
        )
    area = resolution * resolution
    wide: list[Bucket] = []
    for height in range(step, resolution + 1, step):
        width = area // height // step * step
        # the same width may fit a taller bucket too: only the tallest is as near to the area as can be
        if width <= height * max_aspect and area // width // step * step == height:
            wide.append((width, height))
    square = resolution // step * step
    if (
        square,
        square,
    ) not in wide:  # resolutions between the steps: a square image keeps its shape all the same
        wide.append((square, square))
    # the narrowest last, so that the list runs from tall over square to wide
    tall = [(h, w) for w, h in wide if w != h]
    return tall + wide[::-1]


def nearest(width: int, height: int, among: Sequence[Bucket]) -> int:
    """The index of the bucket nearest to the image in log aspect; of two equally near the squarer one.

    `among` runs from tall to wide. In whole numbers, so that every machine agrees and mirrored images
    take mirrored buckets.
    """
    low, high = 0, len(among) - 1
    while low < high:
        middle = (low + high) // 2
        (w1, h1), (w2, h2) = among[middle], among[middle + 1]
        # w/h against the geometric mean of the two aspects, both sides squared
        image, border = width * width * h1 * h2, height * height * w1 * w2
        if image < border or (image == border and w1 * w2 > h1 * h2):
            high = middle
        else:
            low = middle + 1
    return low


def nearest_many(widths: _Ints, heights: _Ints, among: Sequence[Bucket]) -> _Ints:
    """`nearest` of many images: how many of the borders between neighbouring buckets each one is beyond."""
    longest = max(max(bucket) for bucket in among)
    if len(widths) and (max(int(widths.max()), int(heights.max())) * longest) ** 2 > _INT64:
        pairs = zip(widths.tolist(), heights.tolist(), strict=True)
        return np.asarray([nearest(width, height, among) for width, height in pairs], np.int64)
    wide, high = widths**2, heights**2
    found = np.zeros(len(widths), np.int64)
    for (w1, h1), (w2, h2) in pairwise(among):
        image, border = wide * (h1 * h2), high * (w1 * w2)
        found += (image > border) | ((image == border) & (w1 * w2 <= h1 * h2))
    return found


def crop_for(width: int, height: int, bucket: Bucket) -> Crop:
    """The centre crop: the image scaled until it covers the bucket, what stands over cut off evenly."""
    bucket_width, bucket_height = bucket
    if bucket_width * height >= bucket_height * width:
        scaled = (bucket_width, max(bucket_height, (height * bucket_width + width // 2) // width))
    else:
        scaled = (max(bucket_width, (width * bucket_height + height // 2) // height), bucket_height)
    return Crop(
        width=bucket_width,
        height=bucket_height,
        scaled_width=scaled[0],
        scaled_height=scaled[1],
        left=(scaled[0] - bucket_width) // 2,
        top=(scaled[1] - bucket_height) // 2,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """The images of one folder that share one multiply: what fractions are drawn from."""

    rows: _Ints
    whole: int
    numerator: int  # of the fraction
    denominator: int
    order: _Ints | None  # the seeded round that fractional picks take; None without a fraction

    def drawn_before(self, epoch: int) -> int:
        """Fractional picks of all earlier epochs: floor(n * f * epoch), exactly."""
        return len(self.rows) * self.numerator * epoch // self.denominator

    def picks_before(self, epoch: int) -> int:
        return self.whole * len(self.rows) * epoch + self.drawn_before(epoch)


@dataclass(frozen=True, slots=True)
class _Own:
    """One epoch's own picks, batched.

    All are positions into (index, occurrence).
    """

    index: _Ints
    occurrence: _Ints
    full: _Ints  # (F, B)
    full_key: _Ints  # (F,): bucket * num_batch_ids + batch id
    fill: _Ints  # joins what the last epoch left
    joined: _Ints  # (J, B)
    left: _Ints  # opens the next epoch


class Plan:
    """Every epoch's steps of a dataset. Made once; holds no state that its answers depend on.

    Raises BadInput where images have no known size (unreadable, or read with `sizes=False`) or none is
    left to train.
    """

    def __init__(self, dataset: Dataset, settings: PlanSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self.buckets: list[Bucket] = []  # all in use or usable, of every level of resolution
        self._level: NDArray[np.int8]
        self._leave: NDArray[np.bool_]
        multiply = [o.multiply for o in dataset.option_table]
        zero = np.asarray([m == 0 for m in multiply], np.bool_)
        off = zero[dataset.option_ids] if len(dataset) else np.zeros(0, np.bool_)
        unknown = np.flatnonzero((dataset.widths == 0) & ~off)
        if len(unknown):
            raise BadInput(
                f"{len(unknown)} images have no known size",
                where=str(dataset.path(int(unknown[0]))),
                mend="read the data root with sizes, and leave out what can't be read",
            )
        self._assign_buckets(off)
        names = sorted({o.batch_id for o in dataset.option_table if o.batch_id is not None})
        self._batch_ids: list[str | None] = [None, *names]
        number = {name: i for i, name in enumerate(self._batch_ids)}
        of_option = np.asarray([number[o.batch_id] for o in dataset.option_table], np.int64)
        batch = of_option[dataset.option_ids] if len(dataset) else np.zeros(0, np.int64)
        self._key: _Ints = self._bucket.astype(np.int64) * len(self._batch_ids) + batch
        self._make_groups(~off & ~self._leave)
        ratings = np.asarray([np.nan if o.rating is None else o.rating for o in dataset.option_table], np.float64)
        of_image = ratings[dataset.option_ids] if settings.rated_dropout else np.full(len(dataset), np.nan)
        self._rated: _Ints = np.flatnonzero(~np.isnan(of_image) & self._trains)
        self._ratings = of_image[self._rated]
        self._num_picks: dict[int, int] = {}
        self._own_memo: dict[int, _Own] = {}

    # -- what a plan says of the images

    def bucket(self, i: int) -> Bucket:
        """The size at which the i-th image trains."""
        return self.buckets[int(self._bucket[i])]

    def crop(self, i: int, *, epoch: int = 0, occurrence: int = 0) -> Crop:
        """How the i-th image is scaled, cut and (by its flip_p) mirrored in this pick."""
        crop, seed = self._centre(i), self.settings.seed
        if self.settings.crop == "random":
            key, num = self.dataset.key(i), self.settings.crops_per_image
            which = (integer(num, seed, "which crop", key, epoch, occurrence),) if num else (epoch, occurrence)
            crop = self._moved(crop, key, which)
        if self.dataset.options(i).flip_p:
            flip = flips(self.dataset.sample(i), seed=seed, epoch=epoch, occurrence=occurrence)
            crop = replace(crop, flip=flip)
        return crop

    def crops(self, i: int) -> list[Crop] | None:
        """Every crop that the i-th image can have in any pick, each once; None where each pick draws its own."""
        crops = [self._centre(i)]
        if self.settings.crop == "random":
            if not self.settings.crops_per_image:
                return None
            key = self.dataset.key(i)
            crops = [self._moved(crops[0], key, (n,)) for n in range(self.settings.crops_per_image)]
        probability = self.dataset.options(i).flip_p or 0.0
        ways = [flip for flip, there in ((False, probability < 1), (True, probability > 0)) if there]
        return list(dict.fromkeys(replace(crop, flip=flip) for crop in crops for flip in ways))

    def _centre(self, i: int) -> Crop:
        return crop_for(int(self.dataset.widths[i]), int(self.dataset.heights[i]), self.bucket(i))

    def _moved(self, crop: Crop, key: str, which: tuple[int, ...]) -> Crop:
        seed = self.settings.seed
        left = integer(crop.scaled_width - crop.width + 1, seed, "crop", key, *which, "x")
        top = integer(crop.scaled_height - crop.height + 1, seed, "crop", key, *which, "y")
        return replace(crop, left=left, top=top)

    @property
    def bucket_ids(self) -> NDArray[np.int32]:
        """(n,): where each image's size stands in `buckets`."""
        return self._bucket

    @property
    def trains(self) -> NDArray[np.bool_]:
        """(n,): whether each image trains in some epoch."""
        return self._trains

    def cuts(self) -> NDArray[np.float64]:
        """(n,): the part (0..1) of each image's area that its crop cuts off; of `crop_for`, image by image."""
        wide, high = self.dataset.widths.astype(np.int64), self.dataset.heights.astype(np.int64)
        wide, high = np.maximum(wide, 1), np.maximum(high, 1)  # what does not train may have no size
        bucket_wide, bucket_high = np.asarray(self.buckets, np.int64)[self._bucket].T
        by_width = bucket_wide * high >= bucket_high * wide
        scaled_high = np.maximum(bucket_high, (high * bucket_wide + wide // 2) // wide)
        scaled_wide = np.maximum(bucket_wide, (wide * bucket_high + high // 2) // high)
        scaled = np.where(by_width, bucket_wide * scaled_high, scaled_wide * bucket_high)
        return np.asarray(1 - bucket_wide * bucket_high / scaled)

    @property
    def bucket_counts(self) -> dict[Bucket, int]:
        """How many images train at each size, tall ones first."""
        used = self._bucket[self._trains]
        counts: dict[Bucket, int] = {}
        # two levels of resolution may hold a bucket of the same size
        for bucket, n in zip(self.buckets, np.bincount(used, minlength=len(self.buckets)), strict=True):
            if n:
                counts[bucket] = counts.get(bucket, 0) + int(n)
        return counts

    @property
    def small(self) -> list[int]:
        """Images smaller than their bucket at the full resolution."""
        return np.flatnonzero(self._level != 0).tolist()

    @property
    def left_out(self) -> list[tuple[int, str]]:
        """Images that train in no epoch, and why."""
        return [
            (int(i), "smaller than its bucket" if self._leave[i] else "multiply is 0")
            for i in np.flatnonzero(~self._trains)
        ]

    @property
    def problems(self) -> list[Problem]:
        """Warnings about images that the plan treats specially: small ones, and extreme aspects."""
        found = []
        treated = {
            "smaller": "it trains at {}",
            "upscale": "it is scaled up to {}",
            "leave": "it is left out",
        }
        limit = self.settings.max_aspect
        wide, high, small = self.dataset.widths, self.dataset.heights, self.small
        sizes = zip(wide[small].tolist(), high[small].tolist(), self._bucket[small].tolist(), strict=True)
        for i, (width, height, bucket) in zip(small, sizes, strict=True):
            what = f"{width} x {height} is smaller than its bucket"
            treatment = treated[self.settings.small].format("{} x {}".format(*self.buckets[bucket]))
            found.append(self._warning("small-image", i, f"{what}: {treatment}", "find a larger copy"))
        beyond = (np.maximum(wide, high) > np.minimum(wide, high) * limit) & self._trains
        for i in np.flatnonzero(beyond).tolist():
            crop = crop_for(int(wide[i]), int(high[i]), self.bucket(i))
            shown = crop.width * crop.height / (crop.scaled_width * crop.scaled_height)
            what = f"{wide[i]} x {high[i]} is beyond {limit:g}:1; only {shown:.0%} of it is seen"
            found.append(self._warning("extreme-aspect", i, what, "crop it"))
        return found

    def _warning(self, code: str, i: int, what: str, mend: str) -> Problem:
        return Problem(level="warning", code=code, where=self.dataset.where(i), what=what, mend=mend)

    # -- epochs

    def epoch(self, epoch: int, *, last: bool = False) -> Epoch:
        """The steps of an epoch, the same whichever epochs were asked for before.

        `last`: it is the run's last one, so that what is left trains as one short step.
        """
        if epoch < 0:
            raise UsageError(f"there is no epoch {epoch}")
        return Epoch(self, epoch, last=last)

    def num_picks(self, epoch: int) -> int:
        """Picks drawn for the epoch (its leftover trains in the next one)."""
        return self._total(epoch + 1) - self._total(epoch)

    def picked(self, epoch: int) -> _Ints:
        """The images drawn for the epoch, in no order that means anything; one comes as often as it is picked."""
        return self._picks(epoch)[0]

    def left_out_by_rating(self, epoch: int) -> _Ints:
        """The rated images that this epoch leaves out: none in the first, `rated_dropout` of them from the last on,
        evenly more between, in exact numbers.

        Which ones is drawn anew in each epoch. An image stays in proportion to its rating: the kept ones are a
        weighted draw without replacement (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir"),
        and one that is rated 0 or less is left out first. Images without a rating always train.
        """
        s = self.settings
        share = Fraction(str(s.rated_dropout)) * Fraction(min(epoch, s.rated_epochs - 1), max(1, s.rated_epochs - 1))
        num = math.floor(len(self._rated) * share) if len(self._rated) else 0
        if num <= 0:
            return np.zeros(0, np.int64)
        draws = np.asarray([unit(s.seed, "rating", self.dataset.key(i), epoch) for i in self._rated.tolist()])
        # exponential races: the smaller, the sooner in the draw
        place = np.where(self._ratings > 0, -np.log1p(-draws) / np.maximum(self._ratings, 1e-300), np.inf)
        return self._rated[np.lexsort((draws, place))[len(place) - num :]]

    def picks_by_folder(self, epoch: int) -> dict[Path, int]:
        """How many picks each folder gives the epoch; folders that give none are there as 0."""
        found = {folder.path: 0 for folder in self.dataset.folders}
        if len(self._rated):
            counts = np.bincount(self.dataset.folder_ids[self._picks(epoch)[0]], minlength=len(found))
            return dict(zip(found, counts.tolist(), strict=True))
        for group in self._groups:
            path = self.dataset.path(int(group.rows[0])).parent
            found[path] += group.picks_before(epoch + 1) - group.picks_before(epoch)
        return found

    def first_step(self, epoch: int) -> int:
        """The number of steps in all earlier epochs."""
        if self.settings.remainder == "join":
            return self._total(epoch) // self.settings.batch_size
        return sum(len(self.epoch(e).steps) for e in range(epoch))

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of so many epochs, the last short one counted."""
        if self.settings.remainder == "join":
            return -(-self._total(epochs) // self.settings.batch_size)
        return self.first_step(epochs)

    # -- how it is made

    def _assign_buckets(self, off: NDArray[np.bool_]) -> None:
        s, ds = self.settings, self.dataset
        levels = [buckets(s.resolution, s.bucket_step, s.max_aspect)]
        if s.small == "smaller":
            parts = (s.resolution * 3 // 4, s.resolution // 2)
            levels += [buckets(part, s.bucket_step, s.max_aspect) for part in parts if part >= s.bucket_step]
        starts = [0]
        for level in levels:
            starts.append(starts[-1] + len(level))
        self.buckets = [bucket for level in levels for bucket in level]
        sizes = ds.widths.astype(np.int64) << 32 | ds.heights
        unique, inverse = np.unique(sizes, return_inverse=True)
        chosen = np.zeros(len(unique), np.int32)
        small = np.zeros(len(unique), np.int8)
        open_ = np.flatnonzero(unique >> 32)  # sizes that no level has taken yet
        for depth, level in enumerate(levels):
            wide, high = unique[open_] >> 32, unique[open_] & 0xFFFFFFFF
            at = nearest_many(wide, high, level)
            chosen[open_] = starts[depth] + at
            least = np.asarray(level)[at]  # (n, 2)
            fits = (wide >= least[:, 0]) & (high >= least[:, 1])
            open_ = open_[~fits]
            small[open_] = depth + 1
        self._bucket: NDArray[np.int32] = chosen[inverse]
        self._level = np.where(off, 0, small[inverse]).astype(np.int8)
        self._leave = (self._level != 0) & (s.small == "leave")
        self._trains: NDArray[np.bool_] = ~off & ~self._leave

    def _make_groups(self, trains: NDArray[np.bool_]) -> None:
        ds = self.dataset
        values = sorted({o.multiply for o in ds.option_table if o.multiply})
        number = {value: i for i, value in enumerate(values)}
        of_option = np.asarray([number.get(o.multiply, 0) for o in ds.option_table], np.int64)  # type: ignore[arg-type]
        rows = np.flatnonzero(trains)
        folder, value = ds.folder_ids[rows].astype(np.int64), of_option[ds.option_ids[rows]]
        key = folder * max(1, len(values)) + value
        order = np.argsort(key, kind="stable")
        self._groups: list[_Group] = []
        for part in np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(rows) else []:
            multiply = values[int(value[part[0]])]
            numerator, denominator = multiply.as_integer_ratio()
            whole, numerator = divmod(numerator, denominator)
            # by the folder's name and not its number: another folder beside it changes nothing here
            name = ds.key(int(rows[part[0]])).rpartition("/")[0]
            drawn = permutation(len(part), self.settings.seed, "fraction", name, str(multiply.normalize()))
            self._groups.append(
                _Group(rows[part].astype(np.int64), whole, numerator, denominator, drawn if numerator else None)
            )
        if not self._groups:
            raise BadInput("no image is left to train on", where=str(ds.root))
        self._whole_index = np.concatenate([np.repeat(g.rows, g.whole) for g in self._groups])
        self._whole_occurrence = np.concatenate(
            [np.tile(np.arange(g.whole, dtype=np.int64), len(g.rows)) for g in self._groups]
        )

    def _total(self, epoch: int) -> int:
        """Picks of all epochs before this one."""
        if not len(self._rated):
            return sum(group.picks_before(epoch) for group in self._groups)
        for e in range(len(self._num_picks), epoch):
            self._num_picks[e] = len(self._picks(e)[0])
        return sum(self._num_picks[e] for e in range(epoch))

    def _picks(self, epoch: int) -> tuple[_Ints, _Ints]:
        """(index, occurrence) of the epoch's own picks."""
        index, occurrence = [self._whole_index], [self._whole_occurrence]
        for group in self._groups:
            if group.order is None:
                continue
            places = np.arange(group.drawn_before(epoch), group.drawn_before(epoch + 1)) % len(group.rows)
            index.append(group.rows[group.order[places]])
            occurrence.append(np.full(len(places), group.whole, np.int64))
        images, times = np.concatenate(index), np.concatenate(occurrence)
        out = self.left_out_by_rating(epoch)
        stays = ~np.isin(images, out) if len(out) else slice(None)
        return images[stays], times[stays]

    def _own(self, epoch: int) -> _Own:
        if epoch not in self._own_memo:
            if len(self._own_memo) >= 3:  # a million images' epoch takes some 50 MB
                self._own_memo.pop(next(iter(self._own_memo)))
            self._own_memo[epoch] = self._batch(epoch)
        return self._own_memo[epoch]

    def _batch(self, epoch: int) -> _Own:
        """Group the epoch's own picks: full micro-batches first, then what all buckets leave, joined."""
        s, num_ids = self.settings, len(self._batch_ids)
        size = s.batch_size
        index, occurrence = self._picks(epoch)
        none = np.zeros(0, np.int64)
        if not len(index):
            blocks = none.reshape(0, size)
            return _Own(index=none, occurrence=none, full=blocks, full_key=none, fill=none, joined=blocks, left=none)
        order = permutation(len(index), s.seed, "order", epoch)
        full: list[_Ints] = []
        full_key: list[_Ints] = []

        def take_full(picks: _Ints, key: int) -> _Ints:
            """Cut full micro-batches off; gives back the remainder."""
            num = len(picks) // size
            if num:
                full.append(picks[: num * size].reshape(num, size))
                full_key.append(np.full(num, key, np.int64))
            return picks[num * size :]

        unnamed: dict[int, list[_Ints]] = {}
        key_of = self._key[index[order]]
        by_key = order[np.argsort(key_of, kind="stable")]
        keys, starts = np.unique(np.sort(key_of), return_index=True)
        for key, picks in zip(keys.tolist(), np.split(by_key, starts[1:]), strict=True):
            named = key % num_ids != 0
            # what is left of a named batch goes on without its name
            unnamed.setdefault(key // num_ids, []).append(take_full(picks, key) if named else picks)
        rest: list[_Ints] = []
        found = sorted(unnamed)
        for b in (found[i] for i in permutation(len(found), s.seed, "remainders", epoch)):
            picks = np.concatenate(unnamed[b])
            left = take_full(picks, b * num_ids)
            if s.remainder == "duplicate" and len(left):
                again = np.resize(picks, size - len(left))
                twice = occurrence[again] + _DUPLICATE * (1 + np.arange(len(again)) // len(picks))
                extra = np.arange(len(index), len(index) + len(again))
                index, occurrence = np.concatenate([index, index[again]]), np.concatenate([occurrence, twice])
                take_full(np.concatenate([left, extra]), b * num_ids)
            elif s.remainder == "join":
                rest.append(left)
        blocks = np.concatenate(full) if full else none.reshape(0, size)
        block_keys = np.concatenate(full_key) if full_key else none
        remainder = np.concatenate(rest) if rest else none
        carried = self._total(epoch) % size if s.remainder == "join" else 0
        wanted = min(size - carried if carried else 0, len(index))
        if len(remainder) < wanted:
            # too few to complete the step that the last epoch's leftover opens: undo one micro-batch
            plain = np.flatnonzero(block_keys % num_ids == 0)
            undone = int(plain[-1]) if len(plain) else len(blocks) - 1
            remainder = np.concatenate([remainder, blocks[undone]])
            blocks, block_keys = np.delete(blocks, undone, axis=0), np.delete(block_keys, undone)
        fill, remainder = remainder[:wanted], remainder[wanted:]
        if carried + len(fill) < size and carried:
            # the epoch is smaller than what is missing: all of it waits
            fill, remainder = none, np.concatenate([fill, remainder])
        num = len(remainder) // size
        return _Own(
            index=index,
            occurrence=occurrence,
            full=blocks,
            full_key=block_keys,
            fill=fill,
            joined=remainder[: num * size].reshape(num, size),
            left=remainder[num * size :],
        )

    def _carried(self, epoch: int) -> list[tuple[int, int, int]]:
        """(index, epoch, occurrence) of what earlier epochs left to open this one, oldest first."""
        if self.settings.remainder != "join":
            return []
        wanted = self._total(epoch) % self.settings.batch_size
        found: list[tuple[int, int, int]] = []
        while wanted:
            epoch -= 1
            if self.num_picks(epoch) == 0:
                continue
            own = self._own(epoch)
            left = own.left[:wanted]
            found[:0] = [(int(own.index[p]), epoch, int(own.occurrence[p])) for p in left]
            wanted -= len(left)
        return found


class Epoch:
    """One epoch of a plan; its steps are made as they are asked for."""

    def __init__(self, plan: Plan, number: int, *, last: bool) -> None:
        self.plan, self.number = plan, number
        own, size = plan._own(number), plan.settings.batch_size
        self._own = own
        carried = plan._carried(number)
        # positions from len(own.index) on are the carried ones
        self._index = np.concatenate([own.index, np.asarray([c[0] for c in carried], np.int64)])
        self._epoch = np.concatenate(
            [np.full(len(own.index), number, np.int64), np.asarray([c[1] for c in carried], np.int64)]
        )
        self._occurrence = np.concatenate([own.occurrence, np.asarray([c[2] for c in carried], np.int64)])
        waiting = np.arange(len(own.index), len(self._index))
        mixed: list[_Ints] = []
        self._opening = 0
        if len(waiting) and len(waiting) + len(own.fill) == size:
            mixed.append(np.concatenate([waiting, own.fill]))
            waiting, self._opening = waiting[:0], 1
        mixed += list(own.joined)
        leftover = np.concatenate([waiting, own.left])
        self._closing = 0
        if last and len(leftover):
            mixed.append(leftover)
            leftover, self._closing = leftover[:0], 1
        self._mixed = mixed
        self.num_left = len(leftover)
        """Picks that open the next epoch."""
        # the opening step stands first, the short one last, those between in any order
        between = len(own.full) + len(mixed) - self._opening - self._closing
        self._order = permutation(between, plan.settings.seed, "steps", number)

    @property
    def steps(self) -> Steps:
        """The epoch's steps, in the order they train."""
        return Steps(self)

    @property
    def num_picks(self) -> int:
        """Picks that train in this epoch."""
        return int(self._own.full.size) + sum(len(picks) for picks in self._mixed)

    @property
    def num_mixed(self) -> int:
        """Steps that join images of several buckets."""
        sizes = (self.plan.bucket_ids[self._index[picks]] for picks in self._mixed)
        return sum(bool((of != of[0]).any()) for of in sizes)

    def __len__(self) -> int:
        return len(self._order) + self._opening + self._closing

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def indices(self) -> list[_Ints]:
        """The images of every step, as indices into the dataset (faster than walking the picks)."""
        return [self._index[self._positions(n)[0]] for n in range(len(self))]

    def _positions(self, n: int) -> tuple[_Ints, int | None]:
        """A step's picks, and their key where they make one full micro-batch."""
        if self._opening and n == 0:
            return self._mixed[0], None
        if self._closing and n == len(self) - 1:
            return self._mixed[-1], None
        at = int(self._order[n - self._opening])
        if at < len(self._own.full):
            return self._own.full[at], int(self._own.full_key[at])
        return self._mixed[at - len(self._own.full) + self._opening], None

    def step(self, n: int) -> Step:
        """The n-th step."""
        positions, key = self._positions(n)
        plan = self.plan
        if key is not None:
            bucket, batch = divmod(key, len(plan._batch_ids))
            return (self._micro_batch(bucket, plan._batch_ids[batch], positions),)
        of = plan._bucket[self._index[positions]]
        # by first appearance, so that the opening step begins with what waited longest
        found = dict.fromkeys(of.tolist())
        return tuple(self._micro_batch(bucket, None, positions[of == bucket]) for bucket in found)

    def _micro_batch(self, bucket: int, batch_id: str | None, positions: _Ints) -> MicroBatch:
        picks = []
        for p in positions.tolist():
            index, epoch, occurrence = int(self._index[p]), int(self._epoch[p]), int(self._occurrence[p])
            crop = self.plan.crop(index, epoch=epoch, occurrence=occurrence)
            picks.append(Pick(index, epoch, occurrence, crop))
        return MicroBatch(self.plan.buckets[bucket], batch_id, tuple(picks))


class Steps(Sequence[Step]):
    """An epoch's steps as a sequence; each is made when it is asked for."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._epoch)

    @overload
    def __getitem__(self, n: int) -> Step: ...

    @overload
    def __getitem__(self, n: slice) -> list[Step]: ...

    def __getitem__(self, n: int | slice) -> Step | list[Step]:
        if isinstance(n, slice):
            return [self._epoch.step(i) for i in range(*n.indices(len(self)))]
        if not -len(self) <= n < len(self):
            raise IndexError(f"step {n} of {len(self)}")
        return self._epoch.step(n % len(self))
