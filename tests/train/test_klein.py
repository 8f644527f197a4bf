"""FLUX.2 klein: what diffusers' own pipeline makes of the same captions, pictures and noise is what edkit makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from edkit.data.errors import BadInput, UsageError
from edkit.measure.families import family as measured
from edkit.measure.families import unread
from edkit.train.families import load_family
from edkit.train.families.base import Family
from edkit.train.families.klein import Klein
from edkit.train.generate import Request, draw, generate
from edkit.train.initial import init_model
from edkit.train.lora import PEFT_FILE, UI_FILE, merge_lora
from edkit.train.run import train
from edkit.train.settings import SettingError, TrainSettings

Settings = Callable[..., TrainSettings]
PROMPTS = ["a photo of a red house", "two dogs, running"]


@pytest.fixture(scope="module")
def klein(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with statistics of its batch norm as a trained one has them."""
    family = load_family(models("klein"))
    generator = torch.Generator().manual_seed(3)
    norm: Any = family.vae.bn
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    out = tmp_path_factory.mktemp("klein") / "model"
    out.mkdir()
    family.save(out, precision="fp32", metadata={})
    return out


def pipeline_of(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "Flux2KleinPipeline"
    return pipeline


def theirs(pipeline: Any, noise: torch.Tensor, *, steps: int = 3, guidance: float = 4.0, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = pipeline(
            prompt=PROMPTS, latents=noise.clone(), height=16 * noise.shape[2], width=16 * noise.shape[3],
            num_inference_steps=steps, guidance_scale=guidance, output_type="pt", max_sequence_length=96, **more,
        ).images  # fmt: skip
    return found * 2 - 1


def ours(family: Family, noise: torch.Tensor, *, steps: int = 3, guidance: float = 4.0) -> torch.Tensor:
    with torch.no_grad():
        text, empty = (family.encode_text(family.tokenize(words)) for words in (PROMPTS, ["", ""]))
        return family.decode_latents(family.denoise(noise, text, empty, steps=steps, guidance=guidance)).clamp(-1, 1)


def some_noise() -> torch.Tensor:
    return torch.randn(2, 32, 8, 4, generator=torch.Generator().manual_seed(7))


def test_a_picture_is_the_one_that_diffusers_own_pipeline_draws(klein: Path) -> None:
    family, pipeline = load_family(klein), pipeline_of(klein)
    assert_close(ours(family, some_noise()), theirs(pipeline, some_noise()), rtol=1e-3, atol=1e-3)
    assert_close(
        ours(family, some_noise(), guidance=1.0), theirs(pipeline, some_noise(), guidance=1.0), rtol=1e-3, atol=1e-3
    )
    assert (family.resolution, family.bucket_step, family.vae_factor) == (128, 16, 16)


def test_captions_and_pictures_are_read_as_the_pipeline_reads_them(klein: Path) -> None:
    family, pipeline = load_family(klein), pipeline_of(klein)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        states, _ = pipeline.encode_prompt([*PROMPTS, "", "x" * 200], max_sequence_length=96)
        assert_close(family.encode_text(family.tokenize([*PROMPTS, "", "x" * 200]))["states"], states)
        latents = pipeline._encode_vae_image(pixels, generator=None)
        assert_close(family.encode_images(pixels), latents)
    assert latents.shape == (2, 32, 4, 6)
    # what a frozen encoder said once is what it says: the caption beside it changes nothing
    alone = family.encode_text(family.tokenize(PROMPTS[:1]))["states"]
    assert_close(alone, states[:1], rtol=1e-5, atol=1e-6)


def test_noise_is_a_straight_path_whose_velocity_the_scheduler_walks_back(klein: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    family = load_family(klein)
    latents, noise = some_noise().double(), torch.randn(2, 32, 8, 4, dtype=torch.float64)
    times = torch.tensor([0, 399])
    noisy, target = family.noise_and_target(latents, noise, times)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    levels = (times + 1).double()
    for row in range(2):
        wanted = scheduler.scale_noise(latents[row : row + 1], levels[row : row + 1].float(), noise[row : row + 1])
        assert_close(noisy[row : row + 1], wanted, rtol=1e-5, atol=1e-6)
    level = levels.view(-1, 1, 1, 1) / 1000
    assert_close(noisy - level * target, latents)  # one whole step against the velocity is the picture
    assert_close(family.snr(times), ((1 - level) / level).flatten() ** 2)
    assert family.snr(torch.tensor([999])) == 0
    said: list[torch.Tensor] = []
    family.transformer.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args, options: said.append(options["timestep"]), with_kwargs=True
    )
    text = family.encode_text(family.tokenize(PROMPTS))
    family.predict(some_noise(), times, text, torch.zeros(2, 6))
    assert_close(said[0], torch.tensor([0.001, 0.4]))


def test_a_distilled_model_is_never_guided(klein: Path, tmp_path: Path) -> None:
    family = load_family(klein)
    assert isinstance(family, Klein)
    family.is_distilled = True
    (tmp_path / "distilled").mkdir()
    family.save(tmp_path / "distilled", precision="fp32", metadata={})
    again = load_family(tmp_path / "distilled")
    guided = ours(again, some_noise())
    assert torch.equal(guided, ours(again, some_noise(), guidance=1.0))
    assert_close(guided, theirs(pipeline_of(tmp_path / "distilled"), some_noise()), rtol=1e-3, atol=1e-3)


def test_the_language_model_keeps_the_type_of_its_file(klein: Path, tmp_path: Path) -> None:
    family: Any = load_family(klein)
    family.text_encoder.to(torch.bfloat16)
    (tmp_path / "published").mkdir()
    family.save(tmp_path / "published", precision="fp32", metadata={})
    again: Any = load_family(tmp_path / "published")
    assert again.text_encoder.dtype == torch.bfloat16 and again.transformer.dtype == torch.float32
    text = again.encode_text(again.tokenize(PROMPTS))
    assert text["states"].dtype == torch.bfloat16  # half the memory where states are kept
    said = again.predict(some_noise(), torch.tensor([0, 399]), text, torch.zeros(2, 6))
    wanted = load_family(klein).predict(some_noise(), torch.tensor([0, 399]), text, torch.zeros(2, 6))
    assert said.dtype == torch.float32
    assert_close(said, wanted)


def test_it_trains_exports_loads_back_equal_and_draws_in_diffusers(
    klein: Path, settings: Settings, draw_pictures: Any, tmp_path: Path
) -> None:
    data = draw_pictures(tmp_path / "data", 4, sizes=((150, 130), (300, 130)))
    before = load_family(klein)
    run = train(
        settings(
            data_root=str(data), model=str(klein), max_steps=2, batch_size=2, lr=1e-3, cond_dropout=0.5, resolution=64,
            min_snr_gamma=5.0, gradient_checkpointing=True, offset_noise=0.05, embedding_perturbation=1.0,
        )
    )  # fmt: skip
    assert run.export is not None and np.isfinite(run.last_loss)
    tuned = load_family(run.export)
    assert tuned.name == "klein" and tuned.model_hash() != before.model_hash() and tuned.vae_hash == before.vae_hash
    moved = {
        part: any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for (part, a), b in zip(tuned.parts().items(), before.parts().values(), strict=True)
    }
    assert moved == {"transformer": True, "text_encoder": False}
    assert_close(ours(tuned, some_noise()), theirs(pipeline_of(run.export), some_noise()), rtol=1e-3, atol=1e-3)
    options: dict[str, Any] = {"steps": 2, "guidance": 3.0, "size": (64, 64), "batch_size": 2}
    drawn = draw(tuned, [Request(prompt="red paint")], device=torch.device("cpu"), **options)[0]
    (path,) = generate(run.export, ["red paint"], tmp_path / "out", device="cpu", **options)
    with Image.open(path) as again:
        assert np.array_equal(np.asarray(drawn), np.asarray(again))


def test_both_adapter_files_draw_in_diffusers_what_they_draw_here(
    klein: Path, settings: Settings, tmp_path: Path
) -> None:
    """diffusers' converters from kohya's, ai-toolkit's and peft's keys are the judge."""
    run = train(
        settings(
            model=str(klein), method="lora", lora_rank=4, lora_alpha=2.0, lora_targets="transformer", lr=0.3,
            max_steps=2, batch_size=2, resolution=32, cond_dropout=0.0,
        )
    )  # fmt: skip
    assert run.export is not None
    state = load_file(run.export / UI_FILE)
    joint = "lora_unet_double_blocks_0_img_attn_qkv"
    assert state[f"{joint}.lora_down.weight"].shape == (12, 32) and state[f"{joint}.alpha"] == 6
    assert "lora_unet_single_blocks_1_linear1.lora_up.weight" in state
    dotted = {  # as ai-toolkit and ComfyUI write them
        "lora_unet_double_blocks_0_img_attn_qkv": "double_blocks.0.img_attn.qkv",
        "lora_unet_single_blocks_1_linear2": "single_blocks.1.linear2",
    }
    elsewhere = {}
    for key, name in dotted.items():
        scale = float(state[f"{key}.alpha"]) / len(state[f"{key}.lora_down.weight"])
        elsewhere[f"diffusion_model.{name}.lora_A.weight"] = state[f"{key}.lora_down.weight"] * scale
        elsewhere[f"diffusion_model.{name}.lora_B.weight"] = state[f"{key}.lora_up.weight"]
    save_file(elsewhere, tmp_path / "elsewhere.safetensors")
    plain = ours(load_family(klein), some_noise())
    for file in (run.export / UI_FILE, run.export / PEFT_FILE, tmp_path / "elsewhere.safetensors"):
        family, pipeline = load_family(klein), pipeline_of(klein)
        assert merge_lora(family, file) == (4 if file.parent == tmp_path else 16)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        drawn = ours(family, some_noise())
        assert_close(drawn, theirs(pipeline, some_noise()), rtol=1e-3, atol=1e-3)
        assert float((drawn - plain).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("zero_terminal_snr", True, "pure noise already"),
        ("train_text_encoder", True, "is a language model"),
        ("clip_skip", 2, "three fixed layers"),
        ("caption_chunks", 2, "512 tokens at once"),
        ("export_single_file", True, "no layout"),
    ],
)
def test_what_means_nothing_to_it_is_refused_by_name(
    klein: Path, settings: Settings, setting: str, value: Any, why: str
) -> None:
    with pytest.raises(SettingError, match=why) as told:
        train(settings(model=str(klein), **{setting: value}))
    assert told.value.key == setting


def test_captions_are_counted_with_the_chat_around_them(klein: Path) -> None:
    family, of = load_family(klein), measured(klein)
    assert family.count_tokens(["", "x" * 84, "x" * 90]) == [12, 96, 102] and family.max_tokens == 96
    assert (of.resolution, of.bucket_step, of.latent_channels, of.latent_factor) == (128, 16, 32, 16)
    assert of.max_tokens == 84
    assert unread(of)("x" * 84) == (84, "") and unread(of)("x" * 84 + "lost") == (88, "lost")


def test_other_schedulers_and_predictions_are_told(klein: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing else"):
        init_model("klein", out=tmp_path / "x", prediction="epsilon")
    family = load_family(klein)
    (tmp_path / "odd").mkdir()
    family.save(tmp_path / "odd", precision="bf16", metadata={})
    config = tmp_path / "odd" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "DDIMScheduler"}), encoding="utf-8")
    with pytest.raises(BadInput, match="is a DDIMScheduler"):
        load_family(tmp_path / "odd")
