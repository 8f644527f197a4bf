"""The command line of edkit: the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edkit.cli import console

app = typer.Typer()
PANEL = "Start here"


@app.command(rich_help_panel=PANEL, epilog="Example: edkit demo --out my-demo --open")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="A new folder, or the one of an interrupted demo.")
    ] = Path("edkit-demo"),
    seed: console.Seed = 555,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    show: console.Open = False,
) -> None:
    """Run the whole workflow on a small set it makes itself: on a CPU, without a network, in minutes."""
    from edkit.demo import demo as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        done = verb(out, seed=seed, progress=ui.progress)
        ui.done(
            done,
            f"gathered  {done.num_fetched} pictures of {done.num_rows} rows over HTTP",
            f"removed   {done.num_duplicates} near-duplicates, {done.num_blurred} blurred",
            f"trained   {done.steps} steps on {done.num_subject} pictures of a new subject and "
            f"{done.num_ground_truth} of the old world",
            f"learned   the subject is in {done.subject_after} pictures (before {done.subject_before.right})",
            f"kept      {done.survived} of the old world's pictures that were right before",
            f"took      {done.seconds:.0f} s",
            f"look at   {done.page}",
        )
    if show:
        console.open_page(done.page)
