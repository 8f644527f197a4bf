"""What a training run is told: one frozen object, checked where it is made, read from TOML and flags."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import secrets
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from edkit.data.errors import BadInput
from edkit.measure.families import FAMILIES
from edkit.train.everydream import is_everydream, read_everydream

DataRoot = str | tuple[str, ...] | Mapping[str, Any]
"""A folder or manifest, several of them, or a resolver object (FORMATS "Manifest")."""

Schedule = Literal["constant", "linear", "cosine", "polynomial"]
Precision = Literal["fp32", "bf16", "fp16"]
SETTINGS_FILE = "settings.toml"
_LIMITS = {"max_steps", "max_epochs"}
_OTHER_ROOTS = ("validate_root", "preservation_data")
_ADAM_LR = {"full": 2e-6, "lora": 1e-4}
_FULL_EXPORTS = 5  # a whole Stable Diffusion 1 takes 4 GB, an XL 14


class SettingError(BadInput):
    """One setting is wrong; `key` names it, so that whoever read it can say in which file and line."""

    def __init__(self, key: str, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.key = key
        super().__init__(what, where=where or f"setting {key}", mend=mend)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything a run depends on besides its data; `None` means "the family's own" or "off", as each field
    says.
    """

    # what is trained, on what, to where
    data_root: DataRoot
    model: str  # a diffusers folder, or a hub id
    out: Path | None = None  # the run's folder; None: runs/<data root>-<date>
    family: str = "auto"  # a name of `measure.families.FAMILIES`; auto: what the model is
    method: Literal["full", "lora"] = "full"
    train_unet: bool = True
    train_text_encoder: bool = False
    text_encoder_layers: int | None = None  # only the last so many layers of text encoders learn; None: all
    lora_rank: int = 16
    lora_alpha: float | None = None  # None: the rank
    lora_dropout: float = 0.0
    lora_targets: Literal["attention", "transformer", "all"] = "attention"

    # how much
    max_steps: int | None = None  # both None: 10 epochs
    max_epochs: int | None = None
    batch_size: int = 8  # images a step, exactly
    micro_batch_size: int | None = None  # images at once at most, where memory is short; changes no result but rounding

    # learning
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy"] = "adamw"
    lr: float | None = None  # None: usual for method and optimizer (adamw: full 2e-6, lora 1e-4)
    text_encoder_lr: float | None = None  # None: as lr
    lr_schedule: Schedule = "constant"
    lr_warmup_steps: int = 0
    lr_decay_steps: int | None = None  # from the end of warm-up to lr_end; None: the rest of the run
    lr_end: float = 0.0  # linear, cosine and polynomial fall to this part of lr
    lr_power: float = 2.0  # polynomial
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_grad_norm: float | None = None  # None: 1, or off with fused_backward; 0: off
    ema_decay: float | None = None
    loss_type: Literal["mse", "huber", "mse_huber", "huber_mse"] = "mse"
    huber_delta: float = 1.0  # the error from which Huber's loss grows as a line
    min_snr_gamma: float | None = None
    debiased: bool = False  # weigh timesteps by 1 / sqrt(snr)
    offset_noise: float = 0.0
    pyramid_noise: float = 0.0
    input_perturbation: float = 0.0  # of the noise, while the target stays as it is
    embedding_perturbation: float = 0.0  # gamma of the noise on text states
    zero_terminal_snr: bool = False  # v-prediction only
    timestep_start: int = 0
    timestep_end: int | None = None  # exclusive; None: all of the model's
    timestep_distribution: Literal["uniform", "logit_normal"] = "uniform"  # logit_normal: the middle more often
    timestep_shift: float = 1.0  # above 1: noisy timesteps more often, as large pictures need it
    prior_preservation: tuple[str, ...] = ()  # folders below the data root whose target is the untrained model's word

    # memory and speed
    precision: Precision = "fp32"
    weights_precision: Literal["fp32", "bf16"] = "fp32"  # what the denoiser's weights are held in; adapters are fp32
    gradient_checkpointing: bool = False
    fused_backward: bool = False  # adafactor moves each weight as soon as its gradient is there, and frees that
    compile: bool = False  # torch.compile for the denoiser
    channels_last: bool = False

    # pictures and captions: what the command line says is the weakest word, the folders' own options win
    resolution: int | None = None  # None: the model's
    bucket_step: int | None = None  # None: the model's
    max_aspect: float = 4.0
    small: Literal["smaller", "upscale", "leave"] = "smaller"
    remainder: Literal["join", "duplicate", "drop"] = "join"
    rated_dropout: float = 0.0  # the part of the rated images that the last epoch leaves out, low ratings first
    crop: Literal["centre", "random"] = "centre"
    crops_per_image: int = 0  # random crops an image has, of which each pick draws one; 0: every pick has its own
    masks: Literal["none", "file", "alpha"] = "none"  # what weighs the loss: NAME-masklabel.png, or the image's alpha
    unmasked_weight: float = 0.1  # of what a mask leaves black
    normalise_masks: bool = True  # a masked image weighs as much as any other
    cond_dropout: float = 0.04
    flip_p: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    max_caption_length: int | None = None
    clip_skip: int = 1  # 1: the text states the family was made with; 2: one layer earlier, and so on
    caption_chunks: int = 1  # a caption may have so many times the text encoder's length
    caption_fallback: str | None = None
    leave_out_broken: bool = False
    cache_latents: bool = True
    latent_precision: Literal["fp16", "fp32"] = "fp16"
    cache_text: bool = True  # what a frozen text encoder makes of captions
    cache_gb: float = 50.0  # what runs before this one left in the cache goes, oldest first, beyond so much
    num_workers: int | None = None  # threads that make batches; None: by the machine. Changes no number
    seed: int = 555  # -1 draws one and records it

    # what is held out, and what is measured always in the same way
    validate_share: float = 0.0  # so much of the training images is held out, near-duplicates on one side
    validate_root: DataRoot | None = None  # held out by hand: a folder or manifest of its own
    validate_sets: Mapping[str, DataRoot] | None = None  # further sets, by name
    validate_train_share: float = 0.0  # so much of the images that train is measured, too
    validate_every_steps: int | None = None
    validate_every_epochs: int | None = None  # both None: after every epoch; at step 0 and at the end in any case
    validate_seed: int = 555  # of the split and of the noise
    preservation_data: DataRoot | None = None  # what is to be kept: the rise of its loss since step 0 is the drift
    max_drift: float | None = None  # 0.05: at 5% it is said, or the run ends
    on_drift: Literal["warn", "stop"] = "warn"

    # what is kept
    save_every_steps: int | None = None
    save_every_epochs: int | None = None
    save_every_minutes: float | None = None
    keep_checkpoints: int = 2  # to resume from; older ones go
    export_on_save: bool = True  # every save leaves a usable model in exports/, too
    keep_exports: int | None = None  # of those; None: 5 whole models, or every LoRA
    export_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    export_single_file: bool = False  # the export holds model.safetensors in the original layout, too
    sample_prompts: tuple[str, ...] | Path = ()  # or a .txt or .json file of them, read anew at every sampling
    sample_every_steps: int | None = None  # None with prompts: at step 0 and at the end
    sample_steps: int = 25
    sample_guidance: tuple[float, ...] = (5.0,)  # one column of pictures each
    sample_negative: str = ""
    sample_seed: int = 555
    tensorboard: bool = True
    wandb: bool = False  # bring the package
    log_every_steps: int = 10
    step_ledger: bool = False  # steps.jsonl: every image of every step, its caption as seen, crop, timestep and loss

    # where it runs
    device: str = "auto"
    num_threads: int | None = None
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        hints = _hints()
        for name in names():
            value = _as_type(name, getattr(self, name), hints[name])
            object.__setattr__(self, name, value)
        _check(self)

    def but(self, **changes: Any) -> TrainSettings:
        """The same settings with some changed, checked again."""
        for key in changes:
            _known(key)
        return replace(self, **changes)


def names() -> tuple[str, ...]:
    """All settings, in the order of the class."""
    return tuple(f.name for f in fields(TrainSettings))


def defaults() -> dict[str, Any]:
    """The settings that have a default, by name."""
    missing = {f.name for f in fields(TrainSettings) if f.name in ("data_root", "model")}
    return {f.name: f.default for f in fields(TrainSettings) if f.name not in missing}


def read_settings(
    path: Path | None,
    flags: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    over: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda said: said,
    own: TrainSettings | None = None,
) -> TrainSettings:
    """Settings from a TOML file, EveryDream's `train.json`, or no file, under the flags given; relative paths in
    a TOML file are relative to it. `say` is told what of a `train.json` has no place here; `over` lays what was
    said, once it is checked, over settings from elsewhere. `own`: of a run that goes on: what is not said stays, but
    for the run's length, of which max_steps or max_epochs alone takes the other's place.

    Raises BadInput with file and line (of JSON: file and key): unknown key (and the nearest known one), wrong
    type, value out of range.
    """
    said: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None and is_everydream(path):
        theirs = read_everydream(path)
        said, origins = theirs.settings, theirs.origins
        for note in theirs.notes:
            say(note)
    elif path is not None:
        said, lines = _read_toml(path)
        origins = {key: f"{path}:{line}" for key, line in lines.items()}
    said |= {key: value for key, value in (flags or {}).items() if value is not None}
    if own is not None:
        longer = dict.fromkeys(_LIMITS) if len(said.keys() & _LIMITS) == 1 else {}
        said = {name: getattr(own, name) for name in names()} | longer | said
    for key, option in (("data_root", "--data-root"), ("model", "--model")):
        if key not in said:
            raise SettingError(key, f"{key} is missing", where=str(path) if path else "train", mend=f"give {option}")
    try:
        TrainSettings(**said)
        return TrainSettings(**over(said))
    except SettingError as error:
        where = f"--{error.key.replace('_', '-')}"
        if error.key not in (flags or {}):
            where = origins.get(error.key, where)
        raise SettingError(error.key, error.what, where=where, mend=error.mend) from None


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """`key=value` words of a command line as settings; values are TOML, or plain text where they are none."""
    said: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise SettingError(key, "--set wants key=value", where=f"--set {pair}")
        _known(key, where=f"--set {pair}")
        try:
            said[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            said[key] = text
    return said


def flag_settings(assignments: list[str], **flags: Any) -> dict[str, Any]:
    """What a command line said: its `--set key=value` words, and the flags that were given (the stronger
    ones).
    """
    return parse_assignments(assignments) | {key: value for key, value in flags.items() if value is not None}


def resolve(
    settings: TrainSettings, *, resolution: int, bucket_step: int, num_timesteps: int, family: str
) -> TrainSettings:
    """The settings with nothing left open: the family's numbers, absolute paths, a seed drawn for -1."""
    lr, prompts = _usual_lr(settings) if settings.lr is None else settings.lr, settings.sample_prompts
    chosen = settings.but(
        data_root=_absolute(settings.data_root),
        validate_root=settings.validate_root and _absolute(settings.validate_root),
        preservation_data=settings.preservation_data and _absolute(settings.preservation_data),
        validate_sets=settings.validate_sets and {k: _absolute(v) for k, v in settings.validate_sets.items()},
        model=str(Path(settings.model).resolve()) if Path(settings.model).exists() else settings.model,
        state_dir=settings.state_dir and settings.state_dir.absolute(),
        sample_prompts=prompts.absolute() if isinstance(prompts, Path) else prompts,
        family=family,
        resolution=settings.resolution or resolution,
        bucket_step=settings.bucket_step or bucket_step,
        timestep_end=settings.timestep_end or num_timesteps,
        lr=lr,
        clip_grad_norm=_usual_clip(settings) if settings.clip_grad_norm is None else settings.clip_grad_norm,
        lora_alpha=float(settings.lora_rank) if settings.lora_alpha is None else settings.lora_alpha,
        text_encoder_lr=lr if settings.text_encoder_lr is None else settings.text_encoder_lr,
        seed=secrets.randbelow(2**31) if settings.seed == -1 else settings.seed,
        keep_exports=settings.keep_exports or (_FULL_EXPORTS if settings.method == "full" else None),
        max_epochs=10 if settings.max_steps is None and settings.max_epochs is None else settings.max_epochs,
    )
    if chosen.timestep_end is not None and chosen.timestep_end > num_timesteps:
        raise SettingError("timestep_end", f"{chosen.timestep_end}, but the model has {num_timesteps} timesteps")
    if chosen.sample_steps >= num_timesteps:
        raise SettingError("sample_steps", f"{chosen.sample_steps}, but the model has {num_timesteps} timesteps")
    if chosen.resolution is not None and chosen.bucket_step is not None and chosen.resolution < chosen.bucket_step:
        raise SettingError(
            "resolution", f"{chosen.resolution} is below this model's step of {chosen.bucket_step} pixels"
        )
    return chosen


def is_below(key: str, folders: Iterable[str]) -> bool:
    """Whether a sample's key lies in one of the folders, each named by its path below the data root."""
    return any(key.startswith(f"{folder.strip('/')}/") for folder in folders)


def refuse(settings: TrainSettings, refusals: Mapping[str, str]) -> None:
    """Raises SettingError for a setting that was changed and stands among `refusals`, with the reason there."""
    usual = defaults()
    for name, why in refusals.items():
        if getattr(settings, name) != usual[name]:
            raise SettingError(name, why)


def to_toml(settings: TrainSettings) -> str:
    """The settings as a TOML file that `read_settings` reads back equal; None is left out."""
    lines = []
    for name in names():
        value = getattr(settings, name)
        if value is not None:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def changed(before: TrainSettings, after: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name: (before, after)."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in names()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# ---- inside


def _usual_lr(s: TrainSettings) -> float:
    """The learning rate where none is given. Lion's steps are signs, so a tenth of Adam's (Chen et al. 2023,
    section 5); Prodigy finds its own, and its rate is a factor.
    """
    return 1.0 if s.optimizer == "prodigy" else _ADAM_LR[s.method] * (0.1 if s.optimizer == "lion" else 1)


def _usual_clip(s: TrainSettings) -> float:
    return 0.0 if s.fused_backward else 1.0


def _read_toml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(error.strerror or str(error), where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("is not UTF-8", where=str(path), mend="save it as UTF-8") from None
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        where = f"{path}:{found[1]}" if found else str(path)
        raise BadInput(f"is not TOML: {str(error).split(' (at ')[0]}", where=where) from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        found = re.match(r"""\s*\[*\s*["']?([A-Za-z0-9_-]+)""", line)
        if found:
            lines.setdefault(found[1], number)
    for key in said:
        _known(key, where=f"{path}:{lines[key]}" if key in lines else str(path))
    folder = path.resolve().parent
    for key in ("out", "state_dir", "sample_prompts"):
        if isinstance(said.get(key), str):
            said[key] = folder / said[key]
    if isinstance(said.get("model"), str) and (folder / said["model"]).exists():
        said["model"] = str(folder / said["model"])
    for key in ("data_root", *_OTHER_ROOTS):
        if key in said:
            said[key] = _beside(said[key], folder)
    if isinstance(said.get("validate_sets"), dict):
        said["validate_sets"] = {name: _beside(root, folder) for name, root in said["validate_sets"].items()}
    return said, lines


def _absolute(root: Any) -> Any:
    return _beside(root, Path.cwd())


def _beside(root: Any, folder: Path) -> Any:
    if isinstance(root, str):
        return os.path.normpath(folder / root)
    if isinstance(root, list | tuple):
        return [_beside(one, folder) for one in root]
    if isinstance(root, dict):
        return {k: _beside(v, folder) if k in ("path", "resolvers", "data_root") else v for k, v in root.items()}
    return root


def _known(key: str, *, where: str | None = None) -> None:
    if key not in names():
        near = difflib.get_close_matches(key, names(), n=1, cutoff=0.5)
        raise SettingError(
            key,
            f"there is no setting {key!r}",
            where=where,
            mend=f"did you mean {near[0]!r}?" if near else None,
        )


def _hints() -> dict[str, Any]:
    return typing.get_type_hints(TrainSettings)


def _as_type(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type says, text turned to paths and whole numbers to floats; else
    SettingError.
    """
    if name == "data_root" or (name in _OTHER_ROOTS and value is not None):
        return _data_root(name, value)
    if name == "validate_sets" and value is not None:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
            raise SettingError(name, f"{value!r} is not a table of names and folders")
        return {key: _data_root(name, root) for key, root in value.items()}
    wanted = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in wanted:
        return None
    for kind in wanted:
        origin = typing.get_origin(kind)
        if origin is Literal:
            if value in typing.get_args(kind) and isinstance(value, str):
                return value
        elif origin is tuple:
            inner = typing.get_args(kind)[0]
            if inner is float and _is(value, float):
                return (float(value),)
            if isinstance(value, list | tuple) and all(_is(v, inner) for v in value):
                return tuple(float(v) if inner is float else v for v in value)
        elif kind is Path:
            if isinstance(value, str | os.PathLike):
                return Path(value)
        elif kind is float and _is(value, float):
            return float(value)
        elif _is(value, kind):
            return value
    raise SettingError(name, f"{value!r} is not {_in_words(wanted)}")


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        # a whole number may be too large for a float
        return isinstance(value, float) or (_is(value, int) and abs(value) <= sys.float_info.max)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _in_words(wanted: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    said = []
    for kind in wanted:
        if typing.get_origin(kind) is Literal:
            said.append("one of " + ", ".join(str(v) for v in typing.get_args(kind)))
        elif typing.get_origin(kind) is tuple:
            said.append("a list of " + {str: "texts", float: "numbers"}[typing.get_args(kind)[0]])
        elif kind in words:
            said.append(words[kind])
    return " or ".join(said)


def _data_root(name: str, value: Any) -> DataRoot:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple) and len(value) == 1:  # as the command line says it
        return _data_root(name, value[0])
    if isinstance(value, list | tuple) and value and all(isinstance(v, str | os.PathLike) for v in value):
        return tuple(os.fspath(v) for v in value)
    if isinstance(value, Mapping) and "resolver" in value:
        return dict(value)
    raise SettingError(name, f"{value!r} is not a folder, a manifest, a list of those or a resolver")


def _check(s: TrainSettings) -> None:
    def need(key: str, good: bool, what: str) -> None:
        if not good:
            raise SettingError(key, f"{getattr(s, key)!r}: {what}")

    for key in names():
        value = getattr(s, key)
        if isinstance(value, float):
            need(key, math.isfinite(value), "must be a finite number")
    for key in (
        "lora_rank",
        "clip_skip",
        "caption_chunks",
        "batch_size",
        "sample_steps",
        "keep_checkpoints",
        "log_every_steps",
    ):
        need(key, getattr(s, key) >= 1, "must be at least 1")
    counts: tuple[str, ...] = ("max_steps", "max_epochs", "micro_batch_size", "resolution", "bucket_step")
    counts += ("validate_every_steps", "validate_every_epochs")
    counts += ("save_every_steps", "save_every_epochs", "sample_every_steps", "max_caption_length", "lr_decay_steps")
    for key in (*counts, "keep_exports", "num_threads", "num_workers", "text_encoder_layers"):
        need(key, getattr(s, key) is None or getattr(s, key) >= 1, "must be at least 1")
    for key in (
        "weight_decay",
        "offset_noise",
        "pyramid_noise",
        "input_perturbation",
        "embedding_perturbation",
        "lr_warmup_steps",
        "keep_tags",
        "crops_per_image",
        "cache_gb",
        "timestep_start",
        "sample_seed",
        "validate_seed",
    ):
        need(key, getattr(s, key) >= 0, "must not be negative")
    for key in ("cond_dropout", "flip_p", "lr_end", "validate_share", "validate_train_share", "unmasked_weight"):
        need(key, 0 <= getattr(s, key) <= 1, "must lie between 0 and 1")
    for key in ("lr", "text_encoder_lr", "clip_grad_norm"):
        need(key, getattr(s, key) is None or getattr(s, key) >= 0, "must not be negative")
    for key in ("lora_alpha", "min_snr_gamma", "save_every_minutes", "max_drift"):
        need(key, getattr(s, key) is None or getattr(s, key) > 0, "must be above 0")
    need("validate_share", s.validate_share < 1, "something must be left to train on")
    need("ema_decay", s.ema_decay is None or 0 < s.ema_decay < 1, "must lie between 0 and 1")
    for key in ("eps", "huber_delta", "lr_power", "timestep_shift"):
        need(key, getattr(s, key) > 0, "must be above 0")
    need("max_drift", s.max_drift is None or s.preservation_data is not None, "needs preservation_data to measure")
    need("pyramid_noise", s.pyramid_noise < 1, "must lie below 1: each coarser level weighs less")
    need("debiased", not (s.debiased and s.min_snr_gamma), "goes with no min_snr_gamma: both weigh the timesteps")
    if s.fused_backward:
        need("fused_backward", s.optimizer == "adafactor", 'goes with optimizer = "adafactor" alone')
        need("fused_backward", s.precision != "fp16", "fp16's scaler must see all gradients first; take bf16")
        need("clip_grad_norm", not s.clip_grad_norm, "fused_backward never sees all gradients at once: set 0")
    if s.weights_precision == "bf16":
        key = "weights_precision"
        need(key, s.precision == "bf16", 'goes with precision = "bf16" alone')
        rounds = s.method == "lora" or s.optimizer == "adafactor"
        need(key, rounds, "small steps would be lost in rounding; only adafactor rounds stochastically")
        need(key, s.method == "lora" or s.ema_decay is None, "ema_decay wants weights in fp32")
    need("crops_per_image", not s.crops_per_image or s.crop == "random", 'goes with crop = "random" alone')
    need("rated_dropout", 0 <= s.rated_dropout < 1, "must lie from 0 up to 1")
    counted = s.max_epochs is not None or s.max_steps is None
    need("rated_dropout", not s.rated_dropout or counted, "grows over max_epochs: give that")
    need("lora_dropout", 0 <= s.lora_dropout < 1, "must lie between 0 and 1")
    need("betas", len(s.betas) == 2 and all(0 <= b < 1 for b in s.betas), "must be two numbers from 0 up to 1")
    guided = bool(s.sample_guidance) and all(scale >= 0 for scale in s.sample_guidance)
    need("sample_guidance", guided, "must be numbers that are not negative")
    need("max_aspect", s.max_aspect >= 1, "must be at least 1")
    need("seed", s.seed >= -1, "must be -1 or more")
    need(
        "timestep_end",
        s.timestep_end is None or s.timestep_end > s.timestep_start,
        "must lie above timestep_start",
    )
    need("family", s.family in ("auto", *FAMILIES), f"is not one of auto, {', '.join(FAMILIES)}")
    need("model", bool(s.model), "must not be empty")
    need("train_unet", s.train_unet or s.train_text_encoder, "nothing would be trained")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
