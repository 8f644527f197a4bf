"""What is known of a folder's files from an earlier reading, a row a folder: a million files are warm in seconds.

Each file's entry stands only while its size and modification time are what they were, as in the cache's rows
of single files. Those are kept too: they follow a file that edkit renames, and know a manifest's images.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edkit.data.places import SETTLED_NS
from edkit.data.walk import Listing

_KIND = "folder/1"
_ALWAYS = (0, 0)  # in place of the folder's own size and time: every entry carries its file's
_HEAD = struct.Struct("<qqq")  # images, bytes of their names, bytes of the sidecars


class Cache(Protocol):
    """Small values kept by path, size and time; edkit's Catalog is one."""

    def cached_many(
        self, kind: str, paths: Iterable[Path], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> dict[Path, object]:
        """The values kept for those files that are as they were."""

    def put_cached_many(
        self, kind: str, values: Mapping[Path, object], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> None:
        """Keep values (JSON or bytes) for files as they were when `stats` (size, mtime_ns) was taken."""


@dataclass(slots=True)
class Known:
    """What one folder's files were when they were last read."""

    names: str = ""  # of images, joined by NUL: text that is compared whole is cheaper than a list to make
    stats: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # size, mtime_ns
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))  # upright width, height
    said: dict[str, Any] = field(default_factory=dict)  # by each sidecar, by name: a text, or a YAML's JSON
    said_stats: dict[str, tuple[int, int]] = field(default_factory=dict)  # size, mtime_ns of each of these

    def sizes_for(self, listing: Listing) -> NDArray[np.int32]:
        """(n, 2): width and height of the listing's images; 0 where they are not known as they are now."""
        now = stats_of(listing)
        if self.names == "\0".join(listing.images):
            same = (self.stats == now).all(axis=1)
            if same.all():
                return self.sizes
            return np.where(same[:, None], self.sizes, 0).astype(np.int32)
        row = {name: i for i, name in enumerate(self.names.split("\0"))}
        at = np.asarray([row.get(name, -1) for name in listing.images], np.int64)
        found = np.zeros((len(at), 2), np.int32)
        there = np.flatnonzero(at >= 0)
        there = there[(self.stats[at[there]] == now[there]).all(axis=1)]
        found[there] = self.sizes[at[there]]
        return found

    def said_in(self, listing: Listing) -> dict[str, Any]:
        """What the listing's sidecars say, by name, of those that are known as they are now."""
        now = listing.sidecar_stats
        if self.said_stats == now:
            return dict(self.said)
        return {name: said for name, said in self.said.items() if self.said_stats[name] == now.get(name)}


def stats_of(listing: Listing) -> NDArray[np.int64]:
    """(n, 2): size and mtime_ns of the listing's images."""
    return np.frombuffer(listing.image_stats, np.int64).reshape(-1, 2)


def load(cache: Cache, folders: Iterable[str]) -> dict[str, Known]:
    """What is known of each folder that anything is known of."""
    stats = dict.fromkeys(map(Path, folders), _ALWAYS)
    found = cache.cached_many(_KIND, stats, stats=stats)
    return {str(path): _unpacked(value) for path, value in found.items() if isinstance(value, bytes)}


def keep(cache: Cache, folders: Iterable[tuple[Listing, NDArray[np.int32], Mapping[str, Any], Known]]) -> None:
    """Remember (listing, its images' sizes, what its sidecars say), where that is not what was known."""
    now = time.time_ns()
    fresh: dict[Path, object] = {}
    for listing, sizes, said, before in folders:
        stats = stats_of(listing)
        # a file that has just been written may change again within one tick of its clock
        sure = (sizes[:, 0] > 0) & (np.abs(now - stats[:, 1]) > SETTLED_NS)
        said_stats = {
            name: stat
            for name, stat in listing.sidecar_stats.items()
            if name in said and abs(now - stat[1]) > SETTLED_NS
        }
        names = "\0".join(name for name, one in zip(listing.images, sure.tolist(), strict=True) if one)
        found = Known(names, stats[sure], sizes[sure], {name: said[name] for name in said_stats}, said_stats)
        if not _same(found, before):
            fresh[Path(listing.path)] = _packed(found)
    if fresh:
        cache.put_cached_many(_KIND, fresh, stats=dict.fromkeys(fresh, _ALWAYS))


def _same(one: Known, other: Known) -> bool:
    return (
        one.names == other.names
        and np.array_equal(one.stats, other.stats)
        and np.array_equal(one.sizes, other.sizes)
        and one.said == other.said
        and one.said_stats == other.said_stats
    )


def _packed(known: Known) -> bytes:
    names = known.names.encode("utf-8", "surrogatepass")
    sidecars = json.dumps({name: (*known.said_stats[name], said) for name, said in known.said.items()}).encode()
    arrays = known.stats.astype("<i8").tobytes() + known.sizes.astype("<i4").tobytes()
    return _HEAD.pack(len(known.stats), len(names), len(sidecars)) + names + sidecars + arrays


def _unpacked(value: bytes) -> Known:
    num, num_names, num_sidecars = _HEAD.unpack_from(value)
    sidecars_at = _HEAD.size + num_names
    stats_at = sidecars_at + num_sidecars
    names = value[_HEAD.size : sidecars_at].decode("utf-8", "surrogatepass")
    sidecars: dict[str, tuple[int, int, Any]] = json.loads(value[sidecars_at:stats_at])
    return Known(
        names,
        np.frombuffer(value, "<i8", 2 * num, stats_at).reshape(num, 2),
        np.frombuffer(value, "<i4", 2 * num, stats_at + 16 * num).reshape(num, 2),
        {name: said for name, (_, _, said) in sidecars.items()},
        {name: (size, mtime_ns) for name, (size, mtime_ns, _) in sidecars.items()},
    )
