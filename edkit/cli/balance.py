"""The command line of edkit: balance."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Balance"
