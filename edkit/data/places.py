"""How the state names files: relative to the folder it belongs to, so that both can be moved together."""

# text paths: Path objects cost more than the work itself in loops over a million files
# ruff: noqa: PTH100, PTH117
# ruff: noqa: PTH118
from __future__ import annotations

import os
import re
from pathlib import Path

STATE = ".edkit"
_WAITING = re.compile(r"\.edkit-[0-9a-f]{6}-\d+")
SETTLED_NS = 2_000_000_000
"""A file changed this recently (ns) may change again within one tick of its clock: nothing is kept of it."""


def state_dir_for(root: Path, state_dir: Path | None = None) -> Path:
    """Where the state of a data root (a folder, or a manifest file) is kept, whether or not it exists yet.

    `state_dir` where given; else `.edkit` of the nearest folder at or above the root that has one; else
    `.edkit` of the folder itself (of a manifest: of the folder it is in).
    """
    if state_dir is not None:
        return Path(state_dir).absolute()
    folder = Path(os.path.abspath(root))
    if folder.is_file():
        folder = folder.parent
    for ancestor in (folder, *folder.parents):
        if (ancestor / STATE).is_dir():
            return ancestor / STATE
    return folder / STATE


def waiting_name(token: str, seq: int) -> str:
    """What a file is called while a change of names is under way (no image's ending: no trainer walks into it)."""
    return f".edkit-{token}-{seq}"


def is_waiting(name: str) -> bool:
    """Whether `waiting_name` gave this name: the file's own name comes when the change is finished."""
    return _WAITING.fullmatch(name) is not None


class Places:
    """Turns absolute paths into what the databases hold, and back.

    Below the folder the state belongs to: relative, with "/". Elsewhere, or with a state folder of another
    name (--state-dir): absolute. A name that is not Unicode (Linux allows any bytes) is held as bytes.
    """

    def __init__(self, state_dir: Path) -> None:
        home = os.path.abspath(state_dir.parent)
        self.home: str | None = home if state_dir.name == STATE else None
        spellings = {home, os.path.realpath(home)} if self.home else set()
        self._prefixes = tuple(s.rstrip(os.sep) + os.sep for s in spellings)

    def key(self, path: str | os.PathLike[str]) -> str | bytes:
        """The stored form of a path."""
        text = os.fspath(path)
        if os.sep != "/" or not text.startswith("/") or "/." in text or "//" in text or text.endswith("/"):
            text = os.path.abspath(text)  # most are plain already, and there are a million of them
        for prefix in self._prefixes:
            if text.startswith(prefix):
                text = text[len(prefix) :]
                break
        if os.sep != "/":
            text = text.replace(os.sep, "/")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return os.fsencode(text)
        return text

    def path(self, key: str | bytes) -> str:
        """The absolute path of a stored form."""
        text = os.fsdecode(key) if isinstance(key, bytes) else key
        if self.home is None or os.path.isabs(text):
            return os.path.normpath(text) if os.sep != "/" else text
        return os.path.join(self.home, *text.split("/")) if os.sep != "/" else f"{self.home.rstrip('/')}/{text}"
