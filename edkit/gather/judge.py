"""Whether received bytes are an image that is wanted; runs in a pool, off the event loop."""

from __future__ import annotations

import hashlib
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock

from edkit.data.errors import BadInput
from edkit.data.image import Header, TooManyPixels, suffix_for, verify
from edkit.gather.request import CheckHash, Failed

PHASH_RADIUS = 10
"""Bits of 64 by which a picture's perceptual hash may differ from its table's.

COYO's hashes look like imagehash's pHash of the file as it was (32 bits set, the first among them). Measured on 80
COCO photos: ours, of a picture decoded at a fraction, is at most 4 bits from imagehash's, also once the photo is saved
at quality 30, halved, or brought to a third as WEBP; with 2% cut off every side it is at most 10. Of their 3,160
pairs none comes nearer than 15. See docs/politeness.md.
"""

_LARGE_PIXELS, _LARGE = 20_000_000, Lock()  # larger pictures are decoded one at a time: each takes 100 MB or more
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A good image."""

    header: Header
    sha256: str
    suffix: str
    checksum_matches: bool | None
    phash_distance: int | None


def judge(
    data: bytes,
    *,
    content_type: str,
    max_pixels: int,
    min_size: int,
    max_aspect: float | None,
    checksum: str = "",
    phash: str = "",
    check_hash: CheckHash | bool = "off",
) -> Verdict:
    """Decode to the last row and compare with what the table says; Failed where it is no image or not wanted."""
    if not data:
        raise Failed("empty")
    header = _header(data, content_type, max_pixels, min_size, max_aspect)
    sha256 = hashlib.sha256(data).hexdigest()
    matches: bool | None = None
    if checksum:
        actual = sha256 if len(checksum) == 64 else hashlib.md5(data, usedforsecurity=False).hexdigest()
        matches = actual == checksum.lower()
    distance = _distance(data, header, phash, max_pixels) if phash else None
    if matches is None and distance is not None:
        matches = distance <= PHASH_RADIUS
    refused = ""
    if checksum and check_hash == "strict" and not matches:
        refused = f"{actual} is not {checksum}"
    elif check_hash == "perceptual" and distance is not None and distance > PHASH_RADIUS:
        refused = f"its perceptual hash differs in {distance} of 64 bits"
    if refused:
        failed = Failed("hash", refused, num_bytes=len(data))
        failed.checksum_matches, failed.phash_distance = matches, distance
        raise failed
    return Verdict(
        header=header,
        sha256=sha256,
        suffix=suffix_for(header.format),
        checksum_matches=matches,
        phash_distance=distance,
    )


def unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body without a Content-Encoding that was not asked for; Failed where that is a bomb or unknown."""
    if encoding in ("", "identity", "none"):
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failed("not-an-image", f"packed as {encoding[:40]}", num_bytes=len(data))
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, by its own header
    try:
        plain = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        # servers that call a plain file gzip are common
        if data.startswith(_MAGIC):
            return data
        raise Failed("broken-image", f"{encoding}: {error}", num_bytes=len(data)) from error
    if len(plain) > max_bytes:
        raise Failed("too-large", f"over {max_bytes:,} bytes unpacked", num_bytes=len(data))
    return plain


def _header(data: bytes, content_type: str, max_pixels: int, min_size: int, max_aspect: float | None) -> Header:
    """What the image is, once it decodes to its last row."""
    num_bytes, is_image = len(data), False

    def wanted(header: Header) -> None:
        nonlocal is_image
        suffix_for(header.format)
        is_image = True
        width, height = header.width, header.height
        if min(width, height) < min_size:
            raise Failed("too-small", f"{width} x {height}", num_bytes=num_bytes)
        if max_aspect is not None and max(width, height) > min(width, height) * max_aspect:
            raise Failed("extreme-aspect", f"{width} x {height}", num_bytes=num_bytes)
        if width * height > _LARGE_PIXELS:
            one_at_a_time.enter_context(_LARGE)

    one_at_a_time = ExitStack()
    try:
        with one_at_a_time:
            return verify(data, max_pixels=max_pixels, first=wanted)
    except TooManyPixels as error:
        raise Failed("too-many-pixels", error.what, num_bytes=num_bytes) from error
    except BadInput as error:
        if is_image or data.startswith(_MAGIC) or data[4:8] == b"ftyp":
            raise Failed("broken-image", error.what, num_bytes=num_bytes) from error
        raise Failed("not-an-image", _kind(data, content_type), num_bytes=num_bytes) from error


def _distance(data: bytes, header: Header, phash: str, max_pixels: int) -> int | None:
    """Bits by which the picture's pHash differs from a table's; None where that is no 64-bit hash."""
    from edkit.measure.facts import View
    from edkit.measure.hashes import phashes

    try:
        wanted = int(phash, 16)
    except ValueError:
        return None
    if len(phash) != 16:
        return None
    view = View(data, max_pixels=max_pixels)
    seen = [view.phashes[0]]
    if header.orientation != 1:
        # the table's hash may be of the picture as it is stored
        from PIL import Image

        turn = Image.Transpose
        back = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
                6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
        seen.append(phashes(view.small_gray.transpose(back[header.orientation]))[0])
    return min((int(each, 16) ^ wanted).bit_count() for each in seen)


def _kind(data: bytes, content_type: str) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head:
        return "a web page"
    return f"{content_type or 'unknown'} content"
