"""Sample prompts from a list, a text file or a sheet: fixed where they should be, read again, never lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edkit.data.errors import BadInput
from edkit.train.prompts import Prompts, SamplePrompt, SampleSheet, read_sheet
from edkit.train.run import train
from edkit.train.settings import TrainSettings

DEFAULTS = SampleSheet(prompts=(SamplePrompt(prompt=None, negative="blurry"),), guidance=(5.0,), steps=9)
SHEET = """{
  "batch_size": 3, # lower this where memory is short
  "seed": 7, "cfgs": [7, 4], "scheduler": "dpm++", "num_inference_steps": 15, "show_progress_bars": true,
  "samples": [
    {"prompt": "a man # 1", "negative_prompt": ""},
    {"prompt": "a man # 1", "seed": -1, "aspect_ratio": 1.77778},
    {"random_caption": true, "size": [100, 70]},
  ]
}"""


def sheet(folder: Path, text: str, name: str = "prompts.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lists_and_text_files_take_what_the_settings_say(tmp_path: Path) -> None:
    path = sheet(tmp_path, "\ufeffa dog\n\n# not this\n  her on a beach \r\n", "prompts.txt")
    assert read_sheet(path, DEFAULTS) == read_sheet(("a dog", "her on a beach"), DEFAULTS)
    found = read_sheet(path, DEFAULTS)
    assert [one.prompt for one in found.prompts] == ["a dog", "her on a beach"] and found.steps == 9
    assert {one.negative for one in found.prompts} == {"blurry"}
    assert read_sheet((), DEFAULTS).prompts == ()


def test_a_sheet_says_everything_of_each_picture(tmp_path: Path) -> None:
    found = read_sheet(sheet(tmp_path, SHEET), DEFAULTS)
    assert (found.guidance, found.steps, found.batch_size) == ((7.0, 4.0), 15, 3)
    assert len(found.notes) == 1 and "scheduler dpm++" in found.notes[0]
    captions = [f"caption {i}" for i in range(50)]
    rows, later = (found.rows(step=n, captions=captions, resolution=512, bucket_step=64) for n in (0, 100))
    first, second, third = (request for request, _ in rows)
    assert (first.prompt, first.negative, first.seed, first.occurrence) == ("a man # 1", "", 7, 0)
    assert (second.negative, second.occurrence) == ("blurry", 1)
    assert third.prompt in captions and third.seed == 7
    assert [size for _, size in rows] == [(512, 512), (640, 384), (64, 64)]
    # fixed seeds and the drawn caption stay; a seed of -1 is another one at each sampling
    assert [later[i][0] for i in (0, 2)] == [first, third] and later[1][0].seed != second.seed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"samples": [{"promt": "x"}]}', r"sample 1: 'promt' is no key.*did you mean 'prompt'"),
        ('{"samples": [{"seed": 1}]}', "neither a prompt nor random_caption"),
        ('{"samples": [{"prompt": "x", "size": 512}]}', r"\[width, height\] is wanted"),
        ('{"samples": [{"prompt": "x", "aspect_ratio": 0}]}', "width over height"),
        ('{"cfgs": 7}', "a list of numbers"),
        ('{"seed": "x"}', "a whole number"),
        ('{"num_inference_steps": 0}', "at least 1"),
        ('{"samples": {}', "is not JSON"),
        ("[]", "is no JSON object"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        read_sheet(sheet(tmp_path, text), DEFAULTS)
    assert "prompts.json" in str(error.value)


def test_a_changed_file_is_read_again_and_a_broken_one_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    path = sheet(tmp_path, "a dog", "prompts.txt")
    prompts = Prompts(path, DEFAULTS, num_timesteps=1000, say=said.append)
    assert len(prompts.now().prompts) == 1 and said == []
    path.write_text("a dog\na cat", encoding="utf-8")
    assert len(prompts.now().prompts) == 2 and said == [f"{path}: changed; drawing 2 prompts"]
    path.write_bytes(b"\xff")
    assert [len(prompts.now().prompts) for _ in range(3)] == [2, 2, 2]
    assert len(said) == 2 and "is not UTF-8" in said[1] and said[1].endswith("drawing what it said before")
    path.unlink()
    assert len(prompts.now().prompts) == 2 and "no such file" in said[2]
    path.write_text("a cat", encoding="utf-8")
    assert prompts.now().prompts[0].prompt == "a cat"
    with pytest.raises(BadInput, match="no such file"):
        Prompts(tmp_path / "nowhere.txt", DEFAULTS, num_timesteps=1000, say=said.append)
    path.with_suffix(".json").write_text('{"num_inference_steps": 1200, "samples": []}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"\.json: num_inference_steps = 1200, but the model has 1000 timesteps"):
        Prompts(path.with_suffix(".json"), DEFAULTS, num_timesteps=1000, say=said.append)


def test_a_prompt_that_is_no_list_is_told_how_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'no such file of sample prompts .*sample_prompts = \["a dog, 3.5 m"\]'):
        read_sheet(tmp_path / "a dog, 3.5 m", DEFAULTS)


def test_a_run_draws_rows_of_prompts_and_columns_of_guidance(
    settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    path = sheet(tmp_path, SHEET.replace("15", "1").replace("[100, 70]", "[40, 32]"))
    run = train(settings(sample_prompts=str(path), max_steps=1))
    folder = run.run_dir / "samples" / "step-00000001"
    names = [f"{i:02d}-guidance-{g}.png" for i in (1, 2, 3) for g in (4, 7)]
    assert sorted(one.name for one in folder.iterdir()) == names
    with Image.open(folder / "03-guidance-4.png") as picture:
        assert picture.size == (40, 32) and picture.info["prompt"] in ("red paint", "blue paint")
        assert picture.info["guidance"] == "4.0" and picture.info["seed"] == "7"
    assert [grid.name for grid in run.samples] == ["step-00000000.png", "step-00000001.png"]
