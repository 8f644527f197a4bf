"""What of a hub repository is fetched: the parts, once, and nothing that can run code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edkit.data.errors import BadInput
from edkit.train.families import find_model, load_family
from edkit.train.families.hub import HALVES, MOVED, UNWANTED, WANTED

SD15 = {
    "": "README.md model_index.json v1-5-pruned.ckpt v1-5-pruned.safetensors v1-5-pruned-emaonly.safetensors",
    "feature_extractor/": "preprocessor_config.json",
    "safety_checker/": "config.json model.safetensors",
    "scheduler/": "scheduler_config.json",
    "text_encoder/": "config.json model.fp16.safetensors model.safetensors pytorch_model.bin",
    "tokenizer/": "merges.txt tokenizer_config.json vocab.json",
    "unet/": "config.json diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.safetensors "
    "diffusion_pytorch_model.non_ema.safetensors diffusion_pytorch_model.safetensors",
    "vae/": "config.json diffusion_pytorch_model.safetensors",
}


def test_a_repository_gives_its_parts_once() -> None:
    from huggingface_hub.utils import filter_repo_objects

    files = [folder + name for folder, names in SD15.items() for name in names.split()]
    taken = set(filter_repo_objects(files, allow_patterns=WANTED, ignore_patterns=[*UNWANTED, *HALVES]))
    assert {name for name in taken if name.endswith(".safetensors")} == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert {"model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "vae/config.json"} <= taken
    klein = ["flux-2-klein-base-4b.safetensors", "tokenizer/chat_template.jinja"]
    klein += ["text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json"]
    taken = set(filter_repo_objects(klein, allow_patterns=WANTED, ignore_patterns=[*UNWANTED, *HALVES]))
    assert taken == set(klein[1:])


def test_an_id_that_is_gone_is_told_with_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    told: list[str] = []
    with pytest.raises(BadInput, match="the hub did not give it"):
        find_model("runwayml/stable-diffusion-v1-5", say=told.append)
    assert told == [
        "runwayml/stable-diffusion-v1-5 is gone from the hub; stable-diffusion-v1-5/stable-diffusion-v1-5 has the "
        "same weights and is taken"
    ]
    assert not set(MOVED) & set(MOVED.values())


def test_a_folder_of_halves_alone_loads(models: Any, tmp_path: Path) -> None:
    shutil.copytree(models("sd1"), tmp_path / "halves")
    for file in (tmp_path / "halves").rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert load_family(tmp_path / "halves").model_hash() == load_family(models("sd1")).model_hash()
