"""Reading a data root: whose word about an image counts, and what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from edkit.data import reader, walk
from edkit.data.dataset import Dataset, read
from edkit.data.errors import BadInput, UsageError
from edkit.data.plan import Plan, PlanSettings
from edkit.data.sample import Options, Tag, caption_text

Make = Callable[[Mapping[str, Any]], Path]
SIZE = (64, 64)


def text(ds: Dataset, i: int = 0) -> str:
    return caption_text(ds.sample(i), seed=1, epoch=0)


def codes(ds: Dataset) -> list[str]:
    return [problem.code for problem in ds.problems]


# ---- masks


def test_a_mask_belongs_to_its_image_and_is_none(make: Make) -> None:
    root = make(
        {
            "a dog_1.jpg": SIZE,
            "a dog_1-masklabel.png": SIZE,
            "b/caf\u00e9_1.webp": SIZE,
            "b/cafe\u0301_1-masklabel.png": SIZE,
            "b/alone-masklabel.png": SIZE,
            "b/a dog_1-masklabel.jpg": SIZE,
        }
    )
    ds = read(root)
    masks = {ds.key(i): mask.name for i in range(len(ds)) if (mask := ds.mask(i)) is not None}
    assert masks == {"a dog_1.jpg": "a dog_1-masklabel.png", "b/caf\u00e9_1.webp": "cafe\u0301_1-masklabel.png"}
    assert ds.num_masks == 2 and len(ds) == 4 and not ds.skipped
    assert ds.sample(0).mask == root / "a dog_1-masklabel.png"
    kept = ds.drop([0])
    assert [kept.key(i) for i in range(3) if kept.mask(i)] == ["b/caf\u00e9_1.webp"]


def test_a_manifests_image_has_the_mask_beside_it(make: Make) -> None:
    root = make({"p/x.jpg": SIZE, "p/x-masklabel.png": SIZE, "set.json": '[{"image": "p/x.jpg", "caption": "a dog"}]'})
    assert read(root / "set.json").mask(0) == root / "p" / "x-masklabel.png"


# ---- captions


def test_a_file_name_gives_the_caption_and_its_tags(make: Make) -> None:
    ds = read(make({"a dog on a beach, sunny_3.jpg": SIZE}))
    sample = ds.sample(0)
    assert text(ds) == "a dog on a beach, sunny"
    assert (sample.main_prompt, sample.tags) == ("a dog on a beach", (Tag("sunny"),))
    assert sample.sources == (sample.path,) and not ds.problems


@pytest.mark.parametrize(
    ("beside", "used"),
    [
        (
            {"a.yaml": "caption: yaml", "a.yml": "caption: yml", "a.caption": "caption", "a.txt": "txt"},
            "yaml",
        ),
        ({"a.yml": "main_prompt: yml", "a.caption": "caption", "a.txt": "txt"}, "yml"),
        ({"a.caption": "caption", "a.txt": "txt"}, "caption"),
        ({"a.txt": "txt"}, "txt"),
        ({"a.TXT": "txt"}, "txt"),
        ({"local.yaml": "main_prompt: local", "global.yaml": "main_prompt: global"}, "local"),
        ({"global.yaml": "main_prompt: global", "../global.yaml": "main_prompt: far"}, "global"),
        ({"../global.yaml": "main_prompt: far"}, "far"),
        ({}, "a"),
    ],
)
def test_the_strongest_source_gives_the_main_prompt(make: Make, beside: dict[str, str], used: str) -> None:
    root = make({"d/a.jpg": SIZE, **{f"d/{name}": content for name, content in beside.items()}})
    ds = read(root)
    assert text(ds) == used
    assert ("main-prompt-twice" in codes(ds)) == (len(beside) > 1)
    assert not ds.errors


def test_tags_of_all_sources_join_specific_before_general_without_repeats(make: Make) -> None:
    root = make(
        {
            "global.yaml": "tags: [photo, far]",
            "d/global.yaml": "tags: [near, photo]",
            "d/local.yaml": "tags: [here]",
            "d/a.yaml": "tags: [own, near]",
            "d/a.txt": "a dog, sunny",
            "d/a.jpg": SIZE,
            "e/a cat, calm_1.jpg": SIZE,
        }
    )
    ds = read(root)
    assert text(ds, 0) == "a dog, own, near, sunny, here, photo, far"
    assert text(ds, 1) == "a cat, calm, photo, far"
    assert [p.name for p in ds.sample(0).sources] == [
        "a.yaml",
        "a.txt",
        "local.yaml",
        "global.yaml",
        "global.yaml",
    ]


def test_one_source_trains_verbatim_and_large_numbers_stay_whole(make: Make) -> None:
    root = make({"a.jpg": SIZE, "a.txt": "  a crowd,of 10,000 people ,  loud \n"})
    ds = read(root)
    assert text(ds) == "a crowd,of 10,000 people ,  loud"
    tagged = read(root, defaults=Options(max_caption_length=24))
    assert caption_text(tagged.sample(0), seed=1, epoch=0) == "a crowd,of 10,000 people"


def test_prose_is_not_split(make: Make) -> None:
    root = make(
        {
            "local.yaml": "caption_style: prose\nshuffle_tags: true\ntags: [photo]",
            "a.txt": "A dog runs, then it sleeps, and dreams.",
            "a.jpg": SIZE,
        }
    )
    ds = read(root)
    assert {caption_text(ds.sample(0), seed=s, epoch=0) for s in range(9)} == {
        "A dog runs, then it sleeps, and dreams., photo"
    }


def test_shuffled_prose_is_warned_of(make: Make) -> None:
    root = make({"shuffle_tags.txt": "", "a.txt": "A dog runs, then it sleeps.", "a.jpg": SIZE, "b, c_1.jpg": SIZE})
    ds = read(root)
    assert codes(ds) == ["prose-shuffled"] and "1 of 2" in ds.problems[0].what


def test_an_empty_sidecar_is_an_intended_empty_caption_and_counted(make: Make) -> None:
    ds = read(make({"person_1.jpg": SIZE, "person_1.txt": " \n", "person_2.jpg": SIZE}))
    assert [text(ds, i) for i in (0, 1)] == ["", "person"]
    assert ds.num_empty_captions == 1 and not ds.problems


def test_a_blank_yaml_is_an_empty_caption_only_where_nothing_else_is_said_beside_it(make: Make) -> None:
    ds = read(make({"a.jpg": SIZE, "a.yaml": "", "a.txt": "a dog", "b.jpg": SIZE, "b.yaml": ""}))
    assert [text(ds, i) for i in (0, 1)] == ["a dog", ""] and not ds.problems


def test_yaml_takes_every_form_of_a_caption(make: Make) -> None:
    forms = {
        "a": "main_prompt: [first, second]\ntags: [x]",
        "b": "caption: {main_prompt: inner, tags: [y], rating: 3, multiply: 2}\ntags: [x]\nmultiply: 4",
        "c": "caption: other.txt",
        "d": "caption: more.yaml",
        "e": "main_prompt: 1984\ntags: [yes, 2024, {tag: heavy, weight: 2}, {tag: plain}]",
        "f": "tags: one, two\nmain_prompt: m",
        "g": "main_prompt: ~\ntags: ~\nmultiply: ~",
        "h": "caption: just text, with a tag",
    }
    files: dict[str, Any] = {f"{name}.yaml": content for name, content in forms.items()}
    files |= {f"{name}.jpg": SIZE for name in forms}
    ds = read(make({**files, "other.txt": "from a file", "more.yaml": "main_prompt: from yaml\nflip_p: 0.5"}))
    assert [text(ds, i) for i in range(8)] == [
        "first, x",
        "inner, x, y",
        "from a file",
        "from yaml",
        "1984, heavy, yes, 2024, plain",
        "m, one, two",
        "g",
        "just text, with a tag",
    ]
    assert ds.options(1).multiply == 4 and ds.options(1).rating == 3 and ds.options(3).flip_p == 0.5
    assert not ds.errors


def test_utf16_and_utf8_marks_are_understood_everywhere(make: Make) -> None:
    marked = {
        "a/x.txt": "ein süßer Hund".encode("utf-16"),
        "b/x.txt": b"\xfe\xff" + "ein süßer Hund".encode("utf-16-be"),
        "c/x.txt": "\ufeffein süßer Hund".encode(),
        "d/x.caption": "ein süßer Hund\r\n".encode("utf-16"),
        "e/x.yaml": "caption: ein süßer Hund\nmultiply: 2".encode("utf-16"),
    }
    folders = {f"{f}/x.jpg": SIZE for f in "abcde"}
    number = {f"{f}/multiply.txt": "2\r\n".encode("utf-16") for f in "abcd"}
    ds = read(make({**marked, **folders, **number}))
    assert [text(ds, i) for i in range(5)] == ["ein süßer Hund"] * 5
    assert {ds.options(i).multiply for i in range(5)} == {Decimal(2)} and not ds.problems


@pytest.mark.parametrize("data", ["süß".encode("latin-1"), "plain".encode("utf-16-le"), b"\xff\xfea"])
def test_any_other_encoding_is_an_error_that_names_the_file_and_line(make: Make, data: bytes) -> None:
    ds = read(make({"a.jpg": SIZE, "a.txt": b"ok\n" + data if data[0] != 0xFF else data}))
    (problem,) = ds.errors
    assert problem.code == "bad-encoding" and "a.txt" in problem.where
    assert data[:1] != b"s" or problem.where.endswith("a.txt:2")


# ---- options


def test_options_cascade_image_folder_near_far_command_line(make: Make) -> None:
    root = make(
        {
            "global.yaml": "flip_p: 0.1\ncond_dropout: 0.1\nloss_scale: 3\nmultiply: 7\nrating: 1",
            "d/global.yaml": "flip_p: 0.2\ncond_dropout: 0.2\nmultiply: 6",
            "d/e/local.yaml": "flip_p: 0.3\ncond_dropout: 0.3",
            "d/e/multiply.txt": "5",
            "d/e/a.yaml": "flip_p: 0.4",
            "d/e/a.jpg": SIZE,
            "d/e/f/b.jpg": SIZE,
            "c.jpg": SIZE,
        }
    )
    ds = read(root, defaults=Options(rating=9.0, keep_tags=2, cond_dropout=0.9))
    c, a, b = (ds.options(i) for i in range(3))
    assert (a.flip_p, a.cond_dropout, a.multiply, a.loss_scale, a.rating, a.keep_tags) == (
        0.4,
        0.3,
        5,
        3.0,
        1.0,
        2,
    )
    assert (b.flip_p, b.cond_dropout, b.multiply) == (0.2, 0.2, 6), "folder files do not cascade, global.yaml does"
    assert (c.flip_p, c.multiply, c.max_caption_length) == (0.1, 7, None)


def test_a_false_nearer_the_image_overrides_a_true_farther_away(make: Make) -> None:
    root = make(
        {
            "global.yaml": "shuffle_tags: true",
            "a.jpg": SIZE,
            "d/local.yaml": "shuffle_tags: false",
            "d/b.jpg": SIZE,
        }
    )
    ds = read(root)
    assert [ds.options(i).shuffle_tags for i in range(2)] == [True, False]


def test_every_option_file_reaches_the_images(make: Make) -> None:
    files = {
        "cond_dropout": "0.1",
        "flip_p": "0.5",
        "loss_scale": "-2",
        "batch_id": "sky",
        "shuffle_tags": "",
    }
    ds = read(make({"a.jpg": SIZE, **{f"{k}.txt": v for k, v in files.items()}, "MULTIPLY.TXT": "1.5"}))
    o = ds.options(0)
    assert (o.multiply, o.cond_dropout, o.flip_p, o.loss_scale) == (Decimal("1.5"), 0.1, 0.5, -2.0)
    assert (o.batch_id, o.shuffle_tags) == ("sky", True)


def test_the_defaults_people_know(make: Make) -> None:
    o = read(make({"a.jpg": SIZE})).options(0)
    assert (o.multiply, o.cond_dropout, o.flip_p, o.shuffle_tags, o.keep_tags) == (1, 0.04, 0.0, False, 0)
    assert PlanSettings().seed == 555


@pytest.mark.parametrize("bad", ["-1", "nan", "inf", "two", "", "1,5", "1_0", "0x10", "1e9", "1 2"])
@pytest.mark.parametrize("where", ["multiply.txt", "local.yaml", "a.yaml"])
def test_a_bad_multiply_is_an_error_with_file_and_line(make: Make, bad: str, where: str) -> None:
    content = bad if where == "multiply.txt" else f'rating: 1\nmultiply: "{bad}"\n'
    ds = read(make({"a.jpg": SIZE, where: content}))
    (problem,) = ds.errors
    assert problem.code == "bad-number" and problem.where.endswith(f"{where}:{1 if where == 'multiply.txt' else 2}")
    kept, left_out = ds.without_errors()
    assert len(kept) == 0 and [Path(x.path).name for x in left_out] == ["a.jpg"] and left_out[0].problem == problem


@pytest.mark.parametrize(
    ("line", "code", "mend"),
    [
        ("multiplyy: 2", "unknown-key", "multiply"),
        ("Flip_P: 2", "unknown-key", "flip_p"),
        ("cond_dropout: 1.5", "bad-number", "0 to 1"),
        ("max_caption_length: 0", "bad-number", "at least 1"),
        ("max_caption_length: 2.5", "bad-number", "whole"),
        ("keep_tags: -1", "bad-number", "at least 0"),
        ("shuffle_tags: 3", "bad-value", ""),
        ("batch_id: ''", "bad-value", ""),
        ("caption_style: poem", "bad-value", ""),
        ("tags: {a: b}", "bad-value", ""),
        ("tags: [[a]]", "bad-value", ""),
        ("tags: [{tag: a, weight: -1}]", "bad-number", "at least 0"),
        ("tags: [{tag: a, wieght: 1}]", "unknown-key", "weight"),
        ("caption: [a]", "bad-value", ""),
        ("caption: gone.txt", "missing-caption-file", ""),
        ("rating: 1\nrating: 2", "key-twice", ""),
        ("rating: [", "bad-yaml", ""),
        ("- a", "bad-yaml", ""),
        ("a dog", "bad-yaml", "caption: a dog"),
        ("!!python/object/apply:os.system [ls]", "bad-yaml", ""),
        ("a: &x [*x]", "bad-yaml", ""),
    ],
)
def test_every_yaml_mistake_is_one_line_with_its_place(make: Make, line: str, code: str, mend: str) -> None:
    ds = read(make({"a.jpg": SIZE, "a.yaml": f"# a comment\n{line}\n"}))
    found = [p for p in ds.errors if p.code == code]
    assert found and ("a.yaml:" in found[0].where or code == "bad-yaml")
    assert mend in found[0].mend and "\n" not in str(found[0])
    assert ds.error(0) is not None


def test_a_small_file_that_unfolds_into_billions_of_values_is_refused(make: Make) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "bad-yaml" in codes(read(make({"a.jpg": SIZE, "a.yaml": bomb})))


# ---- names that are no captions


def test_camera_names_block_until_they_are_captioned(make: Make) -> None:
    root = make(
        {
            "IMG_1234.jpg": SIZE,
            "DSC0001.jpg": SIZE,
            "DSC0001.txt": "a dog",
            "_x.jpg": SIZE,
            "person_1.jpg": SIZE,
        }
    )
    ds = read(root)
    assert [p.code for p in ds.errors] == ["camera-name", "no-caption"]
    kept, left_out = ds.without_errors()
    assert [p.name for p in kept.paths] == ["DSC0001.jpg", "person_1.jpg"]
    assert [Path(x.path).name for x in left_out] == ["IMG_1234.jpg", "_x.jpg"] and not kept.errors
    fallen = read(root, caption_fallback="person")
    assert [text(fallen, i) for i in range(4)] == [
        "a dog",
        "person",
        "person",
        "person",
    ] and not fallen.errors


# ---- what is odd


def test_odd_files_are_named_and_nothing_is_skipped_in_silence(make: Make) -> None:
    root = make(
        {
            "person_1.jpg": SIZE,
            "person_1.PNG": SIZE,
            "person_1.txt": "a person",
            "multiply.txt.txt": "2",
            "local.yml": "multiply: 2",
            "lonely.txt": "nobody",
            "movie.mp4": "x",
            ".hidden.jpg": SIZE,
            ".edkit/x.jpg": SIZE,
            ".git/x.jpg": SIZE,
            "empty/multiply.txt": "3",
            "zero/multiply.txt": "0",
            "zero/person_1.jpg": SIZE,
        }
    )
    ds = read(root)
    assert sorted(codes(ds)) == [
        *("double-ending", "double-ending", "multiply-zero", "option-without-images"),
        *("shared-sidecar", "sidecar-without-image"),
    ]
    assert {s.path.name: s.reason for s in ds.skipped} == {
        "movie.mp4": ".mp4 is not read",
        ".hidden.jpg": "a hidden file",
        ".git": "a hidden folder",
    }
    assert not ds.errors and len(ds) == 3


def test_a_name_that_is_not_unicode_is_an_error_and_never_a_caption(make: Make) -> None:
    root = make({"a cat_1.jpg": SIZE, "b/a cow_1.jpg": SIZE})
    try:
        (root / "a cat_1.jpg").rename(root / os.fsdecode(b"caf\xe9 dog.jpg"))
        (root / "b").rename(root / os.fsdecode(b"f\xe9"))
    except (OSError, UnicodeDecodeError):
        pytest.skip("names are Unicode here")
    Path(root, "é_1.jpg").touch()
    ds = read(root, sizes=False)
    assert [s.main_prompt for s in ds] == ["é"] and codes(ds) == ["not-unicode"] * 2
    assert sorted(s.path.name for s in ds.skipped) == ["caf\\xe9 dog.jpg", "f\\xe9"]
    assert len(ds.without_errors()[1]) == 2
    (root / "set.json").write_text(json.dumps([{"image": "caf\udce9 dog.jpg"}]))
    assert codes(read(root / "set.json")) == ["missing-image"]


def test_names_that_differ_in_case_alone_are_warned_of(make: Make) -> None:
    root = make({"Person_1.jpg": SIZE, "person_1.jpg": SIZE})
    if len(list(root.iterdir())) == 2:  # not on a file system that takes them for one
        assert codes(read(root)) == ["clashing-names"]


def test_unreadable_images_are_errors_and_readable_ones_have_upright_sizes(make: Make) -> None:
    ds = read(make({"a.jpg": (640, 480), "b.jpg": b"no image", "c.jpg": b"", "d.png": (10, 20)}))
    assert ds.widths.tolist() == [640, 0, 0, 10] and ds.heights.tolist() == [480, 0, 0, 20]
    assert [p.code for p in ds.errors] == ["unreadable-image"] * 2
    assert len(ds.without_errors()[0]) == 2
    assert read(ds.root, sizes=False).widths.tolist() == [0] * 4


def test_dropping_samples_keeps_the_others_as_they_were(make: Make) -> None:
    ds = read(make({"a/a cat_1.jpg": (10, 20), "a/IMG_1.jpg": SIZE, "b/a dog_1.jpg": (30, 40), "b/multiply.txt": "2"}))
    kept = ds.drop([0])
    assert [kept.sample(i) for i in range(2)] == [ds.sample(i) for i in (1, 2)]
    assert len(ds.errors) == 1 and kept.errors == []
    assert ds.drop([1]).error(0) == ds.error(0) == ds.drop([1]).errors[0]
    assert [(f.key, f.count, f.multiply) for f in kept.folders][-1] == ("b", 1, 2)
    assert len(pickle.loads(pickle.dumps(kept))) == 2


# ---- where the images come from


def test_folders_are_walked_in_sorted_order_whatever_the_file_system_gives(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, Any] = {f"{d}/a dog_{n}.jpg": SIZE for d in ("b", "a/z", "a", "ä", "B") for n in range(4)}
    root = make({**files, "a/multiply.txt": "1.5", "a/a dog_1.txt": "one, two", "global.yaml": "shuffle_tags: true"})
    real = os.scandir

    def view(order: Callable[[list[Any]], list[Any]]) -> tuple[list[str], list[object]]:
        class Shuffled(list[Any]):
            def __enter__(self) -> Shuffled:
                return self

            def __exit__(self, *exc: object) -> None:
                pass

        def scandir(path: str) -> Any:
            with real(path) as scan:
                return Shuffled(order(list(scan)))

        monkeypatch.setattr(walk.os, "scandir", scandir)
        ds = read(root)
        plan = Plan(ds, PlanSettings(batch_size=3, resolution=64))
        return [s.key for s in ds], [plan.epoch(e).steps[:] for e in range(3)]

    forward, backward = (
        view(lambda x: sorted(x, key=lambda e: e.name)),
        view(lambda x: sorted(x, key=lambda e: e.name)[::-1]),
    )
    odd = view(lambda x: sorted(x, key=lambda e: e.name[::-1]))
    assert forward == backward == odd
    assert [k.rpartition("/")[0] for k in forward[0][::4]] == ["B", "a", "a/z", "b", "ä"]


def test_a_tree_may_be_deeper_than_calls_can_nest(tmp_path: Path) -> None:
    import inspect
    import sys

    (tmp_path / "/".join("d" * 70)).mkdir(parents=True)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 50)
    try:
        assert sum(1 for _ in walk.walk(str(tmp_path))) == 71
    finally:
        sys.setrecursionlimit(before)


def test_a_root_with_dots_in_it_gives_plain_paths(make: Make) -> None:
    root = make({"a/a dog_1.jpg": SIZE})
    assert read(root / "a" / "..").paths == [root / "a" / "a dog_1.jpg"]


def test_links_are_followed_but_never_in_a_circle(make: Make) -> None:
    root = make({"a/a dog_1.jpg": SIZE, "b/a cat_1.jpg": SIZE})
    try:
        (root / "a" / "loop").symlink_to(root, target_is_directory=True)
        (root / "a" / "over").symlink_to(root / "b", target_is_directory=True)
        (root / "b" / "back").symlink_to(root / "a", target_is_directory=True)
        (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    except OSError:
        pytest.skip("no links here")
    ds = read(root)
    assert {s.key for s in ds} >= {"a/a dog_1.jpg", "b/a cat_1.jpg", "a/over/a cat_1.jpg"} and len(ds) < 8
    assert {"a link to nothing", "a link back to a folder it stands in"} == {s.reason for s in ds.skipped}


def test_a_manifest_lists_images_with_yaml_keys(make: Make) -> None:
    rows = [
        {"image": "pics/b.jpg", "caption": "from the row, with a tag", "multiply": 0.1, "flip_p": 0.5},
        {"image": "pics/a dog_1.jpg", "tags": ["t", {"tag": "w", "weight": 2.5}], "batch_id": 7},
        {"image": "pics/c.jpg", "caption": "c.caption"},
        {"image": "gone.jpg"},
        {"caption": "no image"},
        {"image": "pics/d.jpg", "main_prompt": "d", "multply": 2},
    ]
    root = make(
        {
            "set.json": json.dumps(rows),
            "c.caption": "beside the manifest",
            "pics/b.txt": "the sidecar",
            "pics/local.yaml": "tags: [photo]",
            **{f"pics/{name}.jpg": SIZE for name in ("a dog_1", "b", "c", "d")},
        }
    )
    ds = read(root / "set.json")
    assert [text(ds, i) for i in range(4)] == [
        "from the row, with a tag, photo",
        "a dog, w, t, photo",
        "beside the manifest, photo",
        "d, photo",
    ]
    assert ds.options(0).multiply == Decimal("0.1") and ds.options(0).flip_p == 0.5 and ds.options(1).batch_id == "7"
    assert [(p.code, p.where.rpartition(", ")[2]) for p in ds.errors] == [
        *(("missing-image", "row 4"), ("bad-row", "row 5"), ("unknown-key", "row 6")),
    ]
    kept, left_out = ds.without_errors()
    assert len(kept) == 3 and len(left_out) == 3
    assert [s.key for s in ds][:2] == ["pics/b.jpg", "pics/a dog_1.jpg"]


MANY_DIGITS = '[{"image": "a.jpg", "multiply": ' + "9" * 5000 + "}]"


@pytest.mark.parametrize(
    "content", ["{}", "[", "[NaN]", '{"image": "a.jpg"}', "[1e999999", MANY_DIGITS, "[1e99999999999999999999]"]
)
def test_a_manifest_that_is_none_says_so(make: Make, content: str) -> None:
    root = make({"set.json": content})
    with pytest.raises(BadInput) as caught:
        read(root / "set.json")
    assert "set.json" in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b/c.jpg", "a\ud800b/c.jpg", "c\0.jpg"])
def test_a_path_that_no_disk_can_hold_is_a_missing_image(make: Make, path: str) -> None:
    root = make({"set.json": json.dumps([{"image": path}, {"image": "a dog_1.jpg"}]), "a dog_1.jpg": SIZE})
    ds = read(root / "set.json")
    assert [(p.code, p.where.rpartition(", ")[2]) for p in ds.errors] == [("missing-image", "row 1")] and len(ds) == 1


def test_half_a_character_in_a_manifest_is_an_error_of_its_row(make: Make) -> None:
    rows = [{"image": "a.jpg", "caption": "a \ud800 dog"}, {"image": "a.jpg", "caption": "a cat"}]
    ds = read(make({"set.json": json.dumps(rows), "a.jpg": SIZE}) / "set.json")
    assert [(p.code, p.where.rpartition(", ")[2]) for p in ds.errors] == [("bad-value", "row 1")]
    assert ds.error(0) is not None and text(ds, 1) == "a cat"


def test_an_image_listed_twice_trains_twice_with_draws_of_its_own(make: Make) -> None:
    rows = [{"image": "x.jpg", "caption": "one"}, {"image": "x.jpg", "caption": "two"}]
    ds = read(make({"x.jpg": SIZE, "m.json": json.dumps(rows)}) / "m.json")
    assert [s.key for s in ds] == ["x.jpg", "x.jpg#2"] and codes(ds) == ["image-twice"]


def test_a_data_root_may_be_several(make: Make) -> None:
    root = make(
        {
            "a/a dog_1.jpg": SIZE,
            "b/a cat_1.jpg": SIZE,
            "m.json": '[{"image": "b/a cat_1.jpg", "caption": "c"}]',
        }
    )
    several = [root / "a", {"resolver": "json", "path": str(root / "m.json")}]
    for given in (several, {"resolver": "multi", "resolvers": several}):
        ds = read(given)
        assert [s.key for s in ds] == ["0/a dog_1.jpg", "1:b/a cat_1.jpg"]
        assert [text(ds, i) for i in range(2)] == ["a dog", "c"]
    assert len(read({"resolver": "directory", "path": str(root)})) == 2


@pytest.mark.parametrize(
    "root",
    [
        [],
        {},
        {"resolver": "zip", "path": "x"},
        {"resolver": "json", "path": "."},
        {"path": "."},
        3,
        {"resolvr": 1},
    ],
)
def test_a_data_root_that_is_none_is_wrong_usage(root: Any) -> None:
    with pytest.raises(UsageError):
        read(root)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        read(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadInput, match="neither"):
        read(tmp_path / "a.txt")


def test_an_empty_folder_is_an_empty_set(tmp_path: Path) -> None:
    ds = read(tmp_path)
    assert (len(ds) == 0 and ds.folders == [] and list(ds) == [] and ds.without_errors() == (ds, [])) or len(ds) == 0


# ---- the cache


class Memory:
    """A cache that counts what it is asked."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Path, tuple[int, int]], object] = {}
        self.puts = 0

    def cached_many(
        self, kind: str, paths: Iterable[Path], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> dict[Path, object]:
        assert stats is not None
        return {p: self.values[kind, p, stats[p]] for p in paths if (kind, p, stats[p]) in self.values}

    def put_cached_many(
        self, kind: str, values: Mapping[Path, object], *, stats: Mapping[Path, tuple[int, int]] | None = None
    ) -> None:
        assert stats is not None
        for path, value in values.items():
            self.puts += 1
            self.values[kind, path, stats[path]] = value if isinstance(value, bytes) else json.loads(json.dumps(value))


def test_a_warm_read_gives_the_same_and_opens_no_file(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(
        {
            **{f"{d}/x{n}.jpg": (30 + n, 40) for d in "ab" for n in range(3)},
            **{f"a/x{n}.txt": f"a dog, number {n}" for n in range(3)},
            "b/x0.yaml": "main_prompt: y\ntags: [{tag: t, weight: 2}]\nmultiply: 0.1",
            "b/x1.yaml": "bad_key: 1",
            "b/x2.yaml": "caption: x2.txt",
            "b/x2.txt": "t",
        }
    )
    cache = Memory()
    cold = read(root, catalog=cache)
    puts = cache.puts
    plain = read(root)
    monkeypatch.setattr("edkit.data.reader.probe", lambda path: pytest.fail(f"opened {path}"))
    warm = read(root, catalog=cache)
    assert list(warm) == list(cold) == list(plain)
    assert warm.problems == cold.problems == plain.problems and puts == cache.puts == 6 + 4 + 1
    (root / "a" / "x0.txt").write_text("changed, and longer")
    assert text(read(root, catalog=cache), 0) == "changed, and longer"


def test_the_catalog_of_a_data_root_is_such_a_cache(make: Make) -> None:
    catalog = pytest.importorskip("edkit.data.catalog")
    root = make({"a dog_1.jpg": (30, 40), "x.jpg": SIZE, "x.txt": "a cat"})
    for path in root.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    with catalog.Catalog.open(root) as cache:
        cold = read(root, catalog=cache)
        assert list(read(root, catalog=cache)) == list(cold)
        assert len(cache.cached_many("header/1", cold.paths)) == 2


def test_a_folders_row_knows_each_file_as_it_is_now(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = pytest.importorskip("edkit.data.catalog")
    root = make(
        {f"a dog_{n}.jpg": (30 + n, 40) for n in range(5)} | {"a dog_1.txt": "one", "a dog_2.yaml": "tags: [t]"}
    )
    old = 1_000_000_000
    for path in root.iterdir():
        os.utime(path, (old, old))
    opened: list[str] = []
    real = reader.probe
    monkeypatch.setattr(reader, "probe", lambda path: opened.append(Path(path).name) or real(path))
    with catalog.Catalog.open(root) as cache:
        read(root, catalog=cache)
        cache._facts_db.execute("DELETE FROM cached WHERE kind != 'folder/1'")
        opened.clear()
        assert list(read(root, catalog=cache)) == list(read(root)) and opened == [f"a dog_{n}.jpg" for n in range(5)]
        (root / "a dog_0.jpg").unlink()
        (root / "a dog_3.jpg").write_bytes((root / "a dog_4.jpg").read_bytes())
        (root / "a dog_1.txt").write_text("two and more")
        for path in root.iterdir():
            os.utime(path, (old + 5 * (path.stat().st_mtime != old), old + 5 * (path.stat().st_mtime != old)))
        for now in (["a dog_3.jpg"], []):
            opened.clear()
            ds = read(root, catalog=cache)
            assert opened == now and len(ds) == 4 and text(ds) == "two and more"
            assert [(s.width, s.height) for s in ds] == [(31, 40), (32, 40), (34, 40), (34, 40)]


def test_a_short_look_at_a_folder_finds_the_same_option_files(make: Make) -> None:
    root = make({"Multiply.TXT": "2", "multiply.txt": "3", "local.yaml": "tags: [t]", "a_1.txt": "x", "x.jpg": SIZE})
    (root / "batch_id.txt").mkdir()
    assert walk.option_files(root) == walk.list_folder(str(root)).options


def test_a_folder_is_listed_alike_where_no_folder_can_be_held_open(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make({"a/Dog_1.jpg": SIZE, "a/dog_1.JPG": SIZE, "a/dog_1.txt": "x", "a/local.yaml": "", "a/b/x.png": SIZE})
    for link, to in (("linked.jpg", "Dog_1.jpg"), ("broken.jpg", "nothing")):
        try:
            (root / "a" / link).symlink_to(to)
        except OSError:  # Windows, without the right to
            pytest.skip("no links here")
    listing = walk.list_folder(str(root / "a"), stats=True)
    stats = [(root / "a" / name).stat() for name in listing.images]
    assert listing.image_stats.tolist() == [n for stat in stats for n in (stat.st_size, stat.st_mtime_ns)]
    assert "linked.jpg" in listing.images and listing.skipped == [("broken.jpg", "a link to nothing")]
    assert listing.folders == ["b"] and list(listing.sidecar_stats) == ["dog_1.txt"]
    monkeypatch.setattr(os, "supports_dir_fd", set())
    assert walk.list_folder(str(root / "a"), stats=True) == listing


def test_a_warm_read_sees_sidecars_come_and_go(make: Make) -> None:
    root = make({f"a dog_{n}.jpg": SIZE for n in range(4)} | {"a dog_0.txt": "one", "a dog_1.txt": "two"})
    cache = Memory()
    read(root, catalog=cache)
    (root / "a dog_0.txt").unlink()
    (root / "a dog_1.txt").rename(root / "a dog_2.txt")
    (root / "a dog_3.yaml").write_text("main_prompt: three")
    for _ in range(2):
        ds = read(root, catalog=cache)
        assert [text(ds, i) for i in range(4)] == ["a dog", "a dog", "two", "three"]
        assert [path.name for path in ds.sources(2)] == ["a dog_2.txt"]


def test_a_set_in_the_midst_of_a_change_says_so(make: Make) -> None:
    root = make({"a/a dog_1.jpg": SIZE, "a/.edkit-1a2b3c-0": "", "a/.edkit-1a2b3c-12": "", "b/a cat_1.jpg": SIZE})
    (root / "b" / ".edkit-1a2b3c4d5e6f").write_bytes(b"a page that is being written hides no image")
    ds = read(root)
    (problem,) = ds.errors
    assert (problem.code, problem.where) == ("unfinished-change", str(root / "a"))
    for refused in (ds.must_be_whole, ds.without_errors):
        with pytest.raises(BadInput, match=r"hides 2 of its files \(.*edkit check DIR finishes"):
            refused()
