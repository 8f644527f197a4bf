"""What fails a rule goes to the trash with the rule and its value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from edkit.clean.filter import count_or_share, filter
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import MissingExtra, UsageError
from edkit.data.journal import undo, why

Draw = Callable[..., Path]


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_file())


@pytest.fixture
def mixed(tmp_path: Path, draw: Draw) -> Path:
    draw("good.png", 1, (320, 240))
    draw("small.png", 2, (64, 48))
    draw("blurred.png", 3, (320, 240), f=lambda im: im.filter(ImageFilter.GaussianBlur(9)))
    Image.new("RGB", (320, 240)).save(tmp_path / "black.png")
    (tmp_path / "small.txt").write_text("a caption", encoding="utf-8")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path


def test_each_rule_drops_what_fails_it(mixed: Path) -> None:
    result = filter(mixed, ["width >= 100", "brightness > 0.05 and contrast > 0.05", "sharpness >= 0.1"])
    assert left(mixed) == ["broken.jpg", "good.png"]
    assert {one.path.name: one.rule for one in result.dropped} == {
        "black.png": "brightness > 0.05 and contrast > 0.05",
        "blurred.png": "sharpness >= 0.1",
        "small.png": "width >= 100",
    }
    assert result.num_images == 4 and result.num_kept == 1
    assert [tally.num_fail for tally in result.tallies] == [1, 1, 2]


def test_reason_and_value_are_remembered(mixed: Path) -> None:
    filter(mixed, ["width >= 100"])
    (decision,) = why(mixed / "small.png").decisions
    assert decision.reason == "width is 64; the rule is width >= 100"
    assert decision.facts == {"width": 64}
    assert not (mixed / "small.txt").exists()


def test_a_mask_is_no_image_and_goes_with_its_own(tmp_path: Path, draw: Draw) -> None:
    for name, size in (("good", 320), ("small", 64)):
        draw(f"{name}.png", 1, (size, size))
        Image.new("L", (16, 16)).save(tmp_path / f"{name}-masklabel.png")
    result = filter(tmp_path, ["width >= 100"])
    assert result.num_images == 2 and left(tmp_path) == ["good-masklabel.png", "good.png"]
    assert [one.reason for one in why(tmp_path / "small-masklabel.png").decisions] == [
        "mask of small.png: width is 64; the rule is width >= 100"
    ]


def test_what_can_not_be_measured_stays_and_is_reported(mixed: Path) -> None:
    result = filter(mixed, ["width >= 100000"])
    assert [Path(one.where).name for one in result.broken] == ["broken.jpg"]
    assert left(mixed) == ["broken.jpg"]


def test_spans_tell_the_range_of_kept_and_dropped(mixed: Path) -> None:
    spans = {span.side: span for span in filter(mixed, ["width >= 100"], dry_run=True).spans}
    assert (spans["kept"].num_images, spans["kept"].lowest, spans["kept"].highest) == (3, 320, 320)
    assert (spans["dropped"].num_images, spans["dropped"].median) == (1, 64)


def test_a_dry_run_changes_nothing_and_undo_reverts(mixed: Path) -> None:
    before = {path: path.read_bytes() for path in mixed.iterdir()}
    dry = filter(mixed, ["width >= 100"], dry_run=True)
    assert {path: path.read_bytes() for path in mixed.iterdir()} == before
    assert filter(mixed, ["width >= 100"]).dropped == dry.dropped
    undo(mixed)
    assert {path: path.read_bytes() for path in mixed.iterdir() if path.is_file()} == before


def test_a_wrong_rule_stops_before_anything_is_measured(mixed: Path) -> None:
    with pytest.raises(UsageError, match="did you mean width"):
        filter(mixed, ["widht > 3"])
    with pytest.raises(UsageError, match="no rule"):
        filter(mixed, [])
    assert not (mixed / ".edkit").exists()


def test_real_photos_kept_and_their_blurred_copies_dropped(tmp_path: Path, shared_data: Path) -> None:
    photos = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:10]
    for path in photos:
        with Image.open(path) as im:
            im.save(tmp_path / f"sharp {path.name}", quality=95)
            im.filter(ImageFilter.GaussianBlur(3)).save(tmp_path / f"blurred {path.name}", quality=95)
    filter(tmp_path, ["sharpness >= 0.1"])
    assert left(tmp_path) == [f"sharp {path.name}" for path in photos]


@pytest.fixture
def sourced(tmp_path: Path, draw: Draw) -> Path:
    """Three images of the ledger, one of nowhere; captions in sidecars and names."""
    sources = {
        "a dog_(1).png": ("https://live.staticflickr.com/1.png", "CC BY 4.0", "Ann"),
        "a cat_(1).png": ("https://example.org/2.png", "CC0", None),
        "a woman, sea_(1).png": ("https://example.org/3.png", None, None),
    }
    for seed, name in enumerate([*sources, "IMG_0001.png"]):
        draw(name, seed)
    with Catalog.open(tmp_path) as catalog:
        ids = catalog.content_ids([tmp_path / name for name in sources])
        catalog.ledger_add(
            LedgerRow(outcome="ok", url=url, licence=licence, author=author, sha256=ids[tmp_path / name])
            for name, (url, licence, author) in sources.items()
        )
    return tmp_path


def test_rules_over_the_source_decide_only_where_it_is_known(sourced: Path) -> None:
    result = filter(sourced, ['licence in ("CC0", "PDM")'], dry_run=True)
    assert [one.path.name for one in result.dropped] == ["a dog_(1).png"]
    assert result.dropped[0].reason == 'licence is "CC BY 4.0"; the rule is licence in ("CC0", "PDM")'
    assert {one.path.name: one.missing for one in result.undecided} == {
        "a woman, sea_(1).png": ("licence",),
        "IMG_0001.png": ("licence",),
    }
    assert result.num_kept == 3 and result.tallies[0].num_undecided == 2
    strict = filter(sourced, ['licence in ("CC0", "PDM")'], missing="drop")
    assert left(sourced) == ["a cat_(1).png"]
    assert strict.num_kept == 1
    (decision,) = why(sourced / "IMG_0001.png").decisions
    assert decision.reason.startswith("licence is not known; the rule is licence in")
    undo(sourced)
    assert len(left(sourced)) == 4


def test_rules_over_host_author_and_captions(sourced: Path) -> None:
    def dropped(rule: str, **more: object) -> list[str]:
        found = filter(sourced, [rule], dry_run=True, **more)  # type: ignore[arg-type]
        return [one.path.name for one in found.dropped]

    assert dropped("host not contains flickr") == ["a dog_(1).png"]
    assert dropped("author is known") == ["IMG_0001.png", "a cat_(1).png", "a woman, sea_(1).png"]
    assert dropped("not caption has man") == []
    assert dropped("caption not contains man") == ["a woman, sea_(1).png"]
    assert dropped("num_words < 3") == ["a woman, sea_(1).png"]
    assert dropped("num_tags == 0 or caption is missing") == ["a woman, sea_(1).png"]
    assert dropped('name matches "^a"') == ["IMG_0001.png"]
    assert dropped('folder == "."') == []


def test_an_address_that_is_none_has_no_host(sourced: Path) -> None:
    with Catalog.open(sourced) as catalog:
        sha = catalog.content_ids([sourced / "IMG_0001.png"])[sourced / "IMG_0001.png"]
        catalog.ledger_add([LedgerRow(outcome="ok", url="http://[x/1.jpg", sha256=str(sha))])
    result = filter(sourced, ["host contains example"], dry_run=True)
    assert [one.path.name for one in result.undecided] == ["IMG_0001.png"]


def test_drop_is_the_other_way_round(mixed: Path) -> None:
    filter(mixed, drop=["width < 100", "brightness < 0.05"])
    assert left(mixed) == ["blurred.png", "broken.jpg", "good.png"]
    (decision,) = why(mixed / "small.png").decisions
    assert decision.reason == "width is 64; dropped is width < 100"


def test_top_keeps_the_best_by_a_fact_and_says_so(mixed: Path) -> None:
    result = filter(mixed, top=2, by="sharpness")
    assert result.num_kept == 2
    sharpest = {one.path.name for one in result.dropped}
    assert "blurred.png" in sharpest and "black.png" in sharpest
    (decision,) = why(mixed / "blurred.png").decisions
    assert decision.reason.endswith("kept are the 2 highest")
    assert decision.facts["sharpness"] < 0.1  # type: ignore[operator]
    undo(mixed)
    assert [one.path.name for one in filter(mixed, top=0.25, by="width", lowest=True, dry_run=True).dropped] != []
    assert filter(mixed, top=0.25, by="width", lowest=True, dry_run=True).num_kept == 1
    assert filter(mixed, ["width > 100"], limit=1, by="brightness", dry_run=True).num_kept == 1


def test_limit_alone_is_a_fair_draw_that_a_seed_repeats(tmp_path: Path, draw: Draw) -> None:
    for seed in range(8):
        draw(f"{seed}.png", seed, (64, 64))
    first = [one.path.name for one in filter(tmp_path, limit=4, seed=1, dry_run=True).dropped]
    assert len(first) == 4
    assert [one.path.name for one in filter(tmp_path, limit=4, seed=1, dry_run=True).dropped] == first
    assert [one.path.name for one in filter(tmp_path, limit=4, seed=2, dry_run=True).dropped] != first


def test_a_seed_that_is_drawn_is_recorded(tmp_path: Path, draw: Draw) -> None:
    for seed in range(3):
        draw(f"{seed}.png", seed, (64, 64))
    result = filter(tmp_path, limit=2, seed=-1, dry_run=True)
    assert result.seed >= 0
    (same,) = filter(tmp_path, limit=2, seed=result.seed, dry_run=True).dropped
    assert result.dropped == (same,) and same.reason == f"not among the 2 drawn (seed {result.seed})"


def test_an_image_without_the_deciding_value_stays(sourced: Path) -> None:
    result = filter(sourced, top=1, by="num_words", dry_run=True)
    assert [one.path.name for one in result.undecided] == ["IMG_0001.png"]
    assert {one.path.name for one in result.dropped} == {"a dog_(1).png", "a cat_(1).png"}


def test_a_rule_over_a_models_fact_says_which_extra_it_needs(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="nsfw"):
        filter(mixed, ["unsafe < 0.2"])
    assert "small.png" in left(mixed)


def test_a_rule_over_captions_alone_leaves_what_is_no_image(mixed: Path) -> None:
    result = filter(mixed, drop=["num_words < 100"])
    assert [Path(one.where).name for one in result.broken] == ["broken.jpg"]
    assert left(mixed) == ["broken.jpg"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 3}, "--by"),
        ({"by": "width"}, "how many stay"),
        ({"top": 3, "by": "format"}, "its values are words"),
        ({"top": 3, "by": "widht"}, "did you mean width"),
        ({"top": 3, "limit": 3, "by": "width"}, "give one of them"),
        ({"limit": 0}, "keeps nothing"),
        ({"top": 1.5, "by": "width"}, "keeps nothing"),
    ],
)
def test_contradictions_are_told(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        filter(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("1000", 1000), ("1,000", 1000), ("50%", 0.5), ("0.25", 0.25), ("1", 1)])
def test_a_count_or_a_share(text: str, value: float) -> None:
    assert count_or_share(text) == value and type(count_or_share(text)) is type(value)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "many", "-3", "1.5", ""])
def test_no_count_and_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="50%"):
        count_or_share(text)
