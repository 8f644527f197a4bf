"""The command line of edkit: prove."""

from __future__ import annotations

import typer

app = typer.Typer()
PANEL = "Prove"
