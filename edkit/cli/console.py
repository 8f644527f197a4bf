"""What every command shares: the options, the progress bars, the summary, and how a failure is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from edkit.data.errors import EdkitError
from edkit.data.progress import SILENT, Advance, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import Task

FOUND = 3  # exit status: done, and it found what it looks for
INTERRUPTED = 130
_JOINERS = "\u200c\u200d"
_A_LINE_EVERY = 60.0  # seconds, of a long task in a pipe or a log

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the summary.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every change, make none.")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="Keep edkit's state here, not in .edkit/ of the data root.")
]
Open = Annotated[bool, typer.Option("--open", help="Show the page it wrote.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice (-1 draws one and records it).")]


class Session:
    """One command's ear and mouth: `progress` goes into the wing, `done` prints what came out."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.progress: Progress = SILENT if quiet or as_json else _Bars()

    def done(self, result: Any, *lines: str) -> None:
        """Print the result: as JSON (the dataclass's fields), or as the given summary lines."""
        if self.as_json:
            # in ASCII, which is the same JSON: no code page of a console can lose a letter of it
            typer.echo(json.dumps(plain(result), allow_nan=False))
        elif not self.quiet:
            for line in lines:
                typer.echo(printable(line))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        """Print a table on stdout; columns of numbers stand right. Nothing with --json or --quiet."""
        if self.as_json or self.quiet or not rows:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        # rich keeps a title in its cell markup; file names and captions must come out as they are
        head = Text(printable(title)) if title else None
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=head, title_justify="left")
        for i, name in enumerate(columns):
            numeric = all(isinstance(row[i], int | float) for row in rows)
            table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(number(cell))) for cell in row))
        stdout().print(table)


@contextmanager
def session(*, as_json: bool = False, quiet: bool = False) -> Iterator[Session]:
    """Open the progress display for the length of one command."""
    ui = Session(as_json=as_json, quiet=quiet)
    try:
        yield ui
    finally:
        if isinstance(ui.progress, _Bars):
            ui.progress.close()


class _Bars:
    """Progress bars on stderr, with a rate and an ETA; where stderr is no terminal, news and a line a minute."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._console: Console | None = None

    def _open(self) -> RichProgress:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._console = Console(stderr=True, highlight=False)
            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
                disable=not self._console.is_terminal,
            )
            self._rich.start()
        return self._rich

    @contextmanager
    def task(self, what: str, total: int | None = None, unit: str = "images") -> Iterator[Advance]:
        rich = self._open()
        outer = [one.id for one in rich.tasks if one.visible]
        for one in outer:  # what is done within another task has the one line to itself
            rich.update(one, visible=False)
        task = rich.add_task(what, total=total, rate="", note="")
        told = time.monotonic()

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal told
            now = rich.tasks[rich.task_ids.index(task)]
            rate = f"{now.speed:,.1f} {unit}/s" if now.speed and unit else ""
            rich.update(task, advance=n, rate=rate)
            if note:
                rich.update(task, note=note)
            if rich.disable and time.monotonic() - told >= _A_LINE_EVERY:
                told = time.monotonic()
                self.say(_line(now))

        try:
            yield advance
        finally:
            rich.remove_task(task)
            for one in outer:
                rich.update(one, visible=True)

    def say(self, line: str) -> None:
        self._open().console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()


def _line(task: Task) -> str:
    """A task as one line of a log: `training: 120 of 2,000, loss 0.12, 8.1 images/s, 0:12:33 left`."""
    of = f" of {task.total:,.0f}" if task.total is not None else ""
    left = f"{timedelta(seconds=int(task.time_remaining))} left" if task.time_remaining is not None else ""
    said = [f"{task.completed:,.0f}{of}", task.fields["rate"], task.fields["note"], left]
    return f"{task.description}: {', '.join(part for part in said if part)}"


def stdout() -> Console:
    """Rich's console on stdout, as wide as the terminal (80 columns where there is none)."""
    from rich.console import Console

    return Console(highlight=False)


def open_page(path: Path) -> None:
    """Show a page in the user's browser."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


def plain(value: Any) -> Any:
    """A result as JSON types: dataclasses become objects, paths text, tuples lists, odd floats null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def count(number: int, noun: str) -> str:
    """A number of things, in words: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(value: object) -> str:
    """A table cell: integers with thousands separators, floats to three places."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def printable(text: str) -> str:
    """A line as a terminal may have it: control characters of a file name or a caption as \\x1b, not as commands."""
    if text.isprintable():
        return text
    # the spaces of any script are no commands, and joiners hold an emoji together
    return "".join(
        c if c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text
    )


def size(num_bytes: float) -> str:
    """Bytes for people: `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def run(app: Callable[..., Any]) -> NoReturn:
    """Call the app and leave with its exit status; no expected failure shows a traceback."""
    # a cp1252 console (Windows) must not kill a command over one character of a caption
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if status == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            _tell(_last_words(leaving) or "interrupted; the same command goes on from here")
    except EdkitError as error:
        _tell(str(error))
        status = error.exit_status
    except BrokenPipeError:
        # the reader of our stdout left (`edkit plan | head`); point it away so that the exit flush is silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = "the disk is full; nothing half-written was kept (free some room, run again)"
        else:
            what = error.strerror or str(error)
        _tell(f"{error.filename or 'system'}: {what}")
        status = 1
    sys.exit(status)


def _last_words(leaving: BaseException) -> str:
    """What the command said with its KeyboardInterrupt."""
    link: BaseException | None = leaving
    while link is not None and not isinstance(link, KeyboardInterrupt):
        link = link.__cause__ or link.__context__
    return str(link or "")


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    typer.echo(printable(f"edkit: {line}"), err=True)
