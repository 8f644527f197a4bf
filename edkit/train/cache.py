"""Latents and masks made once: found again by what they were made from, so an edited image never trains on its old
ones.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edkit.data.errors import BadInput
from edkit.data.image import Crop, load_crop, load_mask
from edkit.data.progress import SILENT, Progress
from edkit.train.store import Cache, Entry, Store, batches, key_of

_RECIPE = 1  # raised whenever the same image and crop would give other latents
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
_TORCH = {"fp16": torch.float16, "fp32": torch.float32}
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to see one image: the file, what its bytes were when the run began, and the crop."""

    path: Path
    content_id: str  # SHA-256 of the file, hex
    crop: Crop


class LatentCache:
    """Latents by view.

    Encoding runs in batches of a size that only the bucket decides, padded where images are short, and what
    comes out is always rounded to the cache's type: a view has the same latents, to the bit, whether they
    come from the store or are made anew, and whoever stood beside it.
    """

    def __init__(
        self,
        store: Store | None,
        *,
        encode: Callable[[Tensor], Tensor],  # (n, 3, H, W) in -1..1 -> scaled latents, on the model's device
        encoder_id: str,
        precision: str = "fp16",
        memory_bytes: int = 1 << 31,
        device: torch.device | None = None,
    ) -> None:
        self._encode, self._encoder_id, self._precision = encode, encoder_id, precision
        self._device = device or torch.device("cpu")
        self._cache: Cache[View] = Cache(store, key=self._key, make=self._made, memory_bytes=memory_bytes)
        self._encoding = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="edkit-decode")

    @property
    def num_encoded(self) -> int:
        """Views encoded by this object."""
        return self._cache.num_made

    def close(self) -> None:
        """Let the readers go."""
        self._pool.shutdown(cancel_futures=True)

    def latents(self, views: Sequence[View]) -> list[Tensor]:
        """The latents of each view, (C, h, w) in the cache's type, on the CPU.

        Raises BadInput where an image can't be decoded, or is no longer what it was when the run began.
        """
        return [entry["latents"] for entry in self._cache.get(views)]

    def warm(self, views: Iterable[View], *, progress: Progress = SILENT) -> dict[Path, BadInput]:
        """Make what is not there yet, and load what fits in memory; images that can't be decoded come back by
        path.
        """
        return {view.path: why for view, why in self._cache.warm(views, what="caching latents", progress=progress)}

    def _made(self, views: Sequence[View]) -> Iterator[tuple[View, Entry | BadInput]]:
        """Encode views bucket by bucket."""
        by_bucket: dict[tuple[int, int], list[View]] = {}
        for view in views:
            by_bucket.setdefault((view.crop.width, view.crop.height), []).append(view)
        for (width, height), bucket in by_bucket.items():
            size = encode_batch_size(width, height)
            pixels = _ahead(self._pool, _pixels, bucket, ahead=2 * size + 4)
            for some in batches(zip(bucket, pixels, strict=True), size):
                good = [(view, array) for view, array in some if not isinstance(array, BadInput)]
                yield from ((view, array) for view, array in some if isinstance(array, BadInput))
                if not good:
                    continue
                latents = self._encoded([array for _, array in good], size)
                for (view, _), latent in zip(good, latents, strict=True):
                    if not torch.isfinite(latent).all():
                        raise BadInput("the image encoder gave numbers that are not finite", where=str(view.path))
                    yield view, {"latents": latent}

    def _encoded(self, arrays: Sequence[Pixels], size: int) -> list[Tensor]:
        batch = torch.zeros(size, *arrays[0].shape, dtype=torch.uint8)
        for i, array in enumerate(arrays):
            batch[i] = torch.from_numpy(array.copy())
        pixels = batch.permute(0, 3, 1, 2).contiguous().to(self._device).float() / 127.5 - 1  # (n, 3, H, W)
        with torch.no_grad(), self._encoding:  # one batch's memory at a time, while others are decoded
            latents = self._encode(pixels)[: len(arrays)]
        return [latent.clone() for latent in latents.to("cpu", _TORCH[self._precision])]

    def _key(self, view: View) -> bytes:
        c = view.crop
        crop = (c.width, c.height, c.scaled_width, c.scaled_height, c.left, c.top, int(c.flip))
        return key_of("latents", _RECIPE, view.content_id, crop, self._encoder_id, self._precision)


MaskSource = Literal["file", "alpha"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskView:
    """Where the mask of one view stands, and how it is cut: as the image is."""

    path: Path  # of the mask, or of the image whose alpha it is
    content_id: str
    crop: Crop
    source: MaskSource


class MaskCache:
    """How much each latent pixel of a view is meant, 0..1: the mean of the mask's pixels below it."""

    def __init__(self, store: Store | None, *, factor: int, memory_bytes: int) -> None:
        """`factor`: image pixels a latent, on each side."""
        self._factor = factor
        self._cache: Cache[MaskView] = Cache(store, key=self._key, make=self._made, memory_bytes=memory_bytes)

    def masks(self, views: Sequence[MaskView]) -> list[Tensor]:
        """(h, w) fp32 of each view, on the CPU. Raises BadInput as `LatentCache.latents` does."""
        return [entry["mask"].float() / 255 for entry in self._cache.get(views)]

    def warm(self, views: Iterable[MaskView], *, progress: Progress = SILENT) -> dict[Path, BadInput]:
        """As `LatentCache.warm`."""
        return {view.path: why for view, why in self._cache.warm(views, what="reading masks", progress=progress)}

    def _made(self, views: Sequence[MaskView]) -> Iterator[tuple[MaskView, Entry | BadInput]]:
        for view in views:
            size = view.crop.width // self._factor, view.crop.height // self._factor
            load = partial(load_mask, crop=view.crop, size=size, channel=view.source)
            mask = _read(view.path, view.content_id, load)
            if isinstance(mask, BadInput):
                yield view, mask
            else:
                yield view, {"mask": torch.from_numpy(np.array(mask))}

    def _key(self, view: MaskView) -> bytes:
        c = view.crop
        crop = (c.width, c.height, c.scaled_width, c.scaled_height, c.left, c.top, int(c.flip))
        return key_of("mask", _RECIPE, view.source, view.content_id, crop, self._factor)


def encode_batch_size(width: int, height: int) -> int:
    """Images the encoder sees at once in a bucket: 16 of 256 x 256 or smaller, 4 of 512 x 512, 1 of 1024 x
    1024.
    """
    return max(1, min(16, (1 << 20) // (width * height)))


def _pixels(view: View) -> Pixels | BadInput:
    """(H, W, 3) uint8 of one view, or why there is none."""
    image = _read(view.path, view.content_id, lambda data: load_crop(data, view.crop))
    return image if isinstance(image, BadInput) else np.asarray(image)


def _read(path: Path, content_id: str, load: Callable[[bytes], _Loaded]) -> _Loaded | BadInput:
    """What `load` makes of a file that is still what it was, or why there is nothing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return BadInput(error.strerror or str(error), where=str(path))
    if hashlib.sha256(data).hexdigest() != content_id:
        return BadInput("changed since the run began", where=str(path), mend="start or resume the run again")
    try:
        return load(data)
    except BadInput as error:
        return BadInput(error.what, where=str(path), mend=error.mend)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[View], Pixels | BadInput], items: Sequence[View], *, ahead: int
) -> Iterator[Pixels | BadInput]:
    """`map` over the pool's threads that never holds more than `ahead` results."""
    waiting = [pool.submit(work, item) for item in items[:ahead]]
    rest = iter(items[ahead:])
    while waiting:
        yield waiting.pop(0).result()
        waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
