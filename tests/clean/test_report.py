"""`report` shows what is there, says what it counts, and takes nothing of it for markup."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from edkit.api import check, dedupe, report
from edkit.cli.app import app
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import BadInput
from edkit.measure.preview import SIDE, preview

Draw = Callable[..., Path]

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</style></title><script>document.title='owned'</script>",
    "photo\u202egpj.exe",
    "javascript:document.title='owned'",
)


@pytest.fixture
def photos(tmp_path: Path, draw: Draw) -> Path:
    """Two folders, a near-duplicate, a camera's name, a broken file."""
    for n in range(6):
        draw(f"photos/dog/rex the {('wolf', 'dog')[n % 2]}_({n}).jpg", n, (640 + 40 * n, 480))
    for n in range(4):
        draw(f"photos/truth/a house_({n}).png", 20 + n, (300, 400))
    draw("photos/truth/a house, again.png", 20, (200, 267))
    (tmp_path / "photos/truth/multiply.txt").write_text("0.5", encoding="utf-8")
    (tmp_path / "photos/dog/a broken dog.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path / "photos"


def links(page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'<a href="([^"#][^"]*)"', page)]


def test_it_counts_what_is_there_and_changes_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in photos.rglob("*"))
    result = report(photos, out=tmp_path / "pages" / "report.html", resolution=512)
    assert (result.num_images, result.num_folders, result.num_broken, result.num_groups) == (12, 2, 1, 1)
    assert result.picks == 6 + 0.5 * 5
    assert result.num_thumbnails == 11
    assert result.num_bytes == result.page.stat().st_size
    assert sorted(path.name for path in photos.rglob("*")) == before
    page = result.page.read_text(encoding="utf-8")
    for words in (
        "Folders and balance",
        "Sizes, and the buckets of 512",
        "Words of dog",
        "Sharpness",
        "Near-duplicates",
    ):
        assert words in page


def test_every_picture_opens_its_own_file_from_where_the_page_lies(photos: Path, tmp_path: Path) -> None:
    odd = photos / "dog" / "rex's 100% #1?.jpg"
    shutil.copy(photos / "dog" / "rex the wolf_(0).jpg", odd)
    out = tmp_path / "pages" / "deep" / "report.html"
    report(photos, out=out)
    page = out.read_text(encoding="utf-8")
    reached = {(out.parent / unquote(link)).resolve() for link in links(page)}
    pictures = {path.resolve() for path in photos.rglob("*") if path.suffix in (".jpg", ".png")}
    assert reached == pictures


def test_a_set_too_large_for_the_page_is_sampled_evenly(photos: Path, tmp_path: Path) -> None:
    (photos / "dog/a broken dog.jpg").unlink()
    result = report(photos, out=tmp_path / "report.html", thumbnails=4)
    assert result.num_thumbnails == 4
    page = result.page.read_text(encoding="utf-8")
    assert "An even sample of 4 of 11 pictures" in page
    sheets = page[page.index('id="pictures"') :]
    assert "rex" in sheets and "a house" in sheets


def test_what_was_set_aside_is_shown_with_its_reason_until_it_is_back(photos: Path, tmp_path: Path) -> None:
    dedupe([photos])
    result = report(photos, out=tmp_path / "report.html")
    page = result.page.read_text(encoding="utf-8")
    assert result.num_removed == 1 and result.num_groups == 0
    assert "near-duplicate of" in page and "Set aside by" in page
    assert CliRunner().invoke(app, ["undo", str(photos)]).exit_code == 0
    assert report(photos, out=tmp_path / "report.html").num_removed == 0


def test_licences_and_authors_come_from_the_ledger_also_of_what_was_made_anew(photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.glob("truth/*.png"))
    with Catalog.open(photos) as catalog:
        ids = catalog.content_ids(paths)
        catalog.ledger_add(
            [
                LedgerRow(
                    outcome="ok", sha256=ids[paths[0]], licence="CC BY 4.0", author="Ann", url="https://a.test/1"
                ),
                LedgerRow(outcome="ok", sha256="f" * 64, licence="CC0", author="Bo", url="https://b.test/2"),
                LedgerRow(outcome="ok", sha256="e" * 64, licence="a stranger's"),
            ]
        )
        catalog.add_derived([(ids[paths[1]], "f" * 64, paths[1])], by="compress")
    page = report(photos, out=tmp_path / "report.html").page.read_text(encoding="utf-8")
    sources = page[page.index('id="sources"') :]
    assert all(words in sources for words in ("CC BY 4.0", "CC0", "Ann", "Bo", "a.test", "b.test"))
    assert "stranger" not in sources and "where 2 pictures came from; 10 were put here" in sources


def test_pictures_of_another_folder_that_show_the_same_are_shown(photos: Path, tmp_path: Path, draw: Draw) -> None:
    draw("other/a copy.png", 3, (320, 240))
    draw("other/something else.png", 77, (320, 240))
    result = report(photos, out=tmp_path / "report.html", overlap=tmp_path / "other")
    assert result.num_shared == 1
    page = result.page.read_text(encoding="utf-8")
    assert "a copy.png" in page and "1 of the 2 pictures over there" in page


def test_an_empty_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no images"):
        report(tmp_path, out=tmp_path / "report.html")


def test_the_command_wants_to_know_where_to(photos: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["report", str(photos)]).exit_code != 0
    out = CliRunner().invoke(app, ["report", str(photos), "--out", str(tmp_path / "r.html"), "--json"])
    assert out.exit_code == 0
    assert json.loads(out.stdout)["num_images"] == 12


def test_a_thumbnail_is_upright_and_small(tmp_path: Path, draw: Draw) -> None:
    import io

    from PIL import Image

    path = draw("a.jpg", 1, (900, 300))
    with Image.open(path) as im:
        im.load()
        exif = im.getexif()
        exif[0x0112] = 6  # stored lying on its side
        im.save(path, exif=exif)
    data = preview(path)
    assert data is not None and len(data) < 2500
    with Image.open(io.BytesIO(data)) as im:
        assert im.format == "WEBP" and max(im.size) == im.height == SIDE


# ---- hostile names and captions, in a real browser


class Attributes(HTMLParser):
    """Every attribute of every element, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(name, value or "") for name, value in attrs]


def hostile_set(root: Path, draw: Draw) -> Path:
    """Captions and, where the file system takes them, names that would like to run."""
    for n, words in enumerate(HOSTILE):
        draw(f"set/plain {n}.jpg", n, (320, 240))
        (root / f"set/plain {n}.txt").write_text(f"{words} " + "word " * 90, encoding="utf-8")
        name = re.sub(r'[/\\<>:"|?*]', "", words) if sys.platform == "win32" else words
        draw("set/x.jpg", 30 + n, (320, 240)).rename(root / "set" / f"{name.replace('/', '∕')}_({n}).jpg")
    draw("set/again.jpg", 30, (300, 225))
    (root / "set/IMG_1.jpg").write_bytes(b"<svg onload=\"document.title='owned'\">")
    (root / "set" / "multiply.txt").write_text(HOSTILE[0], encoding="utf-8")
    return root / "set"


@pytest.mark.parametrize("verb", ["check", "report"])
def test_nothing_that_a_name_or_caption_says_runs_in_a_browser(verb: str, tmp_path: Path, draw: Draw) -> None:
    root = hostile_set(tmp_path, draw)
    out = tmp_path / "page.html"
    with Catalog.open(root) as catalog:
        ids = catalog.content_ids([root / "plain 0.jpg"])
        row = LedgerRow(
            outcome="ok", sha256=ids[root / "plain 0.jpg"], licence=HOSTILE[0], author=HOSTILE[1], url=HOSTILE[4]
        )
        catalog.ledger_add([row])
    if verb == "check":
        check(root, out=out, resolution=512)
    else:
        report(root, out=out, resolution=512)
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page and "\u202e" not in page
    seen = Attributes()
    seen.feed(page)
    assert not [name for name, _ in seen.found if name.startswith("on")]
    assert not [value for name, value in seen.found if name in ("href", "src") and "script:" in value[:12]]
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no chromium here")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri()]
    dom = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode("utf-8", "replace")
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None and title[1] == "set"
    assert "<script" not in dom
    assert dom.count("<img") == page.count("<img")
