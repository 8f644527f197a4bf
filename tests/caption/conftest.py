"""Small real models, made and taught on the spot: two pictures that two captioners can name, and a tagger."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from PIL import Image

RED, BLUE = "a red square on the left", "one blue sky, bright"
_WORDS = sorted({word for text in (RED, BLUE) for word in text.replace(",", " ,").split()})


def picture(colour: str, size: tuple[int, int] = (32, 32), seed: int = 0) -> Image.Image:
    """A red or blue picture; the seed changes it a little."""
    base = (200, 30 + seed, 40) if colour == "red" else (30, 40 + seed, 210)
    return Image.new("RGB", size, base)


@pytest.fixture(scope="session")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("png") / "small.png"
    Image.new("RGB", (8, 8), (200, 30, 40)).save(path)
    return path.read_bytes()


Make = Callable[[dict[str, str | bytes]], Path]


@pytest.fixture
def make(tmp_path: Path, png: bytes) -> Make:
    """Makes a folder of the files named: images (told apart by their bytes) and texts."""

    def made(files: dict[str, str | bytes]) -> Path:
        root = tmp_path / "photos"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            is_image = name.lower().endswith((".png", ".jpg"))
            text = content.encode("utf-8") if isinstance(content, str) else content
            path.write_bytes(png + name.encode() if is_image else text)
        return root

    return made


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a red and a blue picture under a camera's names, and one that has a caption."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture("red", seed=3).save(folder / "IMG_0001.png")
    picture("blue", seed=5).save(folder / "sub" / "IMG_0002.png")
    picture("blue", seed=9).save(folder / "my own words_1.png")
    return folder


def tokenizer(*special: str) -> Any:
    """A tokenizer that knows the words of the two captions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *special, *_WORDS]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if special:
        found.add_special_tokens({"additional_special_tokens": list(special)})
    return found


def taught(model: Any, inputs: dict[str, Any], steps: int, lr: float) -> Any:
    """The model after so many steps on one batch, which it then knows by heart."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.2, f"the test's model did not learn: {loss.item():.3f}"
    return model.eval()


@pytest.fixture(scope="session")
def plain_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image-to-text model (no prompt) that tells red from blue."""
    import torch

    torch.set_num_threads(1)
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    torch.manual_seed(0)
    words = tokenizer()
    encoder = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    decoder = GPT2Config(
        n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=len(words), bos_token_id=1, eos_token_id=2
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config)
    look = ViTImageProcessor(size={"height": 16, "width": 16})
    pixels = look(images=[picture("red"), picture("blue")], return_tensors="pt")["pixel_values"]
    labels = words([f"{RED} </s>", f"{BLUE} </s>"], padding=True, return_tensors="pt")["input_ids"]
    labels[labels == 0] = -100
    taught(model, {"pixel_values": pixels, "labels": labels}, 300, 1e-2)
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    folder = tmp_path_factory.mktemp("models") / "tiny-captioner"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    look.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model that sees (LLaVA's design), taught to answer any question with the caption."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = tokenizer("<image>", "USER", "ASSISTANT")
    image_token = words.convert_tokens_to_ids("<image>")
    seeing = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    talking = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=len(words),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=seeing, text_config=talking, image_token_id=image_token, image_token_index=image_token
    )
    model = LlavaForConditionalGeneration(config)
    look = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    template = (
        "{% for message in messages %}USER {% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
        "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT {% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=look,
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    asked = "USER <image> what is this ? ASSISTANT "
    batch = processor(
        images=[picture("red"), picture("blue")],
        text=[f"{asked}{RED} </s>", f"{asked}{BLUE} </s>"],
        padding=True,
        return_tensors="pt",
    )
    labels = batch["input_ids"].clone()
    begin = (labels == words.convert_tokens_to_ids("ASSISTANT")).int().argmax(dim=1)
    for row, at in enumerate(begin.tolist()):
        labels[row, : at + 1] = -100
    labels[batch["input_ids"] == 0] = -100
    taught(model, {**batch, "labels": labels}, 300, 1e-2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX tagger in the WD format: its tags are how red, green and blue the picture is."""
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    # (B, S, S, 3) BGR 0..255 -> mean by channel -> scores of the tags below
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["bgr"], keepdims=0)
    weights = np.zeros((3, 6), np.float32)
    weights[2, 0] = weights[2, 3] = 1 / 200  # red: "red_theme", and the character "scarlet_(test)"
    weights[0, 1] = 1 / 210  # blue
    weights[:, 4] = 1 / 3000  # too weak for any threshold
    weights[2, 5] = 1 / 210  # rating
    weights[0, 2] = 1 / 300  # o_o
    scores = helper.make_node("MatMul", ["bgr", "w"], ["raw"])
    clip = helper.make_node("Clip", ["raw", "low", "high"], ["y"])
    graph = helper.make_graph(
        [mean, scores, clip],
        "tagger",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(np.float32(1), "high"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    folder = tmp_path_factory.mktemp("models") / "tiny-tagger"
    folder.mkdir()
    onnx.save(model, str(folder / "model.onnx"))
    rows = ("red_theme,0", "blue_theme,0", "o_o,0", "scarlet_(test),4", "faint_thing,0", "general_rating,9")
    table = "".join(f"{i},{row},10\n" for i, row in enumerate(rows))
    (folder / "selected_tags.csv").write_text(f"tag_id,name,category,count\n{table}", encoding="utf-8")
    return folder
