"""Latents made once: found again by what they were made from, so an edited image never trains on its old
ones.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edkit.data.database import close_database, open_database, told, transaction
from edkit.data.errors import BadInput, StateError
from edkit.data.image import Crop, load_crop
from edkit.data.progress import SILENT, Progress

_SCHEMA = """
CREATE TABLE latents (
    key BLOB NOT NULL, channels INTEGER, height INTEGER, width INTEGER, dtype TEXT, data BLOB
);
CREATE UNIQUE INDEX latents_key ON latents (key)
"""
_VERSION = 1
_RECIPE = 1  # raised whenever the same image and crop would give other latents
_ASK = 500
_NUMPY: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
_T = TypeVar("_T")
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
_TORCH = {"fp16": torch.float16, "fp32": torch.float32}


_NOTHING = torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to see one image: the file, what its bytes were when the run began, and the crop."""

    path: Path
    content_id: str  # SHA-256 of the file, hex
    crop: Crop


class LatentCache:
    """Latents by view: from memory, else the database, else encoded and put into both.

    Encoding runs in batches of a size that only the bucket decides, padded where images are short, and what
    comes out is always rounded to the cache's type: a view has the same latents, to the bit, whether they
    come from here or are made anew, and whoever stood beside it. One database for all models of a data root;
    a killed run keeps what it made.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        encode: Callable[[Tensor], Tensor],  # (n, 3, H, W) in -1..1 -> scaled latents, on the model's device
        encoder_id: str,
        precision: str = "fp16",
        memory_bytes: int = 1 << 31,
        device: torch.device | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self._encode, self._encoder_id, self._precision = encode, encoder_id, precision
        self._device = device or torch.device("cpu")
        self._room = memory_bytes
        self._kept: dict[View, Tensor] = {}
        self._path = path
        self._db: sqlite3.Connection | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _open(path, progress)
            except StateError as error:
                if "damaged" not in error.what:
                    raise
                progress.say(f"{path}: damaged; latents are made anew")
                for name in (path.name, path.name + "-wal", path.name + "-shm"):
                    path.with_name(name).unlink(missing_ok=True)
                self._db = _open(path, progress)
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="edkit-decode")
        self.num_encoded = 0

    def close(self) -> None:
        """Close the database and let the readers go."""
        self._pool.shutdown(cancel_futures=True)
        if self._db is not None:
            close_database(self._db, write=True)
            self._db = None

    def latents(self, views: Sequence[View]) -> list[Tensor]:
        """The latents of each view, (C, h, w) in the cache's type, on the CPU.

        Raises BadInput where an image can't be decoded, or is no longer what it was when the run began.
        """
        missing = list(dict.fromkeys(view for view in views if view not in self._kept))
        fresh = dict(self._stored(missing)) if missing else {}
        if len(fresh) < len(missing):
            for view, made in self._made([view for view in missing if view not in fresh]):
                if isinstance(made, BadInput):
                    raise made
                fresh[view] = made
        for view, made in fresh.items():
            self._keep(view, made)
        return [self._kept[view] if view in self._kept else fresh[view] for view in views]

    def warm(self, views: Iterable[View], *, progress: Progress = SILENT) -> dict[Path, BadInput]:
        """Make what is not there yet, and load what fits in memory; images that can't be decoded come back by
        path.
        """
        wanted = list(dict.fromkeys(views))
        broken: dict[Path, BadInput] = {}
        missing: list[View] = []
        full = False
        for some in _batches([view for view in wanted if view not in self._kept], _ASK):
            found = dict(self._stored(some, keys_only=full))
            missing.extend(view for view in some if view not in found)
            for view, latent in found.items():
                full = full or not self._keep(view, latent)
        if missing:
            with progress.task("caching latents", total=len(missing)) as advance:
                for view, made in self._made(missing):
                    advance(1)
                    if isinstance(made, BadInput):
                        broken[view.path] = made
                    else:
                        self._keep(view, made)
        return broken

    def _keep(self, view: View, latent: Tensor) -> bool:
        num_bytes = latent.numel() * latent.element_size()
        if view in self._kept or num_bytes > self._room:
            return view in self._kept
        self._room -= num_bytes
        self._kept[view] = latent
        return True

    def _stored(self, views: Sequence[View], *, keys_only: bool = False) -> Iterator[tuple[View, Tensor]]:
        if self._db is None or self._path is None:
            return
        for some in _batches(views, _ASK):
            by_key = {self._key(view): view for view in some}
            marks = ",".join("?" * len(by_key))
            column = "NULL" if keys_only else "data"
            with told(self._path):
                rows = self._db.execute(
                    f"SELECT key, channels, height, width, {column} FROM latents WHERE key IN ({marks})",
                    list(by_key),
                ).fetchall()
            for key, channels, height, width, data in rows:
                if keys_only:
                    yield by_key[key], _NOTHING
                    continue
                values = np.frombuffer(data, _NUMPY[self._precision])
                # a copy: memory of torch's own, aligned as torch aligns
                latent = torch.from_numpy(values.reshape(channels, height, width).copy()).clone()
                yield by_key[key], latent

    def _made(self, views: Sequence[View]) -> Iterator[tuple[View, Tensor | BadInput]]:
        """Encode views bucket by bucket; each batch is durable before it is given out."""
        by_bucket: dict[tuple[int, int], list[View]] = {}
        for view in views:
            by_bucket.setdefault((view.crop.width, view.crop.height), []).append(view)
        for (width, height), bucket in by_bucket.items():
            size = encode_batch_size(width, height)
            pixels = _ahead(self._pool, _pixels, bucket, ahead=2 * size + 4)
            for some in _batches(zip(bucket, pixels, strict=True), size):
                good = [(view, array) for view, array in some if not isinstance(array, BadInput)]
                yield from ((view, array) for view, array in some if isinstance(array, BadInput))
                if not good:
                    continue
                latents = self._encoded([array for _, array in good], size)
                for (view, _), latent in zip(good, latents, strict=True):
                    if not torch.isfinite(latent).all():
                        raise BadInput("the image encoder gave numbers that are not finite", where=str(view.path))
                self._store([view for view, _ in good], latents)
                self.num_encoded += len(good)
                yield from zip((view for view, _ in good), latents, strict=True)

    def _encoded(self, arrays: Sequence[Pixels], size: int) -> list[Tensor]:
        batch = torch.zeros(size, *arrays[0].shape, dtype=torch.uint8)
        for i, array in enumerate(arrays):
            batch[i] = torch.from_numpy(array.copy())
        pixels = batch.permute(0, 3, 1, 2).contiguous().to(self._device).float() / 127.5 - 1  # (n, 3, H, W)
        with torch.no_grad():
            latents = self._encode(pixels)[: len(arrays)]
        return [latent.clone() for latent in latents.to("cpu", _TORCH[self._precision])]

    def _store(self, views: Sequence[View], latents: Sequence[Tensor]) -> None:
        if self._db is None or self._path is None:
            return
        rows = [
            (
                self._key(view),
                *latent.shape,
                self._precision,
                latent.numpy().astype(_NUMPY[self._precision]).tobytes(),
            )
            for view, latent in zip(views, latents, strict=True)
        ]
        with told(self._path), transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO latents VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _key(self, view: View) -> bytes:
        c = view.crop
        crop = (c.width, c.height, c.scaled_width, c.scaled_height, c.left, c.top, int(c.flip))
        text = f"{_RECIPE} {view.content_id} {crop} {self._encoder_id} {self._precision}"
        return hashlib.blake2b(text.encode(), digest_size=20).digest()


def encode_batch_size(width: int, height: int) -> int:
    """Images the encoder sees at once in a bucket: 16 of 256 x 256 or smaller, 4 of 512 x 512, 1 of 1024 x
    1024.
    """
    return max(1, min(16, (1 << 20) // (width * height)))


def _open(path: Path, progress: Progress) -> sqlite3.Connection:
    return open_database(path, schema=_SCHEMA, version=_VERSION, write=True, durable=False, say=progress.say)


def _pixels(view: View) -> Pixels | BadInput:
    """(H, W, 3) uint8 of one view, or why there is none."""
    try:
        data = view.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != view.content_id:
            raise BadInput("changed since the run began", where=str(view.path), mend="start or resume the run again")
        return np.asarray(load_crop(data, view.crop))
    except BadInput as error:
        return (
            error if error.what.startswith("changed") else BadInput(error.what, where=str(view.path), mend=error.mend)
        )
    except OSError as error:
        return BadInput(error.strerror or str(error), where=str(view.path))


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[View], Pixels | BadInput], items: Sequence[View], *, ahead: int
) -> Iterator[Pixels | BadInput]:
    """`map` over the pool's threads that never holds more than `ahead` results."""
    waiting = [pool.submit(work, item) for item in items[:ahead]]
    rest = iter(items[ahead:])
    while waiting:
        yield waiting.pop(0).result()
        waiting.extend(pool.submit(work, item) for item in islice(rest, 1))


def _batches(items: Iterable[_T], n: int) -> Iterator[list[_T]]:
    source = iter(items)
    while some := list(islice(source, n)):
        yield some
