"""How soon `edkit --help` is there, beside a bare interpreter that imports typer.

    python benchmarks/start.py [--rounds 15]

Wall time of fresh processes, by turns; the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial

from bench import by_turns, machine, tell

WAYS = {
    "edkit --help": [sys.executable, "-m", "edkit", "--help"],
    "edkit train --help": [sys.executable, "-m", "edkit", "train", "--help"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "a typer program of one command, --help": [
        sys.executable,
        "-c",
        "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])",
    ],
    "python -c ''": [sys.executable, "-c", ""],
}
# compiled modules are kept, as they are where edkit is installed
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    settings = parser.parse_args()
    times = by_turns({name: partial(seconds, command) for name, command in WAYS.items()}, settings.rounds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ours, bare = medians["edkit --help"], medians["a typer program of one command, --help"]
    print(f"{machine('typer', 'rich')}; median of {settings.rounds} fresh processes each, by turns.\n")
    print("| process | ms | edkit --help takes |\n|---|---:|---:|")
    for name, value in medians.items():
        print(f"| `{name}` | {value * 1e3:.0f} | {ours / value:.2f} times as long |")
    tell(
        "start: edkit --help", edkit=ours * 1e3, unit="ms", floor="a typer program of one command",
        limit=bare * 1e3, aim="150 ms, and 1.3 times typer", reached=ours < 0.15 and ours < 1.3 * bare,
    )  # fmt: skip


if __name__ == "__main__":
    main()
