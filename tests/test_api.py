"""The commands as functions: the same verbs, documented, loaded only when asked for."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer

from edkit import api
from edkit.cli.app import app
from edkit.cli.reference import commands

ALIASES = {"laion-scrape"}


@pytest.mark.parametrize("name", api.__all__)
def test_a_verb_is_a_documented_function_with_typed_options(name: str) -> None:
    verb = getattr(api, name)
    assert inspect.isfunction(verb)
    assert inspect.getdoc(verb)
    signature = inspect.signature(verb)
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


def test_every_command_is_a_verb_and_every_verb_a_command() -> None:
    named = {name for name, _ in commands(typer.main.get_command(app))} - ALIASES
    assert {name.replace("-", "_").replace(" ", "_") for name in named} == set(api.__all__)


def test_importing_the_verbs_loads_none_of_them() -> None:
    script = "import sys, edkit.api; print([m for m in sys.modules if m.startswith('edkit.') and m != 'edkit.api'])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_an_unknown_verb_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scrub'"):
        _ = api.scrub
