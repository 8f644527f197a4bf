"""From a step of the plan to the tensors it trains on: what a pick becomes depends on that pick alone."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from edkit.data.image import Crop
from edkit.data.plan import MicroBatch, Pick, Step
from edkit.data.sample import Sample, caption_text, drops_caption
from edkit.train.cache import View
from edkit.train.families.base import Family, Text
from edkit.train.noise import Name, normal, timestep_draws, training_noise


@dataclass(frozen=True, kw_only=True)
class Micro:
    """What the denoiser sees at once: images of one bucket. On the CPU, fp32."""

    names: tuple[Name, ...]  # (sample, epoch, occurrence): what an image's random numbers are drawn for
    samples: tuple[Sample, ...]
    captions: tuple[str, ...]  # as the model sees them, dropped ones empty
    views: tuple[View, ...]  # the files and their crops
    noisy: Tensor  # (n, C, h, w)
    target: Tensor  # (n, C, h, w)
    timesteps: Tensor  # (n,) int64
    sizes: Tensor  # (n, 6) int64, as `Family.predict` takes them
    weights: Tensor  # (n,) loss_scale times the timestep's weight
    pixel_weights: Tensor | None  # (n, 1, h, w) by the images' masks
    tokens: Text  # ids of the distinct captions (m, L)
    which: Tensor  # (n,) int64: the row of `tokens` that is each image's


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step: exactly batch_size images (fewer in the last step of all), in one or more micro-batches."""

    micros: tuple[Micro, ...]
    epoch: int
    index: int  # of the step in its epoch
    last: bool  # whether it ends the epoch

    @property
    def num_images(self) -> int:
        return sum(len(micro.samples) for micro in self.micros)

    def pinned(self) -> Batch:
        """The same in memory from which a GPU copies without waiting."""
        return replace(self, micros=tuple(_pinned(micro) for micro in self.micros))


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A step and its place in the plan."""

    step: Step
    epoch: int
    index: int
    last: bool


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What is added to the plain noise; 0 is off."""

    offset: float = 0.0
    pyramid: float = 0.0
    input_perturbation: float = 0.0


NO_MORE_NOISE = Noise()


class Loader:
    """Makes batches ahead of the loop, in threads of its own; how many there are changes no number."""

    def __init__(
        self,
        *,
        family: Family,
        sample: Callable[[int], Sample],  # dataset index -> its sample
        view: Callable[[Pick], View],
        latents: Callable[[Sequence[View]], list[Tensor]],
        seed: int,
        timesteps: tuple[int, int],  # first, and one past the last
        micro_batch_size: int | None,
        weights: Tensor | None = None,  # (T,) of each timestep
        noise: Noise = NO_MORE_NOISE,
        pixel_weights: Callable[[Sequence[Pick]], Tensor | None] | None = None,
        num_workers: int | None = None,
        pin: bool = False,
        draws: Callable[[Sequence[Name], int], Tensor] = timestep_draws,  # of names and seed
    ) -> None:
        self._family, self._view, self._latents = family, view, latents
        self._sample = lru_cache(maxsize=1 << 17)(sample)
        self._seed, self._timesteps = seed, timesteps
        self.limit, self._weights, self._noise = micro_batch_size, weights, noise
        self._pixel_weights, self._pin = pixel_weights, pin
        self._workers = num_workers or max(1, min(4, (os.cpu_count() or 1) - 1))
        self._draws = draws
        self._tokens: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._tokenizing = threading.Lock()

    def batches(self, steps: Iterator[Planned]) -> Generator[Batch, None, None]:
        """A batch for every step, in order; the next ones are made while the caller works on this one."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="edkit-loader") as pool:
            waiting = deque(pool.submit(self.batch, step) for step in islice(steps, self._workers + 1))
            try:
                while waiting:
                    batch = waiting.popleft().result()
                    waiting.extend(pool.submit(self.batch, step) for step in islice(steps, 1))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

    def batch(self, planned: Planned) -> Batch:
        """The tensors of one step."""
        micros = tuple(self._micro(picks) for micro in planned.step for picks in self._limited(micro))
        batch = Batch(micros=micros, epoch=planned.epoch, index=planned.index, last=planned.last)
        return batch.pinned() if self._pin else batch

    def _limited(self, micro: MicroBatch) -> Iterator[Sequence[Pick]]:
        picks = micro.picks
        size = self.limit or len(picks)
        for start in range(0, len(picks), size):
            yield picks[start : start + size]

    def _micro(self, picks: Sequence[Pick]) -> Micro:
        seed = self._seed
        samples = tuple(self._sample(pick.index) for pick in picks)
        names = [(s.key, pick.epoch, pick.occurrence) for s, pick in zip(samples, picks, strict=True)]
        captions = tuple(caption_seen(sample, pick, seed=seed) for sample, pick in zip(samples, picks, strict=True))
        views = [self._view(pick) for pick in picks]
        latents = torch.stack(self._latents(views)).float()
        timesteps = self._family.timesteps(self._draws(names, seed), *self._timesteps)
        _, channels, height, width = latents.shape
        more, shape = self._noise, (channels, height, width)
        noise = training_noise(shape, seed, names, offset=more.offset, pyramid=more.pyramid)
        noisy, target = self._family.noise_and_target(latents, noise, timesteps)
        if more.input_perturbation:
            # Ning et al. 2023, arXiv:2301.11706: the input carries more noise than the target owns to
            extra = noise + more.input_perturbation * normal(shape, seed, "input perturbation", names)
            noisy, _ = self._family.noise_and_target(latents, extra, timesteps)
        weights = torch.tensor([1.0 if s.options.loss_scale is None else s.options.loss_scale for s in samples])
        if self._weights is not None:
            weights = weights * self._weights[timesteps]
        distinct = list(dict.fromkeys(captions))
        rows = {caption: i for i, caption in enumerate(distinct)}
        return Micro(
            names=tuple(names),
            samples=samples,
            captions=captions,
            views=tuple(views),
            noisy=noisy,
            target=target,
            timesteps=timesteps,
            sizes=torch.tensor([picture_sizes(s, view.crop) for s, view in zip(samples, views, strict=True)]),
            weights=weights,
            pixel_weights=self._pixel_weights(picks) if self._pixel_weights else None,
            tokens=self.tokens(distinct),
            which=torch.tensor([rows[caption] for caption in captions]),
        )

    def tokens(self, captions: Sequence[str]) -> Text:
        """Token ids of captions, each tokenized once."""
        with self._tokenizing:
            return self._tokens_of(captions)

    def _tokens_of(self, captions: Sequence[str]) -> Text:
        new = [caption for caption in captions if caption not in self._tokens]
        if new:
            ids = self._family.tokenize(new)
            for i, caption in enumerate(new):
                self._tokens[caption] = {name: rows[i].clone() for name, rows in ids.items()}
        stacked = {
            name: torch.stack([self._tokens[caption][name] for caption in captions])
            for name in self._tokens[captions[0]]
        }
        while len(self._tokens) > 1 << 18:
            self._tokens.popitem(last=False)
        return stacked


def picture_sizes(sample: Sample, crop: Crop) -> tuple[int, ...]:
    """Height and width of the picture, top and left of the cut as the mirrored picture has it, its height and width."""
    left = crop.scaled_width - crop.width - crop.left if crop.flip else crop.left
    return sample.height, sample.width, crop.top, left, crop.height, crop.width


def _pinned(micro: Micro) -> Micro:
    tensors: dict[str, Any] = {
        name: value.pin_memory() for name, value in vars(micro).items() if isinstance(value, Tensor)
    }
    return replace(micro, tokens={name: ids.pin_memory() for name, ids in micro.tokens.items()}, **tensors)


def caption_seen(sample: Sample, pick: Pick, *, seed: int) -> str:
    """The caption a pick trains with: empty where it is dropped."""
    if drops_caption(sample, seed=seed, epoch=pick.epoch, occurrence=pick.occurrence):
        return ""
    return caption_text(sample, seed=seed, epoch=pick.epoch, occurrence=pick.occurrence)
