"""The data of a run: read, checked, planned, its latents made; nothing trains before all of it stands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset, read
from edkit.data.errors import BadInput, Problem, StateError
from edkit.data.places import state_dir_for
from edkit.data.plan import Pick, Plan, PlanSettings, Step
from edkit.data.progress import Progress
from edkit.data.sample import Options, Sample
from edkit.train.cache import LatentCache, View
from edkit.train.families.base import Family
from edkit.train.settings import SettingError, TrainSettings, is_below

_MEMORY = 1 << 32  # bytes of latents held in memory at most; the rest is read from the cache as it is needed
_TOLD = 20  # problems told one by one


@dataclass(frozen=True, kw_only=True)
class FolderShare:
    """One folder's part in the run."""

    path: Path
    num_images: int
    picks: int  # in the first epoch


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run will train on."""

    num_images: int
    folders: tuple[FolderShare, ...]
    buckets: dict[str, int]  # "512x512" -> images
    picks_per_epoch: int  # the first epoch's
    steps_per_epoch: int
    total_steps: int
    num_warnings: int
    num_cut_captions: int  # longer than the model reads
    num_small: int
    num_latents: int
    latent_bytes: int
    left_out: tuple[str, ...]  # every image left out, and why


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the loop takes from the data."""

    plan: Plan
    summary: Summary
    total_steps: int
    fingerprint: str  # SHA-256 of what is trained: keys, contents, captions, options
    model_hash: str
    sample: Callable[[int], Sample]
    view: Callable[[Pick], View]
    latents: Callable[[Sequence[View]], list[Tensor]]
    steps: Callable[[int], Sequence[Step]]  # of an epoch


@contextmanager
def prepare(
    s: TrainSettings, family: Family, device: torch.device, *, dry_run: bool, progress: Progress
) -> Iterator[Prepared]:
    """Read the data root, refuse or leave out what is wrong, plan, and make every latent that the plan needs.

    With `dry_run` no image is decoded and nothing is written. Raises BadInput where an error stands against
    an image and `leave_out_broken` was not said.
    """
    root = _first_root(s)
    state_dir = state_dir_for(root, s.state_dir)
    with _catalog(root, s.state_dir, write=not dry_run, progress=progress) as catalog:
        dataset = read(
            s.data_root,
            defaults=Options(
                cond_dropout=s.cond_dropout,
                flip_p=s.flip_p,
                shuffle_tags=s.shuffle_tags,
                keep_tags=s.keep_tags,
                max_caption_length=s.max_caption_length,
            ),
            caption_fallback=s.caption_fallback,
            catalog=catalog,
            progress=progress,
        )
        dataset, left_out = _without_errors(dataset, s, progress)
        for folder in s.prior_preservation:
            if not any(is_below(dataset.key(i), [folder]) for i in range(len(dataset))):
                raise SettingError("prior_preservation", f"no image lies in {folder!r}", mend="name it from the root")
        ids = {} if dry_run else catalog.content_ids(dataset.paths, progress=progress)
    plan = _plan(dataset, s)
    path = None if dry_run or not s.cache_latents else state_dir / "cache" / "latents.db"
    cache = LatentCache(
        path,
        encode=family.encode_images,
        encoder_id=family.vae_hash,
        precision=s.latent_precision,
        memory_bytes=_MEMORY if s.cache_latents else 0,
        device=device,
        progress=progress,
    )
    try:
        if s.cache_latents and not dry_run:
            broken = cache.warm(_views(plan, s, ids), progress=progress)
            if broken:
                dataset, more = _without_broken(dataset, broken, s, progress)
                left_out += more
                plan = _plan(dataset, s)
        yield _prepared(s, family, dataset, plan, cache, ids, left_out)
    finally:
        cache.close()


def _prepared(
    s: TrainSettings,
    family: Family,
    dataset: Dataset,
    plan: Plan,
    cache: LatentCache,
    ids: dict[Path, str],
    left_out: list[str],
) -> Prepared:
    epochs = s.max_epochs
    total = plan.total_steps(epochs) if epochs else _at_least(plan, s.max_steps or 1)
    total = min(total, s.max_steps) if s.max_steps else total
    if total < 1:
        raise BadInput("the plan has no step", where=str(dataset.root), mend="raise multiply or max_epochs")
    kept: dict[int, Sequence[Step]] = {}

    def steps(epoch: int) -> Sequence[Step]:
        if epoch not in kept:
            if len(kept) > 2:
                kept.pop(next(iter(kept)))
            kept[epoch] = plan.epoch(epoch, last=epochs is not None and epoch + 1 == epochs).steps
        return kept[epoch]

    def view(pick: Pick) -> View:
        path = dataset.path(pick.index)
        return View(path=path, content_id=ids[path], crop=pick.crop)

    views = 1 if s.flip_p == 0 and not any(o.flip_p for o in dataset.option_table) else 2
    width = {"fp16": 2, "fp32": 4}[s.latent_precision]
    pixels = sum(w * h * n for (w, h), n in plan.bucket_counts.items())
    picks = plan.picks_by_folder(0)
    summary = Summary(
        num_images=len(dataset),
        folders=tuple(FolderShare(path=f.path, num_images=f.count, picks=picks[f.path]) for f in dataset.folders),
        buckets={f"{w}x{h}": n for (w, h), n in plan.bucket_counts.items()},
        picks_per_epoch=plan.num_picks(0),
        steps_per_epoch=len(plan.epoch(0, last=epochs == 1)),
        total_steps=total,
        num_warnings=len(dataset.warnings) + len(plan.problems),
        num_cut_captions=_num_cut(dataset, family),
        num_small=len(plan.small),
        num_latents=sum(plan.bucket_counts.values()) * views,
        latent_bytes=pixels * views * family.latent_channels * width // family.vae_factor**2,
        left_out=tuple(left_out) + tuple(f"{dataset.path(i)}: {why}" for i, why in plan.left_out),
    )
    return Prepared(
        plan=plan,
        summary=summary,
        total_steps=total,
        fingerprint=_fingerprint(dataset, ids) if ids else "",
        model_hash=family.model_hash(),
        sample=dataset.sample,
        view=view,
        latents=cache.latents,
        steps=steps,
    )


def _first_root(s: TrainSettings) -> Path:
    root: Any = s.data_root
    while not isinstance(root, str | os.PathLike):
        root = root[0] if isinstance(root, tuple | list) else root.get("path") or root["resolvers"]
    return Path(root)


@contextmanager
def _catalog(root: Path, state_dir: Path | None, *, write: bool, progress: Progress) -> Iterator[Catalog]:
    """The data root's catalog; read-only, and said so, where another edkit command writes to it."""
    if not root.exists():
        raise BadInput("no such folder or manifest", where=str(root))
    try:
        catalog = Catalog.open(root, state_dir=state_dir, write=write, command="train")
    except StateError as error:
        if not write:
            raise
        progress.say(f"{error}; going on without it: files are hashed anew this time")
        catalog = Catalog.open(root, state_dir=state_dir, write=False, command="train")
    with catalog:
        yield catalog


def _without_errors(dataset: Dataset, s: TrainSettings, progress: Progress) -> tuple[Dataset, list[str]]:
    errors = dataset.errors
    if not errors:
        return dataset, []
    if not s.leave_out_broken:
        _refuse([str(problem) for problem in errors], dataset, progress)
    dataset, gone = dataset.without_errors()
    lines = [str(one.problem) for one in gone]
    _tell([f"left out: {line}" for line in lines], progress)
    return dataset, lines


def _without_broken(
    dataset: Dataset, broken: dict[Path, BadInput], s: TrainSettings, progress: Progress
) -> tuple[Dataset, list[str]]:
    """Leave out what only decoding found out, or refuse to train."""
    lines = [
        str(Problem(level="error", code="unreadable-image", where=str(p), what=e.what, mend=e.mend or ""))
        for p, e in sorted(broken.items())
    ]
    if not s.leave_out_broken:
        _refuse(lines, dataset, progress)
    _tell([f"left out: {line}" for line in lines], progress)
    return dataset.drop([i for i in range(len(dataset)) if dataset.path(i) in broken]), lines


def _refuse(lines: list[str], dataset: Dataset, progress: Progress) -> None:
    _tell(lines, progress)
    more = f" and {len(lines) - 1} more errors" if len(lines) > 1 else ""
    raise BadInput(
        f"training does not start: {lines[0].removeprefix('error: ')}{more}",
        where=str(dataset.root),
        mend="edkit check lists them all; --leave-out-broken trains without them",
    )


def _tell(lines: list[str], progress: Progress) -> None:
    for line in lines[:_TOLD]:
        progress.say(line)
    if len(lines) > _TOLD:
        progress.say(f"... and {len(lines) - _TOLD} more")


def _plan(dataset: Dataset, s: TrainSettings) -> Plan:
    assert s.resolution is not None and s.bucket_step is not None  # resolved
    return Plan(
        dataset,
        PlanSettings(
            batch_size=s.batch_size,
            resolution=s.resolution,
            bucket_step=s.bucket_step,
            max_aspect=s.max_aspect,
            seed=s.seed,
            small=s.small,
            remainder=s.remainder,
            crop=s.crop,
        ),
    )


def _at_least(plan: Plan, steps: int) -> int:
    """`steps`, where the data has any picks at all in the epochs to come."""
    # a fraction may leave the first epochs empty; one that is empty for long is empty for ever
    return steps if any(plan.num_picks(epoch) for epoch in range(1000)) else 0


def _views(plan: Plan, s: TrainSettings, ids: dict[Path, str]) -> Iterator[View]:
    """Every way in which the plan can see its images (with random crops: in which the first epoch does)."""
    dataset = plan.dataset
    if s.crop == "random":
        for step in plan.epoch(0).steps:
            for micro in step:
                for pick in micro.picks:
                    path = dataset.path(pick.index)
                    yield View(path=path, content_id=ids[path], crop=pick.crop)
        return
    idle = {i for i, _ in plan.left_out}
    for i in range(len(dataset)):
        if i not in idle:
            path = dataset.path(i)
            crop = replace(plan.crop(i), flip=False)
            probability = dataset.options(i).flip_p or 0.0
            if probability < 1:
                yield View(path=path, content_id=ids[path], crop=crop)
            if probability > 0:
                yield View(path=path, content_id=ids[path], crop=replace(crop, flip=True))


def _num_cut(dataset: Dataset, family: Family) -> int:
    """Distinct captions that are longer than the text encoder reads."""
    captions = sorted(
        {", ".join([c.text, *(t.text for t in c.tags)]) for c in map(dataset.caption, range(len(dataset)))}
    )
    # no token is shorter than a letter: most captions need no tokenizer
    around = family.count_tokens([""])[0]  # markers; a byte is a token at most
    long = [caption for caption in captions if len(caption.encode("utf-8", "replace")) + around > family.max_tokens]
    return sum(n > family.max_tokens for n in family.count_tokens(long))


def _fingerprint(dataset: Dataset, ids: dict[Path, str]) -> str:
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        caption, options = dataset.caption(i), dataset.options(i)
        tags = [(t.text, t.weight) for t in caption.tags]
        row = (dataset.key(i), ids[dataset.path(i)], caption.text, tags, caption.verbatim, repr(options))
        digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
