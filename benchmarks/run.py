"""Run the benchmarks and write down what they found: their pages, figures.json and summary.md.

    python benchmarks/run.py [theme...] [--photos DIR] [--full]

Without a theme, all of them, which takes about 20 minutes on two cores; `--full` adds a table of 20 million rows and a
plan of a million images, which take 12 minutes more. The programs that edkit is measured beside are installed into
virtual environments of their own, once (`--venvs DIR`); diffusers' training script is not in its package, and is named
with `--diffusers-script`. Without `--photos` the pictures are drawn. A theme that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import DIFFUSERS, FIGURES, VENVS, machine

HERE = Path(__file__).resolve().parent
BEGIN = "<!-- measured: run.py writes from here -->"
END = "<!-- measured: to here -->"


def _cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no GPU here"


def _nginx() -> str | None:
    return None if shutil.which("nginx") or Path("/usr/sbin/nginx").exists() else "no nginx here"


@dataclass(frozen=True, kw_only=True)
class Theme:
    """A script of that name, and how it is run."""

    runs: tuple[tuple[str, ...], ...] = ((),)  # its arguments, a process each
    full: tuple[str, ...] = ()  # with --full, one process more
    photos: bool = False  # whether it takes --photos
    missing: Callable[[], str | None] = lambda: None  # why it can't run on this machine


DEVELOPERS = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
THEMES = {
    "start": Theme(),
    "table_scan": Theme(full=("--rows", "20000000", "--rounds", "2")),
    "download": Theme(
        runs=((), ("--dir", MEMORY), ("--bad",)),
        missing=_nginx,
    ),
    "measure_speed": Theme(runs=(("--images", "24", "--rounds", "3"),), photos=True),
    "hash_search": Theme(runs=(("--limit", "30"),)),
    "plan_scale": Theme(runs=(("10000", "100000"),), full=("1000000",)),
    "rename_scale": Theme(runs=(("--rounds", "1", "--dir", MEMORY),)),
    "report_speed": Theme(runs=(("--check", "20"),), photos=True),
    "catalog_noop": Theme(runs=(("--images", "50000", "--rounds", "2"),)),
    "embed_speed": Theme(runs=(("--images", "64"),), photos=True),
    "cache_speed": Theme(runs=(("--images", "160"),), photos=True),
    "train_speed": Theme(photos=True),
    "kill_resume": Theme(runs=(("--kills", "10"),)),
    "gpu": Theme(missing=_cuda),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="theme", help=", ".join(THEMES))
    parser.add_argument("--photos", type=Path, metavar="DIR", help="JPEGs to measure with; without: drawn ones")
    parser.add_argument("--full", action="store_true", help="the largest sizes, too")
    parser.add_argument("--venvs", type=Path, metavar="DIR", help="where the peers' environments are kept")
    parser.add_argument("--diffusers-script", type=Path, metavar="PATH", help="train_text_to_image.py of its source")
    parser.add_argument("--pages", type=Path, default=HERE, metavar="DIR", help="where the pages are (for a trial)")
    settings = parser.parse_args()
    unknown = [name for name in settings.themes if name not in THEMES]
    if unknown:
        parser.error(f"no theme {', '.join(unknown)}; there are {', '.join(THEMES)}")
    if settings.venvs:
        os.environ[VENVS] = str(settings.venvs.resolve())
    if settings.diffusers_script:
        os.environ[DIFFUSERS] = str(settings.diffusers_script.resolve())
    failed = []
    for name in settings.themes or THEMES:
        theme = THEMES[name]
        why_not = theme.missing()
        if why_not:
            say(f"{name}: left out, {why_not}")
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            told = Path(scratch, "figures")
            text, problem = measured(name, theme, settings, told)
            rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()] if told.exists() else []
        if text:
            write_page(settings.pages / f"{name}.md", name, text)
        keep(settings.pages / "figures.json", name, rows)
        if problem:
            failed.append(name)
        say(f"{name}: {problem or 'done'} after {time.monotonic() - began:.0f} s")
    summarize(settings.pages)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measured(name: str, theme: Theme, settings: argparse.Namespace, told: Path) -> tuple[str, str | None]:
    """What the theme's processes printed, each under its command, and in a line what went wrong."""
    text, problem = [], None
    # all cores and compiled modules, as a user's shell has them
    environment = {key: value for key, value in os.environ.items() if key not in DEVELOPERS}
    environment |= {"PYTHONPATH": str(HERE.parent), "PYTHONIOENCODING": "utf-8"}
    photos = ("--photos", str(settings.photos)) if settings.photos and theme.photos else ()
    for arguments in (*theme.runs, *((theme.full,) if settings.full and theme.full else ())):
        said = f"python benchmarks/{name}.py {' '.join(arguments)}".strip() + (" --photos DIR" if photos else "")
        say(said)
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py", *arguments, *photos],
            capture_output=True, text=True, encoding="utf-8", check=False,
            env=environment | {FIGURES: str(told)},
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            problem = f"failed with {done.returncode}: {last[:300]}"
            sys.stderr.write(done.stderr[-4000:])
            break
        text.append(f"`{said}`\n\n{done.stdout.strip()}\n")
    return "\n".join(text), problem


def write_page(page: Path, name: str, text: str) -> None:
    """Put what was measured between the page's two marks; the prose around them stays."""
    old = page.read_text(encoding="utf-8") if page.exists() else f"# {name}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = old.rstrip() + "\n\n", "\n"
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def keep(path: Path, theme: str, rows: list[dict[str, Any]]) -> None:
    """The latest figure of every stage, in the order of the themes."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = {row["stage"] for row in rows}
    kept = [row for row in kept if row["stage"] not in new]
    where = machine().partition("Python")[2]
    kept += [{"theme": theme, **row, "machine": f"Python{where}"} for row in rows]
    order = list(THEMES)
    kept.sort(key=lambda row: order.index(row["theme"]) if row["theme"] in order else len(order))
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


HEAD = """# Speed, stage by stage

Every line was measured by one of the scripts here, both sides in turns in one run. All of them again, with the programs
they are measured beside, their pages and this table: `python benchmarks/run.py`. Needed: edkit with its extras, nginx
for the downloads, chromium for the page's opening, and for diffusers' training loop `--diffusers-script` with
`examples/text_to_image/train_text_to_image.py` of its source. What is missing is left out and named.

*Ratio* is edkit beside the peer, *share* edkit beside the least that this machine needs for the work alone: above 1
edkit is the quicker one.

| stage | edkit | peer | ratio | floor | share | aim | reached | date |
|---|---:|---|---:|---|---:|---|---|---|
"""


def summarize(pages: Path) -> None:
    """summary.md: one line a stage."""
    path = pages / "figures.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    lines = []
    for row in rows:
        unit = row["unit"]
        cells = [
            f"[{row['stage']}]({row['theme']}.md)",
            _figure(row["edkit"], unit),
            _named(row["peer"], row["value"], unit),
            _times(row["ratio"]),
            _named(row["floor"], row["limit"], unit),
            _times(row["share"]),
            row["aim"],
            {True: "yes", False: "no", None: ""}[row["reached"]],
            row["date"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    machines = sorted({row["machine"] for row in rows})
    where = "\n".join(f"- {one}" for one in machines)
    (pages / "summary.md").write_text(HEAD + "\n".join(lines) + f"\n\nMeasured on:\n\n{where}\n", encoding="utf-8")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _named(name: str, value: float | None, unit: str) -> str:
    return f"{name}: {_figure(value, unit)}" if value is not None else name


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
