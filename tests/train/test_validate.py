"""The stable loss stands still while the weights do, and moves only for what was learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.errors import BadInput, UsageError
from edkit.data.plan import Plan, PlanSettings
from edkit.data.sample import Caption, Options, Sample
from edkit.train import checkpoint as ck
from edkit.train.cache import LatentCache, View
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.record import DATASET_FILE, read_record
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.validate import FixedSample, fixed_sample, stable_losses
from edkit.train.watch import LEDGER, read_measured

CPU = torch.device("cpu")
Settings = Callable[..., TrainSettings]
Patterns = Callable[..., object]
Latents = Callable[[Sequence[View]], list[Tensor]]


@contextmanager
def looking(root: Path, model: Path) -> Iterator[tuple[Family, list[FixedSample], Latents]]:
    """A loaded model and a folder's samples as validation sees them."""
    family = load_family(model)
    with Catalog.open(root, command="test") as catalog:
        dataset = read(root, catalog=catalog)
        ids = catalog.content_ids(dataset.paths)
    plan = Plan(dataset, PlanSettings(batch_size=1, resolution=family.resolution, bucket_step=family.bucket_step))
    samples = [
        fixed_sample(dataset.sample(i), content_id=ids[dataset.path(i)], bucket=plan.bucket(i))
        for i in range(len(dataset))
    ]
    cache = LatentCache(None, encode=family.encode_images, encoder_id=family.vae_hash)
    try:
        yield family, samples, cache.latents
    finally:
        cache.close()


def as_encoded(latent: Tensor) -> Tensor:
    """The same numbers with the strides that an encoder's output has: channels last."""
    return latent.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def test_the_same_weights_give_the_same_losses_to_the_bit(
    model: Path, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    root = draw_pictures(tmp_path / "mixed", 6, sizes=((40, 40), (64, 32)))
    with looking(root, model) as (family, samples, latents):
        family.parts()["unet"].train()
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = stable_losses(family, samples, latents, device=CPU)
        assert torch.equal(state, torch.get_rng_state()) and family.parts()["unet"].training
        torch.manual_seed(2)
        assert torch.equal(first.losses, stable_losses(family, samples, latents, device=CPU).losses)
        encoded = stable_losses(family, samples, lambda views: [as_encoded(one) for one in latents(views)], device=CPU)
        assert torch.equal(first.losses, encoded.losses)
        assert first.timesteps.tolist() == [125, 375, 625, 875]
        assert first.losses.shape == (6, 4) and bool((first.losses > 0).all())


def test_an_images_losses_do_not_depend_on_its_neighbours(
    model: Path, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    root = draw_pictures(tmp_path / "mixed", 6, sizes=((40, 40), (64, 32)))
    with looking(root, model) as (family, samples, latents):
        together = stable_losses(family, samples, latents, device=CPU).losses
        turned = stable_losses(family, samples[::-1], latents, device=CPU).losses
        assert torch.equal(together, turned.flip(0))
        alone = stable_losses(family, samples[2:3], latents, device=CPU).losses
        assert torch.equal(together[2:3], alone)
        split = stable_losses(family, samples, latents, device=CPU, rows=1).losses
        torch.testing.assert_close(split, together, rtol=1e-4, atol=1e-6)


def test_other_noise_weights_and_captions_give_other_losses(
    model: Path, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    with looking(draw_pictures(tmp_path / "two", 2), model) as (family, samples, latents):
        before = stable_losses(family, samples, latents, device=CPU)
        assert not torch.equal(before.losses, stable_losses(family, samples, latents, device=CPU, seed=1).losses)
        said = [replace(sample, caption="something else") for sample in samples]
        assert not torch.equal(before.losses, stable_losses(family, said, latents, device=CPU).losses)
        with pytest.raises(UsageError, match="--precision half: fp32, fp16, bf16"):
            stable_losses(family, samples, latents, device=CPU, precision="half")
        range_ = stable_losses(family, samples, latents, device=CPU, num_timesteps=2, timesteps=(500, 900))
        assert range_.timesteps.tolist() == [600, 800]
        with torch.no_grad():
            next(family.parts()["unet"].parameters()).add_(0.01)
        after = stable_losses(family, samples, latents, device=CPU)
        assert not torch.equal(before.losses, after.losses) and before.mean != after.mean


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_every_family_is_measured(
    models: Callable[[str], Path], name: str, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    with looking(draw_pictures(tmp_path / "two", 2), models(name)) as (family, samples, latents):
        found = stable_losses(family, samples, latents, device=CPU)
        assert found.losses.shape == (2, 4) and bool(torch.isfinite(found.losses).all())


def test_a_fixed_sample_leaves_nothing_to_chance() -> None:
    options = Options(shuffle_tags=True, flip_p=1.0, cond_dropout=1.0)
    sample = Sample(
        key="a.png", path=Path("photos/a.png"), caption=Caption(text="rex, a dog, brown, wet"), options=options,
        sources=(), width=100, height=50,
    )  # fmt: skip
    fixed = fixed_sample(sample, content_id="0" * 64, bucket=(64, 64))
    assert fixed.caption == "rex, a dog, brown, wet"
    assert (fixed.view.crop.left, fixed.view.crop.flip) == (32, False)
    assert fixed.sizes == (50, 100, 0, 32, 64, 64)


# ---- in a run


def test_held_out_images_never_train_and_stand_in_run_and_export(
    settings: Settings, tmp_path: Path, patterns: Patterns
) -> None:
    patterns(tmp_path / "photos" / "a", 8)
    patterns(tmp_path / "photos" / "b", 8, seed=1)
    run = train(settings(data_root=str(tmp_path / "photos"), validate_share=0.25, step_ledger=True, max_epochs=2))
    record = read_record(run.run_dir / DATASET_FILE)
    held = set(record.held_out().values())
    assert len(held) == 4 == run.summary.num_held_out and run.summary.num_images == 12
    trained = {json.loads(line)["file"] for line in (run.run_dir / LEDGER).read_text("utf-8").splitlines()}
    assert len(trained) == 12 and not trained & held
    assert run.export is not None
    assert (run.export / DATASET_FILE).read_bytes() == (run.run_dir / DATASET_FILE).read_bytes()
    first, *_, last = read_measured(run.run_dir)
    assert (first["step"], last["step"]) == (0, 6)
    assert {"val/loss", "val/folder/a", "val/folder/b", "val/quarter/4"} <= set(first)
    assert first["val/loss"] != last["val/loss"]
    # more images come: what was held out stays out, what trained goes on to
    patterns(tmp_path / "photos" / "c", 6, seed=2)
    train(run.settings.but(max_steps=8, max_epochs=9), resume=run.run_dir, accept_changes=True)
    assert set(read_record(run.run_dir / DATASET_FILE).held_out().values()) == held


def test_folders_held_out_by_hand_and_named_sets_are_measured(
    settings: Settings, tmp_path: Path, patterns: Patterns
) -> None:
    patterns(tmp_path / "photos" / "a", 6)
    patterns(tmp_path / "photos" / "kept", 2, seed=1)
    patterns(tmp_path / "santa", 2, seed=2)
    s = settings(
        data_root=str(tmp_path / "photos"), validate_root=str(tmp_path / "photos" / "kept"),
        validate_sets={"santa suit": str(tmp_path / "santa")}, step_ledger=True, validate_every_steps=4,
    )  # fmt: skip
    run = train(s)
    trained = {json.loads(line)["file"] for line in (run.run_dir / LEDGER).read_text("utf-8").splitlines()}
    assert len(trained) == 6 and not any(key.startswith("kept") for key in trained)
    rows = read_measured(run.run_dir)
    assert [row["step"] for row in rows] == [0, 4, 6]
    assert all({"val/loss", "val-santa suit/loss", "val-santa suit/folder/."} <= set(row) for row in rows)


def test_validation_changes_nothing_of_the_training(settings: Settings, tmp_path: Path) -> None:
    more = {"ema_decay": 0.9, "train_text_encoder": True, "method": "lora", "lora_dropout": 0.2}
    plain = train(settings(out=tmp_path / "plain", **more))
    measured = train(settings(out=tmp_path / "measured", validate_train_share=0.5, validate_every_steps=1, **more))
    assert plain.checkpoint is not None and measured.checkpoint is not None
    for name in ("weights", "optimizer", "ema"):
        one, other = (ck.load_tensors(run.checkpoint, name) for run in (plain, measured) if run.checkpoint)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_dry_run_holds_nothing_out(settings: Settings, tmp_path: Path, patterns: Patterns) -> None:
    patterns(tmp_path / "photos", 8)
    run = train(settings(data_root=str(tmp_path / "photos"), validate_share=0.25), dry_run=True)
    assert run.summary.num_images == 8 and not (tmp_path / "run").exists()


def test_a_broken_held_out_image_is_left_out_like_any_other(
    settings: Settings, tmp_path: Path, patterns: Patterns
) -> None:
    patterns(tmp_path / "photos", 6)
    patterns(tmp_path / "kept", 2, seed=1)
    whole = (tmp_path / "kept" / "pattern a_(0).png").read_bytes()
    (tmp_path / "kept" / "pattern a_(0).png").write_bytes(whole[: len(whole) // 2])
    s = settings(data_root=str(tmp_path / "photos"), validate_root=str(tmp_path / "kept"), max_steps=1)
    with pytest.raises(BadInput, match="pattern a"):
        train(s)
    run = train(s.but(leave_out_broken=True))
    assert run.summary.num_held_out == 1 and any("pattern a" in line for line in run.summary.left_out)
