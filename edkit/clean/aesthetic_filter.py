"""Set aside what an aesthetic head scores low."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edkit.clean.files import Unwanted, list_images, open_catalog, set_aside
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash
from edkit.data.progress import SILENT, Progress

DEFAULT_MIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An image's aesthetic score (about 1..10) and whether it stays."""

    path: Path
    score: float
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AestheticFiltered:
    """What `aesthetic_filter` did."""

    num_images: int  # scored
    num_kept: int
    scores: tuple[Scored, ...]  # the best first
    rule: str
    head: str
    clip: str
    lowest: float | None  # None: there was no image
    median: float | None
    highest: float | None
    broken: tuple[Problem, ...]  # not scored, left where they are
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    operation: int | None


def aesthetic_filter(
    root: Path | Sequence[Path],
    *,
    min_score: float | None = None,
    top: float | None = None,
    limit: int | None = None,
    head: str = "v2",
    clip: str | None = None,
    pretrained: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> AestheticFiltered:
    """Score every image by a head on its CLIP embedding; move those below the mark to the trash.

    One of `min_score` (default 5.0), `top` (a share, 0..1) and `limit` (a number of images) says what
    stays. `head`: "v1", "v2", a path or `hf://owner/repository/file`; `clip` and `pretrained` as open_clip
    names them, or paths. Embeddings are kept: another head costs no second pass. What can't be decoded is
    reported and left where it is.
    """
    folders = [Path(root)] if isinstance(root, str | Path) else [Path(one) for one in root]
    _validate(min_score, top, limit)
    listing = list_images(folders)

    import numpy as np

    from edkit.measure.aesthetic import load_head, made_for
    from edkit.measure.embed import DEFAULT_CLIP, Encoder, resolve

    weights = resolve(clip or DEFAULT_CLIP, pretrained, progress=progress)
    scorer = load_head(head, dim=weights.dim, clip=weights.label)
    meant = made_for(head, weights.dim)
    if meant is not None and not (weights.label.startswith(meant) and "openai" in f"{weights.pretrained}".lower()):
        progress.say(f"head {head} was made for {meant} with OpenAI's weights: its scores may mean little here")
    encoder = Encoder(weights, batch_size=batch_size, device=device, progress=progress)
    with open_catalog(
        folders[0], state_dir=state_dir, changes=not dry_run, command="aesthetic-filter", progress=progress
    ) as catalog:
        found = encoder.embeddings(catalog, listing.images, progress=progress)
        vectors = {path: one for path, one in found.items() if not isinstance(one, Problem)}
        values = scorer.score(np.stack(list(vectors.values()))).tolist() if vectors else []
        order = sorted(zip(vectors, values, strict=True), key=lambda one: (-one[1], str(one[0])))
        num_kept, rule = _mark([score for _, score in order], min_score, top, limit)
        dropped = order[num_kept:]
        applied = set_aside(
            catalog,
            listing,
            [
                Unwanted(
                    path=path,
                    reason=f"aesthetic score {score:.2f} ({scorer.name}, {weights.label}); kept: {rule}",
                    facts={"aesthetic": round(score, 4), "head": scorer.name, "clip": weights.label},
                )
                for path, score in dropped
            ],
            verb="aesthetic-filter",
            command=f"--head {head} --clip {weights.label}: {rule}",
            dry_run=dry_run,
            progress=progress,
        )
    return AestheticFiltered(
        num_images=len(order),
        num_kept=num_kept,
        scores=tuple(
            Scored(path=path, score=score, kept=number < num_kept) for number, (path, score) in enumerate(order)
        ),
        rule=rule,
        head=scorer.name,
        clip=weights.label,
        lowest=order[-1][1] if order else None,
        median=statistics.median(score for _, score in order) if order else None,
        highest=order[0][1] if order else None,
        broken=tuple(one for one in found.values() if isinstance(one, Problem)),
        skipped=tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash)),
        operation=applied.operation,
    )


def share(text: str) -> float:
    """`50%` or `0.5` as 0.5; UsageError where it is no share above 0 and at most 1."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise UsageError(f"{text!r} is no share", mend="such as 50% or 0.5")
    return value


def _validate(min_score: float | None, top: float | None, limit: int | None) -> None:
    if sum(one is not None for one in (min_score, top, limit)) > 1:
        raise UsageError("--min, --top and --limit each say what stays", mend="give one of them")
    if min_score is not None and not math.isfinite(min_score):
        raise UsageError("--min is no number")
    if top is not None and not 0 < top <= 1:
        raise UsageError(f"--top {top:g} is no share", mend="such as 50%")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} would keep nothing", mend="1 or more")


def _mark(scores: Sequence[float], min_score: float | None, top: float | None, limit: int | None) -> tuple[int, str]:
    """How many of the scores (falling) stay, and the rule in words."""
    if top is not None:
        return math.ceil(len(scores) * top - 1e-9), f"the best {top * 100:g}%"
    if limit is not None:
        return min(limit, len(scores)), f"the best {limit:,}"
    least = DEFAULT_MIN if min_score is None else min_score
    return sum(score >= least for score in scores), f"a score of at least {least:g}"
