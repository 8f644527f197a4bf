"""Every error edkit raises on purpose, and the one-line `Problem` that checks collect.

EdkitError            exit status 1
├── UsageError        2: the command was called wrongly
├── BadInput          1: a file, table or setting from outside is wrong
├── MissingExtra      1: a package of an optional extra is not installed
├── StateError        1: the databases, the journal or the lock
└── NoSpace           1: a disk or a memory is full
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class EdkitError(Exception):
    """A failure told to the user in one line: what, where, and the mend."""

    exit_status = 1

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(one_line(what, where, mend))


class UsageError(EdkitError):
    """The command was called wrongly."""

    exit_status = 2


class BadInput(EdkitError):
    """Something from outside (a file, a table, a setting) is not as it must be."""


class MissingExtra(EdkitError):
    """A command needs a package that comes with an optional extra."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed", mend=f'pip install "edkit[{extra}]"')


class StateError(EdkitError):
    """The state folder (databases, journal, lock) can't be used."""


class NoSpace(EdkitError):
    """A disk or a memory is full; nothing half-written was left under a real name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding about a user's file: an error blocks training, a warning never blocks."""

    level: Literal["error", "warning"]
    code: str  # stable, kebab-case: "bad-number", "camera-name", "unreadable-image"
    where: str  # path, with ":line" or ", row n" where known
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {one_line(self.what, self.where, self.mend)}"


def one_line(what: str, where: str | None = None, mend: str | None = None) -> str:
    """`where: what (mend)`, with line breaks and control characters folded to spaces."""
    text = f"{where}: {what}" if where else what
    if mend:
        text = f"{text} ({mend})"
    return " ".join("".join(c if c.isprintable() else " " for c in text).split(" ")).strip()
