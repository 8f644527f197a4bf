"""Held-out images never train, near-duplicates stand on one side, and more images move few others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset, read
from edkit.data.errors import BadInput
from edkit.train.split import drawn_out, fixed_part, hold_out, near_duplicates

Patterns = Callable[..., list[Image.Image]]


def split(root: Path, share: float, *, seed: int = 555, recorded: set[str] | None = None) -> tuple[Dataset, list[str]]:
    with Catalog.open(root, command="test") as catalog:
        dataset = read(root, catalog=catalog)
        ids = catalog.content_ids(dataset.paths)
        held = hold_out(dataset, ids, catalog, share=share, seed=seed, recorded=recorded)
        return dataset, [dataset.key(i) for i in held]


def test_near_duplicates_stand_on_one_side(tmp_path: Path, patterns: Patterns) -> None:
    made = patterns(tmp_path / "a", 8)
    for i, picture in enumerate(made[:4]):
        picture.resize((50, 44)).save(tmp_path / "a" / f"smaller {chr(97 + i)}_({i}).jpg", quality=80)
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a" / f"mirrored {chr(97 + i)}_({i}).png")
    for seed in range(6):
        dataset, held = split(tmp_path, 0.4, seed=seed)
        assert 0 < len(held) <= 0.4 * len(dataset) + 1
        for letter in "abcd":
            kin = [key for key in map(dataset.key, range(len(dataset))) if f" {letter}_" in key]
            assert len(kin) == 3 and len(set(kin) & set(held)) in (0, 3)


def test_every_folder_gives_its_share_and_new_images_move_few(tmp_path: Path, patterns: Patterns) -> None:
    patterns(tmp_path / "dog", 10)
    patterns(tmp_path / "people", 20, seed=1)
    _, held = split(tmp_path, 0.2)
    assert sum(key.startswith("dog/") for key in held) == 2 and len(held) == 6
    assert split(tmp_path, 0.2)[1] == held != split(tmp_path, 0.2, seed=1)[1]
    patterns(tmp_path / "cats", 5, seed=2)
    _, later = split(tmp_path, 0.2)
    assert {key for key in later if not key.startswith("cats/")} == set(held)


def test_a_resumed_run_keeps_its_split_whatever_came_since(tmp_path: Path, patterns: Patterns) -> None:
    patterns(tmp_path, 6)
    with Catalog.open(tmp_path, command="test") as catalog:
        kept = catalog.content_ids([tmp_path / "pattern c_(2).png"])
    patterns(tmp_path / "more", 20, seed=3)
    assert split(tmp_path, 0.5, recorded=set(kept.values()))[1] == ["pattern c_(2).png"]


def test_copies_of_one_picture_alone_can_not_be_parted(tmp_path: Path, patterns: Patterns) -> None:
    picture = patterns(tmp_path, 1)[0]
    picture.save(tmp_path / "the same_(1).bmp")
    with pytest.raises(BadInput, match=r"all images show the same.*validate_share = 0"):
        split(tmp_path, 0.5)


def test_alike_in_shape_alone_is_not_alike() -> None:
    red, green = bytes([220, 10, 10] * 64), bytes([10, 200, 10] * 64)
    same = {"phash": "8000000000000000", "phash_mirror": "8000000000000000"}
    assert near_duplicates([same | {"thumb": red}, same | {"thumb": green}, None, same | {"thumb": red}]) == [
        0,
        1,
        2,
        0,
    ]
    assert near_duplicates([]) == [] and near_duplicates([None]) == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.floats(0.01, 0.9), st.integers(0, 5))
def test_groups_go_whole_and_never_all(groups: list[int], share: float, seed: int) -> None:
    folders, names = [group % 3 for group in groups], [f"{i}" for i in range(len(groups))]
    held = drawn_out(folders, groups, names, share=share, seed=seed)
    gone = {groups[i] for i in held}
    assert held == [i for i, group in enumerate(groups) if group in gone]
    assert (len(held) == 0) == (len(set(groups)) == 1) and len(held) < len(groups)
    assert len(gone) <= 1 or len(held) <= share * len(groups) + 0.5


def test_a_fixed_part_is_drawn_by_name_alone() -> None:
    names = [f"{i:064x}" for i in range(100)]
    part = {names[i] for i in fixed_part(names, share=0.1, seed=1)}
    assert len(part) == 10 and {names[::-1][i] for i in fixed_part(names[::-1], share=0.1, seed=1)} == part
    assert fixed_part(names[:3], share=0.01, seed=1) and fixed_part(names, share=1, seed=1) == list(range(100))
