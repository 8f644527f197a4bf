"""Which rows of LAION-like tables match, in table order, as Candidates."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edkit.data.errors import UsageError
from edkit.gather.candidate import Candidate, Funnel, whole_text
from edkit.gather.rows import UNREADABLE_LINE, UNREADABLE_TEXT, Chunk, Drop, Range, Search, scan
from edkit.gather.seen import Seen, marks_of
from edkit.gather.tables import Table
from edkit.gather.words import number, unknown

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from edkit.gather.rows import Floats, Mask

STOCK_HOSTS = (
    *("dreamstime", "alamy", "123rf", "colourbox", "envato", "stockfresh", "depositphotos"),
    *("istockphoto", "shutterstock", "gettyimages", "bigstockphoto"),
)
"""Hosts of stock photos, whose previews carry watermarks: what `--exclude-hosts stock` stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a row must be; None and empty: anything. Raises UsageError where made from nonsense."""

    search: tuple[str, ...] = ()  # all of these words or phrases; `photo*` also finds photos
    any: tuple[str, ...] = ()  # at least one of these
    exclude: tuple[str, ...] = ()  # none of these
    regex: str = ""
    min_size: int = 0  # pixels, both sides; a row that doesn't say is judged once it is fetched
    max_aspect: float | None = None  # longer side / shorter side; likewise
    min_aesthetic: float | None = None
    max_unsafe: float | None = None  # a higher punsafe is less safe
    max_watermark: float | None = None
    min_similarity: float | None = None
    licences: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    exclude_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise UsageError(f"--min-size {self.min_size}: a size in pixels, 0 or more")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise UsageError(f"--max-aspect {self.max_aspect}: longer side / shorter side, 1 or more")
        try:
            re.compile(self.regex)
        except re.error as error:
            raise UsageError(f"--regex {self.regex!r}: {error}") from None

    def numbers(self) -> dict[str, tuple[str, float, bool]]:
        """Score columns that must be there: role -> (option, limit, whether it is the least allowed)."""
        limits = (
            ("aesthetic", "--min-aesthetic", self.min_aesthetic, True),
            ("unsafe", "--max-unsafe", self.max_unsafe, False),
            ("watermark", "--max-watermark", self.max_watermark, False),
            ("similarity", "--min-similarity", self.min_similarity, True),
        )
        return {role: (option, limit, least) for role, option, limit, least in limits if limit is not None}


def check_columns(table: Table, filters: Filters, *, caption: str | None = None) -> None:
    """Raise BadInput, listing the columns there are, where the table lacks one that the filters need."""
    table.column("url")
    words = filters.search or filters.any or filters.exclude or filters.regex
    if words or caption is None:
        table.column("caption", "" if caption is None else "--search")
    for role, (option, _, _) in filters.numbers().items():
        table.column(role, option)
    if filters.licences:
        table.column("licence", "--license")
    if filters.languages:
        table.column("language", "--language")


def candidates(
    tables: Sequence[Table],
    filters: Filters,
    funnel: Funnel,
    *,
    caption: str | None = None,
    part: tuple[int, int] | None = None,
    shuffle: int | None = None,
) -> Iterator[list[Candidate]]:
    """The matching rows of all tables, in lists (some empty) as they are read; each URL once, at its first row.

    They come in the tables' order, always the same. `caption` stands in where a row has none; without it such
    rows are dropped. `part=(i, n)`, i from 1, takes one of n shares: which one a row falls into depends on its URL
    alone, so that the shares are disjoint, as large as each other but for chance, and hold no URL twice between them.

    `shuffle` is a seed: then every order of the matches is as likely as any other. The place of a match depends on
    the seed and its URL alone, not on how the rows are spread over files. For this the tables are read to their end
    before the first match comes; the first 50,000 are held in memory meanwhile, and whoever takes more makes
    it read the tables once more, into temporary files as large as the matches' texts.

    Fills `funnel` as it goes. Whole Parquet row groups that some filter drops by their statistics are counted as that
    filter's. Memory: below 400 MB (measured: 389), and 1.5 bytes a match past eight million. Raises UsageError,
    BadInput.
    """
    if part is not None and not 1 <= part[0] <= part[1] < 1 << 63:
        raise UsageError(f"--part {part[0]}/{part[1]}: i/n, i from 1 to n")
    for table in tables:
        check_columns(table, filters, caption=caption)
    search = _Search(tables, filters, caption, part)
    if shuffle is not None:
        from edkit.gather.shuffle import shuffled

        return shuffled(search.batches, funnel, shuffle)
    return (batch.candidates() for batch in search.batches(funnel))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Matches as columns: what a Candidate is made of, before it is known which ones are wanted."""

    table: str
    rows: np.ndarray[Any, np.dtype[np.int64]]
    marks: np.ndarray[Any, np.dtype[np.uint64]]  # of the URLs
    urls: Sequence[str]
    texts: Mapping[str, pa.Array]
    sizes: Mapping[str, np.ndarray[Any, np.dtype[np.int32]]]
    caption: str  # where a row has none
    integer_phash: bool

    def candidates(self, wanted: Sequence[int] | None = None) -> list[Candidate]:
        """All of them, or those at some places."""
        import pyarrow as pa

        if not len(self.rows):
            return []
        texts, sizes, urls, rows = self.texts, self.sizes, self.urls, self.rows
        if wanted is not None:
            at = pa.array(wanted, pa.int64())
            texts = {role: column.take(at) for role, column in texts.items()}
            sizes = {role: column[wanted] for role, column in sizes.items()}
            urls, rows = [urls[i] for i in wanted], rows[wanted]
        none: list[str | None] = [None] * len(urls)

        def cells(role: str) -> list[str | None]:
            return texts[role].to_pylist() if role in texts else none

        def pixels(role: str) -> list[int]:
            return sizes[role].tolist() if role in sizes else [0] * len(urls)

        return [
            Candidate(
                url=url,
                caption=whole_text(caption or "").strip() or self.caption,
                table=self.table,
                row=row,
                width=width,
                height=height,
                licence=(licence or "").strip(),
                author=(author or "").strip(),
                page=(page or "").strip(),
                key=(key or "").strip(),
                checksum=_checksum(checksum) if checksum else "",
                phash=_phash(phash, self.integer_phash) if phash else "",
            )
            for url, row, caption, width, height, licence, author, page, key, checksum, phash in zip(
                urls, rows.tolist(), cells("caption"), pixels("width"), pixels("height"), cells("licence"),
                cells("author"), cells("page"), cells("key"), cells("checksum"), cells("phash"), strict=True,
            )
        ]  # fmt: skip


class _Search:
    """Tables and what is asked of them."""

    def __init__(
        self, tables: Sequence[Table], filters: Filters, caption: str | None, part: tuple[int, int] | None
    ) -> None:
        self.tables, self.caption, self.part = tables, caption, part
        self.sieve = _Sieve(filters, caption)
        self.part_name = "" if part is None else f"--part {part[0]}/{part[1]}"
        self.order = [UNREADABLE_LINE, *self.sieve.names, self.part_name, _SEEN]
        # unreadable text is met with the texts, after the numbers
        self.order.insert(1 + len(self.sieve.number_names), UNREADABLE_TEXT)

    def batches(self, funnel: Funnel) -> Iterator[Batch]:
        """The matches in the tables' order, each URL once."""
        with Seen() as seen:
            for table, chunk in scan(self.tables, self.sieve):
                funnel.rows += chunk.num_rows
                for why, n in chunk.dropped.items():
                    funnel.drop(why, n)
                batch = self._batch(table, chunk, seen, funnel)
                funnel.left += len(batch.rows)
                if len(funnel.dropped) > 1:
                    self._sort(funnel)
                yield batch

    def _batch(self, table: Table, chunk: Chunk, seen: Seen, funnel: Funnel) -> Batch:
        import numpy as np
        import pyarrow as pa

        texts, sizes, rows = dict(chunk.texts), dict(chunk.sizes), chunk.selected
        urls = [url.strip() for url in texts.pop("url").to_pylist()] if len(rows) else []
        marks = marks_of(urls)

        def narrow(keep: Mask, why: str) -> None:
            nonlocal urls, marks, rows
            if not keep.all():
                funnel.drop(why, int((~keep).sum()))
                urls, marks, rows = [urls[i] for i in np.flatnonzero(keep)], marks[keep], rows[keep]
                for role in texts:
                    texts[role] = texts[role].filter(pa.array(keep))
                for role in sizes:
                    sizes[role] = sizes[role][keep]

        if self.part is not None:
            narrow(marks % np.uint64(self.part[1]) == self.part[0] - 1, self.part_name)
        narrow(seen.add(marks), _SEEN)
        return Batch(
            table=table.name,
            rows=rows,
            marks=marks,
            urls=urls,
            texts=texts,
            sizes=sizes,
            caption=self.caption or "",
            integer_phash=table.kinds.get(table.columns.get("phash", "")) == "number",
        )

    def _sort(self, funnel: Funnel) -> None:
        """Bring the filters into the order in which they are asked."""
        known = [why for why in self.order if why in funnel.dropped]
        if known != [why for why in funnel.dropped if why in self.order]:
            dropped = {why: funnel.dropped.pop(why) for why in known}
            funnel.dropped.update(dropped)


_SEEN = "URL of an earlier row"
_TEXTS = ("url", "caption", "licence", "author", "page", "language", "key", "checksum", "phash")


# ---- the sieve


class _Sieve:
    """Filters as `scan` asks them: on columns, and on single rows only what columns can't tell.

    The order: sizes, scores, the caption's words, then URL, host, language and licence.
    """

    def __init__(self, filters: Filters, caption: str | None) -> None:
        self.filters, self.caption = filters, caption
        self.scores = {
            role: (f"{option} {limit:g}", limit, least) for role, (option, limit, least) in filters.numbers().items()
        }
        self.numbers = ("width", "height", *self.scores)
        self.texts = _TEXTS
        self.size_name, self.aspect_name = f"--min-size {filters.min_size}", f"--max-aspect {filters.max_aspect or 0:g}"
        self.number_names = [self.size_name, self.aspect_name, *(name for name, _, _ in self.scores.values())]
        self.words = [
            (_words_name("--search", filters.search), [_Term(term) for term in filters.search], "all"),
            (_words_name("--any", filters.any), [_Term(term) for term in filters.any], "any"),
            (_words_name("--exclude", filters.exclude), [_Term(term) for term in filters.exclude], "none"),
        ]
        self.words = [words for words in self.words if words[1]]
        self.regex = re.compile(filters.regex, re.IGNORECASE) if filters.regex else None
        self.selective = bool(self.words or self.regex)
        self.hosts = _hosts_pattern(filters.exclude_hosts)
        self.languages = {language.casefold() for language in filters.languages}
        self.licences = [_licence_pattern(term) for term in filters.licences]
        self.names = [
            *self.number_names,
            *("no caption", *(name for name, _, _ in self.words), "--regex"),
            *("no URL", "--exclude-hosts"),
            *(_words_name("--language", filters.languages), _words_name("--license", filters.licences)),
        ]

    # ---- numbers

    def by_ranges(self, ranges: Mapping[str, Range]) -> str:
        """The first filter that every row of a row group fails, as far as its statistics tell."""
        width, height = ranges.get("width"), ranges.get("height")
        if width and height and width.all_known and height.all_known and min(width.least, height.least) > 0:
            if min(width.most, height.most) < self.filters.min_size:
                return self.size_name
            aspect = self.filters.max_aspect
            if aspect is not None and (width.least > height.most * aspect or height.least > width.most * aspect):
                return self.aspect_name
        for role, (name, limit, least) in self.scores.items():
            values = ranges.get(role)
            # an unknown score fails as well, so that all need not be known
            if values is not None and (values.most < limit if least else values.least > limit):
                return name
        return ""

    def by_numbers(self, columns: Mapping[str, Floats], num_rows: int, drop: Drop) -> Mask:
        """True where every number passes. An unknown size passes, an unknown score doesn't."""
        import numpy as np

        mask = np.ones(num_rows, bool)
        left = num_rows

        def require(passed: Mask, why: str) -> None:
            nonlocal left
            np.logical_and(mask, passed, out=mask)
            before, left = left, int(np.count_nonzero(mask))
            drop(why, before - left)

        asks_size = bool(self.filters.min_size) or self.filters.max_aspect is not None
        if asks_size and "width" in columns and "height" in columns:
            short = np.minimum(columns["width"], columns["height"])
            not_known = ~(short > 0)
            if self.filters.min_size:
                require(not_known | (short >= self.filters.min_size), self.size_name)
            if self.filters.max_aspect is not None:
                long = np.maximum(columns["width"], columns["height"])
                require(not_known | (long <= short * self.filters.max_aspect), self.aspect_name)
        for role, (name, limit, least) in self.scores.items():
            require(columns[role] >= limit if least else columns[role] <= limit, name)
        return mask

    # ---- captions

    def search(self, table: Table, sizes_known: bool) -> Search | None:
        """The words to search for first, and the numbers that narrow where."""
        name, terms, how = self.words[0] if self.words else ("", [], "none")
        # without the caption's words a row would have to be counted as the filter's that it is dropped by
        if how == "none" or any(term.generous.strip("(?s).+") == "" for term in terms):
            return None
        columns = {role: column for role, column in table.columns.items() if table.kinds.get(column) == "number"}
        conditions = [
            number(columns[role], ">=" if least else "<=", limit)
            for role, (_, limit, least) in self.scores.items()
            if role in columns
        ]
        width, height = columns.get("width"), columns.get("height")
        if width and height and self.filters.min_size:
            both = " AND ".join(number(column, ">=", self.filters.min_size) for column in (width, height))
            conditions.append(both if sizes_known else f"({both} OR {unknown(width)} OR {unknown(height)})")
        return Search(
            name=name, conditions=tuple(conditions), patterns=tuple(term.generous for term in terms), all_=how == "all"
        )

    def by_caption(self, captions: pa.Array, drop: Drop) -> Mask | None:
        """True where the table's caption passes; one that the user gives in its place is not searched."""
        import numpy as np

        if self.caption is not None and not self.selective:
            return None
        rows = _Narrowing(captions, drop)
        if self.caption is None:
            rows.keep(_is_filled(captions), "no caption")
        for name, terms, how in self.words:
            if how == "all":
                for term in terms:
                    rows.keep(rows.may_hold(term), name)
                for term in terms:
                    rows.keep(rows.where(term), name)
                continue
            found: Mask = np.zeros(len(rows), bool)
            for term in terms:
                found |= rows.where(term, rows.may_hold(term))
            rows.keep(found if how == "any" else ~found, name)
        if self.regex is not None:
            search = self.regex.search
            matched = [search((cell or "").strip()) is not None for cell in rows.column.to_pylist()]
            rows.keep(np.array(matched, bool), "--regex")
        return rows.mask

    # ---- other texts

    def by_texts(self, texts: Mapping[str, pa.Array], drop: Drop) -> Mask | None:
        """True where URL, host, language and licence pass."""
        import numpy as np
        import pyarrow.compute as pc

        rows = _Narrowing(texts["url"], drop)
        rows.keep(_is_filled(texts["url"]), "no URL")
        if self.hosts:
            on_host = pc.match_substring_regex(rows.column, self.hosts)
            rows.keep(~np.asarray(on_host.to_numpy(zero_copy_only=False), bool), "--exclude-hosts")
        if self.languages:
            passed = _by_value(rows.of(texts["language"]), lambda text: text.casefold() in self.languages)
            rows.keep(passed, _words_name("--language", self.filters.languages))
        if self.licences:
            passed = _by_value(rows.of(texts["licence"]), self._has_licence)
            rows.keep(passed, _words_name("--license", self.filters.licences))
        return rows.mask

    def _has_licence(self, text: str) -> bool:
        licence = licence_name(text)
        return any(pattern.search(licence) for pattern in self.licences)


class _Narrowing:
    """A column and which of its rows are left; `column` holds those alone."""

    def __init__(self, column: pa.Array, drop: Drop) -> None:
        self.column, self.drop = column, drop
        self.mask: Mask | None = None  # None: all

    def __len__(self) -> int:
        return len(self.column)

    def keep(self, passed: Mask, why: str) -> None:
        """Keep, of the rows that are left, those that passed."""
        import pyarrow as pa

        if passed.all():
            return
        self.drop(why, len(passed) - int(passed.sum()))
        if self.mask is None:
            self.mask = passed.copy()
        else:
            self.mask[self.mask] = passed
        self.column = self.column.filter(pa.array(passed))

    def of(self, column: pa.Array) -> pa.Array:
        """Another column's cells in the rows that are left."""
        import pyarrow as pa

        return column if self.mask is None else column.filter(pa.array(self.mask))

    def may_hold(self, term: _Term) -> Mask:
        """Which of the rows that are left may hold a term, by a generous test of the column."""
        import numpy as np
        import pyarrow.compute as pc

        maybe = pc.match_substring_regex(self.column, term.generous)
        return np.asarray(pc.fill_null(maybe, False).to_numpy(zero_copy_only=False), bool)

    def where(self, term: _Term, maybe: Mask | None = None) -> Mask:
        """Which of the rows that are left, or of those that may, hold a term: by an exact test of each."""
        import numpy as np
        import pyarrow as pa

        found = np.ones(len(self), bool) if maybe is None else maybe.copy()
        places = np.flatnonzero(found)
        search = term.exact.search
        for place, cell in zip(places.tolist(), self.column.take(pa.array(places)).to_pylist(), strict=True):
            if cell is None or search(cell) is None:
                found[place] = False
        return found


class _Term:
    """A word or phrase: `exact` finds it in a text, `generous` (RE2) misses no text in which `exact` finds it."""

    def __init__(self, term: str) -> None:
        self.exact = _word_pattern(term)
        self.generous = "(?s)" + ".+".join("".join(map(_generous, word)) for word in term.removesuffix("*").split())


# beyond its own two cases, what Python's re takes for a letter where case doesn't count
_ALSO = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}


def _generous(letter: str) -> str:
    """One character in any case, for RE2; of other scripts, where two engines may fold differently, any character."""
    if not letter.isascii():
        return "."
    if letter.isalpha():
        return f"[{letter.upper()}{letter.lower()}{_ALSO.get(letter.lower(), '')}]"
    return re.escape(letter)


_BLANK_STARTS = (0xC2, 0xE1, 0xE2, 0xE3)  # first bytes of blanks beyond ASCII in UTF-8


def _is_filled(column: pa.Array) -> Mask:
    """Which cells of a large_string column hold more than blanks and control characters."""
    import numpy as np
    import pyarrow as pa

    if not len(column):
        return np.zeros(0, bool)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    filled = offsets[1:] > offsets[:-1]
    if column.null_count:
        filled &= np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
    places = np.flatnonzero(filled)
    if not len(places):
        return filled
    firsts = np.frombuffer(column.buffers()[2], np.uint8)[offsets[places]]
    suspects = places[(firsts <= 0x20) | (firsts == 0x7F) | np.isin(firsts, _BLANK_STARTS)]
    for place, cell in zip(suspects.tolist(), column.take(pa.array(suspects)).to_pylist(), strict=True):
        filled[place] = bool(whole_text(cell).strip())
    return filled


def _by_value(column: pa.Array, passes: Callable[[str], bool]) -> Mask:
    """A test of each different cell, as a mask of the column; nothing there is an empty text."""
    import numpy as np
    import pyarrow.compute as pc

    encoded = pc.fill_null(column, "").dictionary_encode()
    answers = np.array([passes((value or "").strip()) for value in encoded.dictionary.to_pylist()], bool)
    if not len(answers):
        return np.zeros(len(column), bool)
    return np.asarray(answers[encoded.indices.to_numpy(zero_copy_only=False)], bool)


# ---- patterns


def _words_name(option: str, terms: Sequence[str]) -> str:
    return f"{option} {','.join(terms)}"


def _word_pattern(term: str) -> re.Pattern[str]:
    """Whole words in any case and any script; a trailing * leaves the end open; blanks match any blanks."""
    stem = term.removesuffix("*")
    body = r"\s+".join(re.escape(word) for word in stem.split())
    # an underscore or a digit's neighbour is no letter of the word
    start = r"(?<![^\W_])" if stem[:1].isalnum() else ""
    end = r"(?![^\W_])" if not term.endswith("*") and stem[-1:].isalnum() else ""
    return re.compile(start + body + end, re.IGNORECASE)


def _hosts_pattern(hosts: Sequence[str]) -> str:
    """A pattern for URLs on these hosts.

    `alamy` means any name with that label, `alamy.com` that name and what is below it.
    """
    named: dict[str, None] = {}
    for host in hosts:
        for name in STOCK_HOSTS if host.strip().lower() == "stock" else (host.strip().lower().strip("."),):
            if "/" in name:
                try:
                    name = urlsplit(name if "//" in name else f"//{name}").hostname or ""
                except ValueError as error:
                    raise UsageError(f"--exclude-hosts {host}: no host's name, and no address") from error
            if name:
                named[name] = None
    if not named:
        return ""
    forms = [re.escape(name) + (r"" if "." in name else r"(\.[^/?#:]*)?") for name in named]
    return rf"(?i)^\s*https?://([^/?#]*@)?([^/?#@]*\.)?({'|'.join(forms)})\.?(:\d*)?([/?#]|$)"


def licence_name(text: str) -> str:
    """A licence as people write it: Creative Commons addresses become `cc-by-sa-2.0`, `cc0-1.0`, `pdm-1.0`.

    Lower case, words joined by hyphens.
    """
    lower = text.strip().casefold()
    match = re.search(r"creativecommons\.org/(licenses|publicdomain)/([a-z+-]+)(?:/([\d.]+))?", lower)
    if match:
        name = {"zero": "cc0", "mark": "pdm"}.get(match[2], f"cc-{match[2]}")
        return f"{name}-{match[3]}" if match[3] else name
    return re.sub(r"[\s_]+", "-", lower)


def _licence_pattern(term: str) -> re.Pattern[str]:
    """`cc-by` finds cc-by and cc-by-4.0, not cc-by-nc; `cc0` finds cc0-1.0; `*` leaves the end open."""
    name = licence_name(term)
    if name.endswith("*"):
        return re.compile(rf"(?<![\w-]){re.escape(name[:-1])}")
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?:-v?[\d.]+)?(?![\w-])")


def _checksum(text: str) -> str:
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}", text):
        return text.lower()
    if re.fullmatch(r"[0-9A-Za-z+/]{22}==", text):  # Open Images has MD5 in base 64
        try:
            return base64.b64decode(text, validate=True).hex()
        except binascii.Error:
            return ""
    return ""


def _phash(text: str, is_integer: bool) -> str:
    """64 bits as 16 hex digits, from hex digits or from a signed or unsigned integer."""
    text = text.strip().lower()
    if not is_integer and re.fullmatch(r"[0-9a-f]{16}", text):
        return text
    if re.fullmatch(r"-?[0-9]{1,20}", text) and -(2**63) <= int(text) < 2**64:
        return f"{int(text) % 2**64:016x}"
    return ""
