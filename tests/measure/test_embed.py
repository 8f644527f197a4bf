"""Embeddings by a small CLIP made on the spot: the whole path from files to facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from edkit.data.catalog import Catalog  # noqa: E402
from edkit.data.errors import BadInput, Problem, UsageError  # noqa: E402
from edkit.measure.embed import Encoder, resolve  # noqa: E402

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model config, checkpoint) of a random CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    config = folder / "tiny-clip.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "tiny.pt")
    return config, folder / "tiny.pt"


def draw(folder: Path, number: int = 5) -> list[Path]:
    folder.mkdir()
    for seed in range(number):
        cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((80, 60)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


class Said:
    """A Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, what: str, total: int | None = None, unit: str = "images"):
        from edkit.data.progress import SILENT

        return SILENT.task(what, total, unit)

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_embeddings_are_those_of_open_clip(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    config, weights = tiny_clip
    paths = draw(tmp_path / "in")
    with Catalog.open(tmp_path) as catalog:
        found = Encoder(resolve(str(config), str(weights)), batch_size=2).embeddings(catalog, paths)
    model, _, transform = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(weights))
    for path in paths:
        with torch.inference_mode():
            x = transform(Image.open(path).convert("RGB"))[None]
            expected = model.eval().encode_image(x, normalize=True)[0].numpy()
        vector = found[path]
        assert not isinstance(vector, Problem)
        assert vector == pytest.approx(expected, abs=2e-3)
        assert np.linalg.norm(vector) == pytest.approx(1)


def test_a_second_run_loads_no_model(
    tmp_path: Path, tiny_clip: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw(tmp_path / "in")
    weights = resolve(*map(str, tiny_clip))
    with Catalog.open(tmp_path) as catalog:
        first = Encoder(weights).embeddings(catalog, paths)
    monkeypatch.delattr(open_clip, "create_model_and_transforms")
    with Catalog.open(tmp_path) as catalog:
        second = Encoder(weights).embeddings(catalog, paths)
    assert all(np.array_equal(first[path], second[path]) for path in paths)


def test_equal_pictures_in_different_files_and_batches_embed_alike(
    tmp_path: Path, tiny_clip: tuple[Path, Path]
) -> None:
    paths = draw(tmp_path / "in", 3)
    same = tmp_path / "in" / "9.png"
    Image.open(paths[0]).save(same, compress_level=1)
    assert same.read_bytes() != paths[0].read_bytes()
    with Catalog.open(tmp_path) as catalog:
        found = Encoder(resolve(*map(str, tiny_clip)), batch_size=3).embeddings(catalog, [*paths, same])
    assert found[same] == pytest.approx(found[paths[0]], abs=2e-3)


def test_other_weights_are_other_facts(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    config, weights = tiny_clip
    torch.manual_seed(1)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "other.pt")
    (path,) = draw(tmp_path / "in", 1)
    with Catalog.open(tmp_path) as catalog:
        encoders = [Encoder(resolve(str(config), str(one))) for one in (weights, tmp_path / "other.pt")]
        assert encoders[0].fact(catalog) != encoders[1].fact(catalog)
        one, other = (encoder.embeddings(catalog, [path])[path] for encoder in encoders)
    assert not np.allclose(one, other, atol=1e-2)


def test_a_broken_image_is_reported_and_the_others_are_embedded(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    paths = draw(tmp_path / "in", 3)
    paths[1].write_bytes(b"nothing")
    with Catalog.open(tmp_path) as catalog:
        found = Encoder(resolve(*map(str, tiny_clip)), batch_size=2).embeddings(catalog, paths)
    assert [isinstance(found[path], Problem) for path in paths] == [False, True, False]


def test_a_model_folder_brings_config_and_weights(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    _, weights = tiny_clip
    folder = tmp_path / "my-clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}), encoding="utf-8"
    )
    (folder / "open_clip_pytorch_model.bin").write_bytes(weights.read_bytes())
    (path,) = draw(tmp_path / "in", 1)
    with Catalog.open(tmp_path) as catalog:
        one = Encoder(resolve(str(folder))).embeddings(catalog, [path])[path]
        other = Encoder(resolve(*map(str, tiny_clip))).embeddings(catalog, [path])[path]
    assert one == pytest.approx(other, abs=2e-3)


def test_a_plain_architecture_with_openai_weights_is_warned_of_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "openai-vit-b-32.safetensors").touch()
    for clip, number in (("ViT-B-32", 1), ("ViT-B-32-quickgelu", 0)):
        said = Said()
        resolve(clip, str(tmp_path / "openai-vit-b-32.safetensors"), progress=said)
        assert len(said.lines) == number
        assert all("ViT-B-32-quickgelu" in line and "\n" not in line for line in said.lines)


def test_weights_that_cannot_be_fetched_name_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="--pretrained PATH") as caught:
        resolve("ViT-B-32-quickgelu", "openai")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("clip", "pretrained", "said"),
    [
        ("ViT-L-14-quikgelu", None, "did you mean ViT-L-14-quickgelu"),
        ("ViT-L-14-quickgelu", "openia", "did you mean openai"),
        ("ViT-L-14-quickgelu", "no/such.pt", "no such weights file"),
        ("none.json", None, "no such model config"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(clip: str, pretrained: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(clip, pretrained)


def test_weights_of_another_shape_are_refused_in_one_line(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    config, _ = tiny_clip
    torch.save({"visual.proj": torch.zeros(3, 3)}, tmp_path / "wrong.pt")
    (path,) = draw(tmp_path / "in", 1)
    with Catalog.open(tmp_path) as catalog, pytest.raises(BadInput, match=r"wrong\.pt") as caught:
        Encoder(resolve(str(config), str(tmp_path / "wrong.pt"))).embeddings(catalog, [path])
    assert "\n" not in str(caught.value)
