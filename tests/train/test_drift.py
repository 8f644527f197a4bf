"""A run with `preservation_data` measures what it forgets, and says so or ends where it is too much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edkit.data.errors import BadInput
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.watch import read_measured

Settings = Callable[..., TrainSettings]


class Ear:
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        from edkit.data.progress import SILENT

        self.lines: list[str] = []
        self.task = SILENT.task

    def say(self, line: str) -> None:
        self.lines.append(line)


def drifts(run_dir: Path) -> dict[int, float]:
    return {int(row["step"]): row["drift"] for row in read_measured(run_dir) if "drift" in row}


@pytest.fixture
def kept(tmp_path: Path, draw_pictures: Callable[..., Path]) -> str:
    return str(draw_pictures(tmp_path / "kept", 4))


def test_the_drift_is_the_rise_of_the_loss_since_step_0(settings: Settings, kept: str) -> None:
    run = train(settings(preservation_data=kept, lr=0.05, validate_every_steps=2))
    found = drifts(run.run_dir)
    assert list(found) == [0, 2, 4, 6] and found[0] == 0 and found[6] != 0
    losses = [row["preservation/loss"] for row in read_measured(run.run_dir) if "preservation/loss" in row]
    assert found[6] == pytest.approx(losses[-1] / losses[0] - 1, rel=1e-4)


def test_past_the_limit_it_warns_or_ends_with_an_export(settings: Settings, kept: str, tmp_path: Path) -> None:
    ruin = {"preservation_data": kept, "lr": 1.0, "validate_every_steps": 2, "max_drift": 0.01}
    ear = Ear()
    warned = train(settings(out=tmp_path / "warned", **ruin), progress=ear)
    assert warned.step == 6 and any("step 2: drift +" in line and "it forgets" in line for line in ear.lines)
    ended = train(settings(out=tmp_path / "ended", on_drift="stop", **ruin), progress=ear)
    assert ended.step == 2 and ended.export is not None and ended.export.is_dir()
    assert any("the run ends here" in line for line in ear.lines)


def test_a_resumed_run_holds_its_drift_against_its_own_beginning(settings: Settings, kept: str, tmp_path: Path) -> None:
    same = {"preservation_data": kept, "lr": 0.05, "validate_every_steps": 2}
    whole = train(settings(out=tmp_path / "whole", **same))
    half = train(settings(out=tmp_path / "half", max_steps=2, **same))
    train(settings(out=half.run_dir, **same), resume=half.run_dir, accept_changes=True)
    assert drifts(half.run_dir)[6] == pytest.approx(drifts(whole.run_dir)[6], rel=1e-4)


def test_a_limit_without_anything_to_keep_is_a_mistake(settings: Settings) -> None:
    with pytest.raises(BadInput, match="needs preservation_data"):
        settings(max_drift=0.05)
