"""From a step of the plan to the tensors it trains on: what a pick becomes depends on that pick alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from edkit.data.image import Crop
from edkit.data.plan import MicroBatch, Pick, Step
from edkit.data.random import unit
from edkit.data.sample import Sample, caption_text, drops_caption
from edkit.train.cache import View
from edkit.train.families.base import Family, Text
from edkit.train.noise import Name, normal, training_noise

_ENCODE_BATCH = 8
_TEXT_BYTES = 1 << 31


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
    """Makes batches one step ahead of the loop, in a thread of its own."""

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
    ) -> None:
        self._family, self._view, self._latents = family, view, latents
        self._sample = lru_cache(maxsize=1 << 17)(sample)
        self._seed, self._timesteps = seed, timesteps
        self.limit, self._weights, self._noise = micro_batch_size, weights, noise
        self._tokens: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def batches(self, steps: Iterator[Planned]) -> Generator[Batch, None, None]:
        """A batch for every step, in order; the next one is made while the caller works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="edkit-loader") as pool:
            waiting = [pool.submit(self.batch, step) for _, step in zip(range(2), steps, strict=False)]
            try:
                while waiting:
                    batch = waiting.pop(0).result()
                    waiting.extend(pool.submit(self.batch, step) for _, step in zip(range(1), steps, strict=False))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

    def batch(self, planned: Planned) -> Batch:
        """The tensors of one step."""
        micros = tuple(self._micro(picks) for micro in planned.step for picks in self._limited(micro))
        return Batch(micros=micros, epoch=planned.epoch, index=planned.index, last=planned.last)

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
        draws = torch.tensor([unit(seed, "timestep", *name) for name in names], dtype=torch.float64)
        timesteps = self._family.timesteps(draws, *self._timesteps)
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
            tokens=self.tokens(distinct),
            which=torch.tensor([rows[caption] for caption in captions]),
        )

    def tokens(self, captions: Sequence[str]) -> Text:
        """Token ids of captions, each tokenized once."""
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


class TextStates:
    """What a frozen text encoder makes of captions, kept in memory up to a limit.

    Encoded in padded batches of one size: a caption has the same states, to the bit, whoever stood beside it.
    """

    def __init__(self, family: Family, device: torch.device, *, memory_bytes: int = _TEXT_BYTES) -> None:
        self._family, self._device, self._limit = family, device, memory_bytes
        self._kept: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    @torch.no_grad()
    def states(self, tokens: Text) -> Text:
        """States of each row of token ids, on the device."""
        keys = [
            b"".join(ids[i].numpy().tobytes() for ids in tokens.values())
            for i in range(len(next(iter(tokens.values()))))
        ]
        got = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [i for i, key in enumerate(keys) if key not in got]
        for start in range(0, len(missing), _ENCODE_BATCH):
            some = missing[start : start + _ENCODE_BATCH]
            padded = torch.tensor(some + [some[-1]] * (_ENCODE_BATCH - len(some)))
            states = self._family.encode_text({name: ids[padded].to(self._device) for name, ids in tokens.items()})
            for n, i in enumerate(some):
                got[keys[i]] = {name: value[n].clone() for name, value in states.items()}
                self._keep(keys[i], got[keys[i]])
        first = got[keys[0]]
        return {name: torch.stack([got[key][name] for key in keys]) for name in first}

    def _keep(self, key: bytes, states: dict[str, Tensor]) -> None:
        self._kept[key] = states
        self._bytes += sum(t.numel() * t.element_size() for t in states.values())
        while self._bytes > self._limit and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(t.numel() * t.element_size() for t in old.values())


def picture_sizes(sample: Sample, crop: Crop) -> tuple[int, ...]:
    """Height and width of the picture, top and left of the cut as the mirrored picture has it, its height and width."""
    left = crop.scaled_width - crop.width - crop.left if crop.flip else crop.left
    return sample.height, sample.width, crop.top, left, crop.height, crop.width


def caption_seen(sample: Sample, pick: Pick, *, seed: int) -> str:
    """The caption a pick trains with: empty where it is dropped."""
    if drops_caption(sample, seed=seed, epoch=pick.epoch, occurrence=pick.occurrence):
        return ""
    return caption_text(sample, seed=seed, epoch=pick.epoch, occurrence=pick.occurrence)
