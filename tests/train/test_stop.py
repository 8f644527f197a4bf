"""What ends a run before its time: Ctrl-C and SIGTERM, memory, a full disk, numbers that are none."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edkit.data.errors import BadInput, NoSpace
from edkit.data.progress import SILENT
from edkit.train import checkpoint as ck
from edkit.train import export, loop
from edkit.train.cache import LatentCache
from edkit.train.families.unet import UNetModel
from edkit.train.run import train
from edkit.train.settings import SETTINGS_FILE, TrainSettings, read_settings, to_toml
from edkit.train.trainer import Trainer
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]
Forked = Callable[..., int]
Status = Callable[[int], int]


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, what: str, total: int | None = None, unit: str = "images") -> Any:
        return SILENT.task(what, total, unit)

    def say(self, line: str) -> None:
        self.lines.append(line)


def command(s: TrainSettings, folder: Path) -> None:
    """`edkit train` with these settings, in this process."""
    from edkit.cli.app import main

    config = folder / "train.toml"
    config.write_text(to_toml(s), encoding="utf-8")
    sys.argv = ["edkit", "train", "--config", str(config), "--quiet"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def signalled(owner: Any, name: str, *signals: int, at: int = 1) -> None:
    """Have the process send itself signals in the midst of a function's call number `at`."""
    function, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            for number in signals:
                os.kill(os.getpid(), number)
            time.sleep(0)  # a place where Python hears them
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "at", "saved", "words"),
    [
        (Trainer, "_predict", 4, 3, "stopped at step 4 of 6; step 4 is saved"),
        (Trainer, "move", 3, 3, "stopped at step 3 of 6; step 3 is saved"),
        (LatentCache, "_encoded", 1, None, "interrupted; the same command goes on from here"),
        (UNetModel, "denoise", 1, None, "stopped at step 0 of 6; nothing is saved yet"),
        (UNetModel, "denoise", 2, 2, "stopped at step 2 of 6; step 2 is saved"),
        (UNetModel, "save", 1, 3, "stopped at step 3 of 6; step 3 is saved"),
        (export.atomic, "replace_folder", 2, 3, "stopped at step 3 of 6; step 3 is saved"),
    ],
    ids=["a step", "the optimizer", "caching", "first samples", "samples", "an export", "an export's end"],
)
def test_a_signal_saves_and_leaves_wherever_it_comes(
    settings: Settings, tmp_path: Path, forked: Forked, exit_status: Status,
    owner: Any, name: str, at: int, saved: int | None, words: str,
) -> None:  # fmt: skip
    s = settings(
        batch_size=8, save_every_steps=3, export_on_save=True, sample_prompts=("red",), sample_steps=1,
        sample_every_steps=2,
    )  # fmt: skip
    number = signal.SIGTERM if at % 2 else signal.SIGINT

    def work() -> None:
        signalled(owner, name, number, at=at)
        command(s, tmp_path)

    said = tmp_path / "said.txt"
    assert exit_status(forked(work, said)) == 130, said.read_text()
    assert f"edkit: {words}" in said.read_text()
    newest, damaged = ck.latest(tmp_path / "run")
    step = ck.load_state(newest)["step"] if newest else None
    assert not damaged and (step == saved or (name == "_predict" and step in (3, 4)))
    if (tmp_path / "run" / SETTINGS_FILE).exists():
        assert len(read_metrics(tmp_path / "run")) == (step or 0)
        resumed = train(resume=tmp_path / "run")
        names = sorted(path.name for path in (tmp_path / "run" / "samples").glob("*.png"))
        assert names == [f"step-{n:08d}.png" for n in (0, 2, 4, 6)]
        assert [p.name for p in (tmp_path / "run" / "exports").iterdir()] == ["step-00000003"]
        assert resumed.step == 6 and resumed.export is not None


def test_a_second_ctrl_c_leaves_at_once(
    settings: Settings, tmp_path: Path, forked: Forked, exit_status: Status
) -> None:
    def work() -> None:
        signalled(Trainer, "move", signal.SIGINT, signal.SIGINT, at=4)
        command(settings(save_every_steps=2), tmp_path)

    said = tmp_path / "said.txt"
    assert exit_status(forked(work, said)) == 130, said.read_text()
    assert "edkit: left at once; step 2 is saved; go on: edkit train --resume" in said.read_text()
    assert [path.name for path in ck.checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_memory_that_runs_out_halves_the_micro_batches(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = settings(batch_size=8, max_steps=4, eps=1.0, lr=0.1)
    straight = train(s.but(out=tmp_path / "straight"))
    predict, done = Trainer._predict, [0]

    def short_of_memory(self: Trainer, micro: Any) -> Any:
        done[0] += 1
        if done[0] > 2 and len(micro.samples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(self, micro)

    monkeypatch.setattr(Trainer, "_predict", short_of_memory)
    told = Told()
    run = train(s, progress=told)
    assert [line.split(" (")[0] for line in told.lines if "memory" in line] == [
        "cpu is out of memory at step 3 with 8 images at once: from here micro_batch_size = 4",
        "cpu is out of memory at step 3 with 4 images at once: from here micro_batch_size = 2",
    ]
    assert run.settings.micro_batch_size == 2
    assert read_settings(run.run_dir / SETTINGS_FILE).micro_batch_size == 2
    assert [path.name for path in ck.checkpoints(run.run_dir)] == ["step-00000002", "step-00000004"]
    alone = ck.load_tensors(ck.checkpoints(straight.run_dir)[-1], "weights")
    for name, value in ck.load_tensors(ck.checkpoints(run.run_dir)[-1], "weights").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)


def test_memory_that_holds_not_one_image_saves_and_says_what_was_tried(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, done = Trainer._predict, [0]

    def short_of_memory(self: Trainer, micro: Any) -> Any:
        done[0] += 1
        if done[0] > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return predict(self, micro)

    monkeypatch.setattr(Trainer, "_predict", short_of_memory)
    with pytest.raises(NoSpace, match=r"out of memory at step 3, with one image at once.*gradient_checkpointing") as e:
        train(settings())
    assert [path.name for path in ck.checkpoints(Path(str(e.value.where)))] == ["step-00000002"]


def test_the_file_whose_loss_is_no_number_is_named(settings: Settings, pictures: Path) -> None:
    bad = pictures / "blue paint_(3).yaml"
    bad.write_text(json.dumps({"loss_scale": 1e39}), encoding="utf-8")
    with pytest.raises(BadInput, match=r"loss of step \d+ is not finite; it comes from [^,]*blue paint_\(3\)\.png"):
        train(settings(batch_size=8))


def test_a_gradient_that_is_no_number_moves_no_weight_without_clipping_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Trainer.gradients

    def spoiled(self: Trainer, batch: Any, **more: Any) -> Any:
        losses = gradients(self, batch, **more)
        if self.step == 3:
            grad = next(p.grad for p in self.parameters.values() if p.grad is not None)
            grad.view(-1)[0] = float("inf")
        return losses

    monkeypatch.setattr(Trainer, "gradients", spoiled)
    with pytest.raises(BadInput, match="the gradient of step 4 is not finite; the batch has"):
        train(settings(clip_grad_norm=0.0, save_every_steps=2))


def test_a_file_that_changes_while_it_trains_is_named_and_the_run_is_saved(
    settings: Settings, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Trainer.move

    def meddling(self: Trainer, *args: Any) -> Any:
        if self.step == 1:
            for path in pictures.glob("*.png"):
                path.write_bytes(path.read_bytes() + b"more")
        return move(self, *args)

    monkeypatch.setattr(Trainer, "move", meddling)
    with pytest.raises(BadInput, match=r"paint_.*changed since the run began") as error:
        train(settings(cache_latents=False, max_steps=20))
    run_dir = pictures.parent / "run"
    assert error.value.mend is not None and len(ck.checkpoints(run_dir)) == 1
    assert read_metrics(run_dir)[-1]["step"] == ck.load_state(ck.checkpoints(run_dir)[0])["step"]


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(
    settings: Settings, tmp_path: Path, forked: Forked, exit_status: Status
) -> None:
    import resource  # not on Windows, where nothing forks either

    save = loop.ck.save_checkpoint

    def work() -> None:
        def filling(*args: Any, **kwargs: Any) -> Path:
            if kwargs["step"] == 4:  # no file may become larger than a part of what is to be written
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            return save(*args, **kwargs)

        loop.ck.save_checkpoint = filling
        command(settings(save_every_steps=2), tmp_path)

    said = tmp_path / "said.txt"
    assert exit_status(forked(work, said)) == 1
    assert "file too large; nothing half-written was kept (free some space; step 2 is saved" in said.read_text()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert train(resume=tmp_path / "run").resumed_from == 2


def test_older_checkpoints_make_room_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(step: int) -> None:
        tensors = {"weights": {"w": torch.full((3,), float(step))}}
        ck.save_checkpoint(tmp_path, step=step, state={}, tensors=tensors, keep=3)

    for step in (1, 2, 3):
        save(step)

    def names() -> list[str]:
        return [path.name for path in ck.checkpoints(tmp_path)]

    monkeypatch.setattr(ck, "_has_room", lambda folder, num_bytes: len(names()) < 3)
    save(4)
    assert names() == ["step-00000002", "step-00000003", "step-00000004"]
    monkeypatch.setattr(ck, "_has_room", lambda folder, num_bytes: False)
    with pytest.raises(NoSpace):
        save(5)
    assert names() == ["step-00000004"]
