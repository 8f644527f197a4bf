"""The shell around every command: exit statuses, one-line failures, odd consoles."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from edkit.cli.console import Session, number, plain, printable, size


def edkit(*args: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edkit", *args], capture_output=True, text=True, check=False, encoding="utf-8", **more
    )  # type: ignore[call-overload]


def test_bad_input_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = edkit("undo", str(tmp_path / "nothing here"))
    assert done.returncode in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edkit: ") and "nothing here" in line


def test_wrong_usage_is_status_2() -> None:
    done = edkit("dedupe", "--radius", "many", ".")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_interrupted_command_says_so_and_ends_with_130(tmp_path: Path) -> None:
    script = (
        "import os, signal, typer\n"
        "from edkit.cli import console\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def wait():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    import time; time.sleep(30)\n"
        "console.run(app)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "edkit: interrupted; the same command goes on from here"
    assert time.monotonic() - began < 25


def test_a_caption_that_the_console_cannot_show_does_not_end_the_command(tmp_path: Path) -> None:
    script = "import typer\nfrom edkit.cli import console\nconsole.run(lambda: typer.echo('猫 \\U0001f436'))\n"
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"? ?")


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no pipes to break")
def test_a_reader_that_leaves_is_no_traceback() -> None:
    script = "from edkit.cli import console\nconsole.run(lambda: [print('x' * 1000) for _ in range(10_000)])\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_results_become_json_types() -> None:
    @dataclass(frozen=True)
    class Result:
        path: Path
        shares: tuple[float, ...]
        multiply: Decimal

    text = json.dumps(plain(Result(Path("a/b"), (0.5, math.nan), Decimal("0.025"))), allow_nan=False)
    assert json.loads(text) == {"path": str(Path("a/b")), "shares": [0.5, None], "multiply": 0.025}


def test_numbers_carry_separators_and_units() -> None:
    assert [number(v) for v in (1234567, 0.5, "x", True)] == ["1,234,567", "0.500", "x", "True"]
    assert [size(v) for v in (999, 12_300_000, 5e12)] == ["999 bytes", "12.3 MB", "5.0 TB"]


BARS = """
import edkit.cli.console as console
console._A_LINE_EVERY = 0.0
with console.session() as ui:
    with ui.progress.task("training", total=4000, unit="") as advance:
        advance(1000, note="loss 0.1234, 8.1 images/s, 7.4 GB")
        with ui.progress.task("validating", total=20) as inner:
            inner(5)
        advance(500)
"""


def test_in_a_pipe_long_work_is_a_line_now_and_then() -> None:
    done = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, check=True)
    first, inner, last = done.stderr.splitlines()
    assert first.startswith("training: 1,000 of 4,000, loss 0.1234, 8.1 images/s, 7.4 GB")
    assert inner.startswith("validating: 5 of 20") and last.startswith("training: 1,500 of 4,000, loss 0.1234")
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_on_a_terminal_it_is_one_line_of_its_width(tmp_path: Path) -> None:
    import pty

    reader, terminal = pty.openpty()
    script = BARS.replace("advance(500)", "import time; time.sleep(0.5)")
    env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    done = subprocess.Popen([sys.executable, "-c", script], stderr=terminal, env=env)
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # Linux says so that the other end is closed
        while part := os.read(reader, 4096):
            seen += part
    os.close(reader)
    assert done.wait() == 0
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]+", seen.decode("utf-8"))]
    drawn = [line for line in lines if "1000/4000" in line]
    assert drawn and all(line.rstrip().endswith("loss 0.1234, 8.1 images/s, 7.4 GB") for line in drawn)
    assert all(len(line) <= 80 and "validating" not in line for line in drawn)


def test_json_comes_whole_through_any_code_page() -> None:
    script = (
        "from edkit.cli import console\n"
        "ui = console.Session(as_json=True, quiet=False)\n"
        "console.run(lambda: ui.done({'caption': '猫 é', 'file': 'caf\\udce9.jpg'}))\n"
    )
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env, check=True)
    assert json.loads(done.stdout) == {"caption": "猫 é", "file": "caf\udce9.jpg"}


def test_no_name_or_caption_is_a_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;owned\x07 \x9b31m\u202egpj.\r\nb"
    ui = Session(as_json=False, quiet=False)
    ui.table(["file", evil], [(evil, 1)], title=evil)
    ui.done({}, evil)
    ui.progress.say(evil)
    said, told = capsys.readouterr()
    assert not set(said + told) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert "a\\x1b]0;owned\\x07" in said and "a\\x1b]0;owned\\x07" in told


def test_letters_spaces_and_emoji_of_all_scripts_are_shown_as_they_are() -> None:
    for text in ("猫\u3000犬", "10\u00a0km", "a family \U0001f468\u200d\U0001f469\u200d\U0001f467", "é"):
        assert printable(text) == text
