"""A run's measured drift becomes new multiply.txt values, with their reason, and an undo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edkit.balance.balance import balance
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import undo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten subject images, and a hundred of ground truth at 0.025: 2.5 picks an epoch."""
    for folder, n in (("subject", 10), ("truth", 100)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (i, 2 * i, 90)).save(tmp_path / "set" / folder / f"a thing_({i}).png")
    (tmp_path / "set/truth/multiply.txt").write_text("0.025\n")
    return tmp_path / "set"


def measured(run: Path, *, learned: float = 0.3, drift: float) -> Path:
    run.mkdir(exist_ok=True)
    early = {"step": 100, "strength": 1.0, "learned": 0.1, "drift": 0.0}
    last = {"step": 200, "strength": 1.0, "learned": learned, "drift": drift}
    text = json.dumps({"max_drift": 0.05, "candidates": [last, early]})
    (run / "choose.json").write_text(text, encoding="utf-8")
    return run


def test_a_run_that_forgot_gets_twice_the_ground_truth(root: Path, tmp_path: Path) -> None:
    run = measured(tmp_path / "run", drift=0.12)
    shown = balance(root, from_run=run, dry_run=True)
    assert (root / "truth/multiply.txt").read_text() == "0.025\n"
    (part,) = [part for part in shown.parts if part.folder == "truth"]
    assert str(part.multiply) == "0.05"
    assert part.reason == "drift +12.0% at step 200, 5.0% allowed: 2 times the picks"
    balance(root, from_run=run)
    assert (root / "truth/multiply.txt").read_text() == "0.05\n"
    undo(root)
    assert (root / "truth/multiply.txt").read_text() == "0.025\n"


def test_more_than_one_for_one_is_no_cure(root: Path, tmp_path: Path) -> None:
    run = measured(tmp_path / "run", drift=0.12)
    (root / "truth/multiply.txt").write_text("0.08\n")
    assert (
        str(next(p for p in balance(root, from_run=run, dry_run=True).parts if p.folder == "truth").multiply) == "0.1"
    )
    (root / "truth/multiply.txt").write_text("0.1\n")
    found = balance(root, from_run=run)
    assert not found.written and "train fewer steps" in found.notes[0]


@pytest.mark.parametrize(
    ("learned", "drift", "says"), [(0.3, 0.04, "learned and kept"), (-0.1, 0.2, "learned nothing")]
)
def test_the_balance_stays_where_it_is_not_the_trouble(
    root: Path, tmp_path: Path, learned: float, drift: float, says: str
) -> None:
    found = balance(root, from_run=measured(tmp_path / "run", learned=learned, drift=drift))
    assert not found.written and says in found.notes[0]


def test_mistakes_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not measured.*edkit choose"):
        balance(root, from_run=tmp_path / "run")
    run = measured(tmp_path / "run", drift=0.12)
    with pytest.raises(UsageError, match="by itself"):
        balance(root, from_run=run, equalize=True)
    (root / "truth/multiply.txt").unlink()
    with pytest.raises(UsageError, match=r"no folder trains as ground truth.*--ground-truth"):
        balance(root, from_run=run)
    (run / "choose.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInput, match="no figures"):
        balance(root, from_run=run, ground_truth=["truth"])
