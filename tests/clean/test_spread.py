"""Work is spread over processes, in any order, and no job can end the run."""

from __future__ import annotations

import pytest

from edkit.clean.spread import Died, spread

KILL = "__import__('os')._exit(3)"


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
