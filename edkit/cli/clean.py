"""The command line of edkit: clean."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Clean"
