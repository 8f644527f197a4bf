"""The command line of edkit: captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edkit.cli import console

app = typer.Typer()
PANEL = "Caption"

SHOWN = 10  # lines of a list that the summary shows; --json has all


@app.command(
    "rename-captions",
    rich_help_panel=PANEL,
    epilog='Example: edkit rename-captions photos --caption "person"',
)
def rename_captions(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of images; subfolders too.")],
    caption: Annotated[
        str | None, typer.Option("--caption", help="One caption for every image, whatever it was called.")
    ] = None,
    source: Annotated[
        Literal["filename", "sidecar"] | None,
        typer.Option("--from", help="Take captions from file names alone, or from sidecars alone."),
    ] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Rename every image to caption_(n).ext, so that its file name is its caption."""
    from edkit.caption.rename import rename_captions as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder, caption=caption, source=source, dry_run=dry_run, state_dir=state_dir, progress=ui.progress
        )
        if dry_run:
            ui.table(
                ["Would", "File", "To"],
                [[step.kind, step.path, step.to or f"({step.reason})"] for step in result.steps],
            )
        lines = _list("left as they are", [f"{left.path}: {left.reason}" for left in result.left])
        lines += [f"note: {note}" for note in result.notes]
        would = "would be renamed" if dry_run else "renamed"
        parts = [f"{result.num_renamed:,} {would}"]
        for number, words in (
            (result.num_right, "named so already"),
            (len(result.left), "left as they are"),
        ):
            parts += [f"{number:,} {words}"] if number else []
        lines.append(f"{result.num_images:,} {'image' if result.num_images == 1 else 'images'}: {', '.join(parts)}")
        sidecars = [
            f"{number:,} {words}"
            for number, words in (
                (result.num_followed, "went with their image"),
                (result.num_set_aside, "said otherwise (to the trash)"),
                (result.num_options_kept, "kept their options, without their caption"),
                (result.num_written, "written for captions that no file name can give"),
            )
            if number
        ]
        if sidecars:
            lines.append(f"sidecars: {', '.join(sidecars)}")
        if not dry_run and result.operation is not None:
            lines.append(f"undo: edkit undo {folder}")
        ui.done(result, *lines)


def _list(title: str, items: list[str]) -> list[str]:
    more = [f"  and {len(items) - SHOWN:,} more (--json lists all)"] if len(items) > SHOWN else []
    return [f"{title}:", *(f"  {item}" for item in items[:SHOWN]), *more] if items else []
