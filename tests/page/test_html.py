"""What comes from outside is text: no caption and no file name becomes markup, an attribute or an address."""

from __future__ import annotations

import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from edkit.page.html import Html, escape, file_url, join, tag

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "javascript:alert(1)",
    "&lt;b&gt; &amp; &#39;",
    "a\x00b\x1b[31m\r\nc",
    "photo\u202egpj.exe",
    "half \ud83d of a character",
    "]]> --> <!--",
)


class Elements(HTMLParser):
    """The elements and the text a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(markup: str) -> Elements:
    parser = Elements()
    parser.feed(markup)
    parser.close()
    return parser


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_text_stays_text_in_content_and_in_attributes(words: str) -> None:
    page = seen(tag("p", words, title=words))
    assert [name for name, _ in page.tags] == ["p"]
    assert set(page.tags[0][1]) == {"title"}
    clean = "".join("\ufffd" if c in "\x00\x1b\r\u202e\ud83d" else c for c in words)
    assert page.text == clean
    assert page.tags[0][1]["title"] == clean


@pytest.mark.parametrize("words", HOSTILE)
def test_every_text_can_be_written_as_utf_8(words: str) -> None:
    assert escape(words).encode("utf-8")


def test_words_of_any_language_stay_as_they_are() -> None:
    for words in ("ein Käfer", "猫が座る", "می‌خواهم", "👩‍🚀 café", "line\nbreak\ttab"):
        assert escape(words) == words


def test_markup_passes_once_and_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"
    assert join(["a & b", Html("<br>")], "; ") == "a &amp; b; <br>"


def test_a_plain_string_made_from_markup_is_text_again() -> None:
    assert tag("p", Html("<b>") + "<script>") == "<p>&lt;b&gt;&lt;script&gt;</p>"


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    markup = tag("details", class_="x", open=True, id=None, hidden=False)
    assert markup == '<details class="x" open></details>'


@pytest.mark.parametrize(
    "name",
    [
        "javascript:alert(1).png",
        "a b.png",
        "50% #1?.png",
        "\"quoted'.png",
        "ünï 猫.png",
        "//host",
        "&lt;.png",
    ],
)
def test_a_file_address_is_relative_and_finds_its_file_again(name: str, tmp_path: Path) -> None:
    address = file_url(tmp_path / "pictures" / name, tmp_path / "report")
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert address.startswith("./")
    assert (tmp_path / "report" / unquote(parts.path)).resolve() == (tmp_path / "pictures" / name).resolve()
    assert escape(address) == address.replace("&", "&amp;").replace("'", "&#39;")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_file_name_that_is_no_utf_8_has_a_working_address(tmp_path: Path) -> None:
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    address = file_url(target, tmp_path)
    assert address == "./%FF%FE.png"
    assert escape(target.name).encode("utf-8")
