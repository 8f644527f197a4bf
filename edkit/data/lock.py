"""The lock of a state folder: one writer at a time, and it dies with its process."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
import weakref
from datetime import datetime
from pathlib import Path

from edkit.data.errors import StateError

# Windows locks bytes against reading too: lock one far behind the text that says who holds it
_BYTE = 1 << 30


class Lock:
    """A held lock on `path`; the file says who (pid, host), since when and with which command.

    Raises StateError, naming the holder, where another process (or another Lock of this one) holds it.
    """

    def __init__(self, path: Path, *, command: str = "") -> None:
        self.path = path
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(self._handle)
        except OSError as error:
            os.close(self._handle)
            self._handle = None
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK):
                raise StateError(
                    f"in use by {_holder(path)}", where=str(path.parent), mend="wait for it, or stop it"
                ) from None
            raise StateError(
                f"can't be locked: {error.strerror}",
                where=str(path.parent),
                mend="keep the state on a local disk: --state-dir",
            ) from error
        _held.add(self)
        held_by = {"pid": os.getpid(), "host": platform.node(), "since": time.time(), "command": command}
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, json.dumps(held_by).encode())

    def release(self) -> None:
        """Let go; the file stays (removing it would let two processes lock two files of one name)."""
        if self._handle is not None:
            os.close(self._handle)  # closing unlocks
            self._handle = None
        _held.discard(self)


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    # a forked child shares the lock and would keep it alive after its parent's death
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    try:
        held_by = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromtimestamp(held_by["since"]).strftime("%Y-%m-%d %H:%M:%S")
        command = f", {held_by['command']}" if held_by["command"] else ""
        return f"process {held_by['pid']} on {held_by['host']} since {since}{command}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
