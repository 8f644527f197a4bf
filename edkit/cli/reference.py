"""The CLI reference, made from the commands themselves: `python -m edkit.cli.reference > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

HEAD = """# The command line

Made from the code by `python -m edkit.cli.reference > docs/cli.md`; a test holds the two together.

Exit status: 0 done; 1 failed; 2 wrong usage; 3 done, and it found what it looks for (`check`, `evaluate`); 130
interrupted, and the same command goes on. `--json` prints one object on stdout, `--quiet` prints errors alone;
progress is on stderr.
"""


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below a click group, by its full name ("import coco"), in the order of `--help`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def render() -> str:
    """The whole reference as Markdown."""
    import typer

    from edkit.cli.app import app

    return "\n".join([HEAD, *(_section(name, command) for name, command in commands(typer.main.get_command(app)))])


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(["edkit", name, *(_metavar(a) for a in arguments), "[OPTIONS]" if options else ""]).rstrip()
    lines = [f"## edkit {name}", "", " ".join((command.help or "").split()), "", "```sh", usage, "```", ""]
    if command.epilog:
        lines += [" ".join(command.epilog.split()).replace("Example: ", "Example: `", 1) + "`", ""]
    if arguments or options:
        lines += ["| option | meaning | default |", "|---|---|---|"]
        lines += [_row(p) for p in [*arguments, *options]]
        lines.append("")
    return "\n".join(lines)


def _metavar(argument: Any) -> str:
    name = argument.name.upper()
    return f"{name}..." if argument.nargs == -1 else name


def _row(param: Any) -> str:
    is_argument = param.param_type_name == "argument"
    spelled = _metavar(param) if is_argument else ", ".join([*param.opts, *param.secondary_opts])
    default = param.default
    if default is None or default is False or param.required or callable(default) or default in ([], (), ""):
        shown = ""
    else:
        shown = f"`{getattr(default, 'value', default)!s}`"
    meaning = " ".join((param.help or "").split()).replace("|", "\\|")
    return f"| `{spelled}` | {meaning} | {shown} |"


if __name__ == "__main__":
    sys.stdout.write(render())
