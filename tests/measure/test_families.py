"""A family's sizes, and captions counted in its own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from edkit import nano
from edkit.data.errors import BadInput, MissingExtra, UsageError
from edkit.measure.families import FAMILIES, clip_vocabulary, family, unread


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean sd1"):
        family("sd11")


def test_a_model_folder_tells_its_own_sizes() -> None:
    of = family(nano.model_dir())
    assert (of.resolution, of.latent_channels, of.max_tokens) == (64, 4, 75)
    assert of.bucket_step % of.latent_factor == 0
    assert unread(of)("a red star on grass")[0] == 5


def test_a_model_folder_that_is_not_whole_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match=r"config\.json"):
        family(tmp_path)


@pytest.mark.parametrize("name", sorted(name for name, of in FAMILIES.items() if of.vocabulary))
def test_what_the_family_does_not_read_is_the_end(name: str) -> None:
    pytest.importorskip("open_clip")
    count = unread(family(name))
    assert count("a dog on a beach") == (5, "")
    assert count("a " * 75) == (75, "")
    assert count("a " * 75 + "lost dog") == (77, "lost dog")
    assert count("") == (0, "")


def test_a_vocabulary_that_does_not_ship_is_told() -> None:
    with pytest.raises(MissingExtra, match="klein's vocabulary comes with its models"):
        unread(family("klein"))


def test_it_counts_as_the_vocabularys_own_library_does() -> None:
    open_clip = pytest.importorskip("open_clip.tokenizer")
    theirs, ours = open_clip.SimpleTokenizer(), unread(family("sd1"))
    for caption in (
        "a photo of a dog's ball, 10,000 people",
        "Grüße aus Köln – schön!",
        "猫と犬 🐶",
        "x" * 300,
    ):
        assert ours(caption)[0] == len(theirs.encode(caption)), caption


def test_the_vocabulary_has_clips_ids() -> None:
    pytest.importorskip("open_clip")
    vocab, merges = clip_vocabulary()
    assert (len(vocab), len(merges)) == (49408, 48894)
    assert (vocab["<|startoftext|>"], vocab["<|endoftext|>"], vocab["dog</w>"]) == (49406, 49407, 1929)
