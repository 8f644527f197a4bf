"""The command line of looking back: undo, history, why, trash."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from edkit.cli import console

app = typer.Typer()
PANEL = "Look back"
trash_app = typer.Typer(no_args_is_help=True, help="What was set aside: list it, or delete it for good.")
app.add_typer(trash_app, name="trash", rich_help_panel=PANEL)

Root = Annotated[Path, typer.Argument(metavar="DIR", help="The data root (or any folder or manifest in it).")]


@app.command(rich_help_panel=PANEL, epilog="Example: edkit undo photos --to 3")
def undo(
    root: Root,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="N", min=0, help="Go back to how it was after operation N (0: before all)."),
    ] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Revert the last operation, or all after operation N; what a person changed since is left and named."""
    from edkit.data.journal import undo as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(root, to=to, dry_run=dry_run, state_dir=state_dir, command="edkit undo", progress=ui.progress)
        if dry_run:
            rows = [(step.what, _short(step.path, root), _short(step.to, root)) for step in result.changes]
            ui.table(["change", "file", "to"], rows)
        ui.table(["left as it is", "because"], [(_short(path, root), why) for path, why in result.left])
        if not result.operations:
            ui.done(result, "Nothing to undo.")
            return
        numbers = ", ".join(map(str, result.operations))
        did = "Would undo" if dry_run else "Undid"
        ui.done(
            result,
            f"{did} operation {numbers}: {result.num_done:,} change{'' if result.num_done == 1 else 's'} reverted"
            f"{f', {len(result.left):,} left' if result.left else ''}",
        )


@app.command(rich_help_panel=PANEL, epilog="Example: edkit history photos --operation 3")
def history(
    root: Root,
    operation: Annotated[
        int | None, typer.Option("--operation", metavar="N", help="Show every change of operation N.")
    ] = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """List what edkit did to a data root: what it changed (and whether it was undone), fetched and imported."""
    from edkit.data.story import changes_of, gatherings
    from edkit.data.story import history as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        if operation is not None:
            steps = changes_of(root, operation, state_dir=state_dir)
            ui.table(
                ["change", "file", "to"],
                [(step.what, _short(step.path, root), _short(step.to, root)) for step in steps],
            )
            ui.done({"operation": operation, "changes": steps}, f"{len(steps):,} changes")
            return
        entries, runs = verb(root, state_dir=state_dir), gatherings(root, state_dir=state_dir)
        ui.table(
            ["no.", "when", "who", "command", "changes", "skipped", ""],
            [
                (
                    e.id,
                    _when(e.time),
                    e.who,
                    e.command or e.verb,
                    e.num_done,
                    e.num_skipped,
                    _fate(e.finished, e.undoes, e.undone_by),
                )
                for e in entries
            ],
        )
        ui.table(
            ["gathered", "command", "tried", "kept", "failed", ""],
            [
                (
                    _when(run.time),
                    run.command,
                    run.num_tried,
                    run.num_kept,
                    run.num_failed,
                    "" if run.ended is not None else "interrupted",
                )
                for run in runs
            ],
        )
        told = [
            {**console.plain(run), "tried": run.num_tried, "kept": run.num_kept, "failed": run.num_failed}
            for run in runs
        ]
        nothing = [] if entries or runs else ["edkit has changed nothing here."]
        ui.done({"operations": entries, "gathered": told}, *nothing)


@app.command(rich_help_panel=PANEL, epilog='Example: edkit why "photos/a dog_(3).jpg"')
def why(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file as it is named now, or was named before.")],
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Tell how a file came to be where and what it is: its source, its names, and every decision about it."""
    from edkit.data.story import why as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(file, state_dir=state_dir)
        ui.done(result, *result.sentences)


@trash_app.command("list", epilog="Example: edkit trash list photos")
def trash_list(
    root: Root,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """List what is in the trash, and why it was set aside."""
    from edkit.data.trash import contents

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = contents(root, state_dir=state_dir)
        ui.table(
            ["file", "size", "when", "operation", "because"],
            [
                (
                    _short(item.was, root) or item.sha256[:12],
                    console.size(item.num_bytes),
                    "" if item.time is None else _when(item.time),
                    "" if item.operation is None else f"{item.operation} {item.verb}",
                    item.reason,
                )
                for item in result.items
            ],
        )
        ui.done(result, f"{len(result.items):,} files, {console.size(result.num_bytes)} in the trash")


@trash_app.command("empty", epilog="Example: edkit trash empty photos --dry-run")
def trash_empty(
    root: Root,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Delete what is in the trash for good: undo can't bring it back afterwards."""
    from edkit.data.trash import contents, empty

    with console.session(as_json=as_json, quiet=quiet) as ui:
        if dry_run:
            rows = [
                (_short(item.was, root) or item.sha256[:12], console.size(item.num_bytes))
                for item in contents(root, state_dir=state_dir).items
            ]
            ui.table(["would delete", "size"], rows)
        result = empty(root, dry_run=dry_run, state_dir=state_dir, command="edkit trash empty", progress=ui.progress)
        did = "Would delete" if dry_run else "Deleted"
        ui.done(result, f"{did} {result.num_files:,} files, {console.size(result.num_bytes)}, for good")


def _fate(finished: bool, undoes: int | None, undone_by: int | None) -> str:
    if not finished:
        return "interrupted"
    if undoes is not None:
        return f"undid {undoes}"
    return "" if undone_by is None else f"undone by {undone_by}"


def _short(path: Path | None, root: Path) -> str:
    """A path as seen from the folder that was named."""
    if path is None:
        return ""
    base = root.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _when(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")
