"""The loss that stands still while the weights move: every image with its own fixed noise, timesteps, crop and
caption, so that two numbers differ by what was learned and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from edkit.data.plan import Bucket, Plan, crop_for
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Sample, caption_text
from edkit.train.cache import View
from edkit.train.families.base import DTYPES, Family, need_precision
from edkit.train.loader import picture_sizes
from edkit.train.losses import image_losses
from edkit.train.noise import normal
from edkit.train.texts import TextStates
from edkit.train.watch import Folders, means, quarter

_AHEAD = 16  # images whose latents are asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSample:
    """One image with nothing left to chance: its centre crop, never mirrored, and its whole caption, unshuffled."""

    key: str
    caption: str
    view: View
    sizes: tuple[int, ...]  # (6,) as `Family.predict` takes them


@dataclass(frozen=True, kw_only=True)
class StableLosses:
    """The plain squared error of each image at each timestep."""

    timesteps: Tensor  # (T,) int64, the same for all images
    losses: Tensor  # (N, T) float64, on the CPU, in the order of the samples

    @property
    def mean(self) -> float:
        """Over all images and timesteps; NaN of no image."""
        return float(self.losses.mean())


def fixed_sample(sample: Sample, *, content_id: str, bucket: Bucket) -> FixedSample:
    """How `stable_losses` sees a sample: `bucket` is where the plan puts it, `content_id` the SHA-256 of its file."""
    still = replace(sample, options=replace(sample.options, shuffle_tags=False))
    crop = crop_for(sample.width, sample.height, bucket)
    return FixedSample(
        key=sample.key,
        caption=caption_text(still, seed=0, epoch=0),
        view=View(path=sample.path, content_id=content_id, crop=crop),
        sizes=picture_sizes(sample, crop),
    )


@torch.no_grad()
def stable_losses(
    family: Family,
    samples: Sequence[FixedSample],
    latents: Callable[[Sequence[View]], list[Tensor]],
    *,
    device: torch.device,
    num_timesteps: int = 4,
    timesteps: tuple[int, int] | None = None,
    seed: int = 555,
    precision: str = "fp32",
    rows: int | None = None,
    texts: TextStates | None = None,
    what: str = "validating",
    progress: Progress = SILENT,
) -> StableLosses:
    """The loss (mean squared error, no weights) of the family's weights as they stand, of each sample at
    `num_timesteps` timesteps: the middles of equal parts of `timesteps` (first, and one past the last; None: all
    of the model's), so 4 of them are one a quarter.

    The same weights give the same numbers, to the bit: an image's noise is a function of `seed`, its content and
    the timestep, captions are whole, nothing is dropped or mirrored. An image's numbers do not depend on which others
    are measured beside it: a pass holds one image at all its timesteps (at most `rows` at once, where memory is
    short). `latents` gives those of views (`LatentCache.latents`), `texts` those of captions, where the text encoder
    does not move (None: they are made). The model's parts are in evaluation mode
    meanwhile, and no random state is touched: training goes on as if nothing had happened. Compare two models on
    the same samples and read the difference of their `losses` image by image: the noise is the same in both.
    """
    need_precision(precision)
    first, last = timesteps or (0, family.num_timesteps)
    middles = (torch.arange(num_timesteps, dtype=torch.float64) + 0.5) / num_timesteps
    times = family.timesteps(middles, first, last)  # (T,)
    texts = texts or TextStates(family, device, precision=precision)
    modes = {name: part.training for name, part in family.parts().items()}
    for part in family.parts().values():
        part.eval()
    losses = torch.empty(len(samples), num_timesteps, dtype=torch.float64)
    autocast = torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
    try:
        with progress.task(what, total=len(samples)) as advance:
            for start in range(0, len(samples), _AHEAD):
                some = samples[start : start + _AHEAD]
                tokens = family.tokenize([sample.caption for sample in some])
                for i, (sample, latent) in enumerate(zip(some, latents([s.view for s in some]), strict=True)):
                    noise = normal(
                        tuple(latent.shape), seed, "stable noise", [(sample.view.content_id, t) for t in times.tolist()]
                    )
                    # fresh from the encoder it has other strides than from the cache, and convolutions round by strides
                    clean = latent.float().contiguous().expand(num_timesteps, *latent.shape)
                    noisy, target = family.noise_and_target(clean, noise, times)
                    sizes = torch.tensor([sample.sizes]).expand(num_timesteps, -1)
                    said = []
                    with autocast:
                        text = texts.states({name: ids[i : i + 1] for name, ids in tokens.items()})
                        for few in _parts(num_timesteps, rows):
                            seen = [tensor[few].to(device) for tensor in (noisy, times, sizes)]
                            states = {name: row.expand(len(seen[0]), *row.shape[1:]) for name, row in text.items()}
                            said.append(family.predict(seen[0], seen[1], states, seen[2]))
                    losses[start + i] = image_losses(torch.cat(said), target.to(device)).to("cpu", torch.float64)
                    advance(1)
    finally:
        for name, part in family.parts().items():
            part.train(modes[name])
    return StableLosses(timesteps=times, losses=losses)


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Images measured now and then during a run; its name begins the names of its numbers."""

    name: str  # "val" of the held-out ones, "stable" of training images, "val-NAME" of a named set
    samples: tuple[FixedSample, ...]


def fixed_samples(plan: Plan, ids: Mapping[Path, str]) -> tuple[FixedSample, ...]:
    """Every image that the plan trains, as `stable_losses` sees it; `ids`: each file's content."""
    dataset, idle = plan.dataset, {i for i, _ in plan.left_out}
    return tuple(
        fixed_sample(dataset.sample(i), content_id=ids[dataset.path(i)], bucket=plan.bucket(i))
        for i in range(len(dataset))
        if i not in idle
    )


def numbers(one: ValidationSet, found: StableLosses, num_timesteps: int) -> dict[str, float]:
    """A set's losses by name: over all of it, by folder and by quarter of the model's timesteps."""
    each = found.losses.mean(dim=1).tolist()
    folders = Folders(sample.key for sample in one.samples)
    told = {f"{one.name}/loss": found.mean}
    told |= means(f"{one.name}/folder", [folders.of(sample.key) for sample in one.samples], each)
    quarters = [quarter(t, num_timesteps) for t in found.timesteps.tolist()]
    return told | means(f"{one.name}/quarter", quarters, found.losses.mean(dim=0).tolist())


def _parts(n: int, rows: int | None) -> list[slice]:
    size = rows or n
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]
