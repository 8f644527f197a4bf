"""One optimizer step after another: the weights that learn, their optimizer and their average. It knows no files."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edkit.data.errors import BadInput, UsageError
from edkit.train import checkpoint as ck
from edkit.train import optimizers, ranks
from edkit.train.adafactor import Adafactor
from edkit.train.families.base import DTYPES, Family, last_layers
from edkit.train.loader import Batch, Micro
from edkit.train.lora import add_lora
from edkit.train.losses import image_losses
from edkit.train.settings import TrainSettings, is_below
from edkit.train.texts import TextStates

_NAMED = 8  # files named in an error
_SIZES = 64  # picture sizes that are compiled at most
_LEAST_SCALE = 1.0  # fp16 gradients that overflow at this scale are not finite by themselves; 1 without a scaler


class NotFinite(BadInput):
    """A loss or a gradient is infinite or no number; no weight has moved by it."""


@dataclass(frozen=True)
class Losses:
    """The loss of each image, in the order of the batch's micro-batches; on the CPU."""

    plain: Tensor  # (n,)
    weighted: Tensor  # (n,) times loss_scale and the timestep's weight: what is learned from


_NO_LOSSES = Losses(torch.empty(0), torch.empty(0))  # of a process that has no image in a step


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step was."""

    values: Mapping[str, float]  # loss, plain_loss (no weights), lr, grad_norm before clipping
    losses: Tensor  # (n,) plain loss of each image, in the order of the batch's micro-batches; on the CPU
    num_images: int  # of all processes


class Trainer:
    """What changes from step to step: weights, optimizer, scaler and average."""

    def __init__(
        self,
        s: TrainSettings,
        family: Family,
        device: torch.device,
        *,
        total_steps: int,
        where: Path,
        texts: TextStates | None = None,
        resting: frozenset[str] = frozenset(),
    ) -> None:
        """`total_steps` is what the schedule of the learning rate spans; `where` is named in errors.

        `texts`: the states of captions, where text encoders stay as they are; `resting`: parts that training does
        not need any more, as all they can give is cached: they stay on the CPU.
        """
        self.s, self.family, self.device, self._total, self._where = s, family, device, total_steps, where
        parts = family.parts()
        denoiser = next(iter(parts))
        trained = [n for n in parts if (s.train_unet if n == denoiser else s.train_text_encoder)]
        if s.weights_precision == "bf16":  # before they are on a device that may not hold them in fp32
            for name in {denoiser, *trained}:
                parts[name].to(torch.bfloat16)
        self._resting = resting if device.type != "cpu" else frozenset()
        family.place(device, {*parts, "vae"} - self._resting)
        self.parameters: dict[str, nn.Parameter] = {}
        groups = []
        for name in trained:
            part = parts[name].train()
            if s.gradient_checkpointing:
                _checkpoint_gradients(part)
            named = {f"{name}.{key}": p for key, p in self._learning(name, part).items()}
            self.parameters |= named
            assert s.lr is not None and s.text_encoder_lr is not None  # resolved
            groups.append((list(named.values()), s.lr if name == denoiser else s.text_encoder_lr))
        self._names = {id(p): name for name, p in self.parameters.items()}
        self.optimizer = optimizers.make_optimizer(
            s.optimizer, groups, betas=(s.betas[0], s.betas[1]), eps=s.eps, weight_decay=s.weight_decay, seed=s.seed
        )
        self._fused = isinstance(self.optimizer, Adafactor) and s.fused_backward
        self._waiting: Tensor | None = None  # fused backward: the loss of the step's last micro-batch, until `move`
        if self._fused:
            if ranks.size() > 1:
                raise UsageError("fused_backward goes with one process", mend="leave it out, or start one")
            for parameter in self.parameters.values():
                parameter.register_post_accumulate_grad_hook(self._move_one)  # type: ignore[no-untyped-call]
        if s.channels_last:
            parts[denoiser].to(memory_format=torch.channels_last)
        if s.compile:
            _compile(parts[denoiser], device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=s.precision == "fp16")
        self.ema = optimizers.Ema(self.parameters, s.ema_decay) if s.ema_decay else None
        # nothing has learned yet, and an adapter begins as nothing: these weights are the untrained model's
        self._untrained = optimizers.Aside(self.parameters) if s.prior_preservation else None
        self._texts = None if s.train_text_encoder else texts or TextStates(family, device, precision=s.precision)
        self._has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for n in trained for m in parts[n].modules())
        self.step = 0  # finished optimizer steps

    def _learning(self, name: str, part: nn.Module) -> dict[str, nn.Parameter]:
        """The weights of a part that learn, by name; for LoRA they are put in first."""
        s = self.s
        if s.method == "lora":
            assert s.lora_alpha is not None  # resolved
            adapters = add_lora(
                part, name, rank=s.lora_rank, alpha=s.lora_alpha, dropout=s.lora_dropout, seed=s.seed,
                targets=self.family.lora_targets(name, s.lora_targets),
            )  # fmt: skip
            for parameter in adapters.values():
                parameter.data = parameter.data.float()
            return adapters
        learning = dict(part.named_parameters())
        if name.startswith("text_encoder") and s.text_encoder_layers is not None:
            last = last_layers(part, s.text_encoder_layers)
            learning = {key: p for key, p in learning.items() if key.startswith(last)}
        for parameter in learning.values():
            parameter.requires_grad_(True)
        return learning

    def gradients(self, batch: Batch, *, between: Callable[[], None] = lambda: None) -> Losses:
        """Add up the gradients of the batch's images, which weigh the same in whatever micro-batches they come.

        No weight moves: `drop` forgets it all, as after an exception that `between` raises, which is called before
        each micro-batch. Raises NotFinite where a loss is no number.
        """
        s, family = self.s, self.family
        if self._has_dropout:
            name = f"{s.seed} {self.step}" + (f" {ranks.rank()}" if ranks.rank() else "")
            torch.manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big"))
        plain: list[Tensor] = []
        weighted: list[Tensor] = []
        for micro in batch.micros:
            between()
            target = self._target(micro)
            said = self._predict(micro)
            errors = image_losses(
                said, target, loss_type=s.loss_type, huber_delta=s.huber_delta,
                noisiness=self._here(micro.timesteps) / max(1, family.num_timesteps - 1),
                pixel_weights=None if micro.pixel_weights is None else self._here(micro.pixel_weights),
            )  # fmt: skip
            each = errors * self._here(micro.weights)
            loss = self.scaler.scale(each.sum() / s.batch_size)
            if self._fused and micro is batch.micros[-1]:
                self._waiting = loss
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            plain.append(errors.detach())
            weighted.append(each.detach())
        # one transfer a step: each of them waits for the device
        losses = Losses(*torch.stack([torch.cat(plain), torch.cat(weighted)]).cpu()) if plain else _NO_LOSSES
        if not losses.weighted.isfinite().all():
            raise self._not_finite(batch, losses.weighted)
        return losses

    def drop(self) -> None:
        """Forget the gradients: the step is as if it had not begun."""
        self._waiting = None
        self.optimizer.zero_grad(set_to_none=True)

    def move(self, batch: Batch, losses: Losses) -> StepResult:
        """Let the optimizer use the gradients of the batch, those of all processes together.

        Raises NotFinite, or StateError where another process has ended, before a weight moves.

        With fused backward the last micro-batch's gradients come only now, each moves its weight at once, and of
        them all nothing is known.
        """
        s = self.s
        ranks.sum_gradients(self.parameters.values())
        weighted, plain = zip(*ranks.gathered(list(zip(*_lists(losses), strict=True))), strict=True)
        factor = optimizers.lr_factor(
            self.step,
            schedule=s.lr_schedule,
            warmup=s.lr_warmup_steps,
            total=self._total if s.lr_decay_steps is None else s.lr_warmup_steps + s.lr_decay_steps,
            end=s.lr_end,
            power=s.lr_power,
        )
        optimizers.set_lr(self.optimizer, factor)
        if self._waiting is not None:
            self._waiting.backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads) if grads else None
        length = None if norm is None else float(norm)  # read once, before the optimizer's work stands in line
        # with fp16 gradients now and then overflow: the scaler leaves that step out and scales less, until it has
        # nothing left to give
        if length is not None and not math.isfinite(length) and self.scaler.get_scale() <= _LEAST_SCALE:
            raise self._not_finite(batch, None)
        if norm is not None and s.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), s.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.drop()
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        values = {
            "loss": math.fsum(weighted) / len(weighted),
            "plain_loss": math.fsum(plain) / len(plain),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        values |= {} if length is None else {"grad_norm": length}
        return StepResult(values=values, losses=losses.plain, num_images=len(weighted))

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _move_one(self, parameter: Tensor) -> None:
        """Fused backward: a gradient that is whole moves its weight at once, and goes.

        The gradients of a step's earlier micro-batches wait for those of its last.
        """
        if self._waiting is not None:
            assert isinstance(self.optimizer, Adafactor) and isinstance(parameter, nn.Parameter)
            self.optimizer.step_one(parameter)
            parameter.grad = None

    def _predict(self, micro: Micro) -> Tensor:
        """What the model as it stands says of a micro-batch."""
        s, family = self.s, self.family
        with torch.autocast(self.device.type, dtype=DTYPES[s.precision], enabled=s.precision != "fp32"):
            if self._texts is None:
                text = family.encode_text({name: self._here(ids) for name, ids in micro.tokens.items()})
            else:
                text = self._texts.states(micro.tokens)
            which = self._here(micro.which)
            text = {name: rows[which] for name, rows in text.items()}
            if s.embedding_perturbation:
                text = family.perturb(text, s.embedding_perturbation, s.seed, micro.names)
            noisy, timesteps, sizes = (self._here(t) for t in (micro.noisy, micro.timesteps, micro.sizes))
            if s.compile:
                for tensor in (noisy, timesteps, sizes, *text.values()):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return family.predict(noisy, timesteps, text, sizes)

    def _target(self, micro: Micro) -> Tensor:
        """What the model should say: the truth, or for images of `prior_preservation` what it said untrained."""
        target = self._here(micro.target)
        if self._untrained is None:
            return target
        prior = torch.tensor([is_below(sample.key, self.s.prior_preservation) for sample in micro.samples])
        if not prior.any():
            return target
        with torch.no_grad(), self._untrained.in_place():
            before = self._predict(micro).to(target)
        return torch.where(prior.to(self.device)[:, None, None, None], before, target)

    def _not_finite(self, batch: Batch, losses: Tensor | None) -> NotFinite:
        samples = [sample for micro in batch.micros for sample in micro.samples]
        bad = samples
        if losses is not None:
            bad = [sample for sample, value in zip(samples, losses.tolist(), strict=True) if not math.isfinite(value)]
        paths = sorted({str(sample.path) for sample in bad})
        named = ", ".join(paths[:_NAMED]) + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
        what = "loss" if losses is not None else "gradient"
        all_of_it = len(bad) == len(samples)
        return NotFinite(
            f"the {what} of step {self.step + 1} is not finite; "
            f"{'the batch has' if all_of_it else 'it comes from'} {named}",
            where=str(self._where),
            mend="lower lr, or resume with --precision fp32; the last checkpoint is good"
            if all_of_it
            else "look at what these files and their options say; the last checkpoint is good",
        )

    # ---- what a checkpoint holds

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights, the optimizer's moments and the average, by the name of their file."""
        tensors: dict[str, dict[str, Tensor]] = {
            "weights": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": optimizers.optimizer_tensors(self.optimizer, self._names),
        }
        if self.ema is not None:
            tensors["ema"] = {name: t.cpu() for name, t in self.ema.tensors().items()}
        return tensors

    def numbers(self) -> dict[str, Any]:
        """What of the optimizer and the scaler is no tensor."""
        return {
            "optimizer": optimizers.optimizer_numbers(self.optimizer, self._names),
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Stand where the checkpoint was made; BadInput where it holds other weights than these settings train."""
        weights = ck.load_tensors(folder, "weights")
        if {k: w.shape for k, w in weights.items()} != {k: p.shape for k, p in self.parameters.items()}:
            raise BadInput("has other weights than this model and these settings train", where=str(folder))
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        if state.get("optimizer_name", self.s.optimizer) == self.s.optimizer:  # else its moments begin anew
            moments = ck.load_tensors(folder, "optimizer")
            optimizers.load_optimizer(self.optimizer, self._names, moments, state.get("optimizer", {}))
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            if (folder / "ema.safetensors").exists():
                self.ema.load(ck.load_tensors(folder, "ema"))
            else:
                self.ema.load(weights)
        self.step = int(state["step"])

    @contextlib.contextmanager
    def all_at_hand(self) -> Iterator[None]:
        """While it is open, every part is on the device, also those that training does not need."""
        self.family.place(self.device, self._resting)
        try:
            yield
        finally:
            self.family.place(torch.device("cpu"), self._resting)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, the model has its average's weights (where an average is kept)."""
        return self.ema.in_place() if self.ema is not None else contextlib.nullcontext()


def _lists(losses: Losses) -> tuple[list[float], list[float]]:
    return losses.weighted.tolist(), losses.plain.tolist()


def _checkpoint_gradients(part: nn.Module) -> None:
    for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
        if hasattr(part, name):
            getattr(part, name)()
            return


def _compile(part: nn.Module, device: torch.device) -> None:
    """Have torch compile a part when it is first called with pictures of a size; beyond _SIZES sizes it stays plain."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        mend = f"install {'Triton' if device.type == 'cuda' else 'a C++ compiler'}, or leave compile out"
        raise UsageError(f"torch can't compile here: {why}", mend=mend) from None
    torch._dynamo.config.recompile_limit = max(_SIZES, torch._dynamo.config.recompile_limit)
    # with sizes left open, torch 2.14 fails to order a U-Net's strides; the number of images is left open by `_predict`
    part.compile(dynamic=False)
