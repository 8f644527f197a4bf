"""Noise beyond the plain: each formula, and that it hangs on the pick's name alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate
from torch.testing import assert_close

from edkit.train.noise import normal, perturbed, timestep_draws, training_noise

NAMES = [(f"picture {i}", 0, 0) for i in range(256)]


def test_without_options_it_is_the_plain_noise() -> None:
    assert torch.equal(training_noise((4, 8, 8), 555, NAMES), normal((4, 8, 8), 555, "noise", NAMES))


def test_offset_noise_shifts_whole_channels_by_its_strength() -> None:
    plain, shifted = training_noise((4, 8, 8), 555, NAMES), training_noise((4, 8, 8), 555, NAMES, offset=0.1)
    shift = shifted - plain
    assert_close(shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift), rtol=0, atol=1e-6)
    shifts = shift.mean(dim=(2, 3))  # 1,024 draws
    assert abs(float(shifts.std()) - 0.1) < 0.01 and abs(float(shifts.mean())) < 0.01


def test_pyramid_noise_is_a_sum_of_coarser_levels_of_unit_deviation() -> None:
    names = NAMES[:3]
    noise = training_noise((2, 8, 12), 7, names, pyramid=0.6)
    wanted = normal((2, 8, 12), 7, "noise", names).double()
    for level in (1, 2, 3):
        coarse = normal((2, 8 >> level, 12 >> level), 7, f"pyramid noise {level}", names).double()
        wanted += 0.6**level * interpolate(coarse, (8, 12), mode="bilinear", align_corners=False)
    wanted /= wanted.std(dim=(1, 2, 3), keepdim=True, correction=0)
    assert_close(noise.double(), wanted, rtol=1e-5, atol=1e-5)
    assert_close(noise.std(dim=(1, 2, 3), correction=0), torch.ones(3))


def test_pyramid_noise_is_smoother_than_plain_noise() -> None:
    def roughness(noise: torch.Tensor) -> float:
        return float((noise[..., 1:] - noise[..., :-1]).square().mean())

    assert roughness(training_noise((4, 16, 16), 1, NAMES, pyramid=0.8)) < 0.8 * roughness(
        training_noise((4, 16, 16), 1, NAMES)
    )


def test_every_kind_of_noise_hangs_on_its_name_alone() -> None:
    options = {"offset": 0.1, "pyramid": 0.5}
    together = training_noise((4, 8, 8), 555, NAMES[:5], **options)
    assert torch.equal(together[3], training_noise((4, 8, 8), 555, NAMES[3:4], **options)[0])
    states = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(perturbed(states, 1.0, 555, NAMES[:5])[3], perturbed(states[3:4], 1.0, 555, NAMES[3:4])[0])


def test_text_states_are_perturbed_by_gamma_over_the_root_of_their_width() -> None:
    """Chen et al. 2024, section 5."""
    states = torch.zeros(64, 10, 256)
    noise = perturbed(states, 0.5, 555, NAMES[:64])
    assert abs(float(noise.std()) - 0.5 / 16) < 1e-3 and abs(float(noise.mean())) < 1e-3


def test_timesteps_are_drawn_where_the_papers_formulas_say() -> None:
    names = [("a picture", epoch, 0) for epoch in range(4000)]
    even = timestep_draws(names, 555)
    middle = timestep_draws(names, 555, distribution="logit_normal")
    noisy = timestep_draws(names, 555, shift=3.0)
    assert torch.equal(timestep_draws(names[7:9], 555), even[7:9])
    torch.testing.assert_close(noisy, 3 * even / (1 + 2 * even))
    for draws, quarter, three_quarters in (
        (even, 0.25, 0.75),
        (middle, 1 / (1 + math.exp(0.6745)), 1 / (1 + math.exp(-0.6745))),  # quartiles of the normal distribution
        (noisy, 0.5, 0.9),
    ):
        assert draws.min() > 0 and draws.max() < 1
        assert draws.quantile(0.25).item() == pytest.approx(quarter, abs=0.03)
        assert draws.quantile(0.75).item() == pytest.approx(three_quarters, abs=0.03)
