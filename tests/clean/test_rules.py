"""Rules mean what they say, and a rule that can't be read is told in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.clean.rules import parse
from edkit.data.errors import UsageError
from edkit.measure.facts import Value

FACTS: dict[str, Value] = {
    "sharpness": 0.12,
    "brightness": 0.5,
    "width": 640,
    "height": 480,
    "num_bytes": 150_000,
    "format": "JPEG",
    "aspect": 640 / 480,
    "licence": "CC BY 4.0",
    "host": "live.staticflickr.com",
    "caption": "a woman and her dog, low tide",
    "num_words": 7,
    "author": None,
    "nsfw": None,
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
        ("host contains flickr", True),
        ('host contains "FLICKR.COM"', True),
        ("caption contains man", True),
        ("caption has man", False),
        ('caption has "woman"', True),
        ('caption has "low tide"', True),
        ('caption matches "^a (man|woman)"', True),
        ('caption not matches "cat$"', True),
        ('licence in ("CC0", "cc by 4.0")', True),
        ("licence not in (CC0, PDM)", True),
        ("width in (512, 640)", True),
        ("license == 'CC BY 4.0'", True),
        ("words > 5 and not caption has cat", True),
        ("author is missing", True),
        ("author is not missing", False),
        ("licence is known and author is not known", True),
        ("author == Ann", None),
        ("not author == Ann", None),
        ("author == Ann or width > 1", True),
        ("author == Ann and width > 1000", False),
        ("author == Ann and width > 1", None),
        ("unsafe < 0.2", None),
        ("0.1 < unsafe < 0.2", None),
        ("author contains a", None),
        ("author in (a, b)", None),
    ],
)
def test_a_rule_means_what_it_says(text: str, holds: bool | None) -> None:
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
        ("captoin contains dog", "no fact is called 'captoin' .did you mean caption?"),
        ("licens in (CC0)", "no fact is called 'licens' .did you mean licence?"),
        ("width contains 5", "width is a number"),
        ("caption contains", "missing at its end"),
        ("caption contains ''", "a word is missing"),
        ("caption matches '('", "no regular expression"),
        ("licence in CC0", 'after "in" a list in parentheses is missing'),
        ("licence in (CC0", 'a "." is missing'),
        ("licence in ()", "missing before '.'"),
        ("width in (large)", "no fact is called 'large'"),
        ("author is unknown", 'after "is" missing or known'),
        ("width not > 3", 'after "not" contains, has, matches or in'),
        ("(" * 300 + "width > 1" + ")" * 300, "nested too deeply"),
    ],
)
def test_what_can_not_be_read_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="()<>=!, andortwidthcaptions contains0.5'\"_kB", max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = parse(text)
    except UsageError:
        return
    assert rule.holds(FACTS) in (True, False, None)


def test_the_reason_names_the_values_and_the_rule() -> None:
    rule = parse("sharpness  >= 0.2 and width > 100")
    assert rule.names == ("sharpness", "width")
    assert rule.because(FACTS) == ("sharpness is 0.12, width is 640; the rule is sharpness >= 0.2 and width > 100")


# a rule as a tree, its text, and what it means: the parser must agree with the tree

NAMES = ("width", "height", "sharpness", "nsfw")
SIGNS = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__, "==": float.__eq__}


def trees() -> st.SearchStrategy[object]:
    leaf = st.tuples(
        st.just("compare"),
        st.sampled_from(NAMES),
        st.sampled_from(sorted(SIGNS)),
        st.sampled_from((0.1, 0.5, 1.0, 2.0)),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.just("not"), inner),
            st.tuples(st.sampled_from(("and", "or")), st.lists(inner, min_size=2, max_size=3)),
        ),
        max_leaves=8,
    )


def written(tree: object) -> str:
    match tree:
        case ("compare", name, sign, number):
            return f"{name} {sign} {number:g}"
        case ("not", inner):
            return f"not ({written(inner)})"
        case (word, parts):
            assert isinstance(parts, list)
            return f" {word} ".join(f"({written(part)})" for part in parts)
    raise AssertionError(tree)


def meant(tree: object, facts: dict[str, Value]) -> bool | None:
    match tree:
        case ("compare", name, sign, number):
            value = facts[str(name)]
            return None if value is None else SIGNS[str(sign)](float(value), float(str(number)))
        case ("not", inner):
            found = meant(inner, facts)
            return None if found is None else not found
        case (word, parts):
            assert isinstance(parts, list)
            each = [meant(part, facts) for part in parts]
            decides = word == "or"
            return decides if decides in each else None if None in each else not decides
    raise AssertionError(tree)


@given(
    tree=trees(),
    facts=st.fixed_dictionaries({name: st.one_of(st.none(), st.sampled_from((0.05, 0.5, 1.0, 3.0))) for name in NAMES}),
)
def test_any_rule_means_what_its_tree_means(tree: object, facts: dict[str, Value]) -> None:
    assert parse(written(tree)).holds(facts) == meant(tree, facts)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES), st.sampled_from(sorted(SIGNS)), st.integers(0, 3), st.sampled_from(("and", "or"))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_and_binds_closer_than_or_without_parentheses(steps: list[tuple[str, str, int, str]]) -> None:
    facts: dict[str, Value] = {"width": 1.0, "height": 2.0, "sharpness": 0.0, "nsfw": 3.0}
    text = "".join(f"{name} {sign} {number} {word} " for name, sign, number, word in steps)
    text = text.rsplit(" ", 2)[0]
    groups: list[list[bool]] = [[]]
    for name, sign, number, word in steps:
        groups[-1].append(SIGNS[sign](float(facts[name]), float(number)))  # type: ignore[arg-type]
        if word == "or":
            groups.append([])
    assert parse(text).holds(facts) is any(all(group) for group in groups if group)


def test_missing_names_the_values_that_are_not_known() -> None:
    rule = parse("author == Ann and width > 1")
    assert rule.missing(FACTS) == ("author",)
    assert "author is not known" in rule.because(FACTS)
