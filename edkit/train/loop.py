"""The loop of a run: step after step, and what is measured, drawn and written when."""

from __future__ import annotations

import contextlib
import hashlib
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkit import __version__
from edkit.data import atomic
from edkit.data.errors import EdkitError, NoSpace
from edkit.data.progress import Progress
from edkit.train import checkpoint as ck
from edkit.train import ranks
from edkit.train.boards import Board, TensorBoard, Wandb
from edkit.train.export import export_folder, export_model
from edkit.train.families.base import DTYPES, Family
from edkit.train.generate import draw
from edkit.train.loader import Batch, Loader, Noise, Planned
from edkit.train.lora import caption_counts, export_lora
from edkit.train.losses import timestep_weights
from edkit.train.noise import timestep_draws
from edkit.train.prepare import PRESERVATION, Prepared
from edkit.train.prompts import Prompts
from edkit.train.record import DATASET_FILE
from edkit.train.settings import SETTINGS_FILE, TrainSettings, to_toml
from edkit.train.stop import Stopped, listening
from edkit.train.trainer import Losses, Trainer
from edkit.train.validate import numbers, stable_losses
from edkit.train.watch import Watch, read_measured, seen


class Loop:
    """A run on its way: its trainer, its batches, where the plan stands, and what is written when."""

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
            "optimizer_name": self.s.optimizer,
            "num_threads": torch.get_num_threads(),
            "versions": versions(),
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
        now = {**versions(), "threads": torch.get_num_threads()}
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


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could get no memory, in the words of its devices."""
    # CUDA raises its own class; Apple's and the CPU's allocators only say so
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def versions() -> dict[str, str]:
    import diffusers
    import transformers

    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
