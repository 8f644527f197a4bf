"""What other trainers would have made of a folder: every trap counted on the files that fall into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.balance.others import Mirror, Trainer
from edkit.balance.plan import plan
from edkit.cli.app import app


def draw(path: Path, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def mirrored(root: Path, trainer: Trainer, **options: int) -> Mirror:
    found = plan(root, as_=trainer, resolution=64, **options).mirror  # type: ignore[arg-type]
    assert found is not None
    return found


def nums(mirror: Mirror) -> dict[str, int]:
    return {trap.what: trap.num for trap in mirror.traps}


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    for i in range(10):
        draw(tmp_path / "tenth" / f"a dog_({i}).png")
        draw(tmp_path / "off" / f"a cat_({i}).png")
    (tmp_path / "tenth" / "multiply.txt").write_text("0.1")
    (tmp_path / "tenth" / "flip_p.txt").write_text("0.5")
    (tmp_path / "off" / "multiply.txt").write_text("0")
    odd = tmp_path / "odd"
    draw(odd / "a clear_1.png", mode="RGBA")
    draw(odd / "a clear_1-masklabel.png")
    draw(odd / "IMG_1234.png")
    draw(odd / "wide_1.png", (300, 100))
    (odd / "batch_id.txt").write_bytes(b"mine\r\n")
    draw(odd / "b.png")
    (odd / "b.txt").write_bytes(b"\xef\xbb\xbfa bird")
    draw(odd / "c.png")
    (odd / "c.yaml").write_text("main_prompt: ''\ntags: one, two\n")
    draw(odd / "d.png")
    (odd / "d.txt").write_text("look at notes.txt")
    tags = tmp_path / "tags" / "deep"
    for name in ("x, one, two", "y, three, four", "z, five"):
        draw(tags / f"{name}_1.png")
    draw(tags / "w.png")
    (tags / "w.yaml").write_text("main_prompt: w\ntags: [{tag: a long tag, weight: 2}, b, c]\nmax_caption_length: 9\n")
    (tmp_path / "tags" / "global.yaml").write_text("shuffle_tags: true\nkeep_tags: 1\n")
    return tmp_path


def test_each_trap_of_everydream_is_counted_on_the_files_that_fall_into_it(trapped: Path) -> None:
    mirror = mirrored(trapped, "ed2", batch_size=4)
    found = nums(mirror)
    copies = found.pop("last batch of each size")
    assert found == {
        "fractions of multiply": 1,
        "multiply 0": 10,
        "camera names": 1,
        "shapes beyond 2.5:1": 1,
        "transparent images": 1,
        "flip_p of folders": 10,
        "-masklabel.png (general knowledge)": 1,
        "keep_tags": 4,
        "equally many tags": 2,
        "shuffle_tags": 4,
        "max_caption_length": 1,
        "tags as one text in YAML": 1,
        "captions like a file's name": 1,
        "byte-order marks": 1,
        "line ends in batch_id.txt": 5,
        "no main prompt": 1,
        "order of folders": 4,
    }
    # 1 of the ten, 5 of odd, 4 of tags, all at one size
    assert copies == 12 - 10
    assert mirror.same == ("captions over 75 tokens",) or mirror.same == ()


def test_fifty_images_in_odd_aspects_would_be_filled_up_with_copies(tmp_path: Path) -> None:
    sizes = [(512, 512), (576, 448), (448, 576), (640, 384), (384, 640), (704, 320), (320, 704)]
    for i in range(50):
        draw(tmp_path / f"a dog_({i}).png", sizes[i % 7])
    result = plan(tmp_path, as_="ed2", batch_size=6)
    assert result.mirror is not None and result.picks[0] == 48 and sum(result.picks[:3]) == 150
    trap = next(trap for trap in result.mirror.traps if trap.what == "last batch of each size")
    filled = sum(-(-n // 6) * 6 for n in (8, 7, 7, 7, 7, 7, 7))
    assert trap.num == filled - 50 and f"50 become {filled}" in trap.theirs


def test_a_plain_folder_makes_no_difference(tmp_path: Path) -> None:
    for i in range(8):
        draw(tmp_path / f"a dog_({i}).png")
    mirror = mirrored(tmp_path, "ed2", batch_size=4)
    assert mirror.traps == () and len(mirror.same) >= 18


def test_kohya_reads_folders_by_their_number_alone(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / "3_dog" / f"a dog_({i}).png")
        draw(tmp_path / "loose" / f"a cat_({i}).png")
    draw(tmp_path / "3_dog" / "x.png")
    (tmp_path / "3_dog" / "x.txt").write_text("one\ntwo")
    (tmp_path / "3_dog" / "multiply.txt").write_text("3")
    mirror = mirrored(tmp_path, "kohya", batch_size=4)
    found = nums(mirror)
    assert found["folders not called NUMBER_NAME"] == 5 and found["images without a caption file"] == 10
    assert found[".txt captions"] == found["captions of several lines"] == 1
    assert found["option files and YAML"] == 1 and found["last batch of each size"] == 1
    # 6 x 3 either way; the five loose ones count as one each
    assert "how often an image comes" in mirror.same


def test_the_command_sets_both_side_by_side(trapped: Path) -> None:
    args = ["plan", str(trapped), "--resolution", "64"]
    shown = CliRunner().invoke(app, [*args, "--as", "ed2"])
    assert shown.exit_code == 0 and "EveryDream 2" in shown.output and "0 became 1" in shown.output
    assert "in training itself: a bad config file" in " ".join(shown.output.split())
    kohya = json.loads(CliRunner().invoke(app, [*args, "--as", "kohya", "--json"]).output)
    assert kohya["mirror"]["traps"][0]["num"] == 29 and "general knowledge" in kohya["mirror"]["beyond"]
    assert CliRunner().invoke(app, [*args, "--as", "onetrainer"]).exit_code == 2
