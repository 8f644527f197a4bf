"""Looking back from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.cli.app import app
from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import Move, Trash, apply


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text(name)
    with Catalog.open(tmp_path, command="edkit tidy .") as catalog:
        apply(
            catalog,
            [Move(tmp_path / "a.jpg", tmp_path / "dog_(1).jpg", "its caption")],
            verb="rename-captions",
        )
        apply(catalog, [Trash(tmp_path / "b.jpg", "blurred", facts={"sharpness": 0.1})], verb="filter")
    return tmp_path


def say(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_history_lists_and_undo_reverts(root: Path) -> None:
    assert [e["verb"] for e in json.loads(say("history", root, "--json"))["operations"]] == [
        "rename-captions",
        "filter",
    ]
    assert "dog_(1).jpg" in say("history", root, "--operation", 1)
    assert "Would undo operation 2, 1: 2 changes" in say("undo", root, "--to", 0, "--dry-run")
    assert not (root / "a.jpg").exists()
    assert say("undo", root).splitlines() == ["Undid operation 2: 1 change reverted"]
    assert (root / "b.jpg").read_text() == "b.jpg"
    done = json.loads(say("undo", root, "--json"))
    assert done["changes"] == [{"what": "rename", "path": str(root / "dog_(1).jpg"), "to": str(root / "a.jpg")}]
    assert say("undo", root) == "Nothing to undo.\n"
    assert "undone by 4" in say("history", root)


def test_an_operation_that_never_was_is_told(root: Path) -> None:
    for number in ("0", "3"):
        result = CliRunner().invoke(app, ["history", str(root), "--operation", number])
        assert isinstance(result.exception, UsageError) and "(1 to 2)" in str(result.exception)


def test_what_is_left_is_named_with_its_reason(root: Path) -> None:
    (root / "dog_(1).jpg").write_text("edited")
    said = say("undo", root, "--to", 0)
    assert "1 left" in said
    assert "it was changed since" in said
    assert say("undo", root, "--quiet") == ""


def test_why_tells_in_sentences(root: Path) -> None:
    assert "filter (operation 2): b.jpg moved to the trash: blurred (sharpness 0.1)." in say("why", root / "b.jpg")
    assert json.loads(say("why", root / "dog_(1).jpg", "--json"))["decisions"][0]["reason"] == "its caption"


def test_the_trash_is_listed_and_emptied(root: Path) -> None:
    assert "blurred" in say("trash", "list", root)
    assert "Would delete 1 files" in say("trash", "empty", root, "--dry-run")
    assert json.loads(say("trash", "list", root, "--json"))["num_bytes"] == 5
    assert "Deleted 1 files, 5 bytes, for good" in say("trash", "empty", root)
    assert say("trash", "list", root) == "0 files, 0 bytes in the trash\n"


def test_a_folder_without_a_state_has_no_history_and_gets_none(tmp_path: Path) -> None:
    assert say("history", tmp_path) == "edkit has changed nothing here.\n"
    assert say("trash", "list", tmp_path) == "0 files, 0 bytes in the trash\n"
    assert say("undo", tmp_path) == "Nothing to undo.\n"
    assert say("trash", "empty", tmp_path) == "Deleted 0 files, 0 bytes, for good\n"
    assert list(tmp_path.iterdir()) == []


def test_no_command_counts_a_part_of_a_set_that_is_in_the_midst_of_a_change(
    tmp_path: Path, swap_killed_midway: Callable[[Path, Path], None]
) -> None:
    pair = [tmp_path / f"a {name}_1.png" for name in ("dog", "cat")]
    for path in pair:
        Image.new("RGB", (64, 64), "red").save(path)
    swap_killed_midway(pair[0], pair[1])
    plan = [
        "plan",
        "--state-dir",
        str(tmp_path / "none"),
    ]  # else it may write what it measures, and finishes the change
    for command in (plan, ["caption", "words"], ["balance"], ["rename-captions", "--dry-run"]):
        result = CliRunner().invoke(app, [*command, str(tmp_path)])
        assert isinstance(result.exception, BadInput) and "hides 2 of its files" in str(result.exception), command
    assert "Undid operation 1: 2 changes" in say("undo", tmp_path)  # which finishes it first
    assert "2 images" in say("caption", "words", tmp_path)
