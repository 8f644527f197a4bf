"""Work is spread over processes, in any order; no job can end the run, and no worker outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edkit.data.workers import Died, spread

KILL = "__import__('os')._exit(3)"

SCRIPT = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from edkit.data.workers import start_worker

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="looks at processes as POSIX does")
def test_a_killed_parent_leaves_no_worker_behind(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it is there
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent by ten seconds")


def test_every_job_gives_its_result_here_and_spread() -> None:
    jobs = [f"{n} * {n}" for n in range(40)]
    for workers in (1, 2):
        found = dict(spread(eval, jobs, what="squaring", workers=workers))
        assert found == {f"{n} * {n}": n * n for n in range(40)}


def test_a_job_that_takes_its_process_down_is_told_and_the_others_are_done() -> None:
    jobs = ["1", "2", KILL, "3", "4", "5", "6", "7", "8", "9"]
    found = dict(spread(eval, jobs, what="counting", workers=2))
    assert isinstance(found.pop(KILL), Died)
    assert found == {str(n): n for n in range(1, 10)}


def test_what_a_job_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(spread(eval, ["1 / 0"] * 9, what="dividing", workers=2))


def test_no_jobs_are_no_work() -> None:
    assert list(spread(eval, [], what="resting")) == []
