"""EveryDream 2's `train.json`, `optimizer.json` and sample prompts, read as edkit's settings.

Every key is taken over, or its value is refused by name and reason; one that asks for nothing is told and left out.
The table in docs/everydream.md says what becomes of each; a test holds it against this module.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from edkit.data.errors import BadInput

VALIDATION_KEYS: Mapping[str, str] = {
    "validate_training": "false: nothing is held out",
    "val_split_mode": "automatic: `validate_share`; manual: `validate_root`; none",
    "auto_split_proportion": "`validate_share`, near-duplicates on one side; 0.15 where it is silent",
    "manual_data_root": "`validate_root`",
    "extra_manual_datasets": "`validate_sets`",
    "stabilize_training_loss": "`validate_train_share`",
    "stabilize_split_proportion": "its size; 0.15 where it is silent",
    "every_n_epochs": "`validate_every_epochs`",
    "seed": "`validate_seed`",
    "use_relative_loss": "refused: losses are told as they are",
    "batch_size": "told: each image is measured alone",
    "resolution": "told: it is the run's",
}
"""Each key of a validation config, and what becomes of it, in words for the docs."""

# where the file is silent, EveryDream's own defaults hold, as far as they differ from edkit's
DEFAULTS: Mapping[str, Any] = {
    "train_text_encoder": True,
    "clip_grad_norm": 0.0,
    "offset_noise": 0.02,
    "precision": "fp16",
    "optimizer": "adamw",
}


@dataclass(slots=True, kw_only=True)
class EveryDream:
    """Settings by edkit's names, the file and key that each comes from, and what is to be told, a line each."""

    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_everydream(path: Path) -> bool:
    """Whether a config file is EveryDream's: JSON, where edkit's own is TOML."""
    return path.suffix.lower() == ".json"


def read_everydream(path: Path) -> EveryDream:
    """A `train.json` and the files it names, looked for beside it, then in the current folder.

    Raises BadInput with the file and the key: not JSON, an unknown key (with the nearest), a value edkit can't take.
    """
    made = EveryDream(settings=dict(DEFAULTS))
    said = _Value(value=read_json(path), path=path, made=made)
    said.know(KEYS)
    for key, rule in KEYS.items():
        if key in said.object():
            rule.take(said[key], said)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A JSON value and where it stands: read by its kind, null being silence, or refused by name."""

    value: Any
    key: str = ""
    path: Path
    made: EveryDream

    def __getitem__(self, key: str) -> _Value:
        """What an object says of a key: null where it is silent."""
        return replace(self, value=self.object().get(key), key=f"{self.key}.{key}" if self.key else key)

    @property
    def where(self) -> str:
        return f"{self.path}: {self.key}" if self.key else str(self.path)

    def object(self) -> Mapping[str, Any]:
        self._need(isinstance(self.value, dict), "an object is wanted")
        return self.value or {}

    def flag(self) -> bool:
        self._need(isinstance(self.value, bool), "true or false is wanted")
        return bool(self.value)

    def text(self) -> str | None:
        self._need(isinstance(self.value, str), "text is wanted")
        return None if self.value is None else str(self.value)

    def number(self, *, least: float | None = None) -> float | None:
        return None if self.value is None else float(self._number("a number", float, least))

    def whole(self, *, least: int | None = None) -> int | None:
        return None if self.value is None else int(self._number("a whole number", int, least))

    def file(self) -> Path | None:
        """A file beside this one, or in the current folder."""
        name = self.text()
        if not name:
            return None
        found = [path for path in (self.path.parent / name, Path(name)) if _exists(path) and path.is_file()]
        if not found:
            self.refuse("there is no such file", "name it from this file's folder")
        return found[0]

    def folder(self) -> str | None:
        """A folder beside this file where there is one, else as it is said."""
        name = self.text()
        beside = self.path.parent / (name or "")
        return str(beside) if name and _exists(beside) else name

    def know(self, keys: Iterable[str]) -> None:
        """Refuses an object with other keys; those that begin with _ or doc are comments."""
        for key in self.object():
            if key not in keys and not key.startswith(("_", "doc")):
                near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
                mend = f"did you mean {near[0]!r}?" if near else "take it out"
                raise BadInput(f"{key!r} is no key of EveryDream 2's", where=self.where, mend=mend)

    def set(self, name: str, value: Any) -> None:
        """Makes it a setting; where another key said otherwise, that is told."""
        before = self.made.origins.get(name)
        if before is not None and self.made.settings[name] not in (None, value):
            self.made.notes.append(f"{before}: {self.where} is stronger")
        self.made.settings[name] = value
        self.made.origins[name] = self.where

    def tell(self, why: str) -> None:
        self.made.notes.append(f"{self.where}: {why}")

    def refuse(self, why: str, mend: str | None = None) -> NoReturn:
        raise BadInput(f"{self.key} = {json.dumps(self.value)}: {why}", where=str(self.path), mend=mend)

    def _need(self, good: bool, why: str) -> None:
        if self.value is not None and not good:
            self.refuse(why)

    def _number(self, words: str, kind: type, least: float | None) -> Any:
        good = isinstance(self.value, (int, kind)) and not isinstance(self.value, bool)
        self._need(good and abs(self.value) <= sys.float_info.max, f"{words} is wanted")
        self._need(least is None or self.value >= least, f"must be at least {least}")
        return self.value


def _exists(path: Path) -> bool:
    """Path.exists, but False for a name that no file system takes, too."""
    return os.path.exists(path)  # noqa: PTH110


_Take = Callable[[_Value, _Value], None]
"""Makes settings of a key's value; the whole file stands beside it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a key, in words for the docs, and the function that does it."""

    words: str
    take: _Take


def _same(name: str) -> _Take:
    """The setting's own check says what kind it wants."""

    def take(v: _Value, said: _Value) -> None:
        if v.value is not None:
            v.set(name, v.value)

    return take


def _not(name: str) -> _Take:
    def take(v: _Value, said: _Value) -> None:
        v.set(name, not v.flag())

    return take


def _told(why: str, *, harmless: tuple[Any, ...] = (None, False)) -> _Take:
    def take(v: _Value, said: _Value) -> None:
        if v.value not in harmless:
            v.tell(why)

    return take


def _refused(why: str, mend: str, *, harmless: tuple[Any, ...] = (None, False, 0, "")) -> _Take:
    def take(v: _Value, said: _Value) -> None:
        if v.value not in harmless:
            v.refuse(why, mend)

    return take


def _zero_off(name: str) -> _Take:
    def take(v: _Value, said: _Value) -> None:
        v.set(name, v.number() or 0.0)

    return take


def _number_or_off(name: str) -> _Take:
    """Null and 0 mean off."""

    def take(v: _Value, said: _Value) -> None:
        v.set(name, v.number(least=0) or None)

    return take


def _whole_or_off(name: str) -> _Take:
    """Null and 0 mean off."""

    def take(v: _Value, said: _Value) -> None:
        v.set(name, v.whole(least=0) or None)

    return take


def _data_root(v: _Value, said: _Value) -> None:
    if v.value is not None:
        v.set("data_root", v.folder() if isinstance(v.value, str) else v.value)


def _model(v: _Value, said: _Value) -> None:
    name = v.text()
    if name == "findlast":
        v.refuse("a run goes on by its folder", "edkit train --resume RUN_DIR")
    if name is not None:
        v.set("model", "stable-diffusion-v1-5/stable-diffusion-v1-5" if name == "sd_v1-5_vae" else name)


def _batch(v: _Value, said: _Value) -> None:
    size, accumulated = v.whole(least=1), _accumulated(said)
    if size is not None:
        v.set("batch_size", size * accumulated)
        if accumulated > 1:
            v.set("micro_batch_size", size)


def _accumulated(said: _Value) -> int:
    return said["grad_accum"].whole(least=1) or 1


def _accumulation(v: _Value, said: _Value) -> None:
    if _accumulated(said) > 1 and said["batch_size"].value is None:
        v.refuse("so many batches of what size?", "give batch_size")


def _learning_rate(v: _Value, said: _Value) -> None:
    lr, scaled = v.number(least=0), said["scale_lr"].flag()
    if lr is None:
        return
    if scaled:
        lr *= (float(said["batch_size"].whole(least=1) or 1) * _accumulated(said)) ** 0.55
    v.set("lr", lr)


def _scale(v: _Value, said: _Value) -> None:
    for key in ("lr", "batch_size"):
        if v.flag() and said[key].value is None:
            v.refuse(f"it scales lr by the batch size, and {key} is missing", f"give {key}")


def _schedule(v: _Value, said: _Value) -> None:
    if v.value not in (None, "constant", "linear", "cosine", "polynomial"):
        v.refuse("no schedule edkit knows", "constant, linear, cosine or polynomial")
    if v.value is not None:
        v.set("lr_schedule", v.value)


def _out(v: _Value, said: _Value) -> None:
    """Three keys name the run's folder; the first that the file has makes it."""
    name, folder = said["run_name"].text() or said["project_name"].text(), said["logdir"].text()
    if v.value and "out" not in v.made.settings:
        v.set("out", str(Path(folder or "logs") / f"{name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"))


def _amp(v: _Value, said: _Value) -> None:
    v.set("precision", "fp32" if v.flag() else "fp16")


def _ema(v: _Value, said: _Value) -> None:
    rate, interval = said["ema_decay_rate"], said["ema_update_interval"].whole(least=1) or 1
    decay = rate.number(least=0)
    if decay is not None:
        # one update every n steps moves as far as n updates of the n-th root
        rate.set("ema_decay", decay ** (1 / interval))


def _clip_skip(v: _Value, said: _Value) -> None:
    v.set("clip_skip", v.whole(least=0) or 1)


def _full_precision(v: _Value, said: _Value) -> None:
    if v.value is not None:
        v.set("export_precision", "fp32" if v.flag() else "fp16")


def _low_memory(v: _Value, said: _Value) -> None:
    if v.flag():
        v.set("gradient_checkpointing", True)


def _gpu(v: _Value, said: _Value) -> None:
    number = v.whole(least=0)
    if number:
        v.set("device", f"cuda:{number}")


def _rated(v: _Value, said: _Value) -> None:
    percent = said["rated_dataset_target_dropout_percent"]
    share = percent.number(least=0)
    if said["rated_dataset"].flag():
        percent.set("rated_dropout", 0.5 if share is None else share / 100)


def _prompts(v: _Value, said: _Value) -> None:
    path = v.file()
    if path is None:
        return
    v.set("sample_prompts", str(path))
    if path.suffix.lower() == ".json":
        every = replace(v, value=read_json(path), key="", path=path)["generate_samples_every_n_steps"]
        if every.value is not None:
            every.set("sample_every_steps", every.whole(least=0) or None)


def _wandb(v: _Value, said: _Value) -> None:
    if v.flag():
        v.set("wandb", True)


def _validation(v: _Value, said: _Value) -> None:
    path = v.file()
    if path is None:
        return
    told = read_json(path)
    # what older versions called them
    for old, new in (("val_data_root", "manual_data_root"), ("val_split_proportion", "auto_split_proportion")):
        if old in told:
            told[new] = told.pop(old)
    held = replace(v, value=told, key="", path=path)
    held.know(VALIDATION_KEYS)
    validate, mode = held["validate_training"], held["val_split_mode"]
    automatic, by_hand = held["auto_split_proportion"], held["manual_data_root"]
    share, folder = automatic.number(least=0), by_hand.folder()
    if validate.value is None or validate.flag():
        if mode.value in (None, "automatic"):
            automatic.set("validate_share", 0.15 if share is None else share)
        elif mode.value == "manual":
            if not folder:
                mode.refuse("which folder?", "name the folder: manual_data_root")
            by_hand.set("validate_root", folder)
        elif mode.value != "none":
            mode.refuse("no mode edkit knows", "automatic, manual or none")
    extra = held["extra_manual_datasets"]
    sets = {name: extra[name].folder() for name in extra.object()}
    if sets:
        extra.set("validate_sets", sets)
    stable = held["stabilize_split_proportion"]
    share = stable.number(least=0)
    if held["stabilize_training_loss"].flag():
        stable.set("validate_train_share", 0.15 if share is None else share)
    for key, name, least, usual in (
        ("every_n_epochs", "validate_every_epochs", 1, 1),
        ("seed", "validate_seed", 0, 555),
    ):
        number = held[key].whole(least=least)
        held[key].set(name, usual if number is None else number)
    if held["use_relative_loss"].flag():
        mend = "set it to false; the loss of step 0 stands beside the others"
        held["use_relative_loss"].refuse("losses are told as they are", mend)
    for key in ("batch_size", "resolution"):
        if held[key].value is not None:
            held[key].tell("each image is measured alone, at the run's resolution")


def _optimizer(v: _Value, said: _Value) -> None:
    path = v.file()
    if path is None:
        return
    file = replace(v, value=read_json(path), key="", path=path)
    tables = ("base", "text_encoder_overrides", "text_encoder_lr_scale", "text_encoder_freezing")
    file.know((*tables, "apply_grad_scaler_step_tweaks"))
    base, text = file["base"], file["text_encoder_overrides"]
    _optimizer_base(base, said["lr"])
    for key, value in text.object().items():
        if value is not None and key != "lr" and value != base[key].value:
            text[key].refuse("edkit has one optimizer for all parts", "leave it null; its lr may differ")
    _text_encoder_lr(text["lr"], file["text_encoder_lr_scale"])
    _freezing(file["text_encoder_freezing"])


def _optimizer_base(base: _Value, lr: _Value) -> None:
    optimizer = base["optimizer"]
    name = optimizer.text() or "adamw8bit"
    if name == "adamw8bit" and not _has_bitsandbytes():
        optimizer.tell("bitsandbytes is not installed, so adamw: the same steps, with moments in 32 bits")
        name = "adamw"
    if name not in ("adamw", "adamw8bit", "lion", "adafactor", "prodigy"):
        optimizer.refuse("it is none of edkit's", "adamw, adamw8bit, adafactor, lion; prodigy for dadapt_*")
    optimizer.set("optimizer", name)
    rules = {
        "betas": _same("betas"),
        "epsilon": _same("eps"),
        "weight_decay": _same("weight_decay"),
        "lr_scheduler": _schedule,
        "lr_warmup_steps": _same("lr_warmup_steps"),
    }
    for key, take in rules.items():
        take(base[key], base)
    decay = base["lr_decay_steps"]
    if decay.value is not None:
        _whole_or_off("lr_decay_steps")(decay, base)
    rate = base["lr"].number(least=0)
    if rate is not None and lr.value is None:
        base["lr"].set("lr", rate)
    elif rate is not None and rate != lr.value:
        base["lr"].tell(f"{lr.where} is stronger")
    for key, value in base.object().items():
        if value is not None and key not in (*rules, "optimizer", "lr", "lr_decay_steps"):
            base[key].tell("of other optimizers than edkit's")


def _text_encoder_lr(lr: _Value, scale: _Value) -> None:
    rate, factor, whole = lr.number(least=0), scale.number(least=0), lr.made.settings.get("lr")
    if rate is not None:
        lr.set("text_encoder_lr", rate)
        if factor is not None:
            scale.tell(f"{lr.where} is stronger")
    elif factor is not None and whole is not None:
        scale.set("text_encoder_lr", whole * factor)
    elif factor not in (None, 1):
        scale.refuse("it scales lr, which is missing", "give lr")


def _freezing(freezing: _Value) -> None:
    freezing.know(("unfreeze_last_n_layers", "freeze_front_n_layers", "freeze_embeddings", "freeze_final_layer_norm"))
    last, front = freezing["unfreeze_last_n_layers"], freezing["freeze_front_n_layers"]
    layers, frozen = last.whole(least=1), front.whole()
    embeddings, norm = freezing["freeze_embeddings"], freezing["freeze_final_layer_norm"]
    if layers is not None:
        last.set("text_encoder_layers", layers)
        if frozen:
            front.tell(f"{last.where} is stronger")
    elif frozen is not None and frozen < 0:
        front.set("text_encoder_layers", -frozen)
    elif frozen:
        front.refuse("edkit counts the layers that learn, from the end", last.key)
    elif embeddings.flag():
        embeddings.refuse("edkit freezes the front of the text encoder as a whole", last.key)
    embeddings.flag()
    if norm.flag():
        norm.tell("the last norm learns with the layers before it")


def _has_bitsandbytes() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None


KEYS: dict[str, Rule] = {
    "data_root": Rule("`data_root`, beside the file or in the current folder", _data_root),
    "resume_ckpt": Rule("`model`; `findlast` is `--resume`", _model),
    "resolution": Rule("`resolution`", _same("resolution")),
    "batch_size": Rule("`batch_size` times `grad_accum`, in passes of `micro_batch_size`", _batch),
    "grad_accum": Rule("see `batch_size`", _accumulation),
    "max_epochs": Rule("`max_epochs`", _same("max_epochs")),
    "max_steps": Rule("`max_steps`", _same("max_steps")),
    "lr": Rule("`lr`; stronger than the one in `optimizer.json`", _learning_rate),
    "scale_lr": Rule("`lr` times (`batch_size` x `grad_accum`) ^ 0.55", _scale),
    "lr_scheduler": Rule("`lr_schedule`", _schedule),
    "lr_warmup_steps": Rule("`lr_warmup_steps`", _same("lr_warmup_steps")),
    "lr_decay_steps": Rule("`lr_decay_steps`; 0: the length of the run", _whole_or_off("lr_decay_steps")),
    "cond_dropout": Rule("`cond_dropout`", _same("cond_dropout")),
    "flip_p": Rule("`flip_p`", _same("flip_p")),
    "clip_skip": Rule("`clip_skip`; 0 is 1", _clip_skip),
    "clip_grad_norm": Rule("`clip_grad_norm`", _zero_off("clip_grad_norm")),
    "timestep_start": Rule("`timestep_start`", _same("timestep_start")),
    "timestep_end": Rule("`timestep_end`", _whole_or_off("timestep_end")),
    "loss_type": Rule("`loss_type`", _same("loss_type")),
    "min_snr_gamma": Rule("`min_snr_gamma`", _number_or_off("min_snr_gamma")),
    "zero_frequency_noise_ratio": Rule("`offset_noise`", _zero_off("offset_noise")),
    "pyramid_noise_discount": Rule("`pyramid_noise`", _zero_off("pyramid_noise")),
    "enable_zero_terminal_snr": Rule("`zero_terminal_snr`", _same("zero_terminal_snr")),
    "embedding_perturbation": Rule("`embedding_perturbation`", _zero_off("embedding_perturbation")),
    "shuffle_tags": Rule("`shuffle_tags`", _same("shuffle_tags")),
    "keep_tags": Rule("`keep_tags`, which there was always 0", _same("keep_tags")),
    "seed": Rule("`seed`", _same("seed")),
    "gradient_checkpointing": Rule("`gradient_checkpointing`", _same("gradient_checkpointing")),
    "disable_textenc_training": Rule("`train_text_encoder = false`", _not("train_text_encoder")),
    "disable_unet_training": Rule("`train_unet = false`", _not("train_unet")),
    "disable_amp": Rule("`precision`: fp32, else fp16 with a scaler", _amp),
    "amp": Rule("told: `disable_amp` says it", _told("disable_amp says it", harmless=(None, True))),
    "ema_decay_rate": Rule("`ema_decay`, to the power of 1 / `ema_update_interval`", _ema),
    "ema_update_interval": Rule("see `ema_decay_rate`", _ema),
    "ema_strength_target": Rule(
        "refused", _refused("it stands for a decay that depends on the run's length", "give ema_decay_rate")
    ),
    "ema_device": Rule("told: the average lies where the weights do", _told("the average lies where weights do")),
    "ema_sample_nonema_model": Rule(
        "refused: samples are drawn with the average", _refused("samples are drawn with the average", "take it out")
    ),
    "ema_sample_ema_model": Rule("what edkit does", _told("edkit does so anyway", harmless=(None, False, True))),
    "ema_resume_model": Rule("refused", _refused("a run goes on with all it had", "edkit train --resume RUN_DIR")),
    "optimizer_config": Rule("read; see below", _optimizer),
    "sample_steps": Rule("`sample_every_steps`", _whole_or_off("sample_every_steps")),
    "sample_prompts": Rule("`sample_prompts`: the file, read anew at every sampling", _prompts),
    "save_every_n_epochs": Rule("`save_every_epochs`", _whole_or_off("save_every_epochs")),
    "save_ckpts_from_n_epochs": Rule(
        "told: saves begin with the first", _told("saves begin with the first epoch", harmless=(None, 0))
    ),
    "ckpt_every_n_minutes": Rule("`save_every_minutes`", _number_or_off("save_every_minutes")),
    "save_optimizer": Rule(
        "what edkit does: a checkpoint holds all", _told("a checkpoint holds all", harmless=(None, False, True))
    ),
    "save_full_precision": Rule("`export_precision`: fp32, else fp16", _full_precision),
    "save_ckpt_dir": Rule("told: exports stand in the run's folder", _told("exports stand in the run's folder")),
    "no_save_ckpt": Rule("told: `edkit convert` makes one file", _told("edkit convert makes a single file")),
    "no_prepend_last": Rule("told: names are by step", _told("exports are named by step")),
    "project_name": Rule(
        "`out`: `logdir`/`run_name` or `project_name`, with the time; `logs` and `run` where they are silent", _out
    ),
    "run_name": Rule("see `project_name`", _out),
    "logdir": Rule("see `project_name`", _out),
    "log_step": Rule("`log_every_steps`", _same("log_every_steps")),
    "gpuid": Rule("`device`", _gpu),
    "validation_config": Rule("read; see below", _validation),
    "write_schedule": Rule("told: `edkit plan --schedule`", _told("edkit plan --schedule FILE writes it")),
    "rated_dataset": Rule("`rated_dropout`: `rated_dataset_target_dropout_percent` / 100, else 0.5", _rated),
    "rated_dataset_target_dropout_percent": Rule("see `rated_dataset`", _rated),
    "load_settings_every_epoch": Rule(
        "refused", _refused("a run's settings hold from its first step to its last", "take it out")
    ),
    "wandb": Rule("`wandb`", _wandb),
    "lowvram": Rule("`gradient_checkpointing`", _low_memory),
    "disable_xformers": Rule("told: attention is torch's own", _told("attention is torch's own")),
    "attn_type": Rule("told: attention is torch's own", _told("attention is torch's own")),
    "notebook": Rule("told: no meaning here", _told("no meaning here")),
    "plugins": Rule("refused", _refused("edkit runs no foreign code in a run", "take it out", harmless=(None, []))),
    "config": Rule("refused", _refused("a config that names a config", "take it out")),
}


def read_text(path: Path) -> str:
    """A text file in UTF-8; BadInput where it is none, or can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput((error.strerror or str(error)).lower(), where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("is not UTF-8", where=str(path), mend="save it as UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object with the `#` comments and trailing commas that EveryDream's own files have, or BadInput."""
    text = read_text(path)
    plain = re.sub(r'("(?:[^"\\]|\\.)*")|#[^\n]*', lambda m: m[1] or "", text)
    plain = re.sub(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', lambda m: m[1] or "", plain)
    try:
        found = json.loads(plain)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise BadInput("is no JSON object", where=str(path))
    return found
