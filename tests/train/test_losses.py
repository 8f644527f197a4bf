"""The formulas, in float64, against what the papers say."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from edkit.train.losses import debiased_weights, image_losses, mask_weights, min_snr_weights, timestep_weights

GAMMA = 5.0


def snrs() -> torch.Tensor:
    return torch.logspace(-3, 3, 61, dtype=torch.float64)


def test_min_snr_weighs_every_target_as_the_same_loss_on_x0() -> None:
    """Hang et al.: the loss on x0 weighs min(snr, gamma), whatever the model predicts."""
    generator = torch.Generator().manual_seed(0)
    for snr in snrs():
        alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        x0, noise, slip = torch.randn(3, 64, generator=generator, dtype=torch.float64)
        noisy = alpha * x0 + sigma * noise
        wanted = torch.clamp(snr, max=GAMMA)
        # epsilon: x0 = (noisy - sigma eps) / alpha
        said = noise + slip
        x0_error = ((noisy - sigma * said) / alpha - x0).square().mean()
        weight = min_snr_weights(snr[None], GAMMA, "epsilon")[0]
        assert_close(weight * (said - noise).square().mean(), wanted * x0_error, rtol=1e-9, atol=0)
        # v: x0 = alpha noisy - sigma v
        v = alpha * noise - sigma * x0
        said = v + slip
        x0_error = (alpha * noisy - sigma * said - x0).square().mean()
        weight = min_snr_weights(snr[None], GAMMA, "v_prediction")[0]
        assert_close(weight * (said - v).square().mean(), wanted * x0_error, rtol=1e-9, atol=0)
        # a flow of this snr: x0 = noisy - level * velocity
        level = 1 / (1 + snr.sqrt())
        velocity, said = noise - x0, noise - x0 + slip
        x0_error = ((1 - level) * x0 + level * noise - level * said - x0).square().mean()
        weight = min_snr_weights(snr[None], GAMMA, "flow")[0]
        assert_close(weight * (said - velocity).square().mean(), wanted * x0_error, rtol=1e-9, atol=0)


def test_min_snr_never_weighs_noise_prediction_above_one() -> None:
    weights = min_snr_weights(snrs(), GAMMA, "epsilon")
    assert weights.max() == 1 and bool((weights[snrs() <= GAMMA] == 1).all())
    assert_close(weights[-1], torch.tensor(GAMMA / 1000, dtype=torch.float64))


def test_an_images_loss_is_the_mean_of_its_own_squares_in_fp32() -> None:
    said, target = torch.randn(3, 4, 5, 6, dtype=torch.bfloat16), torch.randn(3, 4, 5, 6)
    losses = image_losses(said, target)
    assert losses.dtype == torch.float32
    assert_close(losses[1], ((said[1].double() - target[1].double()) ** 2).mean().float())


def test_debiased_weighs_every_target_as_the_same_loss_on_the_noise() -> None:
    """Yu et al.: the squared error in the noise weighs 1 / sqrt(snr), whatever the model predicts."""
    generator = torch.Generator().manual_seed(0)
    for snr in snrs():
        alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        x0, noise, slip = torch.randn(3, 64, generator=generator, dtype=torch.float64)
        noisy, v = alpha * x0 + sigma * noise, alpha * noise - sigma * x0
        said = v + slip
        # eps = sigma noisy + alpha v
        noise_error = (sigma * noisy + alpha * said - noise).square().mean()
        weight = debiased_weights(snr[None], "v_prediction")[0]
        assert_close(weight * (said - v).square().mean(), noise_error / snr.sqrt(), rtol=1e-9, atol=0)
        assert_close(debiased_weights(snr[None], "epsilon")[0], 1 / snr.sqrt())
        # a flow of this snr: eps = noisy + (1 - level) * velocity
        level = 1 / (1 + snr.sqrt())
        velocity, said = noise - x0, noise - x0 + slip
        noise_error = ((1 - level) * x0 + level * noise + (1 - level) * said - noise).square().mean()
        weight = debiased_weights(snr[None], "flow")[0]
        assert_close(weight * (said - velocity).square().mean(), noise_error / snr.sqrt(), rtol=1e-9, atol=0)


def test_no_weighting_is_none_and_each_weighting_is_chosen_by_name() -> None:
    assert timestep_weights(snrs(), "epsilon", min_snr_gamma=None, debiased=False) is None
    debiased = timestep_weights(snrs(), "epsilon", min_snr_gamma=None, debiased=True)
    capped = timestep_weights(snrs(), "v_prediction", min_snr_gamma=5.0, debiased=False)
    assert debiased is not None and capped is not None
    assert_close(debiased.double(), debiased_weights(snrs(), "epsilon"), rtol=1e-6, atol=0)
    assert_close(capped.double(), min_snr_weights(snrs(), 5.0, "v_prediction"), rtol=1e-6, atol=0)


def test_huber_is_the_square_of_small_errors_and_a_line_beyond() -> None:
    error = torch.tensor([0.0, 0.05, -0.1, 0.3, -2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    delta = 0.1
    losses = image_losses(error, torch.zeros_like(error), loss_type="huber", huber_delta=delta)
    size = error.abs().flatten()
    wanted = torch.where(size <= delta, size**2, 2 * delta * (size - delta / 2))
    assert losses.dtype == torch.float64
    assert_close(losses, wanted)


def test_the_mixed_losses_run_from_one_to_the_other_over_the_timesteps() -> None:
    said, target = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 3
    noisiness = torch.linspace(0, 1, 5, dtype=torch.float64)
    mse = image_losses(said, target)
    huber = image_losses(said, target, loss_type="huber")
    mixed = image_losses(said, target, loss_type="mse_huber", noisiness=noisiness)
    back = image_losses(said, target, loss_type="huber_mse", noisiness=noisiness)
    assert_close(mixed, (1 - noisiness) * mse + noisiness * huber)
    assert_close(back, (1 - noisiness) * huber + noisiness * mse)
    assert bool((huber < mse).all())


def test_a_mask_says_where_the_loss_comes_from_and_not_how_much_the_image_weighs() -> None:
    generator = torch.Generator().manual_seed(5)
    said, target = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=generator)
    weights = 0.2 + 0.8 * mask
    plain = image_losses(said, target, pixel_weights=mask_weights(mask, unmasked=0.2, normalise=False))
    assert_close(plain, ((said - target) ** 2 * weights).sum(dim=(1, 2, 3)) / (4 * 6 * 6))
    even = image_losses(said, target, pixel_weights=mask_weights(mask, unmasked=0.2, normalise=True))
    assert_close(even, ((said - target) ** 2 * weights).sum(dim=(1, 2, 3)) / (4 * weights.sum(dim=(1, 2, 3))))
    # an error that is the same everywhere is the loss itself, whatever the mask
    level = image_losses(target + 0.5, target, pixel_weights=mask_weights(mask, unmasked=0.2, normalise=True))
    assert_close(level, torch.full((3,), 0.25, dtype=torch.float64))


def test_masks_weigh_every_kind_of_loss_and_nothing_meant_is_no_loss() -> None:
    said, target = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 2
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    mask[0, :, :3] = 1
    weights = mask_weights(mask, unmasked=0.0, normalise=True)
    for kind in ("mse", "huber", "mse_huber", "huber_mse"):
        noisiness = torch.tensor([0.3, 0.9], dtype=torch.float64)
        half = image_losses(said, target, loss_type=kind, noisiness=noisiness, pixel_weights=weights)  # type: ignore[arg-type]
        alone = image_losses(said[:, :, :3], target[:, :, :3], loss_type=kind, noisiness=noisiness)  # type: ignore[arg-type]
        assert_close(half[0], alone[0])
        assert float(half[1]) == 0
