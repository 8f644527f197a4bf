"""What the model sees of a sample, as pure functions."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.data.sample import (
    DEFAULTS,
    NOTHING_SAID,
    Caption,
    Options,
    Sample,
    Tag,
    caption_text,
    drops_caption,
    flips,
    split_text,
)


def sample(caption: Caption | str, key: str = "k.jpg", **options: object) -> Sample:
    made = Caption(text=caption) if isinstance(caption, str) else caption
    said = Options(**options).over(DEFAULTS)  # type: ignore[arg-type]
    return Sample(key=key, path=Path(key), caption=made, options=said, sources=(), width=1, height=1)


def test_options_lay_the_stronger_word_over_the_weaker() -> None:
    strong, weak = (
        Options(flip_p=0.0, shuffle_tags=False),
        Options(flip_p=0.5, shuffle_tags=True, multiply=Decimal(2)),
    )
    assert strong.over(weak) == Options(flip_p=0.0, shuffle_tags=False, multiply=Decimal(2))
    assert NOTHING_SAID.over(weak) is weak and weak.over(NOTHING_SAID) is weak


def test_a_text_is_split_at_comma_plus_space_alone() -> None:
    assert split_text("a crowd, 10,000 people, loud,") == ("a crowd", (Tag("10,000 people"), Tag("loud")))
    assert split_text("a, b, b, , a") == ("a", (Tag("b"), Tag("a")))
    assert split_text("") == ("", ())


@given(st.text(max_size=200))
def test_one_source_trains_verbatim(text: str) -> None:
    assert caption_text(sample(text), seed=1, epoch=3) == text


def test_unshuffled_tags_stand_by_falling_weight_equal_ones_in_their_order() -> None:
    tags = (Tag("a"), Tag("b", 2.0), Tag("c"), Tag("d", 0.5), Tag("e", 2.0))
    assert caption_text(sample(Caption(text="m", tags=tags, verbatim=False)), seed=1, epoch=0) == "m, b, e, a, c, d"


@given(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8), st.integers(0, 4), st.integers(0, 99))
def test_shuffling_keeps_every_tag_once_and_the_first_in_place(tags: list[str], keep: int, seed: int) -> None:
    text = caption_text(sample(", ".join(["main", *tags]), shuffle_tags=True, keep_tags=keep), seed=seed, epoch=0)
    main, *seen = text.split(", ")
    assert main == "main" and sorted(seen) == sorted(tags) and seen[:keep] == tags[:keep]


def test_a_tag_is_drawn_to_the_front_in_proportion_to_its_weight() -> None:
    tags = (Tag("light", 1.0), Tag("heavy", 3.0), Tag("never", 0.0))
    made = Caption(text="m", tags=tags, verbatim=False)
    first = Counter(caption_text(sample(made, shuffle_tags=True), seed=s, epoch=0).split(", ")[1] for s in range(1500))
    assert first["never"] == 0 and 0.70 < first["heavy"] / 1500 < 0.80


def test_tags_that_no_longer_fit_are_dropped_whole() -> None:
    text = "a dog, on a very long beach, sun"
    assert caption_text(sample(text, max_caption_length=len(text)), seed=1, epoch=0) == text
    assert caption_text(sample(text, max_caption_length=12), seed=1, epoch=0) == "a dog, sun"
    assert caption_text(sample(text, max_caption_length=4), seed=1, epoch=0) == "a"
    assert caption_text(sample("superlong", max_caption_length=4), seed=1, epoch=0) == "supe"


@given(st.text(max_size=80), st.integers(1, 60), st.booleans(), st.sampled_from(["tags", "prose"]))
def test_the_maximum_length_is_never_exceeded(text: str, limit: int, shuffle: bool, style: str) -> None:
    made = sample(text, max_caption_length=limit, shuffle_tags=shuffle, caption_style=style)
    assert len(caption_text(made, seed=1, epoch=0)) <= limit


@pytest.mark.parametrize(("draw", "option"), [(drops_caption, "cond_dropout"), (flips, "flip_p")])
def test_draws_come_at_their_rate_and_are_pure(draw: object, option: str) -> None:
    def drawn(rate: float, epoch: int = 0) -> list[bool]:
        made = [sample("x", key=f"{n}.jpg", **{option: rate}) for n in range(800)]
        return [draw(s, seed=1, epoch=epoch) for s in made]  # type: ignore[operator]

    assert sum(drawn(0.0)) == 0 and sum(drawn(1.0)) == 800
    assert 0.25 < sum(drawn(0.3)) / 800 < 0.35
    assert drawn(0.3) == drawn(0.3) != drawn(0.3, epoch=1)


def test_flip_and_dropout_are_independent_draws() -> None:
    made = [sample("x", key=f"{n}", cond_dropout=0.5, flip_p=0.5) for n in range(2000)]
    both = sum(drops_caption(s, seed=1, epoch=0) == flips(s, seed=1, epoch=0) for s in made)
    assert 900 < both < 1100
