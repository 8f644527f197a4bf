"""The commands of the clean panel: exit statuses, JSON, and what a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from edkit.cli.app import app
from edkit.cli.console import FOUND

Draw = Callable[..., Path]


def test_check_exits_3_when_it_finds_something_and_0_when_not(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    clean = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert clean.exit_code == 0
    assert "1 image: 0 errors, 0 warnings" in clean.output
    draw("IMG_1234.png", 2)
    found = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert found.exit_code == FOUND
    assert "2 images: 1 error, 0 warnings" in found.output
    assert sum(line.startswith("error: ") for line in found.output.splitlines()) == 1


def test_check_prints_one_json_object(tmp_path: Path, draw: Draw) -> None:
    draw("IMG_1234.png", 1)
    out = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    assert out.exit_code == FOUND
    result = json.loads(out.stdout)
    assert result["num_errors"] == 1
    assert result["problems"][0]["code"] == "camera-name"


def test_dedupe_says_what_it_did_and_how_to_undo_it(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 1, (160, 120))
    dry = CliRunner().invoke(app, ["dedupe", str(tmp_path), "--dry-run"])
    assert dry.exit_code == 0
    assert "would be moved to the trash" in dry.output
    done = CliRunner().invoke(app, ["dedupe", str(tmp_path), "--json"])
    assert json.loads(done.stdout)["num_trashed"] == 1
    assert not (tmp_path / "small.png").exists()
    assert CliRunner().invoke(app, ["undo", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "small.png").exists()


def test_filter_shows_ranges_and_reasons(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.png", 2, (160, 120))
    out = CliRunner().invoke(app, ["filter", str(tmp_path), "--rule", "width >= 200"])
    assert out.exit_code == 0
    assert "width >= 200: 1 image fails" in out.output
    assert "2 images: 1 kept, 1 moved to the trash" in out.output
    assert [p.name for p in tmp_path.glob("*.png")] == ["large.png"]
