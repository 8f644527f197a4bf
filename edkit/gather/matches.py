"""Matches written as a table that `scrape` reads back: columns under names that `tables.py` knows."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edkit.data.atomic import sync_folder
from edkit.data.errors import BadInput, UsageError
from edkit.gather.candidate import Candidate

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 20_000  # written at once; a Parquet row group
_COLUMNS = {
    "url": "url",
    "caption": "caption",
    "width": "width",
    "height": "height",
    "license": "licence",
    "author": "author",
    "page": "page",
    "key": "key",
    "checksum": "checksum",
    "image_phash": "phash",
    "table": "table",
    "row": "row",
}
"""A column's name -> the Candidate's field."""
_INTEGERS = ("width", "height", "row")
ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")


def write(path: Path, candidates: Iterable[Candidate]) -> int:
    """Write candidates as .parquet, .csv, .tsv or .jsonl (UTF-8), and return how many.

    Streamed, and whole or not at all: the file gets its name once everything stands in it. Tabs and line breaks
    within a .tsv's cells become blanks, as TSV has no way to write them.
    Raises UsageError for another ending, BadInput where it can't be written.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{path}: matches are written as {', '.join(ENDINGS)}")
    temporary = path.with_name(f".edkit-{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            count = _write_parquet(file, candidates) if ending == ".parquet" else _write_lines(file, candidates, ending)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f"can't be written: {error.strerror or error}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return count


def _parts(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    rest = iter(candidates)
    while part := list(islice(rest, _ROWS)):
        yield part


def _write_parquet(file: IO[bytes], candidates: Iterable[Candidate]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64() if name in _INTEGERS else pa.string()) for name in _COLUMNS])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in _parts(candidates):
            writer.write_table(_arrow(part, schema), row_group_size=_ROWS)
            count += len(part)
    return count


def _arrow(part: list[Candidate], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {name: [getattr(candidate, attribute) for candidate in part] for name, attribute in _COLUMNS.items()},
        schema=schema,
    )


def _write_lines(file: IO[bytes], candidates: Iterable[Candidate], ending: str) -> int:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
    count = 0
    names, attributes = list(_COLUMNS), list(_COLUMNS.values())
    rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a bare \r, too
    if ending == ".csv":
        rows.writerow(names)
    elif ending == ".tsv":
        text.write("\t".join(names) + "\n")
    for candidate in candidates:
        cells = [getattr(candidate, attribute) for attribute in attributes]
        if ending == ".csv":
            rows.writerow(cells)
        elif ending == ".tsv":
            text.write("\t".join(" ".join(str(cell).replace("\t", " ").splitlines()) for cell in cells) + "\n")
        else:
            text.write(json.dumps(dict(zip(names, cells, strict=True)), ensure_ascii=False) + "\n")
        count += 1
    text.flush()
    text.detach()
    return count
