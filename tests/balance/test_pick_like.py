"""Ground truth out of a pool: nothing twice, everything that belongs to an image with it, undone as one."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from edkit.balance import pick_like as module
from edkit.balance.pick_like import PickedLike, pick_like
from edkit.cli.app import app
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.dataset import read
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import undo, why
from edkit.measure.measure import measure

WORDS = ["dog", "cat", "beach", "grass", "red", "blue", "big", "tree", "house", "street"]


def draw(path: Path, seed: int, size: tuple[int, int] = (24, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    im = Image.new("RGB", size)
    im.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(size[0] * size[1])])
    im.save(path)
    return path


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """train/: 8 tall dogs on beaches; pool/: 120 pictures of three shapes in three folders."""
    rng = random.Random(2)
    for i in range(8):
        draw(tmp_path / "train" / f"a {'red' if i % 2 else 'big'} dog, beach_({i}).png", i, (16, 24))
    for i in range(120):
        text = " ".join(rng.sample(WORDS, 3))
        draw(tmp_path / "pool" / f"d{i % 3}" / f"a {text}_({i}).png", 100 + i, [(16, 24), (24, 16), (20, 20)][i // 40])
    return tmp_path


def pick(sets: Path, **options: object) -> PickedLike:
    return pick_like(sets / "train", sets / "pool", out=sets / "out", **{"limit": 20, **options})  # type: ignore[arg-type]


def tree(root: Path) -> dict[str, bytes]:
    found = sorted(root.rglob("*")) if root.exists() else []
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found if p.is_file() and ".edkit" not in p.parts}


def test_the_picks_have_the_training_sets_shapes_and_words(sets: Path) -> None:
    result = pick(sets)
    assert len(result.picked) == 20 and result.shape_distance[1] == 0 < result.shape_distance[0]
    assert result.word_distance[1] < 0.8 * result.word_distance[0]
    (shape,) = result.shapes
    assert (shape.train, shape.picked) == (1.0, 1.0) and shape.pool == pytest.approx(1 / 3)
    dog = next(row for row in result.words if row.what == "dog")
    assert dog.train == 1 and dog.picked > dog.pool
    assert {p.relative_to(sets / "pool") for p in result.picked} == {Path(name) for name in tree(sets / "out")}


def test_the_same_seed_picks_the_same_and_a_larger_limit_only_adds(sets: Path) -> None:
    first = pick(sets, dry_run=True)
    assert first == pick(sets, dry_run=True) and not (sets / "out").exists()
    assert pick(sets, dry_run=True, limit=30).picked[:20] == first.picked
    drawn = pick(sets, dry_run=True, seed=-1)
    assert drawn.seed != -1 and pick(sets, dry_run=True, seed=drawn.seed) == drawn
    assert pick(sets).picked == first.picked
    again = pick(sets)
    assert (again.picked, again.num_before, again.operation) == ((), 20, None)
    more = pick(sets, limit=25)
    assert (len(more.picked), more.num_before) == (5, 20) and len(tree(sets / "out")) == 25
    # renamed, they are still known by what they are
    for n, path in enumerate(sorted((sets / "out" / "d0").iterdir())):
        path.rename(path.with_name(f"dog_({n}).png"))
    assert pick(sets, limit=25).num_before == 25


def test_no_picture_comes_twice_nor_one_of_the_training_set(sets: Path) -> None:
    pool = sets / "pool"
    for i, train in enumerate(sorted((sets / "train").iterdir())):
        (pool / f"a big dog, beach_({i}).png").write_bytes(train.read_bytes())
    for i in range(6):
        draw(pool / "twice" / f"a big red dog, beach_({i}).png", 77, (16, 24))
    result = pick(sets, limit=40)
    contents = list(tree(sets / "out").values())
    assert len(set(contents)) == len(contents) == 40
    assert not set(contents) & set(tree(sets / "train").values())
    assert result.passed_over == {"are pictures picked already": 5, "stand in the training set": 8}


def test_near_duplicates_are_passed_over_where_hashes_are_known(sets: Path, shared_data: Path) -> None:
    photo = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[0]
    with Image.open(photo) as im:
        im.save(sets / "train" / "a red dog_(90).png")
        im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(sets / "pool" / "a big red dog, beach_(91).jpg", quality=70)
        im.resize((im.width // 2, im.height // 2)).save(sets / "pool" / "a big red dog, beach_(92).png")
    (sets / "train" / "multiply.txt").write_text("1")
    assert not {91, 92} - {int(p.stem.split("(")[1][:-1]) for p in pick(sets, limit=100, dry_run=True).picked}
    for side in ("train", "pool"):
        with Catalog.open(sets / side) as catalog:
            measure(catalog, [s.path for s in read(sets / side)], ["phash", "phash_mirror", "thumb"])
    result = pick(sets, limit=100, dry_run=True)
    assert result.passed_over == {"look like a training image": 2}


def test_sidecars_masks_options_and_the_ledger_come_along(sets: Path) -> None:
    pool = sets / "pool"
    image = draw(pool / "d0" / "x.png", 900, (16, 24))
    draw(pool / "d0" / "x-masklabel.png", 901, (16, 24))
    (pool / "d0" / "x.yaml").write_text("caption: words.txt\nflip_p: 0.5\n")
    (pool / "d0" / "x.txt").write_text("a big red dog, beach")
    (pool / "d0" / "words.txt").write_text("a big dog")
    (pool / "d0" / "multiply.txt").write_text("0.5")
    (pool / "global.yaml").write_text("tags: [photo]\n")
    with Catalog.open(pool) as catalog:
        (made,) = catalog.content_ids([image]).values()
        source = {"licence": "CC BY 4.0", "author": "Ann", "url": "https://example.org/x.jpg"}
        catalog.ledger_add([LedgerRow(outcome="ok", sha256="0" * 64, path=pool / "d0" / "old.jpg", **source)])  # type: ignore[arg-type]
        catalog.add_derived([(made, "0" * 64, image)], by="compress")
    result = pick(sets, limit=60)
    out = sets / "out"
    meant = {s.key: s for s in read(pool)}
    for sample in read(out):
        other = meant[sample.key]
        assert (sample.caption, sample.options) == (other.caption, other.options)
        assert (sample.mask is None) == (other.mask is None)
    assert read(out).num_masks == 1 and "set it anew with edkit balance" in " ".join(result.notes)
    with Catalog.open(out, write=False) as catalog:
        origin = catalog.origin(made)
        (row,) = catalog.ledger_holding([origin])[origin]
        assert (origin, row.licence, row.author) == ("0" * 64, "CC BY 4.0", "Ann")
    assert why(out / "d0" / "x.png").decisions[0].reason == "picked out of pool, like train"
    before = tree(out)
    (out / "d0" / "multiply.txt").write_text("0.125")
    assert "d0/multiply.txt is not the pool's" in " ".join(pick(sets, limit=70).notes)
    undo(out)
    (out / "d0" / "multiply.txt").write_text("0.5")
    assert tree(out) == before
    undo(out)
    assert tree(out) == {}


def test_links_share_the_file_and_where_none_can_be_made_it_is_copied_and_told(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pick(sets, link=True, limit=5)
    assert all(one.samefile(other) for one, other in zip(result.picked, result.places, strict=True))

    def refuse(src: str, dst: Path) -> None:
        raise OSError(errno.EXDEV, "another volume")

    monkeypatch.setattr(module.os, "link", refuse)
    result = pick(sets, link=True, limit=9)
    assert result.num_copied_instead == 4 and len(tree(sets / "out")) == 9
    assert all(place.stat().st_nlink == 1 for place in result.places)


def test_a_killed_run_goes_on_to_the_same(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pick(sets, dry_run=True).picked
    real, num = module.atomic.copy_new, 0

    def copy(src: str, dst: str, part: str) -> None:
        nonlocal num
        num += 1
        if num > 12:
            Path(part).write_bytes(b"half")
            raise KeyboardInterrupt
        real(src, dst, part)

    monkeypatch.setattr(module.atomic, "copy_new", copy)
    with pytest.raises(KeyboardInterrupt):
        pick(sets)
    assert tree(sets / "out") == {}
    num = -100
    assert pick(sets).picked == wanted and num == -92 and len(tree(sets / "out")) == 20
    assert not (sets / "out" / ".edkit" / "cache" / "pick-like").exists()


def test_what_undo_leaves_in_a_visible_state_folder_is_no_image_of_the_set(sets: Path) -> None:
    state = sets / "out" / "state"
    pick(sets, state_dir=state)
    undo(sets / "out", state_dir=state)
    assert len(read(sets / "out", sizes=False)) == 0


def test_names_that_are_taken_and_folders_inside_each_other(sets: Path) -> None:
    draw(sets / "out" / "d0" / pick(sets, dry_run=True).picked[0].name, 5000)
    names = {p.name for p in (sets / "out" / "d0").iterdir()}
    result = pick(sets, limit=60)
    assert sum(n for why, n in result.passed_over.items() if "taken" in why) == len(
        {p for p in (sets / "pool").rglob("*.png") if p.name in names and p.parent.name == "d0"}
    )
    inside = pick_like(sets / "pool" / "d0", sets / "pool", out=sets / "pool" / "picked", limit=10)
    assert not any("d0" in p.parts for p in inside.picked) and inside.num_pool == 80


def test_wrong_input_is_told_in_one_line(sets: Path) -> None:
    for bad in ({"limit": 0}, {"out": sets / "pool"}):
        with pytest.raises(UsageError):
            pick_like(**{"train_dir": sets / "train", "pool_dir": sets / "pool", "out": sets / "o", **bad})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the same folder"):
        pick_like(sets / "pool", sets / "pool", out=sets / "o")
    with pytest.raises(UsageError, match="no such folder"):
        pick_like(sets / "none", sets / "pool", out=sets / "o")
    (sets / "empty").mkdir()
    with pytest.raises(BadInput, match="no images"):
        pick_like(sets / "train", sets / "empty", out=sets / "o")


def test_the_command_shows_what_was_before_and_after(sets: Path) -> None:
    args = ["pick-like", str(sets / "train"), str(sets / "pool"), "--limit", "20", "--out", str(sets / "out")]
    shown = CliRunner().invoke(app, [*args, "--dry-run"])
    assert shown.exit_code == 0 and "would pick 20 of 120 images" in shown.output and "Training" in shown.output
    result = json.loads(CliRunner().invoke(app, [*args, "--json"]).output)
    assert len(result["places"]) == 20 and result["word_distance"][1] < result["word_distance"][0]
