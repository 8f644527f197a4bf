"""Settings that fit a machine: one small row for each family, method and size of memory.

A preset says how a model is held and how much of a batch goes at once, never what is learned: beside the rounding, only
the optimizer changes a result, where AdamW's moments have no room. Everything a user says is stronger.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from edkit.data.errors import BadInput, UsageError
from edkit.measure.machine import Machine, look
from edkit.train.settings import TrainSettings

METHODS: tuple[Literal["full", "lora"], ...] = ("full", "lora")
FIGURE = "computed 30 November 2026"  # where the peaks come from: benchmarks/preset_memory.md
GIB = 1 << 30
_REAL = GIB  # bytes of weights from which a model is of the size the presets are made for
_MARGIN = 1.08  # as memory.py's, which wants torch
_HALVES = {"sd1": 1.6, "sd2": 1.6, "sdxl": 4.8, "klein": 7.2}  # GiB: what the denoiser weighs in bf16, as in FIGURE
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How one family trains by one method in one size of memory, at the family's own resolution."""

    family: str
    method: Literal["full", "lora"]
    gib: int  # of GPU memory; 0: for the processor, in the machine's own memory
    peak_gib: float  # the run's fullest moment, without context and margin (`memory.Peak.needed_bytes`)
    needed_gib: float  # with both
    images: int  # at once
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    checkpointing: bool = False
    optimizer: str = "adamw"
    weights: Literal["fp32", "bf16"] = "fp32"
    fused: bool = False

    @property
    def name(self) -> str:
        """As `--preset` takes it: `sdxl-lora-12gb`."""
        return f"{self.family}-{self.method}-{f'{self.gib}gb' if self.gib else 'cpu'}"

    def settings(self) -> dict[str, Any]:
        """What it sets."""
        return {
            "method": self.method,
            "precision": self.precision,
            "micro_batch_size": self.images,
            "gradient_checkpointing": self.checkpointing,
            "optimizer": self.optimizer,
            "weights_precision": self.weights,
            "fused_backward": self.fused,
            # with several passes a step their gradients would stand, and fusing would free none
            **({"batch_size": self.images} if self.fused else {}),
        }

    def under(self, said: Mapping[str, Any], *, bf16: bool) -> Preset:
        """The preset less what does not go with the settings said, or with a GPU that does not compute in bf16.

        What it then needs is bounded as in benchmarks/preset_memory.md: a gradient of every weight once more where
        fusing goes; where weights go to fp32, their other half, and in full training the gradients' and autocast's.
        """
        full, adafactor = self.method == "full", said.get("optimizer", self.optimizer) == "adafactor"
        precision = said.get("precision", "fp16" if self.gib and not bf16 else self.precision)
        averaged, clipped = said.get("ema_decay") is not None, bool(said.get("clip_grad_norm"))
        fused = self.fused and adafactor and precision != "fp16" and not clipped
        halves = self.weights == "bf16" and precision == "bf16" and (not full or (adafactor and not averaged))
        less = replace(self, precision=precision, fused=fused, weights="bf16" if halves else "fp32")
        if less.weights != self.weights and not full and not self.checkpointing:
            return replace(less, checkpointing=True)  # which saves more than the weights' other half takes
        more = ((self.fused - fused) + (less.weights != self.weights) * (3 if full else 1)) * _HALVES[self.family]
        needed = round(self.needed_gib + more * _MARGIN, 1)
        return replace(less, peak_gib=round(self.peak_gib + more, 1), needed_gib=needed)


_Row = tuple[str, Literal["full", "lora"], int, int, bool, str, Literal["fp32", "bf16"], bool, float, float]
# GiB (0: the processor), images at once, checkpointing, optimizer, weights, fused; peak and need in GiB
_TABLE: tuple[_Row, ...] = (
    ("sd1", "full", 8, 4, True, "adafactor", "bf16", False, 4.7, 5.9),
    ("sd1", "full", 12, 4, True, "adafactor", "fp32", False, 9.5, 11.1),
    ("sd1", "full", 16, 4, True, "adafactor", "fp32", False, 9.5, 11.1),
    ("sd1", "full", 24, 4, False, "adamw", "fp32", False, 20.7, 23.2),
    ("sd1", "full", 48, 4, False, "adamw", "fp32", False, 20.7, 23.2),
    ("sd1", "full", 0, 1, True, "adamw", "fp32", False, 14.1, 16.0),
    ("sd1", "lora", 8, 4, False, "adamw", "bf16", False, 6.0, 7.3),
    ("sd1", "lora", 12, 4, False, "adamw", "bf16", False, 6.0, 7.3),
    ("sd1", "lora", 16, 4, False, "adamw", "bf16", False, 6.0, 7.3),
    ("sd1", "lora", 24, 4, False, "adamw", "bf16", False, 6.0, 7.3),
    ("sd1", "lora", 48, 4, False, "adamw", "bf16", False, 6.0, 7.3),
    ("sd1", "lora", 0, 1, True, "adamw", "fp32", False, 4.5, 5.7),
    ("sd2", "full", 8, 4, True, "adafactor", "bf16", False, 6.1, 7.3),
    ("sd2", "full", 12, 2, True, "adafactor", "fp32", False, 9.7, 11.3),
    ("sd2", "full", 16, 4, True, "adafactor", "fp32", False, 10.9, 12.6),
    ("sd2", "full", 24, 4, True, "adamw", "fp32", False, 16.9, 19.1),
    ("sd2", "full", 48, 4, False, "adamw", "fp32", False, 28.2, 31.2),
    ("sd2", "full", 0, 1, True, "adamw", "fp32", False, 15.7, 17.7),
    ("sd2", "lora", 8, 4, True, "adamw", "bf16", False, 3.6, 4.7),
    ("sd2", "lora", 12, 4, True, "adamw", "bf16", False, 3.6, 4.7),
    ("sd2", "lora", 16, 4, False, "adamw", "bf16", False, 11.1, 12.7),
    ("sd2", "lora", 24, 4, False, "adamw", "bf16", False, 11.1, 12.7),
    ("sd2", "lora", 48, 4, False, "adamw", "bf16", False, 11.1, 12.7),
    ("sd2", "lora", 0, 1, True, "adamw", "fp32", False, 5.8, 7.1),
    ("sdxl", "full", 8, 1, True, "adafactor", "bf16", True, 6.1, 7.3),
    ("sdxl", "full", 12, 4, True, "adafactor", "bf16", True, 8.6, 10.0),
    ("sdxl", "full", 16, 4, True, "adafactor", "bf16", False, 13.3, 15.2),
    ("sdxl", "full", 24, 4, True, "adafactor", "bf16", False, 13.3, 15.2),
    ("sdxl", "full", 48, 4, True, "adafactor", "fp32", False, 27.7, 30.7),
    ("sdxl", "full", 0, 1, True, "adamw", "fp32", False, 43.3, 47.5),
    ("sdxl", "lora", 8, 2, True, "adamw", "bf16", False, 6.5, 7.8),
    ("sdxl", "lora", 12, 4, True, "adamw", "bf16", False, 7.8, 9.2),
    ("sdxl", "lora", 16, 4, True, "adamw", "bf16", False, 7.8, 9.2),
    ("sdxl", "lora", 24, 4, True, "adamw", "bf16", False, 7.8, 9.2),
    ("sdxl", "lora", 48, 4, False, "adamw", "bf16", False, 34.1, 37.6),
    ("sdxl", "lora", 0, 1, True, "adamw", "fp32", False, 14.6, 16.6),
    ("klein", "full", 24, 2, True, "adafactor", "bf16", False, 19.6, 21.9),
    ("klein", "full", 48, 4, True, "adafactor", "fp32", False, 42.2, 46.4),
    ("klein", "full", 0, 1, True, "adamw", "fp32", False, 76.4, 83.3),
    ("klein", "lora", 24, 4, True, "adamw", "bf16", False, 15.1, 17.1),
    ("klein", "lora", 48, 4, True, "adamw", "bf16", False, 15.1, 17.1),
    ("klein", "lora", 0, 1, True, "adamw", "fp32", False, 33.2, 36.6),
)
_FIELDS = (
    "family",
    "method",
    "gib",
    "images",
    "checkpointing",
    "optimizer",
    "weights",
    "fused",
    "peak_gib",
    "needed_gib",
)

PRESETS = tuple(
    Preset(precision="bf16" if row[2] else "fp32", **dict(zip(_FIELDS, row, strict=True)))  # type: ignore[arg-type]
    for row in _TABLE
)
"""By family and method, the smallest memory first and the processor last."""


def named(name: str) -> Preset:
    """The preset of that name; UsageError with the nearest one."""
    found = next((preset for preset in PRESETS if preset.name == name), None)
    if found is None:
        names = [preset.name for preset in PRESETS]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]}?" if near else f"for example {names[0]}"
        raise UsageError(f"there is no preset {name!r}", where="--preset", mend=f"{mend} edkit doctor names what fits")
    return found


def fitting(machine: Machine, family: str, method: str, said: Mapping[str, Any] = _NOTHING) -> Preset | None:
    """The roomiest preset that the machine's first GPU holds (its processor, where torch uses no GPU), under what was
    said.
    """
    of = _under(machine, family, method, said)
    if machine.gpus:
        # a card sold with 24 GB says 23.7: what the driver keeps is part of the presets' own margin
        room = machine.gpus[0].memory_bytes / GIB + 0.5
        held = [preset for preset in of if 0 < preset.gib <= room and preset.needed_gib <= room]
        return max(held, key=lambda preset: preset.gib, default=None)
    return next((p for p in of if p.gib == 0 and p.needed_gib * GIB <= machine.memory_bytes), None)


def smallest(machine: Machine, family: str, method: str, said: Mapping[str, Any] = _NOTHING) -> Preset:
    """The preset of a family and method that needs least of the kind of memory this machine trains in."""
    of = _under(machine, family, method, said)
    return min((p for p in of if (p.gib > 0) == bool(machine.gpus)), key=lambda preset: preset.needed_gib)


def _under(machine: Machine, family: str, method: str, said: Mapping[str, Any]) -> list[Preset]:
    of = [preset for preset in PRESETS if (preset.family, preset.method) == (family, method)]
    return [preset.under(said, bf16=_bf16(machine)) for preset in of]


def _bf16(machine: Machine) -> bool:
    return not machine.gpus or machine.gpus[0].bf16


def over_preset(
    said: Mapping[str, Any], *, name: str | None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """What was said, over the preset named, or (None) over the one that this machine takes for the model said.

    "none" takes none. Small models (nano, tiny ones) need none, and a model that does not load is told later.
    """
    method = said.get("method", TrainSettings.method)
    if name == "none":
        return dict(said)
    if name is not None:
        chosen, why = named(name).under(said, bf16=_bf16(look())), "as asked"
        if said.get("method", chosen.method) != chosen.method:
            raise UsageError(f"{name} is for {chosen.method}, and the method is {method}", where="--preset")
    else:
        family = published_family(str(said["model"]))
        if family is None or not any((p.family, p.method) == (family, method) for p in PRESETS):
            return dict(said)
        machine = look()
        on = machine.gpus[0].name if machine.gpus else "the processor"
        found = fitting(machine, family, method, said)
        if found is None:
            least = smallest(machine, family, method, said)
            say(f"no preset fits {on}: the smallest, {least.name}, needs {least.needed_gib:.1f} GiB ({FIGURE})")
            return dict(said)
        chosen, why = found, f"for {on}; --preset NAME takes another, --preset none takes none"
    mine = chosen.settings()
    used = {key: value for key, value in mine.items() if key not in said and value != getattr(TrainSettings, key)}
    text = ", ".join(f"{key} {str(value).lower()}" for key, value in used.items()) or "nothing that was not said"
    own = "ema_decay" not in said and all(said.get(key, value) == value for key, value in mine.items())
    need = f"; it needs {chosen.needed_gib:.1f} GiB ({FIGURE})" if own else ""  # else the run itself computes it
    say(f"preset {chosen.name} ({why}): {text}{need}")
    return mine | dict(said)


def published_family(model: str) -> str | None:
    """The family of a model that is as large as the published ones; None for small ones and what can't be read."""
    from edkit.train.families import find_model, read_index
    from edkit.train.families.registry import REGISTRY, module_of

    try:
        found = find_model(model)
        files = [found] if found.is_file() else list(found.rglob("*.safetensors"))
        if sum(file.stat().st_size for file in files) < _REAL:
            return None
        pipeline = str(read_index(found).get("_class_name"))
    except (BadInput, OSError):
        return None  # loading the model tells it better
    return next((name for name in REGISTRY if pipeline in module_of(name).PIPELINES), None)
