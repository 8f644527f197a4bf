"""LAION-like tables: which files, which column is what, and their rows as a stream in constant memory.

Parquet, CSV, TSV (with and without a header line) and JSON lines, all read by pyarrow. Numbers are decoded
first; the text columns of a Parquet row group are only touched where some row's numbers pass.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edkit.data.errors import BadInput, UsageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Mask = np.ndarray[Any, np.dtype[np.bool_]]

Kind = Literal["parquet", "csv", "tsv", "jsonl"]
KINDS: Mapping[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

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
    "language": ("language",),
    "checksum": ("sha256", "sha256hash", "md5", "hash"),
    "key": ("sample_id", "key", "uid", "photo_id", "imageid", "id"),
}
NUMBERS = frozenset({"width", "height", "aesthetic", "unsafe", "watermark", "similarity"})
_NSFW_WORDS = {"UNLIKELY": 0.0, "UNSURE": 0.5, "NSFW": 1.0}

BATCH_ROWS = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file, its columns, and which of them is what."""

    path: Path
    kind: Kind
    names: tuple[str, ...]
    columns: Mapping[str, str]  # role ("url", "caption", "width", ...) -> the column's name
    header: bool = True  # CSV and TSV: the first line holds the names

    def column(self, role: str, option: str = "") -> str:
        """The column for a role; BadInput that lists the columns there are, where there is none."""
        if role in self.columns:
            return self.columns[role]
        wanted = f"no column for the {role}" + (f", which {option} needs" if option else "")
        raise BadInput(
            f"{wanted}; its columns are {', '.join(self.names)}",
            where=str(self.path),
            mend=f"--columns {role}=NAME",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Up to BATCH_ROWS rows read together; `numbers` and `texts` hold the `selected` ones alone."""

    num_rows: int
    selected: np.ndarray[Any, np.dtype[np.int64]]  # row numbers in the file
    numbers: Mapping[str, Floats]  # NaN: unknown
    texts: Mapping[str, pa.Array]  # large_string


def locate(tables: Sequence[Path | str]) -> list[Path]:
    """The table files that files, folders and globs name, each once, folders in sorted order.

    Raises UsageError for a name that leads to nothing.
    """
    found: dict[Path, None] = {}
    for name in tables:
        text, path = str(name), Path(name)
        if "://" in text or text.startswith(("hf:", "s3:")):
            raise UsageError(f"{text}: tables are read from disks for now", mend="download the Parquet files first")
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in KINDS and p.is_file()]
            files = sorted(p for p in inside if not any(c.startswith(".") for c in p.relative_to(path).parts))
            if not files:
                raise UsageError(f"{text}: no tables in this folder", mend=f"it reads {', '.join(KINDS)}")
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(text, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(p for p in map(Path, matches) if p.is_file())
            if not files:
                raise UsageError(f"{text}: no such table (a file, a folder or a pattern like 'laion/*.parquet')")
        found.update(dict.fromkeys(files))
    return list(found)


def open_table(path: Path, *, columns: Mapping[str, str] | None = None) -> Table:
    """Read the file's schema and find out which column is what; `columns` overrides by role.

    Raises BadInput for a file that is no table, or an override that names no column.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadInput("not a table", where=str(path), mend=f"it reads {', '.join(KINDS)}")
    import pyarrow as pa

    header = True
    try:
        if kind in ("csv", "tsv"):
            names, header = _csv_names(path, kind)
            kinds: dict[str, bool] = {}
        else:
            schema = _schema(path, kind)
            names = tuple(schema.names)
            kinds = {field.name: _is_text(field.type) for field in schema}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't be read as {kind}: {error}", where=str(path)) from error
    return Table(path=path, kind=kind, names=names, columns=_roles(path, names, kinds, header, columns), header=header)


def scan(
    table: Table,
    *,
    numbers: Iterable[str],
    texts: Iterable[str],
    keep: Callable[[Mapping[str, Floats]], Mask],
) -> Iterator[Chunk]:
    """The rows whose numbers `keep` wants, with their texts, in the file's order.

    `numbers` and `texts` are roles the table has. Raises BadInput where the file breaks off or lies.
    """
    import pyarrow as pa

    stream = _scan_parquet if table.kind == "parquet" else _scan_lines
    try:
        yield from stream(table, tuple(numbers), tuple(texts), keep)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"broke off while it was read: {error}", where=str(table.path)) from error


# ---- which column is what


def _roles(
    path: Path,
    names: tuple[str, ...],
    is_text: Mapping[str, bool],
    header: bool,
    overrides: Mapping[str, str] | None,
) -> dict[str, str]:
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    found: dict[str, str] = {}
    for role, spellings in SPELLINGS.items():
        for spelling in spellings:
            column = lower.get(spelling)
            # LAION's int64 `hash` is a row key; PD12M's text one is an MD5
            if column is not None and not (spelling == "hash" and not is_text.get(column, True)):
                found[role] = column
                break
    if not header:
        found = _headerless(path, names, "\t" if path.suffix.lower() == ".tsv" else ",")
    for role, name in (overrides or {}).items():
        if role not in SPELLINGS:
            raise UsageError(f"--columns: no such role {role!r}; the roles are {', '.join(SPELLINGS)}")
        exact = name if name in names else lower.get(name.lower())
        if exact is None:
            raise BadInput(f"no column {name!r} (for the {role}); its columns are {', '.join(names)}", where=str(path))
        found[role] = exact
    return found


def _headerless(path: Path, names: tuple[str, ...], separator: str) -> dict[str, str]:
    """CC3M and CC12M: two columns, and the one that holds addresses is the url."""
    first = _first_line(path).split(separator)
    url = next(i for i, cell in enumerate(first) if _is_address(cell))
    found = {"url": names[url]}
    if len(names) == 2:
        found["caption"] = names[1 - url]
    return found


def _is_address(cell: str) -> bool:
    return cell.strip().strip('"').lower().startswith(("http://", "https://"))


# ---- reading


def _schema(path: Path, kind: Kind) -> pa.Schema:
    if kind == "parquet":
        import pyarrow.parquet as pq

        return pq.read_schema(path)
    from pyarrow import json

    with json.open_json(path) as reader:
        return reader.schema


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return file.readline().rstrip("\r\n")


def _csv_names(path: Path, kind: Kind) -> tuple[tuple[str, ...], bool]:
    from pyarrow import csv

    delimiter = "\t" if kind == "tsv" else ","
    header = not any(_is_address(cell) for cell in _first_line(path).split(delimiter))
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(autogenerate_column_names=not header, block_size=1 << 20),
        parse_options=_csv_parse(kind),
    ) as reader:
        return tuple(reader.schema.names), header


def _csv_parse(kind: Kind) -> Any:
    from pyarrow import csv

    # a TSV's quotes are part of its text
    return (
        csv.ParseOptions(delimiter="\t", quote_char=False)
        if kind == "tsv"
        else csv.ParseOptions(newlines_in_values=True)
    )


def _line_batches(table: Table) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if table.kind == "jsonl":
        from pyarrow import json

        with json.open_json(table.path) as reader:
            yield from reader
        return
    from pyarrow import csv

    with csv.open_csv(
        table.path,
        read_options=csv.ReadOptions(autogenerate_column_names=not table.header, block_size=4 << 20),
        parse_options=_csv_parse(table.kind),
        # all as text: a type guessed from the first block fails in the hundredth
        convert_options=csv.ConvertOptions(
            column_types={name: pa.string() for name in table.names},
            strings_can_be_null=True,
            null_values=[""],
        ),
    ) as reader:
        yield from reader


def _scan_lines(
    table: Table,
    numbers: tuple[str, ...],
    texts: tuple[str, ...],
    keep: Callable[[Mapping[str, Floats]], Mask],
) -> Iterator[Chunk]:
    import numpy as np
    import pyarrow as pa

    first = 0
    for batch in _line_batches(table):
        columns = {role: _floats(batch.column(table.columns[role])) for role in numbers}
        columns[""] = np.empty(batch.num_rows)  # so that `keep` knows the length where no number is read
        mask = keep(columns)
        selected = np.flatnonzero(mask)
        taken = batch.filter(pa.array(mask))
        yield Chunk(
            num_rows=batch.num_rows,
            selected=selected + first,
            numbers={role: columns[role][mask] for role in numbers},
            texts={role: _text(taken.column(table.columns[role])) for role in texts},
        )
        first += batch.num_rows


def _scan_parquet(
    table: Table,
    numbers: tuple[str, ...],
    texts: tuple[str, ...],
    keep: Callable[[Mapping[str, Floats]], Mask],
) -> Iterator[Chunk]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    text_names = [table.columns[role] for role in texts]
    with pq.ParquetFile(table.path, pre_buffer=False, buffer_size=1 << 20) as file:
        first = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            mask, kept = _number_pass(file, group, num_rows, table, numbers, keep)
            if not mask.any():
                yield Chunk(num_rows=num_rows, selected=np.empty(0, np.int64), numbers={}, texts={})
                first += num_rows
                continue
            start = taken = 0  # in the row group's rows, and in its kept rows
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=text_names):
                part = mask[start : start + batch.num_rows]
                passed = batch if part.all() else batch.filter(pa.array(part))
                found = slice(taken, taken + passed.num_rows)
                yield Chunk(
                    num_rows=batch.num_rows,
                    selected=np.flatnonzero(part) + first + start,
                    numbers={role: values[found] for role, values in kept.items()},
                    texts={role: _text(passed.column(table.columns[role])) for role in texts},
                )
                start += batch.num_rows
                taken += passed.num_rows
            first += num_rows


def _number_pass(
    file: Any,
    group: int,
    num_rows: int,
    table: Table,
    numbers: tuple[str, ...],
    keep: Callable[[Mapping[str, Floats]], Mask],
) -> tuple[Mask, dict[str, Floats]]:
    """Which rows of a row group `keep` wants, and the numbers of those."""
    import numpy as np

    if not numbers:
        return keep({"": np.empty(num_rows)}), {}
    masks: list[Mask] = []
    kept: dict[str, list[Floats]] = {role: [] for role in numbers}
    names = [table.columns[role] for role in numbers]
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
        columns = {role: _floats(batch.column(table.columns[role])) for role in numbers}
        mask = keep({**columns, "": np.empty(batch.num_rows)})
        masks.append(mask)
        for role, values in columns.items():
            kept[role].append(values[mask])
    return np.concatenate(masks), {role: np.concatenate(parts) for role, parts in kept.items()}


def _text(column: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.cast(column, pa.large_string())


def _floats(column: pa.Array) -> Floats:
    """Numbers as float64; NaN where there is none, or a text that is no number (NSFW's three words are)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        text = pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))
        for word, value in _NSFW_WORDS.items():
            text = pc.if_else(pc.equal(pc.utf8_upper(text), word), pa.scalar(str(value), pa.large_string()), text)
        is_number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        column = pc.if_else(is_number, text, pa.scalar(None, pa.large_string()))
    values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)
