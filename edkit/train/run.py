"""A run of training: from settings and data to a run folder, begun anew or gone on with."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edkit import __version__
from edkit.data import atomic
from edkit.data.errors import StateError, UsageError
from edkit.data.lock import Lock
from edkit.data.progress import SILENT, Progress
from edkit.train import checkpoint as ck
from edkit.train import ranks
from edkit.train.boards import need_packages
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.generate import pick_device
from edkit.train.loop import Loop, versions
from edkit.train.needs import Needs, needs
from edkit.train.prepare import Prepared, Summary, prepare, remember_rate
from edkit.train.presets import over_preset
from edkit.train.prompts import Prompts, SamplePrompt, SampleSheet
from edkit.train.record import DATASET_FILE, read_record
from edkit.train.settings import SETTINGS_FILE, TrainSettings, changed, read_settings, refuse, resolve, to_toml
from edkit.train.watch import read_measured, read_metrics

# what may differ between a run and its resumption without a word: nothing of it changes what is learned
_HARMLESS = {
    "out", "state_dir", "device", "num_threads", "tensorboard", "wandb", "log_every_steps", "step_ledger",
    "save_every_steps", "save_every_epochs", "save_every_minutes", "keep_checkpoints",
    "export_on_save", "export_precision", "export_single_file", "keep_exports",
    "sample_prompts", "sample_every_steps", "sample_steps", "sample_guidance", "sample_negative", "sample_seed",
    "validate_every_steps", "validate_every_epochs", "max_drift", "on_drift",
    "cache_latents", "cache_text", "cache_gb", "num_workers", "leave_out_broken",
}  # fmt: skip

_TELLING = 20  # steps from which on a run's rate says something of the next one's


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a call of `train` did; with `dry_run`, what it would do."""

    run_dir: Path
    settings: TrainSettings  # resolved
    summary: Summary  # the data and the plan
    needs: Needs  # as they were known at the start
    dry_run: bool
    step: int  # optimizer steps done in all
    total_steps: int
    resumed_from: int | None
    num_images: int  # trained on by this call
    first_loss: float  # mean of the first and of the last tenth of all steps
    last_loss: float
    held_out_loss: tuple[float, float] | None  # stable: when first measured, and when last
    seconds: float
    images_per_second: float
    export: Path | None
    checkpoint: Path | None
    samples: tuple[Path, ...]  # grids


def train(
    settings: TrainSettings | None = None,
    *,
    resume: Path | None = None,
    accept_changes: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Run:
    """Fine-tune a model as the settings say, or go on with the run in folder `resume`.

    A resumed run continues bit-identically on the same machine. Where its data or settings (those given
    beside `resume`) changed, it stops with their names unless `accept_changes`. Raises BadInput (settings,
    data, a non-finite loss), UsageError, StateError, NoSpace (memory too); KeyboardInterrupt after Ctrl-C or
    SIGTERM, when the checkpoint is written.
    """
    with ranks.joined():
        return _train(settings, resume, accept_changes, dry_run, progress if ranks.is_first() else SILENT)


def _train(
    settings: TrainSettings | None, resume: Path | None, accept_changes: bool, dry_run: bool, progress: Progress
) -> Run:
    state: dict[str, Any] | None = None
    folder: Path | None = None
    if resume is not None:
        before = _settings_of(resume)
        folder = _newest(resume, progress)
        state = ck.load_state(folder) if folder else None
        settings = before if settings is None else settings
    if settings is None:
        raise UsageError("neither settings nor a run to resume were given")
    family = load_family(settings.model, settings.family, say=progress.say)
    refuse(settings, family.refusals)
    family.clip_skip, family.caption_chunks = settings.clip_skip, settings.caption_chunks
    if settings.zero_terminal_snr:
        family.end_at_pure_noise()
    if resume is not None:
        settings = settings.but(out=resume, seed=before.seed if settings.seed == -1 else settings.seed)
    settings = resolve(
        settings,
        resolution=family.resolution,
        bucket_step=family.bucket_step,
        num_timesteps=family.num_timesteps,
        family=family.name,
    )
    if settings.zero_terminal_snr and (settings.min_snr_gamma or settings.debiased):
        weighing = "debiased" if settings.debiased else "min_snr_gamma"
        progress.say(f"zero_terminal_snr: {weighing} gives the last timestep no weight, and pictures begin from it")
    if resume is not None:
        differs = {k: v for k, v in changed(before, settings).items() if k not in _HARMLESS}
        _consent(differs, "settings", accept_changes, where=resume, progress=progress)
    run_dir = (settings.out or _default_out(settings)).absolute()
    settings = settings.but(out=run_dir)
    new = resume is None and not dry_run and ranks.is_first()
    if new and ((run_dir / SETTINGS_FILE).exists() or ck.checkpoints(run_dir)):
        raise UsageError(f"{run_dir} has a run in it (go on with it: --resume {run_dir}, or choose another --out)")
    settings = ranks.from_first(settings)  # a seed that was drawn, a folder named after the time
    assert settings.out is not None
    run_dir = settings.out
    threads = settings.num_threads or (state or {}).get("num_threads")
    if threads:
        torch.set_num_threads(int(threads))
    device = pick_device(ranks.device_name(settings.device))
    need_packages(tensorboard=settings.tensorboard, wandb=settings.wandb)
    prompts = Prompts(
        settings.sample_prompts, _sample_sheet(settings), num_timesteps=family.num_timesteps, say=progress.say
    )
    with contextlib.ExitStack() as stack:
        held_before = _held_before(run_dir) if resume is not None else None
        with ranks.after_first():
            data = stack.enter_context(
                prepare(settings, family, device, dry_run=dry_run, progress=progress, held_before=held_before)
            )
        total = data.total_steps
        used = needs(settings, family, data.summary, device, device_name=_device_name(device))
        for line in used.lines() if ranks.is_first() else ():
            progress.say(line)
        if dry_run:
            return _run(settings, data.summary, used, run_dir, total=total, dry_run=True)
        if state is not None and state["data"] != data.fingerprint:
            differs = {"data": (state["data"][:12], data.fingerprint[:12])}
            _consent(differs, "data", accept_changes, where=resume or run_dir, progress=progress)
        if state is not None and state.get("masks", "") != data.masks_hash:
            differs = {"masks": (state.get("masks", "")[:12], data.masks_hash[:12])}
            _consent(differs, "data", accept_changes, where=resume or run_dir, progress=progress)
        if ranks.is_first():
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = Lock(run_dir / "lock", command="train")
            stack.callback(lock.release)
            ck.clear_unfinished(run_dir)
        loop = Loop(settings, family, data, run_dir, device, progress, prompts)
        if folder is not None and state is not None:
            loop.restore(folder, state)
        if ranks.is_first():  # only now: what the checkpoint does not go with must not stand as the run's
            atomic.write_text(run_dir / SETTINGS_FILE, to_toml(settings))
            atomic.write_bytes(run_dir / DATASET_FILE, data.record.file())
            _write_about(run_dir, family, data)
        if loop.step >= total:
            progress.say(f"nothing is left to train: step {loop.step:,} of {total:,} (--max-steps, --max-epochs)")
        started = time.perf_counter()
        _warn_of_slow_halves(settings, device, progress)
        loop.run(stack)
        seconds = time.perf_counter() - started
        if ranks.is_first() and loop.num_images >= _TELLING * settings.batch_size:
            remember_rate(settings, images_per_second=loop.num_images / seconds, device=_device_name(device))
        return _run(
            loop.s, data.summary, used, run_dir, total=total, dry_run=False, loop=loop, seconds=seconds,
            resumed_from=None if state is None else int(state["step"]),
        )  # fmt: skip


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def find_run(
    config: Path | None,
    flags: Mapping[str, Any],
    *,
    run_dir: Path | None,
    resume: bool,
    preset: str | None = None,
    progress: Progress = SILENT,
) -> tuple[TrainSettings, Path | None]:
    """The settings a command line means, and the run it wants to go on with (None: a new one).

    A new run's settings lie over the preset (None: the one that this machine takes). A resumed run's own settings
    come first, then what the config says, then the flags. Raises UsageError.
    """
    if not resume:
        if run_dir is not None:
            raise UsageError(f"{run_dir}: a run folder is named only with --resume")
        lay = partial(over_preset, name=preset, say=progress.say)
        return read_settings(config, flags, say=progress.say, over=lay), None
    if preset is not None:
        raise UsageError("a run that is resumed has its settings", where=f"--preset {preset}", mend="leave it out")
    going_on = run_dir or flags.get("out")
    if going_on is None:
        runs = sorted(Path("runs").glob(f"*/{SETTINGS_FILE}"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise UsageError("there is no run in runs/ to resume (name it: --resume RUN_DIR)")
        going_on = runs[-1].parent
    own = _settings_of(Path(going_on))
    more = {key: value for key, value in flags.items() if key != "out"}
    return read_settings(config, more, say=progress.say, own=own), Path(going_on)


def _newest(run_dir: Path, progress: Progress) -> Path | None:
    """The checkpoint to go on from: the newest that is whole; None where the run was killed before its first."""
    folder, damaged = ck.latest(run_dir)
    if folder is None and damaged:
        raise damaged[0]
    for error in damaged:
        progress.say(f"{error.where}: {error.what}: going on from {folder and folder.name}")
    if folder is None:
        progress.say(f"{run_dir} has no checkpoint yet: it begins anew")
    return folder


def _held_before(run_dir: Path) -> set[str] | None:
    """The contents that the run holds out; None where it has no record yet."""
    path = run_dir / DATASET_FILE
    return set(read_record(path).held_out()) if path.exists() else None


def _sample_sheet(s: TrainSettings) -> SampleSheet:
    """What the settings say of every picture."""
    each = SamplePrompt(prompt=None, negative=s.sample_negative, seed=s.sample_seed)
    return SampleSheet(prompts=(each,), guidance=s.sample_guidance, steps=s.sample_steps)


def _settings_of(run_dir: Path) -> TrainSettings:
    path = run_dir / SETTINGS_FILE
    if not path.is_file():
        raise UsageError(f"{run_dir} is no run folder: it has no {SETTINGS_FILE}")
    return read_settings(path)


def _consent(differs: dict[str, tuple[Any, Any]], what: str, given: bool, *, where: Path, progress: Progress) -> None:
    if not differs:
        return
    said = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in differs.items())
    if not given:
        raise StateError(
            f"the {what} changed since this run began: {said}",
            where=str(where),
            mend="--accept-changes goes on with them",
        )
    progress.say(f"going on with changed {what}: {said}")


def _default_out(s: TrainSettings) -> Path:
    first = s.data_root if isinstance(s.data_root, str) else "run"
    return Path("runs") / f"{Path(first).absolute().name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _warn_of_slow_halves(s: TrainSettings, device: torch.device, progress: Progress) -> None:
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if s.precision != "fp32" and device.type == "cpu" and known is not None and not known():
        progress.say(f"this CPU has no {s.precision} instructions: it is many times slower than fp32 here")


def _write_about(run_dir: Path, family: Family, data: Prepared) -> None:
    about = {
        "edkit": __version__,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "family": family.name,
        "base_model": data.model_hash,
        "data": data.fingerprint,
        "left_out": [str(line) for line in data.summary.left_out],
    }
    atomic.write_text(run_dir / "run.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _run(
    settings: TrainSettings,
    summary: Summary,
    used: Needs,
    run_dir: Path,
    *,
    total: int,
    dry_run: bool,
    loop: Loop | None = None,
    seconds: float = 0.0,
    resumed_from: int | None = None,
) -> Run:
    losses = [] if dry_run else [row["loss"] for row in read_metrics(run_dir)]
    tenth = max(1, len(losses) // 10)
    held_out = [] if dry_run else [row["val/loss"] for row in read_measured(run_dir) if "val/loss" in row]
    images = loop.num_images if loop else 0
    return Run(
        run_dir=run_dir,
        settings=settings,
        summary=summary,
        needs=used,
        dry_run=dry_run,
        step=loop.step if loop else 0,
        total_steps=total,
        resumed_from=resumed_from,
        num_images=images,
        first_loss=sum(losses[:tenth]) / tenth if losses else math.nan,
        last_loss=sum(losses[-tenth:]) / tenth if losses else math.nan,
        held_out_loss=(held_out[0], held_out[-1]) if held_out else None,
        seconds=seconds,
        images_per_second=images / seconds if seconds else 0.0,
        export=loop.exported if loop else None,
        checkpoint=loop.saved if loop else None,
        samples=tuple(loop.grids) if loop else (),
    )
