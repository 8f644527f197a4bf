"""The world is a pure function of scene and seed, and keeps its held-out combinations to itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edkit.nano import world


def test_same_scene_and_seed_draw_the_same_bytes_and_another_seed_other_ones() -> None:
    scene = world.training_scene(3, seed=1)
    first, again, other = (world.draw(scene, seed).tobytes() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_scene_of_the_stream_does_not_depend_on_those_before_it() -> None:
    assert list(world.scenes(20, seed=4))[17] == world.training_scene(17, seed=4)


def test_held_out_combinations_never_occur_in_training() -> None:
    seen = {scene.triple for scene in world.scenes(20_000, seed=1)}
    assert not seen & world.HELD_OUT
    everything = len(world.COLOURS) * len(world.SHAPES) * len(world.BACKGROUNDS)
    assert len(seen) == everything - len(world.HELD_OUT)  # and everything else does


def test_each_pair_is_held_out_with_one_background_and_each_background_equally_often() -> None:
    pairs = Counter((colour, shape) for colour, shape, _ in world.HELD_OUT)
    assert set(pairs.values()) == {1}
    assert len(pairs) == len(world.COLOURS) * len(world.SHAPES) >= 48
    assert set(Counter(ground for *_, ground in world.HELD_OUT).values()) == {8}


def test_the_96_prompts_are_two_positions_of_every_held_out_combination() -> None:
    prompts = world.held_out_prompts()
    assert len(prompts) == len({prompt.text for prompt in prompts}) == 96
    places: dict[tuple[str, str, str], set[str]] = {}
    for prompt in prompts:
        places.setdefault(prompt.scene.triple, set()).add(prompt.scene.position)
    assert set(places) == world.HELD_OUT
    assert {len(where) for where in places.values()} == {2}


@pytest.mark.parametrize("size", [64, 100, 256])
def test_a_picture_has_the_size_asked_for_and_the_same_layout(size: int) -> None:
    scene = world.Scene(colour="red", shape="circle", background="water", position="left")
    pixels = np.asarray(world.draw(scene, 9, size=size), np.float32)
    assert pixels.shape == (size, size, 3)
    redness = pixels[..., 0] - pixels[..., 2] > 60
    down, across = (index.mean() / size for index in np.nonzero(redness))
    expected = np.asarray(world.draw(scene, 9, size=512), np.float32)
    big = np.nonzero(expected[..., 0] - expected[..., 2] > 60)
    assert abs(down - big[0].mean() / 512) < 0.01
    assert abs(across - big[1].mean() / 512) < 0.01


def test_captions_say_what_is_seen_in_plain_words() -> None:
    scene = world.Scene(colour="orange", shape="star", background="brick", position="top")
    assert world.caption(scene) == "an orange star on a brick wall, at the top"
    large = world.Scene(colour="blue", shape="ring", background="cloth", position="left", size="large", phrasing=4)
    assert world.caption(large) == "a checkered cloth with a large blue ring on the left"


def test_the_subject_has_a_name_and_is_no_training_scene() -> None:
    scenes = [world.subject_scene(index) for index in range(20)]
    assert all(world.SUBJECT_NAME in world.subject_caption(scene) for scene in scenes)
    assert {scene.background for scene in scenes} == set(world.BACKGROUNDS)
    assert {scene.position for scene in scenes} == set(world.POSITIONS)
    assert not any(scene.subject for scene in world.scenes(500, seed=1))
    assert world.draw_subject(2).tobytes() == world.draw_subject(2).tobytes() != world.draw_subject(8).tobytes()


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="no such shape: cube"):
        world.outline("cube", (0.5, 0.5), 0.2, 0.0)
