"""Pictures: the same for the same prompt and seed, whoever stands beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from edkit.data.errors import UsageError
from edkit.train.families import load_family
from edkit.train.generate import Request, draw, generate, grid, parse_size

CPU = torch.device("cpu")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_picture_does_not_depend_on_the_others(model: Path) -> None:
    family = load_family(model)
    prompts = ["red", "blue", "red", "a long one", "green"]
    requests = [Request(prompt=p, occurrence=prompts[:i].count(p)) for i, p in enumerate(prompts)]
    together = draw(family, requests, steps=3, guidance=4.0, batch_size=2, device=CPU)
    for request, picture in zip(requests, together, strict=True):
        alone = draw(family, [request], steps=3, guidance=4.0, batch_size=2, device=CPU)[0]
        assert np.array_equal(np.asarray(alone), np.asarray(picture))
    assert not np.array_equal(np.asarray(together[0]), np.asarray(together[2]))
    other = draw(family, [Request(prompt="red", seed=1)], steps=3, guidance=4.0, batch_size=2, device=CPU)[0]
    assert not np.array_equal(np.asarray(other), np.asarray(together[0]))


def test_files_have_safe_names_and_tell_how_they_were_made(model: Path, tmp_path: Path) -> None:
    prompts = ["a/b: c?", "con", "a/b: c?"]
    paths = generate(model, prompts, tmp_path, steps=1, seed=9, negative="blur", size=(40, 32))
    assert [path.name for path in paths] == ["a b c_(1).png", "con -_(1).png", "a b c_(2).png"]
    with Image.open(paths[2]) as picture:
        assert picture.size == (40, 32)
        said = {key: picture.info[key] for key in ("prompt", "seed", "occurrence", "negative")}
    assert said == {"prompt": "a/b: c?", "seed": "9", "occurrence": "1", "negative": "blur"}


def test_nothing_is_overwritten_and_a_second_call_draws_the_same(model: Path, tmp_path: Path) -> None:
    first = generate(model, ["red"], tmp_path, steps=2)
    second = generate(model, ["red"], tmp_path, steps=2)
    assert first != second and np.array_equal(pixels(first[0]), pixels(second[0]))


def test_guidance_of_one_asks_the_model_once(model: Path) -> None:
    family = load_family(model)
    text, empty = (family.encode_text(family.tokenize([p])) for p in ("red", ""))
    noise = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        plain = family.denoise(noise, text, empty, steps=3, guidance=1.0)
        assert torch.equal(plain, family.denoise(noise, text, text, steps=3, guidance=1.0))
        # guided by its own prompt as the negative one, the guidance has nothing to add
        torch.testing.assert_close(
            plain, family.denoise(noise, text, text, steps=3, guidance=7.0), rtol=1e-3, atol=1e-4
        )
        assert not torch.allclose(plain, family.denoise(noise, text, empty, steps=3, guidance=7.0), atol=1e-4)


def test_sizes_the_model_cannot_draw_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="30 x 32: this model draws widths and heights in steps of 8 pixels"):
        generate(model, ["red"], tmp_path, size=(30, 32))
    with pytest.raises(UsageError, match="no prompt"):
        generate(model, [], tmp_path)
    with pytest.raises(UsageError, match="is no size"):
        parse_size("512")
    assert parse_size("768x512") == (768, 512)


def test_unknown_precisions_and_too_many_steps_are_refused_and_halves_are_halves(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--precision quux: fp32, fp16, bf16"):
        generate(model, ["red"], tmp_path, precision="quux")
    for steps in (1000, 2000):
        with pytest.raises(UsageError, match=f"{steps} steps: this model draws in fewer than its 1000 timesteps"):
            generate(model, ["red"], tmp_path, steps=steps)
    drawn = [pixels(generate(model, ["red"], tmp_path, steps=1, precision=p)[0]) for p in ("fp32", "fp16", "bf16")]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_a_grid_has_a_row_for_each_prompt_and_a_column_for_each_guidance() -> None:
    colours = [["red", "green"], ["blue", "yellow"]]
    rows = [[Image.new("RGB", (64, 48 if i else 32), colour) for colour in row] for i, row in enumerate(colours)]
    sheet = grid(
        rows, ["a label that is far too long for the width that it has beside its pictures", "two"], ["7", "4"]
    )
    where = {colour: [] for colour in ("red", "green", "blue", "yellow")}
    for name, found in where.items():
        pixels = sheet.load()
        assert pixels is not None
        found += [(x, y) for x in range(0, sheet.width, 4) for y in range(0, sheet.height, 4)
                  if pixels[x, y] == ImageColor.getrgb(name)]  # fmt: skip
    left, top = ({name: min(spot[i] for spot in spots) for name, spots in where.items()} for i in (0, 1))
    assert left["red"] == left["blue"] < left["green"] == left["yellow"]
    assert top["red"] == top["green"] < top["blue"] == top["yellow"]


def test_each_picture_has_its_own_negative_prompt(model: Path) -> None:
    family = load_family(model)
    both = [Request(prompt="a", negative="b"), Request(prompt="a")]
    one, other = draw(family, both, steps=2, guidance=4.0, device=torch.device("cpu"), negative="c")
    again = draw(family, both[:1], steps=2, guidance=4.0, device=torch.device("cpu"))
    assert one.tobytes() == again[0].tobytes() != other.tobytes()
