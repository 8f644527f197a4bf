"""Training: from settings to a run folder with checkpoints, samples and an export."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkit import __version__
from edkit.data import atomic
from edkit.data.errors import EdkitError, NoSpace, StateError, UsageError
from edkit.data.lock import Lock
from edkit.data.progress import SILENT, Progress
from edkit.train import checkpoint as ck
from edkit.train import ranks
from edkit.train.boards import Board, TensorBoard, Wandb, need_packages
from edkit.train.export import export_folder, export_model
from edkit.train.families import load_family
from edkit.train.families.base import DTYPES, Family
from edkit.train.generate import draw, pick_device
from edkit.train.loader import Batch, Loader, Noise, Planned
from edkit.train.lora import caption_counts, export_lora
from edkit.train.losses import timestep_weights
from edkit.train.needs import Needs, needs
from edkit.train.noise import timestep_draws
from edkit.train.prepare import PRESERVATION, Prepared, Summary, prepare, remember_rate
from edkit.train.presets import over_preset
from edkit.train.prompts import Prompts, SamplePrompt, SampleSheet
from edkit.train.record import DATASET_FILE, read_record
from edkit.train.settings import SETTINGS_FILE, TrainSettings, changed, read_settings, refuse, resolve, to_toml
from edkit.train.stop import Stopped, listening
from edkit.train.trainer import Losses, Trainer
from edkit.train.validate import numbers, stable_losses
from edkit.train.watch import Watch, read_measured, read_metrics, seen

# what may differ between a run and its resumption without a word: nothing of it changes what is learned
_HARMLESS = {"out", "state_dir", "device", "num_threads", "tensorboard", "log_every_steps", "keep_checkpoints"}
_HARMLESS |= {"keep_exports"}
_HARMLESS |= {
    "save_every_steps",
    "save_every_epochs",
    "save_every_minutes",
    "export_on_save",
    "export_precision",
    "export_single_file",
}
_HARMLESS |= {
    "sample_prompts",
    "sample_every_steps",
    "sample_steps",
    "sample_guidance",
    "sample_negative",
    "sample_seed",
}
_HARMLESS |= {"max_drift", "on_drift", "validate_every_steps", "validate_every_epochs", "wandb", "step_ledger"}
_HARMLESS |= {"cache_latents", "cache_text", "cache_gb", "num_workers", "leave_out_broken"}

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
    prompts = Prompts(settings.sample_prompts, _sample_sheet(settings), say=progress.say)
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
            atomic.write_text(run_dir / SETTINGS_FILE, to_toml(settings))
            atomic.write_bytes(run_dir / DATASET_FILE, data.record.file())
            _write_about(run_dir, family, data)
        loop = _Loop(settings, family, data, run_dir, device, progress, prompts)
        if folder is not None and state is not None:
            loop.restore(folder, state)
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
    come first, then the config, then the flags. Raises UsageError.
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
    before = _settings_of(Path(going_on))
    if config is not None:
        before = read_settings(config, flags, say=progress.say)
    return before.but(**{k: v for k, v in flags.items() if k != "out"}), Path(going_on)


class _Loop:
    """A run: its trainer, its batches, where the plan stands, and what is written when."""

    def __init__(
        self,
        s: TrainSettings,
        family: Family,
        data: Prepared,
        run_dir: Path,
        device: torch.device,
        progress: Progress,
        prompts: Prompts,
    ) -> None:
        self.s, self.family, self.data, self.run_dir = s, family, data, run_dir
        self.device, self.progress = device, progress
        self.prompts = prompts
        self.trainer = Trainer(
            s, family, device, total_steps=data.total_steps, where=run_dir, texts=data.texts, resting=data.resting,
        )  # fmt: skip
        self.loader = Loader(
            family=family,
            sample=data.sample,
            view=data.view,
            latents=data.latents,
            seed=s.seed,
            timesteps=(s.timestep_start, s.timestep_end or family.num_timesteps),
            micro_batch_size=s.micro_batch_size,
            weights=timestep_weights(
                family.snr(torch.arange(family.num_timesteps)),
                family.prediction_type,
                min_snr_gamma=s.min_snr_gamma,
                debiased=s.debiased,
            ),
            draws=partial(timestep_draws, distribution=s.timestep_distribution, shift=s.timestep_shift),
            noise=Noise(offset=s.offset_noise, pyramid=s.pyramid_noise, input_perturbation=s.input_perturbation),
            pixel_weights=data.pixel_weights,
            num_workers=s.num_workers,
            pin=device.type == "cuda",
        )
        self.epoch = self.step_in_epoch = 0  # the next step's place in the plan
        self.num_images = 0
        self.saved: Path | None = None
        self._saved_step = 0  # at step 0 there is nothing to save
        self._owes_export = False  # the checkpoint resumed from came with an export
        self.exported: Path | None = None
        self.grids: list[Path] = []
        self.drifted = False  # more than it may: the run ends
        self._loss_before: float | None = None  # on ground truth, at step 0

    @property
    def step(self) -> int:
        return self.trainer.step

    def run(self, stack: contextlib.ExitStack) -> None:
        s, total = self.s, self.data.total_steps
        self.stop = stack.enter_context(listening(alone=ranks.size() == 1))
        if ranks.is_first():
            self.watch = Watch(
                self.run_dir,
                step=self.step,
                every=s.log_every_steps,
                boards=self._boards(),
                keys=(entry.key for entry in self.data.record.entries),
                num_timesteps=self.family.num_timesteps,
                ledger=s.step_ledger,
            )
            stack.callback(self.watch.close)
        if s.export_on_save and s.keep_exports and (s.save_every_steps or s.save_every_epochs or s.save_every_minutes):
            size = self._export_bytes() / 1e6
            self.progress.say(f"exports/ keeps the last {s.keep_exports} models, {size:,.0f} MB each (keep_exports)")
        try:
            with ck.full_disk_told(self.run_dir, self._how_to_go_on), self._stoppable():
                self._go_on(total)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise NoSpace(
                f"{self.device} is out of memory after step {self.step:,}",
                where=str(self.run_dir),
                mend=f"adamw8bit, adafactor and lora need less; {self._how_to_go_on()}",
            ) from None

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Save where the run was asked to end, and say with the KeyboardInterrupt how to go on."""
        try:
            try:
                yield
            except Stopped:
                self.trainer.drop()
                self.save()
                ranks.from_first(None)  # a launcher ends all processes when the first one leaves
                how = f"stopped at step {self.step:,} of {self.data.total_steps:,}"
                raise KeyboardInterrupt(f"{how}; {self._how_to_go_on()}") from None
        except KeyboardInterrupt as second:
            if second.args:
                raise
            raise KeyboardInterrupt(f"left at once; {self._how_to_go_on()}") from None

    def _how_to_go_on(self) -> str:
        if self._saved_step == 0:
            return f"nothing is saved yet; from the start: edkit train --resume {self.run_dir}"
        return f"step {self._saved_step:,} is saved; go on: edkit train --resume {self.run_dir}"

    def _go_on(self, total: int) -> None:
        s = self.s
        if self._owes_export and s.export_on_save and not self._step_export().exists():
            self.export_step()
        self.validate_if_due()
        self.samples_if_due()
        last_save = time.monotonic()
        meter = _Meter(self.device)
        self._batches = self.loader.batches(self.steps())
        try:
            with self.progress.task("training", total=total, unit="") as advance:
                advance(self.step)
                while self.step < total:
                    if ranks.anybody(self.stop.asked):
                        raise Stopped
                    clock = time.perf_counter()
                    batch, losses = self._gradients()
                    done = self.trainer.move(batch, losses)
                    self.epoch, self.step_in_epoch = batch.epoch, batch.index + 1
                    self.num_images += done.num_images
                    meter.add(done.num_images, time.perf_counter() - clock)
                    images = ranks.gathered(seen(batch, done.losses))
                    if ranks.is_first():
                        told = {**done.values, "epoch": float(batch.epoch), "images_per_s": meter.rate}
                        self.watch.step(self.step, told, images)
                    meter.show(advance, done.values["loss"])
                    self.validate_if_due()
                    if self.step >= total or (s.on_drift == "stop" and ranks.from_first(self.drifted)):
                        break
                    if self._due(batch, time.monotonic() - last_save):
                        self.save(exports=s.export_on_save)
                        if s.export_on_save:
                            self.export_step()
                        last_save = time.monotonic()
                    self.samples_if_due()
        finally:
            self._batches.close()
        self.save()
        self.export(self.run_dir / "export")
        self.samples()
        ranks.from_first(None)

    def _gradients(self) -> tuple[Batch, Losses]:
        """The next step's batch and gradients; where memory doesn't hold its micro-batches, in halves of them."""
        while True:
            largest = self.s.micro_batch_size or self.s.batch_size
            try:
                batch = self._next_batch()
                largest = max((len(micro.samples) for micro in batch.micros), default=1)
                if ranks.size() == 1:
                    return batch, self.trainer.gradients(batch, between=self.stop.look)
                return batch, self.trainer.gradients(batch)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # outside of the handler: what the error holds is free by now
            self._halve(largest)

    def _next_batch(self) -> Batch:
        try:
            with self.stop.at_once():
                return next(self._batches)
        except EdkitError:  # a file has changed or gone; the weights are as the last step left them
            self.save()
            raise

    def _halve(self, largest: int) -> None:
        """Go on with half as many images at once: that changes no result but rounding. NoSpace where it was one."""
        self.trainer.drop()
        self.save()  # whoever resumes does so with the new number, from here
        if largest == 1:
            raise NoSpace(
                f"{self.device} is out of memory at step {self.step + 1}, with one image at once",
                where=str(self.run_dir),
                mend="resume with gradient_checkpointing, a lower resolution, precision bf16, optimizer adafactor or "
                "lora, and --accept-changes",
            )
        self.s = self.s.but(micro_batch_size=largest // 2)
        self.progress.say(
            f"{self.device} is out of memory at step {self.step + 1:,} with {largest} images at once: from here "
            f"micro_batch_size = {largest // 2} (the same result but for rounding)"
        )
        if ranks.is_first():
            atomic.write_text(self.run_dir / SETTINGS_FILE, to_toml(self.s))
        self._batches.close()
        self.loader.limit = self.s.micro_batch_size
        self._batches = self.loader.batches(self.steps())
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def steps(self) -> Iterator[Planned]:
        """The steps from where the run stands, epoch after epoch, without end."""
        epoch, start = self.epoch, self.step_in_epoch
        while True:
            steps = self.data.steps(epoch)
            for i in range(start, len(steps)):
                mine = ranks.share(steps[i], ranks.rank(), ranks.size())
                yield Planned(epoch=epoch, index=i, last=i + 1 == len(steps), step=mine)
            epoch, start = epoch + 1, 0

    def _due(self, batch: Batch, seconds: float) -> bool:
        s = self.s
        return bool(
            (s.save_every_steps and self.step % s.save_every_steps == 0)
            or (s.save_every_epochs and batch.last and (batch.epoch + 1) % s.save_every_epochs == 0)
            or (s.save_every_minutes and seconds >= 60 * s.save_every_minutes)
        )

    def validate_if_due(self) -> None:
        """Measure the validation sets with the model (its average, where there is one) as it stands, where it is time
        and a run that was killed has not done so.
        """
        if not ranks.is_first():
            return
        s, family = self.s, self.family
        unsaid = s.validate_every_steps is None and s.validate_every_epochs is None
        epochs, ends = 1 if unsaid else s.validate_every_epochs, self.step_in_epoch == len(self.data.steps(self.epoch))
        due = (
            self.step in (0, self.data.total_steps)
            or (s.validate_every_steps and self.step % s.validate_every_steps == 0)
            or (epochs and ends and (self.epoch + 1) % epochs == 0)
        )
        if not (due and self.data.validation) or self.watch.measured_step == self.step:
            return
        values: dict[str, float] = {}
        with self.trainer.averaged(), self.stop.at_once():
            for one in self.data.validation:
                found = stable_losses(
                    family, one.samples, self.data.latents, device=self.device, seed=s.validate_seed,
                    timesteps=(s.timestep_start, s.timestep_end or family.num_timesteps), precision=s.precision,
                    rows=s.micro_batch_size, texts=self.data.texts, progress=self.progress,
                )  # fmt: skip
                values |= numbers(one, found, family.num_timesteps)
        self._see_drift(values)
        self.watch.measured(self.step, values)

    def _see_drift(self, values: dict[str, float]) -> None:
        """Add the drift to what was measured, and say so, or end the run, where it is more than allowed."""
        loss, s = values.get(f"{PRESERVATION}/loss"), self.s
        if loss is None:
            return
        if self._loss_before is None:
            rows = [row for row in read_measured(self.run_dir) if f"{PRESERVATION}/loss" in row]
            self._loss_before = rows[0][f"{PRESERVATION}/loss"] if rows else loss
        drift = values["drift"] = loss / self._loss_before - 1
        if s.max_drift is None or drift <= s.max_drift:
            return
        self.drifted = s.on_drift == "stop"
        ends = "the run ends here" if self.drifted else "it forgets"
        self.progress.say(f"step {self.step:,}: drift {drift:+.1%}, and {s.max_drift:.1%} is allowed: {ends}")

    def _boards(self) -> list[Board]:
        boards: list[Board] = []
        if self.s.tensorboard:
            boards.append(TensorBoard(self.run_dir / "tensorboard", step=self.step))
        if self.s.wandb:
            boards.append(Wandb(self.run_dir, config=tomllib.loads(to_toml(self.s))))
        return boards

    # ---- what is kept

    def save(self, *, exports: bool = False) -> None:
        """A checkpoint of this moment, where there is none yet; with `exports` an export is to follow."""
        if not ranks.is_first():
            self._saved_step = self.step
            return
        self.watch.sync()
        if self.step == self._saved_step:
            return
        state = {
            "exports": exports,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "data": self.data.fingerprint,
            "masks": self.data.masks_hash,
            "settings": _hash(to_toml(self.s)),
            "num_threads": torch.get_num_threads(),
            "versions": _versions(),
            "time": time.time(),
            **self.trainer.numbers(),
        }
        self.saved = ck.save_checkpoint(
            self.run_dir, step=self.step, state=state, tensors=self.trainer.tensors(), keep=self.s.keep_checkpoints
        )
        self._saved_step = self.step

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Stand where the checkpoint was made."""
        self.trainer.restore(folder, state)
        self.epoch, self.step_in_epoch = int(state["epoch"]), int(state["step_in_epoch"])
        self.saved, self._saved_step = folder, self.step
        self._owes_export = bool(state.get("exports"))
        now = {**_versions(), "threads": torch.get_num_threads()}
        differs = {k: v for k, v in {**state["versions"], "threads": state["num_threads"]}.items() if now.get(k) != v}
        if differs:
            said = ", ".join(f"{name} {before} -> {now.get(name)}" for name, before in differs.items())
            self.progress.say(f"resuming with {said}: not the same to the bit")

    def export(self, out: Path) -> None:
        """The model as it stands (its average, where there is one) as a folder to use elsewhere."""
        if not ranks.is_first():
            return
        metadata = {
            "edkit_version": __version__,
            "edkit_step": str(self.step),
            "edkit_settings": to_toml(self.s),
            "edkit_dataset": self.data.fingerprint,
            "edkit_base_model": self.data.model_hash,
        }
        files = {DATASET_FILE: self.data.record.file()}
        with self.trainer.averaged(), self.stop.at_once():
            if self.s.method == "lora":
                self.exported = export_folder(
                    out,
                    partial(self._write_lora, metadata=metadata),
                    num_bytes=self._export_bytes(),
                    files=files,
                )
            else:
                self.exported = export_model(
                    self.family, out, precision=self.s.export_precision, metadata=metadata,
                    single_file=self.s.export_single_file, files=files,
                )  # fmt: skip

    def export_step(self) -> None:
        """The model as it stands in exports/, of which the last few stay."""
        out = self._step_export()
        self.export(out)
        if self.s.keep_exports is not None and ranks.is_first():
            for old in sorted(out.parent.glob("step-*"))[: -self.s.keep_exports]:
                with contextlib.suppress(PermissionError):  # Windows: somebody reads it; the next export tries again
                    atomic.remove_folder(old)

    def _step_export(self) -> Path:
        return self.run_dir / "exports" / f"step-{self.step:08d}"

    def _export_bytes(self) -> int:
        if self.s.method == "lora":
            return 2 * _bytes(self.trainer.parameters.values())
        width = DTYPES[self.s.export_precision].itemsize
        weights = sum(p.numel() for part in self.family.parts().values() for p in part.parameters())
        return (1 + self.s.export_single_file) * weights * width

    def _write_lora(self, folder: Path, *, metadata: Mapping[str, str]) -> None:
        s, dataset = self.s, self.data.plan.dataset
        assert s.lora_alpha is not None and s.resolution is not None  # resolved
        pairs = ((dataset.path(i).parent.name, dataset.caption(i).text) for i in range(len(dataset)))
        export_lora(
            self.family, folder, rank=s.lora_rank, alpha=s.lora_alpha, precision=s.export_precision, metadata=metadata,
            title=self.run_dir.name, resolution=s.resolution, captions=caption_counts(pairs),
        )  # fmt: skip

    def samples_if_due(self) -> None:
        """Draw the sample prompts at the steps that are to have pictures, where a kill did not leave them."""
        every = self.s.sample_every_steps
        due = self.step == 0 or (every is not None and self.step % every == 0 and self.step < self.data.total_steps)
        if due and ranks.is_first() and not self.watch.grid_path(self.step).exists():
            self.samples()

    def samples(self) -> None:
        """Draw the sample prompts, as they are now, with the model as it stands."""
        if not ranks.is_first():
            return
        assert self.s.resolution is not None  # resolved
        sheet = self.prompts.now()
        rows = sheet.rows(
            step=self.step, captions=self.data.captions, resolution=self.s.resolution,
            bucket_step=self.family.bucket_step,
        )  # fmt: skip
        if not rows:
            return
        requests = [request for request, _ in rows]
        drawn: dict[tuple[int, float], Any] = {}
        try:
            with self.trainer.averaged(), self.trainer.all_at_hand(), self.stop.at_once():
                for scale in sheet.guidance:
                    for size in dict.fromkeys(size for _, size in rows):
                        some = [i for i, (_, own) in enumerate(rows) if own == size]
                        pictures = draw(
                            self.family, [requests[i] for i in some], steps=sheet.steps, guidance=scale, size=size,
                            batch_size=sheet.batch_size, precision=self.s.precision, device=self.device,
                            progress=self.progress,
                        )  # fmt: skip
                        drawn |= {(i, scale): picture for i, picture in zip(some, pictures, strict=True)}
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            self.progress.say(f"no pictures at step {self.step:,}: {self.device} is out of memory; training goes on")
            return
        table = [[drawn[i, scale] for scale in sheet.guidance] for i in range(len(rows))]
        self.grids.append(self.watch.pictures(self.step, table, requests, sheet.guidance, {"steps": sheet.steps}))


class _Meter:
    """Images a second over the last steps, memory, and the progress line, drawn a few times a second."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = 0  # bytes
        self._recent: list[tuple[int, float]] = []
        self._steps = 0
        self._shown = 0.0
        self.rate = 0.0

    def add(self, images: int, seconds: float) -> None:
        self._recent = [*self._recent[-19:], (images, seconds)]
        self._steps += 1
        self.rate = sum(n for n, _ in self._recent) / max(1e-9, sum(s for _, s in self._recent))

    def show(self, advance: Any, loss: float) -> None:
        now = time.monotonic()
        if now - self._shown > 0.25:
            self._memory = memory_used(self._device)
            memory = f", {self._memory / 1e9:.1f} GB" if self._memory else ""
            advance(self._steps, note=f"loss {loss:.4f}, {self.rate:.1f} images/s{memory}")
            self._shown, self._steps = now, 0


def memory_used(device: torch.device) -> int:
    """Bytes that the run holds: of the device's own memory (at most so far), else of the machine's; 0: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        import psutil
    except ImportError:  # it comes with accelerate
        return 0
    return int(psutil.Process().memory_info().rss)


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


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could get no memory, in the words of its devices."""
    # CUDA raises its own class; Apple's and the CPU's allocators only say so
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


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


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _write_about(run_dir: Path, family: Family, data: Prepared) -> None:
    about = {
        "edkit": __version__,
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "family": family.name,
        "base_model": data.model_hash,
        "data": data.fingerprint,
        "left_out": [str(line) for line in data.summary.left_out],
    }
    atomic.write_text(run_dir / "run.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _versions() -> dict[str, str]:
    import diffusers
    import transformers

    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _run(
    settings: TrainSettings,
    summary: Summary,
    used: Needs,
    run_dir: Path,
    *,
    total: int,
    dry_run: bool,
    loop: _Loop | None = None,
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
