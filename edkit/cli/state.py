"""The command line of edkit: state."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Look back"
