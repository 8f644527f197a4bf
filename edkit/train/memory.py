"""How much of a device's memory a run takes at its fullest: computed, by running a step that has shapes and no numbers.

A twin of the model on torch's meta device goes through encoding, one forward and one backward pass, with the casts that
CUDA's autocast makes, while every block of memory is counted from its making to its end. What is not counted: the
library's own context, the allocator's gaps, and the convolutions' scratch room; `MARGIN` and `CONTEXT` stand for them.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edkit.train.cache import encode_batch_size
from edkit.train.families.base import DTYPES, Family
from edkit.train.settings import TrainSettings
from edkit.train.trainer import Trainer

MARGIN = 1.08  # gaps of the allocator, scratch room of the kernels
CONTEXT = 800 << 20  # bytes: the driver's context, and a desktop
_BLOCK = 512  # bytes: CUDA's allocator rounds up to it
_META = torch.device("meta")

# an optimizer's moments, in sizes of the weight that learns (bitsandbytes: two of 8 bits for one of 32, and scales)
_MOMENTS = {"adamw": 2.0, "adamw8bit": 0.52, "lion": 1.0, "prodigy": 4.0}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a run holds at its fullest moment, in bytes. Computed."""

    weights: int  # all that lies on the device
    moments: int  # the optimizer's
    average: int
    passing: int  # gradients, activations, casts: what a step makes and drops
    encoding: int  # all that encoding images, and then captions, takes before the first step

    @property
    def num_bytes(self) -> int:
        """The fullest moment of the whole run."""
        return max(self.weights + self.moments + self.average + self.passing, self.encoding)

    @property
    def needed_bytes(self) -> int:
        """What a device must have for it, with room for what is not computed."""
        return int(self.num_bytes * MARGIN) + CONTEXT


def peak(
    family: Family,
    s: TrainSettings,
    *,
    size: tuple[int, int],
    images: int,
    passes: int = 1,
    resting: frozenset[str] | None = None,
) -> Peak:
    """The fullest moment of a run with resolved settings; the family is left as it is.

    `size`: width and height of the largest bucket in pixels; `images`: the largest micro-batch; `passes`: how
    many of them a step has (with several, gradients stand beside the activations); `resting`: the parts whose
    outputs are cached, so that they leave the device (None: all that the settings let cache).
    """
    resting = _cacheable(family, s) if resting is None else resting
    trainer = on_meta(family, s, resting=resting)
    return Peak(
        weights=weight_bytes(trainer.family, resting=resting),
        moments=moment_bytes(trainer),
        average=sum(map(_num_bytes, trainer.parameters.values())) if s.ema_decay else 0,
        passing=passing_bytes(trainer, size=size, images=images, accumulating=passes > 1),
        encoding=before_bytes(trainer.family, s, size=size),
    )


def on_meta(family: Family, s: TrainSettings, *, resting: frozenset[str]) -> Trainer:
    """The trainer of a model's twin that has shapes and no numbers; made without touching a weight."""
    # a gradient scaler knows no meta device, and both halves take the same room; compiling may only take less
    quiet = s.but(precision="bf16" if s.precision == "fp16" else s.precision, compile=False)
    trainer = Trainer(quiet, _twin(family), _META, total_steps=1, where=Path(), resting=resting)
    if s.fused_backward and s.optimizer == "adafactor":
        for parameter in trainer.parameters.values():
            parameter.register_post_accumulate_grad_hook(_dropped)  # type: ignore[no-untyped-call]
    return trainer


def weight_bytes(family: Family, *, resting: frozenset[str]) -> int:
    """Weights that lie on the device while steps are made."""
    named = {**family.parts(), "vae": _vae(family)}
    there = [module for name, module in named.items() if name not in resting]
    return sum(map(_num_bytes, {id(t): t for m in there for t in _tensors(m)}.values()))


def moment_bytes(trainer: Trainer) -> int:
    """What the optimizer remembers of the weights that learn, and takes while it moves one of them."""
    learning = list(trainer.parameters.values())
    if trainer.s.optimizer != "adafactor":
        return int(_MOMENTS[trainer.s.optimizer] * sum(map(_num_bytes, learning)))
    return adafactor_bytes(learning)


def adafactor_bytes(learning: Sequence[Tensor]) -> int:
    """A row and a column of each matrix, in fp32; and four of the largest matrix, while it is moved."""
    kept = sum(len(p) + p.numel() // len(p) if p.ndim > 1 else p.numel() for p in learning)
    return 4 * kept + 16 * max(p.numel() for p in learning)


def passing_bytes(trainer: Trainer, *, size: tuple[int, int], images: int, accumulating: bool = False) -> int:
    """Gradients, activations, casts: what a step takes beside weights and moments at its fullest moment.

    `accumulating`: gradients of earlier micro-batches stand already.
    """
    twin, s = trainer.family, trainer.s
    width, height = (side // twin.vae_factor for side in size)
    tokens = {name: ids.to(_META) for name, ids in twin.tokenize(["a"] * images).items()}
    draws = torch.full((images,), 0.5, dtype=torch.float64)
    timesteps = twin.timesteps(draws, s.timestep_start, s.timestep_end or twin.num_timesteps).to(_META)
    sizes = torch.empty(images, 6, dtype=torch.long, device=_META)
    text = None
    if not s.train_text_encoder:
        with torch.no_grad(), _AutocastOfCuda(s.precision):
            text = twin.encode_text(tokens)
    with _counted(_modules(twin)) as live:
        for parameter in trainer.parameters.values():
            parameter.grad = torch.empty_like(parameter) if accumulating else None
        casts = _AutocastOfCuda(s.precision)
        with casts:
            noisy = torch.empty(images, twin.latent_channels, height, width, device=_META)
            said = twin.predict(noisy, timesteps, twin.encode_text(tokens) if text is None else text, sizes)
            loss = F.mse_loss(said.float(), torch.empty_like(noisy))
            casts.leave()
            _backward(loss)
    for parameter in trainer.parameters.values():
        parameter.grad = None
    return live.peak - live.start


def before_bytes(twin: Family, s: TrainSettings, *, size: tuple[int, int]) -> int:
    """What caching takes, weights counted, while nothing else is on the device: of images, then of captions."""
    texts = list(twin.parts().values())[1:]
    return max(encoding_bytes(twin, size=size), sum(_num_bytes(t) for m in texts for t in _tensors(m)))


def encoding_bytes(twin: Family, *, size: tuple[int, int]) -> int:
    """What the image encoder takes, its weights counted, while nothing else is on the device."""
    width, height = size
    vae = _vae(twin)
    with _counted([vae]) as live, torch.no_grad(), _AutocastOfCuda("fp32"):
        twin.encode_images(torch.empty(encode_batch_size(width, height), 3, height, width, device=_META))
    return live.peak


def _cacheable(family: Family, s: TrainSettings) -> frozenset[str]:
    """The parts that leave the device where captions come in no endless number of forms."""
    text = list(family.parts())[1:] if s.cache_text and not s.train_text_encoder and not s.shuffle_tags else []
    return frozenset([*text, *(["vae"] if s.cache_latents and (s.crop == "centre" or s.crops_per_image) else [])])


def _dropped(parameter: Tensor) -> None:
    parameter.grad = None


def _vae(family: Family) -> nn.Module:
    return next(m for m in _modules(family) if m not in family.parts().values())


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, which by itself would switch off the mode that makes the casts."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


# ---- a model without numbers


def _twin(family: Family) -> Family:
    """The same model on the meta device, made without touching a weight."""
    memo: dict[int, Any] = {}
    for module in _modules(family):
        for tensor in _tensors(module):
            empty = torch.empty_like(tensor, device=_META)
            kept = (
                nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            )
            memo[id(tensor)] = kept
    for value in _values(family):
        if not isinstance(value, nn.Module):
            memo[id(value)] = value  # tokenizers, configs, tables: shared
    return copy.deepcopy(family, memo)


def _values(family: Family) -> Iterator[Any]:
    for value in vars(family).values():
        yield from value.values() if isinstance(value, dict) else (value,)


def _modules(family: Family) -> list[nn.Module]:
    """Everything of a family that has weights: what trains, and its image encoder."""
    return [value for value in _values(family) if isinstance(value, nn.Module)]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ---- counting


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every block of memory from its first to its last use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.start = self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        num_bytes = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def gone(_: object) -> None:
            self.now -= num_bytes
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.see(one)
        return out


@contextmanager
def _counted(modules: list[nn.Module]) -> Iterator[_Live]:
    live = _Live()
    for module in modules:
        for tensor in _tensors(module):
            live.see(tensor)
    live.start = live.peak = live.now
    with live:
        yield live


class _AutocastOfCuda(TorchFunctionMode):
    """The casts of CUDA's autocast (torch's list of ops), where no CUDA is; attention as its fused kernels keep it."""

    _HALF = frozenset({F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__})
    _FULL = frozenset({F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, torch.rsqrt, Tensor.pow})

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._dtype = None if precision == "fp32" else DTYPES[precision]
        # autocast keeps its casts of weights that learn until it is left
        self._kept: dict[int, Tensor] | None = {}

    def leave(self) -> None:
        """The forward pass is over; backward may still run parts of it again, each under an autocast of its own."""
        self._kept = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.item, Tensor.__bool__):  # "is this mask all ones?", asked of what has no numbers
            return False
        attends = func is F.scaled_dot_product_attention
        if self._dtype is not None and (attends or func in self._HALF or func in self._FULL):
            dtype = torch.float32 if func in self._FULL else self._dtype
            args = tuple(self._cast(arg, dtype) for arg in args)
            kwargs = {name: self._cast(arg, dtype) for name, arg in kwargs.items()}
        if attends:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return _Attention.apply(named["query"], named["key"], named["value"])
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self._kept is None or not (value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in self._kept:
            self._kept[id(value)] = value.to(dtype)
        return self._kept[id(value)]


class _Attention(torch.autograd.Function):
    """What fused attention keeps for its backward pass: queries, keys, values, what it said, a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        said = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, said, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return said

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
