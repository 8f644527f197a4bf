"""Checkpoints: whole or not there, and no more than were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edkit.data.errors import BadInput, NoSpace
from edkit.train import checkpoint as ck


def save(run: Path, step: int, keep: int = 2) -> Path:
    tensors = {"weights": {"w": torch.full((3,), float(step))}}
    return ck.save_checkpoint(run, step=step, state={"epoch": 0}, tensors=tensors, keep=keep)


def test_the_last_n_are_kept_and_read_back(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    found = ck.checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-00000010", "step-00000015"]
    assert ck.load_state(found[-1])["step"] == 15
    assert torch.equal(ck.load_tensors(found[-1], "weights")["w"], torch.full((3,), 15.0))


def test_the_same_step_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 5)
    assert len(ck.checkpoints(tmp_path)) == 1


def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    half = tmp_path / "checkpoints" / ".edkit-abc"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "step-00000009").mkdir()
    assert [path.name for path in ck.checkpoints(tmp_path)] == ["step-00000005"]
    ck.clear_unfinished(tmp_path)
    assert not half.exists()


def test_a_failed_save_leaves_the_last_good_one_and_no_rest(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(TypeError):
        ck.save_checkpoint(tmp_path, step=6, state={"bad": object()}, tensors={}, keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="GB are free"):
        ck.need_room(tmp_path, 1 << 60)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "weights.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(BadInput, match=r"weights\.safetensors: can't be read"):
        ck.load_tensors(path, "weights")
    (path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=r"state\.json: can't be read"):
        ck.load_state(path)
