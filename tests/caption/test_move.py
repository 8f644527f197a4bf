"""`caption move`: the same captions, elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.caption.move import To, caption_move
from edkit.cli.app import app
from edkit.data.dataset import read
from edkit.data.journal import undo
from edkit.data.sample import caption_text

Make = Callable[[dict[str, str | bytes]], Path]


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that training sees of each image's words, by the image's bytes."""
    found = {}
    for sample in read(root, sizes=False):
        style = sample.options.caption_style or "tags"
        draws = [caption_text(sample, seed=1, epoch=epoch) for epoch in range(2) if not sample.options.shuffle_tags]
        found[sample.path.read_bytes()] = (sample.caption.split(style), sample.options, *draws)
    return found


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and ".edkit" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


MIXED: dict[str, str | bytes] = {
    "IMG_1.png": "",
    "IMG_1.txt": "a dog, wet, sunny\n",
    "IMG_2.png": "",
    "IMG_2.yaml": "# mine\nmain_prompt: a cat\ntags: [asleep]\nflip_p: 0.5 # half\n",
    "IMG_3.png": "",
    "IMG_3.txt": "who is this?",
    "IMG_4.png": "",
    "IMG_4.yaml": "main_prompt: a cat\ntags: [{tag: grey, weight: 2}]\n",
    "IMG_5.png": "",
    "IMG_5.txt": "",
    "IMG_6.png": "",
    "IMG_6.txt": "one",
    "IMG_6.caption": "two",
    "IMG_7.png": "",
    "IMG_7.txt": "a bird, flying",
    "IMG_7.yaml": "tags: [red, flying]\nmultiply: 2\n",
    "IMG_8.png": "",
    "a horse_3.png": "",
    "sub/global.yaml": "tags: [photo]\nshuffle_tags: true\n",
    "sub/IMG_1.png": "",
    "sub/IMG_1.txt": "a dog, wet",
    "led/local.yaml": "main_prompt: a led one\n",
    "led/IMG_1.png": "",
    "led/IMG_1.txt": "a dog, wet",
    "led/IMG_2.png": "",
}


def test_into_file_names_word_for_word(make: Make) -> None:
    root = make(MIXED)
    before, words = tree(root), seen(root)
    result = caption_move(root, to="filename")
    assert seen(root) == words
    names = tree(root)
    assert {name for name in names if name.startswith("a ")} == {
        "a bird, flying_(1).png",
        "a bird, flying_(1).yaml",
        "a cat, asleep_(1).png",
        "a cat, asleep_(1).yaml",
        "a dog, wet, sunny_(1).png",
        "a horse_3.png",
    }
    assert names["a cat, asleep_(1).yaml"] == b"# mine\nflip_p: 0.5 # half\n"
    assert "sub/a dog, wet_(1).png" in names
    assert (result.num_moved, result.num_there, result.num_missing) == (4, 1, 1)
    assert {left.path.name: left.reason for left in result.left if left.path.parent == root} == {
        "IMG_3.png": "no file name can hold it",
        "IMG_4.png": "a file name would split its tags otherwise, or lose their weights",
        "IMG_5.png": "an empty caption, which no name can be",
        "IMG_6.png": "more than one caption stands in its sidecars",
    }
    assert sum(result.stayed.values()) == len(result.left) == 6
    assert caption_move(root, to="filename").operation is None
    undo(root)
    assert tree(root) == before


def test_into_sidecars_and_back_is_the_same_tree(make: Make) -> None:
    root = make(MIXED)
    caption_move(root, to="filename")
    names, words = tree(root), seen(root)
    result = caption_move(root, to="sidecar")
    assert seen(root) == words
    assert result.num_moved == 5
    assert (root / "a horse_3.txt").read_bytes() == b"a horse"
    caption_move(root, to="filename")
    assert seen(root) == words
    assert tree(root) == names


def test_a_caption_that_reads_as_an_option_file_does_not_become_one(make: Make) -> None:
    root = make({"multiply_1.png": "", "multiply.png": "", "local.png": ""})
    caption_move(root, to="sidecar")
    assert {name for name in tree(root) if not name.endswith(".png")} == {
        "multiply_1.txt",
        "multiply.caption",
        "local.txt",
    }
    assert {sample.caption.text for sample in read(root, sizes=False)} == {"multiply", "local"}


@pytest.mark.parametrize("text", ["a photo, of a dog", "x" * 121, "CON", "a/b", "e\u0301", "IMG 12"])
def test_what_no_name_gives_back_exactly_stays(make: Make, text: str) -> None:
    root = make(
        {"local.yaml": "caption_style: prose\n", "IMG_1.png": "", "IMG_1.yaml": json.dumps({"main_prompt": text})}
    )
    words = seen(root)
    caption_move(root, to="filename")
    assert seen(root) == words


def test_the_command_counts_what_stays(make: Make) -> None:
    root = make(MIXED)
    done = CliRunner().invoke(app, ["caption", "move", str(root), "--to", "filename"])
    assert done.exit_code == 0, done.output
    assert "12 images: 4 captions moved into file names, 1 there already" in done.output
    assert "1 stay where they are: no file name can hold it" in done.output
    assert "1 have no caption" in done.output


def test_a_tag_said_twice_stands_once_in_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG_0001.png")
    (tmp_path / "IMG_0001.yaml").write_text('main_prompt: "dog"\ntags:\n- red\n- red\n', "utf-8")
    caption_move(tmp_path, to="filename")
    assert [path.name for path in tmp_path.glob("*.png")] == ["dog, red_(1).png"]


@pytest.mark.parametrize("to", ["filename", "sidecar"])
def test_a_sidecar_that_cannot_be_read_is_left_and_named(make: Make, to: To) -> None:
    root = make({"IMG_1234.png": "", "IMG_1234.txt": "café on a beach".encode("latin-1")})
    before = tree(root)
    result = caption_move(root, to=to)
    assert tree(root) == before
    assert result.operation is None
    ((path, reason),) = [(left.path.name, left.reason) for left in result.left]
    assert path == "IMG_1234.png" and reason.startswith("IMG_1234.txt:1: ")
