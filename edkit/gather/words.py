"""Rows of a local Parquet file whose captions may hold some words, found by DuckDB.

DuckDB steps over the text of rows whose numbers fail, which pyarrow has to unpack: half the work (benchmarks/
table_scan.md). What it finds is a superset; who asks judges each row again, so that its notions of a number or of
upper case decide nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.gather.parallel import num_cores

if TYPE_CHECKING:
    import pyarrow as pa

_MEMORY = "160MB"
_BATCH_ROWS = 8192
# first characters of captions that may be blank: beyond ASCII, what str.strip takes away
_BLANKS = "133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288"
_lock = threading.Lock()


class Unsearchable(Exception):
    """DuckDB can't read this file within its memory; pyarrow may."""


@contextmanager
def searched(
    path: Path,
    *,
    columns: Mapping[str, str],
    conditions: Sequence[str],
    caption: str,
    patterns: Sequence[str],
    all_: bool,
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches of `columns` (name in the batch -> name in the file) and "row", in the file's order.

    The rows that meet the conditions (SQL) and whose caption matches all (or any) of RE2's patterns, is null, or may be
    blank. Raises Unsearchable, here and while it is read.
    """
    import duckdb

    text = _name(caption)
    match = (" AND " if all_ else " OR ").join(f"regexp_matches({text}, {_text(pattern)})" for pattern in patterns)
    blank = f"{text} IS NULL OR {text} < '!' OR ({text} > '~' AND unicode({text}) IN ({_BLANKS}))"
    where = " AND ".join([*conditions, f"(({match}) OR {blank})"])
    chosen = ", ".join(f"{_name(column)} AS {_name(role)}" for role, column in columns.items())
    sql = (
        f'SELECT file_row_number AS "row", {chosen} '
        f"FROM read_parquet({_text(_escaped(path))}, file_row_number=true) WHERE {where} "
        "ORDER BY file_row_number"  # a streamed answer does not keep the file's order by itself
    )
    with _lock:
        cursor = _database().cursor()
    try:
        yield _told(cursor.sql(sql).to_arrow_reader(_BATCH_ROWS))
    except duckdb.Error as error:
        raise Unsearchable(str(error)) from error
    finally:
        cursor.close()


def _told(reader: Any) -> Iterator[Any]:
    import duckdb
    import pyarrow as pa

    try:
        yield from reader
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise Unsearchable(str(error)) from error


@cache
def _database() -> Any:
    import duckdb

    return duckdb.connect(
        config={
            "threads": min(8, num_cores()),
            "memory_limit": _MEMORY,
            "enable_external_file_cache": False,  # the system's is enough
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": "",
        }
    )


def number(column: str, comparison: str, limit: float) -> str:
    """A condition on a column of numbers."""
    return f"{_name(column)} {comparison} {limit!r}"


def unknown(column: str) -> str:
    """The condition that a size is not known."""
    name = _name(column)
    return f"({name} IS NULL OR {name} <= 0 OR isnan({name}::DOUBLE))"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _escaped(path: Path) -> str:
    """A path none of whose characters is a pattern's."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
