"""Training: it learns, it goes on exactly where it stood, and it says what it did not train on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, StateError, UsageError
from edkit.data.progress import SILENT
from edkit.data.rates import last_rate
from edkit.train import checkpoint as ck
from edkit.train.families import load_family
from edkit.train.run import find_run, train
from edkit.train.settings import TrainSettings, read_settings, to_toml
from edkit.train.watch import read_metrics

Settings = Callable[..., TrainSettings]

# one run that uses everything a checkpoint must hold
WHOLE = {"max_steps": 7, "train_text_encoder": True, "ema_decay": 0.9, "min_snr_gamma": 5.0, "flip_p": 0.5}
WHOLE |= {
    "lr_schedule": "cosine",
    "lr_warmup_steps": 2,
    "batch_size": 3,
    "save_every_steps": 3,
    "keep_checkpoints": 9,
}


class Told:
    """Keeps what is said."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def task(self, what: str, total: int | None = None, unit: str = "images") -> Any:
        return SILENT.task(what, total, unit)

    def say(self, line: str) -> None:
        self._lines.append(line)


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every tensor file of a checkpoint."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(checkpoint.glob("*.safetensors"))}


def test_it_learns(settings: Settings) -> None:
    run = train(settings(max_steps=60, batch_size=8, lr=3e-3, cond_dropout=0.0))
    assert run.step == 60 and run.num_images == 480
    assert run.last_loss < 0.75 * run.first_loss
    assert len(read_metrics(run.run_dir)) == 60
    # how fast it went is known to what comes next
    with Catalog.open(Path(str(run.settings.data_root)), write=False) as catalog:
        rate = last_rate(catalog, resolution=32, family="sd1")
    assert rate is not None and rate.images_per_second == pytest.approx(run.images_per_second, rel=0.2)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    straight = train(settings(out=tmp_path / "straight", **WHOLE))
    assert straight.checkpoint is not None
    for at in (3, 6):
        cut = tmp_path / f"cut-at-{at}"
        shutil.copytree(straight.run_dir, cut)
        for path in ck.checkpoints(cut):
            if ck.load_state(path)["step"] > at:
                shutil.rmtree(path)
        resumed = train(resume=cut)
        assert resumed.resumed_from == at and resumed.checkpoint is not None
        assert set(digests(straight.checkpoint)) == {
            "weights.safetensors",
            "optimizer.safetensors",
            "ema.safetensors",
        }
        assert digests(resumed.checkpoint) == digests(straight.checkpoint)
        rows = [[row[k] for k in ("step", "loss", "lr")] for row in read_metrics(cut)]
        assert rows == [[row[k] for k in ("step", "loss", "lr")] for row in read_metrics(straight.run_dir)]


@pytest.mark.parametrize("optimizer", ["adafactor", "lion", "prodigy"])
def test_every_optimizer_learns_and_resumes_bit_for_bit(settings: Settings, tmp_path: Path, optimizer: str) -> None:
    rates = {"adafactor": 3e-3, "lion": 3e-4, "prodigy": None}
    steps = 160 if optimizer == "prodigy" else 40  # it begins with a rate of 1e-6
    s = settings(
        optimizer=optimizer, lr=rates[optimizer], max_steps=steps, save_every_steps=20, batch_size=8, cond_dropout=0.0
    )
    straight = train(s.but(out=tmp_path / "straight", keep_checkpoints=9))
    assert straight.last_loss < straight.first_loss
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(ck.checkpoints(tmp_path / "cut")[-1])
    resumed = train(resume=tmp_path / "cut")
    assert resumed.resumed_from == steps - 20
    assert resumed.checkpoint is not None and straight.checkpoint is not None
    assert digests(resumed.checkpoint) == digests(straight.checkpoint)


def test_a_run_with_every_loss_and_noise_option_learns_and_resumes(settings: Settings, tmp_path: Path) -> None:
    more = {"loss_type": "mse_huber", "huber_delta": 0.5, "debiased": True, "offset_noise": 0.05}
    more |= {"pyramid_noise": 0.3, "input_perturbation": 0.1, "embedding_perturbation": 0.5, "lr": 3e-3}
    straight = train(settings(out=tmp_path / "straight", max_steps=40, save_every_steps=20, keep_checkpoints=9, **more))
    assert straight.last_loss < straight.first_loss
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(ck.checkpoints(tmp_path / "cut")[-1])
    resumed = train(resume=tmp_path / "cut")
    assert resumed.checkpoint is not None and straight.checkpoint is not None
    assert digests(resumed.checkpoint) == digests(straight.checkpoint)


def test_halves_train_with_a_scaler_that_is_resumed(settings: Settings, tmp_path: Path) -> None:
    more = {"precision": "fp16", "lr": 3e-3, "batch_size": 8, "max_steps": 20, "save_every_steps": 10}
    straight = train(settings(out=tmp_path / "straight", keep_checkpoints=9, **more))
    assert straight.last_loss < straight.first_loss
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(ck.checkpoints(tmp_path / "cut")[-1])
    assert ck.load_state(ck.checkpoints(tmp_path / "cut")[-1])["scaler"]["scale"] > 1
    resumed = train(resume=tmp_path / "cut")
    assert resumed.checkpoint is not None and straight.checkpoint is not None
    assert digests(resumed.checkpoint) == digests(straight.checkpoint)


def test_zero_terminal_snr_wants_v_prediction_and_stands_in_the_export(
    settings: Settings, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="predicts the noise"):
        train(settings(zero_terminal_snr=True))
    shutil.copytree(model, tmp_path / "v")
    path = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"prediction_type": "v_prediction"}), "utf-8")
    run = train(settings(model=str(tmp_path / "v"), zero_terminal_snr=True, max_steps=2))
    told: list[str] = []
    train(run.settings.but(out=tmp_path / "m", min_snr_gamma=5.0), dry_run=True, progress=Told(told))
    assert any("min_snr_gamma gives the last timestep no weight" in line for line in told)
    assert run.export is not None
    said = json.loads((run.export / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert said["rescale_betas_zero_snr"] is True and said["timestep_spacing"] == "trailing"
    snr = load_family(run.export).snr(torch.tensor([0, 500, 999]))
    before = load_family(tmp_path / "v").snr(torch.tensor([0, 500, 999]))
    # Lin et al., algorithm 1: the first timestep stays, the last has no signal at all
    assert float(snr[2]) == 0 < float(before[2])
    torch.testing.assert_close(snr[0], before[0], rtol=1e-3, atol=0)
    root = [float((v / (1 + v)).sqrt()) for v in before]
    assert float((snr[1] / (1 + snr[1])).sqrt()) == pytest.approx(
        (root[1] - root[2]) * root[0] / (root[0] - root[2]), rel=1e-3
    )


def started(s: TrainSettings, tmp_path: Path) -> subprocess.Popen[str]:
    """The same training in a process of its own."""
    config = tmp_path / "train.toml"
    config.write_text(to_toml(s), encoding="utf-8")
    command = [sys.executable, "-m", "edkit", "train", "--config", str(config), "--quiet"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not what():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)


def test_a_killed_run_resumes_to_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    kept = WHOLE | {"max_steps": 60, "save_every_steps": 5, "keep_checkpoints": 2}
    s = settings(out=tmp_path / "killed", **kept)
    process = started(s, tmp_path)
    wait_for(lambda: len(ck.checkpoints(tmp_path / "killed")) == 2, process)
    process.kill()  # SIGKILL: nothing can be saved now
    process.wait()
    resumed = train(resume=tmp_path / "killed")
    straight = train(s.but(out=tmp_path / "straight"))
    assert resumed.resumed_from is not None and 10 <= resumed.resumed_from < 60
    assert resumed.checkpoint is not None and straight.checkpoint is not None
    assert digests(resumed.checkpoint) == digests(straight.checkpoint)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_sigterm_saves_the_current_step_and_leaves_with_130(settings: Settings, tmp_path: Path) -> None:
    s = settings(max_steps=100_000, log_every_steps=1)
    process = started(s, tmp_path)
    wait_for(lambda: len(read_metrics(tmp_path / "run")) > 2, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    found = ck.checkpoints(tmp_path / "run")
    assert len(found) == 1
    assert read_metrics(tmp_path / "run")[-1]["step"] == ck.load_state(found[0])["step"]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return ck.load_tensors(ck.checkpoints(run_dir)[-1], "weights")


def test_micro_batches_over_buckets_train_as_one_large_batch(
    settings: Settings, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    mixed = draw_pictures(tmp_path / "mixed", 8, sizes=((40, 40), (64, 32), (32, 64)))
    # so large an eps makes Adam's step follow the gradient, and not only its sign
    same = {
        "data_root": str(mixed),
        "max_steps": 2,
        "batch_size": 8,
        "eps": 1.0,
        "clip_grad_norm": 0,
        "lr": 0.1,
    }
    whole = train(settings(out=tmp_path / "whole", **same))
    assert len(whole.summary.buckets) == 3
    single = train(settings(out=tmp_path / "single", micro_batch_size=1, **same))
    before = ck.load_tensors(ck.checkpoints(single.run_dir)[-1], "weights")
    for name, value in weights(whole.run_dir).items():
        torch.testing.assert_close(before[name], value, rtol=1e-4, atol=1e-6)
    assert whole.first_loss == pytest.approx(single.first_loss, rel=1e-4)


def test_cached_and_uncached_runs_train_the_same(settings: Settings, tmp_path: Path) -> None:
    cached = train(settings(out=tmp_path / "cached"))
    uncached = train(settings(out=tmp_path / "uncached", cache_latents=False))
    assert cached.checkpoint is not None and uncached.checkpoint is not None
    assert digests(cached.checkpoint) == digests(uncached.checkpoint)


def test_the_text_encoder_moves_only_where_it_is_trained(settings: Settings, tmp_path: Path, model: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(model / "text_encoder" / "model.safetensors")
    for trains in (False, True):
        run = train(settings(out=tmp_path / str(trains), train_text_encoder=trains))
        assert run.export is not None
        after = load_file(run.export / "text_encoder" / "model.safetensors")
        assert all(torch.equal(base[k], after[k]) for k in base) is not trains


def test_training_refuses_errors_and_leaves_them_out_when_told(
    settings: Settings, pictures: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(pictures / "IMG_1234.jpg")
    whole = (pictures / "red paint_(0).png").read_bytes()
    (pictures / "cut paint_(1).png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"training does not start: .*IMG_1234.*--leave-out-broken"):
        train(settings())
    assert not (tmp_path / "run").exists()
    run = train(settings(leave_out_broken=True, max_steps=2))
    assert run.summary.num_images == 8
    assert len(run.summary.left_out) == 2
    assert any("IMG_1234" in line for line in run.summary.left_out)
    assert any("cut paint" in line for line in run.summary.left_out)
    assert json.loads((run.run_dir / "run.json").read_text("utf-8"))["left_out"] == list(run.summary.left_out)


def test_a_loss_that_is_not_finite_stops_and_names_the_files(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not finite; the batch has .*paint_\(") as error:
        train(settings(lr=1e30, max_steps=50, clip_grad_norm=0))
    assert "paint" in str(error.value)
    assert ck.checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("limit", [{"max_steps": 3}, {"max_steps": None, "max_epochs": 3}])
def test_a_plan_that_drops_every_image_is_refused(settings: Settings, limit: dict[str, int | None]) -> None:
    with pytest.raises(BadInput, match=r"the plan has no step \(lower batch_size"):
        train(settings(remainder="drop", batch_size=9, **limit), dry_run=True)


def test_changed_data_and_settings_need_a_word_of_consent(settings: Settings, pictures: Path) -> None:
    s = settings(max_steps=2)
    run = train(s)
    with pytest.raises(StateError, match=r"settings changed.*lr: 0.001 -> 0.01.*--accept-changes"):
        train(s.but(lr=1e-2), resume=run.run_dir)
    (pictures / "red paint_(0).txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(StateError, match="the data changed"):
        train(resume=run.run_dir)
    going_on = train(s.but(max_steps=4), resume=run.run_dir, accept_changes=True)
    assert going_on.resumed_from == 2 and going_on.step == 4


def test_a_folder_with_a_run_is_not_overwritten(settings: Settings) -> None:
    train(settings(max_steps=1))
    with pytest.raises(UsageError, match=r"has a run in it.*--resume"):
        train(settings(max_steps=1))


def test_a_dry_run_plans_and_writes_nothing(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    before = sorted(pictures.rglob("*"))
    run = train(settings(max_epochs=3, max_steps=None, batch_size=3), dry_run=True)
    assert (run.summary.steps_per_epoch, run.total_steps) == (2, 8)
    assert sorted(pictures.rglob("*")) == before and not (tmp_path / "run").exists()


def test_settings_samples_and_epochs_stand_in_the_run_folder(settings: Settings) -> None:
    s = settings(
        max_steps=None, max_epochs=2, sample_prompts=("red paint", "blue paint"), sample_steps=2,
        sample_every_steps=2,
        save_every_epochs=1, export_on_save=True, seed=-1, tensorboard=True, log_every_steps=2,
    )  # fmt: skip
    run = train(s)
    recorded = read_settings(run.run_dir / "settings.toml")
    assert recorded == run.settings and recorded.seed >= 0
    assert [path.name for path in run.samples] == [
        "step-00000000.png",
        "step-00000002.png",
        "step-00000004.png",
    ]
    with Image.open(run.run_dir / "samples" / "step-00000002" / "01.png") as picture:
        assert picture.size == (32, 32) and picture.info["prompt"] == "red paint"
    assert (run.run_dir / "exports" / "step-00000002" / "model_index.json").is_file()
    assert list((run.run_dir / "tensorboard").glob("events.*"))
    assert [row["epoch"] for row in read_metrics(run.run_dir)] == [0, 0, 1, 1]


def test_resume_finds_the_newest_run_and_keeps_its_settings(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run in runs/"):
        find_run(None, {}, run_dir=None, resume=True)
    run = train(settings(out=tmp_path / "runs" / "a", max_steps=1))
    found, where = find_run(None, {"max_steps": 3}, run_dir=None, resume=True)
    assert where is not None and where.resolve() == run.run_dir
    assert found.max_steps == 3 and found.lr == run.settings.lr
    with pytest.raises(UsageError, match="is no run folder"):
        find_run(None, {}, run_dir=tmp_path, resume=True)


def test_a_config_beside_resume_changes_only_what_it_says(settings: Settings, tmp_path: Path) -> None:
    run = train(settings(out=tmp_path / "run", max_steps=1, flip_p=0.5))
    config = tmp_path / "more.toml"
    config.write_text("lr = 0.002\nsave_every_steps = 7\n", encoding="utf-8")
    found, where = find_run(config, {"save_every_steps": 9}, run_dir=run.run_dir, resume=True)
    assert where == run.run_dir and found == run.settings.but(lr=0.002, save_every_steps=9)
    with pytest.raises(BadInput, match=r"^--batch-size: 0: must be at least 1"):
        find_run(None, {"batch_size": 0}, run_dir=run.run_dir, resume=True)


def test_a_run_of_epochs_goes_on_for_steps_and_says_where_nothing_is_left(settings: Settings, tmp_path: Path) -> None:
    run = train(settings(max_steps=None, max_epochs=1))
    assert run.step == 2
    told: list[str] = []
    again = train(resume=run.run_dir, progress=Told(told))
    assert again.step == 2 and any("nothing is left to train: step 2 of 2" in line for line in told)
    longer, _ = find_run(None, {"max_steps": 3}, run_dir=run.run_dir, resume=True)
    assert (longer.max_steps, longer.max_epochs) == (3, None)
    assert train(longer, resume=run.run_dir, accept_changes=True).step == 3
    both, _ = find_run(None, {"max_steps": 9, "max_epochs": 3}, run_dir=run.run_dir, resume=True)
    assert (both.max_steps, both.max_epochs) == (9, 3)


def test_real_photos_train(model: Path, shared_data: Path, tmp_path: Path, settings: Settings) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:6]:
        shutil.copy(path, photos)
    run = train(settings(data_root=str(photos), caption_fallback="a photo", max_steps=2, batch_size=6))
    assert run.num_images == 12 and len(run.summary.buckets) > 1


def test_cached_uncached_and_killed_runs_give_the_same_losses_on_the_same_picks(
    settings: Settings, tmp_path: Path
) -> None:
    more = {"flip_p": 0.5, "crop": "random", "crops_per_image": 2, "masks": "alpha", "num_workers": 3}
    more |= {"max_steps": 24, "batch_size": 3, "save_every_steps": 3}

    def rows(run_dir: Path) -> list[tuple[float, ...]]:
        return [(row["step"], row["loss"], row["plain_loss"]) for row in read_metrics(run_dir)]

    killed = settings(out=tmp_path / "killed", **more)
    process = started(killed, tmp_path)
    wait_for(lambda: len(ck.checkpoints(tmp_path / "killed")) == 2, process)
    process.kill()
    process.wait()
    resumed = train(resume=tmp_path / "killed")
    cached = train(settings(out=tmp_path / "cached", **more))
    uncached = train(
        settings(out=tmp_path / "uncached", cache_latents=False, cache_text=False, **(more | {"num_workers": 1}))
    )
    assert resumed.resumed_from and rows(resumed.run_dir) == rows(cached.run_dir) == rows(uncached.run_dir)
    assert len({loss for _, loss, _ in rows(cached.run_dir)}) == 24


def test_a_mask_turns_the_loss_to_what_is_meant_and_a_changed_one_is_noticed(
    settings: Settings, pictures: Path, tmp_path: Path
) -> None:
    plain = train(settings(out=tmp_path / "plain", max_steps=1))
    for path in pictures.glob("*.png"):
        Image.linear_gradient("L").resize((40, 40)).save(path.with_name(f"{path.stem}-masklabel.png"))
    unasked = train(settings(out=tmp_path / "unasked", max_steps=1))
    assert unasked.first_loss == plain.first_loss and unasked.summary.num_images == 8
    masked = train(settings(out=tmp_path / "masked", max_steps=1, masks="file"))
    assert masked.first_loss != plain.first_loss
    white = pictures / "red paint_(0)-masklabel.png"
    Image.new("L", (40, 40), 255).save(white)
    with pytest.raises(StateError, match="the data changed"):
        train(resume=masked.run_dir)
    Image.new("L", (40, 30), 255).save(white)
    with pytest.raises(BadInput, match=r"red paint_\(0\).png: the mask is 40 x 30"):
        train(settings(out=tmp_path / "bad", masks="file"))
