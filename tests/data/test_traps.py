"""One test for each way earlier implementations of this layout silently changed what was trained.

The trainer's own traps (checkpoints, losses, learning rates, signals, token limits) are tested beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edkit.data.dataset import Dataset, read
from edkit.data.image import load_crop, open_image
from edkit.data.plan import Epoch, Plan, PlanSettings, buckets, nearest
from edkit.data.random import permutation, unit
from edkit.data.sample import Caption, Options, Sample, Tag, caption_text

Make = Callable[[Mapping[str, Any]], Path]
SIZE = (64, 64)


def images(folder: str, num: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    return {f"{folder}/a picture_({n:04}).jpg": size for n in range(num)}


def plan_of(root: Path, **settings: Any) -> Plan:
    return Plan(read(root), PlanSettings(**{"resolution": 64, **settings}))


def trained(epoch: Epoch) -> list[int]:
    return [int(i) for step in epoch.indices() for i in step]


def texts(ds: Dataset, *, epochs: int = 1, seed: int = 1) -> list[list[str]]:
    return [[caption_text(s, seed=seed, epoch=e) for s in ds] for e in range(epochs)]


def tagged(key: str = "x", num: int = 6, **options: Any) -> Sample:
    tags = tuple(Tag(f"tag{n}") for n in range(num))
    caption = Caption(text="main", tags=tags, verbatim=False)
    said = Options(**{"shuffle_tags": True, **options})
    return Sample(key=key, path=Path(key), caption=caption, options=said, sources=(), width=1, height=1)


# ---- multiply


def test_10_images_at_a_tenth_give_1_and_1000_give_100(make: Make) -> None:
    plan = plan_of(
        make(
            {
                **images("ten", 10),
                "ten/multiply.txt": "0.1",
                **images("many", 1000),
                "many/multiply.txt": "0.1",
            }
        )
    )
    for e in range(10):
        assert sorted(plan.picks_by_folder(e).values()) == [1, 100]


def test_fractions_belong_to_their_folder(make: Make) -> None:
    files: dict[str, Any] = {}
    for f in range(4):
        files |= {**images(f"f{f}", 20), f"f{f}/multiply.txt": "1.5"}
    plan = plan_of(make(files), batch_size=1)
    for e in range(6):
        assert list(plan.picks_by_folder(e).values()) == [30] * 4
        by_folder = Counter(i // 20 for i in trained(plan.epoch(e)))
        assert set(by_folder.values()) == {30}


def test_fractions_favour_no_part_of_the_folder(make: Make) -> None:
    plan = plan_of(make({**images("f", 100), "f/multiply.txt": "0.13"}), batch_size=1)
    count = Counter(i for e in range(100) for i in trained(plan.epoch(e)))
    assert set(count.values()) == {13} and len(count) == 100
    # and a single epoch's picks come from everywhere: no decile of the names is preferred over the seeds
    root = plan.dataset
    deciles = Counter(
        i // 10
        for s in range(60)
        for i in trained(Plan(root, PlanSettings(resolution=64, batch_size=1, seed=s)).epoch(0))
    )
    assert all(abs(n - 78) < 5 * math.sqrt(78) for n in deciles.values()) and len(deciles) == 10


def test_50_images_in_odd_aspects_stay_50(make: Make) -> None:
    files: dict[str, Any] = {}
    for n in range(50):
        files[f"a picture_({n}).jpg"] = (64 + 8 * (n % 25), 64 + 8 * (n % 7))
    plan = plan_of(make(files), bucket_step=8, batch_size=8)
    epochs = [plan.epoch(e, last=e == 3) for e in range(4)]
    assert sum(epoch.num_picks for epoch in epochs) == 200
    assert set(Counter(i for epoch in epochs for i in trained(epoch)).values()) == {4}


def test_multiply_0_leaves_the_folder_out_and_says_so(make: Make) -> None:
    plan = plan_of(make({**images("on", 4), **images("off", 4), "off/multiply.txt": "0"}), batch_size=2)
    assert sorted(set(trained(plan.epoch(0)))) == [4, 5, 6, 7]
    assert [p.code for p in plan.dataset.problems] == ["multiply-zero"] and not plan.dataset.errors
    assert [i for i, _ in plan.left_out] == [0, 1, 2, 3]


# ---- tags


def test_keep_tags_keeps_them() -> None:
    for keep in range(4):
        seen = {caption_text(tagged(keep_tags=keep), seed=s, epoch=0) for s in range(30)}
        fixed = ["main", *(f"tag{n}" for n in range(keep))]
        assert all(text.split(", ")[: keep + 1] == fixed for text in seen) and len(seen) > 5


def test_tag_lists_of_equal_length_get_permutations_of_their_own() -> None:
    order = [caption_text(tagged(f"{n}.jpg"), seed=1, epoch=0) for n in range(20)]
    assert len(set(order)) > 15
    sample = tagged()
    assert len({caption_text(sample, seed=1, epoch=e) for e in range(20)}) > 15
    assert len({caption_text(sample, seed=1, epoch=0, occurrence=o) for o in range(20)}) > 15


def test_weighted_shuffling_never_exceeds_the_maximum_length() -> None:
    tags = tuple(Tag("x" * n, weight=n) for n in range(1, 30))
    for limit in range(1, 80):
        sample = Sample(
            key="k",
            path=Path("k"),
            caption=Caption(text="main prompt", tags=tags, verbatim=False),
            options=Options(shuffle_tags=True, max_caption_length=limit),
            sources=(),
            width=1,
            height=1,
        )
        for epoch in range(5):
            text = caption_text(sample, seed=1, epoch=epoch)
            assert len(text) <= limit and text and not text.endswith((",", " "))


def test_shuffle_tags_reaches_subfolders_and_file_name_captions(make: Make) -> None:
    root = make({"global.yaml": "shuffle_tags: true", "a/b/main, one, two, three, four_1.jpg": SIZE})
    ds = read(root)
    seen = {texts(ds, seed=s)[0][0] for s in range(30)}
    assert len(seen) > 5 and {", ".join(sorted(t.split(", ")[1:])) for t in seen} == {"four, one, three, two"}
    own = read(make({"c/shuffle_tags.txt": "", "c/main, one, two, three_1.jpg": SIZE}))
    assert own.options(1).shuffle_tags is True and len({texts(own, seed=s)[0][1] for s in range(30)}) > 3


def test_tags_given_as_text_in_yaml_are_not_split_into_letters(make: Make) -> None:
    ds = read(make({"a.jpg": SIZE, "a.yaml": "main_prompt: m\ntags: sunny\n"}))
    assert texts(ds) == [["m, sunny"]]


def test_null_in_yaml_says_nothing_and_crashes_nothing(make: Make) -> None:
    ds = read(
        make(
            {
                "a.jpg": SIZE,
                "a.yaml": "main_prompt:\ntags: [x, null, ~]\nmultiply: null\ncaption:\nbatch_id: ~\n",
            }
        )
    )
    assert texts(ds) == [["a, x"]] and ds.options(0).multiply == 1 and not ds.errors


def test_a_caption_that_happens_to_name_a_file_opens_no_file(make: Make) -> None:
    root = make(
        {
            "secret.txt": "the content of the file",
            "secret.txt_1.jpg": SIZE,
            "a.jpg": SIZE,
            "a.txt": "secret.txt",
            "b.jpg": SIZE,
            "b.yaml": "main_prompt: secret.txt",
            "c.jpg": SIZE,
            "c.yaml": "caption: c.caption",
            "c.caption": "secret.txt",
        }
    )
    assert set(texts(read(root))[0]) == {"secret.txt"}


def test_byte_order_marks_do_not_stay_in_the_caption(make: Make) -> None:
    ds = read(make({"a.jpg": SIZE, "a.txt": "\ufeffa dog", "b.jpg": SIZE, "b.txt": "a dog".encode("utf-16")}))
    assert texts(ds) == [["a dog", "a dog"]]


def test_newlines_do_not_stay_in_captions_and_batch_ids(make: Make) -> None:
    ds = read(
        make(
            {
                "a.jpg": SIZE,
                "a.txt": "a dog\r\n",
                "batch_id.txt": "sky\r\n",
                "b.jpg": SIZE,
                "b.txt": "a\ncat\n",
            }
        )
    )
    assert texts(ds) == [["a dog", "a cat"]] and ds.options(0).batch_id == "sky"


def test_an_empty_main_prompt_gives_no_leading_comma(make: Make) -> None:
    root = make({"global.yaml": "tags: [photo, sharp]", "a_1.jpg": SIZE, "a_1.txt": "", "b.jpg": SIZE, "b.txt": ", x"})
    assert texts(read(root)) == [["photo, sharp", "x, photo, sharp"]]


# ---- buckets


def test_landscape_and_portrait_of_one_picture_take_mirrored_buckets() -> None:
    for resolution in (512, 768, 1024, 640):
        found = buckets(resolution)
        for width in range(300, 3000, 37):
            for height in (350, 512, 1000):
                across, down = found[nearest(width, height, found)], found[nearest(height, width, found)]
                assert across == down[::-1]


def test_every_bucket_has_about_the_intended_area() -> None:
    for resolution in (512, 576, 768, 1024):
        for width, height in buckets(resolution):
            assert 0.8 * resolution**2 < width * height <= resolution**2


def test_every_bucket_is_divisible_by_64() -> None:
    for resolution in range(256, 1300, 17):
        assert all(w % 64 == h % 64 == 0 for w, h in buckets(resolution))


# ---- order


def test_folders_are_visited_in_sorted_order(make: Make) -> None:
    names = ["zoo", "a", "mid", "a/b", "B", "10", "9"]
    root = make({f"{name}/x_1.jpg": SIZE for name in names})
    assert [f.key for f in read(root).folders] == sorted(names)


def test_the_random_order_depends_on_no_unrelated_draw(make: Make) -> None:
    import random

    import numpy as np

    ds = read(make(images("a", 40)))
    plan = Plan(ds, PlanSettings(resolution=64, batch_size=4))
    before = [trained(plan.epoch(e)) for e in range(3)]
    random.seed(7)
    np.random.seed(7)
    unit(555, "order", 1)
    permutation(10, 555, "order", 0)
    again = Plan(ds, PlanSettings(resolution=64, batch_size=4))
    random.random()
    assert [trained(again.epoch(e)) for e in (2, 1, 0)] == before[::-1]


# ---- options and files


def test_a_folder_flip_p_reaches_the_images(make: Make) -> None:
    plan = plan_of(make({**images("a", 40), "a/flip_p.txt": "1"}), batch_size=4)
    assert all(p.crop.flip for step in plan.epoch(0).steps for m in step for p in m.picks)


def test_alpha_is_composed_on_white_and_not_thrown_away(tmp_path: Path) -> None:
    im = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    im.putpixel((5, 5), (0, 0, 0, 255))
    im.save(tmp_path / "a logo_1.png")
    assert open_image(tmp_path / "a logo_1.png").getpixel((20, 20)) == (255, 255, 255)
    plan = plan_of(tmp_path, batch_size=1)
    seen = load_crop(tmp_path / "a logo_1.png", plan.crop(0))
    assert seen.getpixel((20, 20)) == (255, 255, 255) and seen.getpixel((5, 5)) == (0, 0, 0)


def test_a_bad_config_file_is_an_error_and_training_can_not_go_on_unaware(make: Make) -> None:
    ds = read(make({"a.jpg": SIZE, "local.yaml": "multiply: [\n", "d/multiply.txt": "lots", "d/b.jpg": SIZE}))
    assert [p.code for p in ds.errors] == ["bad-yaml", "bad-number"]
    kept, left_out = ds.without_errors()
    assert len(kept) == 0 and len(left_out) == 2


def test_multiply_txt_txt_deserves_a_warning(make: Make) -> None:
    ds = read(make({"a.jpg": SIZE, "multiply.txt.txt": "3"}))
    (problem,) = ds.warnings
    assert problem.code == "double-ending" and "multiply.txt" in problem.mend
    assert ds.options(0).multiply == Decimal(1) and not ds.errors


@pytest.mark.parametrize("orientation", [6, 8])
def test_exif_orientation_counts_before_the_aspect_does(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (1024, 512)).save(tmp_path / "a tower_1.jpg", exif=exif)
    plan = Plan(read(tmp_path), PlanSettings())
    width, height = plan.bucket(0)
    assert height > width
    assert load_crop(tmp_path / "a tower_1.jpg", plan.crop(0)).size == (width, height)
