"""The command line of edkit: the doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edkit.cli import console

if TYPE_CHECKING:
    from edkit.doctor import Diagnosis

app = typer.Typer()
PANEL = "Start here"


@app.command(rich_help_panel=PANEL, epilog="Example: edkit doctor")
def doctor(as_json: console.Json = False, quiet: console.Quiet = False) -> None:
    """Say what this machine can do, what is missing, and the line that mends it."""
    from edkit.doctor import doctor as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        found = verb()
        signs = {"ok": "", "note": "-", "bad": "!"}
        ui.table(["", "", "Found"], [[signs[one.level], one.what, one.found] for one in found.findings])
        rows = [
            [
                f"{fit.family}, {fit.method}",
                fit.preset or "none fits",
                f"{'' if fit.preset else 'at least '}{fit.needed_gib:.1f} GiB",
            ]
            for fit in found.trains
        ]
        ui.table(["Training", "Preset", "Needs"], rows)
        ui.done(found, *_lines(found))


def _lines(found: Diagnosis) -> list[str]:
    lines = []
    if found.trains:
        lines.append(f"memory: {found.trains[0].figure}; train --preset takes another")
    for sign, level in (("!", "bad"), ("-", "note")):
        for one in found.findings:
            if one.level == level and one.mend:
                lines += [f"{sign} {one.what}:", *(f"    {line}" for line in one.mend)]
    return lines or ["nothing is missing"]
