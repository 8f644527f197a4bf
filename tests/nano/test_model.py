"""The model that ships is whole, small, loads without a network, and draws what it is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from edkit.nano import model_dir, world


def test_all_files_together_stay_below_8_megabytes() -> None:
    files = [path for path in model_dir().rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert not [path for path in files if path.suffix in (".bin", ".ckpt", ".pt", ".pkl")]


def test_it_names_no_folder_of_the_machine_that_made_it() -> None:
    assert not [path for path in model_dir().rglob("*.json") if "_name_or_path" in path.read_text("utf-8")]


def test_asking_where_the_model_is_loads_nothing_heavy() -> None:
    code = (
        "import sys; from edkit.nano import model_dir; assert (model_dir() / 'model_index.json').is_file(); "
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pytest.importorskip("diffusers")
    import torch

    from edkit.nano.recipe import load

    torch.set_num_threads(1)
    return load(model_dir())


def test_it_is_a_stable_diffusion_1_pipeline(pipeline: Any) -> None:
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels == 4
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.text_encoder.config.max_position_embeddings == 77


def test_the_vae_keeps_colour_and_shape(pipeline: Any) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from edkit.nano.reader import read

    some = [world.training_picture(index, 77) for index in range(60)]
    some = [(scene, picture) for scene, picture in some if scene.size != "small"]
    pixels = torch.stack([torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1) for _, picture in some])
    with torch.inference_mode():
        output = pipeline.vae.decode(pipeline.vae.encode(pixels / 127.5 - 1.0).latent_dist.mode()).sample
    pictures = ((output.clamp(-1, 1) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    right = [read(Image.fromarray(array)).shows(scene) for (scene, _), array in zip(some, pictures, strict=True)]
    assert sum(right) >= 0.95 * len(right)


def test_most_of_twelve_held_out_prompts_come_out_right(pipeline: Any) -> None:
    from edkit.nano.reader import read
    from edkit.nano.recipe import draw_prompts

    prompts = world.held_out_prompts()[::8]
    pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], batch_size=12)
    right = [read(picture).shows(prompt.scene) for prompt, picture in zip(prompts, pictures, strict=True)]
    assert sum(right) >= 9, [prompt.text for prompt, good in zip(prompts, right, strict=True) if not good]
