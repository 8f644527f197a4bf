"""The command line of edkit: import, one command for each kind of set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edkit.cli import console
from edkit.cli.gather import (
    PANEL,
    AllowPrivate,
    Captions,
    CaptionsAs,
    Concurrency,
    Limit,
    PerHost,
    Retries,
    Timeout,
    UserAgent,
    kept_lines,
    show_outcomes,
)

if TYPE_CHECKING:
    from edkit.cli.console import Session
    from edkit.gather.coco import ImportedCoco

app = typer.Typer()
import_app = typer.Typer(no_args_is_help=True, help="Bring an existing set into a folder edkit and trainers read.")
app.add_typer(import_app, name="import", rich_help_panel=PANEL)


class CaptionChoice(StrEnum):
    """Which of an image's captions is used."""

    first = "first"
    random = "random"


@import_app.command(
    "coco",
    epilog="Example: edkit import coco --annotations captions_train2017.json --images train2017 --out pool "
    "--instances instances_train2017.json --category person",
)
def coco(
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO's captions JSON.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the images.")],
    images: Annotated[Path | None, typer.Option("--images", help="Folder that holds the image files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the images from COCO's server.")] = False,
    instances: Annotated[Path | None, typer.Option("--instances", help="COCO's instances JSON.")] = None,
    category: Annotated[str, typer.Option("--category", help="Only images that show one of these: person,dog")] = "",
    caption_choice: Annotated[
        CaptionChoice,
        typer.Option("--caption-choice", help="The first of an image's captions, or one by seed."),
    ] = CaptionChoice.first,
    seed: console.Seed = 555,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Hard links instead of copies, where they can be made.")
    ] = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    concurrency: Concurrency = 64,
    per_host: PerHost = 8,
    timeout: Timeout = 30.0,
    retries: Retries = 2,
    user_agent: UserAgent = "",
    allow_private_hosts: AllowPrivate = False,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import COCO photos with their captions, licences and sources; run again, it goes on."""
    from edkit.gather.coco import import_coco as verb
    from edkit.gather.fetch import USER_AGENT

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            annotations=annotations,
            out=out,
            images=images,
            download=download,
            instances=instances,
            categories=[category],
            caption_choice=caption_choice.value,
            seed=seed,
            link=link,
            limit=limit,
            captions=captions.value,
            concurrency=concurrency,
            per_host=per_host,
            timeout=timeout,
            retries=retries,
            user_agent=user_agent or USER_AGENT,
            allow_private_hosts=allow_private_hosts,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show_coco(ui, result)


def _show_coco(ui: Session, result: ImportedCoco) -> None:
    dropped = [(f"  {why}", -n) for why, n in result.dropped.items()]
    ui.table(["images", ""], [("in the annotations", result.rows_read), *dropped, ("match", result.matched)])
    if result.dry_run:
        ui.done(result, f"{result.matched:,} images match; nothing was imported")
        return
    show_outcomes(ui, result.outcomes, result.skipped)
    ui.done(result, *kept_lines(result), *result.notes)
