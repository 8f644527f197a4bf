"""A page and what stands on it: contents, sections, prose, key figures, tables, folded lists, commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edkit.data import atomic
from edkit.page.html import Html, escape, file_url, join, tag

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One key figure: the value with its unit, and what it counts."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of a list of things to do: how much of what, what is best done, where the page tells more."""

    label: str
    note: str = ""
    command: str = ""
    anchor: str = ""  # the id of a section of the page
    mark: str = ""  # one short word before it
    good: bool | None = None  # good, bad or neutral (None)


def render(
    title: str,
    *sections: Html,
    lead: object = "",
    footer: object = "",
    above: str = "",
    contents: Sequence[tuple[str, str]] = (),
) -> Html:
    """The whole page as one HTML document: what it's called, one sentence on what it shows, its sections.

    `above` is a short line over the title (what kind of page it is); `contents` are (label, id of a section).
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # even if something slipped through: the browser runs no script and fetches nothing
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("p", above, class_="above") if above else "",
            tag("h1", title),
            tag("p", lead, class_="lead") if lead else "",
        ),
        _contents(contents) if contents else "",
        tag("main", *sections),
        tag("footer", footer) if footer else "",
    )
    return Html(f'<!doctype html>\n<html lang="en">{head}{body}</html>\n')


def write(path: Path, page: Html) -> Path:
    """Write a page, whole or not at all; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, page)
    return path


def _contents(links: Sequence[tuple[str, str]]) -> Html:
    items = (tag("li", tag("a", label, href=f"#{anchor}")) for label, anchor in links)
    return tag("nav", tag("ul", *items), aria_label="Contents", class_="contents")


def section(title: object, *parts: object, note: object = "", anchor: str | None = None, badge: object = "") -> Html:
    """A titled part of the page; `note` is its opening sentence, `anchor` the id that links lead to."""
    opening = tag("p", note, class_="note") if note else ""
    return tag("section", tag("h2", badge, title), opening, *parts, id=anchor)


def badge(text: str, *, good: bool | None = None) -> Html:
    """A short verdict in a frame: good, bad or neutral (None)."""
    return tag("span", text, class_=f"badge {'neutral' if good is None else 'good' if good else 'bad'}")


def tasks(rows: Sequence[Task]) -> Html:
    """Things to do, the most urgent first, each with a link to where the page tells more."""
    items = []
    for row in rows:
        mark = badge(row.mark, good=row.good) if row.mark else ""
        label = tag("a", row.label, href=f"#{row.anchor}") if row.anchor else row.label
        how = [tag("code", row.command) if row.command else "", row.note]
        note = tag("span", *how, class_="how") if any(how) else ""
        items.append(tag("li", mark, tag("div", tag("span", label, class_="what"), note)))
    return tag("ol", *items, class_="tasks")


def command(text: str, note: object = "") -> Html:
    """A command to copy: one click selects the whole of it; `note` stands below."""
    below = tag("p", note, class_="below") if note else ""
    return tag("div", tag("pre", tag("code", text), tabindex="0"), below, class_="command")


def facts(pairs: Sequence[tuple[str, object]]) -> Html:
    """A short list of terms and what is said of each."""
    return tag("dl", *(join([tag("dt", name), tag("dd", said)]) for name, said in pairs), class_="facts")


def group(title: str, *parts: object, note: str = "") -> Html:
    """A smaller heading within a section, and what stands under it."""
    opening = tag("p", note, class_="note") if note else ""
    return tag("div", tag("h3", title), opening, *parts, class_="group")


def prose(*sentences: object) -> Html:
    """One paragraph."""
    return tag("p", join(sentences, " "))


def beside(*parts: object) -> Html:
    """Parts side by side where there is room, one below another where there isn't."""
    return tag("div", *(tag("div", part) for part in parts), class_="beside")


def key_figures(figures: Sequence[Figure]) -> Html:
    """The few numbers a reader came for."""
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", figure.label),
                tag("dd", figure.value, tag("small", figure.note) if figure.note else ""),
            )
            for figure in figures
        ),
        class_="figures",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> Html:
    """A table; columns that hold only numbers (with their units) stand right, integers with separators."""
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    side = ["num" if right else None for right in numeric]
    head = tag("tr", *(tag("th", name, scope="col", class_=side[i]) for i, name in enumerate(columns)))
    body = [tag("tr", *(tag("td", _cell(cell), class_=side[i]) for i, cell in enumerate(row))) for row in rows]
    inner = tag("table", tag("caption", caption) if caption else "", tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or "Table")


def fold(summary: str, *parts: object, opened: bool = False) -> Html:
    """Details a reader may unfold."""
    return tag("details", tag("summary", summary), *parts, open=opened)


def code(text: str) -> Html:
    """A command or a file's text, as it is."""
    return tag("pre", tag("code", text), tabindex="0")


def link(label: str, target: Path, *, page_dir: Path) -> Html:
    """A link from a page in `page_dir` to a file on this disk."""
    return tag("a", label, href=file_url(target, page_dir))


_NUMBER = re.compile(r"[−+-]?[\d,.]+ ?(%|bytes|[kMGT]?B)?")


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and bool(_NUMBER.fullmatch(cell)))


def _cell(value: object) -> Html:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(value)
    if isinstance(value, int):
        return escape(f"{value:,}")
    return escape(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")


def duration(seconds: float) -> str:
    """A time for people: `4 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
