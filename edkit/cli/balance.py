"""The command line of edkit: balance and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edkit.cli import console

app = typer.Typer()
PANEL = "Balance"


@app.command(
    rich_help_panel=PANEL, epilog="Example: edkit balance photos --equalize --per-epoch preservation=25"
)
def balance(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The data root: a folder of folders of images.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FOLDER=NUMBER", help="The multiply of every folder at or below FOLDER."
        ),
    ] = None,
    per_epoch: Annotated[
        list[str] | None,
        typer.Option("--per-epoch", metavar="FOLDER=PICKS", help="Picks an epoch from FOLDER and below."),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="FOLDER=PART", help="The part of the epoch, such as 0.3 or 30%."),
    ] = None,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize",
            help="Raise every subject folder to the picks of the largest; folders with a multiply below 1, "
            "or named in another option, are ground truth and stay.",
        ),
    ] = False,
    ground_truth: Annotated[
        list[str] | None,
        typer.Option("--ground-truth", metavar="FOLDER", help="A folder that --equalize leaves alone."),
    ] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Show how often each folder is trained, and write the multiply.txt files that make it as you want it."""
    from edkit.balance.balance import assignments, plain
    from edkit.balance.balance import balance as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            set=assignments(set_ or [], "--set"),
            per_epoch=assignments(per_epoch or [], "--per-epoch"),
            share=assignments(share or [], "--share"),
            equalize=equalize,
            ground_truth=ground_truth or [],
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        changed = any(part.was != part.multiply for part in result.parts)
        ui.table(
            ["Folder", "Images", *(["was"] if changed else []), "multiply", "Picks/epoch", "Share"],
            [
                [
                    part.folder,
                    part.num_images,
                    *([plain(part.was)] if changed else []),
                    plain(part.multiply),
                    f"{part.picks:,.2f}".rstrip("0").rstrip("."),
                    f"{part.share:.1%}",
                ]
                for part in result.parts
            ],
        )
        lines = [f"{part.sentence}{f' ({part.reason})' if part.reason else ''}" for part in result.parts]
        counts = sorted(set(result.epochs))
        picks = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        lines += [f"note: {note}" for note in result.notes]
        lines.append(f"{result.num_images:,} images, {picks} picks an epoch")
        if result.written:
            files = f"{len(result.written):,} multiply.txt"
            undo = f" (undo: edkit undo {folder})"
            lines.append(f"would write {files} (dry run)" if dry_run else f"wrote {files}{undo}")
        ui.done(result, *lines)
