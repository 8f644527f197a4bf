"""Several processes: they train what one would, to the same weights, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edkit.data.image import Crop
from edkit.data.plan import MicroBatch, Pick
from edkit.train import checkpoint as ck
from edkit.train.ranks import share
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.trainer import Trainer
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]
CROP = Crop(width=8, height=8, scaled_width=8, scaled_height=8, left=0, top=0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 6))
def test_shares_are_the_step_each_pick_once_and_evenly(sizes: list[int], size: int) -> None:
    picks = iter([Pick(index=i, epoch=0, occurrence=0, crop=CROP) for i in range(sum(sizes))])
    step = tuple(
        MicroBatch(bucket=(8, 8 * (i + 1)), batch_id=None, picks=tuple(next(picks) for _ in range(n)))
        for i, n in enumerate(sizes)
    )
    shares = [share(step, rank, size) for rank in range(size)]
    together = [(micro.bucket, pick) for mine in shares for micro in mine for pick in micro.picks]
    assert together == [(micro.bucket, pick) for micro in step for pick in micro.picks]
    counts = [sum(len(micro.picks) for micro in mine) for mine in shares]
    assert max(counts) - min(counts) <= 1


@pytest.fixture
def launched(
    tmp_path: Path, forked: Callable[..., int], exit_status: Callable[[int], int]
) -> Callable[..., list[tuple[int, str]]]:
    """Runs a function of the rank in two processes, as a launcher would; exit status and words of each."""

    def launch(work: Callable[[int], object]) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def child(rank: int) -> None:
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in env.items()})
            work(rank)

        said = [tmp_path / f"rank-{rank}.txt" for rank in (0, 1)]
        children = [forked(lambda rank=rank: child(rank), said[rank]) for rank in (0, 1)]
        return [(exit_status(child), path.read_text()) for child, path in zip(children, said, strict=True)]

    return launch


# so large an eps makes Adam's step follow the gradient, and not only its sign
SAME: dict[str, Any] = {"max_steps": 6, "batch_size": 3, "eps": 1.0, "lr": 0.1, "train_text_encoder": True}
SAME |= {"ema_decay": 0.9, "flip_p": 0.5, "min_snr_gamma": 5.0}


def test_two_processes_train_as_one_and_stop_and_resume_together(
    settings: Settings, tmp_path: Path, launched: Callable[..., list[tuple[int, str]]]
) -> None:
    one = train(settings(out=tmp_path / "one", **SAME))
    two = settings(out=tmp_path / "two", save_every_steps=3, **SAME)
    assert [status for status, _ in launched(lambda rank: train(two))] == [0, 0]

    names = [path.name for path in ck.checkpoints(tmp_path / "two")]
    assert names == ["step-00000003", "step-00000006"]
    for file in ("weights", "ema"):
        alone = ck.load_tensors(ck.checkpoints(one.run_dir)[-1], file)
        for name, value in ck.load_tensors(ck.checkpoints(tmp_path / "two")[-1], file).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)
    for theirs, mine in zip(read_metrics(tmp_path / "two"), read_metrics(one.run_dir), strict=True):
        assert theirs["step"] == mine["step"]
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)

    def stop_one(rank: int) -> None:
        move = Trainer.move

        def stopping(self: Trainer, *args: Any) -> Any:
            if rank == 1 and self.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return move(self, *args)

        Trainer.move = stopping  # type: ignore[method-assign]
        train(two.but(out=tmp_path / "cut"))

    for _, said in launched(stop_one):
        assert "KeyboardInterrupt: stopped at step 2 of 6; step 2 is saved" in said
    assert [path.name for path in ck.checkpoints(tmp_path / "cut")] == ["step-00000002"]
    assert [status for status, _ in launched(lambda rank: train(resume=tmp_path / "cut"))] == [0, 0]
    for file in ("weights", "optimizer", "ema"):
        uncut = ck.load_tensors(tmp_path / "two" / "checkpoints" / "step-00000006", file)
        for name, value in ck.load_tensors(tmp_path / "cut" / "checkpoints" / "step-00000006", file).items():
            assert torch.equal(value, uncut[name])


def test_a_process_without_an_image_in_a_step_joins_in_all_the_same(
    settings: Settings, tmp_path: Path, launched: Callable[..., list[tuple[int, str]]]
) -> None:
    s = settings(max_steps=2, batch_size=1, method="lora", lora_rank=2, seed=-1)
    assert [status for status, _ in launched(lambda rank: train(s))] == [0, 0]
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]


def test_a_process_that_ends_is_told_by_the_others(
    settings: Settings, pictures: Path, launched: Callable[..., list[tuple[int, str]]]
) -> None:
    for path in sorted(pictures.glob("*.png"))[1:]:
        path.unlink()
    (only,) = pictures.glob("*.png")
    only.with_suffix(".yaml").write_text(json.dumps({"loss_scale": 1e39}), encoding="utf-8")
    (_, first), (_, second) = launched(lambda rank: train(settings(batch_size=1, max_steps=1)))
    assert "the loss of step 1 is not finite" in second and only.name in second
    assert "process 0 has lost the others" in first
