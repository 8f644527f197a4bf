"""Rules mean what they say, and a rule that can't be read is told in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.clean.rules import parse
from edkit.data.errors import UsageError

FACTS = {
    "sharpness": 0.12,
    "brightness": 0.5,
    "width": 640,
    "height": 480,
    "num_bytes": 150_000,
    "format": "JPEG",
    "aspect": 640 / 480,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("sharpness >= 0.12", True),
        ("sharpness > 0.12", False),
        ("sharpness<.2", True),
        ("0.2 < brightness < 0.9", True),
        ("0.5 < brightness < 0.9", False),
        ("width >= 512 and height >= 512", False),
        ("width >= 512 or height >= 512", True),
        ("width >= 1000 or height >= 400 and sharpness > 1", False),
        ("(width >= 1000 or height >= 400) and sharpness < 1", True),
        ("not (width > 1000)", True),
        ("not width > 1000 and not not height > 1", True),
        ("NOT width > 1000 AND height > 1", True),
        ("width > height", True),
        ("num_bytes < 200kB", True),
        ("num_bytes < 0.1 MB", False),
        ("num_bytes >= 150_000", True),
        ("width == 6.4e2", True),
        ("width = 640", True),
        ("aspect != 1", True),
        ("brightness > -1", True),
        ('format == "JPEG"', True),
        ("format == jpeg", True),
        ("'png' != format", True),
    ],
)
def test_a_rule_means_what_it_says(text: str, holds: bool) -> None:
    assert parse(text).holds(FACTS) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sharpnes > 1", "no fact is called 'sharpnes' .did you mean sharpness?"),
        ("width > heigth", "no fact is called 'heigth' .did you mean height?"),
        ("sharpness >", "missing at its end"),
        ("> 1", "missing before '>'"),
        ("sharpness", "a comparison is missing"),
        ("sharpness > 1 brightness", "'brightness' is one too many"),
        ("(width > 1", 'a "." is missing'),
        ("width > 1)", "one too many"),
        ("width > 1 and", "missing at its end"),
        ("width > 'large'", "can't be compared"),
        ("format > 'JPEG'", "by == and != alone"),
        ("format == width", "can't be compared"),
        ("1 < 2", "names no fact"),
        ("phash == 0", "no fact is called 'phash'"),
        ("__import__('os')", "a comparison is missing"),
        ("width > 1; height", "can't be read at"),
        ("width > 12px", "can't be read at"),
        ("", "missing at its end"),
    ],
)
def test_what_can_not_be_read_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="()<>=! andortwidth0.5'\"_kB", max_size=30))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = parse(text)
    except UsageError:
        return
    assert isinstance(rule.holds(FACTS), bool)


def test_the_reason_names_the_values_and_the_rule() -> None:
    rule = parse("sharpness  >= 0.2 and width > 100")
    assert rule.names == ("sharpness", "width")
    assert rule.because(FACTS) == ("sharpness is 0.12, width is 640; the rule is sharpness >= 0.2 and width > 100")
