"""The formulas, in float64, against what the papers say."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from edkit.train.losses import image_losses, min_snr_weights

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


def test_min_snr_never_weighs_noise_prediction_above_one() -> None:
    weights = min_snr_weights(snrs(), GAMMA, "epsilon")
    assert weights.max() == 1 and bool((weights[snrs() <= GAMMA] == 1).all())
    assert_close(weights[-1], torch.tensor(GAMMA / 1000, dtype=torch.float64))


def test_an_images_loss_is_the_mean_of_its_own_squares_in_fp32() -> None:
    said, target = torch.randn(3, 4, 5, 6, dtype=torch.bfloat16), torch.randn(3, 4, 5, 6)
    losses = image_losses(said, target)
    assert losses.dtype == torch.float32
    assert_close(losses[1], ((said[1].double() - target[1].double()) ** 2).mean().float())
