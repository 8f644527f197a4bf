"""Which images a model is tried on, and which captions: the same for every model that is compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.data.errors import BadInput
from edkit.data.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from edkit.prove.model import Manner
    from edkit.train.cache import LatentCache
    from edkit.train.families.base import Family
    from edkit.train.generate import Request
    from edkit.train.validate import FixedSample

FEWEST = 8  # images that never trained, for a figure to stand on them alone
Latents = Callable[..., "list[Tensor]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """One side's images as a model sees them: what was to be learned, or what was to be kept."""

    root: Path
    samples: tuple[FixedSample, ...]
    held_out: bool  # no image among them trained
    num_all: int  # images in the folder
    left_out: tuple[str, ...]  # those that can't be used, and why

    def folder(self, i: int) -> str:
        """The i-th image's folder, below the root."""
        return self.samples[i].key.rpartition("/")[0] or "."


def trained_on(models: Iterable[Path]) -> frozenset[str] | None:
    """The contents (SHA-256) of the images that any of these exports trained on; None where one doesn't say.

    Raises BadInput where a list is damaged, or not that of the weights beside it.
    """
    from edkit.train.verify import record_of

    trained: frozenset[str] = frozenset()
    for model in models:
        record = record_of(model)
        if record is None:
            return None
        trained |= {entry.content for entry in record.entries if entry.role == "train"}
    return trained


def images_of(
    root: Path,
    family: Family,
    cache: LatentCache,
    *,
    trained: frozenset[str] | None,
    without: Path | None = None,
    limit: int,
    resolution: int | None,
    manner: Manner,
    seed: int,
    progress: Progress,
) -> Images:
    """Up to `limit` images of a folder, drawn by their content: such as never trained, or any where those are few.

    `trained`: what the run trained on; None: unknown, and all images count as seen. `without`: a folder that is the
    other side's. Captions are read, and pictures cut, in the run's `manner`. Nothing is written to the folder. Raises
    BadInput where fewer than two images are left.
    """
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.plan import Plan, PlanSettings
    from edkit.data.random import unit
    from edkit.data.sample import Options
    from edkit.train.validate import fixed_sample

    with Catalog.open(root, write=False, command="evaluate") as catalog:
        dataset = read(
            root,
            defaults=Options(max_caption_length=manner.max_caption_length),
            caption_fallback=manner.caption_fallback,
            catalog=catalog,
            progress=progress,
        )
        dataset, gone = dataset.without_errors()
        if without is not None:
            inside = Path(os.path.abspath(without))  # noqa: PTH100 - links stay links
            dataset = dataset.drop([i for i in range(len(dataset)) if dataset.path(i).is_relative_to(inside)])
        ids = catalog.content_ids(dataset.paths, progress=progress)
    left_out = [str(one.problem) for one in gone]
    new = [] if trained is None else [i for i, path in enumerate(dataset.paths) if ids[path] not in trained]
    held_out = len(new) >= min(FEWEST, len(dataset))
    chosen = new if held_out else list(range(len(dataset)))
    chosen = sorted(chosen, key=lambda i: (unit(seed, "evaluated", ids[dataset.path(i)]), dataset.key(i)))[:limit]
    settings = PlanSettings(
        batch_size=1,
        resolution=resolution or manner.resolution or family.resolution,
        bucket_step=family.bucket_step,
        small="upscale",
    )
    plan = Plan(dataset, settings)
    samples = [
        fixed_sample(dataset.sample(i), content_id=ids[dataset.path(i)], bucket=plan.bucket(i)) for i in sorted(chosen)
    ]
    broken = cache.warm([sample.view for sample in samples], progress=progress)
    left_out += [f"{path}: {error.what}" for path, error in sorted(broken.items())]
    samples = [sample for sample in samples if sample.view.path not in broken]
    if len(samples) < 2:
        only = "one image" if samples else "no image"
        raise BadInput(
            f"has {only} to try the models on, and 2 are needed", where=str(root), mend="edkit check says why"
        )
    return Images(
        root=Path(os.path.abspath(root)),  # noqa: PTH100
        samples=tuple(samples),
        held_out=held_out,
        num_all=len(dataset),
        left_out=tuple(left_out),
    )


def requests(captions: Sequence[str], num: int, seed: int) -> list[Request]:
    """`num` pictures to draw: distinct captions, spread evenly over all; each as often as others where they are few."""
    from edkit.train.generate import Request

    distinct = list(dict.fromkeys(captions))
    if not distinct:
        return []
    if len(distinct) > num:
        distinct = [distinct[i * len(distinct) // num] for i in range(num)]
    times: Mapping[int, int] = {i: i // len(distinct) for i in range(num)}
    return [Request(prompt=distinct[i % len(distinct)], seed=seed, occurrence=times[i]) for i in range(num)]
