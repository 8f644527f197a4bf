"""What an evaluation found: losses of both sides, pictures and their scores, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edkit.prove.intervals import Interval
from edkit.prove.verdict import Verdict

Side = Literal["training", "preservation", "class"]
SIDES: tuple[Side, ...] = ("training", "preservation", "class")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The stable loss of some images (or of all at some timesteps), before and after."""

    name: str
    num_images: int
    before: float
    after: float
    change: Interval  # of after against before, as a part of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """One side's stable losses."""

    root: Path
    held_out: bool  # False: the models may have seen these very images
    num_all: int  # images in the folder, of which `whole.num_images` were tried
    whole: Part
    folders: tuple[Part, ...]
    quarters: tuple[Part, ...]  # by timestep, the least noisy first
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prompt through both models, from the same noise; the scores say how well each shows it."""

    side: Side
    prompt: str
    before: Path
    after: Path
    scores: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well pictures of one side show their prompts, before and after: reader's accuracy, or CLIP's cosine."""

    side: Side
    before: float
    after: float
    change: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured, and what it means."""

    base: str
    tuned: str
    strength: float  # of a LoRA; 1 for a whole model
    models: tuple[str, str]  # SHA-256 of the weights that were compared
    family: str
    training: Losses
    preservation: Losses
    pairs: tuple[Pair, ...]
    judge: str  # who scored the pictures: "reader", a CLIP model's name, or "" for nobody
    scores: tuple[Score, ...]
    distance: tuple[float, float] | None  # KID of the pictures of ground truth's prompts, and its standard error
    verdicts: tuple[Verdict, ...]
    max_drift: float
    seed: int
    page: Path
    json: Path

    @property
    def drift(self) -> Interval:
        """The change of the stable loss on ground truth."""
        return self.preservation.whole.change

    def said(self, *words: str) -> Verdict | None:
        """The verdict that is one of the words."""
        return next((one for one in self.verdicts if one.word in words), None)
