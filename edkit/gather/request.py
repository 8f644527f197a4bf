"""What is asked of the fetcher and what it answers: settings, a request, how it ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edkit import __version__
from edkit.data.errors import UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS

CheckHash = Literal["off", "strict", "perceptual"]
PRODUCT = "edkit"  # our name in robots.txt and in X-Robots-Tag
USER_AGENT = f"{PRODUCT}/{__version__} (collects training images; obeys robots.txt, opt-outs and Retry-After)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How to fetch, and what an image must be. Raises UsageError where made from nonsense."""

    concurrency: int = 64
    per_host: int = 8
    timeout: float = 30.0  # seconds for one try, redirects included
    idle_timeout: float = 10.0  # seconds without a byte
    min_rate: int = 500  # bytes a second, once `idle_timeout` seconds have passed
    retries: int = 2  # after the first try
    max_bytes: int = 50_000_000
    max_pixels: int = DEFAULT_MAX_PIXELS
    min_size: int = 0
    max_aspect: float | None = None
    check_hash: CheckHash | bool = "off"
    user_agent: str = USER_AGENT
    allow_private: bool = False
    honour_robots: bool = True
    honour_opt_out: bool = True  # X-Robots-Tag: noai and its kin, TDM-Reservation: 1
    fails_in_a_row: int = 5  # after which a host is left alone
    rests: tuple[float, ...] = (
        2.0,
        8.0,
        20.0,
    )  # seconds between which a failing host is tried once; then it's given up

    def __post_init__(self) -> None:
        if isinstance(self.check_hash, bool):  # the switch it was before there were two ways
            object.__setattr__(self, "check_hash", "strict" if self.check_hash else "off")
        if self.check_hash not in ("off", "strict", "perceptual"):
            raise UsageError(f"--check-hash {self.check_hash}: off, strict or perceptual")
        for name in ("concurrency", "per_host", "timeout", "idle_timeout", "max_bytes", "max_pixels"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: more than 0")
        if self.retries < 0:
            raise UsageError(f"--retries {self.retries}: 0 or more")
        agent = self.user_agent.strip()
        if not agent or not agent.isprintable() or not agent.isascii():
            raise UsageError("--user-agent: one line of ASCII that says who fetches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One URL to fetch; `ticket` is the caller's own number, and lower ones go first."""

    ticket: int
    url: str
    checksum: str = ""  # md5 or sha256, hex
    phash: str = ""  # 64-bit perceptual hash, 16 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """How a request ended. `code` is FETCHED where a good image lies under `staged`, else an Outcome's."""

    ticket: int
    code: str
    reason: str = ""
    http_status: int | None = None
    final_url: str = ""
    sha256: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    suffix: str = ""  # of what the content is, ".jpg"
    tries: int = 1
    staged: Path | None = None
    checksum_matches: bool | None = None  # its perceptual hash where it has no other; None: the table has none
    phash_distance: int | None = None  # bits of 64 that differ from the table's; None: the table has none


class Failed(Exception):
    """One try ended without an image; `code` is an Outcome's."""

    def __init__(self, code: str, reason: str = "", *, retry_after: float = 0.0, num_bytes: int = 0) -> None:
        super().__init__(code, reason)
        # some libraries quote what they received, all of it
        reason = " ".join(reason.split("\n", 1)[0].split())[:200]
        self.code, self.reason, self.retry_after, self.num_bytes = code, reason, retry_after, num_bytes
        self.http_status: int | None = None
        self.final_url = ""
        self.checksum_matches: bool | None = None
        self.phash_distance: int | None = None


def stage_name(url: str) -> str:
    """The name of a URL's file in the staging folder, without its ending."""
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
