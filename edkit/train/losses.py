"""The loss of each image, and how much each timestep weighs; the formulas alone, checked in float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

LossType = Literal["mse", "huber", "mse_huber", "huber_mse"]
Prediction = Literal["epsilon", "v_prediction", "flow"]
"""What a denoiser says: the noise; v (Salimans and Ho 2022); or noise minus picture, the velocity of a straight path
from one to the other (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747)."""


def image_losses(
    prediction: Tensor,
    target: Tensor,
    *,
    loss_type: LossType = "mse",
    huber_delta: float = 1.0,
    noisiness: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """The mean loss of each image (N,), in fp32 or wider whatever the prediction's type.

    `pixel_weights` (N, 1, h, w) weigh each latent pixel's loss in that mean (`mask_weights`).

    `huber` is twice Huber's function (Huber 1964, "Robust estimation of a location parameter"): the square of
    an error up to `huber_delta`, and beyond it a line of slope 2 * `huber_delta`, so that small errors count
    as they do with `mse`. `mse_huber` goes evenly from the one at the first timestep to the other at the
    last, `huber_mse` the other way; `noisiness` (N,) says where between them a timestep lies, 0..1.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    said, wanted = prediction.to(wide), target.to(wide)
    if loss_type == "mse":
        each = (said - wanted).square()
    else:
        each = 2 * huber_loss(said, wanted, reduction="none", delta=huber_delta)
    if loss_type in ("mse_huber", "huber_mse"):
        assert noisiness is not None, "a loss that changes with the timestep needs to know it"
        share = noisiness.to(each).view(-1, *[1] * (each.ndim - 1))
        each = torch.lerp((said - wanted).square(), each, share if loss_type == "mse_huber" else 1 - share)
    if pixel_weights is not None:
        each = each * pixel_weights.to(each)
    return each.mean(dim=tuple(range(1, each.ndim)))


def mask_weights(mask: Tensor, *, unmasked: float, normalise: bool) -> Tensor:
    """Weights of the latent pixels (N, 1, h, w) from how much each is meant, 0..1: `unmasked` where nothing is meant,
    1 where all is, evenly between.

    Normalised, they are divided by their mean over the image: a mask says where an image's loss comes from, and not
    how much the image weighs beside others. A mask that is 0 everywhere, with `unmasked` 0, stays 0.
    """
    weights = unmasked + (1 - unmasked) * mask
    if not normalise:
        return weights
    mean = weights.mean(dim=(-2, -1), keepdim=True)
    return torch.where(mean > 0, weights / mean, weights)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: Prediction) -> Tensor:
    """Weights (N,) that stop easy timesteps from ruling: Hang et al. 2023, arXiv:2303.09556, section 3.4.

    A weight of min(snr, gamma) on the error in x0 is min(snr, gamma) / snr on the error in the noise,
    min(snr, gamma) / (snr + 1) on the error in v, and min(snr, gamma) / (sqrt(snr) + 1)^2 on the error in a flow's
    velocity, whose noise level s is 1 / (sqrt(snr) + 1) and whose x0 is x - s * velocity.
    """
    return torch.clamp(snr, max=gamma) / _per_x0(snr, prediction_type)


def debiased_weights(snr: Tensor, prediction_type: Prediction) -> Tensor:
    """Weights (N,) that let noisy timesteps, which decide the layout, count for more: Yu et al. 2023,
    "Debias the training of diffusion models", arXiv:2310.08442, equation 9.

    1 / sqrt(snr) on the squared error in the noise, which is snr times that in x0: sqrt(snr) on the latter, so
    sqrt(snr) / (snr + 1) on v's and sqrt(snr) / (sqrt(snr) + 1)^2 on a flow's velocity's.
    """
    if prediction_type == "epsilon":
        return 1 / snr.sqrt()
    return snr.sqrt() / _per_x0(snr, prediction_type)


def _per_x0(snr: Tensor, prediction_type: Prediction) -> Tensor:
    """(T,) the squared error in what the denoiser says, for one of 1 in x0."""
    if prediction_type == "epsilon":
        return snr
    return snr + 1 if prediction_type == "v_prediction" else (snr.sqrt() + 1) ** 2


def timestep_weights(
    snr: Tensor, prediction_type: Prediction, *, min_snr_gamma: float | None, debiased: bool
) -> Tensor | None:
    """(T,) weights in fp32 from the signal-to-noise ratio of every timestep, or None where all weigh alike."""
    if min_snr_gamma is not None:
        return min_snr_weights(snr, min_snr_gamma, prediction_type).float()
    return debiased_weights(snr, prediction_type).float() if debiased else None
