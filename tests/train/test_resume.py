"""Resuming: whenever a run is killed, it goes on to the same bits, and the last good checkpoint is there."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edkit.data.errors import BadInput
from edkit.train import checkpoint as ck
from edkit.train.export import export_folder
from edkit.train.run import train
from edkit.train.settings import SETTINGS_FILE, TrainSettings
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]
Forked = Callable[..., int]
Status = Callable[[int], int]

KILLS = 20
# everything a checkpoint must hold
WHOLE: dict[str, Any] = {"max_steps": 6, "train_text_encoder": True, "ema_decay": 0.9, "flip_p": 0.5, "batch_size": 3}
WHOLE |= {"lr_schedule": "cosine", "lr_warmup_steps": 2, "save_every_steps": 2, "keep_checkpoints": 2}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensors (not of the metadata, which tells settings) of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy())
        found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def rows(run_dir: Path) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["lr"], row["grad_norm"]) for row in read_metrics(run_dir)]


def go_on(s: TrainSettings) -> None:
    """Start the run, or resume what there is of it."""
    assert s.out is not None
    train(resume=s.out) if (s.out / SETTINGS_FILE).exists() else train(s)


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits(
    settings: Settings, tmp_path: Path, forked: Forked, exit_status: Status
) -> None:
    straight = train(settings(out=tmp_path / "straight", **(WHOLE | {"keep_checkpoints": 99})))
    reference = {path.name: digests(path) for path in ck.checkpoints(straight.run_dir)}
    assert len(reference) == 3 and straight.export is not None
    s = settings(out=tmp_path / "killed", **WHOLE)
    said = tmp_path / "said.txt"
    length = 2 * straight.seconds  # a run and its beginning; where the kills fall decides nothing
    draw = random.Random(555)
    kills = finished = 0
    while kills < KILLS or not finished:
        whole_run = kills >= KILLS
        at = draw.randrange(1, 60) if kills % 2 and not whole_run else None
        child = forked(lambda: go_on(s), said, kill_at=at, below=tmp_path / "killed")
        if at is None and not whole_run:
            time.sleep(draw.random() * length)
            os.kill(child, signal.SIGKILL)
        status = exit_status(child)
        assert status in (0, -signal.SIGKILL), said.read_text()
        kills += status != 0
        newest, damaged = ck.latest(tmp_path / "killed")
        assert not damaged
        if newest is not None:
            assert digests(newest) == reference[newest.name]
        if status == 0:
            assert newest is not None and newest.name == "step-00000006"
            assert rows(tmp_path / "killed") == rows(straight.run_dir)
            assert digests(tmp_path / "killed" / "export") == digests(straight.export)
            assert not list((tmp_path / "killed").rglob(".edkit-*"))
            finished += 1
            shutil.rmtree(tmp_path / "killed")


def test_a_checkpoint_killed_at_any_file_operation_leaves_a_whole_one(
    tmp_path: Path, forked: Forked, exit_status: Status
) -> None:
    def save(run: Path, step: int, value: float) -> None:
        tensors = {"weights": {"w": torch.full((3,), value)}, "optimizer": {"m": torch.full((3,), value)}}
        ck.save_checkpoint(run, step=step, state={}, tensors=tensors, keep=1)

    for at in range(1, 99):
        run = tmp_path / str(at)
        save(run, 1, 1.0)
        # one more step, and then the same again: rotation and replacing
        child = forked(lambda run=run: (save(run, 2, 2.0), save(run, 2, 3.0)), tmp_path / "said", kill_at=at, below=run)
        status = exit_status(child)
        newest, damaged = ck.latest(run)
        assert newest is not None and not damaged
        value = float(ck.load_tensors(newest, "weights")["w"][0])
        assert (newest.name, value) in {("step-00000001", 1.0), ("step-00000002", 2.0), ("step-00000002", 3.0)}
        assert torch.equal(ck.load_tensors(newest, "optimizer")["m"], torch.full((3,), value))
        if status == 0:
            break
        assert status == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert status == 0 and at > 10
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]


def test_an_export_killed_at_any_file_operation_is_the_old_or_the_new(
    tmp_path: Path, forked: Forked, exit_status: Status
) -> None:
    def export(out: Path, text: str) -> None:
        def write(folder: Path) -> None:
            for name in ("a", "b"):
                (folder / name).write_text(text)

        export_folder(out, write, num_bytes=1)

    for at in range(1, 99):
        out = tmp_path / str(at) / "export"
        export(out, "old")
        child = forked(lambda out=out: export(out, "new"), tmp_path / "said", kill_at=at, below=out.parent)
        status = exit_status(child)
        assert [(out / name).read_text() for name in ("a", "b")] in (["old", "old"], ["new", "new"])
        if status == 0:
            break
    assert at > 4 and list(out.parent.iterdir()) == [out]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(settings: Settings) -> None:
    run = train(settings(max_steps=4, save_every_steps=2))
    before = digests(run.run_dir / "checkpoints" / "step-00000004")
    file = run.run_dir / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    os.truncate(file, 100)
    told: list[str] = []

    class Told:
        def task(self, what: str, total: int | None = None, unit: str = "images") -> Any:
            from edkit.data.progress import SILENT

            return SILENT.task(what, total, unit)

        def say(self, line: str) -> None:
            told.append(line)

    resumed = train(resume=run.run_dir, progress=Told())
    assert resumed.resumed_from == 2 and digests(run.run_dir / "checkpoints" / "step-00000004") == before
    assert any(
        "optimizer.safetensors: has 100 bytes" in line and "going on from step-00000002" in line for line in told
    )
    with pytest.raises(Exception, match="has 100 bytes"):
        for path in ck.checkpoints(run.run_dir):
            os.truncate(path / "optimizer.safetensors", 100)
        train(resume=run.run_dir)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "prodigy"])
def test_lora_resumes_bit_for_bit_with_every_optimizer(settings: Settings, tmp_path: Path, optimizer: str) -> None:
    s = settings(
        method="lora", lora_rank=2, lora_dropout=0.2, train_text_encoder=True, optimizer=optimizer, lr=None,
        ema_decay=0.9, max_steps=4, save_every_steps=2, keep_checkpoints=9,
    )  # fmt: skip
    straight = train(s.but(out=tmp_path / "straight"))
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    resumed = train(resume=tmp_path / "cut")
    assert resumed.resumed_from == 2 and resumed.export is not None and straight.export is not None
    assert resumed.checkpoint is not None and straight.checkpoint is not None
    assert digests(resumed.checkpoint) == digests(straight.checkpoint)
    assert digests(resumed.export) == digests(straight.export)


def test_changes_that_the_checkpoint_does_not_go_with_leave_the_run_as_it_was(settings: Settings) -> None:
    run = train(settings(method="lora", lora_rank=2, max_steps=2))
    before = (run.run_dir / SETTINGS_FILE).read_bytes()
    for changes in ({"lora_rank": 4, "lora_alpha": 4.0}, {"method": "full"}):
        with pytest.raises(BadInput, match="has other weights than"):
            train(run.settings.but(**changes), resume=run.run_dir, accept_changes=True)
        assert (run.run_dir / SETTINGS_FILE).read_bytes() == before
    assert train(run.settings.but(max_steps=3), resume=run.run_dir, accept_changes=True).step == 3


def test_another_optimizer_goes_on_with_moments_of_its_own(settings: Settings) -> None:
    run = train(settings(method="lora", lora_rank=2, max_steps=1, optimizer="lion"))
    longer = run.settings.but(optimizer="adamw", max_steps=2)
    assert train(longer, resume=run.run_dir, accept_changes=True).step == 2
    assert train(longer.but(max_steps=3), resume=run.run_dir, accept_changes=True).step == 3


def test_exports_of_saves_are_rotated(settings: Settings) -> None:
    run = train(settings(max_steps=5, save_every_steps=1, export_on_save=True, keep_exports=2))
    assert sorted(path.name for path in (run.run_dir / "exports").iterdir()) == ["step-00000003", "step-00000004"]


def test_one_run_is_trained_by_one_process(settings: Settings) -> None:
    from edkit.data.errors import StateError
    from edkit.data.lock import Lock

    run = train(settings(max_steps=1))
    lock = Lock(run.run_dir / "lock", command="train")
    with pytest.raises(StateError, match="in use by"):
        train(resume=run.run_dir)
    lock.release()
