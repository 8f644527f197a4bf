"""nano's vocabulary keeps the world's words whole, spells every other text in pieces, and survives saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edkit.nano import world

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from edkit.nano.tokenizer import make_tokenizer

    return make_tokenizer()


def test_words_of_the_world_are_single_tokens(tokenizer: Any) -> None:
    text = "a large blue ring on a brick wall, on the left"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert pieces == ["<|startoftext|>", *(f"{word}</w>" for word in text.replace(",", " ,").split()), "<|endoftext|>"]


@pytest.mark.parametrize("text", ["a mimo star", "Zoë's café, 10,000 people", "日本の猫", "🦊 fox", "x" * 40])
def test_any_text_is_spelled_in_pieces_and_reads_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1  # the marker doubles as the unknown token: it must not be needed
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_short_captions_are_padded_to_clips_77_positions(tokenizer: Any) -> None:
    ids = tokenizer("a red star", padding="max_length", truncation=True).input_ids
    assert tokenizer.model_max_length == len(ids) == 77
    assert set(ids[5:]) == {tokenizer.pad_token_id}


def test_saving_and_loading_changes_nothing(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(str(tmp_path))
    again = CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    texts = [*(world.caption(scene) for scene in world.scenes(50, seed=3)), "a mimo star", "Zoë 日本"]
    assert [again(text).input_ids for text in texts] == [tokenizer(text).input_ids for text in texts]
    assert again.model_max_length == 77


def test_the_vocabulary_that_ships_is_the_one_the_recipe_makes(tokenizer: Any) -> None:
    from transformers import CLIPTokenizer

    from edkit.nano import model_dir

    shipped = CLIPTokenizer.from_pretrained(str(model_dir() / "tokenizer"), local_files_only=True)
    assert shipped.get_vocab() == tokenizer.get_vocab()
