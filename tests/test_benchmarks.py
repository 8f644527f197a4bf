"""What the benchmarks' harness does with what scripts print; the scripts themselves are run by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """benchmarks/run.py with two themes: one that works and one that fails."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import run as harness

    scripts = tmp_path / "scripts"
    scripts.mkdir()
    told = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); from bench import tell\n"
    figures = "tell('walk', edkit=2.0, unit='s', peer='a dog', value=3.0, aim='1.0', reached=True)\n"
    (scripts / "good.py").write_text(f"{told}{figures}print('| a | table |')\n", encoding="utf-8")
    (scripts / "bad.py").write_text("print('half')\nraise SystemExit('no such disk')\n", encoding="utf-8")
    monkeypatch.setattr(harness, "HERE", scripts)
    monkeypatch.setattr(harness, "THEMES", {"bad": harness.Theme(), "good": harness.Theme()})
    yield harness
    sys.modules.pop("run"), sys.modules.pop("bench", None)


def asked(harness: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    harness.main()


def test_a_page_keeps_its_prose_and_gets_the_new_figures(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "good.md"
    page.write_text(f"# Walking\n\nWhy.\n\n{run.BEGIN}\n\nold\n\n{run.END}\n\n## What did not work\n", encoding="utf-8")
    asked(run, monkeypatch, "good", "--pages", str(tmp_path))
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "`python benchmarks/good.py`" in text and "| a | table |" in text
    assert text.startswith("# Walking\n\nWhy.\n\n") and text.endswith("\n\n## What did not work\n")
    (row,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (row["stage"], row["ratio"], row["theme"]) == ("walk", 1.5, "good")
    assert "| [walk](good.md) | 2.00 s | a dog: 3.00 s | 1.50 |" in (tmp_path / "summary.md").read_text(
        encoding="utf-8"
    )


def test_a_theme_that_fails_is_named_and_the_others_go_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed: bad"):
        asked(run, monkeypatch, "--pages", str(tmp_path))
    said = capsys.readouterr().err
    assert "bad: failed with 1: no such disk" in said and "good: done" in said
    assert (tmp_path / "good.md").exists()


def test_every_theme_has_a_script() -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import run as harness
    finally:
        sys.path.remove(str(SCRIPTS))
    assert [name for name in harness.THEMES if not (SCRIPTS / f"{name}.py").is_file()] == []
