"""The command line of edkit: gather."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Gather"
