"""The `edkit` command: every wing's commands on one flat list, in the order of the workflow."""

from __future__ import annotations

import typer

from edkit.cli import balance, caption, clean, console, demo, gather, imports, state, train

app = typer.Typer(
    name="edkit",
    help="Gather, clean, caption and balance datasets, and fine-tune Stable Diffusion on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for wing in (gather, imports, clean, caption, balance, train, state, demo):
    app.add_typer(wing.app)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    """Gather, clean, caption and balance datasets, and fine-tune Stable Diffusion on them."""
    if version:
        from edkit import __version__

        typer.echo(f"edkit {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every expected failure ends as one line and an exit status."""
    console.run(app)
