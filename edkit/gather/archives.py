"""Tar shards as a stream of samples: members with one key, in memory, never written under a name of the archive.

Nothing here seeks, so a pipe will do. Headers are parsed by the standard library block by block; what a hostile
archive can do (names that lead out, links, devices, holes, headers without end, gzip bombs) ends as a Fault with
an outcome's code, and what stood before it is still given.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, cast

from edkit.data.names import is_safe_path
from edkit.gather.local import MAX_BYTES

_BLOCK = 512
_MAX_HEADER = 1 << 20  # bytes of a long name or a pax header; real ones have some hundred
_MAX_TEXT = 1 << 20  # bytes of a caption or JSON member
_MAX_SAMPLE_TEXT = 4 << 20  # and of all of them in one sample
_CHUNK = 1 << 20
_BOMB_START = 256 << 20  # bytes unpacked before the ratio is judged
_BOMB_RATIO = 100  # images don't shrink; captions shrink ten times at most
# the key ends at the first dot of the last part of the name: "a/b/00012.seg.png" -> "a/b/00012", "seg.png"
_NAME = re.compile(r"((?:.*/)?[^/.][^/.]*)\.([^/]+)", re.DOTALL)
TEXT_ENDINGS = frozenset({"txt", "caption", "json", "text"})
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "avif", "heic", "bmp", "tif", "tiff", "gif", "jpe", "jfif", "heif")
"""Endings of image members, those first that win where a sample has several."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A member, or the rest of an archive, that is not taken: an outcome's code, the member's name, and why."""

    code: str
    name: str
    reason: str = ""


@dataclass(slots=True)
class Sample:
    """Members of one key: the image's bytes, and the texts beside it by ending."""

    key: str
    number: int  # its place in the archive, from 0
    ending: str = ""  # of the image; "": none was found
    image: bytes = b""
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # endings of members that are not read
    too_large: str = ""  # why the image was not read


@dataclass(slots=True)
class _Member:
    name: str
    kind: bytes
    size: int


class _Stop(Exception):
    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(code, reason)


def samples(stream: IO[bytes]) -> Iterator[Sample | Fault]:
    """The samples of a tar stream (plain, gzip, bzip2 or xz), in its order; faults where they are met.

    Members of one key that stand together are one sample, as WebDataset has it.
    """
    number = 0
    current: Sample | None = None
    try:
        reader = _Unpacked(stream)
        for member in _members(reader):
            if isinstance(member, Fault):
                yield member
                continue
            if member.kind == tarfile.DIRTYPE:
                continue
            if not is_safe_path(member.name):
                yield Fault("unsafe-name", member.name)
                continue
            key, ending = split_name(member.name)
            if not ending:
                continue
            if current is None or current.key != key:
                if current is not None:
                    yield current
                current = Sample(key, number)
                number += 1
            fault = _add(current, ending, member, reader)
            if fault is not None:
                yield fault
    except _Stop as stop:
        where = current.key if current is not None else ""
        yield Fault(stop.code, where, stop.reason)
        return  # the sample in the making may lack its caption: it is not given
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        code = "truncated-archive" if isinstance(error, EOFError) else "broken-archive"
        yield Fault(code, current.key if current is not None else "", str(error))
        return
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str]:
    """A member's key and ending (lower case, no dot); ("", "") for hidden files and names without an ending."""
    while name.startswith("./"):
        name = name[2:]
    match = _NAME.fullmatch(name)
    if match is None or PurePosixPath(name).name.startswith("."):
        return "", ""
    return match[1], match[2].lower()


def _add(sample: Sample, ending: str, member: _Member, reader: _Unpacked) -> Fault | None:
    """Read one member into its sample; what is not wanted stays unread (`_members` hops over it)."""
    if ending in IMAGE_ENDINGS:
        if ending == sample.ending:
            return Fault("duplicate-member", member.name)
        better = not sample.ending or IMAGE_ENDINGS.index(ending) < IMAGE_ENDINGS.index(sample.ending)
        if not better:
            sample.others.append(ending)
            return None
        if sample.ending:
            sample.others.append(sample.ending)
        sample.ending, sample.too_large = ending, ""
        if member.size > MAX_BYTES:
            sample.image, sample.too_large = b"", f"{member.size:,} bytes"
        else:
            sample.image = reader.body(member.size)
        return None
    if ending in TEXT_ENDINGS:
        if ending in sample.texts:
            return Fault("duplicate-member", member.name)
        held = sum(map(len, sample.texts.values()))
        if member.size > _MAX_TEXT or held + member.size > _MAX_SAMPLE_TEXT:
            return Fault("too-large", member.name, f"{member.size:,} bytes of text")
        sample.texts[ending] = reader.body(member.size)
        return None
    if len(sample.others) < 16:
        sample.others.append(ending)
    return None


# ---- the tar


def _members(reader: _Unpacked) -> Iterator[_Member | Fault]:
    """Every member's header; its body may be read from `reader` before the next is asked for."""
    long_name, pax = "", {}
    num_extensions = 0
    while True:
        block = reader.block()
        if block is None:
            return
        if not block.strip(b"\0"):
            # two zero blocks end an archive; what stands after them belongs to nobody
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _Stop("broken-archive", f"no tar header where one should be ({error})") from error
        if info.size < 0:
            raise _Stop("broken-archive", "a member of negative size")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE) or (
            info.type == tarfile.SOLARIS_XHDTYPE
        ):
            num_extensions += 1
            if info.size > _MAX_HEADER or num_extensions > 8:
                raise _Stop("broken-archive", "a header of more than 1 MB, or headers without end")
            reader.start(info.size)
            body = reader.body(info.size)
            reader.skip()
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = _pax(body)
            continue
        num_extensions = 0
        name = pax.get("path") or long_name or info.name
        size = info.size
        if "size" in pax:
            try:
                size = int(pax["size"])
            except ValueError:
                raise _Stop("broken-archive", "a pax size that is no number") from None
            if size < 0:
                raise _Stop("broken-archive", "a member of negative size")
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax)
        extended = info.type == tarfile.GNUTYPE_SPARSE and block[482:483] not in (b"\0", b"")
        long_name, pax = "", {}
        if extended:
            while True:  # the map of holes goes on in blocks of its own
                more = reader.block()
                if more is None:
                    raise _Stop("truncated-archive", "it ends in a header")
                if more[504:505] in (b"\0", b""):
                    break
        regular = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        # the old form has no kind for folders but a name that ends so
        directory = info.type == tarfile.DIRTYPE or (info.type == tarfile.AREGTYPE and name.endswith("/"))
        # links and devices have no body, whatever their header says of a size
        bodyless = directory or info.type in (
            *(tarfile.LNKTYPE, tarfile.SYMTYPE),
            *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
        )
        reader.start(0 if bodyless else size)
        if sparse:
            yield Fault("sparse-member", name)
        elif directory:
            yield _Member(name, tarfile.DIRTYPE, 0)
        elif regular:
            yield _Member(name, info.type, size)
        elif info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            yield Fault("link-member", name, f"to {info.linkname}")
        elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            yield Fault("device-member", name)
        else:
            yield Fault("odd-member", name, f"type {info.type!r}")
        reader.skip()


def _pax(body: bytes) -> dict[str, str]:
    """A pax header's records: `length key=value\\n` each."""
    found: dict[str, str] = {}
    at = 0
    while at < len(body) and body[at] != 0:
        space = body.find(b" ", at, at + 20)
        length = int(body[at:space]) if space > at and body[at:space].isdigit() else 0
        record = body[space + 1 : at + length]
        if length <= 0 or not record.endswith(b"\n") or b"=" not in record:
            raise _Stop("broken-archive", "a pax header that is none")
        key, _, value = record[:-1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


class _Unpacked:
    """Reads a stream (unpacked where it is packed) block by block, and knows where a member's body ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._packed = _Counted(stream)
        head = self._packed.peek(6)
        self._is_packed = True
        if head.startswith(b"\x1f\x8b"):
            self._stream: IO[bytes] = cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", self._packed)))
        elif head.startswith(b"BZh"):
            self._stream = cast("IO[bytes]", bz2.BZ2File(cast("IO[bytes]", self._packed)))
        elif head.startswith(b"\xfd7zXZ\0"):
            packed = cast("IO[bytes]", self._packed)
            self._stream = cast("IO[bytes]", lzma.LZMAFile(packed))  # noqa: SIM115  # noqa: SIM115
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            raise _Stop("broken-archive", "packed with zstd: unpack it first (zstd -dc FILE | edkit import ... -)")
        else:
            self._stream, self._is_packed = cast("IO[bytes]", self._packed), False
        self._num_out = 0
        self._left = self._padding = 0  # bytes of the member at hand that are not read yet

    def block(self) -> bytes | None:
        """The next header block; None at the end of the stream."""
        data = self._read(_BLOCK)
        if not data:
            return None
        if len(data) < _BLOCK:
            raise _Stop("truncated-archive", "it ends in a header")
        return data

    def start(self, size: int) -> None:
        """A member's body of that many bytes begins here."""
        self._left, self._padding = size, -size % _BLOCK

    def body(self, size: int) -> bytes:
        """The body of the member at hand."""
        data = self._read(size)
        if len(data) < size:
            raise _Stop("truncated-archive", "it ends in a file")
        self._left -= size
        return data

    def skip(self) -> None:
        """Go to the next header."""
        left = self._left + self._padding
        while left:
            data = self._read(min(left, _CHUNK))
            if not data:
                if left <= self._padding:
                    break  # only padding is missing: nothing of the file is
                raise _Stop("truncated-archive", "it ends in a file")
            left -= len(data)
        self._left = self._padding = 0

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            data = self._stream.read(min(size, _CHUNK))
            if not data:
                break
            parts.append(data)
            size -= len(data)
            self._num_out += len(data)
            packed = self._packed.num_read
            if self._is_packed and self._num_out > _BOMB_START and self._num_out > packed * _BOMB_RATIO:
                raise _Stop("broken-archive", f"{packed:,} bytes unpack to over {self._num_out:,}: a bomb")
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Counted:
    """A stream that counts what was read of it, and can be peeked into at its start."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._head, self.num_read = stream, b"", 0

    def peek(self, size: int) -> bytes:
        """The first bytes, which stay to be read."""
        while len(self._head) < size:
            data = self._stream.read(size - len(self._head))
            if not data:
                break
            self._head += data
        return self._head

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; nothing at the end."""
        if self._head:
            data = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(data) :]
        else:
            data = self._stream.read(size)
        self.num_read += len(data)
        return data
