"""Every finding names a command that edkit has, written so that a shell gives it back word by word."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from edkit.clean.findings import KINDS, Asked, Spot, command, grouped
from edkit.cli.app import app
from edkit.data.errors import Problem

BY_HAND = {  # what no command can know how to mend
    "unreadable-folder",
    "not-unicode",
    "unfinished-change",
    "bad-row",
    "missing-image",
    "said-twice",
    "image-twice",
    "prose-shuffled",
    "empty-tag",
}
ROOT = Path("/sets/my photos; it's $(odd)")


def spot(kind: str) -> Spot:
    level = "error" if kind == "camera-name" else "warning"
    file = ROOT.absolute() / "dog" / "a.txt"
    problem = Problem(level=level, code=kind, where=f"{file}:3", what="something", mend="")  # type: ignore[arg-type]
    return Spot(problem=problem, image=file, aside=(file,), text=file)


def parsed(line: str) -> Any:
    """The command line as edkit would read it (click's context); raises where it can't be."""
    program, *words = shlex.split(line)
    assert program == "edkit"
    found: Any = typer.main.get_command(app)
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    return found.make_context(found.name, words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_one_command_that_edkit_has(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(root=ROOT, family="sdxl", resolution=768, radius=6, num_images=100)
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    [(finding, _)] = grouped([spot(kind)], asked)
    assert finding.kind == kind and finding.why and "{n}" not in finding.title
    if kind in BY_HAND:
        assert not finding.mend and finding.by_hand
        return
    context = parsed(finding.mend)
    given = context.params.get("root", context.params.get("folder", context.params.get("folders")))
    assert given in (ROOT, [ROOT], str(ROOT))
    assert finding.does and not finding.does.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_one_is_said_otherwise_than_many(kind: str) -> None:
    asked = Asked(root=ROOT)
    [(one, _)] = grouped([spot(kind)], asked)
    [(many, _)] = grouped([spot(kind)] * 1234, asked)
    assert one.count == 1 and many.count == 1234
    assert one.title == many.title or "1,234" in many.title
    assert len(many.first) == 3


@pytest.mark.skipif("os.name == 'nt'", reason="another shell")
@pytest.mark.parametrize("name", ["a b", "it's", "$(rm -rf)", "-", "a\nb", "ünï 猫", '"', "--open; echo"])
def test_odd_names_come_out_of_a_shell_as_they_went_in(name: str) -> None:
    assert shlex.split(command("check", name)) == ["edkit", "check", name]


def test_errors_come_first_and_a_new_kind_is_told_in_its_own_words() -> None:
    strange = Spot(problem=Problem(level="error", code="new-kind", where="/x", what="it is new", mend="look"))
    found = grouped([spot("tiny-image"), spot("common-words"), strange, spot("camera-name")], Asked(root=ROOT))
    assert [finding.kind for finding, _ in found] == ["camera-name", "new-kind", "tiny-image", "common-words"]
    assert [finding.level for finding, _ in found] == ["error", "error", "warning", "note"]
    assert found[1][0].title == "it is new" and found[1][0].by_hand == "look"
