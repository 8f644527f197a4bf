"""Folders come in with what they mean: plain trees, kohya's, Hugging Face's and img2dataset's."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.dataset import read
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import undo
from edkit.data.sample import Sample
from edkit.gather import local
from edkit.gather.folder import import_folder
from edkit.gather.hf import import_hf
from edkit.gather.img2dataset import import_img2dataset
from edkit.gather.kohya import import_kohya, multiplies, repeats_and_class


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60 + seed % 7, 50), (seed * 37 % 256, seed * 91 % 256, seed % 256)).save(path)
    return path


def meaning(root: Path) -> list[tuple[object, ...]]:
    """What training would see of a data root, whatever its files are called."""
    dataset = read(root)
    return sorted(_meant(s) for i, s in enumerate(dataset) if dataset.error(i) is None)


def _meant(sample: Sample) -> tuple[object, ...]:
    options = sample.options
    folder = sample.key.rpartition("/")[0]
    tags = tuple((tag.text, tag.weight) for tag in sample.tags)
    return folder, sample.main_prompt, tags, str(options.multiply), options.flip_p, bool(options.shuffle_tags), (
        options.keep_tags or 0
    ), (sample.width, sample.height)  # fmt: skip


def captions(out: Path) -> list[str]:
    return sorted(sample.caption.text for sample in read(out))


def ledger(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger())


def texts(out: Path) -> dict[str, str]:
    found = sorted(out.rglob("*.txt"))
    return {p.relative_to(out).as_posix(): p.read_text("utf-8").strip() for p in found if ".edkit" not in p.parts}


# ---- import folder


def tree(root: Path) -> Path:
    for i in range(4):
        draw(root / "dogs" / "rex" / f"rex on a beach, sunny_{i}.jpg", i)
        draw(root / f"a cat_{i}.png", 10 + i)
    draw(root / "dogs" / "IMG_0001.jpg", 20)
    draw(root / "dogs" / "IMG_0002.jpg", 21)
    (root / "dogs" / "IMG_0002.txt").write_text('what "she" said: 50/50', "utf-8")
    draw(root / "dogs" / "x.jpg", 22)
    (root / "dogs" / "x.caption").write_text("one_two, three", "utf-8")
    (root / "dogs" / "x.yaml").write_text("tags: [{tag: heavy, weight: 2}]\nflip_p: 0.25\n", "utf-8")
    draw(root / "dogs" / "y.jpg", 23)
    (root / "dogs" / "y.yaml").write_text("main_prompt: so, it / is\nmultiply: 2\n", "utf-8")
    draw(root / "tagged" / "deep" / "a bird, blue_1.jpg", 24)
    draw(root / "tagged" / "deep" / "z.jpg", 25)
    (root / "tagged" / "deep" / "z.txt").write_text("a plane, red, fast", "utf-8")
    (root / "tagged" / "global.yaml").write_text("tags: [photo]\n", "utf-8")
    (root / "dogs" / "multiply.txt").write_text("2.5", "utf-8")
    (root / "dogs" / "rex" / "local.yaml").write_text("shuffle_tags: true\nkeep_tags: 1\n", "utf-8")
    (root / "notes.md").write_text("-", "utf-8")
    return root


@pytest.mark.parametrize("how", ["filename", "sidecar", "both"])
def test_a_tree_means_the_same_when_it_is_imported(how: Any, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    result = import_folder(source, out=tmp_path / "out", captions=how, licence="CC0", author="Ann")
    assert result.outcomes == {"ok": 13, "no-caption": 1}
    assert result.failed == (("dogs/IMG_0001.jpg", "its name is a camera's or a program's, not a caption"),)
    assert meaning(tmp_path / "out") == meaning(source)
    assert not read(tmp_path / "out").problems
    assert {(row.licence, row.author) for row in ledger(tmp_path / "out")} == {("CC0", "Ann")}
    assert any("notes.md" in note for note in result.notes)


@pytest.mark.parametrize("how", ["filename", "sidecar", "both"])
def test_texts_under_a_folders_main_prompt_and_caption_files_mean_the_same(how: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw(source / "b.jpg", 26)  # its own text is stronger than the folder's main prompt, as no name is
    (source / "b.txt").write_text("a red dog", "utf-8")
    draw(source / "below" / "c.jpg", 27)
    (source / "below" / "c.caption").write_text("a green dog", "utf-8")
    (source / "global.yaml").write_text("caption: words/thing.yaml\n", "utf-8")
    draw(source / "d.jpg", 28)
    (source / "d.yaml").write_text("caption: d words.txt\n", "utf-8")
    (source / "d words.txt").write_text("a blue dog", "utf-8")
    (source / "words").mkdir()
    (source / "words" / "thing.yaml").write_text("caption: more.txt\n", "utf-8")
    (source / "words" / "more.txt").write_text("thing", "utf-8")
    draw(source / "IMG_0003.jpg", 29)
    import_folder(source, out=tmp_path / "out", captions=how)
    assert sorted(s.main_prompt for s in read(source)) == ["a blue dog", "a green dog", "a red dog", "thing"]
    assert meaning(tmp_path / "out") == meaning(source)
    assert {p.code for p in read(tmp_path / "out").problems} == {p.code for p in read(source).problems}


def test_a_mask_comes_along_with_its_image(tmp_path: Path) -> None:
    draw(tmp_path / "src" / "a dog_7.png", 1)
    mask = draw(tmp_path / "src" / "a dog_7-masklabel.png", 2)
    import_folder(tmp_path / "src", out=tmp_path / "out")
    (sample,) = read(tmp_path / "out")
    assert sample.mask is not None and sample.mask.read_bytes() == mask.read_bytes()


def test_run_again_only_what_is_new_is_taken_and_a_persons_changes_stay(tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    import_folder(source, out=tmp_path / "out")
    mine = next((tmp_path / "out" / "dogs").glob("*.yaml"))
    mine.write_text("tags: [mine]\n", "utf-8")
    draw(source / "dogs" / "a new dog_1.jpg", 40)
    again = import_folder(source, out=tmp_path / "out", caption="somebody")
    assert again.outcomes == {"ok": 2} and again.skipped == {"kept before": 13}
    assert mine.read_text("utf-8") == "tags: [mine]\n"
    assert {"somebody", "a new dog"} <= set(captions(tmp_path / "out"))


def test_the_same_image_from_two_sources_is_kept_once(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "one dog_1.jpg", 1)
    draw(tmp_path / "b" / "another name_1.jpg", 1)
    import_folder(tmp_path / "a", out=tmp_path / "out")
    result = import_folder(tmp_path / "b", out=tmp_path / "out")
    assert result.outcomes == {"duplicate": 1} and captions(tmp_path / "out") == ["one dog"]


def test_links_share_the_file_and_where_none_can_be_made_it_is_copied_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = draw(tmp_path / "a" / "one dog_1.jpg", 1)
    import_folder(tmp_path / "a", out=tmp_path / "linked", link=True)
    assert source.samefile(tmp_path / "linked" / "one dog_(1).jpg")

    def no_link(src: object, dst: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    result = import_folder(tmp_path / "a", out=tmp_path / "copied", link=True)
    assert result.kept == 1 and "1 files were copied, not linked" in result.notes[0]
    assert (tmp_path / "copied" / "one dog_(1).jpg").read_bytes() == source.read_bytes()


def test_broken_empty_and_unreadable_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(tmp_path / "a" / "a dog_1.jpg", 1).read_bytes()
    (tmp_path / "a" / "a cut dog_1.jpg").write_bytes(whole[:-40])
    (tmp_path / "a" / "an empty dog_1.jpg").write_bytes(b"")
    (tmp_path / "a" / "a page_1.jpg").write_bytes(b"<html>")
    (tmp_path / "a" / "a huge dog_1.jpg").write_bytes(whole * 40)
    monkeypatch.setattr(local, "MAX_BYTES", 20_000)
    result = import_folder(tmp_path / "a", out=tmp_path / "out")
    assert result.outcomes == {"ok": 1, "broken-image": 1, "empty": 1, "not-an-image": 1, "too-large": 1}
    (tmp_path / "a" / "a cut dog_1.jpg").write_bytes(whole + b"x")
    assert import_folder(tmp_path / "a", out=tmp_path / "out").kept == 1


def test_a_folder_into_itself_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "a dog_1.jpg", 1)
    for out in (tmp_path / "a", tmp_path / "a" / "out", tmp_path):
        with pytest.raises(UsageError, match="stands in the folder it imports, or holds it"):
            import_folder(tmp_path / "a", out=out)
    with pytest.raises(UsageError, match="no such folder"):
        import_folder(tmp_path / "nothing", out=tmp_path / "out")


# ---- import kohya


def project(root: Path) -> Path:
    for i in range(6):
        draw(root / "img" / "10_sks dog" / f"{i}.png", i)
    for i in range(4):
        (root / "img" / "10_sks dog" / f"{i}.txt").write_text(f"sks dog, sitting {i}\nsecond line\n", "utf-8")
    for i in range(3):
        draw(root / "img" / "2_sks_dog toys" / f"{i}.png", 20 + i)
    draw(root / "img" / "unnumbered" / "0.png", 30)
    for i in range(50):
        draw(root / "reg" / "1_dog" / f"{i}.jpg", 100 + i)
    (root / "log").mkdir()
    return root


def test_repeats_become_multiply_and_reg_images_their_share(tmp_path: Path) -> None:
    result = import_kohya(project(tmp_path / "lora"), out=tmp_path / "out")
    assert result.kept == 59
    folders = {f.key: (f.count, f.multiply) for f in read(tmp_path / "out").folders}
    # 6 x 10 + 3 x 2 = 66 training images an epoch; 66 of the 50 regularization images
    assert folders == {
        "sks dog": (6, Decimal(10)),
        "sks_dog toys".replace("_", " "): (3, Decimal(2)),
        "reg dog": (50, Decimal("1.32")),
    }
    said = captions(tmp_path / "out")
    assert said.count("sks dog, sitting 1") == 1 and said.count("sks dog") == 2 and said.count("sks_dog toys") == 3
    told = " ".join(result.notes)
    for words in ("unnumbered", "5", "got their folder's name", "real photos", "kohya reads the first"):
        assert words in told
    assert texts(tmp_path / "out")["reg dog/multiply.txt"] == "1.32"


def test_more_repeats_than_multiply_can_say_are_refused_and_a_reg_folders_are_cut(tmp_path: Path) -> None:
    draw(tmp_path / "t" / "20000_cat" / "0.png", 1)
    with pytest.raises(BadInput, match="20000_cat: 20,000 repeats: 10,000 is the most"):
        import_kohya(tmp_path / "t", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "t" / "20000_cat").rename(tmp_path / "t" / "9000_cat")
    draw(tmp_path / "t" / "9000_cat" / "1.png", 2)
    draw(tmp_path / "reg" / "1_animal" / "0.png", 3)
    result = import_kohya(tmp_path / "t", reg=tmp_path / "reg", out=tmp_path / "out")
    assert "reg animal: multiply is 10,000, the most there can be, not 18,000" in result.notes
    assert not read(tmp_path / "out").errors and texts(tmp_path / "out")["reg animal/multiply.txt"] == "10000"


def test_a_persons_multiply_is_journaled_and_undone(tmp_path: Path) -> None:
    source = project(tmp_path / "lora") / "img"
    (tmp_path / "out" / "sks dog").mkdir(parents=True)
    (tmp_path / "out" / "sks dog" / "multiply.txt").write_text("3\n", "utf-8")
    result = import_kohya(source, out=tmp_path / "out")
    assert "sks dog/multiply.txt: 10 (was 3; edkit undo brings it back)" in result.notes
    assert texts(tmp_path / "out")["sks dog/multiply.txt"] == "10"
    undo(tmp_path / "out")
    assert texts(tmp_path / "out")["sks dog/multiply.txt"] == "3"
    assert len(captions(tmp_path / "out")) == 9


def test_caption_files_of_another_ending_and_images_without_a_class(tmp_path: Path) -> None:
    draw(tmp_path / "t" / "5_" / "a.png", 1)
    draw(tmp_path / "t" / "5_" / "b.png", 2)
    (tmp_path / "t" / "5_" / "a.tags").write_text("1girl, solo", "utf-8")
    result = import_kohya(tmp_path / "t", out=tmp_path / "out", caption_extension="tags")
    assert result.outcomes == {"ok": 1, "no-caption": 1} and captions(tmp_path / "out") == ["1girl, solo"]
    again = import_kohya(tmp_path / "t", out=tmp_path / "out", caption_extension="tags", caption="a thing")
    assert again.kept == 1 and captions(tmp_path / "out") == ["1girl, solo", "a thing"]


CONFIG = """
[general]
shuffle_caption = true
keep_tokens = 2
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
resolution = [768, 512]
batch_size = 4

  [[datasets.subsets]]
  image_dir = "{dog}"
  num_repeats = 10
  flip_aug = true
  caption_prefix = "photo of"
  class_tokens = "sks dog"
  color_aug = false

  [[datasets.subsets]]
  image_dir = "reg/1_dog"
  is_reg = true
  class_tokens = "dog"
  shuffle_caption = false
  caption_dropout_rate = 0.1
"""


def test_a_dataset_config_becomes_option_files(tmp_path: Path) -> None:
    root = project(tmp_path / "lora")
    (root / "dataset.toml").write_text(CONFIG.format(dog=(root / "img" / "10_sks dog").as_posix()), "utf-8")
    result = import_kohya(root / "dataset.toml", out=tmp_path / "out")
    assert result.kept == 56
    by_folder = {s.key.split("/")[0]: s for s in read(tmp_path / "out")}
    dog, reg = by_folder["sks dog"].options, by_folder["reg dog"].options
    assert (dog.multiply, dog.shuffle_tags, dog.keep_tags, dog.flip_p) == (Decimal(10), True, 1, 0.5)
    assert (reg.multiply, bool(reg.shuffle_tags), reg.cond_dropout) == (Decimal("1.2"), False, 0.1)
    assert "photo of sks dog, sitting 1" in captions(tmp_path / "out")
    assert any("edkit train --resolution 768 --batch-size 4" in note for note in result.notes)


def test_what_edkit_lacks_is_refused_by_name_all_at_once(tmp_path: Path) -> None:
    root = project(tmp_path / "lora")
    config = CONFIG.format(dog=(root / "img" / "10_sks dog").as_posix())
    config = config.replace("color_aug = false", "color_aug = true\n  random_crop = true\n  num_repeat = 3")
    (root / "dataset.toml").write_text(config, "utf-8")
    with pytest.raises(
        BadInput, match=r"color_aug = True, num_repeat \(did you mean num_repeats\?\), random_crop = True"
    ):
        import_kohya(root / "dataset.toml", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    passed = import_kohya(root / "dataset.toml", out=tmp_path / "out", ignore=["color_aug,random_crop,num_repeat"])
    assert passed.kept == 56
    for text, words in (
        ("x = [", "no TOML"),
        ("[general]\n", "no dataset config"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "nowhere"\n', "no such folder"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", "without image_dir"),
        (f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{root.as_posix()}"\nnum_repeats = "1"', "a whole number"),
    ):
        (root / "dataset.toml").write_text(text, "utf-8")
        with pytest.raises(BadInput, match=words):
            import_kohya(root / "dataset.toml", out=tmp_path / "out")


def test_a_folder_that_is_no_train_dir_says_what_there_is(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "dogs" / "x.jpg", 1)
    with pytest.raises(UsageError, match=r"no folders such as '10_subject name'; there are dogs"):
        import_kohya(tmp_path / "a", out=tmp_path / "out")


@given(st.one_of(st.text(max_size=12), st.builds("{}_{}".format, st.integers(-5, 40), st.text(max_size=8))))
def test_a_folders_name_says_what_kohyas_scripts_take_it_for(name: str) -> None:
    pieces = name.split("_")
    try:
        number = int(pieces[0])
    except ValueError:
        number = 0
    expected = (number, "_".join(pieces[1:])) if number > 0 else None
    assert repeats_and_class(name) == expected


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40), st.booleans()), min_size=1, max_size=6))
def test_an_epoch_has_one_reg_image_for_each_training_image(counts: list[tuple[int, int, bool]]) -> None:
    found = multiplies(counts)
    num_train = sum(n * repeats for n, repeats, is_reg in counts if not is_reg)
    num_reg = sum(n * m for (n, _, is_reg), m in zip(counts, found, strict=True) if is_reg)
    assert all(m == repeats for (_, repeats, is_reg), m in zip(counts, found, strict=True) if not is_reg)
    if num_train and any(is_reg for _, _, is_reg in counts):
        assert num_train <= num_reg < num_train + Decimal("0.01")


# ---- import hf


def image_folder(root: Path, kind: str, column: str = "text") -> Path:
    rows = [{"file_name": f"train/{i}.png", column: f"caption {i}", "license": "CC-BY"} for i in range(4)]
    for i in range(3):
        draw(root / "train" / f"{i}.png", i)
    rows.append({"file_name": "../outside.png", column: "no", "license": ""})
    table = root / f"metadata.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif kind == "csv":
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    draw(root.parent / "outside.png", 99)
    return root


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_image_folder_comes_in_by_its_metadata(kind: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", kind)
    result = import_hf(root, out=tmp_path / "out")
    assert result.outcomes == {"ok": 3, "missing": 1, "unsafe-name": 1}
    assert captions(tmp_path / "out") == ["caption 0", "caption 1", "caption 2"]
    kept = [row for row in ledger(tmp_path / "out") if row.outcome == "ok"]
    assert {row.licence for row in kept} == {"CC-BY"}
    assert import_hf(root, out=tmp_path / "out").skipped == {"kept before": 3}


def test_a_caption_column_is_found_named_or_missed_in_one_line(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", "jsonl", "blurb")
    with pytest.raises(BadInput, match=r"no column of captions; its columns are file_name, blurb, license"):
        import_hf(root, out=tmp_path / "out")
    with pytest.raises(BadInput, match="--caption-column blurp: no such column"):
        import_hf(root, out=tmp_path / "out", caption_column="blurp")
    assert import_hf(root, out=tmp_path / "out", caption_column="blurb").kept == 3
    assert import_hf(root, out=tmp_path / "all", caption="a thing").kept == 3
    assert set(captions(tmp_path / "all")) == {"a thing"}


def embedded(path: Path, numbers: range, *, flat: bool = False) -> None:
    def data(i: int) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (40, 40), (i * 31 % 256, i, 7)).save(out, "PNG")
        return out.getvalue()

    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[object] = [data(i) if flat else {"bytes": data(i), "path": f"{i}.png"} for i in numbers]
    pq.write_table(pa.table({"image": images, "text": [["a", "b"][i % 2] + f" picture {i}" for i in numbers]}), path)


def test_parquet_files_with_images_come_in_by_split(tmp_path: Path) -> None:
    embedded(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", range(100))
    embedded(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", range(100, 150))
    embedded(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", range(150, 160))
    assert import_hf(tmp_path / "set", out=tmp_path / "all").kept == 160
    assert import_hf(tmp_path / "set", out=tmp_path / "test", split="test").kept == 10
    with pytest.raises(UsageError, match=r"--split dev: not in .*; there is test, train"):
        import_hf(tmp_path / "set", out=tmp_path / "no", split="dev")
    embedded(tmp_path / "one.parquet", range(3), flat=True)
    assert import_hf(tmp_path / "one.parquet", out=tmp_path / "flat").kept == 3


def test_a_set_that_fsspec_reads_comes_in_too(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    root = image_folder(tmp_path / "set", "jsonl")
    memory.put(str(root), "/imported", recursive=True)
    try:
        result = import_hf("memory://imported", out=tmp_path / "out")
        assert result.outcomes == {"ok": 3, "missing": 1, "unsafe-name": 1}
        with pytest.raises(UsageError, match="nothing there"):
            import_hf("memory://nowhere", out=tmp_path / "out")
    finally:
        memory.rm("/imported", recursive=True)


def test_places_that_are_no_hf_set_say_where_to_go(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "x.jpg", 1)
    with pytest.raises(UsageError, match="edkit import folder"):
        import_hf(tmp_path / "a", out=tmp_path / "out")
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "text": ["a"]}), tmp_path / "urls.parquet")
    with pytest.raises(BadInput, match="edkit scrape"):
        import_hf(tmp_path / "urls.parquet", out=tmp_path / "out")


# ---- import img2dataset


def downloaded(root: Path, *, as_tar: bool) -> Path:
    """Two shards as img2dataset writes them: 5 good rows each, one that failed; the second was not finished."""
    import tarfile

    for shard in range(2):
        rows, members = [], []
        for i in range(6):
            key = f"{shard:05d}{i:04d}"
            ok = i != 5
            data = draw(root.parent / "tmp.jpg", shard * 10 + i).read_bytes()
            row = {
                "key": key, "url": f"https://a.example/{key}.jpg",
                "caption": f"picture {key[-5:]} of it" if i else None,
                "status": "success" if ok else "failed_to_download", "error_message": None if ok else "404",
                "width": 60 if ok else None, "height": 50 if ok else None, "LICENSE": "CC0",
                "sha256": hashlib.sha256(data if i != 2 else b"before resizing").hexdigest() if ok else None,
            }  # fmt: skip
            rows.append(row)
            if ok:
                members += [(f"{key}.jpg", data), (f"{key}.txt", (str(row["caption"] or "")).encode())]
                members.append((f"{key}.json", json.dumps(row, indent=4).encode()))
        root.mkdir(exist_ok=True)
        if as_tar:
            with tarfile.open(root / f"{shard:05d}.tar", "w") as archive:
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        else:
            (root / f"{shard:05d}").mkdir()
            for name, content in members:
                (root / f"{shard:05d}" / name).write_bytes(content)
        pq.write_table(pa.Table.from_pylist(rows), root / f"{shard:05d}.parquet")
    (root / "00000_stats.json").write_text("{}", "utf-8")
    return root


@pytest.mark.parametrize("as_tar", [False, True])
def test_what_img2dataset_downloaded_comes_in_with_urls_licences_and_statuses(as_tar: bool, tmp_path: Path) -> None:
    root = downloaded(tmp_path / "laion", as_tar=as_tar)
    result = import_img2dataset(root, out=tmp_path / "out", caption="a thing")
    assert result.rows_read == 12 and result.dropped == {"img2dataset: failed_to_download": 2}
    assert result.kept == 10 and "img2dataset did not finish 1 of 2 shards: 00001" in result.notes[-1]
    assert captions(tmp_path / "out")[:2] == ["a thing", "a thing"]
    rows = {row.url: row for row in ledger(tmp_path / "out")}
    assert rows["https://a.example/000000001.jpg"].licence == "CC0"
    differs = [url for url, row in rows.items() if (row.extra or {}).get("checksum_matches") is False]
    assert differs == ["https://a.example/000000002.jpg", "https://a.example/000010002.jpg"]
    strict = import_img2dataset(root, out=tmp_path / "strict", check_hash="strict")
    assert strict.outcomes == {"ok": 6, "hash": 2, "no-caption": 2}


def test_files_without_their_json_are_described_by_the_shards_table(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "laion", as_tar=False)
    for file in (root / "00000").iterdir():
        if file.suffix != ".jpg":
            file.unlink()
    result = import_img2dataset(root, out=tmp_path / "out", limit=3)
    assert result.kept == 3 and captions(tmp_path / "out")[0] == "picture 00001 of it"
    assert ledger(tmp_path / "out")[1].url == "https://a.example/000000001.jpg"


def test_other_output_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "00000.tfrecord").write_bytes(b"")
    with pytest.raises(UsageError, match="TFRecord"):
        import_img2dataset(tmp_path, out=tmp_path / "out")
    (tmp_path / "00000.tfrecord").rename(tmp_path / "00000.parquet")
    with pytest.raises(UsageError, match="edkit import hf"):
        import_img2dataset(tmp_path, out=tmp_path / "out")
