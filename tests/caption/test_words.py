"""`caption words`: what is counted, what stands in nearly every caption, and hostile text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edkit.caption.words import caption_words, words_of
from edkit.cli.app import app
from edkit.data.errors import UsageError

Make = Callable[[dict[str, str | bytes]], Path]


def test_words_are_counted_once_a_caption_and_by_folder(make: Make) -> None:
    root = make(
        {
            "dogs/a dog and a dog, wet_1.png": "",
            "dogs/The Dog, wet, sunny_1.png": "",
            "cats/a cat, sunny_1.png": "",
            "cats/IMG_1.png": "",
            "cats/x.png": "",
            "cats/x.txt": "",
        }
    )
    found = caption_words(root)
    assert (found.num_images, found.num_missing, found.num_empty) == (5, 1, 1)
    dogs = next(one for one in found.folders if one.folder == "dogs")
    assert {count.text: count.num_captions for count in dogs.words} == {"dog": 2, "wet": 2, "sunny": 1}
    assert [(count.text, count.share) for count in dogs.tags] == [("wet", 1.0), ("sunny", 0.5)]
    assert {count.text: count.num_captions for count in found.total.tags} == {"wet": 2, "sunny": 2}


def test_what_stands_in_nearly_every_caption_is_named(make: Make) -> None:
    root = make({f"john doe standing {word}_1.png": "" for word in ("here", "there", "tall", "still", "up")})
    found = caption_words(root, ngrams=2)
    always = {count.text for count in found.folders[0].always}
    assert always == {"john", "doe", "standing", "john doe", "doe standing"}
    assert not caption_words(make({"a dog_1.png": ""})).folders[0].always  # of one caption, every word is in all


def test_words_of_any_script() -> None:
    assert words_of("L'été d'un_chat, ЧЁРНЫЙ-кот (2) 猫!") == ["l'été", "d'un", "chat", "чёрный-кот", "2", "猫"]


def test_small_words_are_counted_when_asked(make: Make) -> None:
    root = make({"a dog of the sea_1.png": ""})
    assert {count.text for count in caption_words(root).total.words} == {"dog", "sea"}
    found = caption_words(root, small_words=True, ngrams=3)
    assert {"a", "of", "the"} <= {count.text for count in found.total.words}
    assert "dog of the" in {count.text for count in found.total.phrases}


def test_hostile_text_does_not_reach_the_terminal(make: Make) -> None:
    tags = "x, [bold red]x[/], \x1b]0;owned\x07, \u202egnp"
    root = make({"a.png": "", "a.txt": tags, "[link=x]y[/link]/b.png": "", "[link=x]y[/link]/b.txt": tags})
    done = CliRunner().invoke(app, ["caption", "words", str(root)])
    assert done.exit_code == 0, done.output
    assert "[bold red]x[/]" in done.output
    assert "[link=x]y[/link]" in done.output
    assert not set(done.output) & {"\x1b", "\x07", "\u202e"}
    assert json.loads(CliRunner().invoke(app, ["caption", "words", str(root), "--json"]).stdout)["num_images"] == 2


def test_wrong_usage(make: Make) -> None:
    root = make({"a dog_1.png": ""})
    with pytest.raises(UsageError, match="no share"):
        caption_words(root, nearly_all=1.5)
    with pytest.raises(UsageError, match="1 to 5"):
        caption_words(root, ngrams=9)
