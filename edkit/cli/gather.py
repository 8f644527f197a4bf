"""The command line of edkit: gather."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from edkit.cli import console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edkit.cli.console import Session
    from edkit.gather.estimate import Estimate
    from edkit.gather.scrape import Scrape

app = typer.Typer()
PANEL = "Gather"
# the option groups of --help
WORDS, NUMBERS, LOOK, KEEP = "Which captions", "Which images", "Look first", "How many, and what becomes of them"
FETCHING, MANNERS = "Fetching", "Manners and safety"


class CaptionsAs(StrEnum):
    """Where captions go."""

    filename = "filename"
    sidecar = "sidecar"
    both = "both"


class CheckHash(StrEnum):
    """What a hash in the table means for a file that differs."""

    off = "off"
    strict = "strict"
    perceptual = "perceptual"


class Format(StrEnum):
    """What images are written as."""

    files = "files"
    webdataset = "webdataset"


Columns = Annotated[
    str,
    typer.Option("--columns", help="Name columns yourself: url=LINK,caption=ALT.", metavar="ROLE=NAME,..."),
]
Captions = Annotated[
    CaptionsAs,
    typer.Option("--captions", help="Captions as file names, as .txt sidecars, or both.", rich_help_panel=KEEP),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", help="This many good images over all runs, the first in order.", metavar="N", rich_help_panel=KEEP
    ),
]
# how to fetch: the same options wherever something is downloaded
Concurrency = Annotated[int, typer.Option("--concurrency", help="Downloads at a time.", rich_help_panel=FETCHING)]
PerHost = Annotated[
    int, typer.Option("--per-host", help="Downloads at a time from one host.", rich_help_panel=FETCHING)
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds for one try.", rich_help_panel=FETCHING)]
IdleTimeout = Annotated[float, typer.Option("--idle-timeout", help="Seconds without a byte.", rich_help_panel=FETCHING)]
Retries = Annotated[
    int,
    typer.Option("--retries", help="More tries after timeouts, resets, 429 and 5xx.", rich_help_panel=FETCHING),
]
MaxBytes = Annotated[int, typer.Option("--max-bytes", help="Largest file to take, in bytes.", rich_help_panel=FETCHING)]
MaxPixels = Annotated[
    int, typer.Option("--max-pixels", help="Largest image to decode, in pixels.", rich_help_panel=FETCHING)
]
UserAgent = Annotated[
    str,
    typer.Option("--user-agent", help="Who you say you are (default: edkit and its version).", rich_help_panel=MANNERS),
]
Contact = Annotated[
    str,
    typer.Option(
        "--contact",
        help="How to reach you: an address or a page, added to the user agent.",
        rich_help_panel=MANNERS,
    ),
]
IgnoreRobots = Annotated[
    bool,
    typer.Option("--ignore-robots", help="Don't ask robots.txt (where you have leave).", rich_help_panel=MANNERS),
]
IgnoreOptOut = Annotated[
    bool,
    typer.Option(
        "--ignore-opt-out",
        help="Also keep what its owner reserves from use for AI (X-Robots-Tag, TDM-Reservation).",
        rich_help_panel=MANNERS,
    ),
]
AllowPrivate = Annotated[
    bool,
    typer.Option("--allow-private-hosts", help="Also fetch from private and local addresses.", rich_help_panel=MANNERS),
]


def scrape(
    tables: Annotated[
        list[str],
        typer.Argument(
            help="Tables (Parquet, CSV, TSV, JSONL): files, folders, patterns, https://, s3://, hf:// addresses."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the images.", metavar="DIR", rich_help_panel=KEEP)
    ] = None,
    search: Annotated[
        str, typer.Option("--search", help="All of these words in the caption: photo,man", rich_help_panel=WORDS)
    ] = "",
    any_: Annotated[str, typer.Option("--any", help="At least one of these words.", rich_help_panel=WORDS)] = "",
    exclude: Annotated[str, typer.Option("--exclude", help="None of these words.", rich_help_panel=WORDS)] = "",
    regex: Annotated[str, typer.Option("--regex", help="A pattern the caption must hold.", rich_help_panel=WORDS)] = "",
    language: Annotated[
        str, typer.Option("--language", help="One of these languages: en,de", rich_help_panel=WORDS)
    ] = "",
    caption: Annotated[
        str | None,
        typer.Option(
            "--caption", help="Caption of rows that have none (else they are left out).", rich_help_panel=WORDS
        ),
    ] = None,
    min_size: Annotated[
        int, typer.Option("--min-size", help="Least pixels of both sides.", rich_help_panel=NUMBERS)
    ] = 0,
    max_aspect: Annotated[
        float | None,
        typer.Option("--max-aspect", help="Most that the longer side may be of the shorter.", rich_help_panel=NUMBERS),
    ] = None,
    min_aesthetic: Annotated[
        float | None, typer.Option("--min-aesthetic", help="Least aesthetic score.", rich_help_panel=NUMBERS)
    ] = None,
    max_unsafe: Annotated[
        float | None,
        typer.Option("--max-unsafe", help="Most punsafe (0 is safe, 1 is not).", rich_help_panel=NUMBERS),
    ] = None,
    max_watermark: Annotated[
        float | None, typer.Option("--max-watermark", help="Most pwatermark (0..1).", rich_help_panel=NUMBERS)
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option("--min-similarity", help="Least likeness of image and caption (CLIP).", rich_help_panel=NUMBERS),
    ] = None,
    licence: Annotated[
        str,
        typer.Option("--license", "--licence", help="One of these licences: cc0,cc-by,pdm", rich_help_panel=NUMBERS),
    ] = "",
    exclude_hosts: Annotated[
        str,
        typer.Option(
            "--exclude-hosts",
            help="None of these hosts: alamy.com,stock (stock: photo agencies).",
            rich_help_panel=NUMBERS,
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the first twenty matches, fetch nothing.", rich_help_panel=LOOK),
    ] = False,
    list_to: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="Write the matches as a table (.parquet, .csv, .tsv, .jsonl), fetch nothing.",
            metavar="FILE",
            rich_help_panel=LOOK,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Fetch and discard a few hundred: yield, bytes, time and disk of the whole.",
            rich_help_panel=LOOK,
        ),
    ] = False,
    limit: Limit = None,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="In an order drawn by --seed, not the tables'.", rich_help_panel=KEEP),
    ] = False,
    seed: Annotated[
        int,
        typer.Option("--seed", help="Of --shuffle and --estimate (-1 draws one).", rich_help_panel=KEEP),
    ] = 555,
    part: Annotated[
        str,
        typer.Option(
            "--part", help="The i-th of n shares of the rows, for n machines.", metavar="I/N", rich_help_panel=KEEP
        ),
    ] = "",
    captions: Captions = CaptionsAs.filename,
    format_: Annotated[
        Format,
        typer.Option("--format", help="Image files, or tar shards with a Parquet each.", rich_help_panel=KEEP),
    ] = Format.files,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Images in a shard.", rich_help_panel=KEEP)] = 10_000,
    columns: Columns = "",
    concurrency: Concurrency = 64,
    per_host: PerHost = 8,
    timeout: Timeout = 30.0,
    idle_timeout: IdleTimeout = 10.0,
    retries: Retries = 2,
    max_bytes: MaxBytes = 50_000_000,
    max_pixels: MaxPixels = 178_956_970,
    check_hash: Annotated[
        CheckHash,
        typer.Option(
            "--check-hash",
            help="Refuse what is not the file (strict) or the picture (perceptual) that the table's hash means.",
            rich_help_panel=FETCHING,
        ),
    ] = CheckHash.off,
    contact: Contact = "",
    user_agent: UserAgent = "",
    ignore_robots: IgnoreRobots = False,
    ignore_opt_out: IgnoreOptOut = False,
    allow_private_hosts: AllowPrivate = False,
    by_host: Annotated[
        bool, typer.Option("--by-host", help="Also tell how fetches ended host by host (all of it in --json).")
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Search LAION-like tables and download what matches, captioned and checked; run again, it goes on."""
    from edkit.gather.scrape import scrape as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            tables,
            out=out,
            search=[search],
            any=[any_],
            exclude=[exclude],
            regex=regex,
            min_size=min_size,
            max_aspect=max_aspect,
            min_aesthetic=min_aesthetic,
            max_unsafe=max_unsafe,
            max_watermark=max_watermark,
            min_similarity=min_similarity,
            licences=[licence],
            languages=[language],
            exclude_hosts=[exclude_hosts],
            limit=limit,
            part=_part(part),
            shuffle=shuffle,
            seed=seed,
            columns=_columns(columns),
            format=format_.value,
            shard_size=shard_size,
            captions=captions.value,
            caption=caption,
            concurrency=concurrency,
            per_host=per_host,
            timeout=timeout,
            idle_timeout=idle_timeout,
            retries=retries,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            check_hash=check_hash.value,
            user_agent=user_agent,
            contact=contact,
            ignore_robots=ignore_robots,
            ignore_opt_out=ignore_opt_out,
            allow_private_hosts=allow_private_hosts,
            dry_run=dry_run,
            list_to=list_to,
            estimate=estimate,
            by_host=by_host,
            state_dir=state_dir,
            command=typed(),
            progress=ui.progress,
        )
        _show_scrape(ui, result)


app.command(
    "scrape",
    rich_help_panel=PANEL,
    epilog='Example: edkit scrape laion/*.parquet --out pool --search "photo,man" --min-size 512 --limit 500',
)(scrape)
app.command(
    "laion-scrape",
    rich_help_panel=PANEL,
    epilog='Example: edkit laion-scrape laion/ --out pool --search "photo,man" --limit 1000',
    help="The same as scrape, under its old name.",
)(scrape)


@app.command("credits", rich_help_panel="Look back", epilog="Example: edkit credits pool --out pool/CREDITS.md")
def credits_(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="The folder whose images are credited.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it here: .md, .csv, .json or .html."),
    ] = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """List who made a folder's images, under which licence and where they came from."""
    from edkit.gather.credits import credits as verb
    from edkit.gather.credits import markdown

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(root, out=out, state_dir=state_dir, progress=ui.progress)
        if out is None:
            ui.done(result, *markdown(result).rstrip("\n").split("\n"))
            return
        ui.table(["licence", "images"], list(result.licences.items()))
        ui.done(
            result,
            f"{len(result.credits):,} images credited in {short(out)}",
            *([f"{result.num_unknown:,} of them have no known licence"] if result.num_unknown else []),
            *([f"{len(result.foreign):,} images were not brought by edkit"] if result.foreign else []),
            *[f"{image}: {why}" for image, why in result.unreadable],
        )


def _columns(text: str) -> dict[str, str]:
    """`url=LINK,caption=ALT` as a mapping."""
    from edkit.data.errors import UsageError

    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals and name.strip() for _, equals, name in pairs):
        raise UsageError(f"--columns {text}: pairs such as url=LINK,caption=ALT")
    return {role.strip(): name.strip() for role, _, name in pairs}


def _part(text: str) -> tuple[int, int] | None:
    """`3/8` as a pair."""
    from edkit.data.errors import UsageError

    if not text:
        return None
    i, slash, n = text.partition("/")
    if not (slash and i.strip().isdecimal() and n.strip().isdecimal()):
        raise UsageError(f"--part {text}: such as 3/8, the third of eight shares")
    return int(i), int(n)


def typed() -> str:
    """The command as it was typed, for the history."""
    import shlex
    import sys

    return shlex.join(["edkit", *sys.argv[1:]])


def _show_scrape(ui: Session, result: Scrape) -> None:
    if not result.rows_read and result.limit is not None and result.total >= result.limit:
        ui.done(
            result, f"nothing to do: {result.total:,} images of this query are there, the limit is {result.limit:,}"
        )
        return
    funnel: list[tuple[str, int]] = [("rows read", result.rows_read)]
    funnel += [(f"  {why}", -n) for why, n in result.dropped.items()]
    ui.table(["rows", ""], [*funnel, ("match", result.matched)])
    if result.estimate is not None:
        show_outcomes(ui, result.outcomes, result.skipped, kept="good")
        ui.table(["estimate", ""], _estimate_rows(result.estimate, result.limit))
        ui.done(result, "nothing was kept of what the probe fetched")
        return
    if result.dry_run or result.listed is not None:
        shown = result.matches[:20]
        sized = [(f"{c.width}x{c.height}" if c.width else "", _line(c.caption), c.url) for c in shown]
        ui.table(["size", "caption", "url"], sized)
        more = result.matched - len(shown) if shown else 0
        already = f"; {result.total:,} of this query are in the folder" if result.total else ""
        listed = min(result.matched, result.limit or result.matched)
        ui.done(
            result,
            *([f"... and {more:,} more (--list FILE writes them all)"] if more > 0 and not result.listed else []),
            *([f"{listed:,} matches written to {short(result.listed)}"] if result.listed else []),
            f"{result.matched:,} rows match; nothing was fetched{already}",
        )
        return
    show_outcomes(ui, result.outcomes, result.skipped)
    if result.hosts:
        _show_hosts(ui, result.hosts)
    ui.done(result, *kept_lines(result))


def _line(caption: str) -> str:
    """A caption in a table of many: its first words."""
    return caption if len(caption) <= 60 else f"{caption[:59].rstrip()}…"


def _estimate_rows(found: Estimate, limit: int | None) -> list[tuple[str, str]]:
    """What a probe says about the whole, a line a question."""
    low, high = f"{found.rate_low:.0%}", f"{found.rate_high:.0%}"
    rows = [("good", f"{found.rate:.0%} of what matches ({low} to {high}; {found.good} of {found.probed} probed)")]
    if not found.good:
        return rows
    rows.append(("an image", f"{console.size(found.mean_bytes)} on average"))
    if limit is None:
        rows.append(("all matches", f"about {found.wanted:,} images of {found.untried:,} downloads"))
    elif not found.reachable:
        likely = round(found.rate * found.untried)
        rows.append((f"to {limit:,}", f"these tables have only about {likely:,} of the {found.wanted:,} still wanted"))
    else:
        span = f"{found.downloads_low:,} to {found.downloads_high:,}"
        rows.append((f"to {limit:,}", f"about {found.downloads:,} downloads ({span})"))
        rows.append(("", f"from the first {found.rows:,} or so rows of the tables"))
    rows.append(("time", f"about {duration(found.seconds)}"))
    if found.waits_for_host:
        rows.append(("", f"most of it waiting for {found.busiest_host}, which has {found.busiest_share:.0%} of them"))
    rows.append(("disk", f"about {console.size(found.num_bytes)}"))
    return rows


def duration(seconds: float) -> str:
    """Seconds for people: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, length, below in (("s", 1, 100), ("min", 60, 5400), ("h", 3600, 129_600)):
        if seconds < below:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _show_hosts(ui: Session, hosts: Mapping[str, Mapping[str, int]]) -> None:
    """The hosts that failed most, and how."""

    def failed(ended: Mapping[str, int]) -> int:
        return sum(n for code, n in ended.items() if code != "ok")

    worst = sorted((host for host in hosts if failed(hosts[host])), key=lambda host: (-failed(hosts[host]), host))
    rows = [
        (
            host or "(no host)",
            hosts[host].get("ok", 0),
            failed(hosts[host]),
            ", ".join(f"{code} {n:,}" for code, n in sorted(hosts[host].items(), key=lambda e: -e[1]) if code != "ok"),
        )
        for host in worst[:10]
    ]
    more = f" (the 10 worst of {len(worst):,})" if len(worst) > 10 else ""
    ui.table([f"host{more}", "good", "failed", "how"], rows)


def show_outcomes(ui: Session, outcomes: Mapping[str, int], skipped: Mapping[str, int], *, kept: str = "kept") -> None:
    """A table of how the tries ended, most frequent first, with what the user can do."""
    from edkit.gather.candidate import KEPT, outcome

    ended = sorted(outcomes.items(), key=lambda item: -item[1])
    rows: list[tuple[str, int, str]] = [
        (kept if code == KEPT else outcome(code).what, n, outcome(code).hint) for code, n in ended
    ]
    rows += [(why, n, "") for why, n in skipped.items()]
    if any(hint for _, _, hint in rows):
        ui.table(["outcome", "images", "what you can do"], rows)
    else:
        ui.table(["outcome", "images"], [row[:2] for row in rows])


class Gathered(Protocol):
    """What the results of all commands that gather have in common."""

    @property
    def out(self) -> Path | None: ...
    @property
    def outcomes(self) -> Mapping[str, int]: ...
    @property
    def kept(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...


def short(path: Path) -> Path:
    """A path as seen from here, where it lies below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def kept_lines(result: Gathered) -> list[str]:
    """What was added, how fast, and what another run would add."""
    rate = sum(result.outcomes.values()) / max(result.seconds, 0.001)
    out = short(result.out) if result.out is not None else ""
    lines = [
        f"{result.kept:,} images ({console.size(result.num_bytes)}) added to {out} in "
        f"{result.seconds:.1f} s ({rate:,.0f} tried/s)"
    ]
    if result.limit is not None and result.total >= result.limit:
        lines.append(f"the limit of {result.limit:,} is reached")
    elif result.total != result.kept or result.limit is not None:
        of = f" of {result.limit:,}" if result.limit is not None else ""
        lines.append(f"{result.total:,}{of} by this query over all its runs")
    from edkit.gather.candidate import outcome

    again = sum(n for code, n in result.outcomes.items() if outcome(code).again and code != "surplus")
    if again:
        lines.append(f"{again:,} failed for a passing cause: run the same command again to try them once more")
    return lines
