"""The arithmetic of multiply, and the folder that comes out of it."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edkit.balance.balance import (
    Folder,
    Wish,
    assignments,
    balance,
    how_many,
    multiply_for,
    picks_of,
    plain,
    propose,
    sentence,
)
from edkit.cli.app import app
from edkit.data.errors import UsageError
from edkit.data.journal import undo


def wish(
    *,
    set: dict[str, str] | None = None,
    per_epoch: dict[str, int] | None = None,
    share: dict[str, str] | None = None,
    equalize: bool = False,
    ground_truth: tuple[str, ...] = (),
) -> Wish:
    return Wish(
        set={k: Decimal(v) for k, v in (set or {}).items()},
        per_epoch={k: Fraction(v) for k, v in (per_epoch or {}).items()},
        share={k: Fraction(v) for k, v in (share or {}).items()},
        equalize=equalize,
        ground_truth=ground_truth,
    )


def folders(**sizes: int) -> list[Folder]:
    return [Folder(path=p, num_images=n, multiply=Decimal(1)) for p, n in sizes.items()]


def multiplies(found: list[Folder] | tuple[Folder, ...]) -> dict[str, str]:
    return {folder.path: plain(folder.multiply) for folder in found}


def test_a_thousand_at_a_fortieth_is_25_in_every_epoch() -> None:
    assert {picks_of(1000, Decimal("0.025"), epoch) for epoch in range(500)} == {25}


def test_ten_at_a_twentieth_is_one_in_every_second_epoch() -> None:
    assert [picks_of(10, Decimal("0.05"), epoch) for epoch in range(4)] == [0, 1, 0, 1]


def test_whole_and_fraction_add_up() -> None:
    assert [picks_of(3, Decimal("2.5"), epoch) for epoch in range(2)] == [7, 8]


def test_per_epoch_25_of_1000_is_exactly_0_025() -> None:
    found = propose(folders(train=50, preservation=1000), wish(per_epoch={"preservation": 25})).folders
    assert multiplies(found) == {"train": "1", "preservation": "0.025"}
    assert [sum(f.picks_in(epoch) for f in found) for epoch in range(20)] == [75] * 20


@settings(deadline=None)  # a busy machine is no failure
@given(num_images=st.integers(1, 200_000), picks=st.integers(0, 5000))
def test_whole_picks_come_out_whole_in_the_first_and_the_thousandth_epoch(num_images: int, picks: int) -> None:
    multiply = multiply_for(Fraction(picks), num_images)
    for epoch in (0, 1, 2, 9, 99, 500, 999):
        assert picks_of(num_images, multiply, epoch) == picks


@settings(deadline=None)  # a busy machine is no failure
@given(num_images=st.integers(1, 10_000), picks=st.fractions(min_value=0, max_value=500, max_denominator=1000))
def test_a_rounded_multiply_is_never_too_low_and_hardly_too_high(num_images: int, picks: Fraction) -> None:
    got = Fraction(multiply_for(picks, num_images)) * num_images
    assert 0 <= got - picks < Fraction(1, 1000)


def test_a_share_is_of_the_whole_epoch() -> None:
    found = propose(folders(train=50, preservation=1000), wish(share={"preservation": "1/3"})).folders
    assert multiplies(found)["preservation"] == "0.025"


def test_two_shares_are_met_together() -> None:
    found = propose(folders(train=60, faces=100, places=100), wish(share={"faces": "0.3", "places": "0.1"})).folders
    by_name = {f.path: f.picks for f in found}
    assert by_name["faces"] == 30
    assert by_name["places"] == 10


def test_a_share_counts_what_the_other_options_made() -> None:
    found = propose(
        folders(train=50, other=50, preservation=1000),
        wish(set={"other": "2"}, share={"preservation": "0.5"}),
    ).folders
    assert multiplies(found) == {"train": "1", "other": "2", "preservation": "0.15"}


def test_equalize_raises_subjects_to_the_largest_and_leaves_ground_truth() -> None:
    pool = Folder(path="pool", num_images=1000, multiply=Decimal("0.025"))
    proposal = propose([*folders(anna=50, ben=20, cleo=15), pool], wish(equalize=True))
    assert multiplies(proposal.folders) == {"anna": "1", "ben": "2.5", "cleo": "3.33334", "pool": "0.025"}
    for epoch in range(100):
        assert [f.picks_in(epoch) for f in proposal.folders] == [50, 50, 50, 25]
    assert any("pool" in note for note in proposal.notes)


def test_equalize_twice_is_equalize_once() -> None:
    once = propose(folders(anna=50, ben=20, cleo=15), wish(equalize=True)).folders
    assert propose(once, wish(equalize=True)).folders == once


def test_equalize_leaves_a_folder_that_another_option_names() -> None:
    found = propose(folders(anna=50, ben=20, pool=1000), wish(equalize=True, per_epoch={"pool": 25})).folders
    assert multiplies(found) == {"anna": "1", "ben": "2.5", "pool": "0.025"}


def test_equalize_warns_where_it_raises_steeply_and_takes_a_hint() -> None:
    assert any(
        "--ground-truth pool" in note for note in propose(folders(anna=50, pool=1000), wish(equalize=True)).notes
    )
    found = propose(folders(anna=50, ben=25, pool=1000), wish(equalize=True, ground_truth=("pool",))).folders
    assert multiplies(found) == {"anna": "1", "ben": "2", "pool": "1"}


def test_set_holds_for_every_folder_below() -> None:
    tree = [Folder(path=p, num_images=10, multiply=Decimal(1)) for p in (".", "p/a", "p/a/b", "p2")]
    assert multiplies(propose(tree, wish(set={"p": "0.5"})).folders) == {
        ".": "1",
        "p/a": "0.5",
        "p/a/b": "0.5",
        "p2": "1",
    }
    assert set(multiplies(propose(tree, wish(set={".": "3"})).folders).values()) == {"3"}


def test_of_two_set_folders_the_deeper_rules_whatever_the_order() -> None:
    tree = [Folder(path=p, num_images=10, multiply=Decimal(1)) for p in ("p/a", "p/b")]
    for asked in ({"p": "0.5", "p/a": "2"}, {"p/a": "2", "p": "0.5"}):
        assert multiplies(propose(tree, wish(set=asked)).folders) == {"p/a": "2", "p/b": "0.5"}


def test_images_with_a_multiply_of_their_own_count_first() -> None:
    pool = Folder(path="pool", num_images=110, multiply=Decimal(1), own=((Decimal("0.5"), 10),))
    (found,) = propose([pool], wish(per_epoch={"pool": 25})).folders
    assert plain(found.multiply) == "0.2"
    assert {found.picks_in(epoch) for epoch in range(10)} == {25}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"set": {"preservatoin": "1"}}, "did you mean preservation"),
        ({"per_epoch": {"nothing-like-it-at-all": 3}}, "folders with images: preservation, train"),
        ({"set": {"train": "-1"}}, "negative"),
        ({"per_epoch": {"train": -1}}, "negative"),
        ({"share": {"train": "1"}}, "above 0 and below 1"),
        ({"share": {"train": "0"}}, "above 0 and below 1"),
        ({"share": {"train": "0.5", "preservation": "0.5"}}, "add up to 1"),
        ({"share": {".": "0.5"}}, "no other folder trains"),
        (
            {"set": {"train": "1"}, "per_epoch": {"train": 3}},
            "claimed by both --set train and --per-epoch train",
        ),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(asked: dict[str, dict[str, str]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        propose(folders(preservation=1000, train=50), wish(**asked))  # type: ignore[arg-type]


def test_every_number_is_explained() -> None:
    train, pool = folders(train=50, pool=1000)
    pool = Folder(path="pool", num_images=1000, multiply=Decimal("0.025"))
    total = train.picks + pool.picks
    assert (
        sentence(train, total) == "train: 50 images × 1 = 50 picks in every epoch, 66.7% of the epoch; each image once"
    )
    assert sentence(pool, total) == (
        "pool: 1,000 images × 0.025 = 25 picks in every epoch, 33.3% of the epoch; "
        "every image is seen once in 40 epochs"
    )
    out = Folder(path="out", num_images=3, multiply=Decimal(0))
    assert sentence(out, total) == "out: 3 images × 0: left out of training"
    assert how_many(Folder(path="x", num_images=10, multiply=Decimal("0.05"))) == "1 pick in about every 2 epochs"
    assert math.isclose(float(Folder(path="x", num_images=3, multiply=Decimal("2.5")).picks), 7.5)


# --- on disk


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """50 subject images and 1000 of ground truth in two folders."""
    for folder, n in (("train/anna", 50), ("preservation/coco", 600), ("preservation/faces/ffhq", 400)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(n):
            (tmp_path / folder / f"person_({i}).jpg").touch()
    return tmp_path


def written(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text("utf-8") for p in sorted(root.rglob("multiply.txt"))}


def test_the_example_everyone_knows(photos: Path) -> None:
    result = balance(photos, per_epoch={"preservation": 25})
    assert written(photos) == {
        "preservation/coco/multiply.txt": "0.025\n",
        "preservation/faces/ffhq/multiply.txt": "0.025\n",
    }
    assert set(result.epochs) == {75}
    again = balance(photos)
    assert set(again.epochs) == {75}
    assert {part.folder: part.picks for part in again.parts} == {
        "preservation/coco": 15,
        "preservation/faces/ffhq": 10,
        "train/anna": 50,
    }
    assert not again.written


def test_writing_is_one_operation_that_can_be_undone(photos: Path) -> None:
    (photos / "train/anna/multiply.txt").write_text("2", "utf-8")
    balance(photos, set={"train": 1, "preservation": "0.5"})
    assert set(written(photos).values()) == {"1\n", "0.5\n"}
    undo(photos)
    assert written(photos) == {"train/anna/multiply.txt": "2"}


def test_asking_for_what_is_there_writes_nothing(photos: Path) -> None:
    balance(photos, per_epoch={"preservation": 25})
    result = balance(photos, per_epoch={"preservation": 25})
    assert (result.written, result.operation) == ((), None)


def test_looking_and_dry_runs_leave_no_trace(photos: Path) -> None:
    balance(photos)
    result = balance(photos, share={"preservation": "30%"}, dry_run=True)
    assert len(result.written) == 2
    assert math.isclose(sum(p.share for p in result.parts if p.folder.startswith("pres")), 0.3, abs_tol=1e-4)
    assert written(photos) == {}
    assert not (photos / ".edkit").exists()


def test_an_images_own_multiply_stands_and_is_counted(photos: Path) -> None:
    folder = photos / "preservation/coco"
    (folder / "person_(0).yaml").write_text("multiply: 3", "utf-8")
    (folder / "person_(1).yaml").write_text("multiply: 1", "utf-8")  # just what the folder says
    balance(photos, per_epoch={"preservation/coco": 25})
    assert written(photos) == {"preservation/coco/multiply.txt": "0.035118\n"}  # 21 of 598
    after = {part.folder: part for part in balance(photos).parts}
    assert 25 <= after["preservation/coco"].picks < 25.01


def test_multiply_txt_overrules_local_and_global_yaml(photos: Path) -> None:
    (photos / "global.yaml").write_text("multiply: 3", "utf-8")
    (photos / "train/anna/local.yaml").write_text("multiply: 2", "utf-8")
    assert {p.folder: plain(p.multiply) for p in balance(photos).parts}["preservation/coco"] == "3"
    assert {p.folder: plain(p.multiply) for p in balance(photos).parts}["train/anna"] == "2"
    balance(photos, set={".": 1})
    assert {plain(p.multiply) for p in balance(photos).parts} == {"1"}


def test_a_bad_multiply_txt_is_told_and_can_be_written_over(photos: Path) -> None:
    (photos / "train/anna/multiply.txt").write_text("0,5", "utf-8")
    assert any("use a point" in note for note in balance(photos).notes)
    assert balance(photos, set={"train": 1}).notes == ()
    assert written(photos) == {"train/anna/multiply.txt": "1\n"}


def test_a_folder_may_be_named_from_where_the_user_stands(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    balance(Path(photos.name), set={f"{photos.name}/train": 2})
    assert written(photos) == {"train/anna/multiply.txt": "2\n"}


@pytest.mark.parametrize("text", ["train", "=3", "train=", ""])
def test_an_assignment_needs_folder_and_number(text: str) -> None:
    with pytest.raises(UsageError, match="is not FOLDER=NUMBER"):
        assignments([text], "--set")


@pytest.mark.parametrize("value", ["many", "nan", "inf", "1e999999999"])
def test_a_number_must_be_one(photos: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"is no number|is more than"):
        balance(photos, set={"train": value})


def test_the_command_tells_the_same_to_people_and_to_programs(photos: Path) -> None:
    run = CliRunner().invoke(app, ["balance", str(photos), "--per-epoch", "preservation=25", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert {part["folder"]: part["multiply"] for part in told["parts"]} == {
        "preservation/coco": 0.025,
        "preservation/faces/ffhq": 0.025,
        "train/anna": 1.0,
    }
    run = CliRunner().invoke(app, ["balance", str(photos)])
    assert "1,050 images, 75 picks an epoch" in run.stdout
    assert "600 images × 0.025 = 15 picks in every epoch, 20.0% of the epoch" in run.stdout
