"""From image files through a small CLIP and a head to the trash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from edkit.clean.aesthetic_filter import AestheticFiltered, aesthetic_filter, share  # noqa: E402
from edkit.data.errors import BadInput, UsageError  # noqa: E402
from edkit.data.journal import undo, why  # noqa: E402


@pytest.fixture(scope="module")
def model(small_clip: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random CLIP and a random head, by path."""
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(1)
    torch.save({"weight": torch.randn(1, 24), "bias": torch.tensor([5.65])}, folder / "head.pth")
    torch.save({"weight": torch.randn(1, 24), "bias": torch.tensor([5.0])}, folder / "other.pth")
    return {**small_clip, "head": str(folder / "head.pth")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(8):
        cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((64, 64)).save(tmp_path / f"{seed}.png")
    Image.open(tmp_path / "0.png").save(tmp_path / "0 again.png", compress_level=1)
    (tmp_path / "3.txt").write_text("a caption", encoding="utf-8")
    return tmp_path


def names(result: AestheticFiltered, *, kept: bool) -> list[str]:
    return sorted(one.path.name for one in result.scores if one.kept is kept)


def test_top_keeps_the_best_share(photos: Path, model: dict[str, str]) -> None:
    result = aesthetic_filter(photos, top=0.5, **model)  # type: ignore[arg-type]
    scores = [one.score for one in result.scores]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 8
    assert (result.num_images, result.num_kept) == (9, 5)
    assert sorted(p.name for p in photos.glob("*.png")) == names(result, kept=True)


def test_equal_pictures_score_equal(photos: Path, model: dict[str, str]) -> None:
    result = aesthetic_filter(photos, limit=9, **model)  # type: ignore[arg-type]
    scores = {one.path.name: one.score for one in result.scores}
    assert scores["0.png"] == pytest.approx(scores["0 again.png"], abs=1e-3)


def test_the_least_score_is_five_unless_said(photos: Path, model: dict[str, str]) -> None:
    plain = aesthetic_filter(photos, dry_run=True, **model)  # type: ignore[arg-type]
    said = aesthetic_filter(photos, min_score=5.0, dry_run=True, **model)  # type: ignore[arg-type]
    assert plain.scores == said.scores
    assert 0 < plain.num_kept < 9
    assert all(one.kept is (one.score >= 5) for one in plain.scores)


def test_the_trashed_image_knows_its_score_and_comes_back(photos: Path, model: dict[str, str]) -> None:
    result = aesthetic_filter(photos, limit=1, **model)  # type: ignore[arg-type]
    worst = result.scores[-1]
    (decision,) = why(worst.path).decisions
    assert decision.reason == f"aesthetic score {worst.score:.2f} (head.pth, small-clip); kept: the best 1"
    assert decision.facts["aesthetic"] == pytest.approx(worst.score, abs=1e-4)
    undo(photos)
    assert len(list(photos.glob("*.png"))) == 9
    assert (photos / "3.txt").exists()


def test_a_second_head_costs_no_second_pass(
    photos: Path, model: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = aesthetic_filter(photos, limit=9, **model)  # type: ignore[arg-type]
    monkeypatch.delattr(open_clip, "create_model_and_transforms")
    other = {**model, "head": model["head"].replace("head.pth", "other.pth")}
    second = aesthetic_filter(photos, limit=9, **other)  # type: ignore[arg-type]
    assert [one.score for one in second.scores] != [one.score for one in first.scores]


def test_a_broken_image_stays_and_is_reported(photos: Path, model: dict[str, str]) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    result = aesthetic_filter(photos, limit=1, **model)  # type: ignore[arg-type]
    assert [Path(one.where).name for one in result.broken] == ["broken.png"]
    assert (photos / "broken.png").exists()


def test_a_head_for_another_model_is_refused_before_any_image_is_read(
    photos: Path, model: dict[str, str], tmp_path: Path
) -> None:
    torch.save({"weight": torch.zeros(1, 7)}, tmp_path / "seven.pth")
    with pytest.raises(BadInput, match="takes 7 numbers"):
        aesthetic_filter(photos, **{**model, "head": str(tmp_path / "seven.pth")})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"min_score": 5.0, "limit": 3}, {"top": 0.0}, {"limit": 0}, {"min_score": float("nan")}]
)
def test_contradictions_are_usage_errors(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        aesthetic_filter(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("50%", 0.5), ("0.25", 0.25), ("100 %", 1.0), ("12.5%", 0.125)])
def test_a_share_is_read_as_people_write_it(text: str, value: float) -> None:
    assert share(text) == value


@pytest.mark.parametrize("text", ["0%", "120%", "half", "", "nan"])
def test_no_share_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="50%"):
        share(text)
