"""`edkit import webdataset`: tar shards of images with captions, read as streams from files, folders or a pipe."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from edkit.data.errors import BadInput, UsageError
from edkit.data.options import decode, one_line_text
from edkit.data.progress import SILENT, Progress
from edkit.gather.archives import Fault, Sample, samples
from edkit.gather.candidate import Candidate, Funnel, whole_text
from edkit.gather.local import Imported, Item, Target, absolute, run_import
from edkit.gather.place import Captions

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STDIN = "-"
CAPTION_KEYS = ("caption", "text", "txt", "top_caption", "alt_text", "prompt", "description", "title")
_URLS = ("url", "image_url", "original_url", "coco_url")
_LICENCES = ("license", "licence", "license_url")
_AUTHORS = ("author", "creator", "credit", "photographer", "artist")
_PAGES = ("page", "page_url", "source_url", "foreign_landing_url")
_CHECKSUMS = (("sha256", 64), ("md5", 32))
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_BRACED = 1_000_000


def import_webdataset(
    shards: Sequence[Path | str],
    *,
    out: Path,
    caption_key: str = "",
    caption: str | None = None,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put the images of tar shards (files, folders, patterns, `{000..099}`, `-` for stdin) with captions into `out`.

    Captions come from the `.caption` or `.txt` beside an image, or from its `.json` (`caption_key` names the
    field). Raises UsageError for shards that lead to nothing.
    """
    target = Target(
        out=out,
        limit=limit,
        captions=captions,
        caption=caption,
        licence=licence,
        author=author,
        dry_run=dry_run,
        state_dir=state_dir,
        progress=progress,
    )
    found = locate_shards(shards)

    def source(funnel: Funnel) -> Iterator[Item]:
        for shard in found:
            yield from shard_items(shard, funnel, caption_key=caption_key, caption=caption)

    asked = [[str(shard if shard == STDIN else absolute(Path(shard))) for shard in found], caption_key, caption]
    return run_import("webdataset", source, target, asked=asked)


def locate_shards(shards: Sequence[Path | str]) -> list[Path | str]:
    """The tar files that names, folders, patterns and braces lead to, each once, in order; `-` is stdin.

    Raises UsageError for what leads to nothing.
    """
    found: dict[Path | str, None] = {}
    for given in shards:
        text = str(given)
        if text == STDIN:
            found[STDIN] = None
            continue
        if text.startswith("pipe:") or "://" in text:
            mend = "curl -L URL | edkit import webdataset - --out DIR"
            raise UsageError(f"{text}: shards are read from disks and from a pipe: {mend}")
        for name in [text] if Path(text).exists() else expand_braces(text):
            path = Path(name)
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(TAR_SUFFIXES) and p.is_file())
                if not inside:
                    raise UsageError(f"{name}: no .tar files in this folder")
                found.update(dict.fromkeys(inside))
            elif path.is_file():
                found[path] = None
            else:
                matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
                if not matches:
                    raise UsageError(f"{name}: no such shard (a .tar, a folder, a pattern, or - for stdin)")
                found.update(dict.fromkeys(map(Path, matches)))
    if not found:
        raise UsageError("no shards given")
    return list(found)


def expand_braces(text: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as the names they stand for."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    first, dots, last = match[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        if abs(int(last) - int(first)) > _MAX_BRACED:
            raise UsageError(f"{text}: over {_MAX_BRACED:,} shards")
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    head, tail = text[: match.start()], text[match.end() :]
    return [f"{head}{choice}{rest}" for choice in choices for rest in expand_braces(tail)]


def shard_items(
    shard: Path | str,
    funnel: Funnel,
    *,
    caption_key: str = "",
    caption: str | None = None,
    strict: bool = False,
) -> Iterator[Item]:
    """One shard's samples as Items; what the archive does wrong comes as refused Items."""
    table = "stdin" if shard == STDIN else str(shard)
    with opened(shard) as stream:
        for number, found in enumerate(samples(stream)):
            if isinstance(found, Fault):
                url = f"tar:{Path(table).name}#{number}/{found.name}"
                refused = Candidate(url=url, caption="", table=table, row=number, key=found.name or "its start")
                yield Item(candidate=refused, refused=found.code, reason=found.reason)
                continue
            funnel.rows += 1
            funnel.left += 1
            yield sample_item(found, table, caption_key=caption_key, caption=caption, strict=strict)


@contextmanager
def opened(shard: Path | str) -> Iterator[IO[bytes]]:
    """A shard's bytes as a stream."""
    if shard == STDIN:
        raw = getattr(sys.stdin.buffer, "raw", None)
        yield sys.stdin.buffer if raw is None else io.BufferedReader(raw, 1 << 20)
        return
    try:
        # large reads: each one lets go of the interpreter, and waits to have it back
        with Path(shard).open("rb", buffering=1 << 20) as file:
            yield file
    except OSError as error:
        if error.filename is None or str(error.filename) != str(shard):
            raise
        raise BadInput(f"can't be read: {(error.strerror or str(error)).lower()}", where=str(shard)) from error


def sample_item(sample: Sample, table: str, *, caption_key: str, caption: str | None, strict: bool) -> Item:
    """A sample of an archive as an Item; its URL holds a hash, so that a new shard of an old name is new."""
    name = Path(table).name
    url = f"tar:{name}#{sample.key}@{short_hash(sample.image)}"
    plain = Candidate(url=url, caption="", table=table, row=sample.number, key=sample.key)
    if sample.too_large:
        return Item(candidate=plain, refused="too-large", reason=sample.too_large)
    if not sample.ending:
        others = ", ".join(f".{ending}" for ending in [*sample.texts, *sample.others]) or "nothing"
        return Item(candidate=plain, refused="no-image", reason=f"only {others}")
    try:
        meta = read_meta(sample.texts.get("json", b""), sample.key)
        text = caption_text_of(sample.texts, meta, sample.key, caption_key)
    except BadInput as error:
        return Item(candidate=plain, refused="bad-caption", reason=str(error))
    found = described(meta, plain)
    return captioned(Item(candidate=found, data=sample.image, strict=strict), text, caption)


def short_hash(data: bytes) -> str:
    """16 hex digits of an image's bytes, to tell it from another of its name.

    In pieces that hashlib hashes without letting go of the interpreter: taking it back from a busy pool costs more
    than the hash.
    """
    digest = hashlib.sha256()
    view = memoryview(data)
    for start in range(0, min(len(data), 1 << 20), 2000):
        digest.update(view[start : start + 2000])
    if len(data) > 1 << 20:
        digest.update(view[1 << 20 :])
    return digest.hexdigest()[:16]


def captioned(item: Item, text: str, fallback: str | None) -> Item:
    """The item with its caption, or the one that stands in for none, or refused."""
    text = whole_text(text).strip()
    if not text and fallback is None:
        item.refused, item.data = "no-caption", None
        return item
    item.candidate = replace(item.candidate, caption=text or fallback or "")
    return item


def caption_text_of(texts: Mapping[str, bytes], meta: Mapping[str, Any], where: str, caption_key: str) -> str:
    """The caption of a sample: the named JSON field, else .caption, .txt, or a JSON field of a known name.

    Raises BadInput for text that is none, and for a named field that holds no text.
    """
    if caption_key:
        value = meta.get(caption_key)
        text = first_text(value)
        if value is not None and text is None:
            raise BadInput(f"{caption_key} holds no text", where=where)
        if text:
            return text
    for ending in ("caption", "txt", "text"):
        if ending in texts:
            text = one_line_text(decode(texts[ending], f"{where}.{ending}"))
            if text:
                return text
    lower = {key.lower(): value for key, value in meta.items()}
    return next((text for key in CAPTION_KEYS if (text := first_text(lower.get(key)))), "")


def first_text(value: object) -> str | None:
    """A text, or the first of a list of texts, on one line; None for anything else."""
    if isinstance(value, list) and value:
        value = value[0]
    return one_line_text(value) if isinstance(value, str) else None


def read_meta(data: bytes, where: str) -> dict[str, Any]:
    """A sample's JSON object ({} where there is none); BadInput for what is no JSON."""
    if not data.strip():
        return {}
    try:
        meta = json.loads(decode(data, f"{where}.json"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", where=f"{where}.json") from error
    return meta if isinstance(meta, dict) else {}


def described(meta: Mapping[str, Any], plain: Candidate) -> Candidate:
    """The candidate with what a JSON object or table row says: address, licence, author, size, checksum."""
    lower = {str(key).lower(): value for key, value in meta.items()}

    def text(names: Sequence[str]) -> str:
        return next((v.strip() for n in names if isinstance(v := lower.get(n), str) and v.strip()), "")

    def number(*names: str) -> int:
        values = (lower.get(name) for name in names)
        return next((int(v) for v in values if isinstance(v, int | float) and v == v and 0 < v < 1e6), 0)

    url = text(_URLS)
    checksum = ""
    for name, length in _CHECKSUMS:
        value = text([name]).lower()
        if len(value) == length and all(c in "0123456789abcdef" for c in value):
            checksum = value
            break
    return replace(
        plain,
        url=url if url.startswith(("http://", "https://")) else plain.url,
        licence=text(_LICENCES),
        author=text(_AUTHORS),
        page=text(_PAGES),
        width=number("original_width", "width"),
        height=number("original_height", "height"),
        checksum=checksum,
    )
