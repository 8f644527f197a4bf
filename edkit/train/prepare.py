"""The data of a run: read, checked, planned, its latents made; nothing trains before all of it stands."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset, read
from edkit.data.errors import BadInput, Problem, StateError
from edkit.data.image import Crop
from edkit.data.places import state_dir_for
from edkit.data.plan import Pick, Plan, PlanSettings, Step
from edkit.data.progress import Progress
from edkit.data.rates import Rate, keep_rate, last_rate
from edkit.data.sample import Options, Sample, caption_text
from edkit.train import ranks
from edkit.train.cache import LatentCache, MaskCache, MaskView, View
from edkit.train.families.base import Family
from edkit.train.losses import mask_weights
from edkit.train.record import Entry, Record, entries_of
from edkit.train.settings import SettingError, TrainSettings, is_below
from edkit.train.split import fixed_part, hold_out
from edkit.train.store import Store
from edkit.train.texts import TextStates
from edkit.train.validate import ValidationSet, fixed_samples

_MEMORY = 1 << 32  # bytes of latents held in memory at most; the rest is read from the cache as it is needed
_MASK_MEMORY = 1 << 30
PRESERVATION = "preservation"  # the set whose loss is to stay
_DRIFT_IMAGES = 64  # of it that are measured
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

    num_images: int  # that train
    num_held_out: int
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
    record: Record  # every image of the data root, and what became of it
    fingerprint: str  # the record's hash: keys, contents, captions, options
    masks_hash: str  # SHA-256 of the masks that weigh the loss; "" without
    validation: tuple[ValidationSet, ...]
    model_hash: str
    captions: Sequence[str]  # of the images that train, each once, sorted
    sample: Callable[[int], Sample]
    view: Callable[[Pick], View]
    latents: Callable[[Sequence[View]], list[Tensor]]
    pixel_weights: Callable[[Sequence[Pick]], Tensor | None] | None  # (n, 1, h, w) by masks, where they are asked for
    texts: TextStates | None  # None: text encoders train
    resting: frozenset[str]  # parts of the model whose every output is cached: they need not be on the device
    steps: Callable[[int], Sequence[Step]]  # of an epoch


@contextmanager
def prepare(
    s: TrainSettings,
    family: Family,
    device: torch.device,
    *,
    dry_run: bool,
    progress: Progress,
    held_before: Collection[str] | None = None,
) -> Iterator[Prepared]:
    """Read the data root, refuse or leave out what is wrong, plan, and make every latent that the plan needs.

    `held_before`: the contents that a run to be resumed holds out. With `dry_run` no image is decoded and nothing is
    written; what would be held out still counts as trained. Raises BadInput where an error stands against an image
    and `leave_out_broken` was not said.
    """
    root = _first_root(s)
    state_dir = state_dir_for(root, s.state_dir)
    with _catalog(root, s.state_dir, write=not dry_run and ranks.is_first(), progress=progress) as catalog:
        dataset, left_out = _read(s.data_root, s, catalog, progress)
        for folder in s.prior_preservation:
            if not any(is_below(dataset.key(i), [folder]) for i in range(len(dataset))):
                raise SettingError("prior_preservation", f"no image lies in {folder!r}", mend="name it from the root")
        sets: dict[str, Dataset] = {}
        for name, other in _other_roots(s).items():
            sets[name], lines = _read(other, s, catalog, progress)
            left_out += lines
        ids: dict[Path, str] = {}
        held: list[int] = []
        if not dry_run:
            paths = [path for one in (dataset, *sets.values()) for path in one.paths]
            masks = [mask for i in range(len(dataset)) if s.masks == "file" and (mask := dataset.mask(i))]
            ids = catalog.content_ids([*paths, *masks], progress=progress)
            held = hold_out(
                dataset, ids, catalog, share=s.validate_share, seed=s.validate_seed, recorded=held_before,
                progress=progress,
            )  # fmt: skip
            if "val" in sets:
                held = _and_by_hand(dataset, held, {ids[path] for path in sets["val"].paths}, ids, progress)
    data = _Data(whole=dataset, held=held, sets=sets, ids=ids)
    with contextlib.ExitStack() as stack:
        store: Store | None = None
        if not dry_run and (s.cache_latents or s.cache_text):
            path = state_dir / "cache" / "tensors.db"
            store = Store(path, limit_bytes=int(s.cache_gb * 1e9), progress=progress)
            stack.callback(store.close)
        cached = _Cached(s, family, device, store)
        stack.callback(cached.latents.close)
        if not dry_run:
            measured = [sample for one in data.validation(s) for sample in one.samples]
            plan = _plan(data.trained, s)
            broken = cached.warm_images(plan, [sample.view for sample in measured], ids, progress)
            if broken:
                left_out += _told_broken(dataset, broken, s, progress)
                data = data.without(broken)
            cached.warm_texts(data.trained, [sample.caption for sample in measured], progress)
        if store:
            store.collect()  # now that all this run needs counts as used
        yield _prepared(s, family, data, cached, left_out)


class _Cached:
    """What is made once of images, masks and captions, and which parts of the model are done with it."""

    def __init__(self, s: TrainSettings, family: Family, device: torch.device, store: Store | None) -> None:
        self._s, self._family, self._device, self._store = s, family, device, store
        self.latents = LatentCache(
            store if s.cache_latents else None,
            encode=family.encode_images,
            encoder_id=family.vae_hash,
            precision=s.latent_precision,
            memory_bytes=_MEMORY if s.cache_latents else 0,
            device=device,
        )
        masks = store if s.cache_latents else None
        self.masks = MaskCache(masks, factor=family.vae_factor, memory_bytes=_MASK_MEMORY)
        self.texts: TextStates | None = None
        self.resting: set[str] = set()

    def warm_images(
        self, plan: Plan, more: Sequence[View], ids: Mapping[Path, str], progress: Progress
    ) -> dict[Path, BadInput]:
        """Make every latent and mask that the plan can ask for, and the latents of `more`; what can't be made comes
        back by its image's path.
        """
        self._family.place(self._device, {"vae"})
        if not self._s.cache_latents:
            return {}
        dataset = plan.dataset
        views = (_view(dataset, i, crop, ids) for i, crop in _crops(plan))
        broken = self.latents.warm(chain(views, more), progress=progress)
        if self._s.masks != "none":
            broken |= self._warm_masks(plan, ids, progress)
        if plan.settings.crop == "centre" or plan.settings.crops_per_image:
            self._rest({"vae"})
        return broken

    def _warm_masks(self, plan: Plan, ids: Mapping[Path, str], progress: Progress) -> dict[Path, BadInput]:
        dataset, source = plan.dataset, self._s.masks
        views = {view: i for i, crop in _crops(plan) if (view := _mask_view(dataset, i, crop, ids, source))}
        bad = self.masks.warm(views, progress=progress)
        if not self._s.unmasked_weight:
            black = [v.path for v in views if v.path not in bad and not self.masks.masks([v])[0].any()]
            lines = [f"{path}: its mask leaves nothing of the crop; it trains nothing" for path in dict.fromkeys(black)]
            _tell(lines, progress)
        return {dataset.path(i): bad[view.path] for view, i in views.items() if view.path in bad}

    def warm_texts(self, dataset: Dataset, more: Sequence[str], progress: Progress) -> None:
        """Where text encoders stay as they are: make the states of every caption, as far as they can be listed, and
        of `more`.
        """
        s, family = self._s, self._family
        if s.train_text_encoder:
            return
        encoders = set(list(family.parts())[1:])
        family.place(self._device, encoders)
        shuffled = any(options.shuffle_tags for options in dataset.option_table)
        # shuffled captions never come again: kept on disk, they would only fill it
        store = self._store if s.cache_text and not shuffled else None
        self.texts = TextStates(family, self._device, precision=s.precision, store=store)
        if not shuffled and s.cache_text:
            captions = (caption_text(dataset.sample(i), seed=s.seed, epoch=0) for i in range(len(dataset)))
            self.texts.warm(["", *captions, *more], progress=progress)
            self._rest(encoders)

    def _rest(self, names: set[str]) -> None:
        self.resting |= names
        self._family.place(torch.device("cpu"), names)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The images of a run, and which of them train."""

    whole: Dataset  # the data root
    held: Sequence[int]  # of it, in order, what is held out
    sets: Mapping[str, Dataset]  # of other roots, to be measured: "val" is held out by hand
    ids: Mapping[Path, str]
    broken: tuple[Entry, ...] = ()

    @property
    def trained(self) -> Dataset:
        return self.whole.drop(self.held)

    @property
    def held_out(self) -> Dataset:
        return _only(self.whole, self.held)

    def without(self, broken: Collection[Path]) -> _Data:
        """The same less images that can't be decoded."""

        def bad(dataset: Dataset) -> list[int]:
            return [i for i, path in enumerate(dataset.paths) if path in broken]

        held = {self.whole.path(i) for i in self.held}
        whole = self.whole.drop(bad(self.whole))
        return replace(
            self,
            whole=whole,
            held=[i for i, path in enumerate(whole.paths) if path in held],
            sets={name: one.drop(bad(one)) for name, one in self.sets.items()},
            broken=tuple(entries_of(_only(self.whole, bad(self.whole)), self.ids, "left_out")),
        )

    def record(self, s: TrainSettings) -> Record:
        entries = [*entries_of(self.trained, self.ids, "train"), *entries_of(self.held_out, self.ids, "held_out")]
        return Record(
            entries=tuple(sorted([*entries, *self.broken], key=lambda e: e.key)),
            reading={"caption_fallback": s.caption_fallback, **_reading(s)},
        )

    def validation(self, s: TrainSettings) -> tuple[ValidationSet, ...]:
        """The sets to measure; empty ones are left out."""
        fixed = {name: fixed_samples(_plan(one, s), self.ids) for name, one in self.sets.items() if len(one)}
        if kept := fixed.get(PRESERVATION):
            names = [sample.view.content_id for sample in kept]
            part = fixed_part(names, share=min(1.0, _DRIFT_IMAGES / len(kept)), seed=s.validate_seed)
            fixed[PRESERVATION] = tuple(kept[i] for i in part)
        if self.held:
            fixed["val"] = (*fixed_samples(_plan(self.held_out, s), self.ids), *fixed.get("val", ()))
        if s.validate_train_share:
            every = fixed_samples(_plan(self.trained, s), self.ids)
            names = [sample.view.content_id for sample in every]
            part = fixed_part(names, share=s.validate_train_share, seed=s.validate_seed)
            fixed["stable"] = tuple(every[i] for i in part)
        return tuple(ValidationSet(name=name, samples=fixed[name]) for name in sorted(fixed) if fixed[name])


def _only(dataset: Dataset, rows: Collection[int]) -> Dataset:
    return dataset.drop(set(range(len(dataset))) - set(rows))


def _reading(s: TrainSettings) -> dict[str, Any]:
    """What the settings say where a folder is silent, by the names of options."""
    return {
        "cond_dropout": s.cond_dropout,
        "flip_p": s.flip_p,
        "shuffle_tags": s.shuffle_tags,
        "keep_tags": s.keep_tags,
        "max_caption_length": s.max_caption_length,
    }


def _read(root: Any, s: TrainSettings, catalog: Catalog, progress: Progress) -> tuple[Dataset, list[str]]:
    """A data root without what is wrong in it, and what that left out."""
    dataset = read(
        root,
        defaults=Options(**_reading(s)),
        caption_fallback=s.caption_fallback,
        catalog=catalog,
        progress=progress,
    )
    return _without_errors(dataset, s, progress)


def _other_roots(s: TrainSettings) -> dict[str, Any]:
    """The roots that are only measured, by the names of their sets."""
    by_hand = {} if s.validate_root is None else {"val": s.validate_root}
    if s.preservation_data is not None:
        by_hand[PRESERVATION] = s.preservation_data
    return {**by_hand, **{f"val-{name}": root for name, root in (s.validate_sets or {}).items()}}


def _and_by_hand(
    dataset: Dataset, held: Sequence[int], contents: Collection[str], ids: Mapping[Path, str], progress: Progress
) -> list[int]:
    """What is held out, and what of the data root stands in validate_root as well."""
    same = [i for i, path in enumerate(dataset.paths) if ids[path] in contents]
    if same:
        progress.say(f"{len(same):,} images of the data root are in validate_root, too: they do not train")
    return sorted({*held, *same})


def _prepared(s: TrainSettings, family: Family, data: _Data, cached: _Cached, left_out: list[str]) -> Prepared:
    dataset, ids = data.trained, data.ids
    plan = _plan(dataset, s)
    epochs = s.max_epochs
    total = plan.total_steps(epochs) if epochs else _at_least(plan, s.max_steps or 1)
    total = min(total, s.max_steps) if s.max_steps else total
    if total < 1:
        mend = (
            "lower batch_size, or take another remainder" if s.remainder == "drop" else "raise multiply or max_epochs"
        )
        raise BadInput("the plan has no step", where=str(dataset.root), mend=mend)
    kept: dict[int, Sequence[Step]] = {}

    def steps(epoch: int) -> Sequence[Step]:
        if epoch not in kept:
            if len(kept) > 2:
                kept.pop(next(iter(kept)))
            kept[epoch] = plan.epoch(epoch, last=epochs is not None and epoch + 1 == epochs).steps
        return kept[epoch]

    def view(pick: Pick) -> View:
        return _view(dataset, pick.index, pick.crop, ids)

    def pixel_weights(picks: Sequence[Pick]) -> Tensor | None:
        views = [_mask_view(dataset, pick.index, pick.crop, ids, s.masks) for pick in picks]
        if not any(views):
            return None
        masks = iter(cached.masks.masks([one for one in views if one]))
        crop, factor = picks[0].crop, family.vae_factor
        whole = torch.ones(crop.height // factor, crop.width // factor)
        stacked = torch.stack([next(masks) if one else whole for one in views])[:, None]
        return mask_weights(stacked, unmasked=s.unmasked_weight, normalise=s.normalise_masks)

    views = 1 if s.flip_p == 0 and not any(o.flip_p for o in dataset.option_table) else 2
    views *= max(1, s.crops_per_image)
    width = {"fp16": 2, "fp32": 4}[s.latent_precision]
    pixels = sum(w * h * n for (w, h), n in plan.bucket_counts.items())
    picks = plan.picks_by_folder(0)
    summary = Summary(
        num_images=len(dataset),
        num_held_out=len(data.held) + len(data.sets.get("val", ())),
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
    record = data.record(s) if ids else Record(entries=(), reading={})
    return Prepared(
        plan=plan,
        summary=summary,
        total_steps=total,
        record=record,
        fingerprint=record.root_hash if ids else "",
        masks_hash=_masks_hash(dataset, ids) if s.masks == "file" and ids else "",
        validation=data.validation(s) if ids else (),
        model_hash=family.model_hash(),
        captions=sorted({dataset.caption(i).text for i in range(len(dataset))}),
        sample=dataset.sample,
        view=view,
        latents=cached.latents.latents,
        pixel_weights=None if s.masks == "none" else pixel_weights,
        texts=cached.texts,
        resting=frozenset(cached.resting),
        steps=steps,
    )


def remember_rate(s: TrainSettings, *, images_per_second: float, device: str) -> None:
    """Keep how fast a run with these (resolved) settings went, for what `plan` and the next run say of their time."""
    assert s.resolution is not None  # resolved
    # another command may hold the state by now; a rate that isn't kept does no harm
    with (
        contextlib.suppress(StateError),
        Catalog.open(_first_root(s), state_dir=s.state_dir, command="train") as catalog,
    ):
        keep_rate(
            catalog, images_per_second=images_per_second, family=s.family, method=s.method, resolution=s.resolution,
            device=device,
        )  # fmt: skip


def known_rate(s: TrainSettings) -> Rate | None:
    """How fast the last run on this data with this family and resolution went, where that is known."""
    assert s.resolution is not None  # resolved
    with Catalog.open(_first_root(s), state_dir=s.state_dir, write=False, command="train") as catalog:
        return last_rate(catalog, resolution=s.resolution, family=s.family)


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
    dataset.must_be_whole()
    errors = dataset.errors
    if not errors:
        return dataset, []
    if not s.leave_out_broken:
        _refuse([str(problem) for problem in errors], dataset, progress)
    dataset, gone = dataset.without_errors()
    lines = [str(one.problem) for one in gone]
    _tell([f"left out: {line}" for line in lines], progress)
    return dataset, lines


def _told_broken(dataset: Dataset, broken: dict[Path, BadInput], s: TrainSettings, progress: Progress) -> list[str]:
    """Tell what only decoding found out and that it is left out, or refuse to train."""
    lines = [
        str(Problem(level="error", code="unreadable-image", where=str(p), what=e.what, mend=e.mend or ""))
        for p, e in sorted(broken.items())
    ]
    if not s.leave_out_broken:
        _refuse(lines, dataset, progress)
    _tell([f"left out: {line}" for line in lines], progress)
    return lines


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
            crops_per_image=s.crops_per_image,
            rated_dropout=s.rated_dropout,
            rated_epochs=s.max_epochs or 0,
        ),
    )


def _at_least(plan: Plan, steps: int) -> int:
    """`steps`, where the data makes any at all in the epochs to come."""
    drops = plan.settings.remainder == "drop"
    # a fraction may leave the first epochs empty; one that is empty for long is empty for ever
    return steps if any(len(plan.epoch(e)) if drops else plan.num_picks(e) for e in range(1000)) else 0


def _crops(plan: Plan) -> Iterator[tuple[int, Crop]]:
    """Every way in which the plan can see its images, by their rows (where each pick draws its own crop: in which
    the first epoch does).
    """
    idle = {i for i, _ in plan.left_out}
    for i in range(len(plan.dataset)):
        crops = plan.crops(i) if i not in idle else []
        if crops is None:
            yield from ((pick.index, pick.crop) for step in plan.epoch(0).steps for m in step for pick in m.picks)
            return
        yield from ((i, crop) for crop in crops)


def _view(dataset: Dataset, i: int, crop: Crop, ids: Mapping[Path, str]) -> View:
    path = dataset.path(i)
    return View(path=path, content_id=ids[path], crop=crop)


def _mask_view(dataset: Dataset, i: int, crop: Crop, ids: Mapping[Path, str], source: str) -> MaskView | None:
    """Where the mask of an image stands, if masks are asked for and it has one."""
    if source == "alpha":
        path = dataset.path(i)
        return MaskView(path=path, content_id=ids[path], crop=crop, source="alpha")
    mask = dataset.mask(i) if source == "file" else None
    return None if mask is None else MaskView(path=mask, content_id=ids[mask], crop=crop, source="file")


def _num_cut(dataset: Dataset, family: Family) -> int:
    """Distinct captions that are longer than the text encoder reads."""
    captions = sorted(
        {", ".join([c.text, *(t.text for t in c.tags)]) for c in map(dataset.caption, range(len(dataset)))}
    )
    # no token is shorter than a letter: most captions need no tokenizer
    around = family.count_tokens([""])[0]  # markers; a byte is a token at most
    long = [caption for caption in captions if len(caption.encode("utf-8", "replace")) + around > family.max_tokens]
    return sum(n > family.max_tokens for n in family.count_tokens(long))


def _masks_hash(dataset: Dataset, ids: Mapping[Path, str]) -> str:
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        if mask := dataset.mask(i):
            digest.update(repr((dataset.key(i), ids[mask])).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
