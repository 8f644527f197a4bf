"""`edkit scrape`: from LAION-like tables to a folder of captioned images, exactly and resumably."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from edkit.data.catalog import Catalog, state_dir_for
from edkit.data.errors import UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.places import STATE, Places
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed
from edkit.gather.candidate import KEPT, Candidate, Funnel
from edkit.gather.collect import Collector, Counts, options_id
from edkit.gather.estimate import Estimate, Prober
from edkit.gather.fetch import USER_AGENT, CheckHash, FetchSettings
from edkit.gather.laion import Filters, candidates, check_columns
from edkit.gather.place import Captions, Placer
from edkit.gather.shards import ShardPlacer
from edkit.gather.tables import Table, locate, open_table

_LISTED = 1000  # matches a dry run without a limit holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What a scrape found, fetched and skipped."""

    out: Path | None
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
    seed: int  # of --shuffle and --estimate, as drawn where -1 was asked for
    hosts: Mapping[str, Mapping[str, int]]  # host -> outcome -> fetches; only where asked for
    matches: tuple[Candidate, ...] = ()  # a dry run's
    listed: Path | None = None  # the table that holds the matches
    estimate: Estimate | None = None


def scrape(
    tables: Sequence[Path | str],
    *,
    out: Path | None = None,
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
    part: tuple[int, int] | None = None,
    shuffle: bool = False,
    seed: int = 555,
    columns: Mapping[str, str] | None = None,
    format: Literal["files", "webdataset"] = "files",
    shard_size: int = 10_000,
    captions: Captions = "filename",
    caption: str | None = None,
    concurrency: int = 64,
    per_host: int = 8,
    timeout: float = 30.0,
    idle_timeout: float = 10.0,
    retries: int = 2,
    max_bytes: int = 50_000_000,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    check_hash: CheckHash = "off",
    user_agent: str = "",
    contact: str = "",
    ignore_robots: bool = False,
    ignore_opt_out: bool = False,
    allow_private_hosts: bool = False,
    dry_run: bool = False,
    list_to: Path | None = None,
    estimate: bool = False,
    by_host: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Scrape:
    """Search tables, fetch what matches, and keep the first `limit` good images in table order.

    Words match whole and in any case; sizes in pixels, timeouts in seconds. Called again with the same
    tables, filters and `out` it goes on: nothing is fetched twice, passing failures are tried again.
    `part` (i, n) takes the i-th of n disjoint shares of the rows, `shuffle` a fair order drawn by `seed`.
    With `list_to` (a .parquet, .csv, .tsv or .jsonl) or `dry_run` nothing is fetched; with `estimate` a sample
    is, and discarded. Raises UsageError, BadInput (a table, a missing column), StateError, NoSpace.
    """
    started = time.monotonic()
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: how many good images to have, 1 or more")
    if captions not in ("filename", "sidecar", "both"):
        raise UsageError(f"--captions {captions}: filename, sidecar or both")
    if format not in ("files", "webdataset"):
        raise UsageError(f"--format {format}: files or webdataset")
    if part is not None and not 1 <= part[0] <= part[1] < 1 << 63:
        raise UsageError(f"--part {part[0]}/{part[1]}: share i of n, 1 <= i <= n")
    if out is None and not (dry_run or estimate or list_to):
        raise UsageError("say where the images go: --out DIR (or look first: --dry-run, --list FILE, --estimate)")
    if estimate and (dry_run or list_to):
        raise UsageError("--estimate fetches a sample; --dry-run and --list fetch nothing: one of them at a time")
    seed = draw_seed() if seed == -1 else seed
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
        user_agent=honest_agent(user_agent, contact),
        allow_private=allow_private_hosts,
        honour_robots=not ignore_robots,
        honour_opt_out=not ignore_opt_out,
    )
    out = None if out is None else Path(os.path.abspath(out))  # noqa: PTH100 - lexically, as the catalog does
    opened = [open_table(path, columns=columns) for path in locate(tables)]
    for table in opened:
        check_columns(table, filters, caption=caption)
    if len(opened) == 1:
        found = ", ".join(f"{role}={name}" for role, name in opened[0].columns.items())
        progress.say(f"{opened[0].name}: {found}")
    else:
        same = {tuple(sorted(table.columns.items())) for table in opened}
        progress.say(f"{len(opened)} tables, {len(same)} layout{'s' if len(same) != 1 else ''}")
    funnel = Funnel()
    place = "" if out is None else os.fsdecode(Places(state_dir_for(out, state_dir)).key(out))
    query = _query_id(
        opened, filters, columns, caption, place, part=part, shuffle=seed if shuffle else None, format=format
    )

    def matching(funnel: Funnel) -> Iterator[list[Candidate]]:
        return candidates(opened, filters, funnel, caption=caption, part=part, shuffle=seed if shuffle else None)

    def open_catalog(folder: Path, state: Path | None) -> Catalog:
        folder.mkdir(parents=True, exist_ok=True)
        return Catalog.open(folder, state_dir=state, command=command or "scrape", progress=progress)

    matches: tuple[Candidate, ...] = ()
    judged: Estimate | None = None
    run, total = Counts(), 0
    if dry_run or list_to is not None:
        matches = _list_matches(matching(funnel), limit, progress, list_to, held=_LISTED if dry_run else 0)
        if out is not None:
            with Catalog.open(out, state_dir=state_dir, write=False) as catalog:
                total = catalog.ledger_count(query=query, outcome=KEPT)
    elif estimate:
        with TemporaryDirectory(prefix="edkit-estimate-") as nowhere:
            folder, state = (Path(nowhere), Path(nowhere) / STATE) if out is None else (out, state_dir)
            with open_catalog(folder, state) as catalog:
                prober = Prober(catalog, folder, query=query, settings=settings, seed=seed, progress=progress)
                judged = prober.run(matching(funnel), funnel, limit=limit)
                run, total = prober.counts, prober.total
    else:
        assert out is not None
        with open_catalog(out, state_dir) as catalog:
            if format == "webdataset":
                placer: Placer = ShardPlacer(
                    catalog, out, query=query, options=options_id(settings), shard_size=shard_size
                )
            else:
                placer = Placer(catalog, out, query=query, captions=captions, options=options_id(settings))
            work = Collector(catalog, out, query, captions, settings, limit, progress, placer=placer, by_host=by_host)
            funnel = work.run(matching)
            run, total = work.counts, work.total
    return Scrape(
        out=out,
        query=query,
        dry_run=dry_run,
        columns={table.name: dict(table.columns) for table in opened},
        rows_read=funnel.rows,
        dropped={why: n for why, n in funnel.dropped.items() if n},
        matched=funnel.left,
        skipped=run.skipped,
        outcomes=run.outcomes,
        kept=0 if estimate else run.outcomes.get(KEPT, 0),
        total=total,
        limit=limit,
        num_bytes=run.num_bytes,
        seconds=time.monotonic() - started,
        seed=seed,
        hosts=run.hosts,
        matches=matches,
        listed=list_to,
        estimate=judged,
    )


def honest_agent(user_agent: str, contact: str) -> str:
    """The user agent: edkit's own or the given one, with how to reach whoever runs it."""
    agent, contact = user_agent.strip(), contact.strip()
    if not contact:
        return agent or USER_AGENT
    if not agent:
        return f"{USER_AGENT.removesuffix(')')}; contact: {contact})"
    return f"{agent} (contact: {contact})"


def _terms(words: Sequence[str]) -> tuple[str, ...]:
    """`"photo,man"` and `["photo", "man"]` alike."""
    parts = [words] if isinstance(words, str) else words
    return tuple(term.strip() for part in parts for term in part.split(",") if term.strip())


def _query_id(
    tables: Sequence[Table],
    filters: Filters,
    columns: Mapping[str, str] | None,
    caption: str | None,
    place: str,
    *,
    part: tuple[int, int] | None,
    shuffle: int | None,
    format: str,
) -> str:
    """The same for the same question into the same folder, however it is fetched and to whatever limit."""
    asked = {
        "tables": [table.identity for table in tables],
        "filters": asdict(filters),
        "columns": dict(columns or {}),
        "caption": caption,
        "out": place,
        "part": part,
        "shuffle": shuffle,
        "format": format,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _list_matches(
    found: Iterable[list[Candidate]], limit: int | None, progress: Progress, path: Path | None, *, held: int
) -> tuple[Candidate, ...]:
    """The first matches, up to the limit: all into the table at `path`, and `held` of them returned."""
    matches: list[Candidate] = []

    def each() -> Iterator[Candidate]:
        left = limit
        with progress.task("searching", unit="matches") as advance:
            for some in found:
                for candidate in some if left is None else some[:left]:
                    if len(matches) < held:
                        matches.append(candidate)
                    yield candidate
                advance(len(some))
                if left is not None:
                    left -= min(left, len(some))
                    if left == 0:
                        return

    if path is None:
        deque(each(), maxlen=0)
    else:
        from edkit.gather.matches import write

        write(path, each())
    return tuple(matches)
