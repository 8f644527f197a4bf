"""`edkit import ffhq`: Flickr-Faces-HQ from a folder or its servers, with author, licence and page of every image."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edkit.data.catalog import state_dir_for
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import is_safe_path
from edkit.data.progress import SILENT, Progress
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.fetch import USER_AGENT, stage_name
from edkit.gather.local import Imported, Item, Refused, Target, absolute, read_file, run_import
from edkit.gather.place import Captions
from edkit.gather.resume import Downloader

Size = Literal["1024", "128", "wild"]
_PARTS: Mapping[str, str] = {"1024": "image", "128": "thumbnail", "wild": "in_the_wild"}
_CHUNK = 1 << 18  # characters of the JSON read at a time
_MAX_RECORD = 1 << 24  # a record of FFHQ has some 4,000 characters


def import_ffhq(
    *,
    metadata: Path,
    out: Path,
    images: Path | None = None,
    download: bool = False,
    base_urls: Sequence[str] = (),
    size: Size = "1024",
    caption: str = "person",
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    concurrency: int = 8,
    timeout: float = 30.0,
    retries: int = 4,
    user_agent: str = USER_AGENT,
    allow_private_hosts: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put FFHQ's images in one `size` into `out`, all with one caption, in the order of ffhq-dataset-v2.json.

    From a folder (00000/00000.png or flat), or downloaded: from the addresses in the JSON, or from mirrors of
    its tree (`base_urls`, tried in turn). Size and MD5 of every file are checked; a broken download goes on where
    it stopped. Raises UsageError (options that don't go together), BadInput (a JSON that is not FFHQ's).
    """
    if (images is None) == (not download):
        raise UsageError("say where the images are: --images DIR, or --download")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: no such folder")
    if base_urls and not download:
        raise UsageError("--base-url goes with --download")
    if size not in _PARTS:
        raise UsageError(f"--size {size}: 1024, 128 or wild")
    if concurrency < 1 or retries < 0 or timeout <= 0:
        raise UsageError("--concurrency and --timeout: more than 0; --retries: 0 or more")
    target = Target(
        out=out,
        link=link,
        limit=limit,
        captions=captions,
        caption=caption,
        licence=licence,
        author=author,
        dry_run=dry_run,
        state_dir=state_dir,
        progress=progress,
    )
    asked = ["ffhq", size, caption]  # wherever the files come from: it is one set
    parts = state_dir_for(absolute(out), state_dir) / "cache" / "ffhq"

    def items(downloader: Downloader | None, funnel: Funnel) -> Iterator[Item]:
        for number, (key, record) in enumerate(records(metadata)):
            funnel.rows += 1
            item = _item(metadata, number, key, record, size, caption)
            if item is None:
                funnel.drop(f"no {size} image listed", 1)
                continue
            funnel.left += 1
            name, num_bytes = _place(record, size)
            if item.refused:
                pass
            elif images is not None:
                item.source = _find(images, name)
                item.load = partial(_load_local, images, name, num_bytes)
            elif downloader is not None:
                # never under a name that the JSON gives: it could lead out of the folder
                part = parts / f"{stage_name(item.candidate.url)}.part"
                urls = [f"{base.rstrip('/')}/{name}" for base in base_urls] or [item.candidate.url]
                item.load = partial(downloader.get, urls, part, size=num_bytes, md5=item.candidate.checksum)
                item.done = partial(part.unlink, missing_ok=True)
            yield item

    if images is not None or dry_run:
        return run_import("ffhq", partial(items, None), target, asked=asked)
    with Downloader(
        timeout=timeout, retries=retries, user_agent=user_agent, allow_private=allow_private_hosts
    ) as downloader:
        return run_import(
            "ffhq", partial(items, downloader), target, asked=asked, workers=concurrency, stop=downloader.close
        )


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and record of a JSON object of objects, one at a time, however large the file is.

    Raises BadInput where it is no such object, or ends early.
    """
    decoder = json.JSONDecoder()
    text, at, line = "", 0, "no ffhq-dataset-v2.json"
    try:
        with path.open(encoding="utf-8-sig") as file:

            def more() -> bool:
                nonlocal text, at
                chunk = file.read(_CHUNK)
                text, at = text[at:] + chunk, 0
                return bool(chunk)

            def mark() -> str:
                """The next character that is no white space, which is passed."""
                nonlocal at
                while True:
                    while at < len(text) and text[at] in " \t\r\n":
                        at += 1
                    if at < len(text):
                        at += 1
                        return text[at - 1]
                    if not more():
                        raise BadInput(f"{line}: it ends early", where=str(path), mend="fetch it again")

            def value() -> Any:
                nonlocal at
                while True:
                    try:
                        found, end = decoder.raw_decode(text, at)
                    except json.JSONDecodeError as error:
                        if len(text) - at > _MAX_RECORD or not more():
                            raise BadInput(f"{line}: {error.msg}", where=str(path)) from error
                        continue
                    at = end
                    return found

            if mark() != "{":
                raise BadInput(f"{line}: it is no object", where=str(path))
            first = True
            while True:
                sign = mark()
                if first and sign == "}":
                    return
                if sign != '"':
                    raise BadInput(f"{line}: no key where one should be", where=str(path))
                at -= 1
                key = value()
                if mark() != ":":
                    raise BadInput(f"{line}: no value after {key!r}", where=str(path))
                if mark() != "{":
                    raise BadInput(f"{line}: the value of {key!r} is no object", where=str(path))
                at -= 1
                yield key, value()
                first = False
                sign = mark()
                if sign == "}":
                    return
                if sign != ",":
                    raise BadInput(f"{line}: no comma after {key!r}", where=str(path))
    except OSError as error:
        raise BadInput((error.strerror or str(error)).lower(), where=str(path)) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{line}: {error}", where=str(path)) from error


def _item(metadata: Path, number: int, key: str, record: Mapping[str, Any], size: Size, caption: str) -> Item | None:
    """A record's image as an Item, without its bytes; None where the record lists none of this size."""
    about, file = record.get("metadata"), record.get(_PARTS[size])
    if not isinstance(file, dict) or not isinstance(file.get("file_path"), str):
        return None
    about = about if isinstance(about, dict) else {}
    path, md5 = file["file_path"], _text(file, "file_md5").lower()
    pixels = file.get("pixel_size")
    width, height = pixels if isinstance(pixels, list) and len(pixels) == 2 else (0, 0)
    candidate = Candidate(
        url=_text(file, "file_url") or f"ffhq:{path}",
        caption=caption,
        table=str(metadata),
        row=number,
        width=width if isinstance(width, int) else 0,
        height=height if isinstance(height, int) else 0,
        licence=_text(about, "license_url") or _text(about, "license"),
        author=_text(about, "author"),
        page=_text(about, "photo_url"),
        key=path,
        checksum=md5 if len(md5) == 32 else "",
    )
    item = Item(candidate=candidate, strict=True)
    if not is_safe_path(path):
        item.refused, item.reason = "unsafe-name", f"record {key} names {path}"
    return item


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    return value.strip() if isinstance(value, str) else ""


def _place(record: Mapping[str, Any], size: Size) -> tuple[str, int]:
    """The file's place in FFHQ's tree, and its bytes (0: not said)."""
    file = record[_PARTS[size]]
    num_bytes = file.get("file_size")
    return file["file_path"], num_bytes if isinstance(num_bytes, int) and num_bytes > 0 else 0


def _find(images: Path, name: str) -> Path:
    """Where a file of FFHQ's tree lies below `images`: the whole tree, its numbered folders, or flat."""
    shorter = "/".join(name.split("/")[-2:])
    tries = [images / name, images / shorter, images / posixpath.basename(name)]
    return next((path for path in tries if path.is_file()), tries[1])


def _load_local(images: Path, name: str, num_bytes: int) -> bytes:
    path = _find(images, name)
    data = read_file(path)
    if num_bytes and len(data) != num_bytes:
        raise Refused("wrong-size", f"{len(data):,} bytes, not {num_bytes:,}: another size, or saved anew")
    return data
