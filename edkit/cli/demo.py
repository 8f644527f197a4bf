"""The command line of edkit: the demo."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Start here"
