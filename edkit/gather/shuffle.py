"""A fair order of matches without holding them all: by a keyed mark of each URL.

Every match gets a 64-bit key from the seed and its URL's mark, and they come by rising key. A first pass holds the
lowest keys; a second one, for whoever takes more than those, sorts the rest on disk.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from edkit.gather.candidate import Candidate, Funnel

if TYPE_CHECKING:
    import numpy as np

    Marks = np.ndarray[Any, np.dtype[np.uint64]]

_HELD = 50_000  # candidates of the lowest keys in memory, and as many again before they are sorted out
_LIST = 1000  # candidates given out at once

_Keyed = tuple[int, str, int, Candidate]


class Batch(Protocol):
    """Matches before it is known which ones are wanted."""

    @property
    def marks(self) -> Marks:
        """64 bits of each one's URL."""

    def candidates(self, wanted: Sequence[int] | None = None) -> list[Candidate]:
        """All of them, or those at some places."""


def keys_of(marks: Marks, seed: int) -> Marks:
    """A key for each mark, as good as drawn anew for every seed (two rounds of splitmix64's mixing)."""
    import hashlib

    import numpy as np

    salt = np.frombuffer(hashlib.blake2b(str(seed).encode(), digest_size=16, person=b"edkit shuffle").digest(), "<u8")
    keys = marks.astype(np.uint64, copy=True)
    for part in salt.astype(np.uint64):
        keys = keys ^ part
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys = keys ^ (keys >> np.uint64(31))
    return keys


def shuffled(
    batches: Callable[[Funnel], Iterator[Batch]], funnel: Funnel, seed: int, *, held: int = _HELD
) -> Iterator[list[Candidate]]:
    """The matches by rising key, in lists; `batches` is called once, and once more if more than `held` are taken."""
    import numpy as np

    lowest: list[_Keyed] = []
    bound = 2**64  # keys below it are held
    for batch in batches(funnel):
        keys = keys_of(batch.marks, seed)
        lowest += _keyed(batch, keys, np.flatnonzero(keys < np.uint64(bound - 1)) if bound < 2**64 else None)
        if len(lowest) >= 2 * held:
            lowest.sort(key=_place)
            del lowest[held:]
            bound = lowest[-1][0] + 1
        yield []  # whoever reads the funnel sees it grow
    lowest.sort(key=_place)
    whole = bound == 2**64 or funnel.left <= len(lowest)
    if not whole:
        # a list cut short at `held` holds all keys below its bound
        lowest = [keyed for keyed in lowest if keyed[0] < bound]
        bound = lowest[-1][0] + 1
    for start in range(0, len(lowest), _LIST):
        yield [keyed[-1] for keyed in lowest[start : start + _LIST]]
    if not whole:
        num_left = funnel.left - len(lowest)
        lowest.clear()
        yield from _rest(batches, seed, bound, num_left, held)


def _place(keyed: _Keyed) -> tuple[int, str, int]:
    return keyed[:3]


def _keyed(batch: Batch, keys: Marks, places: Any) -> list[_Keyed]:
    chosen = keys if places is None else keys[places]
    found = batch.candidates(None if places is None else places)
    return [(key, c.table, c.row, c) for key, c in zip(chosen.tolist(), found, strict=True)]


def _rest(
    batches: Callable[[Funnel], Iterator[Batch]], seed: int, bound: int, num_left: int, held: int
) -> Iterator[list[Candidate]]:
    """The matches from key `bound` on: spread by key over temporary files, each sorted by itself."""
    import numpy as np

    num_files = min(256, num_left // held + 1)
    span = (2**64 - bound) // num_files + 1
    files: list[IO[bytes]] = []
    try:
        files.extend(tempfile.TemporaryFile(prefix="edkit-") for _ in range(num_files))  # noqa: SIM115
        for batch in batches(Funnel()):
            keys = keys_of(batch.marks, seed)
            by_file: dict[int, list[_Keyed]] = {}
            for keyed in _keyed(batch, keys, np.flatnonzero(keys >= np.uint64(bound))):
                by_file.setdefault((keyed[0] - bound) // span, []).append(keyed)
            for number, some in by_file.items():
                pickle.dump(some, files[number], pickle.HIGHEST_PROTOCOL)
            yield []
        for file in files:
            yield from _sorted(file)
            file.close()
    finally:
        for file in files:
            file.close()


def _sorted(file: IO[bytes]) -> Iterator[list[Candidate]]:
    file.seek(0)
    keyed: list[_Keyed] = []
    while True:
        try:
            keyed += pickle.load(file)  # written by this process a moment ago, into a file without a name
        except EOFError:
            break
    keyed.sort(key=_place)
    for start in range(0, len(keyed), _LIST):
        yield [each[-1] for each in keyed[start : start + _LIST]]
