"""The page of `evaluate`: the verdict first, then the figures behind it, then the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.page import layout, pictures
from edkit.page.html import Html, join, tag

if TYPE_CHECKING:
    from edkit.prove.intervals import Interval
    from edkit.prove.result import Evaluation, Losses, Part, Side

_TITLES: dict[Side, tuple[str, str]] = {
    "training": ("What was to be learned", "Captions of the training images, through both models from the same noise."),
    "preservation": (
        "What was to be kept",
        "Captions of ground truth. The nearer the two pictures of a pair, the less has changed.",
    ),
    "class": ("The class alone", "The subject is not asked for here: where it shows all the same, it bled."),
}
_AT_FIRST = 12


def write_page(found: Evaluation) -> Path:
    """Write the page where the evaluation says; links lead to the pictures' files beside it."""
    from edkit import __version__

    page_dir = Path(os.path.abspath(found.page)).parent  # noqa: PTH100 - links stay links
    lora = f" at strength {found.strength:g}" if found.strength != 1 else ""
    page = layout.render(
        _headline(found),
        _verdicts(found),
        _drift(found),
        *(_pictures(found, side, page_dir) for side in _TITLES),
        _how(found),
        above="edkit evaluate",
        lead=f"{_short(found.tuned)}{lora}, held against its base {_short(found.base)}.",
        contents=[("Verdict", "verdict"), ("Drift", "drift"), *_contents(found), ("How it was measured", "how")],
        footer=f"Made by edkit {__version__}. Everything is inside this page; pictures open their files beside it.",
    )
    return layout.write(found.page, page)


def _headline(found: Evaluation) -> str:
    """`It learned, it kept, and it bled`."""
    words = [one.word for one in found.verdicts]
    said = [
        {"not learned": "It did not learn", "learned": "It learned"}[words[0]],
        {"kept": "it kept what it knew", "forgot": "it forgot", "unclear": "what it kept is unclear"}[words[1]],
    ]
    if "bled" in words:
        said.append("its class became the subject")
    return f"{', '.join(said[:-1])} and {said[-1]}"


def _verdicts(found: Evaluation) -> Html:
    rows = [
        tag("li", layout.badge(one.word, good=one.good), tag("div", tag("span", f"{one.says}.", class_="what")))
        for one in found.verdicts
    ]
    notes = []
    if not any(one.word in ("bled", "not bled") for one in found.verdicts):
        notes.append(
            "Whether it bled was not judged: that wants the class's name (--class-prompt) and a CLIP model (--clip)."
        )
    for side, losses in (("training", found.training), ("preservation", found.preservation)):
        if not losses.held_out:
            notes.append(f"The {side} images are marked seen: the run may have trained on these very images.")
    figures = [
        layout.Figure(
            value=f"{one.after:.0%}" if found.judge == "reader" else f"{one.after:.3f}",
            note=f"was {one.before:.0%}" if found.judge == "reader" else f"was {one.before:.3f}",
            label=_score_label(one.side, found.judge),
        )
        for one in found.scores
    ]
    if found.distance is not None:
        value, error = found.distance
        figures.append(
            layout.Figure(
                value=f"{value:.4f}", note=f"± {error:.4f}", label="distance (KID) of ground truth's pictures"
            )
        )
    return layout.section(
        "Verdict",
        tag("ol", *rows, class_="tasks"),
        *(tag("p", note, class_="note") for note in notes),
        layout.key_figures(figures) if figures else "",
        anchor="verdict",
    )


def _score_label(side: Side, judge: str) -> str:
    if judge == "reader":
        return {
            "training": "of the pictures for training captions are right",
            "preservation": "of the pictures for ground truth's captions are right",
            "class": "of the class's pictures show the subject",
        }[side]
    return {
        "training": "agreement with training captions",
        "preservation": "agreement with ground truth's captions",
        "class": "agreement with the class's name",
    }[side]


def _drift(found: Evaluation) -> Html:
    columns = ("", "images", "base", "tuned", "change", "in 95 of 100")
    parts = []
    for title, losses in (("Training images", found.training), ("Ground truth", found.preservation)):
        rows = [_row(losses.whole)]
        if len(losses.folders) > 1:
            rows += [_row(part) for part in losses.folders]
        rows += [_row(part) for part in losses.quarters]
        parts.append(layout.group(title, layout.table(columns, rows), note=which(losses)))
    return layout.section(
        "Drift",
        _change_chart(
            "Change of the stable loss",
            [("training", found.training.whole.change), ("ground truth", found.preservation.whole.change)],
        ),
        *parts,
        note=(
            "The error of the predicted noise, with noise, timesteps, crops and captions held fixed: two numbers "
            "differ by the weights and nothing else. Down is learned, up is forgotten."
        ),
        anchor="drift",
    )


def _row(part: Part) -> tuple[object, ...]:
    change = part.change
    return (
        part.name,
        part.num_images,
        f"{part.before:.4f}",
        f"{part.after:.4f}",
        _signed(change.value),
        f"{_signed(change.low)} to {_signed(change.high)}" if part.num_images > 1 else "",
    )


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}%".replace("-", "−")


def which(losses: Losses) -> str:
    """`50 of 80 images, held out of training.`"""
    kind = "held out of training" if losses.held_out else "seen"
    gone = f"; {len(losses.left_out)} can't be used" if losses.left_out else ""
    return f"{losses.whole.num_images} of {losses.num_all} images, {kind}{gone}."


def _change_chart(title: str, rows: Sequence[tuple[str, Interval]]) -> Html:
    """Each change as a dot on one axis around zero, its interval as a bar."""
    from edkit.page.charts import intervals

    return intervals(title, [(name, 100 * one.value, 100 * one.low, 100 * one.high) for name, one in rows], unit="%")


def _contents(found: Evaluation) -> list[tuple[str, str]]:
    return [(_TITLES[side][0], side) for side in _TITLES if any(pair.side == side for pair in found.pairs)]


def _pictures(found: Evaluation, side: Side, page_dir: Path) -> Html:
    pairs = [pair for pair in found.pairs if pair.side == side]
    if not pairs:
        return Html("")
    rows = []
    for pair in pairs:
        cards = []
        for path, score in zip((pair.before, pair.after), pair.scores or (None, None), strict=True):
            badge, good = _badge(found.judge, side, score)
            cards.append(pictures.Picture(source=path, badge=badge, good=good))
        rows.append(pictures.Pair(before=cards[0], after=cards[1], label=pair.prompt))
    title, note = _TITLES[side]
    shown = pictures.pairs(rows, page_dir=page_dir, box=128, at_first=_AT_FIRST, before="base", after="tuned")
    return layout.section(title, shown, note=note, anchor=side)


def _badge(judge: str, side: Side, score: float | None) -> tuple[str, bool | None]:
    if score is None:
        return "", None
    if judge != "reader":
        return f"{score:.3f}", None
    if side == "class":
        return ("the subject", False) if score else ("the class", True)
    return ("right", True) if score else ("wrong", False)


def _how(found: Evaluation) -> Html:
    judge = {"reader": "nano's reader, plain image analysis", "": "nobody"}.get(found.judge, f"CLIP ({found.judge})")
    left_out = [*found.training.left_out, *found.preservation.left_out]
    return layout.section(
        "How it was measured",
        layout.facts(
            [
                ("family", found.family),
                ("base", join([found.base, " ", tag("code", found.models[0][:16])])),
                ("tuned", join([found.tuned, " ", tag("code", found.models[1][:16])])),
                ("training images", str(found.training.root)),
                ("ground truth", str(found.preservation.root)),
                ("pictures judged by", judge),
            ]
        ),
        layout.prose(
            "Learned: the loss on training images fell, and its whole interval lies below zero.",
            f"Kept: the loss on ground truth rose by at most {found.max_drift:.1%};",
            "forgot: it rose by more, and its interval lies above zero.",
            "Intervals are the paired bootstrap's over images.",
        ),
        layout.fold(f"{len(left_out)} images left out", *(tag("p", line) for line in left_out)) if left_out else "",
        anchor="how",
    )


def _short(model: str) -> str:
    return Path(model).name if "/" in model or "\\" in model else model
