"""The `edkit` command: every wing's commands on one flat list, in the order of the workflow."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection

import typer

from edkit.cli import balance, caption, clean, console, demo, doctor, gather, imports, prove, state, train

app = typer.Typer(
    name="edkit",
    help="Gather, clean, caption and balance datasets, and fine-tune Stable Diffusion on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for wing in (gather, imports, clean, caption, balance, train, prove, state, demo, doctor):
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
    console.run(_only(app, sys.argv[1:]))


def _only(tree: typer.Typer, words: Collection[str]) -> typer.Typer:
    """The same commands, of which those that the command line doesn't name have no parameters: they can't run, and
    reading the annotations of forty functions would be most of the time that `--help` takes.
    """
    lean = copy.copy(tree)
    lean.registered_commands = [copy.copy(info) for info in tree.registered_commands]
    lean.registered_groups = [copy.copy(info) for info in tree.registered_groups]
    for info in lean.registered_commands:
        if info.callback is not None and (info.name or info.callback.__name__.replace("_", "-")) not in words:
            info.callback = _named_alike(info.callback)
    for group in lean.registered_groups:
        if group.typer_instance is not None:
            group.typer_instance = _only(group.typer_instance, words)
    return lean


def _named_alike(callback: Callable[..., object]) -> Callable[[], None]:
    def nothing() -> None: ...

    nothing.__name__, nothing.__doc__ = callback.__name__, callback.__doc__
    return nothing
