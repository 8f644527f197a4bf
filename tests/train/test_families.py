"""Every family: drawn as diffusers draws it, trained, exported, loaded back equal, drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edkit.data.errors import BadInput
from edkit.train.families import load_family
from edkit.train.generate import Request, draw, generate
from edkit.train.initial import init_model
from edkit.train.run import train
from edkit.train.settings import TrainSettings

Settings = Callable[..., TrainSettings]
FAMILIES = ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize(
    ("name", "prediction"), [("sd1", None), ("sd2", None), ("sd2", "epsilon"), ("sdxl", None), ("sdxl", "v_prediction")]
)
def test_a_picture_is_the_one_that_diffusers_own_pipeline_draws(
    models: Any, name: str, prediction: str | None, tmp_path: Path
) -> None:
    from diffusers import DDIMScheduler, DiffusionPipeline

    folder = init_model(name, out=tmp_path / name, prediction=prediction).out if prediction else models(name)
    family = load_family(folder)
    assert family.name == name
    assert family.prediction_type == (prediction or ("v_prediction" if name == "sd2" else "epsilon"))
    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    assert type(pipeline).__name__ == json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"]
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(7))
    prompts = ["a photo of a red house", "two dogs, running"]
    with torch.no_grad():
        theirs = pipeline(
            prompts, latents=noise.clone(), height=128, width=64, num_inference_steps=3, guidance_scale=4.0,
            output_type="latent", eta=0.0,
        ).images  # fmt: skip
        text, empty = (family.encode_text(family.tokenize(words)) for words in (prompts, ["", ""]))
        ours = family.denoise(noise, text, empty, steps=3, guidance=4.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trained_model_exports_loads_back_equal_and_draws_the_same(
    models: Any, name: str, settings: Settings, draw_pictures: Any, tmp_path: Path
) -> None:
    data = draw_pictures(tmp_path / "data", 4, sizes=((150, 130), (300, 130)))
    before = load_family(models(name))
    run = train(
        settings(
            data_root=str(data),
            model=str(models(name)),
            max_steps=3,
            batch_size=2,
            train_text_encoder=True,
            lr=1e-3,
            cond_dropout=0.5,
        )
    )
    assert run.export is not None and np.isfinite(run.last_loss)
    tuned = load_family(run.export)
    assert tuned.name == name and tuned.model_hash() != before.model_hash()
    assert tuned.prediction_type == before.prediction_type
    for part, module in tuned.parts().items():
        moved = [
            not torch.equal(p, q) for p, q in zip(module.parameters(), before.parts()[part].parameters(), strict=True)
        ]
        assert any(moved), f"{part} did not learn"
    request = [Request(prompt="red paint")]
    options: dict[str, Any] = {"steps": 2, "guidance": 3.0, "size": (128, 64), "device": torch.device("cpu")}
    drawn = draw(tuned, request, **options)[0]
    (path,) = generate(run.export, ["red paint"], tmp_path / "out", steps=2, guidance=3.0, size=(128, 64), device="cpu")
    with Image.open(path) as again:
        assert np.array_equal(np.asarray(drawn), np.asarray(again))


def test_sdxl_is_told_the_size_the_cut_and_the_target(
    models: Any, settings: Settings, draw_pictures: Any, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    from edkit.data.progress import SILENT
    from edkit.train.loader import Loader, Planned
    from edkit.train.prepare import prepare
    from edkit.train.settings import resolve

    data = draw_pictures(tmp_path / "data", 2, sizes=((200, 160),))
    family = load_family(models("sdxl"))
    s = settings(data_root=str(data), model=str(models("sdxl")), flip_p=1.0, cond_dropout=0.0, batch_size=2)
    s = resolve(s, resolution=128, bucket_step=family.bucket_step, num_timesteps=1000, family="sdxl")
    with prepare(s, family, torch.device("cpu"), dry_run=False, progress=SILENT) as prepared:
        loader = Loader(
            family=family, sample=prepared.sample, view=prepared.view, latents=prepared.latents, seed=555,
            timesteps=(0, 1000), micro_batch_size=None,
        )  # fmt: skip
        step = prepared.steps(0)[0]
        (micro,) = loader.batch(Planned(step=step, epoch=0, index=0, last=True)).micros
        crop = prepared.view(step[0].picks[0]).crop
    assert crop.flip
    left = crop.scaled_width - crop.width - crop.left
    assert micro.sizes[0].tolist() == [160, 200, crop.top, left, crop.height, crop.width]
    # the order is the one that diffusers' pipeline tells its U-Net
    pipeline = DiffusionPipeline.from_pretrained(str(models("sdxl")))
    told = pipeline._get_add_time_ids(
        (160, 200), (crop.top, left), (crop.height, crop.width), torch.float32, text_encoder_projection_dim=48
    )
    assert told[0].tolist() == micro.sizes[0].tolist()
    text = family.encode_text(family.tokenize(micro.captions))
    pooled, times = text["pooled"], told.expand(len(micro.sizes), 6)
    with torch.no_grad():
        said = pipeline.unet(
            micro.noisy, micro.timesteps, text["states"], added_cond_kwargs={"text_embeds": pooled, "time_ids": times}
        ).sample
        torch.testing.assert_close(family.predict(micro.noisy, micro.timesteps, text, micro.sizes), said)
    plain = family.predict(micro.noisy, micro.timesteps, text, micro.sizes)
    other = family.predict(micro.noisy, micro.timesteps, text, micro.sizes // 2)
    assert not torch.allclose(plain, other)


def test_sdxl_reads_an_empty_caption_as_zeros(models: Any) -> None:
    family = load_family(models("sdxl"))
    text = family.encode_text(family.tokenize(["", "a house"]))
    assert not text["states"][0].any() and not text["pooled"][0].any()
    assert text["states"][1].any() and text["pooled"][1].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_clip_skip_reads_an_earlier_layer_as_diffusers_does(models: Any, name: str) -> None:
    """diffusers counts the layers that are left out: its 1 is 2 here and in user interfaces."""
    from diffusers import DiffusionPipeline

    family, pipeline = load_family(models(name)), DiffusionPipeline.from_pretrained(str(models(name)))
    if name != "sdxl" and not hasattr(pipeline.text_encoder, "text_model"):  # diffusers asks for it by its old name
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    states = []
    for ours, theirs in ((1, None), (2, 1)):
        family.clip_skip = ours
        states.append(family.encode_text(family.tokenize(["a house"]))["states"])
        wanted = pipeline.encode_prompt(
            "a house", device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False,
            clip_skip=theirs,
        )[0]  # fmt: skip
        torch.testing.assert_close(states[-1], wanted)
    assert not torch.allclose(*states)


def test_a_model_of_another_family_than_was_asked_for_is_told(models: Any) -> None:
    with pytest.raises(BadInput, match="is a sd1 model, not sd2"):
        load_family(models("sd1"), "sd2")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_long_captions_are_read_in_chunks_of_their_own_markers(models: Any, name: str) -> None:
    family = load_family(models(name))
    words = ["dog"] * 75 + ["cat"] * 30
    assert family.count_tokens([" ".join(words)]) == [107]
    short = family.encode_text(family.tokenize([" ".join(words)]))
    family.caption_chunks = 3
    assert family.max_tokens == 231 and family.count_tokens([" ".join(words)]) == [111]
    long = family.encode_text(family.tokenize([" ".join(words)]))
    assert long["states"].shape[1] == 231 and short["states"].shape[1] == 77
    family.caption_chunks = 1
    second = family.encode_text(family.tokenize([" ".join(words[75:])]))
    torch.testing.assert_close(long["states"][:, :77], short["states"])
    torch.testing.assert_close(long["states"][:, 77:154], second["states"])
