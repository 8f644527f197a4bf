"""`check` lists all findings at once and changes nothing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edkit.clean.check import Checked, check
from edkit.data.errors import UsageError

Draw = Callable[..., Path]


def found(result: Checked) -> set[tuple[str, str, str]]:
    return {(one.level, one.code, Path(one.where).name) for one in result.problems}


def test_a_clean_folder_has_no_problems(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    draw("a cat.png", 2)
    result = check(tmp_path)
    assert result.problems == ()
    assert (result.num_images, result.num_errors, result.num_warnings) == (2, 0, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a cat.png", "a dog.png"]


def test_all_findings_at_once(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    draw("a dog_(2).png", 1, (300, 225))
    draw("IMG_1234.png", 2)
    draw("a tiny cat.png", 3, (60, 50))
    draw("a wide view.png", 4, (1500, 300))
    jpeg = draw("a wolf.jpg", 5, (512, 512))
    jpeg.rename(tmp_path / "a wolf.png")
    file = io.BytesIO()
    Image.open(draw("x.png", 6, (512, 512))).save(file, "JPEG", quality=95)
    (tmp_path / "x.png").unlink()
    whole = file.getvalue()
    (tmp_path / "a cut fox.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    (tmp_path / "no fox.jpg").write_bytes(b"<html>")
    (tmp_path / "multiply.txt").write_text("often", encoding="utf-8")
    result = check(tmp_path)
    assert found(result) >= {
        ("warning", "near-duplicate", "a dog.png"),
        ("error", "camera-name", "IMG_1234.png"),
        ("warning", "tiny-image", "a tiny cat.png"),
        ("warning", "extreme-aspect", "a wide view.png"),
        ("warning", "mislabelled-image", "a wolf.png"),
        ("error", "truncated-image", "a cut fox.jpg"),
        ("error", "unreadable-image", "no fox.jpg"),
    }
    assert any("multiply.txt" in one.where for one in result.problems)
    levels = [one.level for one in result.problems]
    assert levels == sorted(levels)
    assert result.num_errors == levels.count("error") and result.num_warnings == levels.count("warning")
    assert all("\n" not in str(one) for one in result.problems)
    assert not (tmp_path / ".edkit").exists()


def test_a_near_duplicate_names_the_command_that_mends_it(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1, (640, 480))
    draw("a dog_(2).png", 1, (400, 300))
    shutil.copy(tmp_path / "a dog.png", tmp_path / "a dog_(3).png")
    (problem,) = check(tmp_path).problems
    assert problem.code == "near-duplicate"
    assert "distance 0" in problem.what and "same bytes" in problem.what
    assert problem.mend == f"edkit dedupe {tmp_path} --radius 8"


def test_one_broken_file_is_one_finding(tmp_path: Path) -> None:
    (tmp_path / "a fox.jpg").write_bytes(b"")
    (problem,) = check(tmp_path).problems
    assert problem.what == "the file is empty"


def test_files_that_are_not_read_are_noted_not_problems(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    (tmp_path / "notes.pdf").write_bytes(b"")
    result = check(tmp_path)
    assert result.problems == ()
    assert [(path.name, bool(reason)) for path, reason in result.skipped] == [("notes.pdf", True)]
    assert any("notes.pdf" in note for note in result.notes)


def test_a_caption_fallback_mends_camera_names(tmp_path: Path, draw: Draw) -> None:
    draw("IMG_1234.png", 1)
    assert check(tmp_path).num_errors == 1
    assert check(tmp_path, caption_fallback="a dog").problems == ()


def test_pictures_are_held_against_the_buckets_of_a_resolution(tmp_path: Path, draw: Draw) -> None:
    draw("large.png", 1, (700, 520))
    draw("small.png", 2, (500, 500))
    assert found(check(tmp_path, resolution=512)) == {("warning", "tiny-image", "small.png")}
    assert check(tmp_path, resolution=256).problems == ()


def test_captions_past_the_token_limit_show_what_is_not_read(tmp_path: Path, draw: Draw) -> None:
    pytest.importorskip("open_clip")
    draw("one.png", 1, (600, 600))
    draw("a short caption.png", 2, (600, 600))
    (tmp_path / "one.txt").write_text("word " * 74 + "then the lost tail", encoding="utf-8")
    (problem,) = check(tmp_path, family="sd1").problems
    assert (problem.code, Path(problem.where).name) == ("caption-cut", "one.png")
    assert "78 tokens" in problem.what and "reads 75" in problem.what
    assert "'the lost tail'" in problem.what


def test_an_unknown_family_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean sdxl"):
        check(tmp_path, family="sdlx")
