"""A page in a real browser, opened from disk: nothing runs, nothing is fetched, nothing sticks out."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from edkit.page import charts, layout, pictures

from .test_html import HOSTILE  # isort: skip

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium here")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    image = folder / "it's 100% #1.png"
    Image.new("RGB", (64, 64), (20, 160, 60)).save(image)
    shown = [pictures.Picture(source=image, caption=words, note=words) for words in HOSTILE]
    long = "a_folder_name_without_any_break_" * 6
    return layout.write(
        folder / "page.html",
        layout.render(
            HOSTILE[0],
            layout.section("Pictures", pictures.grid(shown, page_dir=folder)),
            layout.section("Pairs", pictures.pairs([pictures.Pair(before=shown[0], after=shown[1])], page_dir=folder)),
            layout.section("Bars", charts.bars("Picks", [(long, 10), ("b", 3)], unit="images")),
            layout.section("Table", layout.table(["a" * 40, "b"], [[long, 1]]), layout.code(long)),
        ),
    )


def run(browser: str, tmp_path: Path, page: Path, *flags: str) -> str:
    command = [browser, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")


def test_the_browser_reads_the_page_as_it_was_meant(browser: str, page: Path, tmp_path: Path) -> None:
    seen = run(browser, tmp_path, page, "--dump-dom")
    title = re.search("<h1>(.*?)</h1>", seen)
    assert title and html.unescape(title[1]) == HOSTILE[0]
    assert "<script" not in seen
    assert seen.count("<img") == len(HOSTILE) + 2


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_drawn_and_nothing_sticks_out_to_the_right(
    browser: str, page: Path, tmp_path: Path, width: int
) -> None:
    shot = tmp_path / "shot.png"
    run(browser, tmp_path, page, f"--window-size={width},3000", f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        # the margin at the right edge is paper from top to bottom
        edge = pixels.crop((image.width - 8, 0, image.width, image.height)).getcolors()
        assert edge is not None and len(edge) == 1
        assert (20, 160, 60) in [colour for _, colour in pixels.getcolors(1 << 24) or []]
