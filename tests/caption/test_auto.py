"""`caption auto`: what models say, that nothing is asked twice, and that who wrote a caption can be told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.caption.auto import ORIGIN, caption_auto, without_stop
from edkit.caption.models import CHOICES, ProseModel, default_model
from edkit.cli.app import app
from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.errors import BadInput, MissingExtra, UsageError
from edkit.data.journal import history, undo, why

RED, BLUE = "a red square on the left", "one blue sky, bright"


def captions(root: Path) -> dict[str, str]:
    return {sample.key: sample.caption.text for sample in read(root, sizes=False)}


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and ".edkit" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_only_images_without_a_caption_get_one(pictures: Path, plain_captioner: Path) -> None:
    before = tree(pictures)
    result = caption_auto(pictures, model=str(plain_captioner))
    assert captions(pictures) == {
        "IMG_0001.png": RED,
        "my own words_1.png": "my own words",
        "sub/IMG_0002.png": BLUE,
    }
    assert {one.path: one.caption for one in result.written} == {"IMG_0001.png": RED, "sub/IMG_0002.png": BLUE}
    assert (result.num_captioned, result.num_known, result.model) == (1, 0, "tiny-captioner")
    undo(pictures)
    assert tree(pictures) == before


def test_what_was_said_once_is_not_asked_again(
    pictures: Path, plain_captioner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption_auto(pictures, model=str(plain_captioner))
    undo(pictures)
    (pictures / "IMG_0001.png").rename(pictures / "DSC00007.png")
    monkeypatch.setattr(ProseModel, "captions", lambda *_: pytest.fail("the model was asked again"))
    again = caption_auto(pictures, model=str(plain_captioner))
    assert again.num_known == 2
    assert captions(pictures)["DSC00007.png"] == RED


def test_another_length_is_another_question(pictures: Path, plain_captioner: Path) -> None:
    caption_auto(pictures, model=str(plain_captioner))
    shorter = caption_auto(pictures, model=str(plain_captioner), max_tokens=3, overwrite=True)
    assert shorter.num_known == 0
    assert captions(pictures)["IMG_0001.png"] == "a red square"


def test_a_chat_model_is_asked_its_question_and_only_its_answer_is_kept(pictures: Path, chat_captioner: Path) -> None:
    result = caption_auto(pictures, model=str(chat_captioner), prompt="what is this ?", to="filename")
    assert set(captions(pictures)) == {f"{RED}_(1).png", "my own words_1.png", f"sub/{BLUE}_(1).png"}
    assert set(captions(pictures).values()) == {RED, BLUE, "my own words"}
    assert result.settings["prompt"] == "what is this ?"


def test_the_camera_name_goes_and_why_tells_who_wrote_the_caption(pictures: Path, plain_captioner: Path) -> None:
    caption_auto(pictures, model=str(plain_captioner), to="filename")
    told = " ".join(why(pictures / f"{RED}_(1).png").sentences)
    assert "by tiny-captioner" in told
    assert "IMG_0001.png" in told
    with Catalog.open(pictures, write=False) as catalog:
        id = catalog.content_ids([pictures / f"{RED}_(1).png"])[pictures / f"{RED}_(1).png"]
        origin = json.loads(str(catalog.facts([id], [ORIGIN])[id][ORIGIN]))
    assert origin == {"kind": "prose", "model": "tiny-captioner", "max_tokens": 75}


def test_why_of_an_image_tells_of_its_sidecar_too(pictures: Path, plain_captioner: Path) -> None:
    caption_auto(pictures, model=str(plain_captioner))
    told = " ".join(why(pictures / "IMG_0001.png").sentences)
    assert "IMG_0001.txt written: its caption, by tiny-captioner" in told


def test_overwriting_keeps_options_and_the_old_words_come_back(pictures: Path, plain_captioner: Path) -> None:
    (pictures / "IMG_0001.txt").write_text("my old words", "utf-8")
    (pictures / "sub" / "IMG_0002.yaml").write_text("# mine\nmain_prompt: old\nflip_p: 0.5\n", "utf-8")
    before = tree(pictures)
    caption_auto(pictures, model=str(plain_captioner), overwrite=True)
    assert captions(pictures) == {"IMG_0001.png": RED, "my own words_1.png": BLUE, "sub/IMG_0002.png": BLUE}
    assert (pictures / "sub" / "IMG_0002.yaml").read_text("utf-8") == "# mine\nflip_p: 0.5\n"
    undo(pictures)
    assert tree(pictures) == before


def test_a_broken_picture_is_named_and_the_others_are_captioned(pictures: Path, plain_captioner: Path) -> None:
    (pictures / "IMG_0003.png").write_bytes((pictures / "IMG_0001.png").read_bytes()[:40])
    result = caption_auto(pictures, model=str(plain_captioner))
    assert [left.path.name for left in result.left] == ["IMG_0003.png"]
    assert len(result.written) == 2


def test_two_images_of_one_name_do_not_share_a_caption(pictures: Path, plain_captioner: Path) -> None:
    Image.new("RGB", (32, 32), (30, 40, 210)).save(pictures / "IMG_0001.jpg")
    result = caption_auto(pictures, model=str(plain_captioner))
    assert [left.path.name for left in result.left] == ["IMG_0001.jpg", "IMG_0001.png"]
    caption_auto(pictures, model=str(plain_captioner), to="filename")
    found = captions(pictures)
    assert (found[f"{RED}_(1).png"], found[f"{BLUE}_(1).jpg"]) == (RED, BLUE)


def test_a_tagger_gives_tags_by_category_and_score(pictures: Path, tagger: Path) -> None:
    result = caption_auto(pictures, model=str(tagger), kind="tags", to="filename")
    assert {one.path: one.caption for one in result.written} == {
        "IMG_0001.png": "scarlet (test), red theme",
        "sub/IMG_0002.png": "blue theme, o_o",
    }
    # o_o can stand in no file name: its caption is whole in a sidecar
    assert sorted(captions(pictures).values()) == ["blue theme, o_o", "my own words", "scarlet (test), red theme"]


def test_thresholds_hold_for_their_category(pictures: Path, tagger: Path) -> None:
    strict = {"character": 1.01, "general": 0.9, "rating": 0.8}
    result = caption_auto(pictures, model=str(tagger), kind="tags", thresholds=strict, limit=1)
    assert [one.caption for one in result.written] == ["red theme, general rating"]
    assert result.num_later == 1
    with pytest.raises(UsageError, match="no category 'genral'"):
        caption_auto(pictures, model=str(tagger), kind="tags", thresholds={"genral": 0.5})


def test_a_dry_run_asks_no_model_and_makes_no_state(pictures: Path) -> None:
    result = caption_auto(pictures, model="nobody/has-this", dry_run=True)
    assert [one.path for one in result.written] == ["IMG_0001.png", "sub/IMG_0002.png"]
    assert not (pictures / ".edkit").exists()


def test_a_set_that_is_captioned_needs_no_model(pictures: Path) -> None:
    for name in ("IMG_0001.txt", "sub/IMG_0002.txt"):
        (pictures / name).write_text("known", "utf-8")
    assert caption_auto(pictures, model="nobody/has-this").written == ()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json"),
        ({"config.json": '{"model_type": "blip"}'}, "pickles are not loaded"),
        ({"config.json": '{"model_type": "blip"}', "pytorch_model.bin": "x"}, "pickles are not loaded"),
        ({"config.json": '{"model_type": "nonesuch"}', "model.safetensors": ""}, "tiny-bad"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(
    pictures: Path, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    folder = tmp_path / "tiny-bad"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    with pytest.raises(BadInput, match=words) as told:
        caption_auto(pictures, model=str(folder))
    assert "\n" not in str(told.value)


def test_without_network_the_way_out_is_told(pictures: Path, tmp_path: Path) -> None:
    # a machine that can't reach the hub: its address leads nowhere
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "edkit", "caption", "auto", str(pictures), "--kind", "tags"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "can't be fetched" in done.stderr.splitlines()[-1]
    assert "--model PATH" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "kind", "extra"),
    [("transformers", "prose", "caption"), ("torch", "prose", "caption"), ("onnxruntime", "tags", "tag")],
)
def test_a_missing_extra_is_named(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, package: str, kind: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf'{package} is not installed \(pip install "edkit\[{extra}\]"\)'):
        caption_auto(pictures, model="some/model", kind=kind)  # type: ignore[arg-type]


def test_wrong_usage_is_told(pictures: Path, plain_captioner: Path, tagger: Path) -> None:
    with pytest.raises(UsageError, match="takes no prompt"):
        caption_auto(pictures, model=str(plain_captioner), prompt="what is it?")
    with pytest.raises(UsageError, match="takes no prompt"):
        caption_auto(pictures, model=str(tagger), kind="tags", prompt="what is it?")
    with pytest.raises(UsageError, match="no such model folder"):
        caption_auto(pictures, model="./nowhere")
    with pytest.raises(BadInput, match=r"no model\.onnx"):
        caption_auto(pictures, model=str(plain_captioner), kind="tags")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("A dog runs.", "A dog runs"),
        ("A dog", "A dog"),
        ("Who? A dog.", "Who? A dog."),
        ("so it goes...", "so it goes..."),
        ("x" * 200 + ".", "x" * 200 + "."),
    ],
)
def test_a_full_stop_alone_keeps_no_sentence_out_of_a_name(said: str, named: str) -> None:
    assert without_stop(said) == named


def test_the_default_fits_the_machine() -> None:
    assert default_model(gpu_gb=0) == CHOICES[-1]
    assert default_model(gpu_gb=80) == CHOICES[0]
    assert default_model(gpu_gb=12).needs_gb <= 12
    assert {choice.licence for choice in CHOICES} <= {"MIT", "Apache-2.0", "BSD-3-Clause"}


def test_the_command_prints_what_it_wrote_and_how_to_undo(pictures: Path, tagger: Path) -> None:
    args = ["caption", "auto", str(pictures), "--kind", "tags", "--model", str(tagger), "--threshold", "0.5"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "3 images: 2 captioned, 1 with a caption already" in done.output
    assert "undo: edkit undo" in done.output
    assert len(history(pictures)) == 1
    parsed = json.loads(CliRunner().invoke(app, [*args, "--json", "--overwrite"]).stdout)
    assert parsed["num_known"] == 2
    assert len(parsed["written"]) == 3


SLOW = """
import sys, time
from pathlib import Path
from edkit.caption.tagger import TaggerModel
from edkit.caption.auto import caption_auto
quick, count = TaggerModel.captions, Path(sys.argv[3])
def slow(self, prepared):
    with count.open("a") as file:
        file.write("x" * len(prepared))
    time.sleep(float(sys.argv[4]))
    return quick(self, prepared)
TaggerModel.captions = slow
caption_auto(sys.argv[1], model=sys.argv[2], kind="tags", batch_size=2)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, tagger: Path) -> None:
    root, count = tmp_path / "photos", tmp_path / "count"
    root.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (200, i, 40)).save(root / f"IMG_{i:04d}.png")
    args = [sys.executable, "-c", SLOW, str(root), str(tagger), str(count)]
    running = subprocess.Popen([*args, "0.5"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not count.exists() or count.stat().st_size < 6):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    asked = count.stat().st_size
    assert 6 <= asked < 12
    assert not list(root.glob("*.txt"))
    subprocess.run([*args, "0"], check=True)
    # at most the one batch that was under way is asked about again
    assert count.stat().st_size <= 12 + 2
    assert len(list(root.glob("*.txt"))) == 12
    assert set(captions(root).values()) == {"scarlet (test), red theme"}
