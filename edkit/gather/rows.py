"""The rows of tables as a stream in constant memory: numbers first, and text only where some row's numbers pass.

A unit of work is a Parquet row group or a few megabytes of lines; threads read and sift units ahead, and their
chunks come in the tables' order. What memory it takes depends on threads and columns, not on the tables' size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edkit.data.errors import BadInput
from edkit.gather.lines import Block, blocks, line_columns
from edkit.gather.parallel import InOrder, num_cores
from edkit.gather.tables import Table
from edkit.gather.words import Unsearchable, searched

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Ints = np.ndarray[Any, np.dtype[np.int64]]
    Mask = np.ndarray[Any, np.dtype[np.bool_]]
    Bits = np.ndarray[Any, np.dtype[np.uint8]]

Item = TypeVar("Item")
Drop = Callable[[str, int], None]
"""Told how many more rows a filter dropped: (the filter's name, n)."""

UNREADABLE_LINE = "unreadable line"
UNREADABLE_TEXT = "text that is not UTF-8"

_MOST_WORKERS = 8
_BATCH_ROWS = 16_384
_BATCH_BYTES = 6_000_000  # of text, as the file's own counts have it
_HELD_BYTES = 12_000_000  # captions of a row group held from their pass until the other texts are read
_MOST_AT_ONCE = 4_000_000  # rows of a row group whose numbers are all read before its texts
_KEPT_NUMBERS = ("width", "height")


class Sieve(Protocol):
    """The filters, in the order they are asked; each tells `drop` what it dropped."""

    @property
    def numbers(self) -> Sequence[str]:
        """Roles, those that a table may lack included."""

    @property
    def texts(self) -> Sequence[str]: ...

    @property
    def selective(self) -> bool:
        """Whether captions are asked for more than being there."""

    def search(self, table: Table, sizes_known: bool) -> Search | None:
        """What of it another engine can ask; None where that is not worth it. `sizes_known`: every row's."""

    def by_ranges(self, ranges: Mapping[str, Range]) -> str:
        """The filter that drops every row of a row group with these ranges; empty where none surely does."""

    def by_numbers(self, columns: Mapping[str, Floats], num_rows: int, drop: Drop) -> Mask:
        """Which rows pass; NaN: unknown."""

    def by_caption(self, captions: pa.Array, drop: Drop) -> Mask | None:
        """Which rows pass; None: all."""

    def by_texts(self, texts: Mapping[str, pa.Array], drop: Drop) -> Mask | None:
        """Which rows pass what is asked of the other texts; None: all."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a row group's statistics say of a column of numbers."""

    least: float
    most: float
    all_known: bool  # no null, and no NaN (which statistics don't count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A question to DuckDB whose answer holds every row that passes."""

    name: str  # the filter of the words
    conditions: tuple[str, ...]  # on numbers, in SQL
    patterns: tuple[str, ...]  # of captions, RE2
    all_: bool  # all of them, or any


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows read together and what of them passed; `sizes` and `texts` hold the `selected` rows alone."""

    num_rows: int  # read since the chunk before
    selected: Ints  # row numbers: of the file as `scan` gives them, of the unit as units do
    sizes: Mapping[str, np.ndarray[Any, np.dtype[np.int32]]]  # "width" and "height" in pixels; 0: unknown
    texts: Mapping[str, pa.Array]  # by role; large_string, valid UTF-8
    dropped: Mapping[str, int]  # since the chunk before

    def after(self, num_rows: int) -> Chunk:
        """The same chunk behind so many rows."""
        return replace(self, selected=self.selected + num_rows)


def scan(tables: Sequence[Table], sieve: Sieve) -> Iterator[tuple[Table, Chunk]]:
    """The rows that pass the sieve, in the tables' order. Raises BadInput where a file breaks off or lies."""

    def work(unit: _Unit) -> Iterator[Chunk]:
        return unit.chunks(sieve)

    workers = max(2, min(_MOST_WORKERS, num_cores()))
    base, last = 0, None  # the first row of the unit at hand
    grown = 0
    with InOrder(_units(tables, sieve), work, workers=workers) as chunks:
        for unit, chunk in chunks:
            if unit is not last:
                base = 0 if last is None or unit.table is not last.table else base + grown
                last, grown = unit, 0
            grown += chunk.num_rows
            yield unit.table, chunk.after(base)


class _Unit(Protocol):
    @property
    def table(self) -> Table: ...

    def chunks(self, sieve: Sieve) -> Iterator[Chunk]: ...


def _units(tables: Sequence[Table], sieve: Sieve) -> Iterator[_Unit]:
    for table in tables:
        with _told(table):
            if table.kind == "parquet":
                metadata = _parquet_metadata(table)
                search = _search(table, metadata, sieve)
                if search is not None:
                    yield _Searched(table, metadata, search)
                    continue
                yield from (_Group(table, metadata, group) for group in range(metadata.num_row_groups))
            else:
                yield from (_Lines(table, block) for block in blocks(table))


class _told:
    """Turns what pyarrow and the disk raise into one line that names the table."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, OSError, EOFError)) and not isinstance(error, BadInput):
            raise BadInput(f"broke off while it was read: {error}", where=self.table.name) from error


class _Drops(dict[str, int]):
    def __call__(self, why: str, n: int) -> None:
        if n:
            self[why] = self.get(why, 0) + n

    def take(self) -> dict[str, int]:
        taken = dict(self)
        self.clear()
        return taken


# ---- Parquet


def _parquet_metadata(table: Table) -> Any:
    import pyarrow.parquet as pq

    with table.open_random() as file:
        return pq.read_metadata(file)


@dataclass(frozen=True, slots=True)
class _Group:
    """A Parquet row group."""

    table: Table
    metadata: Any
    group: int

    def chunks(self, sieve: Sieve) -> Iterator[Chunk]:
        with _told(self.table):
            yield from self._chunks(sieve)

    def _chunks(self, sieve: Sieve) -> Iterator[Chunk]:
        num_rows = self.metadata.row_group(self.group).num_rows
        roles = self.table.columns
        numbers = [role for role in sieve.numbers if role in roles]
        texts = [role for role in sieve.texts if role in roles]
        drops = _Drops()
        why = sieve.by_ranges(self._ranges(numbers))
        if why:
            drops(why, num_rows)
            yield _nothing(num_rows, drops)
            return
        import pyarrow.parquet as pq

        # what two threads read at the same time goes through two files
        with (
            self.table.open_random() as raw,
            pq.ParquetFile(raw, metadata=self.metadata, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            self.table.expect(raw, self._byte_ranges([*numbers, *texts]))
            if num_rows > _MOST_AT_ONCE:
                start = 0
                for batch in self._batches(file, list(dict.fromkeys([*numbers, *texts]))):
                    columns = {role: batch[role] for role in (*numbers, *texts)}
                    yield _sift(sieve, columns, numbers, texts, batch[""], drops).after(start)
                    start += batch[""]
                return
            yield from self._in_passes(file, sieve, num_rows, numbers, texts, drops)

    def _in_passes(
        self, file: Any, sieve: Sieve, num_rows: int, numbers: list[str], texts: list[str], drops: _Drops
    ) -> Iterator[Chunk]:
        """Numbers of the whole row group, then captions if they are searched, then the texts of what is left."""
        import numpy as np

        mask, sizes = self._number_pass(file, sieve, num_rows, numbers, drops)
        if not mask.any():
            yield _nothing(num_rows, drops)
            return
        held: list[pa.Array] | None = None
        if sieve.selective and "caption" in texts:
            mask, held = self._caption_pass(file, sieve, mask, drops)
            if not mask.any():
                yield _nothing(num_rows, drops)
                return
        rest = [role for role in texts if not (role == "caption" and held is not None)]
        read = start = 0
        for batch in self._batches(file, rest):
            part = mask[start : start + batch[""]]
            selected = np.flatnonzero(part)
            start += batch[""]
            if not len(selected):
                continue
            found = {role: _taken(batch[role], part) for role in rest}
            if held is not None:
                found["caption"] = _next_of(held, len(selected))
            selected, found = _sift_texts(sieve, selected, found, drops, captions_done=held is not None)
            selected = selected + (start - batch[""])
            yield Chunk(
                num_rows=start - read,
                selected=selected,
                sizes={role: values[selected] for role, values in sizes.items()},
                texts=found,
                dropped=drops.take(),
            )
            read = start
        if read < num_rows:
            yield _nothing(num_rows - read, drops)

    def _number_pass(
        self,
        file: Any,
        sieve: Sieve,
        num_rows: int,
        numbers: list[str],
        drops: _Drops,
        *,
        keep_sizes: bool = True,
    ) -> tuple[Mask, dict[str, np.ndarray[Any, np.dtype[np.int32]]]]:
        """Which rows pass by their numbers, and the sizes of all of them."""
        import numpy as np

        if not numbers:
            return sieve.by_numbers({}, num_rows, drops), {}
        masks: list[Mask] = []
        sizes: dict[str, list[Any]] = {role: [] for role in numbers if keep_sizes and role in _KEPT_NUMBERS}
        for batch in self._batches(file, numbers):
            columns = {role: floats(batch[role]) for role in numbers}
            masks.append(sieve.by_numbers(columns, batch[""], drops))
            for role, parts in sizes.items():
                parts.append(_pixels(columns[role]))
        return np.concatenate(masks), {role: np.concatenate(parts) for role, parts in sizes.items()}

    def _caption_pass(self, file: Any, sieve: Sieve, mask: Mask, drops: _Drops) -> tuple[Mask, list[pa.Array] | None]:
        """What is left of the mask, and the captions of that; None where they are too many to hold."""
        import numpy as np

        left: list[Mask] = []
        held: list[pa.Array] | None = []
        num_bytes = start = 0
        for batch in self._batches(file, ["caption"]):
            part = mask[start : start + batch[""]]
            start += batch[""]
            passed = np.zeros(len(part), bool)
            selected = np.flatnonzero(part)
            if len(selected):
                captions, valid = texts_of(_taken(batch["caption"], part), drops)
                selected = selected[valid] if valid is not None else selected
                keep = sieve.by_caption(captions, drops)
                if keep is not None:
                    selected, captions = selected[keep], _filtered(captions, keep)
                passed[selected] = True
                if held is not None and len(selected):
                    num_bytes += captions.nbytes
                    held.append(captions)
                    held = held if num_bytes <= _HELD_BYTES else None
            left.append(passed)
        return np.concatenate(left), held

    def _batches(self, file: Any, roles: list[str]) -> Iterator[dict[str, Any]]:
        """Batches of some columns by role; "" holds the number of rows."""
        names = [self.table.columns[role] for role in roles]
        for batch in file.iter_batches(
            self._batch_rows(roles), row_groups=[self.group], columns=list(dict.fromkeys(names)), use_threads=False
        ):
            yield {"": batch.num_rows, **{role: batch.column(self.table.columns[role]) for role in roles}}

    def _batch_rows(self, roles: list[str]) -> int:
        group = self.metadata.row_group(self.group)
        chunks = self._column_chunks(roles)
        num_bytes = sum(max(0, chunk.total_uncompressed_size) for chunk in chunks)
        return max(16, min(_BATCH_ROWS, int(_BATCH_BYTES * max(1, group.num_rows) / max(1, num_bytes))))

    def _column_chunks(self, roles: Sequence[str]) -> list[Any]:
        group = self.metadata.row_group(self.group)
        wanted = {self.table.columns[role] for role in roles}
        return [chunk for chunk in map(group.column, range(group.num_columns)) if chunk.path_in_schema in wanted]

    def _byte_ranges(self, roles: Sequence[str]) -> list[tuple[int, int]]:
        """Where in the file those columns of the row group stand: (start, end)."""
        ranges = []
        for chunk in self._column_chunks(roles):
            starts = [chunk.data_page_offset]
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                starts.append(chunk.dictionary_page_offset)
            ranges.append((min(starts), min(starts) + chunk.total_compressed_size))
        return ranges

    def _ranges(self, numbers: Sequence[str]) -> dict[str, Range]:
        found = {}
        for role in numbers:
            for chunk in self._column_chunks([role]):
                statistics = chunk.statistics
                if statistics is None or not statistics.has_min_max:
                    continue
                least, most = statistics.min, statistics.max
                if type(least) in (int, float) and type(most) in (int, float) and least <= most:
                    known = type(least) is int and statistics.has_null_count and statistics.null_count == 0
                    found[role] = Range(least, most, known)
        return found


# ---- Parquet on a disk whose captions are searched


def _search(table: Table, metadata: Any, sieve: Sieve) -> Search | None:
    names = [name.lower() for name in table.names]
    if not isinstance(table.source, Path) or len(set(names)) < len(names):  # to DuckDB, case makes no other name
        return None
    sizes = [role for role in _KEPT_NUMBERS if role in table.columns]
    groups = [_Group(table, metadata, group)._ranges(sizes) for group in range(metadata.num_row_groups)]
    known = all(len(ranges) == 2 and all(r.all_known and r.least > 0 for r in ranges.values()) for ranges in groups)
    return sieve.search(table, known)


@dataclass(frozen=True, slots=True)
class _Searched:
    """A Parquet file: numbers from pyarrow, and what captions may hold the words from DuckDB."""

    table: Table
    metadata: Any
    search: Search

    def chunks(self, sieve: Sieve) -> Iterator[Chunk]:
        with _told(self.table):
            done = [0]  # row groups, and rows given out of the one at hand
            given = [0]
            try:
                yield from self._chunks(sieve, done, given)
            except Unsearchable as error:
                if given[0]:
                    raise BadInput(f"broke off while it was read: {error}", where=self.table.name) from error
                groups = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
                for group in range(done[0], len(groups)):
                    first = sum(groups[:group])
                    for chunk in _Group(self.table, self.metadata, group)._chunks(sieve):
                        yield chunk.after(first)

    def _chunks(self, sieve: Sieve, done: list[int], given: list[int]) -> Iterator[Chunk]:
        import numpy as np

        roles = self.table.columns
        texts = [role for role in sieve.texts if role in roles]
        sizes = [role for role in _KEPT_NUMBERS if role in sieve.numbers and role in roles]
        found: list[pa.RecordBatch] = []
        first = 0
        asked = searched(
            Path(self.table.source),  # type: ignore[arg-type]
            columns={role: roles[role] for role in (*texts, *sizes)},
            conditions=self.search.conditions,
            caption=roles["caption"],
            patterns=self.search.patterns,
            all_=self.search.all_,
        )
        # DuckDB has its whole answer before it gives any of it: meanwhile one thread goes over the numbers
        with closing(_ahead(self._sifted_numbers(sieve))) as sifted, asked as batches:
            for number, (num_rows, bits, drops) in enumerate(sifted):
                mask = np.unpackbits(bits, count=num_rows).view(bool)
                missing = int(np.count_nonzero(mask))
                for batch in _until(batches, found, first + num_rows):
                    rows = batch.column(0).to_numpy() - first
                    rows_pass = mask[rows]
                    rows = rows[rows_pass]
                    missing -= len(rows)
                    columns = {role: _taken(batch.column(role), rows_pass) for role in (*texts, *sizes)}
                    keep, left = _sift_texts(
                        sieve, np.arange(len(rows)), {role: columns[role] for role in texts}, drops,
                        captions_done=False,
                    )  # fmt: skip
                    if not len(keep):
                        continue
                    given[0] += len(keep)
                    yield Chunk(
                        num_rows=0,
                        selected=rows[keep] + first,
                        sizes={role: _pixels(floats(columns[role])[keep]) for role in sizes},
                        texts=left,
                        dropped=drops.take(),
                    )
                # what DuckDB didn't give holds the words nowhere
                drops(self.search.name, missing)
                yield _nothing(num_rows, drops)
                first += num_rows
                done[0], given[0] = number + 1, 0

    def _sifted_numbers(self, sieve: Sieve) -> Iterator[tuple[int, Bits, _Drops]]:
        """Of each row group: its rows, a bit for each whether its numbers pass, and what they dropped."""
        import numpy as np
        import pyarrow.parquet as pq

        numbers = [role for role in sieve.numbers if role in self.table.columns]
        with (
            self.table.open_random() as raw,
            pq.ParquetFile(raw, metadata=self.metadata, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            for number in range(self.metadata.num_row_groups):
                group = _Group(self.table, self.metadata, number)
                num_rows = self.metadata.row_group(number).num_rows
                drops = _Drops()
                why = sieve.by_ranges(group._ranges(numbers))
                if why:
                    drops(why, num_rows)
                    mask = np.zeros(num_rows, bool)
                else:
                    mask, _ = group._number_pass(file, sieve, num_rows, numbers, drops, keep_sizes=False)
                yield num_rows, np.packbits(mask), drops


def _ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, made by a thread as fast as it can; what `items` raises is raised here, in its turn."""
    made: SimpleQueue[Future[Item | None]] = SimpleQueue()
    stop = threading.Event()

    def make() -> None:
        ended = False
        while not (ended or stop.is_set()):
            future: Future[Item | None] = Future()
            try:
                item = next(items, None)
                ended = item is None
                future.set_result(item)
            except BaseException as error:  # noqa: BLE001 - raised again by whoever takes the items
                ended = True
                future.set_exception(error)
            made.put(future)

    thread = threading.Thread(target=make, name="edkit-numbers", daemon=True)
    thread.start()
    try:
        while (item := made.get().result()) is not None:
            yield item
    finally:
        stop.set()
        thread.join()


def _until(batches: Iterator[pa.RecordBatch], left: list[pa.RecordBatch], end: int) -> Iterator[pa.RecordBatch]:
    """Parts of the batches with rows before `end`; what lies after it waits in `left`."""
    import numpy as np

    while True:
        if not left:
            batch = next(batches, None)
            if batch is None:
                return
            left.append(batch)
        batch = left.pop()
        cut = int(np.searchsorted(batch.column(0).to_numpy(), end))
        if cut:
            yield batch.slice(0, cut)
        if cut < batch.num_rows:
            left.append(batch.slice(cut))
            return


# ---- lines


@dataclass(frozen=True, slots=True)
class _Lines:
    """Some megabytes of lines of a text table."""

    table: Table
    block: Block

    def chunks(self, sieve: Sieve) -> Iterator[Chunk]:
        with _told(self.table):
            roles = self.table.columns
            numbers = [role for role in sieve.numbers if role in roles]
            texts = [role for role in sieve.texts if role in roles]
            columns, places, num_rows = line_columns(self.table, self.block, numbers, texts)
            drops = _Drops()
            drops(UNREADABLE_LINE, num_rows - len(places))
            chunk = _sift(sieve, columns, numbers, texts, len(places), drops)
            yield replace(chunk, num_rows=num_rows, selected=places[chunk.selected])


# ---- sifting


def _sift(
    sieve: Sieve, columns: Mapping[str, pa.Array], numbers: list[str], texts: list[str], num_rows: int, drops: _Drops
) -> Chunk:
    """Everything asked of rows whose columns are all at hand; the chunk's row numbers count from 0."""
    import numpy as np

    values = {role: floats(columns[role]) for role in numbers}
    mask = sieve.by_numbers(values, num_rows, drops)
    selected = np.flatnonzero(mask)
    found = {role: _taken(columns[role], mask) for role in texts}
    selected, found = _sift_texts(sieve, selected, found, drops, captions_done=False)
    sizes = {role: _pixels(values[role][selected]) for role in numbers if role in _KEPT_NUMBERS}
    return Chunk(num_rows=num_rows, selected=selected, sizes=sizes, texts=found, dropped=drops.take())


def _sift_texts(
    sieve: Sieve, selected: Ints, columns: Mapping[str, pa.Array], drops: _Drops, *, captions_done: bool
) -> tuple[Ints, dict[str, pa.Array]]:
    texts: dict[str, pa.Array] = {}
    unreadable: Mask | None = None
    for role, column in columns.items():
        texts[role], valid = texts_of(column, None)
        if valid is not None:
            unreadable = ~valid if unreadable is None else unreadable | ~valid

    def narrow(keep: Mask | None) -> None:
        nonlocal selected
        if keep is not None and not keep.all():
            selected = selected[keep]
            for role, column in texts.items():
                texts[role] = _filtered(column, keep)

    if unreadable is not None:
        drops(UNREADABLE_TEXT, int(unreadable.sum()))
        narrow(~unreadable)
    if "caption" in texts and not captions_done and len(selected):
        narrow(sieve.by_caption(texts["caption"], drops))
    if len(selected):
        narrow(sieve.by_texts(texts, drops))
    return selected, texts


def _nothing(num_rows: int, drops: _Drops) -> Chunk:
    import numpy as np

    return Chunk(num_rows=num_rows, selected=np.empty(0, np.int64), sizes={}, texts={}, dropped=drops.take())


def _next_of(held: list[pa.Array], n: int) -> pa.Array:
    """Takes the first n captions out of what is held."""
    import pyarrow as pa

    parts: list[pa.Array] = []
    while n:
        first = held[0]
        parts.append(first.slice(0, n))
        if len(first) <= n:
            held.pop(0)
        else:
            held[0] = first.slice(n)
        n -= len(parts[-1])
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _taken(column: pa.Array, mask: Mask) -> pa.Array:
    return column if mask.all() else _filtered(column, mask)


def _filtered(column: pa.Array, mask: Mask) -> pa.Array:
    import pyarrow as pa

    return column.filter(pa.array(mask))


def texts_of(column: pa.Array, drop: Drop | None) -> tuple[pa.Array, Mask | None]:
    """A column as large_string, and which rows of it are UTF-8 (None: all of them).

    With `drop` those that are not are counted and left out, without it they are null.
    """
    import numpy as np
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_bytes(column.type):
        return column.cast(pa.large_string()), None
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), None
    except pa.ArrowInvalid:
        cells = [_decoded(cell) for cell in raw.to_pylist()]
    valid = np.array([cell is not False for cell in cells], bool)
    if drop is None:
        return pa.array([cell or None for cell in cells], pa.large_string()), valid
    drop(UNREADABLE_TEXT, int((~valid).sum()))
    return pa.array([cell for cell in cells if cell is not False], pa.large_string()), valid


def _decoded(cell: bytes | None) -> str | bool | None:
    try:
        return None if cell is None else cell.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _is_bytes(type_: pa.DataType) -> bool:
    import pyarrow as pa

    of = pa.types
    return bool(
        of.is_string(type_)
        or of.is_large_string(type_)
        or of.is_binary(type_)
        or of.is_large_binary(type_)
        or of.is_string_view(type_)
        or of.is_binary_view(type_)
    )


_NSFW_WORDS = {"UNLIKELY": "0", "UNSURE": "0.5", "NSFW": "1"}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


def floats(column: pa.Array) -> Floats:
    """Numbers as float64; NaN where there is none, or a text that is no number (NSFW's three words are)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        text, _ = texts_of(column, None)
        text = pc.utf8_trim_whitespace(text)
        is_number = pc.match_substring_regex(text, _NUMBER)
        if not pc.all(is_number, min_count=0).as_py():
            upper = pc.ascii_upper(text)
            for word, value in _NSFW_WORDS.items():
                same = pc.equal(upper, word)
                text = pc.if_else(same, pa.scalar(value, pa.large_string()), text)
                is_number = pc.or_(is_number, same)
            text = pc.if_else(is_number, text, pa.scalar(None, pa.large_string()))
        column = text
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)


def _pixels(values: Floats) -> np.ndarray[Any, np.dtype[np.int32]]:
    import numpy as np

    with np.errstate(invalid="ignore"):
        known = (values > 0) & (values < 1e9)
        return np.where(known, values, 0).astype(np.int32)
