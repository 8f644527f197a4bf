"""EveryDream 2's configs run as they are: every key taken over, told, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edkit.data.errors import BadInput
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
