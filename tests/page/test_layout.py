"""A page stands alone, says what it was given, and is written whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edkit.page import layout
from edkit.page.html import Html

from .test_html import HOSTILE, seen  # isort: skip


def test_a_page_holds_everything_and_asks_for_nothing_from_elsewhere() -> None:
    page = layout.render("Title", layout.section("One", layout.prose("Words.")), lead="Lead", footer="Foot")
    elements = seen(page)
    names = {name for name, _ in elements.tags}
    assert not names & {"script", "link", "iframe", "object", "base"}
    attributes = {key for _, attrs in elements.tags for key in attrs}
    assert not [key for key in attributes if key in ("src", "srcset") or key.startswith("on")]
    assert "url(" not in page and "@import" not in page
    policy = [a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and str(policy[0]).startswith("default-src 'none'")


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_make_no_element_anywhere_on_a_page(words: str) -> None:
    def page(said: str) -> Html:
        return layout.render(
            said,
            layout.section(said, layout.prose(said), layout.code(said), note=said),
            layout.group(said, layout.fold(said, layout.table([said], [[said]], caption=said)), note=said),
            layout.key_figures([layout.Figure(value=said, label=said, note=said)]),
            lead=said,
            footer=said,
        )

    assert [name for name, _ in seen(page(words)).tags] == [name for name, _ in seen(page("plain")).tags]


def test_columns_of_numbers_stand_right_and_carry_separators() -> None:
    rows = [["a", 1234, 0.12345], ["b", 5, 12345.6]]
    markup = layout.table(["name", "count", "share"], rows)
    assert '<td class="num">1,234</td>' in markup
    assert '<td class="num">0.123</td>' in markup
    assert '<td class="num">12,346</td>' in markup
    assert "<td>a</td>" in markup


def test_a_table_without_rows_is_a_table_still() -> None:
    assert "<tbody></tbody>" in layout.table(["a"], [])


def test_a_page_is_written_in_utf_8_into_a_folder_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    assert layout.write(path, layout.render("Käfer 猫")) == path
    assert "<h1>Käfer 猫</h1>" in path.read_text(encoding="utf-8")
    assert re.search(rb'<meta charset="utf-8">', path.read_bytes())
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_times_read_as_people_say_them() -> None:
    said = [layout.duration(seconds) for seconds in (0.4, 59.6, 245, 3600 * 2 + 61)]
    assert said == ["0 s", "1 min 00 s", "4 min 05 s", "2 h 01 min"]


def test_links_of_the_contents_and_of_tasks_lead_to_sections_that_are_there() -> None:
    page = layout.render(
        "Title",
        layout.tasks([layout.Task(label="Mend it", command="edkit x", anchor="one", mark="error", good=False)]),
        layout.section("One", layout.command("edkit x", "It mends."), anchor="one", badge=layout.badge("error")),
        above="edkit",
        contents=[("One", "one")],
    )
    tags = seen(page).tags
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert {attrs["href"] for name, attrs in tags if name == "a"} == {f"#{found}" for found in ids} == {"#one"}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_make_no_element_in_tasks_commands_and_facts(words: str) -> None:
    def parts(said: str) -> str:
        return layout.tasks([layout.Task(label=said, note=said, command=said, anchor=said, mark=said)]) + layout.render(
            said,
            layout.section(said, layout.command(said, said), layout.facts([(said, said)]), anchor=said),
            above=said,
            contents=[(said, said)],
        )

    assert [name for name, _ in seen(parts(words)).tags] == [name for name, _ in seen(parts("plain")).tags]
