"""`edkit import hf`: Hugging Face ImageFolders (images and a metadata table) and Parquet files that hold images."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edkit.data.errors import BadInput, MissingExtra, UsageError
from edkit.data.names import is_safe_path
from edkit.data.progress import SILENT, Progress
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.local import MAX_BYTES, Imported, Item, Refused, Target, read_file, run_import
from edkit.gather.place import Captions
from edkit.gather.webdataset import CAPTION_KEYS, captioned, described, first_text, short_hash

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_CAPTIONS = ("text", *(key for key in CAPTION_KEYS if key != "text"), "sentence", "sentences", "captions", "raw")
_ROWS = 64  # rows with images read at a time


def import_hf(
    source: Path | str,
    *,
    out: Path,
    caption_column: str = "",
    image_column: str = "",
    split: str = "",
    caption: str | None = None,
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put the images of a Hugging Face set (a folder, a Parquet file, or `hf://datasets/owner/name`) into `out`.

    An ImageFolder has metadata.jsonl, .csv or .parquet with `file_name`; hub sets hold the images' bytes in
    Parquet. `split` takes the files of one split alone. Raises UsageError for a place without either, BadInput for
    tables without the columns, listing those there are.
    """
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
    store = _store(source)
    tables = _tables(store, split)
    columns = _Columns(caption=caption_column, image=image_column)
    for table in tables[:1]:
        _check_columns(store, table, columns, needs_caption=caption is None)

    def items(funnel: Funnel) -> Iterator[Item]:
        for table in tables:
            yield from _table_items(store, table, columns, funnel, caption)

    asked = [store.url, [table.name for table in tables], caption_column, image_column, caption]
    return run_import("hf", items, target, asked=asked, workers=8 if store.remote else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The columns the user named; "": found by name."""

    caption: str
    image: str


# ---- where the set is


@dataclass(frozen=True, slots=True)
class _Store:
    """A folder on this machine, or one that fsspec reads; names in it are relative, with "/"."""

    url: str
    root: Path | None
    remote: Any = None  # an fsspec file system
    prefix: str = ""
    only: str = ""  # the one file that was named

    def names(self) -> list[str]:
        """Every file's name, sorted; hidden ones are none of the set."""
        if self.only:
            return [self.only]
        if self.root is not None:
            found = [p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()]
        else:
            inside = self.remote.find(self.prefix)
            found = [posixpath.relpath(name, self.prefix) for name in inside]
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file's bytes as a stream; BadInput where it can't be read."""
        try:
            if self.root is not None:
                with (self.root / name).open("rb") as file:
                    yield file
            else:
                with self.remote.open(posixpath.join(self.prefix, name), "rb") as file:
                    yield file
        except OSError as error:
            raise BadInput(f"can't be read: {error.strerror or error}", where=f"{self.url}/{name}") from error

    def load(self, name: str) -> bytes:
        """An image's bytes; Refused where they can't be had."""
        if self.root is not None:
            return read_file(self.root / name)
        try:
            with self.remote.open(posixpath.join(self.prefix, name), "rb") as file:
                data: bytes = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise Refused("missing", name) from None
        except OSError as error:
            raise Refused("unreadable", f"{name}: {error.strerror or error}") from error
        if len(data) > MAX_BYTES:
            raise Refused("too-large", name)
        return data


def _store(source: Path | str) -> _Store:
    text = str(source)
    if "://" not in text:
        path = Path(text).absolute()
        if path.is_dir():
            return _Store(str(path), path)
        if path.is_file():
            return _Store(str(path.parent), path.parent, only=path.name)
        raise UsageError(f"{text}: no such folder or file", mend="a set on the hub: hf://datasets/OWNER/NAME")
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("remote", "fsspec") from error
    try:
        remote, prefix = fsspec.core.url_to_fs(text)
        prefix = prefix.rstrip("/")
        if remote.isdir(prefix):
            return _Store(text.rstrip("/"), None, remote, prefix)
        if remote.exists(prefix):
            folder, _, name = prefix.rpartition("/")
            return _Store(text.rpartition("/")[0], None, remote, folder, only=name)
    except ImportError as error:
        raise MissingExtra("remote", "huggingface_hub" if text.startswith("hf:") else str(error)) from error
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"can't be read: {what}", where=text, mend="a gated set wants `hf auth login`") from error
    raise UsageError(f"{text}: nothing there")


def _tables(store: _Store, split: str) -> list[_Table]:
    """The metadata tables of an ImageFolder; else the Parquet files."""
    names = store.names()
    found = [_Table(name, True) for name in names if posixpath.basename(name).lower() in _METADATA]
    if not found:
        found = [_Table(name, False) for name in names if name.lower().endswith((".parquet", ".pq"))]
    if not found:
        raise UsageError(
            f"{store.url}: neither metadata.jsonl, .csv or .parquet nor Parquet files in it",
            mend="edkit import folder reads any tree of images, webdataset tar shards",
        )
    if split:
        # "train/metadata.jsonl", "data/train-00000-of-00002.parquet", "train.parquet"
        kept = [table for table in found if split in _split_words(table.name)]
        if not kept:
            words = sorted({word for table in found for word in _split_words(table.name)} - {"data"})
            raise UsageError(f"--split {split}: not in {store.url}; there is {', '.join(words[:10])}")
        found = kept
    return found


def _split_words(name: str) -> set[str]:
    *folders, last = name.split("/")
    return {*folders, last.split("-")[0].split(".")[0]} - {"metadata"}


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    is_metadata: bool  # of an ImageFolder: it names files


# ---- rows


def _table_items(
    store: _Store, table: _Table, columns: _Columns, funnel: Funnel, fallback: str | None
) -> Iterator[Item]:
    names: list[str] | None = None
    for number, row in enumerate(_rows(store, table)):
        if names is None:
            names = list(row)
            caption_column = _caption_column(columns, names)
        funnel.rows += 1
        funnel.left += 1
        text = first_text(row.get(caption_column)) or "" if caption_column else ""
        if table.is_metadata:
            yield _named(store, table, number, row, text, fallback)
        else:
            yield _held(store, table, number, row, columns, text, fallback)


def _named(store: _Store, table: _Table, number: int, row: Mapping[str, Any], text: str, fallback: str | None) -> Item:
    """A row that names its file, beside the table."""
    given = next((row[key] for key in ("file_name", "image_file_name") if isinstance(row.get(key), str)), None)
    where = f"{store.url}/{table.name}"
    if given is None:
        given = next((v for k, v in row.items() if k.endswith("_file_name") and isinstance(v, str)), "")
    plain = Candidate(url=f"{where}#{number}", caption="", table=where, row=number, key=given or f"row {number}")
    if not given:
        return Item(candidate=plain, refused="missing", reason=f"row {number} has no file_name")
    if not is_safe_path(given):
        return Item(candidate=plain, refused="unsafe-name", reason=f"row {number} names {given}")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(table.name), given.replace("\\", "/")))
    url = (store.root / name).as_uri() if store.root is not None else f"{store.url}/{name}"
    item = Item(candidate=described(row, replace(plain, url=url)))
    if store.root is not None:
        item.source = store.root / name
    else:
        item.load = lambda: store.load(name)
    return captioned(item, text, fallback)


def _held(
    store: _Store,
    table: _Table,
    number: int,
    row: Mapping[str, Any],
    columns: _Columns,
    text: str,
    fallback: str | None,
) -> Item:
    """A row that holds its image's bytes."""
    where = f"{store.url}/{table.name}"
    value = row.get(columns.image) if columns.image else _image_value(row)
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    key = path if isinstance(path, str) and path else f"row {number}"
    plain = Candidate(url=f"{where}#{number}", caption="", table=where, row=number, key=key)
    item = Item(candidate=described({k: v for k, v in row.items() if v is not value}, plain))
    if isinstance(data, bytes):
        # a hash, so that a new file of an old name is new
        if item.candidate.url == plain.url:
            item.candidate = replace(item.candidate, url=f"{plain.url}@{short_hash(data)}")
        item.data = data
    elif isinstance(path, str) and path:
        if not is_safe_path(path):
            return Item(candidate=plain, refused="unsafe-name", reason=f"row {number} names {path}")
        name = posixpath.normpath(posixpath.join(posixpath.dirname(table.name), path))
        item.load = lambda: store.load(name)
    else:
        return Item(candidate=plain, refused="no-image", reason=f"row {number} holds no image")
    return captioned(item, text, fallback)


def _image_value(row: Mapping[str, Any]) -> object:
    for value in row.values():
        if isinstance(value, dict) and "bytes" in value:
            return value
    return next((value for value in row.values() if isinstance(value, bytes)), None)


def _caption_column(columns: _Columns, names: Sequence[str]) -> str:
    """The column of captions: the one named, else the first known name; "" where there is none."""
    if columns.caption:
        return columns.caption if columns.caption in names else ""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in _CAPTIONS if name in lower), "")


def _check_columns(store: _Store, table: _Table, columns: _Columns, *, needs_caption: bool) -> None:
    """Raise BadInput, listing the columns there are, where the first table lacks what is needed."""
    names = _names(store, table)
    where, there = f"{store.url}/{table.name}", f"its columns are {', '.join(names)}"
    for option, name in (("--caption-column", columns.caption), ("--image-column", columns.image)):
        if name and name not in names:
            raise BadInput(f"{option} {name}: no such column; {there}", where=where)
    if needs_caption and not _caption_column(columns, names):
        raise BadInput(
            f"no column of captions; {there}", where=where, mend='--caption-column NAME, or --caption "..." for all'
        )
    if table.is_metadata and not any(name == "file_name" or name.endswith("_file_name") for name in names):
        raise BadInput(f"no column file_name; {there}", where=where)
    if not table.is_metadata and not columns.image and not _image_columns(store, table):
        raise BadInput(
            f"no column of images; {there}",
            where=where,
            mend="a table of URLs: edkit scrape TABLE --out DIR",
        )


def _names(store: _Store, table: _Table) -> list[str]:
    if table.name.lower().endswith((".parquet", ".pq")):
        return list(_schema(store, table).names)
    return next((list(row) for row in _rows(store, table)), [])


def _image_columns(store: _Store, table: _Table) -> list[str]:
    import pyarrow as pa

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return [entry.name for entry in _schema(store, table) if holds(entry.type)]


def _schema(store: _Store, table: _Table) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(table.name) as file:
        try:
            return pq.read_schema(file)
        except pa.ArrowException as error:
            raise BadInput(f"no Parquet: {error}", where=f"{store.url}/{table.name}") from error


def _rows(store: _Store, table: _Table) -> Iterator[dict[str, Any]]:
    """A table's rows, some at a time."""
    where = f"{store.url}/{table.name}"
    with store.open(table.name) as file:
        if table.name.lower().endswith(".jsonl"):
            yield from _json_rows(file, where)
        elif table.name.lower().endswith(".csv"):
            yield from _csv_rows(file, where)
        else:
            yield from _parquet_rows(file, where)


def _json_rows(file: IO[bytes], where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise BadInput(f"not JSON: {error}", where=f"{where}:{number}") from error
        if not isinstance(row, dict):
            raise BadInput("a line must be an object", where=f"{where}:{number}")
        yield row


def _csv_rows(file: IO[bytes], where: str) -> Iterator[dict[str, Any]]:
    import io

    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    try:
        for row in reader:
            yield {key: value for key, value in row.items() if key is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"no CSV: {error}", where=f"{where}:{reader.line_num}") from error


def _parquet_rows(file: IO[bytes], where: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # a row group may hold gigabytes of images: pages are read as they are needed
        table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        for batch in table.iter_batches(batch_size=_ROWS, use_threads=False):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"no Parquet: {error}", where=where) from error
