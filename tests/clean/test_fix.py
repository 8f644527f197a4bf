"""`check --fix` mends what has one safe mend, `--set-aside` and `--shorten` what they are told; undo takes all back."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edkit.clean.check import Checked, check
from edkit.data.dataset import read
from edkit.data.errors import UsageError
from edkit.data.journal import undo

Draw = Callable[..., Path]


def snapshot(root: Path) -> dict[str, str]:
    """Every file of a data root by its content's hash."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".edkit" not in path.parts
    }


def kinds(result: Checked) -> set[str]:
    return {finding.kind for finding in result.findings}


def captions(root: Path) -> dict[str, str]:
    dataset = read(root, sizes=False)
    return {dataset.path(i).name: dataset.caption(i).text for i in range(len(dataset))}


def undone(root: Path) -> dict[str, str]:
    undo(root, to=0)
    return snapshot(root)


def test_an_ending_that_lies_is_put_right_and_its_sidecar_still_belongs_to_it(tmp_path: Path, draw: Draw) -> None:
    draw("x.jpg", 1).rename(tmp_path / "a dog.png")
    (tmp_path / "a dog.txt").write_text("a dog in snow", encoding="utf-8")
    before = snapshot(tmp_path)
    result = check(tmp_path, fix=True)
    assert "mislabelled-image" not in kinds(result)
    assert captions(tmp_path) == {"a dog.jpg": "a dog in snow"}
    assert undone(tmp_path) == before


def test_a_name_that_is_taken_is_never_written_over(tmp_path: Path, draw: Draw) -> None:
    draw("x.jpg", 1).rename(tmp_path / "a dog.png")
    draw("a dog.jpg", 2)
    before = snapshot(tmp_path)
    check(tmp_path, fix=True)
    after = snapshot(tmp_path)
    assert set(after) == {"a dog.jpg", "a dog_(2).jpg"} and sorted(after.values()) == sorted(before.values())
    assert set(captions(tmp_path).values()) == {"a dog"}
    assert undone(tmp_path) == before


def test_images_that_share_a_sidecar_each_get_a_copy_of_it(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    draw("a dog.jpg", 2)
    (tmp_path / "a dog.txt").write_bytes(codecs.BOM_UTF16_LE + "a dog and a fox".encode("utf-16-le"))
    before = snapshot(tmp_path)
    result = check(tmp_path, fix=True)
    assert not kinds(result) & {"shared-sidecar", "marked-text"}
    assert captions(tmp_path) == {"a dog.jpg": "a dog and a fox", "a dog_(2).png": "a dog and a fox"}
    assert undone(tmp_path) == before


def test_a_mask_follows_its_image_and_never_becomes_one(tmp_path: Path, draw: Draw) -> None:
    draw("x.png", 1).rename(tmp_path / "a dog.jpg")
    draw("a dog.png", 2)
    Image.new("L", (360, 270)).save(tmp_path / "a dog-masklabel.png")
    before = snapshot(tmp_path)
    check(tmp_path, fix=True)
    dataset = read(tmp_path, sizes=False)
    masks = {dataset.path(i).name: mask and mask.name for i in range(len(dataset)) for mask in [dataset.mask(i)]}
    assert masks == {"a dog.png": "a dog-masklabel.png", "a dog_(2).png": "a dog_(2)-masklabel.png"}
    assert undone(tmp_path) == before


def test_names_that_differ_in_case_alone_are_told_apart(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    draw("A Dog.png", 2)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes the two for one")
    (tmp_path / "A Dog.txt").write_text("one", encoding="utf-8")
    (tmp_path / "a dog.txt").write_text("two", encoding="utf-8")
    before, said = snapshot(tmp_path), sorted(captions(tmp_path).values())
    assert "clashing-names" not in kinds(check(tmp_path, fix=True))
    assert len({name.casefold() for name in snapshot(tmp_path)}) == 4
    assert sorted(captions(tmp_path).values()) == said == ["one", "two"]
    assert undone(tmp_path) == before


def test_option_files_get_the_name_that_is_read_unless_one_is_there(tmp_path: Path, draw: Draw) -> None:
    draw("one/a dog.png", 1)
    draw("two/a cat.png", 2)
    (tmp_path / "one/multiply.txt.txt").write_text("2", encoding="utf-8")
    (tmp_path / "two/multiply.txt").write_text("3", encoding="utf-8")
    (tmp_path / "two/Multiply.txt.TXT").write_text("4", encoding="utf-8")
    before = snapshot(tmp_path)
    result = check(tmp_path, fix=True)
    assert (tmp_path / "one/multiply.txt").read_text(encoding="utf-8") == "2"
    assert (tmp_path / "two/multiply.txt").read_text(encoding="utf-8") == "3"
    assert result.fixed is not None
    assert [path.name for path, _ in result.fixed.left] == ["Multiply.txt.TXT"]
    assert undone(tmp_path) == before


@pytest.mark.parametrize(
    ("data", "mended"),
    [
        (codecs.BOM_UTF8 + "ein Käfer\r\n".encode(), "ein Käfer\r\n".encode()),
        (codecs.BOM_UTF16_LE + "猫\n".encode("utf-16-le"), "猫\n".encode()),
        (codecs.BOM_UTF16_BE + "猫".encode("utf-16-be"), "猫".encode()),
        (b"plain", b"plain"),
        (b"caf\xe9 of no known encoding", b"caf\xe9 of no known encoding"),
    ],
)
def test_marked_text_becomes_plain_utf_8_and_nothing_else_is_touched(
    tmp_path: Path, draw: Draw, data: bytes, mended: bytes
) -> None:
    draw("one.png", 1)
    (tmp_path / "one.txt").write_bytes(data)
    before = snapshot(tmp_path)
    check(tmp_path, fix=True)
    assert (tmp_path / "one.txt").read_bytes() == mended
    assert undone(tmp_path) == before if data != mended else snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("said", "becomes"), [("0,5", "0.5"), (" ,25\n", " .25\n"), ("1,000", "1,000"), ("a,5", "a,5")]
)
def test_a_decimal_comma_is_mended_where_it_can_mean_nothing_else(
    tmp_path: Path, draw: Draw, said: str, becomes: str
) -> None:
    draw("a dog.png", 1)
    (tmp_path / "multiply.txt").write_text(said, encoding="utf-8")
    check(tmp_path, fix=True)
    assert (tmp_path / "multiply.txt").read_text(encoding="utf-8") == becomes


def test_the_caption_that_is_given_is_written_beside_those_without_one_alone(tmp_path: Path, draw: Draw) -> None:
    draw("IMG_0001.png", 1)
    draw("x.jpg", 2).rename(tmp_path / "DSC_0002.png")
    draw("a cat.png", 3)
    before = snapshot(tmp_path)
    result = check(tmp_path, fix=True, caption_fallback="my dog")
    assert result.num_errors == 0
    assert captions(tmp_path) == {"IMG_0001.png": "my dog", "DSC_0002.jpg": "my dog", "a cat.png": "a cat"}
    assert undone(tmp_path) == before
    with pytest.raises(UsageError, match="WORDS"):
        check(tmp_path, fix=True, caption_fallback="WORDS")


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path, draw: Draw) -> None:
    draw("x.jpg", 1).rename(tmp_path / "a dog.png")
    before = snapshot(tmp_path)
    dry = check(tmp_path, fix=True, dry_run=True)
    assert snapshot(tmp_path) == before and not (tmp_path / ".edkit").exists()
    wet = check(tmp_path, fix=True)
    assert dry.fixed is not None and wet.fixed is not None
    assert dry.fixed.mended == wet.fixed.mended != ()


def test_where_nothing_is_amiss_nothing_is_done(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    (tmp_path / "a dog.txt").write_text("a dog", encoding="utf-8")
    result = check(tmp_path, fix=True)
    assert result.fixed is not None and result.fixed.operation is None and result.fixed.mended == ()


def test_a_manifest_s_files_are_not_renamed(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    (tmp_path / "set.json").write_text('[{"image": "a dog.png"}]', encoding="utf-8")
    with pytest.raises(UsageError):
        check(tmp_path / "set.json", fix=True)


def test_what_is_set_aside_takes_its_sidecar_along_and_comes_back_in_one_step(tmp_path: Path, draw: Draw) -> None:
    draw("a dog.png", 1)
    (tmp_path / "a cut cat.jpg").write_bytes(draw("x.jpg", 2, (512, 512)).read_bytes()[:-4000] + b"\xff\xd9")
    (tmp_path / "x.jpg").unlink()
    (tmp_path / "a cut cat.txt").write_text("a cat", encoding="utf-8")
    (tmp_path / "orphan.txt").write_text("nobody", encoding="utf-8")
    before = snapshot(tmp_path)
    result = check(tmp_path, set_aside=["truncated-image", "unreadable-image", "sidecar-without-image"])
    assert set(snapshot(tmp_path)) == {"a dog.png"} and result.findings == ()
    undo(tmp_path)
    assert snapshot(tmp_path) == before
    with pytest.raises(UsageError, match="did you mean truncated-image"):
        check(tmp_path, set_aside=["truncated-images"])


def test_the_caption_files_that_lose_are_set_aside_not_their_image(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", 1)
    (tmp_path / "a.txt").write_text("lost", encoding="utf-8")
    (tmp_path / "a.caption").write_text("used", encoding="utf-8")
    assert kinds(check(tmp_path)) == {"main-prompt-twice"}
    assert check(tmp_path, set_aside=["main-prompt-twice"]).findings == ()
    assert set(snapshot(tmp_path)) == {"a.png", "a.caption"}


def test_long_captions_are_cut_at_the_last_word_that_is_read(tmp_path: Path, draw: Draw) -> None:
    pytest.importorskip("open_clip")
    draw("one.png", 1, (600, 600))
    (tmp_path / "one.txt").write_text("word " * 70 + "and then, the extraordinarily lost tail", encoding="utf-8")
    before = snapshot(tmp_path)
    result = check(tmp_path, family="sd1", shorten=True)
    assert "caption-cut" not in kinds(result)
    kept = (tmp_path / "one.txt").read_text(encoding="utf-8")
    assert kept.startswith("word word") and kept.endswith(("and then, the", "and then, the extraordinarily"))
    assert undone(tmp_path) == before
    with pytest.raises(UsageError, match="--for"):
        check(tmp_path, shorten=True)


def test_pixels_are_never_encoded_anew(tmp_path: Path, draw: Draw) -> None:
    draw("x.jpg", 1).rename(tmp_path / "a dog.png")
    with Image.open(tmp_path / "a dog.png") as im:
        pixels = im.tobytes()
    check(tmp_path, fix=True)
    with Image.open(tmp_path / "a dog.jpg") as im:
        assert im.tobytes() == pixels
