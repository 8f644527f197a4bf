"""The whole workflow on a small world of its own, from a web of pictures to samples before and after.

A web is drawn and served on this machine, with the faults a real one has. edkit's own verbs make a training
set of it, teach the small model that ships with edkit a subject it has never seen, and draw the subject and
the old world before and after. Nothing is fetched from outside, and no part stands in for a real one.

    given -> scrape -> rename-captions -> dedupe -> filter -> balance -> plan -> train -> generate -> page
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.data.errors import UsageError
from edkit.data.progress import SILENT, Progress
from edkit.demo import verbs
from edkit.demo.page import write_page
from edkit.demo.place import Place, Wish, drawn_seed
from edkit.demo.verbs import Score, score, survived
from edkit.demo.web import give


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo made, removed, trained and saw."""

    out: Path
    page: Path
    seconds: float  # of work, over all runs into this folder
    stages: Mapping[str, float]  # seconds
    num_rows: int  # of the table
    num_matched: int  # rows that passed the table's filters
    num_fetched: int  # pictures kept by scrape
    outcomes: Mapping[str, int]  # how the other fetches ended
    num_duplicates: int  # set aside by dedupe
    num_blurred: int  # set aside by filter
    num_ground_truth: int  # left to train on
    num_subject: int
    steps: int
    pictures_trained: int
    first_loss: float
    last_loss: float
    subject_before: Score
    subject_after: Score
    world_before: Score
    world_after: Score
    survived: Score  # of the old world's pictures that were right before, those that still are


def demo(
    out: Path | str = "edkit-demo",
    *,
    seed: int = 555,
    num_pool: int = 300,
    num_subject: int = 20,
    max_steps: int = 360,
    num_samples: int = 48,
    progress: Progress = SILENT,
) -> Demo:
    """Run the whole workflow into the folder `out`, and write `demo.html` there.

    `num_pool` good pictures of the known world stand in the web, `num_subject` show the new subject; at most
    `num_samples` of each are drawn before and after. Called again after an interruption it goes on where it
    stopped. Raises UsageError where `out` holds anything else or a finished demo, MissingExtra without the
    train extra.
    """
    import edkit.train  # noqa: F401 - says at once, not after minutes, what isn't installed

    out = Path(out).absolute()
    wish = Wish(
        seed=drawn_seed(out) if seed == -1 else seed,
        num_pool=num_pool,
        num_subject=num_subject,
        max_steps=max_steps,
        num_samples=num_samples,
    )
    place = Place(out, wish)
    if "page" in place.stages:
        raise UsageError(f"a finished demo is here: {place.page}", mend="look at it, or --out names a new folder")
    for number, (name, what, stage) in enumerate(_STAGES, 1):
        if name in place.stages:
            continue
        progress.say(f"{number}/{len(_STAGES)}  {what}")
        began = time.perf_counter()
        found = stage(place, progress)
        place.done(name, time.perf_counter() - began, found)
        if "said" in found:
            progress.say(f"     {found['said']}")
    return _result(place)


def _result(place: Place) -> Demo:
    scraped, trained, drawn = place.found("scrape"), place.found("train"), place.found("generate")
    images = {part["folder"]: part["images"] for part in place.found("balance")["parts"]}
    return Demo(
        out=place.out,
        page=place.page,
        seconds=place.seconds(),
        stages={name: stage["seconds"] for name, stage in place.stages.items()},
        num_rows=scraped["rows"],
        num_matched=scraped["matched"],
        num_fetched=scraped["kept"],
        outcomes=scraped["outcomes"],
        num_duplicates=place.found("dedupe")["removed"],
        num_blurred=place.found("filter")["removed"],
        num_ground_truth=images[place.ground_truth.name],
        num_subject=images[place.subject.name],
        steps=trained["steps"],
        pictures_trained=trained["images"],
        first_loss=trained["first_loss"],
        last_loss=trained["last_loss"],
        subject_before=score(drawn["subject-before"]),
        subject_after=score(drawn["subject-after"]),
        world_before=score(drawn["world-before"]),
        world_after=score(drawn["world-after"]),
        survived=survived(drawn),
    )


_Stage = Callable[[Place, Progress], dict[str, Any]]
_STAGES: tuple[tuple[str, str, _Stage], ...] = (
    ("given", "drawing a small web of pictures, and a subject the model has never seen", give),
    ("scrape", "scrape: searching its table, fetching what matches", verbs.scrape),
    ("rename-captions", "rename-captions: captions become file names", verbs.rename),
    ("dedupe", "dedupe: looking for pictures that show the same", verbs.dedupe),
    ("filter", "filter: measuring sharpness", verbs.filter),
    ("balance", "balance: how much ground truth an epoch holds", verbs.balance),
    ("plan", "plan: what training will see", verbs.plan),
    ("train", "train: fine-tuning the small model", verbs.train),
    ("generate", "generate: drawing before and after", verbs.generate),
    ("page", "the page", write_page),
)
