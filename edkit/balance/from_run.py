"""What a run's own figures say about its balance: more ground truth where it forgot, none where that is no cure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from edkit.data.errors import BadInput

FIGURES = "choose.json"  # what `edkit choose` leaves in a run's folder
_MORE = 2  # times the picks of ground truth, at most, from one run to the next
_FULL = Fraction(1)  # ground truth picks for each other pick: beyond, it costs more steps than it keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a run ended."""

    step: int
    learned: float  # by how much of itself the loss on training images fell
    drift: float  # by how much of itself the loss on ground truth rose
    max_drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """By what to multiply the picks of ground truth (1: leave them), and why."""

    factor: Fraction
    reason: str


def read_figures(run: Path) -> Figures:
    """The figures of the last step that a run was measured at; BadInput where it wasn't."""
    path = run / FIGURES
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        last = max(said["candidates"], key=lambda one: (one["step"], one["strength"]))
        return Figures(
            step=int(last["step"]),
            learned=float(last["learned"]),
            drift=float(last["drift"]),
            max_drift=float(said["max_drift"]),
        )
    except FileNotFoundError:
        raise BadInput("the run was not measured", where=str(run), mend=f"edkit choose {run}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"has no figures of edkit choose: {error}", where=str(path)) from None


def advise(figures: Figures, *, kept: Fraction, others: Fraction) -> Advice:
    """What the figures say of the balance that stands: the picks an epoch of ground truth, and of all other folders.

    The rules are those of docs/balance.md; docs/preservation.md is where they come from.
    """
    said = f"drift {figures.drift:+.1%} at step {figures.step:,}, {figures.max_drift:.1%} allowed"
    if figures.learned <= 0:
        return Advice(factor=Fraction(1), reason=f"the run learned nothing ({said}): train longer, the balance stays")
    if figures.drift <= figures.max_drift:
        return Advice(factor=Fraction(1), reason=f"it learned and kept ({said}): the balance stays")
    if kept >= _FULL * others:
        return Advice(
            factor=Fraction(1),
            reason=f"{said}, with a ground truth pick for every other one already: train fewer steps, or slower",
        )
    return Advice(factor=min(Fraction(_MORE), _FULL * others / kept), reason=said)
