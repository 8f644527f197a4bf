"""`caption edit`: words and tags change where they stand, and nothing else does."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edkit.caption.edit import Edit, caption_edit
from edkit.cli.app import app
from edkit.data.dataset import read
from edkit.data.errors import UsageError
from edkit.data.journal import undo

Make = Callable[[dict[str, str | bytes]], Path]


def captions(root: Path) -> list[str]:
    samples = read(root, sizes=False)
    return [", ".join([sample.caption.text, *(tag.text for tag in sample.caption.tags)]) for sample in samples]


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and ".edkit" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ({"replace": (("a man", "john doe"),)}, "a man, a mandolin, a man", "john doe, a mandolin, john doe"),
        ({"replace": (("a man", "john doe"),)}, "A man on a beach", "A man on a beach"),
        ({"replace": (("a man", "john doe"),), "ignore_case": True}, "A  man on a beach", "john doe on a beach"),
        ({"replace": (("cat", "dog"), ("dog", "cat"))}, "a cat", "a cat"),
        ({"replace": (("very", ""),)}, "a very very old man", "a old man"),
        ({"replace": (("old", ""),)}, "a man, old, in a hat", "a man, in a hat"),
        ({"replace": (("C++", "rust"),)}, "C++ code, C+++", "rust code, rust+"),
        ({"replace": (("猫", "犬"),)}, "白猫二匹", "白犬二匹"),
        ({"replace": (("Mädchen", "girl"),)}, "ein Ma\u0308dchen", "ein girl"),
        ({"replace": (("man", r"\1 & $0"),)}, "a man", r"a \1 & $0"),
        ({"regex": ((r"(\w+) and (\w+)", r"\2 and \1"),)}, "salt and pepper", "pepper and salt"),
        ({"regex": ((r"\.$", ""),)}, "a dog.", "a dog"),
        ({"prepend": "photo of"}, "a dog", "photo of a dog"),
        ({"prepend": "rex, "}, "a dog", "rex, a dog"),
        ({"append": "at night"}, "a dog", "a dog at night"),
        ({"append": ", night, rain"}, "a dog", "a dog, night, rain"),
        ({"add_tags": ("wet", "sunny")}, "a dog, sunny", "a dog, sunny, wet"),
        ({"drop_tags": ("sunny",)}, "a dog, sunny, wet", "a dog, wet"),
        ({"drop_tags": ("1girl",)}, "1girl, solo, hat", "solo, hat"),
        ({"drop_tags": ("a dog",)}, "a dog", "a dog"),
        ({"drop_tags": ("SUNNY",), "ignore_case": True}, "a dog, sunny", "a dog"),
        ({"rename_tags": (("cat", "dog"),)}, "x, cat, dog, cats", "x, dog, cats"),
        ({"dedupe_tags": True}, "a dog, wet, Wet, sunny, a dog, wet", "a dog, wet, sunny"),
        ({"sort_tags": "name"}, "x, b, C, a", "x, a, b, C"),
        ({"drop_tags": ("people",)}, "a crowd, 10,000 people, people", "a crowd, 10,000 people"),
    ],
)
def test_what_becomes_of_a_text(edit: dict[str, object], before: str, after: str) -> None:
    made = Edit(**edit)  # type: ignore[arg-type]
    assert made.text(before, leads=True, prose=False, add=made.add_tags) == after


def test_a_file_name_is_renumbered_and_its_companions_follow(make: Make) -> None:
    root = make(
        {
            "a man_(1).png": "",
            "a man_(1).json": "{}",
            "a man_(1)-masklabel.png": "",
            "a woman_(1).png": "",
            "john doe_(1).png": "",
        }
    )
    before = tree(root)
    result = caption_edit(root, replace=[("a man", "john doe")])
    assert sorted(tree(root)) == [
        "a woman_(1).png",
        "john doe_(1).png",
        "john doe_(2)-masklabel.png",
        "john doe_(2).json",
        "john doe_(2).png",
    ]
    assert (result.num_changed, result.num_renamed) == (1, 1)
    undo(root)
    assert tree(root) == before


def test_a_caption_changes_wherever_it_stands(make: Make) -> None:
    root = make(
        {
            "a man_1.png": "",
            "b.png": "",
            "b.txt": "a man\r\n",
            "c.png": "",
            "c.caption": codecs.BOM_UTF16_LE + "a man, tall".encode("utf-16-le"),
            "d.png": "",
            "d.yaml": "# of my uncle\nmain_prompt: a man  # who?\ntags:\n  # two\n  - tall\n  - a man\nflip_p: 0.5\n",
            "e.png": "",
            "e.yml": "caption: 'a man''s hat'\n",
        }
    )
    before = tree(root)
    caption_edit(root, replace=[("a man", "john doe")])
    assert captions(root) == [
        "john doe",
        "john doe, tall",
        "john doe, tall, john doe",
        "john doe's hat",
        "john doe",
    ]
    after = tree(root)
    assert after["b.txt"] == b"john doe\r\n"
    assert after["c.caption"] == codecs.BOM_UTF16_LE + "john doe, tall".encode("utf-16-le")
    assert after["d.yaml"] == before["d.yaml"].replace(b"a man", b"john doe")
    assert after["e.yml"] == b"caption: 'john doe''s hat'\n"
    undo(root)
    assert tree(root) == before


def test_tags_in_yaml_keep_their_comments_and_weights(make: Make) -> None:
    yaml = (
        "tags:  # the best first\n- {tag: red hair, weight: 2}  # dyed\n- sunny\n- wet # very\n\n"
        "# how it trains\nmultiply: 2\n"
    )
    root = make({"a dog_(1).png": "", "a dog_(1).yaml": yaml})
    caption_edit(root, drop_tags=["sunny"], rename_tags=[("red hair", "auburn hair")])
    assert (root / "a dog_(1).yaml").read_text("utf-8") == (
        "tags:  # the best first\n- {tag: auburn hair, weight: 2}  # dyed\n- wet # very\n\n"
        "# how it trains\nmultiply: 2\n"
    )
    caption_edit(root, sort_tags="name", rename_tags=[("wet", "a wet coat: shiny")])
    assert (root / "a dog_(1).yaml").read_text("utf-8").splitlines()[1:3] == [
        '- "a wet coat: shiny" # very',
        "- {tag: auburn hair, weight: 2}  # dyed",
    ]
    caption_edit(root, drop_tags=["auburn hair", "a wet coat: shiny"])
    assert (root / "a dog_(1).yaml").read_text("utf-8").startswith("tags: []")
    assert captions(root) == ["a dog"]


def test_new_tags_go_where_the_main_prompt_stands(make: Make) -> None:
    root = make(
        {
            "a.png": "",
            "a.yaml": "main_prompt: a dog\nmultiply: 2\n# end\n",
            "b.png": "",
            "b.yaml": "{main_prompt: a dog, tags: [wet]}",
            "a dog_(1).png": "",
            "a dog_(1).yaml": "flip_p: 0.5\n",
        }
    )
    caption_edit(root, add_tags=["wet", "sunny"])
    assert captions(root) == ["a dog, wet, sunny"] * 3
    assert (root / "a.yaml").read_text("utf-8") == "main_prompt: a dog\nmultiply: 2\ntags: [wet, sunny]\n# end\n"
    assert (root / "b.yaml").read_text("utf-8") == "{main_prompt: a dog, tags: [wet, sunny]}"
    assert (root / "a dog, wet, sunny_(1).yaml").read_text("utf-8") == "flip_p: 0.5\n"


def test_tags_are_sorted_by_how_often_the_set_has_them(make: Make) -> None:
    root = make({f"x, {tags}_{i}.png": "" for i, tags in enumerate(["b, a", "c, a", "c, a, b", "a"])})
    caption_edit(root, sort_tags="count")
    assert sorted(captions(root)) == ["x, a", "x, a, b", "x, a, b, c", "x, a, c"]


def test_what_is_shared_is_told_and_left(make: Make) -> None:
    root = make(
        {
            "global.yaml": "tags: [photo, sunny]\n",
            "a dog_1.png": "",
            "sub/local.yaml": "main_prompt: a cat\n",
            "sub/x.png": "",
        }
    )
    before = tree(root)
    result = caption_edit(root, drop_tags=["sunny"], prepend="my")
    assert result.notes == ("global.yaml says 'sunny' for many images: it was left, edit it by hand",)
    assert [(left.path.name, left.reason) for left in result.left] == [
        ("x.png", "its caption comes from local.yaml, which other images share")
    ]
    assert captions(root) == ["my a dog, photo, sunny", "a cat, photo, sunny"]
    undo(root)
    assert tree(root) == before


def test_where_and_folder_limit_the_edit(make: Make) -> None:
    root = make({"a/a dog_1.png": "", "a/a cat_1.png": "", "b/a dog_1.png": "", "b/two dogs_1.png": ""})
    caption_edit(root, where="DOG", folder="a/../b", append="!")
    assert sorted(captions(root)) == ["a cat", "a dog", "a dog!", "two dogs"]
    caption_edit(root, where="/dogs?$/", prepend="x")
    assert sorted(captions(root)) == ["a cat", "a dog!", "x a dog", "x two dogs"]
    with pytest.raises(UsageError, match="no such folder"):
        caption_edit(root, folder="../elsewhere", append="!")


def test_a_caption_that_no_name_can_hold_goes_into_a_sidecar(make: Make) -> None:
    root = make({"a dog_1.png": ""})
    caption_edit(root, append="- who is it?")
    assert captions(root) == ["a dog - who is it?"]
    assert sorted(tree(root)) == ["a dog - who is it_(1).png", "a dog - who is it_(1).txt"]


def test_nothing_is_emptied_and_cameras_are_left(make: Make) -> None:
    root = make({"a dog_1.png": "", "IMG_1234.png": "", "b.png": "", "b.txt": "dog"})
    before = tree(root)
    result = caption_edit(root, regex=[(".*", "")])
    assert {left.path.name: left.reason for left in result.left} == {
        "IMG_1234.png": "it has no caption to edit",
        "a dog_1.png": "nothing would be left of its caption",
        "b.png": "nothing would be left of its caption",
    }
    assert tree(root) == before


def test_a_sidecar_that_two_images_share_is_written_once(make: Make) -> None:
    root = make({"x.png": "", "x.jpg": "", "x.txt": "a man"})
    before = tree(root)
    caption_edit(root, replace=[("man", "dog")])
    assert captions(root) == ["a dog", "a dog"]
    assert sorted(tree(root)) == ["x.jpg", "x.png", "x.txt"]
    undo(root)
    assert tree(root) == before


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("caption: other.txt\n", "it names another file"),
        ("tags: [&a red, *a]\nmain_prompt: red\n", "anchors"),
        ("caption: {tags: [red], main_prompt: red}\ntags: [blue]\n", "two lists"),
    ],
)
def test_yaml_that_can_not_be_edited_safely_is_left(make: Make, yaml: str, reason: str) -> None:
    root = make({"x.png": "", "x.yaml": yaml, "other.txt": "red"})
    before = tree(root)
    result = caption_edit(root, replace=[("red", "green")], drop_tags=["red"])
    assert reason in result.left[0].reason
    assert tree(root) == before


def test_a_bad_option_of_the_folder_is_no_matter_of_captions(make: Make) -> None:
    root = make(
        {"multiply.txt": "many", "a dog_1.png": "", "x.png": "", "x.yaml": "main_prompt: a dog\nflip_p: often\n"}
    )
    result = caption_edit(root, replace=[("dog", "cat")])
    assert [change.path for change in result.changes] == ["a dog_1.png"]
    assert "flip_p must be a number" in result.left[0].reason


def test_prose_has_no_tags_but_has_words(make: Make) -> None:
    root = make({"local.yaml": "caption_style: prose\n", "a.png": "", "a.txt": "Sunny day, a dog, sunny, runs."})
    caption_edit(root, drop_tags=["sunny"])
    assert captions(root) == ["Sunny day, a dog, sunny, runs."]
    assert "prose" in caption_edit(root, add_tags=["wet"]).left[0].reason
    caption_edit(root, replace=[("dog", "cat")])
    assert captions(root) == ["Sunny day, a cat, sunny, runs."]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to change"),
        ({"regex": [("(", "x")]}, "not a regular expression"),
        ({"regex": [("a", r"\2")]}, "invalid group reference"),
        ({"replace": [(" ", "x")]}, "an empty text"),
        ({"add_tags": ["a, b"]}, "not one tag"),
        ({"prepend": "\udcff"}, "not Unicode"),
        ({"append": "x", "where": "/(/"}, "not a regular expression"),
    ],
)
def test_wrong_usage_changes_nothing(make: Make, options: dict[str, object], words: str) -> None:
    root = make({"a dog_1.png": ""})
    with pytest.raises(UsageError, match=words):
        caption_edit(root, **options)  # type: ignore[arg-type]
    assert sorted(tree(root)) == ["a dog_1.png"]


def test_the_command_shows_before_and_after_and_takes_pairs(make: Make) -> None:
    root = make({f"a man {i}_1.png": "" for i in range(25)} | {"evil\x1b[31m_1.png": ""})
    before = tree(root)
    args = ["caption", "edit", str(root), "--replace", "a man", "john doe", "--replace", "evil", "good"]
    dry = CliRunner().invoke(app, [*args, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "  - a man 0\n  + john doe 0\n" in dry.output
    assert "and 6 more" in dry.output
    assert "26 images: 26 captions would change (26 by a new file name, 1 sidecar written)" in dry.output
    assert "\x1b" not in dry.output
    assert tree(root) == before
    assert not (root / ".edkit").exists()
    done = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert done["num_changed"] == 26
    wrong = CliRunner().invoke(app, ["caption", "edit", str(root), "--replace", "x"])
    assert wrong.exit_code == 2
    assert "two words" in wrong.output
