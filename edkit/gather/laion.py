"""Which rows of LAION-like tables match, in table order, as Candidates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edkit.data.errors import UsageError
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.tables import Chunk, Table, scan

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from edkit.gather.tables import Floats, Mask

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
    tables: Sequence[Table], filters: Filters, funnel: Funnel, *, caption: str | None = None
) -> Iterator[list[Candidate]]:
    """The matching rows of all tables, in order, in lists as they are read (some empty); each URL once.

    `caption` stands in where a row has none; without it such rows are dropped. Fills `funnel` as it goes.
    """
    seen: set[int] = set()
    texts = _TextFilter(filters, funnel, caption)
    for table in tables:
        check_columns(table, filters, caption=caption)
        numbers = [r for r in ("width", "height", *filters.numbers()) if r in table.columns]
        roles = ("url", "caption", "licence", "author", "language", "key", "checksum")
        present = [role for role in roles if role in table.columns]
        for chunk in scan(table, numbers=numbers, texts=present, keep=_number_filter(filters, funnel)):
            funnel.rows += chunk.num_rows
            found = texts.candidates(table, chunk, seen)
            funnel.left += len(found)
            yield found


# ---- numbers


def _number_filter(filters: Filters, funnel: Funnel) -> Callable[[Mapping[str, Floats]], Mask]:
    """A mask over rows: True where every number passes. An unknown size passes, an unknown score doesn't."""
    import numpy as np

    scores = filters.numbers()

    def keep(columns: Mapping[str, Floats]) -> Mask:
        mask = np.ones(len(columns[""]), bool)

        def require(passed: Mask, why: str) -> None:
            nonlocal mask
            before = int(mask.sum())
            mask = mask & passed
            dropped = before - int(mask.sum())
            funnel.drop(why, dropped)

        if "width" in columns and "height" in columns:
            short = np.minimum(columns["width"], columns["height"])
            long = np.maximum(columns["width"], columns["height"])
            unknown = ~(short > 0)
            if filters.min_size:
                require(unknown | (short >= filters.min_size), f"--min-size {filters.min_size}")
            if filters.max_aspect is not None:
                require(unknown | (long <= short * filters.max_aspect), f"--max-aspect {filters.max_aspect:g}")
        for role, (option, limit, at_least) in scores.items():
            why = f"{option} {limit:g}"
            values = columns[role]
            require(values >= limit if at_least else values <= limit, why)
        return mask

    return keep


# ---- text


class _TextFilter:
    """The filters that read text: first vectorised and generous, then exact on the rows that are left."""

    def __init__(self, filters: Filters, funnel: Funnel, caption: str | None) -> None:
        self.filters, self.funnel, self.caption = filters, funnel, caption
        self.hosts = _hosts_pattern(filters.exclude_hosts)
        self.search = [(term, _word_pattern(term)) for term in filters.search]
        self.any = [(term, _word_pattern(term)) for term in filters.any]
        self.exclude = [(term, _word_pattern(term)) for term in filters.exclude]
        self.regex = re.compile(filters.regex, re.IGNORECASE) if filters.regex else None
        self.licence = [_licence_pattern(term) for term in filters.licences]
        self.languages = {language.casefold() for language in filters.languages}

    def candidates(self, table: Table, chunk: Chunk, seen: set[int]) -> list[Candidate]:
        """The rows of one chunk that pass everything, each URL once."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(chunk.selected):
            return []
        texts = dict(chunk.texts)
        index = np.arange(len(chunk.selected))

        def narrow(mask: Any, why: str) -> None:
            nonlocal index
            keep = np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), bool)
            if not keep.all():
                self.funnel.drop(why, int((~keep).sum()))
                index = index[keep]
                for role in texts:
                    texts[role] = texts[role].filter(pa.array(keep))

        narrow(pc.match_substring_regex(texts["url"], r"^\s*\S"), "no URL")
        if self.hosts:
            narrow(pc.invert(pc.match_substring_regex(texts["url"], self.hosts)), "--exclude-hosts")
        if self.caption is None:
            narrow(pc.match_substring_regex(texts["caption"], r"\S"), "no caption")
        if self.search:
            mask = pa.array(np.ones(len(index), bool))
            for term, _ in self.search:
                mask = pc.and_(mask, _may_hold(texts["caption"], term))
            narrow(mask, _words_name("--search", self.filters.search))
        if self.any:
            mask = pa.array(np.zeros(len(index), bool))
            for term, _ in self.any:
                mask = pc.or_(mask, pc.fill_null(_may_hold(texts["caption"], term), False))
            narrow(mask, _words_name("--any", self.filters.any))
        return self._exact(table, chunk, index, texts, seen)

    def _exact(
        self,
        table: Table,
        chunk: Chunk,
        index: np.ndarray[Any, np.dtype[Any]],
        texts: Mapping[str, pa.Array],
        seen: set[int],
    ) -> list[Candidate]:
        columns = {role: array.to_pylist() for role, array in texts.items()}
        numbers = {role: values[index].tolist() for role, values in chunk.numbers.items()}
        rows = chunk.selected[index].tolist()
        found = []
        for i, row in enumerate(rows):
            cells = {role: (values[i] or "").strip() for role, values in columns.items()}
            caption = cells.get("caption") or self.caption or ""
            why = self._refuse(cells, caption)
            if why is None:
                # 64 bits of a URL are enough to tell tens of millions apart
                mark = hash(cells["url"])
                if mark in seen:
                    why = "URL of an earlier row"
                seen.add(mark)
            if why is not None:
                self.funnel.drop(why, 1)
                continue
            found.append(
                Candidate(
                    url=cells["url"],
                    caption=caption,
                    table=str(table.path),
                    row=row,
                    width=_pixels(numbers, "width", i),
                    height=_pixels(numbers, "height", i),
                    licence=cells.get("licence", ""),
                    author=cells.get("author", ""),
                    key=cells.get("key", ""),
                    checksum=_checksum(cells.get("checksum", "")),
                )
            )
        return found

    def _refuse(self, cells: Mapping[str, str], caption: str) -> str | None:
        """The filter that drops this row, by name; None where it passes all."""
        if self.languages and cells["language"].casefold() not in self.languages:
            return _words_name("--language", self.filters.languages)
        if self.licence:
            licence = licence_name(cells["licence"])
            if not any(pattern.search(licence) for pattern in self.licence):
                return _words_name("--license", self.filters.licences)
        if not all(pattern.search(caption) for _, pattern in self.search):
            return _words_name("--search", self.filters.search)
        if self.any and not any(pattern.search(caption) for _, pattern in self.any):
            return _words_name("--any", self.filters.any)
        if any(pattern.search(caption) for _, pattern in self.exclude):
            return _words_name("--exclude", self.filters.exclude)
        if self.regex and not self.regex.search(caption):
            return "--regex"
        return None


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


def _may_hold(column: pa.Array, term: str) -> pa.Array:
    """A vectorised test that lets every row through which the exact pattern would find."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = term.removesuffix("*").split()
    longest = max(words, key=len, default="")
    if not longest.isascii():  # two engines may fold other scripts differently
        return pa.array([True] * len(column))
    return pc.match_substring(column, longest, ignore_case=True)


def _hosts_pattern(hosts: Sequence[str]) -> str:
    """A pattern for URLs on these hosts.

    `alamy` means any name with that label, `alamy.com` that name and what is below it.
    """
    named: dict[str, None] = {}
    for host in hosts:
        for name in STOCK_HOSTS if host.strip().lower() == "stock" else (host.strip().lower().strip("."),):
            if "/" in name:
                name = urlsplit(name if "//" in name else f"//{name}").hostname or ""
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


def _pixels(numbers: Mapping[str, list[float]], role: str, i: int) -> int:
    value = numbers[role][i] if role in numbers else 0.0
    return int(value) if 0 < value < 1e9 else 0


def _checksum(text: str) -> str:
    text = text.casefold()
    return text if re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", text) else ""
