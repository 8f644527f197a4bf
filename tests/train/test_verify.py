"""`verify` tells the data a model was trained on from any other, image by image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from edkit.data.errors import BadInput
from edkit.train.record import DATASET_FILE
from edkit.train.run import train
from edkit.train.settings import TrainSettings
from edkit.train.verify import Change, Verified, metadata, verify

Settings = Callable[..., TrainSettings]


def differing(found: Verified) -> dict[str, object]:
    kinds = ("added", "removed", "renamed", "contents", "captions", "options")
    return {kind: said for kind in kinds if (said := getattr(found, kind))}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, model: Path, patterns: Callable[..., object]
) -> tuple[Path, Path]:
    """A run's export (an adapter, with a single file's worth of metadata) and the photos it was trained on."""
    place = tmp_path_factory.mktemp("verify")
    patterns(place / "photos" / "dog", 5)
    patterns(place / "photos" / "people", 5, seed=1)
    (place / "photos" / "people" / "multiply.txt").write_text("0.5", "utf-8")
    run = train(
        TrainSettings(
            data_root=str(place / "photos"), model=str(model), out=place / "run", max_steps=1, batch_size=2,
            method="lora", tensorboard=False, num_threads=1, device="cpu", validate_share=0.2, caption_fallback="who",
        )
    )  # fmt: skip
    assert run.export is not None
    return run.export, place / "photos"


def test_the_same_data_is_the_same_wherever_it_lies(trained: tuple[Path, Path], tmp_path: Path) -> None:
    export, photos = trained
    for place in (export, export.parent, export / "lora.safetensors", export / "pytorch_lora_weights.safetensors"):
        found = verify(place, photos)
        assert found.same and found.details and found.num_images == 10 and found.num_held_out == 2
        assert not differing(found) and found.step == 1
    shutil.copytree(photos, tmp_path / "moved", ignore=shutil.ignore_patterns(".edkit"))
    assert verify(export, tmp_path / "moved").same


def test_every_kind_of_change_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    export, photos = trained
    now = tmp_path / "now"
    shutil.copytree(photos, now)
    dog = now / "dog"
    (dog / "pattern a_(0).txt").write_text("rex", "utf-8")
    (dog / "pattern b_(1).png").rename(dog / "pattern b_(9).png")
    (dog / "pattern c_(2).png").unlink()
    shutil.copy(now / "people" / "pattern a_(0).png", dog / "pattern d_(3).png")
    shutil.copy(now / "people" / "pattern b_(1).png", dog / "more_(1).png")
    (dog / "pattern e_(4).yaml").write_text("flip_p: 0.5", "utf-8")
    found = verify(export, now)
    said = asdict(found)
    (bytes_,) = said.pop("contents")
    assert bytes_["key"] == "dog/pattern d_(3).png" and len(bytes_["was"]) == 64 != bytes_["now"]
    assert not found.same and found.num_images == 10
    assert {k: v for k, v in differing(found).items() if k != "contents"} == {
        "added": ("dog/more_(1).png",),
        "removed": ("dog/pattern c_(2).png",),
        "renamed": (Change(key="dog/pattern b_(1).png", was="dog/pattern b_(1).png", now="dog/pattern b_(9).png"),),
        "captions": (Change(key="dog/pattern a_(0).png", was="pattern a", now="rex"),),
        "options": (Change(key="dog/pattern e_(4).png", was="flip_p 0", now="flip_p 0.5"),),
    }


def test_a_file_alone_knows_whether_and_not_what(trained: tuple[Path, Path], tmp_path: Path) -> None:
    export, photos = trained
    alone = Path(shutil.copy(export / "lora.safetensors", tmp_path))
    found = verify(alone, photos)
    assert found.same and not found.details
    shutil.copytree(photos / "dog", tmp_path / "dog")
    found = verify(alone, tmp_path / "dog")
    assert not found.same and not found.details and not differing(found)


def test_the_metadata_tells_everything_in_plain_words(trained: tuple[Path, Path]) -> None:
    from edkit import __version__

    said = metadata(trained[0])
    assert said["edkit_version"] == __version__ and said["edkit_step"] == "1"
    assert len(said["edkit_base_model"]) == len(said["edkit_dataset"]) == 64
    assert 'caption_fallback = "who"\n' in said["edkit_settings"] and "batch_size = 2\n" in said["edkit_settings"]


def test_what_says_nothing_is_told(trained: tuple[Path, Path], model: Path, tmp_path: Path) -> None:
    export, photos = trained
    with pytest.raises(BadInput, match="does not say what it was trained on"):
        verify(model, photos)
    with pytest.raises(BadInput, match="no such model"):
        verify(tmp_path / "nothing", photos)
    with pytest.raises(BadInput, match="no such folder"):
        verify(export, tmp_path / "nothing")
    with pytest.raises(BadInput, match=r"is no \.safetensors file"):
        verify(photos / "dog" / "pattern a_(0).png", photos)
    shutil.copytree(export, tmp_path / "mixed")
    list_ = tmp_path / "mixed" / DATASET_FILE
    list_.write_text(list_.read_text("utf-8").splitlines()[0].replace("root_hash", "x"), "utf-8")
    with pytest.raises(BadInput, match="is damaged"):
        verify(tmp_path / "mixed", photos)


@pytest.mark.parametrize("settings", ["caption_fallback = ", 'max_caption_length = "long"', "flip_p = 7"])
def test_settings_that_no_run_has_are_one_line(settings: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "lora.safetensors"
    said = {"edkit_dataset": "0" * 64, "edkit_settings": settings}
    save_file({"a": torch.zeros(1)}, str(file), metadata=said)
    with pytest.raises(BadInput, match=r"lora\.safetensors: its weights hold settings that no run has"):
        verify(file, tmp_path)
