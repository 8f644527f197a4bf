"""What a search for duplicates found: groups, mirrored pairs, turned pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An image that shows the same as the kept one of its group."""

    path: Path
    distance: float  # bits of the hash (0..64), or 1 - cosine of the embeddings
    same_bytes: bool
    mirrored: bool
    reason: str
    protected: bool = False  # lies in a protected folder: stays
    caption_lost: bool = False  # it has a sidecar, the kept image has none, and captions are not merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that show the same: every member lies within the radius of the kept one."""

    kept: Path
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPair:
    """Two images that stay, one of them the other's mirror image."""

    path: Path
    mirror_of: Path
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedPair:
    """Two images that stay, one of them the other turned."""

    path: Path
    turned_from: Path
    degrees: float  # counter-clockwise, -180..180
    correlation: float  # of the discs about their centres, 0..1
