"""The command line of edkit: train."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Train"
