"""`rename-captions`: what a folder is called afterwards, and that its captions stay what they were."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from edkit.caption.rename import rename_captions
from edkit.cli.app import app
from edkit.data.catalog import Catalog
from edkit.data.dataset import read
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import history, undo


@pytest.fixture(scope="session")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("png") / "small.png"
    Image.new("RGB", (8, 8), (200, 30, 40)).save(path)
    return path.read_bytes()


class Root:
    """A data root under test: files in, names and captions out."""

    def __init__(self, path: Path, png: bytes) -> None:
        self.path, self.png = path, png

    def put(self, *images: str, **_: str) -> Root:
        for name in images:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.png + name.encode())  # told apart by their bytes
        return self

    def text(self, name: str, content: str) -> Root:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return self

    def names(self) -> list[str]:
        files = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        return sorted(name for name in files if not name.startswith(".edkit"))

    def tree(self) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in self.names()}

    def captions(self) -> dict[bytes, str]:
        """Caption (with its tags) by the image's bytes, so that it can be followed through a rename."""
        return {
            sample.path.read_bytes(): ", ".join([sample.caption.text, *(tag.text for tag in sample.caption.tags)])
            for sample in read(self.path, sizes=False)
        }


@pytest.fixture
def root(tmp_path: Path, png: bytes) -> Root:
    folder = tmp_path / "photos"
    folder.mkdir()
    return Root(folder, png)


def test_one_caption_for_all_numbers_them_in_natural_order(root: Root) -> None:
    root.put("IMG_10.png", "IMG_9.png", "IMG_0100.PNG")
    before = root.tree()
    result = rename_captions(root.path, caption="person")
    assert root.tree() == {
        "person_(1).png": before["IMG_9.png"],
        "person_(2).png": before["IMG_10.png"],
        "person_(3).PNG": before["IMG_0100.PNG"],
    }
    assert set(root.captions().values()) == {"person"}
    assert (result.num_renamed, result.num_right) == (3, 0)


def test_explorers_numbering_becomes_ours(root: Root) -> None:
    root.put(*(f"a dog_ ({n}).png" for n in (1, 2, 10)))
    rename_captions(root.path)
    assert root.names() == ["a dog_(1).png", "a dog_(2).png", "a dog_(3).png"]


def test_a_second_run_changes_nothing(root: Root) -> None:
    root.put(*(f"IMG_{n}.png" for n in range(12)), "what: a title?_1.png")
    root.text("IMG_3.txt", "a cat / two dogs").text("IMG_4.yaml", "main_prompt: x\nmultiply: 2\n")
    rename_captions(root.path, caption="person")
    once = root.tree()
    again = rename_captions(root.path, caption="person")
    assert (again.num_renamed, again.steps, again.operation) == (0, (), None)
    assert rename_captions(root.path).steps == ()
    assert root.tree() == once
    assert len(history(root.path)) == 1


def test_a_gap_is_filled_by_a_newcomer_and_nobody_else_moves(root: Root) -> None:
    root.put("person_(1).png", "person_(3).png", "IMG_1.png")
    root.text("IMG_1.txt", "person")
    result = rename_captions(root.path)
    assert root.names() == ["person_(1).png", "person_(2).png", "person_(2).txt", "person_(3).png"]
    assert result.num_renamed == 1


def test_case_and_ending_do_not_make_two_names(root: Root) -> None:
    root.put("Person_(1).png", "person_(1).jpg", "person_a.png")
    rename_captions(root.path)
    stems = [name.rsplit(".", 1)[0].casefold() for name in root.names()]
    assert len(set(stems)) == 3
    assert sorted(root.captions().values()) == ["Person", "person", "person"]


def test_composed_and_decomposed_names_are_one_caption_and_two_names(root: Root) -> None:
    root.put("caf\u00e9_1.png", "cafe\u0301_1.png", "CAFE\u0301_(1).png").text("cafe\u0301_1.txt", "cafe\u0301")
    before, captions = root.tree(), root.captions()
    rename_captions(root.path)
    assert root.captions() == captions
    stems = [unicodedata.normalize("NFC", name.rsplit(".", 1)[0]).casefold() for name in root.names() if "png" in name]
    assert len(set(stems)) == 3
    assert rename_captions(root.path).steps == ()
    undo(root.path)
    assert root.tree() == before


def test_a_stray_sidecar_never_becomes_an_images_caption(root: Root) -> None:
    root.put("a.png").text("person_(1).txt", "something else entirely")
    rename_captions(root.path, caption="person")
    assert root.names() == ["person_(1).txt", "person_(2).png"]
    assert set(root.captions().values()) == {"person"}


def test_sidecars_that_agree_follow_and_those_that_do_not_are_set_aside(root: Root) -> None:
    root.put("a.png", "b.png", "c.png").text("a.txt", "person").text("b.caption", "a man").text("c.json", "{}")
    before = root.tree()
    result = rename_captions(root.path, caption="person")
    assert root.names() == [
        "person_(1).png",
        "person_(1).txt",
        "person_(2).png",
        "person_(3).json",
        "person_(3).png",
    ]
    assert set(root.captions().values()) == {"person"}
    assert (result.num_followed, result.num_set_aside) == (2, 1)
    undo(root.path)
    assert root.tree() == before


def test_a_yaml_that_says_otherwise_keeps_its_options(root: Root) -> None:
    root.put("a.png", "b.png", "person_(7).png")
    root.text("a.yaml", "main_prompt: a man\ntags: [tall, {tag: old, weight: 2}]\nmultiply: 0.025\nflip_p: 0.5\n")
    root.text("b.yaml", "main_prompt: a man\n").text(
        "person_(7).yaml", "caption: {main_prompt: x, batch_id: '007', shuffle_tags: true}\n"
    )
    before = root.tree()
    result = rename_captions(root.path, caption="person")
    assert root.names() == [
        "person_(1).png",
        "person_(1).yaml",
        "person_(2).png",
        "person_(7).png",
        "person_(7).yaml",
    ]
    samples = {sample.path.stem: sample for sample in read(root.path, sizes=False)}
    assert {sample.caption.text for sample in samples.values()} == {"person"}
    assert not any(sample.caption.tags for sample in samples.values())
    assert str(samples["person_(1)"].options.multiply) == "0.025"
    assert samples["person_(1)"].options.flip_p == 0.5
    assert samples["person_(7)"].options.batch_id == "007"
    assert samples["person_(7)"].options.shuffle_tags is True
    assert (result.num_set_aside, result.num_options_kept) == (1, 2)
    undo(root.path)
    assert root.tree() == before


@pytest.mark.parametrize(
    "caption",
    [
        "who is this?",
        "a/b",
        "under_score",
        "CON",
        "ends with a dot.",
        'says "hello" <loudly>',
        "x" * 500,
        "ein Mädchen mit Hündchen: süß",
        "猫" * 100,
        "12345",
        "IMG 1234",
        "a: b\\c|d*e",
    ],
)
def test_a_caption_no_name_can_hold_stands_whole_in_a_sidecar(root: Root, caption: str) -> None:
    root.put("a.png", "b.png")
    result = rename_captions(root.path, caption=caption)
    assert list(root.captions().values()) == [caption, caption]
    assert result.num_written == 2
    for name in root.names():
        assert len(name.encode()) <= 255
        assert not set(name) & set('<>:"/\\|?*')
    assert rename_captions(root.path, caption=caption).steps == ()
    assert rename_captions(root.path).steps == ()


def test_camera_names_are_left_and_listed(root: Root) -> None:
    root.put("IMG_1234.png", "a dog_1.png", "_x.png")
    result = rename_captions(root.path)
    assert root.names() == ["IMG_1234.png", "_x.png", "a dog_(1).png"]
    assert {left.path.name: left.reason.split(";")[0] for left in result.left} == {
        "IMG_1234.png": "a camera or a program gave this name",
        "_x.png": "its name says nothing before the first _",
    }


def test_a_folder_of_camera_names_alone_is_refused_with_the_way_out(root: Root) -> None:
    root.put("IMG_1234.png", "DSC00017.png")
    with pytest.raises(BadInput, match='--caption "person"'):
        rename_captions(root.path)
    assert root.names() == ["DSC00017.png", "IMG_1234.png"]


def test_from_filename_and_from_sidecar_are_strict(root: Root) -> None:
    root.put("a dog_1.png", "a cat_1.png").text("a dog_1.txt", "a wolf")
    dry = rename_captions(root.path, source="sidecar", dry_run=True)
    assert [(step.path, step.to) for step in dry.steps] == [
        ("a dog_1.png", "a wolf_(1).png"),
        ("a dog_1.txt", "a wolf_(1).txt"),
    ]
    assert [left.path.name for left in dry.left] == ["a cat_1.png"]
    rename_captions(root.path, source="filename")
    assert root.names() == ["a cat_(1).png", "a dog_(1).png"]


def test_a_dry_run_touches_nothing_and_makes_no_state(root: Root) -> None:
    root.put("a_1.png").text("a_1.txt", "b")
    before = root.tree()
    result = rename_captions(root.path, dry_run=True)
    assert [(step.kind, step.path, step.to) for step in result.steps] == [
        ("move", "a_1.png", "b_(1).png"),
        ("move", "a_1.txt", "b_(1).txt"),
    ]
    assert root.tree() == before
    assert not (root.path / ".edkit").exists()


def test_two_images_that_share_a_sidecar_keep_its_words(root: Root) -> None:
    root.put("x.jpg", "x.png").text("x.txt", "a red hat")
    before = root.tree()
    rename_captions(root.path)
    assert list(root.captions().values()) == ["a red hat", "a red hat"]
    assert root.names() == [
        "a red hat_(1).jpg",
        "a red hat_(1).txt",
        "a red hat_(2).png",
        "a red hat_(2).txt",
    ]
    undo(root.path)
    assert root.tree() == before


def test_captions_that_trade_places(root: Root) -> None:
    root.put("a_(1).png", "b_(1).png").text("a_(1).txt", "b").text("b_(1).txt", "a")
    before = root.tree()
    captions = root.captions()
    rename_captions(root.path)
    assert root.captions() == captions
    after = root.tree()
    assert after["b_(1).png"] == before["a_(1).png"]
    assert after["b_(1).txt"] == b"b"
    undo(root.path)
    assert root.tree() == before


def test_a_name_that_comes_free_is_written_under(root: Root) -> None:
    # a?_(1) leaves the stem that the other image's written caption needs
    root.put("who_(1).png", "z.png").text("who_(1).txt", "me").text("z.yaml", "caption: 'who?'\n")
    captions = root.captions()
    rename_captions(root.path)
    assert root.captions() == captions
    assert "who_(1).yaml" in root.names()


@pytest.mark.parametrize("name", ["global.yaml", "Global.YAML", "sub/Local.yaml"])
def test_a_cascade_is_kept_and_overruled_where_it_must_be(root: Root, name: str) -> None:
    root.text(name, "main_prompt: a photo\ntags: [sunny]\n").put("sub/a dog_1.png", "sub/b.png")
    before = root.tree()
    captions = root.captions()
    rename_captions(root.path)
    assert root.captions() == captions
    undo(root.path)
    assert root.tree() == before
    result = rename_captions(root.path, caption="person")
    assert set(root.captions().values()) == {"person, sunny"}
    assert any(name in note for note in result.notes)
    assert (root.path / name).read_text("utf-8") == "main_prompt: a photo\ntags: [sunny]\n"
    assert rename_captions(root.path, caption="person").steps == ()


def test_cascade_tags_alone_need_no_sidecars(root: Root) -> None:
    root.text("local.yaml", "tags: [sunny]\nmultiply: 2\n").put("a dog_1.png", "a dog, sunny_7.png")
    captions = root.captions()
    result = rename_captions(root.path)
    assert root.captions() == captions
    assert result.num_written == 0


def test_a_yaml_that_names_a_caption_file_still_finds_it(root: Root) -> None:
    root.put("a.png", "b.png").text("a.txt", "a long walk").text("b.yaml", "caption: a.txt  # shared\nmultiply: 3\n")
    captions = root.captions()
    assert set(captions.values()) == {"a long walk"}
    rename_captions(root.path)
    assert root.captions() == captions
    assert (root.path / "a long walk_(2).yaml").read_text("utf-8").endswith("# shared\nmultiply: 3\n")


def test_folder_options_are_no_sidecars(root: Root) -> None:
    root.put("multiply.png", "local.png").text("multiply.txt", "3").text("local.yaml", "flip_p: 0.5")
    rename_captions(root.path)
    assert root.names() == ["local.yaml", "local_(1).png", "multiply.txt", "multiply_(1).png"]


def test_a_broken_yaml_stops_its_image_alone(root: Root) -> None:
    root.put("a.png", "b.png").text("a.yaml", "main_prompt: [unclosed")
    result = rename_captions(root.path, caption="person")
    assert root.names() == ["a.png", "a.yaml", "person_(1).png"]
    assert [left.path.name for left in result.left] == ["a.png"]
    assert "a.yaml" in result.left[0].reason


@pytest.mark.parametrize(
    ("options", "words"),
    [({"caption": "  "}, "empty caption"), ({"caption": "x", "source": "sidecar"}, "two different things")],
)
def test_wrong_usage(root: Root, options: dict[str, str], words: str) -> None:
    root.put("a.png")
    with pytest.raises(UsageError, match=words):
        rename_captions(root.path, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such folder"):
        rename_captions(root.path / "nowhere")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co", "Cn")), min_size=1, max_size=150)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(WORDS, min_size=1, max_size=12))
def test_whatever_the_sidecars_say_survives(tmp_path: Path, png: bytes, texts: list[str]) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    root = Root(folder, png)
    for i, text in enumerate(texts):
        root.put(f"{i}.png").text(f"{i}.txt", text)
    before, captions = root.tree(), root.captions()
    rename_captions(folder)
    assert root.captions() == captions
    assert rename_captions(folder).steps == ()
    undo(folder)
    assert root.tree() == before


def test_coco_photos_with_captions_beside_them(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "coco"
    folder.mkdir()
    coco = json.loads((shared_data / "coco-mini/annotations/captions_train2017.json").read_text("utf-8"))
    captions = {row["image_id"]: row["caption"].strip() for row in coco["annotations"]}
    for image in coco["images"]:
        shutil.copy(shared_data / "coco-mini/train2017" / image["file_name"], folder)
        (folder / image["file_name"]).with_suffix(".txt").write_text(captions[image["id"]], "utf-8")
    by_size = {path.stat().st_size: captions[int(path.stem)] for path in folder.glob("*.jpg")}
    result = rename_captions(folder)
    assert result.num_renamed == 80
    found = {sample.path.stat().st_size: sample.caption.text for sample in read(folder, sizes=False)}
    assert found == by_size
    assert all(
        name.split("_(")[0].casefold()[:3] == found_caption.casefold()[:3]
        for name, found_caption in ((sample.path.name, sample.caption.text) for sample in read(folder, sizes=False))
    )


def test_ten_thousand_files_are_one_quick_operation(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(10_000):
        (folder / f"IMG_{n:05}.jpg").touch()
    start = time.process_time()
    result = rename_captions(folder, caption="person")
    assert time.process_time() - start < 10  # of CPU; 2 s where nobody else keeps the caches busy
    assert result.num_renamed == 10_000
    assert (folder / "person_(10000).jpg").exists()
    with Catalog.open(folder, write=False) as catalog:
        assert len(history(catalog)) == 1


def test_the_command_lists_every_change_of_a_dry_run(root: Root) -> None:
    root.put("IMG_1.png", "IMG_2.png").text("IMG_2.txt", "a dog")
    asked = ["rename-captions", str(root.path), "--caption", "person"]
    run = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert "person_(2).png" in run.stdout
    assert "2 images: 2 would be renamed" in run.stdout
    run = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(run.stdout)["num_set_aside"] == 1
    assert root.names() == ["person_(1).png", "person_(2).png"]
