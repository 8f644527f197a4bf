"""Credits: every image with its author, licence and source, whatever has become of its name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import Move, apply
from edkit.data.story import gatherings, why
from edkit.gather.credits import credits, licence_title, markdown
from edkit.gather.scrape import scrape

Laion = Callable[..., Path]
QUICK: dict[str, Any] = {"allow_private_hosts": True, "retries": 0, "per_host": 64}


@pytest.fixture
def pool(web: Any, laion: Laion, tmp_path: Path) -> Path:
    """Four images under three licences, one of them without any."""
    table = laion(
        [web.url(f"/image/{i}") for i in range(4)],
        ["a [red] dog", "a cat", "<b>a</b> horse", "a bird"],
        license=["https://creativecommons.org/licenses/by/2.0/", "cc0", None, "CC BY 2.0"],
        author=["Ann_A", "Bob", None, "Cy"],
    )
    out = tmp_path / "pool"
    scrape([table], out=out, captions="sidecar", **QUICK)
    return out


def test_images_stand_under_their_licence_with_title_author_and_source(web: Any, pool: Path) -> None:
    found = credits(pool)
    assert found.licences == {"CC BY 2.0": 2, "CC0": 1, "licence unknown": 1}
    assert [(c.image, c.title, c.author, c.licence) for c in found.credits] == [
        ("000001.jpg", "a [red] dog", "Ann_A", "CC BY 2.0"),
        ("000004.jpg", "a bird", "Cy", "CC BY 2.0"),
        ("000002.jpg", "a cat", "Bob", "CC0"),
        ("000003.jpg", "<b>a</b> horse", "", ""),
    ]
    assert found.credits[0].page == web.url("/image/0") and found.num_unknown == 1
    text = markdown(found)
    assert "## [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)" in text
    assert rf"- [a \[red\] dog]({web.url('/image/0')}) by Ann\_A - `000001.jpg`" in text
    assert text.index("## licence unknown") > text.index("## [CC0]")


def test_a_renamed_image_is_found_and_a_removed_one_left_out(pool: Path) -> None:
    (pool / "people").mkdir()
    (pool / "000001.jpg").rename(pool / "people" / "renamed by hand.jpg")
    (pool / "000002.jpg").unlink()
    found = credits(pool)
    assert [c.image for c in found.credits] == ["000004.jpg", "people/renamed by hand.jpg", "000003.jpg"]
    assert found.credits[1].author == "Ann_A"


def test_what_edkit_did_not_bring_is_named_and_what_was_edited_since_still_credited(pool: Path) -> None:
    (pool / "mine.jpg").write_bytes((pool / "000001.jpg").read_bytes() + b"mine")
    with Catalog.open(pool) as catalog:
        apply(catalog, [Move(pool / "000001.jpg", pool / "a dog.jpg")], verb="tidy")
    with (pool / "a dog.jpg").open("ab") as file:
        file.write(b"edited")
    found = credits(pool)
    assert found.foreign == ("mine.jpg",)
    edited = next(c for c in found.credits if c.image == "a dog.jpg")
    assert edited.changed and edited.author == "Ann_A"
    assert "mine.jpg" in markdown(found) and "(changed since)" in markdown(found)


def test_an_image_that_edkit_made_of_another_counts_as_that_one(pool: Path) -> None:
    old = next(c.sha256 for c in credits(pool).credits if c.author == "Bob")
    (pool / "000002.jpg").unlink()
    (pool / "smaller.jpg").write_bytes(b"a smaller one")
    with Catalog.open(pool) as catalog:
        new = catalog.content_ids([pool / "smaller.jpg"])[pool / "smaller.jpg"]
        catalog.add_derived([(new, old, pool / "smaller.jpg")], by="compress")
    assert next(c for c in credits(pool).credits if c.image == "smaller.jpg").author == "Bob"


def test_a_row_that_names_a_licence_goes_before_one_that_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    with Catalog.open(tmp_path) as catalog:
        sha256 = catalog.content_ids([tmp_path / "a.jpg"])[tmp_path / "a.jpg"]
        catalog.ledger_add([LedgerRow(outcome="ok", sha256=sha256, url="http://example.org/a")])
        catalog.ledger_add([LedgerRow(outcome="ok", sha256=sha256, url="http://example.org/b", licence="MIT")])
    assert credits(tmp_path).credits[0].licence == "MIT"


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]


def test_every_format_holds_every_image(web: Any, pool: Path, tmp_path: Path) -> None:
    for ending in ("md", "csv", "json", "html"):
        assert credits(pool, out=tmp_path / f"credits.{ending}").written == tmp_path / f"credits.{ending}"
    with (tmp_path / "credits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["title"] for row in rows] == ["a [red] dog", "a bird", "a cat", "<b>a</b> horse"]
    listed = json.loads((tmp_path / "credits.json").read_text("utf-8"))
    assert [row["author"] for row in listed["credits"]] == ["Ann_A", "Cy", "Bob", ""]
    page = (tmp_path / "credits.html").read_text("utf-8")
    parser = _Links()
    parser.feed(page)
    assert {web.url(f"/image/{i}") for i in range(4)} == set(parser.links)
    assert "<b>a</b>" not in page and "&lt;b&gt;a&lt;/b&gt; horse" in page


def test_wrong_calls_are_one_line(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.md, \.csv, \.json or \.html"):
        credits(pool, out=tmp_path / "credits.docx")
    with pytest.raises(BadInput, match="no such folder"):
        credits(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("written", "title", "address"),
    [
        ("http://creativecommons.org/licenses/by-nc-sa/2.0/", "CC BY-NC-SA 2.0", ""),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "Public Domain Mark 1.0", ""),
        ("CC-BY-4.0", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("cc0", "CC0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("Unsplash License", "Unsplash License", "none"),
        ("", "", "none"),
    ],
)
def test_licences_are_named_as_people_write_them(written: str, title: str, address: str) -> None:
    expected = "" if address == "none" else address or written
    assert licence_title(written) == (title, expected)


# ---- what else the ledger tells


def test_the_history_tells_every_run_with_what_it_tried_kept_and_failed(web: Any, laion: Laion, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = laion([web.url(p) for p in ("/image/1", "/404", "/image/1?same", "/500", "/image/2", "/image/3")])
    scrape([table], out=out, limit=2, command="edkit scrape the table", **{**QUICK, "per_host": 1})
    first = gatherings(out)[0]
    assert first.command == "edkit scrape the table" and first.ended is not None and first.ended >= first.time
    assert (first.num_kept, first.num_failed) == (2, 2)
    assert first.num_tried == sum(first.outcomes.values()) >= 5 and first.outcomes["duplicate"] == 1
    size = sum(p.stat().st_size for p in out.glob("*.jpg"))
    assert first.num_bytes == size and first.folder == out
    scrape([table], out=out, limit=2, **QUICK)
    assert len(gatherings(out)) == 1, "a run with nothing to do is not worth an entry"
    scrape([table], out=out, limit=3, **QUICK)
    assert [run.num_kept for run in gatherings(out)] == [2, 1]


def test_why_tells_where_a_fetched_file_came_from(web: Any, pool: Path) -> None:
    (sentence,) = why(pool / "000001.jpg").sentences
    assert f"fetched from {web.url('/image/0')}" in sentence and "row 0" in sentence
    assert 'caption "a [red] dog"' in sentence and "by Ann_A" in sentence


def test_a_state_of_an_older_edkit_is_brought_up_to_date_by_the_next_writer(pool: Path) -> None:
    import sqlite3

    db = sqlite3.connect(pool / ".edkit" / "edkit.db")
    db.executescript("DROP TABLE gathering; DROP TABLE gathered; PRAGMA user_version = 1;")
    db.close()
    assert gatherings(pool) == [] and len(credits(pool).credits) == 4
    Catalog.open(pool).close()
    with Catalog.open(pool) as catalog:
        assert catalog.gatherings() == []
        number = catalog.gathering_begin(query="q", folder=pool, since=0.0)
        catalog.ledger_add([LedgerRow(outcome="http-404", url="http://example.org/")], gathering=number)
        assert catalog.gatherings()[0].outcomes == {"http-404": 1}
