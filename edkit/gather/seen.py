"""Which URLs came before: 64-bit marks, in bounded memory, the same in every run.

Two URLs of ten million share a mark with a chance of 1 in 370,000 (n * n / 2 ** 65).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Marks = np.ndarray[Any, np.dtype[np.uint64]]
    Mask = np.ndarray[Any, np.dtype[np.bool_]]

_IN_MEMORY = 8 << 20  # marks: 64 MB, and as much again while they are merged
_BITS = 12  # of the filter in front of a file, for each of its marks: 1 in 300 false alarms
_PROBES = 6
_PAGE = 512  # marks of a file read at once


def marks_of(urls: Sequence[str]) -> Marks:
    """A 64-bit mark of each text (BLAKE2b)."""
    import numpy as np

    blake = hashlib.blake2b
    data = b"".join([blake(url.encode("utf-8", "surrogatepass"), digest_size=8).digest() for url in urls])
    return np.frombuffer(data, "<u8").astype(np.uint64)


class Seen:
    """The marks added so far. In memory up to eight million; beyond that they go to temporary files, 8 bytes each, and
    1.5 bytes a mark of memory stay. Use it in a `with` block."""

    def __init__(self, *, in_memory: int = _IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._runs: list[Marks] = []  # sorted, each at least twice as long as the next
        self._files: list[_SortedFile] = []

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()
        self._runs, self._files = [], []

    def add(self, marks: Marks) -> Mask:
        """Which of these are new: neither added before, nor earlier among these."""
        import numpy as np

        if not len(marks):
            return np.zeros(0, bool)
        unique, first = np.unique(marks, return_index=True)
        known = np.zeros(len(unique), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            known |= run[places] == unique
        for file in self._files:
            known |= file.holds(unique)
        fresh = np.zeros(len(marks), bool)
        fresh[first[~known]] = True
        self._put(unique[~known])
        return fresh

    def _put(self, run: Marks) -> None:
        if not len(run):
            return
        import numpy as np

        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # two sorted runs: merged in linear time
        self._runs.append(run)
        if sum(map(len, self._runs)) > self._in_memory:
            whole = np.concatenate(self._runs)
            self._runs = []
            whole.sort(kind="stable")
            self._files.append(_SortedFile(whole))


class _SortedFile:
    """Sorted marks in a temporary file behind a Bloom filter in memory."""

    def __init__(self, marks: Marks) -> None:
        import numpy as np

        self._num = len(marks)
        self._firsts = marks[::_PAGE].copy()
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="edkit-")  # noqa: SIM115 - as long-lived as this object
        marks.tofile(self._file)
        self._num_bits = np.uint64(_BITS * self._num)
        self._filter = np.zeros(int(self._num_bits) // 8 + 1, np.uint8)
        for start in range(0, self._num, 1 << 18):
            for byte, bit in self._probes(marks[start : start + (1 << 18)]):
                np.bitwise_or.at(self._filter, byte, bit)

    def holds(self, marks: Marks) -> Mask:
        """Which of the marks it holds."""
        import numpy as np

        maybe = np.ones(len(marks), bool)
        for byte, bit in self._probes(marks):
            maybe &= (self._filter[byte] & bit) != 0
        for place in np.flatnonzero(maybe).tolist():
            page = max(0, int(np.searchsorted(self._firsts, marks[place], side="right")) - 1)
            self._file.seek(page * _PAGE * 8)
            held = np.frombuffer(self._file.read(_PAGE * 8), np.uint64)
            maybe[place] = bool((held == marks[place]).any())
        return maybe

    def close(self) -> None:
        self._file.close()

    def _probes(self, marks: Marks) -> list[tuple[Any, Any]]:
        import numpy as np

        low, step = marks & np.uint64(0xFFFFFFFF), (marks >> np.uint64(32)) | np.uint64(1)
        bits = [(low + np.uint64(i) * step) % self._num_bits for i in range(_PROBES)]
        return [
            (each >> np.uint64(3), np.left_shift(np.uint8(1), (each & np.uint64(7)).astype(np.uint8))) for each in bits
        ]
