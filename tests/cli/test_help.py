"""Help is quick and whole: no heavy import, an example and a page of the reference for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from edkit.cli.app import app
from edkit.cli.reference import commands, render

HEAVY = ("torch", "pyarrow", "PIL", "numpy", "requests", "aiohttp", "diffusers", "transformers", "open_clip", "sqlite3")
DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMANDS = dict(commands(typer.main.get_command(app)))


def test_there_are_commands() -> None:
    assert {"scrape", "import coco", "dedupe", "balance", "train", "undo", "demo"} <= set(COMMANDS)


def test_no_help_loads_anything_heavy() -> None:
    # one process asks for every help text in turn: what any of them loads stays in sys.modules
    script = f"""
import contextlib, io, json, sys
from edkit.cli.app import app
loaded = {{}}
for name in {["", *list(COMMANDS)]!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(name.split() + ["--help"])
    assert "Usage" in out.getvalue(), name
    loaded[name] = [m for m in {HEAVY!r} if m in sys.modules]
print(json.dumps(loaded))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {name: heavy for name, heavy in json.loads(out).items() if heavy} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert (command.help or "").strip(), f"edkit {name} has no help text"
    assert f"edkit {name} " in (command.epilog or "") + " ", f"edkit {name}: the epilog shows no example of it"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    silent = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None) and p.name != "help"]
    assert not silent, f"edkit {name}: no help for {silent}"


def test_the_reference_is_what_the_code_says() -> None:
    written = (DOCS / "cli.md").read_text("utf-8")
    assert written == render(), "docs/cli.md is out of date: python -m edkit.cli.reference > docs/cli.md"


def pages() -> Iterator[Path]:
    yield from DOCS.glob("*.md")
    yield DOCS.parent / "README.md"


def test_the_docs_name_no_command_that_does_not_exist() -> None:
    import re

    first_words = {name.split()[0] for name in COMMANDS}
    for page in pages():
        for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", page.read_text("utf-8"), flags=re.S):
            for word in re.findall(r"(?:^|\n|&& )(?:\$ )?edkit ([a-z-]+)", block):
                assert word in first_words, f"{page.name}: there is no `edkit {word}`"
