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


def test_overlap_exits_3_when_it_finds_something_and_0_when_not(tmp_path: Path, draw: Draw) -> None:
    draw("me/a.png", 1)
    draw("pool/b.png", 2)
    command = ["overlap", str(tmp_path / "me"), str(tmp_path / "pool")]
    clean = CliRunner().invoke(app, command)
    assert clean.exit_code == 0, clean.output
    assert "0 of these show what is trained" in clean.output
    draw("pool/small.png", 1, (160, 120))
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == FOUND
    assert [pair["how"] for pair in json.loads(found.stdout)["shared"]] == ["near-duplicate"]
    moved = CliRunner().invoke(app, [*command, "--move", "--report", str(tmp_path / "page.html")])
    assert moved.exit_code == FOUND
    assert "1 image moved to the trash (undo: edkit undo " in moved.output
    assert (tmp_path / "page.html").is_file()
    assert CliRunner().invoke(app, command).exit_code == 0


def test_compress_says_what_it_saved_and_what_it_left(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (640, 480))
    draw("small.webp", 2, (160, 120))
    dry = CliRunner().invoke(app, ["compress", str(tmp_path), "--max-mp", "0.1", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "1 would be compressed" in dry.output and "1 image left: small enough already" in dry.output
    done = CliRunner().invoke(app, ["compress", str(tmp_path), "--max-mp", "0.1", "--json"])
    assert json.loads(done.stdout)["smaller"][0]["new_size"] == [365, 273]
    assert CliRunner().invoke(app, ["compress", str(tmp_path), "--format", "tga"]).exit_code != 0


def test_filter_says_what_it_can_not_judge_and_keeps_the_top(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1, (640, 480))
    draw("a cat.png", 2, (160, 120))
    out = CliRunner().invoke(app, ["filter", str(tmp_path), "--rule", "licence == CC0", "--dry-run"])
    assert out.exit_code == 0, out.output
    assert "2 images can't be judged, licence not known (they stay; --missing drop drops them)" in out.output
    out = CliRunner().invoke(app, ["filter", str(tmp_path), "--top", "50%", "--by", "width"])
    assert "2 images: 1 kept, 1 moved to the trash" in out.output
    assert [p.name for p in tmp_path.glob("*.png")] == ["a dog.png"]


def test_dedupe_merges_captions_and_writes_its_page(tmp_path: Path, draw: Draw) -> None:
    draw("set/large.png", 1, (640, 480))
    draw("set/small.png", 1, (160, 120))
    (tmp_path / "set" / "small.txt").write_text("a dog, sunny", encoding="utf-8")
    page = tmp_path / "page.html"
    out = CliRunner().invoke(
        app, ["dedupe", str(tmp_path / "set"), "--merge-captions", "--report", str(page)], env={"COLUMNS": "120"}
    )
    assert out.exit_code == 0, out.output
    assert "large, a dog, sunny" in out.output
    assert page.is_file()
    assert (tmp_path / "set" / "large.txt").read_text(encoding="utf-8") == "large, a dog, sunny\n"
