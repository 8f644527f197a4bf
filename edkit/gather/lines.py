"""Text tables (CSV, TSV, JSON lines) as blocks of whole lines, and the columns of a block.

Types are never guessed: cells are read as text. A line that can't be read is left out and keeps its number, so that
the rows after it keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from edkit.gather.tables import NUMBERS, Table, json_row

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Places = np.ndarray[Any, np.dtype[np.int64]]

_BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 32 << 20  # a longer line is no row of a table


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines, or, with empty bytes, one line that is too long or whose quotes never end."""

    data: bytes
    num_broken: int = 0  # lines before `data` that can't be read


def blocks(table: Table) -> Iterator[Block]:
    """The table's lines after its header, some megabytes at a time."""
    with table.open_stream() as file:
        yield from split(file, quoted=table.kind == "csv", skip_first=table.header and table.kind != "jsonl")


def split(file: IO[bytes], *, quoted: bool, skip_first: bool = False, size: int = _BLOCK_BYTES) -> Iterator[Block]:
    """Cut a stream into blocks at ends of lines, in CSV not at those within quotes.

    A quote that is still open at MAX_LINE_BYTES or at the end of the file makes its first line unreadable.
    """
    rest = b""
    first = True
    ended = False
    broken = 0
    skipping = False  # the rest of a line that is too long
    while not ended or rest:
        if not ended:
            more = file.read(max(size, len(rest)))  # doubling: a long line is not copied over and over
            ended = not more
            if first and more:
                more = more.removeprefix(b"\xef\xbb\xbf")
            rest += more
            first = False
        if skipping:
            end = rest.find(b"\n") + 1
            if not end and not ended:
                rest = b""
                continue
            rest = rest[end:] if end else b""
            skipping = False
        if not ended and len(rest) < size:
            continue
        cut = _cut(rest, quoted=quoted, ended=ended)
        if cut == 0 and rest and (ended or len(rest) > MAX_LINE_BYTES):
            broken += 1
            end = rest.find(b"\n") + 1
            skipping = not end
            rest = rest[end:] if end else b""
            if skip_first:
                skip_first, broken = False, 0
            continue
        data, rest = rest[:cut], rest[cut:]
        if skip_first and data:
            data = data[_first_record(data, quoted=quoted) :]
            skip_first = False
        if data.strip(b"\r\n") or broken:
            yield Block(data, broken)
            broken = 0
    if broken:
        yield Block(b"", broken)


# a quoted field, at the start of a line or after a delimiter; possessive, so that it never backtracks
_QUOTED = re.compile(rb'(?:(?<=[,;|\t\n\r])|\A)"(?:[^"]++|"")*+("?)')


def _cut(data: bytes, *, quoted: bool, ended: bool) -> int:
    """Where the last whole line ends; 0 where there is none."""
    if not quoted or b'"' not in data:
        return len(data) if ended else data.rfind(b"\n") + 1
    spans = [(m.start(), m.end(), bool(m[1])) for m in _QUOTED.finditer(data)]
    if spans and not spans[-1][2]:
        # open at the end: what lies before the line it stands in is whole
        end = spans.pop()[0]
    elif ended:
        return len(data)
    else:
        end = len(data)
        if spans and spans[-1][1] == len(data):
            # the closing quote may be the first half of a doubled one
            end = spans.pop()[0]
    while True:
        start = spans[-1][1] if spans else 0
        newline = data.rfind(b"\n", start, end)
        if newline >= 0:
            return newline + 1
        if not spans:
            return 0
        end = spans.pop()[0]


def _first_record(data: bytes, *, quoted: bool) -> int:
    """Where the first record with something in it ends."""
    start = len(data) - len(data.lstrip(b"\r\n"))
    position = start
    while True:
        newline = data.find(b"\n", position)
        if newline < 0:
            return len(data)
        if not quoted or all(not (m.start() <= newline < m.end()) for m in _QUOTED.finditer(data[: newline + 1])):
            return newline + 1
        position = newline + 1


def line_columns(
    table: Table, block: Block, numbers: Sequence[str], texts: Sequence[str]
) -> tuple[dict[str, pa.Array], Places, int]:
    """Columns by role (binary or text; null: nothing there), the place of each row in the block, and how many rows
    the block holds, those that can't be read included."""
    import numpy as np

    roles = list(dict.fromkeys([*numbers, *texts]))
    if not block.data:
        import pyarrow as pa

        none = {role: pa.array([], pa.large_string()) for role in roles}
        return none, np.empty(0, np.int64), block.num_broken
    columns, places, num_rows = (_json if table.kind == "jsonl" else _csv)(table, block.data, roles)
    return columns, places + block.num_broken, num_rows + block.num_broken


# ---- CSV and TSV


def _csv(table: Table, data: bytes, roles: Sequence[str]) -> tuple[dict[str, pa.Array], Places, int]:
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    try:
        _ = data.isascii() or data.decode("utf-8")
    except UnicodeDecodeError:  # pyarrow can't tell of a ragged line that is not UTF-8
        return _csv_by_line(table, data, roles)
    skipped: list[int] = []

    def skip(row: Any) -> str:
        skipped.append(row.number)
        return "skip"

    names = [str(i) for i in range(len(table.names))]
    wanted = [str(table.names.index(table.columns[role])) for role in roles]
    read = csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        parse_options=csv.ParseOptions(
            delimiter=table.delimiter,
            quote_char=False if table.kind == "tsv" else '"',
            newlines_in_values=table.kind == "csv",
            invalid_row_handler=skip,
        ),
        convert_options=csv.ConvertOptions(
            column_types={name: pa.binary() for name in names},
            include_columns=list(dict.fromkeys(wanted)),
            check_utf8=False,
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        ),
    )
    num_rows = read.num_rows + len(skipped)
    places = np.delete(np.arange(num_rows), np.array(skipped, np.int64) - 1) if skipped else np.arange(num_rows)
    return {role: _whole(read.column(i)) for role, i in zip(roles, wanted, strict=True)}, places, num_rows


def _csv_by_line(table: Table, data: bytes, roles: Sequence[str]) -> tuple[dict[str, pa.Array], Places, int]:
    """The same, cell by cell in Python."""
    import csv
    import io

    import numpy as np
    import pyarrow as pa

    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    wanted = [table.names.index(table.columns[role]) for role in roles]
    cells: list[list[bytes | None]] = [[] for _ in roles]
    places = []
    num_rows = 0
    if table.kind == "tsv":
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text, delimiter=table.delimiter)
    for row in reader:
        if not row:
            continue
        if len(row) == len(table.names):
            places.append(num_rows)
            for column, i in zip(cells, wanted, strict=True):
                column.append(row[i].encode("utf-8", "surrogateescape") or None)
        num_rows += 1
    columns = {role: pa.array(column, pa.binary()) for role, column in zip(roles, cells, strict=True)}
    return columns, np.array(places, np.int64), num_rows


def _whole(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


# ---- JSON lines


def _json(table: Table, data: bytes, roles: Sequence[str]) -> tuple[dict[str, pa.Array], Places, int]:
    import numpy as np
    import pyarrow as pa
    from pyarrow import json

    names = list(dict.fromkeys(table.columns[role] for role in roles))
    lines = [line for line in data.split(b"\n") if line.strip()]
    try:
        read = json.read_json(
            pa.BufferReader(data),
            read_options=json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=json.ParseOptions(
                explicit_schema=pa.schema([(name, _json_type(table, name, roles)) for name in names]),
                unexpected_field_behavior="ignore",
            ),
        )
        columns = {role: _whole(read.column(table.columns[role])) for role in roles}
        if read.num_rows == len(lines):
            return columns, np.arange(read.num_rows), read.num_rows
    except pa.ArrowException:
        pass  # some line is not as most are: each is read by itself
    return _json_by_line(table, lines, roles)


def _json_type(table: Table, name: str, roles: Sequence[str]) -> pa.DataType:
    import pyarrow as pa

    if table.kinds.get(name) != "number":
        return pa.string()
    # an id must not become "5.0"
    return pa.float64() if all(role in NUMBERS for role in roles if table.columns[role] == name) else pa.int64()


def _json_by_line(
    table: Table, lines: Sequence[bytes], roles: Sequence[str]
) -> tuple[dict[str, pa.Array], Places, int]:
    import numpy as np
    import pyarrow as pa

    cells: dict[str, list[str | None]] = {role: [] for role in roles}
    places = []
    for i, line in enumerate(lines):
        row = json_row(line)
        if row is None:
            continue
        found = {role: json_cell(row.get(table.columns[role])) for role in roles}
        if all(_encodes(cell) for cell in found.values()):
            places.append(i)
            for role, cell in found.items():
                cells[role].append(cell)
    columns = {role: pa.array(column, pa.large_string()) for role, column in cells.items()}
    return columns, np.array(places, np.int64), len(lines)


def json_cell(value: object) -> str | None:
    """A value as the text of a cell; None for nested ones."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return str(value) if isinstance(value, (str, int)) else None


def _encodes(cell: str | None) -> bool:
    try:
        (cell or "").encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
