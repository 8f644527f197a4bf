"""Adafactor: an optimizer whose memory is a row and a column a weight, one weight at a time where memory is short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edkit.data.random import integer

_TINY = 1e-30  # the paper's epsilon 1
_CLIP = 1.0  # the paper's d
_DECAY = 0.8  # the paper's beta 2 is 1 - t ** -0.8


class Adafactor(torch.optim.Optimizer):
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4: without momentum, at the rate given (no relative steps).

    A convolution's weight (O, I, h, w) is factored as the matrix (O, I h w). Weights in bf16 are moved in fp32 and
    rounded stochastically (`rounded`), drawn for (seed, the weight's place, its step): a small step is not lost, and
    a resumed run draws the same.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, weight_decay: float, seed: int) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": weight_decay})
        self._seed = seed
        every = [(p, group) for group in self.param_groups for p in group["params"]]
        self._place = {p: (place, group) for place, (p, group) in enumerate(every)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for parameter in self._place:
            if parameter.grad is not None:
                self.step_one(parameter)

    @torch.no_grad()
    def step_one(self, parameter: nn.Parameter) -> None:
        """Move one weight by its gradient; what other weights do makes no difference to it."""
        assert parameter.grad is not None
        place, group = self._place[parameter]
        state = self.state[parameter]
        state["step"] = step = state.get("step", 0) + 1
        kept = step**-_DECAY  # 1 - beta 2
        grad = parameter.grad.float()
        grad = grad.reshape(len(grad), -1) if grad.ndim > 1 else grad
        square = grad.square().add_(_TINY)
        if grad.ndim > 1:
            rows = _average(state, "rows", square.mean(dim=1), kept)  # (O,)
            columns = _average(state, "columns", square.mean(dim=0), kept)  # (I h w,)
            update = grad * (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()
        else:
            update = grad * _average(state, "squares", square, kept).rsqrt()
        update.div_((update.square().mean().sqrt() / _CLIP).clamp_(min=1.0))
        lr, decay = group["lr"], group["weight_decay"]
        wide = parameter.float()  # the weight itself where it is in fp32
        wide.mul_(1 - lr * decay).add_(update.view(parameter.shape), alpha=-lr)
        if wide.dtype != parameter.dtype:
            key = integer(1 << 62, self._seed, "rounding", place, step)
            parameter.copy_(rounded(wide, torch.Generator(parameter.device).manual_seed(key)))


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 as bf16, up or down by chance, so that the mean over all draws is the value itself.

    Gupta et al. 2015, "Deep learning with limited numerical precision", arXiv:1502.02551, section 3.
    """
    # bf16 is the upper half of fp32: the chance to carry into it is the size of the lower half
    bits = values.contiguous().view(torch.int32)
    chance = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    return (bits + chance).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _average(state: dict[str, Any], name: str, new: Tensor, kept: float) -> Tensor:
    """The moving average of that name, moved; the first one is `new` itself."""
    if name not in state:
        state[name] = torch.zeros_like(new)
    average: Tensor = state[name].lerp_(new, kept)
    return average
