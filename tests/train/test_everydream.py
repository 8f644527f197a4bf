"""EveryDream 2's configs run as they are: every key taken over, told, or refused by name."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edkit.data.errors import BadInput, EdkitError
from edkit.train.everydream import KEYS, VALIDATION_KEYS
from edkit.train.run import train
from edkit.train.settings import TrainSettings, read_settings

# as it ships with EveryDream 2, with other paths
TRAIN: dict[str, Any] = {
    "batch_size": 10, "ckpt_every_n_minutes": None, "clip_grad_norm": None, "clip_skip": 0, "cond_dropout": 0.04,
    "data_root": "photos", "disable_amp": False, "disable_textenc_training": False, "disable_xformers": False,
    "flip_p": 0.0, "gpuid": 0, "gradient_checkpointing": True, "grad_accum": 1, "logdir": "logs", "log_step": 25,
    "lowvram": False, "lr": 1.5e-06, "lr_decay_steps": 0, "lr_scheduler": "constant", "lr_warmup_steps": None,
    "max_epochs": 1, "notebook": False, "optimizer_config": "optimizer.json", "project_name": "project_abc",
    "resolution": 512, "resume_ckpt": "panopstor/EveryDream", "run_name": None, "sample_prompts": "sample_prompts.txt",
    "sample_steps": 300, "save_ckpt_dir": None, "save_ckpts_from_n_epochs": 0, "save_every_n_epochs": 20,
    "save_optimizer": False, "scale_lr": False, "seed": 555, "shuffle_tags": False,
    "validation_config": "validation_default.json", "wandb": False, "write_schedule": False, "rated_dataset": False,
    "rated_dataset_target_dropout_percent": 50, "zero_frequency_noise_ratio": 0.02, "enable_zero_terminal_snr": False,
    "load_settings_every_epoch": False, "min_snr_gamma": None, "ema_decay_rate": None, "ema_strength_target": None,
    "ema_update_interval": None, "ema_device": None, "ema_sample_nonema_model": False, "ema_sample_ema_model": False,
    "ema_resume_model": None,
}  # fmt: skip
OPTIMIZER: dict[str, Any] = {
    "doc": {"base": "words"},
    "base": {
        "optimizer": "adamw", "lr": 1e-6, "lr_scheduler": "constant", "lr_decay_steps": None, "lr_warmup_steps": None,
        "betas": [0.9, 0.99], "epsilon": 1e-7, "weight_decay": 0.02,
    },
    "text_encoder_overrides": {"optimizer": None, "lr": None, "betas": None},
    "text_encoder_lr_scale": 0.5,
    "text_encoder_freezing": {"freeze_embeddings": True, "freeze_front_n_layers": -6, "freeze_final_layer_norm": False},
    "apply_grad_scaler_step_tweaks": True,
}  # fmt: skip
SAMPLES = """{
  "batch_size": 3,\t# lower this where memory is short
  "seed": 7,
  "cfgs": [7, 4],
  "num_inference_steps": 15,
  "samples": [
    {"prompt": "a man # 1", "negative_prompt": "blurry"},
    {"random_caption": true},
  ]
}"""


def write(folder: Path, **changes: Any) -> Path:
    (folder / "photos").mkdir(exist_ok=True)
    (folder / "optimizer.json").write_text(json.dumps(OPTIMIZER), encoding="utf-8")
    (folder / "sample_prompts.txt").write_text("a dog\n\n# not this\nher on a beach\n", encoding="utf-8")
    (folder / "sample_prompts.json").write_text(SAMPLES, encoding="utf-8")
    if not (folder / "validation_default.json").exists():
        (folder / "validation_default.json").write_text('{"validate_training": true}', encoding="utf-8")
    path = folder / "train.json"
    path.write_text(json.dumps(TRAIN | changes), encoding="utf-8")
    return path


def test_the_config_it_ships_with_runs_as_it_is(tmp_path: Path) -> None:
    s = read_settings(write(tmp_path))
    assert (s.batch_size, s.micro_batch_size, s.resolution, s.max_epochs) == (10, None, 512, 1)
    assert (s.lr, s.lr_schedule, s.text_encoder_lr, s.train_text_encoder) == (1.5e-6, "constant", 0.75e-6, True)
    assert (s.offset_noise, s.clip_grad_norm, s.clip_skip, s.seed, s.precision) == (0.02, 0, 1, 555, "fp16")
    assert (s.optimizer, s.betas, s.eps, s.weight_decay) == ("adamw", (0.9, 0.99), 1e-7, 0.02)
    assert (s.text_encoder_layers, s.sample_every_steps, s.save_every_epochs) == (6, 300, 20)
    assert s.sample_prompts == tmp_path / "sample_prompts.txt" and s.gradient_checkpointing
    assert s.model == "panopstor/EveryDream" and s.data_root == str(tmp_path / "photos")
    assert s.out is not None and re.fullmatch(r"logs.project_abc-\d{8}-\d{6}", str(s.out))
    assert read_settings(tmp_path / "train.json", {"lr": 1e-5}).lr == 1e-5  # flags are stronger


def test_accumulated_batches_become_one_of_the_same_size(tmp_path: Path) -> None:
    s = read_settings(write(tmp_path, batch_size=4, grad_accum=3, scale_lr=True))
    assert (s.batch_size, s.micro_batch_size) == (12, 4)
    assert s.lr == pytest.approx(1.5e-6 * 12**0.55)


def test_every_choice_of_the_loss_is_taken_over(tmp_path: Path) -> None:
    more: dict[str, Any] = {"loss_type": "huber_mse", "min_snr_gamma": 5, "pyramid_noise_discount": 0.3}
    more |= {"embedding_perturbation": 1.0, "timestep_start": 100, "timestep_end": 900, "clip_skip": 2, "keep_tags": 2}
    more |= {"ema_decay_rate": 0.99, "ema_update_interval": 10, "disable_amp": True, "disable_textenc_training": True}
    more |= {"lr_scheduler": "cosine", "lr_decay_steps": 2500, "clip_grad_norm": 1.0, "gpuid": 1}
    s = read_settings(write(tmp_path, **more))
    assert (s.loss_type, s.min_snr_gamma, s.pyramid_noise, s.embedding_perturbation) == ("huber_mse", 5.0, 0.3, 1.0)
    assert (s.timestep_start, s.timestep_end, s.clip_skip, s.keep_tags) == (100, 900, 2, 2)
    assert s.ema_decay == pytest.approx(0.99**0.1) and s.precision == "fp32" and not s.train_text_encoder
    assert (s.lr_decay_steps, s.clip_grad_norm, s.device) == (2500, 1.0, "cuda:1")


def test_rated_sets_fade_to_the_share_that_is_asked_for(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path)).rated_dropout == 0
    assert read_settings(write(tmp_path, rated_dataset=True)).rated_dropout == 0.5
    asked = write(tmp_path, rated_dataset=True, rated_dataset_target_dropout_percent=30)
    assert read_settings(asked).rated_dropout == 0.3


def test_sample_prompts_stay_a_file_that_may_change(tmp_path: Path) -> None:
    s = read_settings(write(tmp_path, sample_prompts="sample_prompts.json"))
    assert s.sample_prompts == tmp_path / "sample_prompts.json" and s.sample_every_steps == 300
    more = SAMPLES.replace('"seed": 7', '"seed": 7, "generate_samples_every_n_steps": 50')
    (tmp_path / "sample_prompts.json").write_text(more, encoding="utf-8")
    assert read_settings(tmp_path / "train.json").sample_every_steps == 50


def test_a_validation_config_runs_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path)
    s = read_settings(path)
    assert (s.validate_share, s.validate_every_epochs, s.validate_seed, s.validate_train_share) == (0.15, 1, 555, 0)
    (tmp_path / "kept").mkdir()
    said: dict[str, Any] = {"val_split_mode": "manual", "manual_data_root": "kept", "every_n_epochs": 3, "seed": 1}
    said |= {"extra_manual_datasets": {"santa suit": "/photos/santa"}, "stabilize_training_loss": True}
    (tmp_path / "validation_default.json").write_text(json.dumps(said), encoding="utf-8")
    s = read_settings(path)
    assert s.validate_root == str(tmp_path / "kept") and s.validate_sets == {"santa suit": "/photos/santa"}
    assert (s.validate_share, s.validate_train_share, s.validate_every_epochs, s.validate_seed) == (0, 0.15, 3, 1)
    for wrong, words in [
        ({"val_split_mode": "manual"}, "name the folder: manual_data_root"),
        ({"val_split_mode": "half"}, "automatic, manual or none"),
        ({"use_relative_loss": True}, "losses are told as they are"),
        ({"every_n_epoch": 1}, "did you mean 'every_n_epochs'"),
        ({"every_n_epochs": 0}, "must be at least 1"),
    ]:
        (tmp_path / "validation_default.json").write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(BadInput, match=words):
            read_settings(path)
    (tmp_path / "validation_default.json").write_text('{"validate_training": false}', encoding="utf-8")
    s = read_settings(path)
    assert s.validate_share == 0 and s.validate_root is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resume_ckpt": "findlast"}, "--resume"),
        ({"ema_strength_target": 0.1}, "ema_strength_target.*ema_decay_rate"),
        ({"load_settings_every_epoch": True}, "load_settings_every_epoch"),
        ({"plugins": ["plugins.x"]}, "foreign code"),
        ({"leraning_rate": 1}, "'leraning_rate' is no key of EveryDream 2's"),
        ({"lr_schedulr": "cosine"}, "did you mean 'lr_scheduler'"),
        ({"lr": "fast"}, 'lr = "fast": a number is wanted'),
        ({"sample_prompts": "nowhere.txt"}, "there is no such file"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        read_settings(write(tmp_path, **change))
    assert str(tmp_path / "train.json") in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_epochs": "5"}, "train.json: max_epochs: '5' is not a whole number"),
        ({"max_steps": -2}, "train.json: max_steps: -2: must be at least 1"),
        ({"cond_dropout": 10**400}, "train.json: cond_dropout: 1.* is not a number"),
        ({"batch_size": 2.5}, "train.json: batch_size = 2.5: a whole number is wanted"),
        ({"grad_accum": "x"}, 'train.json: grad_accum = "x": a whole number is wanted'),
        ({"grad_accum": -2}, "train.json: grad_accum = -2: must be at least 1"),
        ({"disable_amp": "false"}, 'train.json: disable_amp = "false": true or false is wanted'),
        ({"run_name": 5}, "train.json: run_name = 5: text is wanted"),
        ({"ema_update_interval": 0.5}, "train.json: ema_update_interval = 0.5: a whole number is wanted"),
        ({"ema_decay_rate": 0.9, "ema_update_interval": 0}, "ema_update_interval = 0: must be at least 1"),
        ({"rated_dataset_target_dropout_percent": "x"}, "target_dropout_percent = .x.: a number is wanted"),
        ({"rated_dataset": True, "rated_dataset_target_dropout_percent": 100}, "train.json: rated_dataset_target"),
        ({"clip_grad_norm": [1]}, r"train.json: clip_grad_norm = \[1\]: a number is wanted"),
        ({"sample_prompts": 3}, "train.json: sample_prompts = 3: text is wanted"),
        ({"sample_prompts": "x" * 5000}, "there is no such file"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_file_and_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_settings(write(tmp_path, **change))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("optimizer.json", {"base": [1]}, r"base = \[1\]: an object is wanted"),
        ("optimizer.json", {"base": {"lr": "x"}}, 'base.lr = "x": a number is wanted'),
        ("optimizer.json", {"base": {"weight_decay": -1}}, "base.weight_decay: -1.*must not be negative"),
        ("optimizer.json", {"text_encoder_lr_scale": "x"}, 'text_encoder_lr_scale = "x": a number is wanted'),
        ("optimizer.json", {"text_encoder_freezing": {"freeze_front_n_layers": "x"}}, "freezing.freeze_front_n_layers"),
        ("optimizer.json", {"text_encoder_freezing": {"freeze_front_layers": 1}}, "did you mean 'freeze_front_n_lay"),
        ("optimizer.json", {"text_encoder_overrides": {"lr": [1]}}, "text_encoder_overrides.lr.*a number is wanted"),
        ("validation_default.json", {"every_n_epochs": "x"}, "every_n_epochs.*a whole number is wanted"),
        ("validation_default.json", {"auto_split_proportion": 2}, "auto_split_proportion: 2.0: must lie between"),
        ("validation_default.json", {"validate_training": "no"}, "validate_training.*true or false is wanted"),
        ("validation_default.json", {"extra_manual_datasets": {"a": 5}}, "extra_manual_datasets.a = 5: text is wanted"),
        ("sample_prompts.json", {"generate_samples_every_n_steps": "x"}, "every_n_steps.*a whole number is wanted"),
    ],
)
def test_the_files_it_names_are_read_by_the_same_rules(
    tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, sample_prompts="sample_prompts.json")
    (tmp_path / name).write_text(json.dumps(change), encoding="utf-8")
    with pytest.raises(BadInput, match=said) as error:
        read_settings(path)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("left_out", "change", "said"),
    [
        ("batch_size", {"grad_accum": 4}, "grad_accum = 4.*give batch_size"),
        ("batch_size", {"scale_lr": True}, "scale_lr = true.*give batch_size"),
        ("lr", {"scale_lr": True}, "scale_lr = true.*give lr"),
        ("lr", {"optimizer_config": "scale.json"}, "scale.json: text_encoder_lr_scale = 0.5.*give lr"),
    ],
)
def test_a_value_that_hangs_on_one_left_out_is_refused(
    tmp_path: Path, left_out: str, change: dict[str, Any], said: str
) -> None:
    (tmp_path / "scale.json").write_text('{"text_encoder_lr_scale": 0.5}', encoding="utf-8")
    path = write(tmp_path, **change)
    path.write_text(json.dumps({k: v for k, v in (TRAIN | change).items() if k != left_out}), encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        read_settings(path)


def test_the_run_is_named_by_what_names_there_are(tmp_path: Path) -> None:
    for change, folder in [
        ({"run_name": "a"}, "logs.a"),
        ({"run_name": "a", "project_name": None, "logdir": None}, "logs.a"),
        ({"project_name": None, "logdir": "elsewhere"}, "elsewhere.run"),
    ]:
        assert re.fullmatch(rf"{folder}-\d{{8}}-\d{{6}}", str(read_settings(write(tmp_path, **change)).out))


def test_a_word_that_a_stronger_one_overrules_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    path = write(tmp_path, lr_scheduler="cosine", attn_type="xformers", sample_prompts="sample_prompts.json")
    samples = SAMPLES.replace('"seed": 7', '"seed": 7, "generate_samples_every_n_steps": 50')
    (tmp_path / "sample_prompts.json").write_text(samples, encoding="utf-8")
    s = read_settings(path, say=told.append)
    assert (s.lr, s.lr_schedule, s.sample_every_steps) == (1.5e-6, "constant", 50)
    assert told == [
        f"{path}: lr_scheduler: {tmp_path / 'optimizer.json'}: base.lr_scheduler is stronger",
        f"{tmp_path / 'optimizer.json'}: base.lr: {path}: lr is stronger",
        f"{path}: sample_steps: {tmp_path / 'sample_prompts.json'}: generate_samples_every_n_steps is stronger",
        f"{path}: attn_type: attention is torch's own",
    ]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([10**400, -(10**400), "\ud800", "\0", "x" * 5000, "photos"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


LEFT_OUT = object()
TEXT_ENCODER = {"unfreeze_last_n_layers": None, **OPTIMIZER["text_encoder_freezing"]}
# every object of a config, as it is written and with all keys it may have
OBJECTS: dict[tuple[str, ...], dict[str, Any]] = {
    ("train.json",): dict.fromkeys(KEYS) | TRAIN | {"sample_prompts": "samples.json"},
    ("optimizer.json",): OPTIMIZER,
    ("optimizer.json", "base"): OPTIMIZER["base"],
    ("optimizer.json", "text_encoder_overrides"): dict.fromkeys(OPTIMIZER["base"]),
    ("optimizer.json", "text_encoder_freezing"): TEXT_ENCODER,
    ("validation_default.json",): dict.fromkeys(VALIDATION_KEYS) | {"manual_data_root": "photos"},
    ("samples.json",): {"generate_samples_every_n_steps": 50},
}
PLACES = [(*place, key) for place, said in OBJECTS.items() for key in said]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), ANY | st.just(LEFT_OUT), max_size=3))
def test_whatever_the_keys_say_it_ends_in_settings_or_an_error_of_edkit(changes: dict[tuple[str, ...], Any]) -> None:
    files: dict[str, Any] = {}
    for place, said in OBJECTS.items():
        kept = {key: changes.get((*place, key), value) for key, value in said.items()}
        kept = {key: value for key, value in kept.items() if value is not LEFT_OUT}
        if len(place) == 1:
            files[place[0]] = kept
        elif place not in changes:
            files[place[0]][place[1]] = kept
    with tempfile.TemporaryDirectory() as folder:
        for name, said in files.items():
            (Path(folder) / name).write_text(json.dumps(said), encoding="utf-8")
        try:
            assert isinstance(read_settings(Path(folder) / "train.json"), TrainSettings)
        except EdkitError as error:
            str(error).encode()


def test_other_optimizers_are_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    changed = OPTIMIZER | {"base": OPTIMIZER["base"] | {"optimizer": "dadapt_adam"}}
    (tmp_path / "optimizer.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(BadInput, match="prodigy for dadapt"):
        read_settings(path)
    changed = OPTIMIZER | {"base": OPTIMIZER["base"] | {"optimizer": "lion", "lr": 3e-7}}
    (tmp_path / "optimizer.json").write_text(json.dumps(changed), encoding="utf-8")
    (tmp_path / "train.json").write_text(json.dumps({k: v for k, v in TRAIN.items() if k != "lr"}), encoding="utf-8")
    s = read_settings(path)
    assert (s.optimizer, s.lr, s.text_encoder_lr) == ("lion", 3e-7, 1.5e-7)


def test_the_docs_say_what_becomes_of_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "everydream.md").read_text(encoding="utf-8")
    for key, rule in KEYS.items():
        assert f"| `{key}` | {rule.words} |" in text
    for key, words in VALIDATION_KEYS.items():
        assert f"| `{key}` | {words} |" in text


def test_a_small_run_from_a_train_json(tmp_path: Path, model: Path, pictures: Path) -> None:
    path = write(
        tmp_path, data_root=str(pictures), resume_ckpt=str(model), resolution=32, batch_size=2, grad_accum=2,
        disable_amp=True, gradient_checkpointing=False, sample_steps=0, logdir=str(tmp_path / "logs"),
        sample_prompts=None, validation_config=None,
    )  # fmt: skip
    s: TrainSettings = read_settings(path, {"device": "cpu", "tensorboard": False, "num_threads": 1})
    run = train(s)
    assert run.step == 2 and run.num_images == 8 and run.run_dir.parent == tmp_path / "logs"
