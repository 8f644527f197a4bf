"""EveryDream 2's `train.json`, `optimizer.json` and sample prompts, read as edkit's settings.

Every key is taken over, or its value is refused by name and reason; one that asks for nothing is told and left out.
The table in docs/everydream.md says what becomes of each; a test holds it against this module.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edkit.data.errors import BadInput

_VALIDATION: Mapping[str, Any] = {
    "validate_training": True,
    "val_split_mode": "automatic",
    "auto_split_proportion": 0.15,
    "stabilize_training_loss": False,
    "stabilize_split_proportion": 0.15,
    "every_n_epochs": 1,
    "seed": 555,
}
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
    """Settings by edkit's names, and what is to be told: one line a key that has no place here."""

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_everydream(path: Path) -> bool:
    """Whether a config file is EveryDream's: JSON, where edkit's own is TOML."""
    return path.suffix.lower() == ".json"


def read_everydream(path: Path) -> EveryDream:
    """A `train.json` and the files it names, looked for beside it, then in the current folder.

    Raises BadInput with the file and the key: not JSON, an unknown key (with the nearest), a value edkit can't take.
    """
    said = read_json(path)
    made = EveryDream(settings=dict(DEFAULTS))
    unknown = [key for key in said if key not in KEYS and not key.startswith(("_", "doc"))]
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1, cutoff=0.5)
        raise BadInput(
            f"{unknown[0]!r} is no key of EveryDream 2's",
            where=str(path),
            mend=f"did you mean {near[0]!r}?" if near else "take it out",
        )
    for key, rule in KEYS.items():
        if key in said:
            rule.take(_Key(key=key, value=said[key], said=said, path=path, made=made))
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """One key, the file it stands in, and what is being made of it."""

    key: str
    value: Any
    said: Mapping[str, Any]
    path: Path
    made: EveryDream

    def set(self, name: str, value: Any) -> None:
        self.made.settings[name] = value

    def tell(self, why: str) -> None:
        self.made.notes.append(f"{self.key}: {why}")

    def refuse(self, why: str, mend: str) -> None:
        raise BadInput(f"{self.key} = {json.dumps(self.value)}: {why}", where=str(self.path), mend=mend)

    def number(self, *, at_least: float | None = None) -> float:
        good = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not good or (at_least is not None and self.value < at_least):
            self.refuse("a number is wanted", "correct it")
        return float(self.value)

    def file(self) -> Path:
        name = Path(str(self.value))
        for path in (self.path.parent / name, name):
            if path.is_file():
                return path
        self.refuse("there is no such file", "name it from this file's folder")
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a key, in words for the docs, and the function that does it."""

    words: str
    take: Callable[[_Key], None]


def _same(name: str) -> Callable[[_Key], None]:
    def take(k: _Key) -> None:
        if k.value is not None:
            k.set(name, k.value)

    return take


def _elsewhere(k: _Key) -> None:
    """Another key's rule has read it, or edkit does so anyway."""


def _no_meaning(why: str, *, harmless: tuple[Any, ...] = (None, False)) -> Callable[[_Key], None]:
    def take(k: _Key) -> None:
        if k.value not in harmless:
            k.tell(why)

    return take


def _refused(why: str, mend: str, *, harmless: tuple[Any, ...] = (None, False, 0, "")) -> Callable[[_Key], None]:
    def take(k: _Key) -> None:
        if k.value not in harmless:
            k.refuse(why, mend)

    return take


def _data_root(k: _Key) -> None:
    beside = k.path.parent / k.value if isinstance(k.value, str) else None
    k.set("data_root", str(beside) if beside is not None and beside.exists() else k.value)


def _batch(k: _Key) -> None:
    accumulated = int(k.said.get("grad_accum") or 1)
    k.set("batch_size", int(k.number(at_least=1)) * accumulated)
    if accumulated > 1:
        k.set("micro_batch_size", int(k.number()))


def _model(k: _Key) -> None:
    if k.value == "findlast":
        k.refuse("a run goes on by its folder", "edkit train --resume RUN_DIR")
    k.set("model", "stable-diffusion-v1-5/stable-diffusion-v1-5" if k.value == "sd_v1-5_vae" else k.value)


def _learning_rate(k: _Key) -> None:
    if k.value is None:
        return
    lr = k.number(at_least=0)
    if k.said.get("scale_lr"):
        lr *= (int(k.said.get("batch_size") or 1) * int(k.said.get("grad_accum") or 1)) ** 0.55
    k.set("lr", lr)


def _project(k: _Key) -> None:
    name = str(k.said.get("run_name") or k.value)
    if k.value is not None:
        folder = Path(str(k.said.get("logdir") or "logs"))
        k.set("out", str(folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"))


def _amp(k: _Key) -> None:
    k.set("precision", "fp32" if k.value else "fp16")


def _ema(k: _Key) -> None:
    if k.value is not None:
        # one update every n steps moves as far as n updates of the n-th root
        k.set("ema_decay", k.number() ** (1 / int(k.said.get("ema_update_interval") or 1)))


def _clip_skip(k: _Key) -> None:
    k.set("clip_skip", max(1, int(k.number(at_least=0))))


def _full_precision(k: _Key) -> None:
    k.set("export_precision", "fp32" if k.value else "fp16")


def _low_memory(k: _Key) -> None:
    if k.value:
        k.set("gradient_checkpointing", True)


def _gpu(k: _Key) -> None:
    if k.value:
        k.set("device", f"cuda:{int(k.number(at_least=0))}")


def _zero_off(name: str) -> Callable[[_Key], None]:
    def take(k: _Key) -> None:
        k.set(name, k.number() if k.value else 0.0)

    return take


def _or_none(name: str, kind: type = float) -> Callable[[_Key], None]:
    """A number; null and 0 mean off."""

    def take(k: _Key) -> None:
        k.set(name, kind(k.number(at_least=0)) if k.value else None)

    return take


def _minutes(k: _Key) -> None:
    k.set("save_every_minutes", k.number(at_least=0) if k.value else None)


def _timestep_end(k: _Key) -> None:
    k.set("timestep_end", int(k.number(at_least=1)) if k.value else None)


def _schedule(k: _Key) -> None:
    if k.value not in (None, "constant", "linear", "cosine", "polynomial"):
        k.refuse("no schedule edkit knows", "constant, linear, cosine or polynomial")
    k.set("lr_schedule", k.value or "constant")


def _rated(k: _Key) -> None:
    if k.value:
        percent = k.said.get("rated_dataset_target_dropout_percent")
        k.set("rated_dropout", 0.5 if percent is None else float(percent) / 100)


def _prompts(k: _Key) -> None:
    if not k.value:
        return
    path = k.file()
    k.set("sample_prompts", str(path))
    every = read_json(path).get("generate_samples_every_n_steps") if path.suffix.lower() == ".json" else None
    if every is not None:
        k.set("sample_every_steps", int(every))


def _samples_every(k: _Key) -> None:
    if "sample_every_steps" not in k.made.settings:  # the file of prompts says it more strongly
        _or_none("sample_every_steps", int)(k)


def _wandb(k: _Key) -> None:
    if k.value:
        k.set("wandb", True)


def _validation(k: _Key) -> None:
    if not k.value:
        return
    path = k.file()
    said = {**_VALIDATION, **read_json(path)}
    # what older versions called them
    for old, new in (("val_data_root", "manual_data_root"), ("val_split_proportion", "auto_split_proportion")):
        if old in said:
            said[new] = said.pop(old)
    for key in said:
        if key not in VALIDATION_KEYS:
            near = difflib.get_close_matches(key, VALIDATION_KEYS, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]!r}?" if near else "take it out"
            raise BadInput(f"{key!r} is no key of EveryDream 2's validation", where=str(path), mend=mend)

    def beside(root: Any) -> str:
        return str(path.parent / root) if (path.parent / str(root)).exists() else str(root)

    mode = said["val_split_mode"] if said["validate_training"] else "none"
    if mode == "automatic":
        k.set("validate_share", said["auto_split_proportion"])
    elif mode == "manual":
        if not said.get("manual_data_root"):
            raise BadInput("val_split_mode is manual", where=str(path), mend="name the folder: manual_data_root")
        k.set("validate_root", beside(said["manual_data_root"]))
    elif mode != "none":
        raise BadInput(f"val_split_mode = {json.dumps(mode)}", where=str(path), mend="automatic, manual or none")
    extra = said.get("extra_manual_datasets") or {}
    if not isinstance(extra, dict):
        raise BadInput("extra_manual_datasets: names and folders are wanted", where=str(path))
    if extra:
        k.set("validate_sets", {name: beside(root) for name, root in extra.items()})
    if said["stabilize_training_loss"]:
        k.set("validate_train_share", said["stabilize_split_proportion"])
    k.set("validate_every_epochs", said["every_n_epochs"])
    k.set("validate_seed", said["seed"])
    if said.get("use_relative_loss"):
        what = "use_relative_loss = true: losses are told as they are"
        raise BadInput(what, where=str(path), mend="set it to false; the loss of step 0 stands beside the others")
    for key in ("batch_size", "resolution"):
        if said.get(key) is not None:
            k.tell(f"{path.name}: {key}: each image is measured alone, at the run's resolution")


def _optimizer(k: _Key) -> None:
    if not k.value:
        return
    path = k.file()
    said = read_json(path)
    known = {"base", "text_encoder_overrides", "text_encoder_lr_scale", "text_encoder_freezing"}
    strange = [key for key in said if key not in known | {"doc", "apply_grad_scaler_step_tweaks"}]
    if strange:
        raise BadInput(f"{strange[0]!r} is no key of EveryDream 2's", where=str(path), mend="take it out")
    base, text = dict(said.get("base") or {}), dict(said.get("text_encoder_overrides") or {})
    _optimizer_base(k, base, path)
    for key, value in text.items():
        if value is not None and key not in ("lr",) and value != base.get(key):
            what = f"text_encoder_overrides.{key} = {json.dumps(value)}: edkit has one optimizer for all parts"
            raise BadInput(what, where=str(path), mend="leave it null; its lr may differ")
    lr = k.made.settings.get("lr")
    if text.get("lr") is not None:
        k.set("text_encoder_lr", float(text["lr"]))
    elif said.get("text_encoder_lr_scale") is not None and lr is not None:
        k.set("text_encoder_lr", float(lr) * float(said["text_encoder_lr_scale"]))
    _freezing(k, dict(said.get("text_encoder_freezing") or {}), path)


def _optimizer_base(k: _Key, base: Mapping[str, Any], path: Path) -> None:
    name = base.get("optimizer") or "adamw8bit"
    if name == "adamw8bit" and not _has_bitsandbytes():
        k.tell("adamw8bit: bitsandbytes is not installed, so adamw: the same steps, with moments in 32 bits")
        name = "adamw"
    if name not in ("adamw", "adamw8bit", "lion", "adafactor", "prodigy"):
        what = f"optimizer {name!r} is none of edkit's"
        raise BadInput(what, where=str(path), mend="adamw, adamw8bit, adafactor, lion; prodigy for dadapt_*")
    k.set("optimizer", name)
    numbers = {"betas": "betas", "epsilon": "eps", "weight_decay": "weight_decay", "lr_warmup_steps": "lr_warmup_steps"}
    numbers |= {"lr_decay_steps": "lr_decay_steps"}
    for theirs, ours in numbers.items():
        if base.get(theirs) is not None:
            k.set(ours, base[theirs])
    if base.get("lr_scheduler") is not None:
        k.set("lr_schedule", base["lr_scheduler"])
    # the main file's learning rate is the stronger one
    if base.get("lr") is not None and k.said.get("lr") is None:
        k.set("lr", float(base["lr"]))
    odd = sorted(set(base) - set(numbers) - {"optimizer", "lr", "lr_scheduler"})
    if odd:
        k.tell(f"{path.name}: {', '.join(odd)}: of other optimizers than edkit's")


def _freezing(k: _Key, freezing: Mapping[str, Any], path: Path) -> None:
    last = freezing.get("unfreeze_last_n_layers")
    front = freezing.get("freeze_front_n_layers")
    if last is None and front is not None and front < 0:
        last = -front
    if last is not None:
        k.set("text_encoder_layers", int(last))
    elif front:
        what = f"freeze_front_n_layers = {front}: edkit counts the layers that learn, from the end"
        raise BadInput(what, where=str(path), mend="unfreeze_last_n_layers")
    elif freezing.get("freeze_embeddings"):
        what = "freeze_embeddings without a number of layers: edkit freezes the front of the text encoder as a whole"
        raise BadInput(what, where=str(path), mend="unfreeze_last_n_layers")
    if freezing.get("freeze_final_layer_norm"):
        k.tell(f"{path.name}: freeze_final_layer_norm: the last norm learns with the layers before it")


def _has_bitsandbytes() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None


KEYS: dict[str, Rule] = {
    "data_root": Rule("`data_root`, beside the file or in the current folder", _data_root),
    "resume_ckpt": Rule("`model`; `findlast` is `--resume`", _model),
    "resolution": Rule("`resolution`", _same("resolution")),
    "batch_size": Rule("`batch_size` times `grad_accum`, in passes of `micro_batch_size`", _batch),
    "grad_accum": Rule("see `batch_size`", _elsewhere),
    "max_epochs": Rule("`max_epochs`", _same("max_epochs")),
    "max_steps": Rule("`max_steps`", _same("max_steps")),
    "lr": Rule("`lr`; stronger than the one in `optimizer.json`", _learning_rate),
    "scale_lr": Rule("`lr` times (`batch_size` x `grad_accum`) ^ 0.55", _elsewhere),
    "lr_scheduler": Rule("`lr_schedule`", _schedule),
    "lr_warmup_steps": Rule("`lr_warmup_steps`", _same("lr_warmup_steps")),
    "lr_decay_steps": Rule("`lr_decay_steps`; 0: the length of the run", _or_none("lr_decay_steps", int)),
    "cond_dropout": Rule("`cond_dropout`", _same("cond_dropout")),
    "flip_p": Rule("`flip_p`", _same("flip_p")),
    "clip_skip": Rule("`clip_skip`; 0 is 1", _clip_skip),
    "clip_grad_norm": Rule("`clip_grad_norm`", _zero_off("clip_grad_norm")),
    "timestep_start": Rule("`timestep_start`", _same("timestep_start")),
    "timestep_end": Rule("`timestep_end`", _timestep_end),
    "loss_type": Rule("`loss_type`", _same("loss_type")),
    "min_snr_gamma": Rule("`min_snr_gamma`", _or_none("min_snr_gamma")),
    "zero_frequency_noise_ratio": Rule("`offset_noise`", _zero_off("offset_noise")),
    "pyramid_noise_discount": Rule("`pyramid_noise`", _zero_off("pyramid_noise")),
    "enable_zero_terminal_snr": Rule("`zero_terminal_snr`", _same("zero_terminal_snr")),
    "embedding_perturbation": Rule("`embedding_perturbation`", _zero_off("embedding_perturbation")),
    "shuffle_tags": Rule("`shuffle_tags`", _same("shuffle_tags")),
    "keep_tags": Rule("`keep_tags`, which there was always 0", _same("keep_tags")),
    "seed": Rule("`seed`", _same("seed")),
    "gradient_checkpointing": Rule("`gradient_checkpointing`", _same("gradient_checkpointing")),
    "disable_textenc_training": Rule(
        "`train_text_encoder = false`", lambda k: k.set("train_text_encoder", not k.value)
    ),
    "disable_unet_training": Rule("`train_unet = false`", lambda k: k.set("train_unet", not k.value)),
    "disable_amp": Rule("`precision`: fp32, else fp16 with a scaler", _amp),
    "amp": Rule("told: `disable_amp` says it", _no_meaning("disable_amp says it", harmless=(None, True))),
    "ema_decay_rate": Rule("`ema_decay`, to the power of 1 / `ema_update_interval`", _ema),
    "ema_update_interval": Rule("see `ema_decay_rate`", _elsewhere),
    "ema_strength_target": Rule(
        "refused", _refused("it stands for a decay that depends on the run's length", "give ema_decay_rate")
    ),
    "ema_device": Rule("told: the average lies where the weights do", _no_meaning("the average lies where weights do")),
    "ema_sample_nonema_model": Rule(
        "refused: samples are drawn with the average", _refused("samples are drawn with the average", "take it out")
    ),
    "ema_sample_ema_model": Rule("what edkit does", _elsewhere),
    "ema_resume_model": Rule("refused", _refused("a run goes on with all it had", "edkit train --resume RUN_DIR")),
    "optimizer_config": Rule("read; see below", _optimizer),
    "sample_prompts": Rule("`sample_prompts`: the file, read anew at every sampling", _prompts),
    "sample_steps": Rule("`sample_every_steps`", _samples_every),
    "save_every_n_epochs": Rule("`save_every_epochs`", _or_none("save_every_epochs", int)),
    "save_ckpts_from_n_epochs": Rule(
        "told: saves begin with the first", _no_meaning("saves begin with the first epoch", harmless=(None, 0))
    ),
    "ckpt_every_n_minutes": Rule("`save_every_minutes`", _minutes),
    "save_optimizer": Rule("what edkit does: a checkpoint holds all", _elsewhere),
    "save_full_precision": Rule("`export_precision`: fp32, else fp16", _full_precision),
    "save_ckpt_dir": Rule("told: exports stand in the run's folder", _no_meaning("exports stand in the run's folder")),
    "no_save_ckpt": Rule("told: `edkit convert` makes one file", _no_meaning("edkit convert makes a single file")),
    "no_prepend_last": Rule("told: names are by step", _no_meaning("exports are named by step")),
    "project_name": Rule("`out`: `logdir`/`run_name` or `project_name`, with the time", _project),
    "run_name": Rule("see `project_name`", _elsewhere),
    "logdir": Rule("see `project_name`", _elsewhere),
    "log_step": Rule("`log_every_steps`", _same("log_every_steps")),
    "gpuid": Rule("`device`", _gpu),
    "validation_config": Rule("read; see below", _validation),
    "write_schedule": Rule("told: `edkit plan --schedule`", _no_meaning("edkit plan --schedule FILE writes it")),
    "rated_dataset": Rule("`rated_dropout`: `rated_dataset_target_dropout_percent` / 100, else 0.5", _rated),
    "rated_dataset_target_dropout_percent": Rule("see `rated_dataset`", _elsewhere),
    "load_settings_every_epoch": Rule(
        "refused", _refused("a run's settings hold from its first step to its last", "take it out")
    ),
    "wandb": Rule("`wandb`", _wandb),
    "lowvram": Rule("`gradient_checkpointing`", _low_memory),
    "disable_xformers": Rule("told: attention is torch's own", _elsewhere),
    "attn_type": Rule("told: attention is torch's own", _elsewhere),
    "notebook": Rule("no meaning here", _elsewhere),
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
    except ValueError as error:
        raise BadInput(f"is not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise BadInput("is no JSON object", where=str(path))
    return found
