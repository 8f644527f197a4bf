"""LAION-like tables: which files they are, here or on the network, and which column is what.

Parquet, CSV, TSV (with and without a header line) and JSON lines; the last three also under .gz, .bz2 and .zst.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

from edkit.data.errors import BadInput, UsageError
from edkit.gather.remote import Remote, RemoteFile, is_remote, locate_remote

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["parquet", "csv", "tsv", "jsonl"]
KINDS: Mapping[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv000": "csv",  # Unsplash Lite
    ".tsv": "tsv",
    ".tsv000": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

# names seen in the wild, preferred ones first; case never counts
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "photo_image_url", "originalurl", "coco_url"),
    "caption": (
        *("text", "txt", "caption", "top_caption", "alt_text"),
        *("photo_description", "ai_description"),
    ),
    "width": ("original_width", "width", "photo_width"),
    "height": ("original_height", "height", "photo_height"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "unsafe": ("punsafe", "nsfw", "nsfw_score_opennsfw2"),
    "watermark": ("pwatermark", "watermark_score"),
    "similarity": (
        *("similarity", "clip_similarity_vitl14", "clip_similarity_vitb32"),
        *("clip_l14_similarity_score", "clip_b32_similarity_score"),
    ),
    "licence": ("license", "licence"),
    "author": ("author", "creator", "credit", "photographer_username"),
    "page": ("page", "originallandingurl", "foreign_landing_url"),
    "language": ("language",),
    "checksum": ("sha256", "sha256hash", "md5", "originalmd5", "checksum", "hash"),
    "phash": ("image_phash", "phash"),
    "key": ("sample_id", "key", "uid", "photo_id", "imageid", "id"),
}
NUMBERS = frozenset({"width", "height", "aesthetic", "unsafe", "watermark", "similarity"})

ColumnKind = Literal["text", "number", "nested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file, its columns, and which of them is what."""

    source: Path | Remote
    kind: Kind
    names: tuple[str, ...]
    columns: Mapping[str, str]  # role ("url", "caption", "width", ...) -> the column's name
    kinds: Mapping[str, ColumnKind] = field(default_factory=dict)  # column -> what it holds; unnamed: text
    header: bool = True  # CSV and TSV: the first line holds the names
    delimiter: str = ","

    @property
    def name(self) -> str:
        """As the user gave it, without what a signed address keeps secret."""
        return name_of(self.source)

    @property
    def path(self) -> Path:
        """The local file; for one on the network its name, as a path that leads nowhere."""
        return self.source if isinstance(self.source, Path) else Path(self.source.name)

    @property
    def identity(self) -> str:
        """The same for the same file, whatever folder the command is called in."""
        return os.path.realpath(self.source) if isinstance(self.source, Path) else self.source.name

    def column(self, role: str, option: str = "") -> str:
        """The column for a role; BadInput that lists the columns there are, where there is none."""
        if role in self.columns:
            return self.columns[role]
        wanted = f"no column for the {role}" + (f", which {option} needs" if option else "")
        raise BadInput(
            f"{wanted}; its columns are {', '.join(self.names)}",
            where=self.name,
            mend=f"--columns {role}=NAME",
        )

    def open_random(self) -> Any:
        """The file's bytes for reading anywhere, in a `with` block: a pyarrow file, or a RemoteFile."""
        return _open_random(self.source)

    def expect(self, file: Any, ranges: Sequence[tuple[int, int]]) -> None:
        """Tell a file on the network which (start, end) will be read from it, so that it reads ahead there."""
        if isinstance(file, RemoteFile):
            file.expect(ranges)

    def open_stream(self) -> Any:
        """The file's bytes from the start, unpacked, in a `with` block."""
        return _open_stream(self.source)


def name_of(source: Path | Remote) -> str:
    """A table as messages and the ledger name it."""
    return str(source) if isinstance(source, Path) else source.name


def kind_of(name: str) -> tuple[Kind, str] | None:
    """What a file's name says it is: (kind, compression or ""); None for no table."""
    path = PurePosixPath(name.lower().replace("\\", "/"))
    compression = COMPRESSIONS.get(path.suffix, "")
    kind = KINDS.get(PurePosixPath(path.stem).suffix if compression else path.suffix)
    return None if kind is None or (compression and kind == "parquet") else (kind, compression)


def locate(tables: Sequence[Path | str]) -> list[Path | Remote]:
    """The table files that files, folders and globs name, each once, folders in sorted order.

    On the network: `https://`, `hf://datasets/org/name/path`, `s3://` and whatever fsspec has a driver for; all but
    `https://` with folders and globs. Raises UsageError for a name that leads to nothing, BadInput and MissingExtra
    where the network says no.
    """
    found: dict[str, Path | Remote] = {}
    for name in tables:
        text, path = str(name), Path(name)
        files: Sequence[Path | Remote]
        if is_remote(text):
            files = locate_remote(text, lambda inside: kind_of(inside) is not None)
            if not files:
                raise UsageError(f"{text}: no tables there", mend=f"it reads {_endings()}")
        elif path.is_dir():
            inside = [p for p in path.rglob("*") if kind_of(p.name) and p.is_file()]
            files = sorted(p for p in inside if not any(c.startswith(".") for c in p.relative_to(path).parts))
            if not files:
                raise UsageError(f"{text}: no tables in this folder", mend=f"it reads {_endings()}")
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(text, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(p for p in map(Path, matches) if p.is_file())
            if not files:
                raise UsageError(f"{text}: no such table (a file, a folder or a pattern like 'laion/*.parquet')")
        for file in files:
            found.setdefault(str(file) if isinstance(file, Path) else file.url, file)
    return list(found.values())


def open_table(source: Path | str | Remote, *, columns: Mapping[str, str] | None = None) -> Table:
    """Read the file's schema and find out which column is what; `columns` overrides by role.

    Raises BadInput for a file that is no table, or an override that names no column.
    """
    if isinstance(source, str):
        source = locate([source])[0] if is_remote(source) else Path(source)
    name = name_of(source)
    known = kind_of(name)
    if known is None:
        raise BadInput("not a table", where=name, mend=f"it reads {_endings()}")
    kind = known[0]
    import pyarrow as pa

    header, delimiter = True, "\t" if kind == "tsv" else ","
    first: list[str] = []
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            with _open_random(source) as file:
                schema = pq.read_schema(file)
            names = tuple(schema.names)
            kinds = {column.name: _kind_of(column.type) for column in schema}
        else:
            with _open_stream(source) as file:
                start = _first_lines(name, file)
            if kind == "jsonl":
                kinds = _json_kinds(start)
                names = tuple(kinds)
            else:
                delimiter, first = _first_record(start, kind)
                header = not any(_is_address(cell) for cell in first)
                names = tuple(first) if header else tuple(f"f{i}" for i in range(len(first)))
                kinds = {}
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BadInput(f"can't be read as {kind}: {error}", where=name) from error
    if not names:
        raise BadInput(f"can't be read as {kind}: there is nothing in it", where=name)
    roles = _roles(name, names, kinds, None if header else first, columns)
    for column in roles.values():
        if names.count(column) > 1:
            raise BadInput(f"has two columns named {column}", where=name, mend="rename one of them")
    return Table(
        source=source,
        kind=kind,
        names=names,
        columns=roles,
        kinds=kinds,
        header=header,
        delimiter=delimiter,
    )


def _endings() -> str:
    return f"{', '.join(KINDS)}, all but Parquet also with {', '.join(COMPRESSIONS)}"


# ---- bytes


@contextmanager
def _open_random(source: Path | Remote) -> Iterator[Any]:
    if isinstance(source, Path):
        import pyarrow as pa

        with pa.OSFile(str(source)) as file:
            yield file
    else:
        with source.open_random() as file:
            yield file


@contextmanager
def _open_stream(source: Path | Remote) -> Iterator[IO[bytes]]:
    known = kind_of(name_of(source))
    compression = known[1] if known else ""
    with source.open("rb") if isinstance(source, Path) else source.open_stream() as raw:
        if not compression:
            yield raw
            return
        import pyarrow as pa

        # Python 3.11 has no zstd of its own
        with pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression) as file:
            yield file


# ---- which column is what


def _roles(
    table: str,
    names: tuple[str, ...],
    kinds: Mapping[str, ColumnKind],
    cells: Sequence[str] | None,
    overrides: Mapping[str, str] | None,
) -> dict[str, str]:
    """`cells`: the first row of a table without a header."""
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.strip().lower(), name)
    found: dict[str, str] = {}
    for role, spellings in SPELLINGS.items():
        for spelling in spellings:
            column = lower.get(spelling)
            # LAION's int64 `hash` is a row key; PD12M's text one is an MD5
            is_row_key = spelling == "hash" and column is not None and kinds.get(column, "text") != "text"
            if column is not None and not is_row_key and kinds.get(column) != "nested":
                found[role] = column
                break
    if cells is not None:
        found = _headerless(names, cells)
    for role, name in (overrides or {}).items():
        if role not in SPELLINGS:
            raise UsageError(f"--columns: no such role {role!r}; the roles are {', '.join(SPELLINGS)}")
        exact = name if name in names else lower.get(name.lower())
        if exact is None:
            raise BadInput(f"no column {name!r} (for the {role}); its columns are {', '.join(names)}", where=table)
        if kinds.get(exact) == "nested":
            raise BadInput(f"column {exact!r} holds lists or structures, which are no {role}", where=table)
        found[role] = exact
    return found


def _headerless(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """CC3M and CC12M: two columns, and the one that holds addresses is the url."""
    url = next(i for i, cell in enumerate(cells) if _is_address(cell))
    found = {"url": names[url]}
    if len(names) == 2:
        found["caption"] = names[1 - url]
    return found


def _is_address(cell: str) -> bool:
    return cell.strip().strip('"').lower().startswith(("http://", "https://"))


def _kind_of(type_: pa.DataType) -> ColumnKind:
    import pyarrow as pa

    of = pa.types
    if of.is_dictionary(type_):
        type_ = type_.value_type
    if of.is_integer(type_) or of.is_floating(type_):
        return "number"
    return "nested" if of.is_nested(type_) else "text"


# ---- the first lines of text tables


def _first_lines(table: str, file: IO[bytes], *, size: int = 1 << 20) -> bytes:
    """The start of a text table, whole lines where it has any; BadInput for one in UTF-16."""
    data = file.read(size)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput("is in UTF-16", where=table, mend="save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    return data if len(data) < size - 3 or b"\n" not in data else data[: data.rfind(b"\n") + 1]


def _first_record(start: bytes, kind: Kind) -> tuple[str, list[str]]:
    """The delimiter, and the cells of the first line with something in it."""
    import csv
    import io

    text = start.decode("utf-8", "replace").lstrip("\r\n")
    line = text.split("\n", 1)[0]
    delimiter = "\t"
    if kind == "csv":
        delimiter = max(",;\t|", key=lambda mark: (line.count(mark), -",;\t|".index(mark)))
        if "," in line and not _names_split(line, delimiter):
            delimiter = ","
    csv.field_size_limit(1 << 24)
    lines = io.StringIO(text, newline="")
    try:
        if kind == "tsv":
            return delimiter, next(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        return delimiter, next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error as error:
        raise EOFError(f"its first line: {error}") from error


def _names_split(line: str, delimiter: str) -> bool:
    """Whether a header split there gives a column that edkit knows."""
    known = {spelling for spellings in SPELLINGS.values() for spelling in spellings}
    return delimiter == "," or any(cell.strip().strip('"').lower() in known for cell in line.split(delimiter))


def _json_kinds(start: bytes) -> dict[str, ColumnKind]:
    """The fields of the first lines, in the order they come up."""
    kinds: dict[str, set[ColumnKind]] = {}
    for line in start.split(b"\n"):
        for name, value in (json_row(line) or {}).items():
            found = kinds.setdefault(name, set())
            if value is not None:
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                found.add("number" if is_number else "nested" if isinstance(value, (dict, list)) else "text")
    # a field of several kinds is read as text, which any of them can be
    return {name: next(iter(found)) if len(found) == 1 else "text" for name, found in kinds.items()}


def json_row(line: bytes) -> dict[str, Any] | None:
    """One line's object; None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
