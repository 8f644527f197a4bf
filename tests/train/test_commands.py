"""The commands: train, generate and init-model as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edkit.cli.app import app
from edkit.data.errors import BadInput, UsageError


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_resume_and_generate(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ("--batch-size", 4, "--set", "tensorboard=false", "--set", "num_threads=1", "--device", "cpu")
    words = ("train", "--data-root", "pictures", "--model", model, "--out", "run", "--lr", "1e-3", *quick)
    planned = run(*words, "--max-epochs", 2, "--dry-run")
    assert "batch_size" in planned and "32x32" in planned and "4 steps of 4 images" in planned
    assert not Path("run").exists()
    done = json.loads(run(*words, "--max-epochs", 2, "--json"))
    assert (done["step"], done["resumed_from"], done["settings"]["lr"]) == (4, None, 1e-3)
    # the run's own settings hold, wherever the command is given from
    monkeypatch.chdir(pictures)
    more = json.loads(
        run("train", "--resume", tmp_path / "run", "--max-epochs", 3, "--accept-changes", "--json", "--quiet")
    )
    assert (more["step"], more["resumed_from"]) == (6, 4)
    drawn = run("generate", tmp_path / "run" / "export", "--prompt", "red", "--out", tmp_path / "out", "--steps", 1)
    assert (tmp_path / "out" / "red_(1).png").is_file() and "red_(1).png" in drawn


def test_mistakes_are_told(model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no setting 'batchsize'.*batch_size"):
        run("train", "--data-root", pictures, "--model", model, "--set", "batchsize=3")
    with pytest.raises(UsageError, match="only with --resume"):
        run("train", tmp_path, "--data-root", pictures, "--model", model)
    with pytest.raises(BadInput, match="no such folder or manifest"):
        run("train", "--data-root", tmp_path / "nowhere", "--model", model, "--out", tmp_path / "run")


def test_init_model_says_what_it_made(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    assert "unet 1.9 M" in run("init-model", "sd1", "--size", "tiny", "--out", tmp_path / "tiny")
