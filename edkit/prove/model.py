"""A model under test, and what it was measured to say: kept as it is made, so that a second run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data.errors import BadInput
from edkit.data.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from edkit.train.cache import LatentCache, View
    from edkit.train.families.base import Family
    from edkit.train.generate import Request
    from edkit.train.validate import FixedSample

NUM_TIMESTEPS = 8  # two a quarter
_MEASURED, _DRAWN = 4, 8  # images, and pictures, before they are kept: what a kill costs at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pictures are drawn; the same for every model that is compared."""

    steps: int = 25
    guidance: float = 5.0
    size: tuple[int, int] | None = None  # width, height in pixels; None: the model's
    precision: str = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a run read its captions and its model, by the names of its settings."""

    caption_fallback: str | None = None
    max_caption_length: int | None = None
    resolution: int | None = None
    clip_skip: int = 1
    caption_chunks: int = 1
    zero_terminal_snr: bool = False


def manner_of(tuned: Path) -> Manner:
    """The manner that stands in a model's weights; the usual one for a model from elsewhere.

    Raises BadInput where what stands there is no run's settings.
    """
    from edkit.train.verify import said_by, settings_in

    return Manner(**settings_in(said_by(tuned), (field.name for field in fields(Manner)), where=tuned))


def load(base: str | Path, tuned: str | Path | None = None, *, strength: float = 1.0, manner: Manner) -> Family:
    """The base, the tuned model, or the base with a LoRA of that strength, to be read as a run read it.

    Raises BadInput.
    """
    from edkit.train.families import load_family
    from edkit.train.lora import merge_lora

    lora = tuned is not None and is_lora(tuned)
    family = load_family(base if tuned is None or lora else tuned)
    if tuned is not None and lora:
        merge_lora(family, Path(tuned), strength=strength)
    family.clip_skip, family.caption_chunks = manner.clip_skip, manner.caption_chunks
    if manner.zero_terminal_snr:
        family.end_at_pure_noise()
    return family


def is_lora(model: str | Path) -> bool:
    """Whether it is an adapter, as a file or as an export's folder, and no whole model."""
    from safetensors import SafetensorError, safe_open

    from edkit.train.lora import UI_FILE

    path = Path(model)
    if path.is_dir():
        return (path / UI_FILE).is_file() and not (path / "model_index.json").exists()
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any("lora" in key for key in file.keys())  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None


class Kept:
    """What was measured so far, in a folder: losses by image and pictures by prompt, each by the model's weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "losses.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._losses: dict[str, list[float]] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._losses[row["key"]] = row["losses"]
                except (ValueError, KeyError):  # the line a kill cut short
                    continue

    def losses(self, key: str) -> list[float] | None:
        """Those kept under a key."""
        return self._losses.get(key)

    def add(self, rows: Sequence[tuple[str, list[float]]]) -> None:
        """Keep some more."""
        self._losses |= dict(rows)
        with self._file.open("a", encoding="utf-8", newline="\n") as file:
            # a kill may have left half a line
            file.write("".join(f"\n{json.dumps({'key': key, 'losses': losses})}\n" for key, losses in rows))

    def picture(self, key: str) -> Path:
        """Where the picture of a key is, or will be."""
        return self.folder / "pictures" / f"{key[:32]}.png"


class Model:
    """One model on its device, with what it was already asked."""

    def __init__(self, family: Family, kept: Kept, *, manner: Manner, device: torch.device, progress: Progress) -> None:
        self.family, self.kept, self.device, self.progress = family, kept, device, progress
        self._read = (manner.clip_skip, manner.caption_chunks, manner.zero_terminal_snr)
        family.place(device)
        self.id = family.model_hash()

    def losses(
        self, samples: Sequence[FixedSample], latents: Callable[[Sequence[View]], list[Tensor]], *, precision: str
    ) -> list[list[float]]:
        """The stable loss of every sample at each of `NUM_TIMESTEPS` timesteps, the least noisy first."""
        from edkit.train.validate import stable_losses

        how = (NUM_TIMESTEPS, precision, *self._read)
        keys = [_key(self.id, s.view.content_id, s.view.crop, s.caption, *how) for s in samples]
        missing = [i for i, key in enumerate(keys) if self.kept.losses(key) is None]
        with self.progress.task("measuring", total=len(samples)) as advance:
            advance(len(samples) - len(missing))
            for start in range(0, len(missing), _MEASURED):
                some = missing[start : start + _MEASURED]
                found = stable_losses(
                    self.family,
                    [samples[i] for i in some],
                    latents,
                    device=self.device,
                    num_timesteps=NUM_TIMESTEPS,
                    precision=precision,
                )
                self.kept.add([(keys[i], row) for i, row in zip(some, found.losses.tolist(), strict=True)])
                advance(len(some))
        return [self.kept.losses(key) or [] for key in keys]

    def pictures(self, requests: Sequence[Request], how: Drawing) -> list[Path]:
        """The picture of every request, as files in the folder of what is kept."""
        from edkit.train.generate import draw, write_png

        paths = [self.kept.picture(_key(self.id, r.prompt, r.seed, r.occurrence, how, *self._read)) for r in requests]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if missing:
            paths[0].parent.mkdir(parents=True, exist_ok=True)
        with self.progress.task("drawing", total=len(requests)) as advance:
            advance(len(requests) - len(missing))
            for start in range(0, len(missing), _DRAWN):
                some = missing[start : start + _DRAWN]
                drawn = draw(
                    self.family, [requests[i] for i in some], steps=how.steps, guidance=how.guidance, size=how.size,
                    precision=how.precision, device=self.device,
                )  # fmt: skip
                for i, picture in zip(some, drawn, strict=True):
                    request = requests[i]
                    write_png(paths[i], picture, {"prompt": request.prompt, "seed": request.seed, "model": self.id})
                advance(len(some))
        return paths


@contextmanager
def latents_of(family: Family, path: Path | None, device: torch.device) -> Iterator[LatentCache]:
    """A source of latents by `family`'s image encoder, kept in the database `path`."""
    from edkit.train.cache import LatentCache
    from edkit.train.store import Store

    store = Store(path) if path else None
    cache = LatentCache(store, encode=family.encode_images, encoder_id=family.vae_hash, device=device)
    try:
        yield cache
    finally:
        cache.close()
        if store:
            store.close()


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
