"""The rules that turn measurements into words; docs/evaluate.md tells them to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edkit.prove.intervals import Interval

MAX_DRIFT = 0.05  # the rise of the loss on ground truth up to which a model counts as kept
BLED_READER = 0.1  # of the class's pictures that show the subject, more than before
BLED_CLIP = 0.25  # of the way from the class's pictures to the training images

Word = Literal["learned", "not learned", "kept", "forgot", "unclear", "bled", "not bled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One word, and the sentence that gives its reason."""

    word: Word
    good: bool | None
    says: str


def learned(change: Interval) -> Verdict:
    """Learned: the loss on the training set's images fell, and the whole interval lies below zero."""
    if change.high < 0:
        return Verdict(word="learned", good=True, says=f"the loss on training images fell by {_range(change, -1)}")
    return Verdict(
        word="not learned", good=False, says=f"the loss on training images did not surely fall: {_range(change, 1)}"
    )


def kept(change: Interval, *, max_drift: float = MAX_DRIFT) -> Verdict:
    """Kept: the loss on ground truth rose by no more than `max_drift`; forgot: it rose by more, and surely rose."""
    said = f"the loss on ground truth moved by {_range(change, 1)}; {max_drift:.1%} is allowed"
    if change.value <= max_drift:
        return Verdict(word="kept", good=True, says=said)
    if change.low > 0:
        return Verdict(word="forgot", good=False, says=said)
    return Verdict(word="unclear", good=None, says=f"{said}, and the images are too few to tell")


def bled(change: Interval, *, limit: float, what: str) -> Verdict:
    """Bled: pictures of the class alone came nearer to the subject by at least `limit`, and surely came nearer."""
    said = f"{what}: {_range(change, 1)}"
    if change.value >= limit and change.low > 0:
        return Verdict(word="bled", good=False, says=said)
    return Verdict(word="not bled", good=True, says=said)


def _range(change: Interval, sign: int) -> str:
    value, ends = sign * change.value, sorted((sign * change.low, sign * change.high))
    form = "+.1%" if sign > 0 else ".1%"
    return f"{value:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"
