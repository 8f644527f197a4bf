"""Evaluate: no drift between equal models, damage seen where it was done, and nothing measured twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from edkit.cli.app import app
from edkit.data.errors import BadInput, UsageError
from edkit.nano import model_dir
from edkit.prove.evaluate import Evaluation, evaluate
from edkit.prove.images import requests, trained_on
from edkit.prove.model import Manner, load, manner_of
from edkit.prove.result import Losses
from edkit.train.record import DATASET_FILE


def look(data: Path, tuned: str | Path, out: Path, **more: Any) -> Evaluation:
    quick: dict[str, Any] = {"num_pictures": 3, "steps": 1, "class_prompts": ["a star on grass"], "device": "cpu"}
    return evaluate(
        "nano", tuned, train=data / "subject", preservation=data / "old", out=out / "page.html", **(quick | more)
    )


@pytest.fixture(scope="session")
def first(data: Path, ruined: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The ruined model's evaluation."""
    return look(data, ruined / "export", tmp_path_factory.mktemp("ruined"))


def test_equal_models_did_not_drift(data: Path, tmp_path: Path) -> None:
    found = look(data, model_dir(), tmp_path, seed=-1)
    assert found.seed >= 0  # drawn, and recorded
    assert (found.drift.value, found.drift.low, found.drift.high) == (0, 0, 0)
    assert [one.word for one in found.verdicts] == ["not learned", "kept", "not bled"]
    assert found.models[0] == found.models[1]
    assert all(pair.before == pair.after for pair in found.pairs)
    assert [part.name for part in found.preservation.folders] == ["first", "second"]
    assert len(found.preservation.quarters) == 4
    assert not found.training.held_out  # no record says what it was trained on


def test_a_ruined_model_forgot_and_the_page_says_so(first: Evaluation) -> None:
    found = first
    assert found.said("forgot") is not None and found.drift.low > 0.05
    page = found.page.read_text(encoding="utf-8")
    assert "forgot" in page and "http" not in page.split("</style>")[1]
    figures = json.loads(found.json.read_text(encoding="utf-8"))
    assert figures["preservation"]["whole"]["change"]["value"] == pytest.approx(found.drift.value)
    # what the run trained on is left out of what it is tried on: here that is everything, so it counts as seen
    assert not found.training.held_out and found.preservation.held_out


def test_a_second_call_measures_nothing_and_says_the_same(data: Path, ruined: Path, first: Evaluation) -> None:
    files = first.page.with_name("page-files")
    stamps = {path: path.stat().st_mtime_ns for path in files.rglob("*.png")}
    page, losses = first.page.read_bytes(), (files / "losses.jsonl").read_bytes()
    second = look(data, ruined / "export", first.page.parent)
    assert second == first and second.page.read_bytes() == page
    assert (files / "losses.jsonl").read_bytes() == losses
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*.png")} == stamps


def test_an_interrupted_call_goes_on_to_the_same_figures(
    data: Path, ruined: Path, first: Evaluation, tmp_path: Path
) -> None:
    whole = first
    shutil.copytree(first.page.parent, tmp_path / "part")
    (tmp_path / "part/page.json").unlink()
    kept = (tmp_path / "part/page-files/losses.jsonl").read_text(encoding="utf-8")
    (tmp_path / "part/page-files/losses.jsonl").write_text(kept[: len(kept) // 2], encoding="utf-8")
    next(iter((tmp_path / "part/page-files").rglob("*.png"))).unlink()
    again = look(data, ruined / "export", tmp_path / "part")
    assert again.training.whole == whole.training.whole and again.preservation.whole == whole.preservation.whole
    assert [p.scores for p in again.pairs] == [p.scores for p in whole.pairs]


def test_images_that_trained_are_left_out_where_others_are(data: Path, ruined: Path, tmp_path: Path) -> None:
    root = tmp_path / "more"
    shutil.copytree(data / "subject", root)
    new = sorted((data / "old").rglob("*.png"))[:8]
    tried = {"train": root, "preservation": data / "old", "out": tmp_path / "p.html", "num_pictures": 0}
    for i, path in enumerate(new[:-1]):
        shutil.copy(path, root / f"new star_({i}).png")
    few = evaluate("nano", ruined / "export", **tried).training
    assert (few.held_out, few.whole.num_images, few.num_all) == (False, 13, 13)  # seven alone would say little
    shutil.copy(new[-1], root / "new star_(7).png")
    enough = evaluate("nano", ruined / "export", **tried).training
    assert (enough.held_out, enough.whole.num_images, enough.num_all) == (True, 8, 14)


def test_one_image_gives_no_verdict(data: Path, ruined: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next((data / "old/first").glob("*.png")), tmp_path / "one")
    with pytest.raises(BadInput, match=r"one image to try the models on, and 2 are needed"):
        evaluate("nano", ruined / "export", train=tmp_path / "one", preservation=data / "old", out=tmp_path / "p.html")


def test_trained_is_what_any_of_the_models_trained_on(lora: Path, elsewhere: Path, tmp_path: Path) -> None:
    other = elsewhere / "export"
    one, both = trained_on([lora / "export"]), trained_on([lora / "export", other])
    assert one and both and one < both and len(both) == 11
    assert trained_on([other, model_dir()]) is None
    # a file lies beside another model's list
    file = Path(shutil.copy(lora / "export/pytorch_lora_weights.safetensors", tmp_path))
    shutil.copy(other / DATASET_FILE, tmp_path)
    assert trained_on([file]) is None
    shutil.copy(lora / "export" / DATASET_FILE, tmp_path)
    assert trained_on([file]) == one


def test_images_and_models_are_read_as_the_run_read_them(
    data: Path, nameless: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = nameless
    manner = manner_of(run / "export")
    assert manner == Manner(caption_fallback="a star", clip_skip=2, resolution=32)

    def measured(**more: Any) -> Losses:
        sides = {"train": root, "preservation": data / "old", "out": tmp_path / "p.html", "num_pictures": 0}
        return evaluate("nano", run / "export", **(sides | more)).training

    found = measured()
    assert found.whole.num_images == 6 and not found.left_out
    assert measured(resolution=64).whole.before != found.whole.before
    # what was measured in one manner is not taken for what would be in another
    monkeypatch.setattr("edkit.prove.evaluate.manner_of", lambda _: replace(manner, clip_skip=1))
    assert measured().whole.before != found.whole.before


def test_noise_ends_pure_for_the_base_too_where_the_run_had_it_so(tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_dir(), tmp_path / "model"))
    config = model / "scheduler/scheduler_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"prediction_type": "v_prediction"}), encoding="utf-8")
    last = torch.tensor([999])
    assert float(load(model, manner=Manner()).snr(last)) > 0
    assert float(load(model, manner=Manner(zero_terminal_snr=True)).snr(last)) == pytest.approx(0, abs=1e-12)


def test_a_lora_is_tried_at_the_strength_asked_for(data: Path, lora: Path, tmp_path: Path) -> None:
    none, some, full = (
        look(data, lora / "export", tmp_path, num_pictures=0, strength=strength).drift.value
        for strength in (0.0, 0.5, 1.0)
    )
    assert none == 0 and some != 0 and full not in (0, some)
    file = look(data, lora / "export/pytorch_lora_weights.safetensors", tmp_path, num_pictures=0)
    assert file.drift.value == pytest.approx(full, rel=1e-3)


def test_the_command_says_it_in_three_lines_and_leaves_with_3_past_the_limit(
    data: Path, ruined: Path, tmp_path: Path
) -> None:
    words = ["evaluate", "nano", str(ruined / "export"), "--train", str(data / "subject"), "--preservation"]
    words += [str(data / "old"), "--out", str(tmp_path / "p.html"), "--num-pictures", "0"]
    strict = CliRunner().invoke(app, [*words, "--max-drift", "0.05"])
    assert strict.exit_code == 3 and "forgot: the loss on ground truth moved by +" in strict.output
    assert CliRunner().invoke(app, [*words, "--max-drift", "1e6"]).exit_code == 0
    assert CliRunner().invoke(app, words).exit_code == 0


def test_mistakes_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same folder"):
        evaluate("nano", "nano", train=data, preservation=data, out=tmp_path / "p.html")
    with pytest.raises(UsageError, match=r"ends in \.html"):
        evaluate("nano", "nano", train=data / "subject", preservation=data / "old", out=tmp_path / "p")
    with pytest.raises(BadInput, match="no such folder"):
        evaluate("nano", "nano", train=data / "nowhere", preservation=data / "old", out=tmp_path / "p.html")
    with pytest.raises(BadInput, match="no such model folder"):
        evaluate("nano", tmp_path / "no", train=data / "subject", preservation=data / "old", out=tmp_path / "p.html")


def test_prompts_are_spread_over_all_captions_and_repeated_where_they_are_few() -> None:
    some = requests([f"c{i}" for i in range(10)], 5, 1)
    assert [r.prompt for r in some] == ["c0", "c2", "c4", "c6", "c8"]
    twice = requests(["person", "person"], 3, 1)
    assert [(r.prompt, r.occurrence) for r in twice] == [("person", 0), ("person", 1), ("person", 2)]
    assert requests([], 3, 1) == []


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random CLIP by path."""
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = folder / "judging-clip.json"
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}), encoding="utf-8")
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("judging-clip").state_dict(), folder / "clip.pt")
    return {"clip": str(config), "pretrained": str(folder / "clip.pt")}


def test_a_clip_model_judges_where_one_is_named(
    data: Path, ruined: Path, first: Evaluation, small_clip: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(first.page.parent, tmp_path / "drawn")
    found = look(data, ruined / "export", tmp_path / "drawn", **small_clip)
    assert found.judge == "judging-clip" and [score.side for score in found.scores] == [
        "training",
        "preservation",
        "class",
    ]
    assert all(-1 <= score.after <= 1 for score in found.scores)
    assert found.distance is not None and found.distance[0] > 0  # pictures of a ruined model are others
    assert "distance (KID)" in found.page.read_text(encoding="utf-8")
