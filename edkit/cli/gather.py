"""The command line of edkit: gather."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edkit.cli import console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edkit.cli.console import Session
    from edkit.gather.coco import ImportedCoco
    from edkit.gather.scrape import Scrape

app = typer.Typer()
PANEL = "Gather"


class CaptionsAs(StrEnum):
    """Where captions go."""

    filename = "filename"
    sidecar = "sidecar"
    both = "both"


class CheckHash(StrEnum):
    """What a checksum in the table means for a file that differs."""

    off = "off"
    strict = "strict"


Columns = Annotated[
    str,
    typer.Option("--columns", help="Name columns yourself: url=LINK,caption=ALT.", metavar="ROLE=NAME,..."),
]
Captions = Annotated[CaptionsAs, typer.Option("--captions", help="Captions as file names, as .txt sidecars, or both.")]
Limit = Annotated[int | None, typer.Option("--limit", help="This many good images over all runs, the first in order.")]
# how to fetch: the same options wherever something is downloaded
Concurrency = Annotated[int, typer.Option("--concurrency", help="Downloads at a time.")]
PerHost = Annotated[int, typer.Option("--per-host", help="Downloads at a time from one host.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds for one try.")]
IdleTimeout = Annotated[float, typer.Option("--idle-timeout", help="Seconds without a byte.")]
Retries = Annotated[int, typer.Option("--retries", help="More tries after timeouts, resets, 429 and 5xx.")]
MaxBytes = Annotated[int, typer.Option("--max-bytes", help="Largest file to take, in bytes.")]
MaxPixels = Annotated[int, typer.Option("--max-pixels", help="Largest image to decode, in pixels.")]
UserAgent = Annotated[str, typer.Option("--user-agent", help="Who you say you are (default: edkit and its version).")]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private-hosts", help="Also fetch from private and local addresses.")
]


def scrape(
    tables: Annotated[list[str], typer.Argument(help="Tables: files, folders or patterns (Parquet, CSV, TSV, JSONL).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the images.")],
    search: Annotated[str, typer.Option("--search", help="All of these words in the caption: photo,man")] = "",
    any_: Annotated[str, typer.Option("--any", help="At least one of these words.")] = "",
    exclude: Annotated[str, typer.Option("--exclude", help="None of these words.")] = "",
    regex: Annotated[str, typer.Option("--regex", help="A pattern the caption must hold.")] = "",
    min_size: Annotated[int, typer.Option("--min-size", help="Least pixels of both sides.")] = 0,
    max_aspect: Annotated[
        float | None, typer.Option("--max-aspect", help="Most that the longer side may be of the shorter.")
    ] = None,
    min_aesthetic: Annotated[float | None, typer.Option("--min-aesthetic", help="Least aesthetic score.")] = None,
    max_unsafe: Annotated[
        float | None, typer.Option("--max-unsafe", help="Most punsafe (0 is safe, 1 is not).")
    ] = None,
    max_watermark: Annotated[float | None, typer.Option("--max-watermark", help="Most pwatermark (0..1).")] = None,
    min_similarity: Annotated[
        float | None, typer.Option("--min-similarity", help="Least likeness of image and caption (CLIP).")
    ] = None,
    licence: Annotated[str, typer.Option("--license", "--licence", help="One of these licences: cc0,cc-by,pdm")] = "",
    language: Annotated[str, typer.Option("--language", help="One of these languages: en,de")] = "",
    exclude_hosts: Annotated[
        str,
        typer.Option("--exclude-hosts", help="None of these hosts: alamy.com,stock (stock: photo agencies)."),
    ] = "",
    limit: Limit = None,
    columns: Columns = "",
    captions: Captions = CaptionsAs.filename,
    caption: Annotated[
        str | None, typer.Option("--caption", help="Caption of rows that have none (else they are left out).")
    ] = None,
    concurrency: Concurrency = 64,
    per_host: PerHost = 8,
    timeout: Timeout = 30.0,
    idle_timeout: IdleTimeout = 10.0,
    retries: Retries = 2,
    max_bytes: MaxBytes = 50_000_000,
    max_pixels: MaxPixels = 178_956_970,
    check_hash: Annotated[
        CheckHash, typer.Option("--check-hash", help="Refuse files that differ from the table's checksum.")
    ] = CheckHash.off,
    user_agent: UserAgent = "",
    allow_private_hosts: AllowPrivate = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "--list", help="Show what matches, fetch nothing.")] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Search LAION-like tables and download what matches, captioned and checked; run again, it goes on."""
    from edkit.gather.fetch import USER_AGENT
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
            columns=_columns(columns),
            captions=captions.value,
            caption=caption,
            concurrency=concurrency,
            per_host=per_host,
            timeout=timeout,
            idle_timeout=idle_timeout,
            retries=retries,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            check_hash=check_hash is CheckHash.strict,
            user_agent=user_agent or USER_AGENT,
            allow_private_hosts=allow_private_hosts,
            dry_run=dry_run,
            state_dir=state_dir,
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


def _columns(text: str) -> dict[str, str]:
    """`url=LINK,caption=ALT` as a mapping."""
    from edkit.data.errors import UsageError

    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals and name.strip() for _, equals, name in pairs):
        raise UsageError(f"--columns {text}: pairs such as url=LINK,caption=ALT")
    return {role.strip(): name.strip() for role, _, name in pairs}


def _show_scrape(ui: Session, result: Scrape) -> None:
    funnel: list[tuple[str, int]] = [("rows read", result.rows_read)]
    funnel += [(f"  {why}", -n) for why, n in result.dropped.items()]
    ui.table(["rows", ""], [*funnel, ("match", result.matched)])
    if result.dry_run:
        shown = result.matches[:20]
        sized = [(f"{c.width}x{c.height}" if c.width else "", c.caption, c.url) for c in shown]
        ui.table(["size", "caption", "url"], sized)
        more = result.matched - len(shown)
        already = f"; {result.total:,} of this query are in the folder" if result.total else ""
        ui.done(
            result,
            *([f"... and {more:,} more (--json lists up to 1,000)"] if more > 0 else []),
            f"{result.matched:,} rows match; nothing was fetched{already}",
        )
        return
    show_outcomes(ui, result.outcomes, result.skipped)
    ui.done(result, *kept_lines(result))


def show_outcomes(ui: Session, outcomes: Mapping[str, int], skipped: Mapping[str, int]) -> None:
    """A table of how the tries ended, most frequent first, with what the user can do."""
    from edkit.gather.candidate import outcome

    ended = sorted(outcomes.items(), key=lambda item: -item[1])
    rows: list[tuple[str, int, str]] = [(outcome(c).what, n, outcome(c).hint) for c, n in ended]
    rows += [(why, n, "") for why, n in skipped.items()]
    if any(hint for _, _, hint in rows):
        ui.table(["outcome", "images", "what you can do"], rows)
    else:
        ui.table(["outcome", "images"], [row[:2] for row in rows])


def kept_lines(result: Scrape | ImportedCoco) -> list[str]:
    """What was added, how fast, and what another run would add."""
    rate = sum(result.outcomes.values()) / max(result.seconds, 0.001)
    try:
        out = result.out.relative_to(Path.cwd())
    except ValueError:
        out = result.out
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
