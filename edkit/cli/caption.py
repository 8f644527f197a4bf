"""The command line of edkit: caption."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Caption"
