"""The loss of each image, and how much each timestep weighs; the formulas alone, checked in float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def image_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image (N,), in fp32 whatever the prediction's type."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: Literal["epsilon", "v_prediction"]) -> Tensor:
    """Weights (N,) that stop easy timesteps from ruling: Hang et al. 2023, arXiv:2303.09556, section 3.4.

    A weight of min(snr, gamma) on the error in x0 is min(snr, gamma) / snr on the error in the noise, and
    min(snr, gamma) / (snr + 1) on the error in v.
    """
    capped = torch.clamp(snr, max=gamma)
    return capped / snr if prediction_type == "epsilon" else capped / (snr + 1)
