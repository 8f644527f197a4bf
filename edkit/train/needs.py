"""What a run will use, said before it starts: memory, disk and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edkit.data.rates import Rate
from edkit.measure.machine import memory_bytes
from edkit.page.layout import duration
from edkit.train.families.base import DTYPES, Family
from edkit.train.memory import Peak, peak
from edkit.train.prepare import Summary, known_rate
from edkit.train.settings import TrainSettings

_TELLING = 1 << 30  # bytes of weights below which memory is no question


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run will use."""

    memory: Peak | None  # computed; None: too little to matter
    memory_bytes: int  # that the device has
    device: str
    latent_bytes: int
    checkpoint_bytes: int  # each of them
    num_checkpoints: int
    export_bytes: int  # each
    rate: Rate | None  # of the last run here that is like this one
    seconds: float | None  # at that rate

    def lines(self) -> Iterator[str]:
        """In words."""
        if self.memory is not None:
            gib = 1 << 30
            needed, there = self.memory.needed_bytes / gib, self.memory_bytes / gib
            short = "" if needed <= there else "; lower micro_batch_size, or take a preset (edkit doctor)"
            yield f"memory: about {needed:.1f} GiB of the {there:.1f} of {self.device}, as computed{short}"
        each = f"{_size(self.checkpoint_bytes)} a checkpoint ({self.num_checkpoints} are kept)"
        yield f"disk: {_size(self.latent_bytes)} of latents, {each}, {_size(self.export_bytes)} an export"
        if self.rate is not None and self.seconds is not None:
            yield f"time: about {duration(self.seconds)} at the {self.rate}"


def needs(s: TrainSettings, family: Family, summary: Summary, device: torch.device, *, device_name: str) -> Needs:
    """What a run with resolved settings on planned data will use; the model is not touched."""
    weights = sum(p.numel() for part in family.parts().values() for p in part.parameters())
    learning = _num_learning(s, family)
    fullest: Peak | None = None
    if weights * 4 >= _TELLING:
        sizes = [tuple(int(side) for side in bucket.split("x")) for bucket in summary.buckets]
        width, height = max(sizes, key=lambda size: size[0] * size[1])
        images = min(s.batch_size, s.micro_batch_size or s.batch_size)
        # a processor's memory holds all parts all the time
        resting = frozenset[str]() if device.type == "cpu" else None
        fullest = peak(
            family, s, size=(width, height), images=images, passes=-(-s.batch_size // images), resting=resting
        )
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()[0]
    moments = {"adamw": 8, "adamw8bit": 2, "adafactor": 0, "lion": 4, "prodigy": 16}[s.optimizer]
    rate = known_rate(s)
    return Needs(
        memory=fullest,
        memory_bytes=there,
        device=device_name,
        latent_bytes=summary.latent_bytes if s.cache_latents else 0,
        checkpoint_bytes=learning * (4 + moments + (4 if s.ema_decay else 0)),
        num_checkpoints=s.keep_checkpoints,
        export_bytes=(2 * learning if s.method == "lora" else weights) * DTYPES[s.export_precision].itemsize,
        rate=rate,
        seconds=summary.total_steps * s.batch_size / rate.images_per_second if rate else None,
    )


def _num_learning(s: TrainSettings, family: Family) -> int:
    """Weights that learn; of adapters about as many as their rank gives the layers they are put into."""
    from edkit.train.lora import adapter_size

    parts = family.parts()
    denoiser = next(iter(parts))
    trained = {n: p for n, p in parts.items() if (s.train_unet if n == denoiser else s.train_text_encoder)}
    if s.method == "full":
        return sum(p.numel() for part in trained.values() for p in part.parameters())
    return sum(
        adapter_size(part, rank=s.lora_rank, targets=family.lora_targets(name, s.lora_targets))
        for name, part in trained.items()
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
