"""What frozen text encoders make of captions, made once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from edkit.data.errors import BadInput
from edkit.data.progress import SILENT, Progress
from edkit.train.families.base import DTYPES, Family, Text
from edkit.train.store import Cache, Entry, Store, key_of

_RECIPE = 1  # raised whenever the same tokens would give other states
_ENCODE_BATCH = 8
_AT_ONCE = 1024  # captions tokenized at once
_MEMORY = 1 << 31

_Row = tuple[tuple[str, Tensor], ...]  # one caption's token ids (L,) by name


class TextStates:
    """States by a caption's token ids.

    Encoded in padded batches of one size, and kept in the type that the denoiser computes in, which is what it would
    round them to: a caption has the same states, to the bit, whether they come from the store or are made anew, and
    whoever stood beside it.
    """

    def __init__(
        self,
        family: Family,
        device: torch.device,
        *,
        precision: str = "fp32",
        store: Store | None = None,
        memory_bytes: int = _MEMORY,
    ) -> None:
        self._family, self._device, self._precision = family, device, precision
        self._encoding = threading.Lock()
        self._encoder_id = family.text_hash if store else ""
        self._cache: Cache[_Row] = Cache(store, key=self._key, make=self._made, memory_bytes=memory_bytes)

    @property
    def num_encoded(self) -> int:
        """Captions encoded by this object."""
        return self._cache.num_made

    def states(self, tokens: Text) -> Text:
        """States of each row of token ids, on the device."""
        entries = self._cache.get(_rows(tokens))
        return {
            name: torch.stack([entry[name] for entry in entries]).to(self._device, non_blocking=True)
            for name in entries[0]
        }

    def warm(self, captions: Iterable[str], *, progress: Progress = SILENT) -> None:
        """Encode what was not encoded yet."""
        distinct = sorted(set(captions))
        parts = range(0, len(distinct), _AT_ONCE)
        rows = (row for at in parts for row in _rows(self._family.tokenize(distinct[at : at + _AT_ONCE])))
        for _, why in self._cache.warm(rows, what="caching text states", progress=progress):
            raise why

    @torch.no_grad()
    def _made(self, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Entry | BadInput]]:
        dtype = DTYPES[self._precision]
        for start in range(0, len(rows), _ENCODE_BATCH):
            some = rows[start : start + _ENCODE_BATCH]
            padded = [dict(row) for row in (*some, *[some[-1]] * (_ENCODE_BATCH - len(some)))]
            ids = {name: torch.stack([row[name] for row in padded]).to(self._device) for name in padded[0]}
            with self._encoding, torch.autocast(self._device.type, dtype=dtype, enabled=self._precision != "fp32"):
                states = self._family.encode_text(ids)
            kept = {name: value.to("cpu", dtype) for name, value in states.items()}
            if not all(bool(value.isfinite().all()) for value in kept.values()):
                raise BadInput(
                    f"the text encoder gave numbers that {self._precision} can't hold",
                    where=str(self._family.folder),
                    mend="take precision bf16 or fp32",
                )
            for n, row in enumerate(some):
                yield row, {name: value[n].clone() for name, value in kept.items()}

    def _key(self, row: _Row) -> bytes:
        ids = [(name, ids.tolist()) for name, ids in row]
        return key_of("text", _RECIPE, ids, self._encoder_id, self._family.clip_skip, self._precision)


def _rows(tokens: Text) -> list[_Row]:
    return [tuple((name, ids[i]) for name, ids in tokens.items()) for i in range(len(next(iter(tokens.values()))))]
