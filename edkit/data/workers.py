"""What every worker process of a pool does first: leave Ctrl-C to its parent, and end when that has ended."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait


def start_worker() -> None:
    """A pool's initializer (spawned processes): a killed parent must not leave its workers waiting for ever."""
    # Ctrl-C reaches every process of a terminal: the parent alone answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="edkit-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
