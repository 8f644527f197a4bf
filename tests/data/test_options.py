"""What stands beside the images: texts, option files, YAML."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.data.errors import BadInput
from edkit.data.options import (
    FOLDER_FILES,
    KEYS,
    decode,
    one_line_text,
    read_option_file,
    read_text,
    read_yaml,
    said_from_yaml,
)
from edkit.data.sample import NOTHING_SAID, OPTION_NAMES, Options


def test_every_key_and_option_file_stands_on_the_users_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data-root.md").read_text(encoding="utf-8")
    assert [key for key in (*KEYS, *FOLDER_FILES) if f"`{key}`" not in page] == []
    assert set(OPTION_NAMES) < set(KEYS)


@given(st.text().filter(lambda text: "\0" not in text), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_marked_and_plain_unicode_comes_back(text: str, encoding: str) -> None:
    if text.startswith("\ufeff"):
        return  # a mark, not text
    assert decode(text.encode(encoding, "surrogatepass" if encoding != "utf-16" else "strict"), "x") == text


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_one_line_of_bad_input(data: bytes) -> None:
    try:
        decode(data, "x.txt")
    except BadInput as error:
        assert error.where and error.where.startswith("x.txt") and "\n" not in str(error)


@given(st.text(max_size=200))
def test_any_yaml_text_gives_words_or_problems_and_never_raises(text: str) -> None:
    said = said_from_yaml(text, Path("x.yaml"))
    assert all(p.level in ("error", "warning") and p.where.startswith("x.yaml") for p in said.problems)


@given(st.text())
def test_a_text_on_one_line_is_on_one_line_and_stays_so(text: str) -> None:
    once = one_line_text(text)
    assert len(once.splitlines()) <= 1 and once == one_line_text(once) == once.strip()


def test_numbers_in_yaml_are_the_decimals_that_were_written() -> None:
    assert said_from_yaml("multiply: 0.1", Path("x")).options.multiply == Decimal("0.1")
    assert said_from_yaml("multiply: 1e-3", Path("x")).options.multiply == Decimal("0.001")
    assert said_from_yaml("multiply: '2.50'", Path("x")).options.multiply == Decimal("2.5")


def test_an_option_file_says_its_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "Multiply.TXT"
    path.write_text("\ufeff 0.025 \r\n", encoding="utf-8")
    assert read_option_file(path).options == Options(multiply=Decimal("0.025"))
    path.write_bytes(b"\xff")
    (problem,) = read_option_file(path).problems
    assert problem.code == "bad-encoding"


def test_a_huge_file_is_no_caption(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a" * (2 << 20))
    assert [p.code for p in read_yaml(path).problems] == ["bad-encoding"]
    assert read_yaml(tmp_path / "gone.yaml").problems and read_yaml(path).options is NOTHING_SAID


def test_a_text_is_read_whole_up_to_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for length in (0, 4095, 4096, 4097, 1 << 20):
        path.write_bytes(b"ab" * (length // 2) + b"c" * (length % 2))
        assert len(read_text(path)) == length
    path.write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(BadInput, match="over 1 MB"):
        read_text(path)


@pytest.mark.parametrize("text", ["", "# only a comment", "---\n...\n", "null"])
def test_an_empty_yaml_says_nothing(text: str) -> None:
    assert said_from_yaml(text, Path("x")).options is NOTHING_SAID
    assert said_from_yaml(text, Path("x")).words.prompt is None


@pytest.mark.parametrize("name", ["../secret.txt", "{folder}/secret.txt", "a/../../secret.txt", "x" * 300 + ".txt"])
def test_a_caption_file_is_looked_for_beside_its_yaml_and_nowhere_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.txt").write_text("a password")
    named = name.format(folder=tmp_path.as_posix())
    said = said_from_yaml(f"caption: {named}", tmp_path / "set" / "x.yaml")
    (problem,) = said.problems
    assert said.words.prompt is None and problem.level == "error" and problem.where.endswith("x.yaml:1")


def test_a_caption_file_may_stand_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a dog")
    assert said_from_yaml("caption: words/a.txt", tmp_path / "x.yaml").words.prompt == "a dog"


@pytest.mark.parametrize("line", ["shuffle_tags: !!bool foo", "loss_scale: 1e999", "tags: [{tag: a, weight: 1e999}]"])
def test_what_is_no_truth_value_and_no_finite_number_is_an_error_with_its_line(line: str) -> None:
    (problem,) = said_from_yaml(f"\n{line}", Path("x.yaml")).problems
    assert problem.level == "error" and problem.where == "x.yaml:2"


def test_caption_files_that_name_each_other_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("caption: b.yaml", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("caption: a.yaml", encoding="utf-8")
    assert [p.what for p in read_yaml(tmp_path / "a.yaml").problems] == ["caption files name each other in a circle"]
