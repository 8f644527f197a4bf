"""What the demo asks of each of edkit's verbs, and what it notes of the answer."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edkit.data.progress import Progress
from edkit.demo.place import Place
from edkit.demo.web import is_from, port_of, served, write_table

if TYPE_CHECKING:
    from edkit.nano.world import Scene
    from edkit.train.settings import TrainSettings

# What the demo asks of each verb; docs/demo.md tells how the training was chosen.
SEARCH = ("circle", "square", "triangle", "star", "heart", "ring")
MIN_SIZE = 128  # pixels
MAX_UNSAFE = 0.5
MAX_WATERMARK = 0.8
RADIUS = 4  # bits of the perceptual hash: in a world this small, strangers meet at 8
RULE = "sharpness >= 0.042"
SHARE = 0.5  # of an epoch that is ground truth
RESOLUTION = 64  # pixels: what the small model draws
BATCH_SIZE = 16
LR = 1e-3
TEXT_ENCODER_LR = 1e-3
GUIDANCE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of the pictures show what their prompt says, by the reader's judgement."""

    right: int
    of: int

    def __str__(self) -> str:
        return f"{self.right} of {self.of}"

    @property
    def share(self) -> float:
        """0..1."""
        return self.right / self.of if self.of else 0.0


def scrape(place: Place, progress: Progress) -> dict[str, Any]:
    """Serve the drawn web, and fetch from it what matches the search."""
    from edkit.gather.scrape import scrape

    with served(place.web, port_of(place.table)) as (address, asked):
        if not is_from(place.table, address):
            write_table(place, address)
        found = scrape(
            [place.table],
            out=place.ground_truth,
            any=SEARCH,
            min_size=MIN_SIZE,
            max_unsafe=MAX_UNSAFE,
            max_watermark=MAX_WATERMARK,
            allow_private_hosts=True,
            state_dir=place.state,
            progress=progress,
        )
    lost = {code: n for code, n in place.outcomes().items() if code != "ok"}
    said = (
        f"{found.rows_read} rows, {found.matched} match, {found.total} pictures fetched, "
        f"{sum(lost.values())} not to be had"
    )
    return {
        "said": said,
        "rows": found.rows_read,
        "matched": found.matched,
        "dropped": dict(found.dropped),
        "kept": found.total,
        "outcomes": lost,
        "asked": sum(asked.values()),
    }


def rename(place: Place, progress: Progress) -> dict[str, Any]:
    """Make every picture's caption its name."""
    from edkit.caption.rename import rename_captions

    rename_captions(place.data, state_dir=place.state, progress=progress)
    num = sum(one.num_done for one in place.operations("rename-captions"))
    return {"said": f"{num} changes: every picture's name is its caption now", "changes": num}


def dedupe(place: Place, progress: Progress) -> dict[str, Any]:
    """Set near-duplicates aside, never one of the subject."""
    from edkit.clean.dedupe import dedupe

    found = dedupe(place.data, radius=RADIUS, protect=[place.subject], state_dir=place.state, progress=progress)
    num = len(place.removed("dedupe"))
    return {"said": f"{found.num_images} compared, {num} near-duplicates set aside", "removed": num}


def filter(place: Place, progress: Progress) -> dict[str, Any]:
    """Set blurred pictures aside."""
    from edkit.clean.filter import filter as keep

    keep(place.data, [RULE], state_dir=place.state, progress=progress)
    num = len(place.removed("filter"))
    return {"said": f"{num} blurred pictures set aside ({RULE})", "removed": num}


def balance(place: Place, progress: Progress) -> dict[str, Any]:
    """Let ground truth be SHARE of every epoch."""
    from edkit.balance.balance import balance

    found = balance(place.data, share={place.ground_truth.name: str(SHARE)}, state_dir=place.state, progress=progress)
    parts = [
        {
            "folder": p.folder,
            "images": p.num_images,
            "multiply": str(p.multiply),
            "picks": p.picks,
            "said": p.sentence,
        }
        for p in found.parts
    ]
    return {"said": "; ".join(p.sentence for p in found.parts), "parts": parts, "picks": found.picks}


def plan(place: Place, progress: Progress) -> dict[str, Any]:
    """Say what training will see."""
    from edkit.balance.plan import plan

    found = plan(
        place.data,
        epochs=3,
        batch_size=BATCH_SIZE,
        resolution=RESOLUTION,
        seed=place.wish.seed,
        state_dir=place.state,
        progress=progress,
    )
    said = (
        f"{found.num_images} pictures, {found.num_captions} captions, {found.total_steps} steps in "
        f"{found.epochs} epochs, {len(found.problems)} problems"
    )
    return {"said": said, "captions": found.num_captions, "problems": len(found.problems)}


def _training(place: Place) -> TrainSettings:
    from edkit.nano import model_dir
    from edkit.train.settings import TrainSettings

    return TrainSettings(
        data_root=str(place.data),
        model=str(model_dir()),
        out=place.run,
        max_steps=place.wish.max_steps,
        batch_size=BATCH_SIZE,
        lr=LR,
        train_text_encoder=True,
        text_encoder_lr=TEXT_ENCODER_LR,
        lr_schedule="cosine",
        lr_warmup_steps=10,
        cond_dropout=0.1,
        save_every_minutes=1.0,
        export_on_save=False,
        keep_checkpoints=1,
        seed=place.wish.seed,
        state_dir=place.state,
    )


def train(place: Place, progress: Progress) -> dict[str, Any]:
    """Teach the small model; an interrupted run goes on from its checkpoint."""
    from edkit.train.checkpoint import checkpoints
    from edkit.train.run import train

    # an interrupted run goes on from its last checkpoint; one that has none yet begins anew
    if checkpoints(place.run):
        run = train(_training(place), resume=place.run, progress=progress)
    else:
        shutil.rmtree(place.run, ignore_errors=True)
        run = train(_training(place), progress=progress)
    assert run.export is not None
    said = f"{run.step} steps, loss {run.first_loss:.3f} -> {run.last_loss:.3f}"
    return {
        "said": said,
        "steps": run.step,
        "images": run.step * run.settings.batch_size,
        "first_loss": run.first_loss,
        "last_loss": run.last_loss,
        "export": run.export.relative_to(place.out).as_posix(),
    }


def prompts(num: int) -> dict[str, list[Scene]]:
    """The scenes asked for before and after: the subject's, and the old world's in unseen combinations.

    At most `num` of each; in every order's beginning all colours, shapes, grounds and places take turns.
    """
    from edkit.nano import world

    grounds, spots = tuple(world.BACKGROUNDS), tuple(world.POSITIONS)
    subject = [
        world.Scene(
            colour=world.SUBJECT_COLOURS[0],
            shape=world.SUBJECT_CLASS,
            background=grounds[i % len(grounds)],
            position=spots[i % len(spots)],
            size="large",
            subject=True,
        )
        for i in range(math.lcm(len(grounds), len(spots)))
    ]
    held_out = [prompt.scene for prompt in world.held_out_prompts()]
    stride = next(n for n in range(37, 1000) if math.gcd(n, len(held_out)) == 1)
    mixed = [held_out[i * stride % len(held_out)] for i in range(len(held_out))]
    return {"subject": subject[:num], "world": mixed[:num]}


def generate(place: Place, progress: Progress) -> dict[str, Any]:
    """Draw every prompt with the model before and after, and let the reader say what the pictures show."""
    from PIL import Image

    from edkit.nano import model_dir, reader, world
    from edkit.train.generate import generate

    models = {"before": model_dir(), "after": place.out / place.found("train")["export"]}
    found: dict[str, Any] = {}
    for what, scenes in prompts(place.wish.num_samples).items():
        for when, model in models.items():
            folder, half = place.pictures / f"{what}-{when}", place.pictures / f"{what}-{when}.part"
            for left in (folder, half):
                shutil.rmtree(left, ignore_errors=True)  # an interrupted stage's
            texts = [world.caption(scene) for scene in scenes]
            paths = generate(model, texts, half, guidance=GUIDANCE, seed=place.wish.seed, progress=progress)
            half.replace(folder)
            shown = []
            for path, scene in zip(paths, scenes, strict=True):
                with Image.open(folder / path.name) as image:
                    shown.append(reader.read(image).shows(scene))
            found[f"{what}-{when}"] = {"files": [path.name for path in paths], "right": shown}
    subject, world_ = score(found["subject-after"]), score(found["world-after"])
    return {"said": f"the new subject is found in {subject}; of the old world {world_} are right", **found}


def score(found: Mapping[str, Any]) -> Score:
    """How many of one set of drawn pictures the reader found right."""
    return Score(right=sum(found["right"]), of=len(found["right"]))


def survived(found: Mapping[str, Any]) -> Score:
    """Of the old world's prompts that were right before: how many are after."""
    both = zip(found["world-before"]["right"], found["world-after"]["right"], strict=True)
    after = [right for was, right in both if was]
    return Score(right=sum(after), of=len(after))
