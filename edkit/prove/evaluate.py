"""A tuned model against its base: what it learned, what it kept, and whether its class became the subject."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data import atomic
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed
from edkit.prove.images import Images, images_of, requests, trained_on
from edkit.prove.intervals import relative_change
from edkit.prove.judge import ByClip, ByReader, Judge, Nobody
from edkit.prove.model import Drawing, Kept, Manner, Model, latents_of, load, manner_of
from edkit.prove.page import write_page
from edkit.prove.reading import reads
from edkit.prove.result import SIDES, Evaluation, Losses, Part, Side
from edkit.prove.verdict import MAX_DRIFT, kept, learned

if TYPE_CHECKING:
    from edkit.train.generate import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is measured of every model that is compared."""

    train: Path
    preservation: Path
    drawing: Drawing
    class_prompts: tuple[str, ...] = ()
    num_images: int = 100  # of each side
    num_pictures: int = 12  # of each side
    resolution: int | None = None
    clip: str | None = None
    pretrained: str | None = None
    seed: int = 555


def evaluate(
    base: str | Path,
    tuned: str | Path,
    *,
    train: Path,
    preservation: Path,
    out: Path,
    class_prompts: Sequence[str] = (),
    strength: float = 1.0,
    max_drift: float = MAX_DRIFT,
    num_images: int = 100,
    num_pictures: int = 12,
    steps: int = 25,
    guidance: float = 5.0,
    resolution: int | None = None,
    clip: str | None = None,
    pretrained: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    seed: int = 555,
    progress: Progress = SILENT,
) -> Evaluation:
    """Compare a tuned model (an export's folder, a single file, or a LoRA of `strength`) with its base, and write a
    page and, beside it, its figures as JSON.

    `train` and `preservation` are folders of images: what was to be learned, and what was to be kept. Images that
    the export's own record names as trained are left out where there are others. What is measured is kept beside
    the page, so that an interrupted call goes on. A seed of -1 draws one. Raises BadInput, UsageError.
    """
    look = Look(
        train=train,
        preservation=preservation,
        class_prompts=tuple(class_prompts),
        num_images=num_images,
        num_pictures=num_pictures,
        drawing=Drawing(steps=steps, guidance=guidance, precision=precision),
        resolution=resolution,
        clip=clip,
        pretrained=pretrained,
        seed=draw_seed() if seed == -1 else seed,
    )
    (found,) = compare(
        base, [(str(tuned), tuned, strength)], look, out=out, max_drift=max_drift, device=device, progress=progress
    )
    write_page(found)
    write_json(found)
    return found


def compare(
    base: str | Path,
    tuned: Sequence[tuple[str, str | Path, float]],
    look: Look,
    *,
    out: Path,
    max_drift: float,
    device: str = "auto",
    progress: Progress = SILENT,
) -> list[Evaluation]:
    """Hold tuned models, each (name, model, strength), against one base; one model is in memory at a time.

    All are read as the last of them says that its run did. `out` is the page's place; what was measured stands in the
    folder beside it.
    """
    from edkit.train.families import find_model
    from edkit.train.generate import pick_device

    _check(look, out)
    for _, model, _ in tuned:
        find_model(model)  # a name that is wrong is told now, not when the base is measured
    place = pick_device(device)
    files = out.with_name(f"{out.stem}-files")
    notes = Kept(files)
    manner = manner_of(Path(tuned[-1][1]))
    family = load(base, manner=manner)
    trained = trained_on(dict.fromkeys(Path(model) for _, model, _ in tuned))
    with latents_of(family, files / "latents.db", place) as cache:
        first = Model(family, notes, manner=manner, device=place, progress=progress)
        sides = {
            "training": _images(look.train, first, cache, look, manner, trained, _inside(look), progress),
            "preservation": _images(look.preservation, first, cache, look, manner, trained, None, progress),
        }
        asked = _asked(look, sides)
        before = _measured(first, sides, asked, cache.latents, look)
        name, is_nano = family.name, reads(family)
        base_id = first.id
        del first, family
        afters: list[tuple[str, _Measured]] = []
        for label, model, strength in tuned:
            other = load(base, model, strength=strength, manner=manner)
            if other.name != name:
                raise BadInput(f"is a {other.name} model and the base a {name}", where=str(model))
            progress.say(f"measuring {label}")
            second = Model(other, notes, manner=manner, device=place, progress=progress)
            afters.append((second.id, _measured(second, sides, asked, cache.latents, look)))
            del second, other
    judge: Judge = ByReader() if is_nano else Nobody()
    if look.clip:
        training = [sample.view.path for sample in sides["training"].samples]
        judge = ByClip(look.clip, look.pretrained, training=training, files=files, progress=progress)
    found = []
    for (label, _, strength), (id_, after) in zip(tuned, afters, strict=True):
        pairs, scores, distance, bleeding = judge.judge(asked, before.pictures, after.pictures, look.seed)
        losses = {side: _losses(images, before.losses[side], after.losses[side]) for side, images in sides.items()}
        verdicts = [
            learned(losses["training"].whole.change),
            kept(losses["preservation"].whole.change, max_drift=max_drift),
        ]
        found.append(
            Evaluation(
                base=str(base),
                tuned=label,
                strength=strength,
                models=(base_id, id_),
                family=name,
                training=losses["training"],
                preservation=losses["preservation"],
                pairs=pairs,
                judge=judge.name,
                scores=scores,
                distance=distance,
                verdicts=tuple([*verdicts, bleeding] if bleeding else verdicts),
                max_drift=max_drift,
                seed=look.seed,
                page=out,
                json=out.with_suffix(".json"),
            )
        )
    return found


def write_json(found: Evaluation) -> None:
    """The figures beside the page."""
    said = asdict(found)
    atomic.write_text(found.json, json.dumps(said, indent=1, ensure_ascii=False, default=str) + "\n")


def _check(look: Look, out: Path) -> None:
    for key in ("num_images", "num_pictures"):
        if getattr(look, key) < (2 if key == "num_images" else 0):
            raise UsageError(f"{key.replace('_', ' ')} is {getattr(look, key)}", mend="2 images, 0 pictures at least")
    if os.path.abspath(look.train) == os.path.abspath(look.preservation):  # noqa: PTH100
        raise UsageError("--train and --preservation are the same folder", where=str(look.train))
    for root in (look.train, look.preservation):
        if not root.exists():
            raise BadInput("no such folder", where=str(root))
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError("the page's name ends in .html", where=str(out))


def _inside(look: Look) -> Path | None:
    """The preservation folder where it lies in the training set's: its images are not to be learned."""
    inside, root = (Path(os.path.abspath(one)) for one in (look.preservation, look.train))  # noqa: PTH100
    return inside if inside.is_relative_to(root) else None


def _images(
    root: Path, model: Model, cache: Any, look: Look, manner: Manner, trained: frozenset[str] | None,
    without: Path | None, progress: Progress,
) -> Images:  # fmt: skip
    return images_of(
        root, model.family, cache, trained=trained, without=without, limit=look.num_images,
        resolution=look.resolution, manner=manner, seed=look.seed, progress=progress,
    )  # fmt: skip


def _asked(look: Look, sides: Mapping[str, Images]) -> dict[Side, list[Request]]:
    """What is drawn: captions of both sides, and the class's name."""
    captions: dict[Side, Sequence[str]] = {
        "training": [sample.caption for sample in sides["training"].samples],
        "preservation": [sample.caption for sample in sides["preservation"].samples],
        "class": look.class_prompts,
    }
    return {side: requests(captions[side], look.num_pictures, look.seed) for side in SIDES}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    losses: dict[str, list[list[float]]]
    pictures: dict[Side, list[Path]]


def _measured(
    model: Model, sides: Mapping[str, Images], asked: Mapping[Side, Sequence[Request]], latents: Callable[..., Any],
    look: Look,
) -> _Measured:  # fmt: skip
    how = look.drawing
    return _Measured(
        losses={side: model.losses(i.samples, latents, precision=how.precision) for side, i in sides.items()},
        pictures={side: model.pictures(some, how) if some else [] for side, some in asked.items()},
    )


def _losses(images: Images, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Losses:
    """Losses (N, T) of one side as parts: whole, by folder, by timestep quarter."""
    n, times = len(before), len(before[0])

    def part(name: str, rows: Sequence[int], columns: range) -> Part:
        old, new = ([sum(side[i][t] for t in columns) / len(columns) for i in rows] for side in (before, after))
        return Part(
            name=name,
            num_images=len(rows),
            before=sum(old) / len(old),
            after=sum(new) / len(new),
            change=relative_change(old, new),
        )

    folders = sorted({images.folder(i) for i in range(n)})
    by_folder = {folder: [i for i in range(n) if images.folder(i) == folder] for folder in folders}
    return Losses(
        root=images.root,
        held_out=images.held_out,
        num_all=images.num_all,
        whole=part("all", range(n), range(times)),
        folders=tuple(part(folder, rows, range(times)) for folder, rows in by_folder.items()),
        quarters=tuple(
            part(name, range(n), range(q * times // 4, (q + 1) * times // 4))
            for q, name in enumerate(("least noise", "second quarter", "third quarter", "most noise"))
        ),
        left_out=images.left_out,
    )
