"""Exports: whole folders that load back equal, with the keys that other tools look for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from edkit.data.errors import BadInput
from edkit.train.export import export_model
from edkit.train.families import load_family
from edkit.train.families.base import Family


def predictions(family: Family) -> torch.Tensor:
    with torch.no_grad():
        text = family.encode_text(family.tokenize(["red paint"]))
        noisy = torch.linspace(-1, 1, 4 * 8 * 8).view(1, 4, 8, 8)
        return family.decode_latents(family.predict(noisy, torch.tensor([400]), text, torch.zeros(1, 6)))


def test_an_export_loads_back_equal_and_keeps_text_model_keys(model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    family = load_family(model)
    out = export_model(family, tmp_path / "export", metadata={"edkit_step": "7"})
    with safe_open(out / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
        assert file.metadata()["edkit_step"] == "7"
    again = load_family(out)
    assert torch.equal(predictions(family), predictions(again))
    assert again.model_hash() == family.model_hash() and again.vae_hash == family.vae_hash
    assert torch.equal(family.tokenize(["a b, c"])["input_ids"], again.tokenize(["a b, c"])["input_ids"])


def test_diffusers_own_pipeline_loads_an_export(model: Path, tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    out = export_model(load_family(model), tmp_path / "export")
    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    state = load_family(model).parts()["text_encoder"].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in pipeline.text_encoder.state_dict().items())


def test_half_precision_halves_the_weights(model: Path, tmp_path: Path) -> None:
    full = export_model(load_family(model), tmp_path / "full")
    half = export_model(load_family(model), tmp_path / "half", precision="fp16")
    sizes = [(p / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for p in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    torch.testing.assert_close(predictions(load_family(half)), predictions(load_family(full)), rtol=0, atol=0.05)


def test_an_older_export_is_replaced_whole(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    out.mkdir()
    (out / "stale.txt").write_text("old", encoding="utf-8")
    export_model(load_family(model), out)
    assert not (out / "stale.txt").exists() and list(tmp_path.iterdir()) == [out]


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(model, bad)
    (bad / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, bad / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BadInput, match="only pickled weights, which can run code"):
        load_family(bad)


def test_other_pipelines_and_no_pipelines_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no model_index.json"):
        load_family(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(BadInput, match="is a FluxPipeline, which is none of the families"):
        load_family(tmp_path)
    with pytest.raises(BadInput, match="no such model folder"):
        load_family(tmp_path / "nowhere")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_follow_the_schedulers_config(model: Path, tmp_path: Path, prediction: str) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text("utf-8")) | {"prediction_type": prediction}
    path.write_text(json.dumps(config), encoding="utf-8")
    family = load_family(tmp_path / "m")
    scheduler = DDIMScheduler.from_config(config)
    latents, noise = torch.randn(2, 5, 4, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 900, 999])
    noisy, target = family.noise_and_target(latents, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target, wanted, rtol=1e-4, atol=1e-5)
    alpha = scheduler.alphas_cumprod.double()[timesteps]
    torch.testing.assert_close(family.snr(timesteps), alpha / (1 - alpha))
