"""`check` lists all findings at once and changes nothing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edkit.clean.check import Checked, check, kept_box
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
    assert "a dog_(2).png (distance" in problem.what and "a dog_(3).png (same bytes)" in problem.what
    assert problem.mend == f"edkit dedupe {tmp_path} --radius 8"


def test_findings_sum_the_problems_up_by_kind_with_notes_apart(tmp_path: Path, draw: Draw) -> None:
    for n in range(6):
        draw(f"rex the {('wolf', 'dog')[n % 2]}_({n}).png", n)
        draw(f"IMG_{n}.png", 10 + n)
    (tmp_path / "multiply.txt.txt").write_text("2", encoding="utf-8")
    result = check(tmp_path)
    assert [(one.level, one.kind, one.count) for one in result.findings] == [
        ("error", "camera-name", 6),
        ("warning", "double-ending", 1),
        ("note", "common-words", 1),
    ]
    assert (result.num_errors, result.num_warnings, result.num_ready) == (6, 1, 6)
    assert "rex (100%)" in result.findings[2].first[0] and "dog" not in result.findings[2].first[0]
    assert all(finding.mend.startswith("edkit ") for finding in result.findings)


def test_an_extreme_aspect_knows_what_the_crop_leaves() -> None:
    assert kept_box(1000, 1000, (512, 512)) == (0, 0, 1, 1)
    left, top, right, bottom = kept_box(5000, 1000, (1024, 256))
    assert (left, top, bottom) == (pytest.approx(0.1, abs=0.001), 0, 1) and right == pytest.approx(0.9, abs=0.001)


def shot(draw: Draw, name: str, seed: int, time: str, shift: int = 0) -> Path:
    """A picture with an EXIF time, its motif moved by some pixels."""
    path = draw(name, seed, (420, 300), move=lambda im: im.crop((shift, 0, 360 + shift, 270)))
    with Image.open(path) as im:
        im.load()
        exif = im.getexif()
        exif[0x0132] = time
        exif.get_ifd(0x8769)[0x9003] = time
        im.save(path, quality=95, exif=exif)
    return path


def test_pictures_shot_within_seconds_that_look_alike_are_a_burst(tmp_path: Path, draw: Draw) -> None:
    for n, shift in enumerate((0, 22, 44)):
        shot(draw, f"a runner_({n}).jpg", 1, f"2024:05:01 12:30:0{n}", shift)
    shot(draw, "a swimmer.jpg", 2, "2024:05:01 12:30:03")  # at once, but another picture
    shot(draw, "a runner later.jpg", 3, "2024:05:01 12:40:00")
    result = check(tmp_path, radius=0)
    bursts = [one for one in result.problems if one.code == "burst"]
    assert len(bursts) == 1 and bursts[0].what.startswith("3 pictures")
    after = check(tmp_path, radius=0, set_aside=["burst"])
    assert after.findings == () and after.num_images == 3


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
