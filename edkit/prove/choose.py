"""Which of a run's models to use: all of them held against the base, and one sentence that says which and why."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.data import atomic
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed
from edkit.prove.evaluate import Look, compare
from edkit.prove.model import Drawing, is_lora
from edkit.prove.page import which
from edkit.prove.result import Evaluation
from edkit.prove.verdict import MAX_DRIFT

if TYPE_CHECKING:
    from edkit.page.html import Html

STRENGTHS = (0.6, 0.8, 1.0)  # of a LoRA, where none are named
_ENOUGH = 0.5  # of what the best learner learned: less is no choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model of the run, at one strength."""

    model: Path
    step: int
    strength: float
    learned: float  # by how much of itself the loss on training images fell
    drift: float  # by how much of itself the loss on ground truth rose
    learned_range: tuple[float, float]  # in 95 of 100 such measurements
    drift_range: tuple[float, float]
    kept: bool
    bled: bool | None  # None: not judged
    subject: float | None  # score of pictures for training captions: reader's accuracy, or CLIP's cosine
    world: float | None  # the same for ground truth's

    @property
    def name(self) -> str:
        """`step 1,200 at strength 0.8`."""
        return f"step {self.step:,}" + (f" at strength {self.strength:g}" if self.strength != 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Every candidate's scores, and the one to use."""

    run_dir: Path
    base: str
    candidates: tuple[Candidate, ...]
    best: Candidate
    says: str
    tried_on: tuple[str, str]  # which training images, and which of ground truth
    max_drift: float
    seed: int
    page: Path
    json: Path


def choose(
    run: Path,
    *,
    preservation: Path | None = None,
    train: Path | None = None,
    class_prompts: Sequence[str] = (),
    strengths: Sequence[float] = (),
    max_drift: float = MAX_DRIFT,
    num_images: int = 50,
    num_pictures: int = 0,
    steps: int = 25,
    guidance: float = 5.0,
    clip: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    seed: int = 555,
    progress: Progress = SILENT,
) -> Choice:
    """Score every export of a run (of a LoRA: at several strengths), and write `choose.html` into its folder.

    `train` and `preservation` are by default what the run trained on and its `preservation_data`. `num_pictures`
    of each side are drawn and judged where a CLIP model is named or the model is nano. A seed of -1 draws one. Raises
    UsageError, BadInput.
    """
    from edkit.train.settings import SETTINGS_FILE, read_settings

    if not (run / SETTINGS_FILE).is_file():
        raise UsageError(f"{run} is no run folder: it has no {SETTINGS_FILE}")
    settings = read_settings(run / SETTINGS_FILE)
    if train is None and isinstance(settings.data_root, str):
        train = Path(settings.data_root)
    if preservation is None and isinstance(settings.preservation_data, str):
        preservation = Path(settings.preservation_data)
    if train is None or preservation is None:
        missing = "--train" if train is None else "--preservation"
        raise UsageError(f"the run does not say what was to be {'learned' if train is None else 'kept'}", mend=missing)
    if num_pictures == 0 and (class_prompts or clip):
        flag = "--class-prompt" if class_prompts else "--clip"
        raise UsageError(f"{flag} judges pictures, and none are drawn", mend="--num-pictures 12")
    models = exports(run)
    if not models:
        raise BadInput("has no export to choose from", where=str(run), mend="train with export_on_save")
    tried = [
        (f"step {step:,}", path, strength)
        for step, path in models
        for strength in (tuple(strengths) or STRENGTHS if is_lora(path) else (1.0,))
    ]
    look = Look(
        train=train,
        preservation=preservation,
        class_prompts=tuple(class_prompts),
        num_images=num_images,
        num_pictures=num_pictures,
        drawing=Drawing(steps=steps, guidance=guidance),
        clip=clip,
        pretrained=pretrained,
        seed=draw_seed() if seed == -1 else seed,
    )
    out = run / "choose.html"
    found = compare(settings.model, tried, look, out=out, max_drift=max_drift, device=device, progress=progress)
    step_of = {path: step for step, path in models}
    candidates = tuple(
        _candidate(one, step_of[Path(path)], Path(path)) for one, (_, path, _) in zip(found, tried, strict=True)
    )
    best = pick(candidates, max_drift=max_drift)
    choice = Choice(
        run_dir=run,
        base=settings.model,
        candidates=candidates,
        best=best,
        says=sentence(candidates, best, max_drift=max_drift, judge=found[0].judge),
        tried_on=(f"learned: {which(found[0].training)}", f"drift: {which(found[0].preservation)}"),
        max_drift=max_drift,
        seed=look.seed,
        page=out,
        json=out.with_suffix(".json"),
    )
    atomic.write_text(choice.json, json.dumps(asdict(choice), indent=1, ensure_ascii=False, default=str) + "\n")
    _write_page(choice)
    return choice


def exports(run: Path) -> list[tuple[int, Path]]:
    """The models a run left, by step: those of its saves and the one at its end (which may be the last save's)."""
    found: dict[int, Path] = {}
    for path in sorted((run / "exports").glob("step-*")):
        if match := re.fullmatch(r"step-(\d+)", path.name):
            found[int(match[1])] = path
    if (run / "export").is_dir():
        found.setdefault(_step_of(run / "export"), run / "export")
    return sorted(found.items())


def _step_of(export: Path) -> int:
    """The step that its weights name: the run may have gone on since, and not have ended."""
    from edkit.train.verify import metadata

    step = metadata(export).get("edkit_step", "")
    if not step.isdecimal():
        raise BadInput("does not say its step", where=str(export))
    return int(step)


def pick(candidates: Sequence[Candidate], *, max_drift: float) -> Candidate:
    """Of those that kept what they knew and did not bleed, the one that learned most.

    Where there is none: of those that learned at least half as much as the best learner, the one that drifted least.
    """
    good = [one for one in candidates if one.drift <= max_drift and not one.bled and one.learned > 0]
    if good:
        return max(good, key=lambda one: (one.learned, -one.step))
    most = max(one.learned for one in candidates)
    enough = [one for one in candidates if one.learned >= (_ENOUGH * most if most > 0 else most)]
    return min(enough, key=lambda one: (one.drift, one.step))


def sentence(candidates: Sequence[Candidate], best: Candidate, *, max_drift: float, judge: str) -> str:
    """Which to use and why, and what is wrong with what comes after it."""
    moved = f"fell by {best.learned:.0%}" if best.learned > 0 else f"rose by {-best.learned:.0%}"
    said = f"{best.name}: the loss on training images {moved}, on ground truth it moved by {best.drift:+.1%}"
    if judge == "reader" and best.subject is not None and best.world is not None:
        said = f"{best.name}: subject {best.subject:.0%}, old world {best.world:.0%} (drift {best.drift:+.1%})"
    if best.learned <= 0:
        return f"none of {len(candidates)} learned anything; {said}"
    if best.bled:
        clear = f"none that learned kept the drift below {max_drift:.1%} and its class clear"
        return f"{said}; its class becomes the subject, and {clear}"
    if best.drift > max_drift:
        return f"{said}; none of {len(candidates)} kept the drift below {max_drift:.1%}, and this is the least bad"
    later = [one for one in candidates if one.learned > best.learned]
    for one in sorted(later, key=lambda one: one.drift):
        why = "its class becomes the subject" if one.bled and one.drift <= max_drift else f"drift {one.drift:+.1%}"
        return f"{said}; {one.name} learned more, but {why}"
    return f"{said}; no other learned more"


def headline(best: Candidate) -> str:
    """`Use step 800`, where that learned, kept and did not bleed."""
    good = best.learned > 0 and best.kept and not best.bled
    return f"Use {best.name}" if good else f"At best, {best.name}"


def _candidate(one: Evaluation, step: int, path: Path) -> Candidate:
    scores = {score.side: score.after for score in one.scores}
    judged = one.said("bled", "not bled")
    fell, rose = one.training.whole.change, one.drift
    return Candidate(
        model=path,
        step=step,
        strength=one.strength,
        learned=-fell.value,
        drift=rose.value,
        learned_range=(-fell.high, -fell.low),
        drift_range=(rose.low, rose.high),
        kept=one.said("kept") is not None,
        bled=None if judged is None else judged.word == "bled",
        subject=scores.get("training"),
        world=scores.get("preservation"),
    )


def _write_page(choice: Choice) -> Path:
    from edkit import __version__
    from edkit.page import layout

    best = choice.best
    return layout.write(
        choice.page,
        layout.render(
            headline(best),
            _trade_off(choice),
            _curves(choice),
            _table(choice),
            above="edkit choose",
            lead=f"{choice.says}.",
            footer=f"Made by edkit {__version__}. The model: {best.model}",
        ),
    )


def _trade_off(choice: Choice) -> Html:
    from edkit.page import charts, layout
    from edkit.page.charts import Dot

    dots = [
        Dot(
            x=100 * one.drift,
            y=100 * one.learned,
            label=f"{one.step:,}" + (f" × {one.strength:g}" if one.strength != 1 else ""),
            out=not one.kept or bool(one.bled),
        )
        for one in choice.candidates
    ]
    return layout.section(
        "The trade-off",
        charts.scatter(
            "Learned against forgotten",
            dots,
            across="rise of the loss on ground truth, %",
            up="fall of the loss on training images, %",
            limit=(100 * choice.max_drift, "allowed"),
            names=("kept", "forgot or bled"),
        ),
        note="Up is learned, left is kept: the best stands high and left of the line.",
    )


def _curves(choice: Choice) -> Html:
    from edkit.page import charts, layout
    from edkit.page.charts import Series
    from edkit.page.html import Html

    if len({one.step for one in choice.candidates}) < 2:
        return Html("")
    strongest = max(one.strength for one in choice.candidates)
    steps = [one for one in choice.candidates if one.strength == strongest]
    series = [
        Series(name="learned", points=[(one.step, 100 * one.learned) for one in steps]),
        Series(name="forgotten", points=[(one.step, 100 * one.drift) for one in steps]),
    ]
    return layout.section(
        "Over the steps", charts.lines("Change of the loss", series, across="step", up="% of the base's loss")
    )


def _table(choice: Choice) -> Html:
    from edkit.page import layout

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        (
            one.name + (" (use this)" if one is choice.best else ""),
            f"{one.learned:.1%}",
            "{:.1%} to {:.1%}".format(*one.learned_range),
            f"{one.drift:+.1%}",
            "{:+.1%} to {:+.1%}".format(*one.drift_range),
            share(one.subject),
            share(one.world),
            {None: "", True: "yes", False: "no"}[one.bled],
        )
        for one in choice.candidates
    ]
    columns = (
        "model",
        "learned",
        "in 95 of 100",
        "drift",
        "in 95 of 100",
        "subject's pictures",
        "old world's pictures",
        "bled",
    )
    return layout.section("All of them", layout.table(columns, rows), note=" ".join(choice.tried_on).capitalize())
