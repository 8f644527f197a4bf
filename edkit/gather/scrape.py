"""`edkit scrape`: from LAION-like tables to a folder of captioned images, exactly and resumably."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edkit.data.catalog import Catalog, state_dir_for
from edkit.data.errors import UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.places import Places
from edkit.data.progress import SILENT, Progress
from edkit.gather.candidate import KEPT, Candidate, Funnel
from edkit.gather.collect import Collector, Counts
from edkit.gather.fetch import USER_AGENT, FetchSettings
from edkit.gather.laion import Filters, candidates, check_columns
from edkit.gather.place import Captions
from edkit.gather.tables import Table, locate, open_table

_LISTED = 1000  # matches a dry run without a limit holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What a scrape found, fetched and skipped."""

    out: Path
    query: str  # its id in the ledger
    dry_run: bool
    columns: Mapping[str, Mapping[str, str]]  # table -> what -> the column's name
    rows_read: int
    dropped: Mapping[str, int]  # by filter, in the order they were asked
    matched: int
    skipped: Mapping[str, int]  # matches not tried: kept or failed for good before
    outcomes: Mapping[str, int]  # of those tried in this run, by ledger code
    kept: int  # in this run
    total: int  # of this query over all its runs
    limit: int | None
    num_bytes: int  # of what was kept
    seconds: float
    matches: tuple[Candidate, ...] = ()  # a dry run's


def scrape(
    tables: Sequence[Path | str],
    *,
    out: Path,
    search: Sequence[str] = (),
    any: Sequence[str] = (),  # named as the option
    exclude: Sequence[str] = (),
    regex: str = "",
    min_size: int = 0,
    max_aspect: float | None = None,
    min_aesthetic: float | None = None,
    max_unsafe: float | None = None,
    max_watermark: float | None = None,
    min_similarity: float | None = None,
    licences: Sequence[str] = (),
    languages: Sequence[str] = (),
    exclude_hosts: Sequence[str] = (),
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    captions: Captions = "filename",
    caption: str | None = None,
    concurrency: int = 64,
    per_host: int = 8,
    timeout: float = 30.0,
    idle_timeout: float = 10.0,
    retries: int = 2,
    max_bytes: int = 50_000_000,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    check_hash: bool = False,
    user_agent: str = USER_AGENT,
    allow_private_hosts: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Scrape:
    """Search tables, fetch what matches, and keep the first `limit` good images in table order.

    Words match whole and in any case; sizes in pixels, timeouts in seconds. Called again with the same
    tables, filters and `out` it goes on: nothing is fetched twice, passing failures are tried again.
    Raises UsageError, BadInput (a table, a missing column), StateError, NoSpace.
    """
    started = time.monotonic()
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: how many good images to have, 1 or more")
    if captions not in ("filename", "sidecar", "both"):
        raise UsageError(f"--captions {captions}: filename, sidecar or both")
    filters = Filters(
        search=_terms(search),
        any=_terms(any),
        exclude=_terms(exclude),
        regex=regex,
        min_size=min_size,
        max_aspect=max_aspect,
        min_aesthetic=min_aesthetic,
        max_unsafe=max_unsafe,
        max_watermark=max_watermark,
        min_similarity=min_similarity,
        licences=_terms(licences),
        languages=_terms(languages),
        exclude_hosts=_terms(exclude_hosts),
    )
    settings = FetchSettings(
        concurrency=concurrency,
        per_host=per_host,
        timeout=timeout,
        idle_timeout=idle_timeout,
        retries=retries,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        min_size=min_size,
        max_aspect=max_aspect,
        check_hash=check_hash,
        user_agent=user_agent,
        allow_private=allow_private_hosts,
    )
    out = Path(os.path.abspath(out))  # noqa: PTH100 - lexically, as the catalog does
    opened = [open_table(path, columns=columns) for path in locate(tables)]
    for table in opened:
        check_columns(table, filters, caption=caption)
    if len(opened) == 1:
        found = ", ".join(f"{role}={name}" for role, name in opened[0].columns.items())
        progress.say(f"{opened[0].path.name}: {found}")
    else:
        same = {tuple(sorted(table.columns.items())) for table in opened}
        progress.say(f"{len(opened)} tables, {len(same)} layout{'s' if len(same) != 1 else ''}")
    funnel = Funnel()
    place = Places(state_dir_for(out, state_dir)).key(out)
    query = _query_id(opened, filters, columns, caption, place)

    def matching(funnel: Funnel) -> Iterator[list[Candidate]]:
        return candidates(opened, filters, funnel, caption=caption)

    if dry_run:
        matches = _list_matches(matching(funnel), limit, progress)
        run = Counts()
        total = 0
        with Catalog.open(out, state_dir=state_dir, write=False) as catalog:
            total = catalog.ledger_count(query=query, outcome=KEPT)
    else:
        matches = ()
        out.mkdir(parents=True, exist_ok=True)
        with Catalog.open(out, state_dir=state_dir, command="scrape", progress=progress) as catalog:
            work = Collector(catalog, out, query, captions, settings, limit, progress)
            funnel = work.run(matching)
            run, total = work.counts, work.total
    return Scrape(
        out=out,
        query=query,
        dry_run=dry_run,
        columns={str(table.path): dict(table.columns) for table in opened},
        rows_read=funnel.rows,
        dropped={why: n for why, n in funnel.dropped.items() if n},
        matched=funnel.left,
        skipped=run.skipped,
        outcomes=run.outcomes,
        kept=run.outcomes.get(KEPT, 0),
        total=total,
        limit=limit,
        num_bytes=run.num_bytes,
        seconds=time.monotonic() - started,
        matches=matches,
    )


def _terms(words: Sequence[str]) -> tuple[str, ...]:
    """`"photo,man"` and `["photo", "man"]` alike."""
    parts = [words] if isinstance(words, str) else words
    return tuple(term.strip() for part in parts for term in part.split(",") if term.strip())


def _query_id(
    tables: Sequence[Table],
    filters: Filters,
    columns: Mapping[str, str] | None,
    caption: str | None,
    place: str | bytes,
) -> str:
    """The same for the same question into the same folder, however it is fetched and to whatever limit."""
    asked = {
        "tables": [str(table.path.resolve()) for table in tables],
        "filters": asdict(filters),
        "columns": dict(columns or {}),
        "caption": caption,
        "out": os.fsdecode(place),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _list_matches(found: Iterable[list[Candidate]], limit: int | None, progress: Progress) -> tuple[Candidate, ...]:
    matches: list[Candidate] = []
    with progress.task("searching", unit="matches") as advance:
        for some in found:
            matches.extend(some[: (limit or _LISTED) - len(matches)])
            advance(len(some))
            if limit is not None and len(matches) >= limit:
                break
    return tuple(matches)
