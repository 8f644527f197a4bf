"""The stable loss stands still while the weights do, and moves only for what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.plan import Plan, PlanSettings
from edkit.data.sample import Caption, Options, Sample
from edkit.train.cache import LatentCache, View
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.validate import FixedSample, fixed_sample, stable_losses

CPU = torch.device("cpu")
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
