"""How long `report` and `check` take on a large folder, how large the page is, and how soon a browser has it open.

    python benchmarks/report_speed.py [--photos DIR] [--images 10000] [--megapixels 0.3] [--check 50]

Pictures are cut at random out of the photos (without a folder: out of drawn ones), so that no two are the same, and
saved as JPEGs (quality 90) of one area. Runs: nothing known; facts known and thumbnails not; everything known. A
browser (chromium, where there is one) opens the page from disk and draws it, beside an empty page.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench import machine, photos, tell
from PIL import Image

FOLDERS = 20
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def cut(job: tuple[list[Path], Path, int, int, float]) -> None:
    """Cut the pictures first..last out of the photos."""
    sources, root, first, last, megapixels = job
    for n in range(first, last):
        rng = random.Random(n)
        with Image.open(sources[rng.randrange(len(sources))]) as im:
            width, height = int(im.width * rng.uniform(0.35, 0.9)), int(im.height * rng.uniform(0.35, 0.9))
            left, top = rng.randint(0, im.width - width), rng.randint(0, im.height - height)
            scale = (megapixels * 1e6 / (width * height)) ** 0.5
            part = im.convert("RGB").crop((left, top, left + width, top + height))
            part = part.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        words = " ".join(rng.choices(("red", "small", "house", "dog", "tree", "car", "night", "snow", "street"), k=5))
        folder = root / f"folder {n % FOLDERS}"
        folder.mkdir(exist_ok=True)
        part.save(folder / f"a photo of a {words}_({n}).jpg", quality=90)


def run(*words: str) -> tuple[float, float]:
    """Wall and CPU seconds of one edkit command, its start included."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "edkit", *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"edkit {' '.join(words)}: {done.stderr}")
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def opened(browser: str, page: Path, scratch: Path) -> float:
    """Seconds until the browser has drawn the page (its start included); best of three."""
    times = []
    for n in range(3):
        command = [
            browser,
            *FLAGS.split(),
            f"--user-data-dir={scratch / str(n)}",
            f"--screenshot={scratch / 'shot.png'}",
            page.as_uri(),
        ]
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--megapixels", type=float, default=0.3)
    parser.add_argument("--check", type=int, default=50, help="photos of 12 MP in the folder that `check` is timed on")
    settings = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch, "set"), Path(scratch, "report.html")
        (root / ".edkit").mkdir(parents=True)  # what is measured is kept
        sources = photos(settings.photos, Path(scratch), 80)
        steps = range(0, settings.images, 250)
        jobs = [(sources, root, n, min(n + 250, settings.images), settings.megapixels) for n in steps]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            list(pool.map(cut, jobs))
        report = ("report", str(root), "--for", "sdxl", "--out", str(out), "--quiet")
        name = f"report, {settings.images:,} pictures of {settings.megapixels:g} MP"
        rows.append((f"{name}: nothing known", "{:.1f} s ({:.1f} s of CPU)".format(*run(*report))))
        with sqlite3.connect(root / ".edkit" / "facts.db") as db:
            db.execute("DELETE FROM fact WHERE name IN (SELECT id FROM name WHERE name LIKE 'preview/%')")
        rows.append((f"{name}: facts known, no thumbnails", "{:.1f} s ({:.1f} s of CPU)".format(*run(*report))))
        warm = run(*report)
        rows.append((f"{name}: everything known", "{:.1f} s ({:.1f} s of CPU)".format(*warm)))
        n = settings.images
        tell(f"report of {n:,} images, warm facts", edkit=warm[0], unit="s", aim="60 s for 10,000",
             reached=warm[0] <= 60 * n / 10_000)  # fmt: skip
        rows.append(("the page", f"{out.stat().st_size / 1e6:.1f} MB"))
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser:
            empty = Path(scratch, "empty.html")
            empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
            floor, whole = opened(browser, empty, Path(scratch)), opened(browser, out, Path(scratch))
            rows.append(("chromium, from its start to an empty page drawn", f"{floor:.2f} s"))
            rows.append(("chromium, the same with the page", f"{whole:.2f} s"))
            tell(f"opening the report of {n:,} images", edkit=whole, unit="s", floor="an empty page", limit=floor,
                 aim="3 s", reached=whole <= 3)  # fmt: skip
        small = Path(scratch, "photos")
        small.mkdir()
        cut((sources, small, 0, settings.check, 12.0))
        page = str(Path(scratch, "check.html"))
        figures = run("check", str(small), "--for", "sdxl", "--out", page, "--quiet")
        rows.append(
            (
                f"check --for sdxl --out, {settings.check} photos of 12 MP, first run",
                "{:.1f} s ({:.1f} s of CPU)".format(*figures),
            )
        )
    print(f"{machine('pillow')}{', chromium' if browser else ''}.\n")
    print("| what | |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
