"""Choose names the model to use, and why, and what is wrong with the ones after it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edkit.data.errors import BadInput, UsageError
from edkit.prove.choose import Candidate, choose, exports, headline, pick, sentence


def at(step: int, learned: float, drift: float, **more: Any) -> Candidate:
    plain: dict[str, Any] = {"bled": None, "subject": None, "world": None, "strength": 1.0}
    plain |= {"learned_range": (learned, learned), "drift_range": (drift, drift)}
    return Candidate(
        model=Path(f"step-{step}"), step=step, learned=learned, drift=drift, kept=drift <= 0.05, **(plain | more)
    )


def test_of_those_that_kept_the_one_that_learned_most() -> None:
    run = [at(400, 0.1, 0.01), at(800, 0.3, 0.03), at(1200, 0.4, 0.09)]
    best = pick(run, max_drift=0.05)
    assert best.step == 800
    said = sentence(run, best, max_drift=0.05, judge="")
    assert said == (
        "step 800: the loss on training images fell by 30%, on ground truth it moved by +3.0%; "
        "step 1,200 learned more, but drift +9.0%"
    )


def test_one_that_bled_is_no_choice() -> None:
    run = [at(400, 0.1, 0.01, bled=False), at(800, 0.3, 0.03, bled=True)]
    best = pick(run, max_drift=0.05)
    assert best.step == 400
    assert "step 800 learned more, but its class becomes the subject" in sentence(run, best, max_drift=0.05, judge="")


def test_where_none_kept_the_least_bad_of_those_that_learned() -> None:
    run = [at(1, 0.01, 0.06), at(2, 0.25, 0.1), at(3, 0.4, 0.3)]
    best = pick(run, max_drift=0.05)
    assert best.step == 2  # the first drifted less, and learned next to nothing
    assert "none of 3 kept the drift below 5.0%" in sentence(run, best, max_drift=0.05, judge="")


def test_where_all_bled_the_choice_is_no_recommendation() -> None:
    run = [at(1, 0.2, 0.01, bled=True), at(2, 0.4, 0.09, bled=False)]
    best = pick(run, max_drift=0.05)
    assert headline(best) == "At best, step 1"
    assert sentence(run, best, max_drift=0.05, judge="").endswith(
        "its class becomes the subject, and none that learned kept the drift below 5.0% and its class clear"
    )


def test_where_none_learned_it_says_so() -> None:
    run = [at(1, -3.0, 2.0), at(2, -14.0, 48.0)]
    best = pick(run, max_drift=0.05)
    assert best.step == 1 and sentence(run, best, max_drift=0.05, judge="").startswith("none of 2 learned anything")


def test_the_readers_figures_are_said_where_there_are_any() -> None:
    run = [at(1200, 0.3, 0.02, strength=0.8, subject=0.91, world=0.97)]
    assert sentence(run, run[0], max_drift=0.05, judge="reader") == (
        "step 1,200 at strength 0.8: subject 91%, old world 97% (drift +2.0%); no other learned more"
    )


def test_every_export_of_a_run_is_tried(data: Path, ruined: Path) -> None:
    assert [step for step, _ in exports(ruined)] == [2, 4]
    found = choose(ruined, preservation=data / "old", num_images=4, device="cpu")
    assert [one.step for one in found.candidates] == [2, 4]
    assert found.best in found.candidates and found.says in found.page.read_text(encoding="utf-8")
    assert found.tried_on == ("learned: 4 of 6 images, seen.", "drift: 4 of 10 images, held out of training.")
    assert all(one.drift_range[0] < one.drift < one.drift_range[1] for one in found.candidates)


def test_an_export_has_the_step_that_it_names_whatever_the_checkpoints_say(ruined: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ruined, run)
    shutil.rmtree(run / "export")
    shutil.copytree(run / "exports/step-00000002", run / "export")  # the run went on, and has not ended since
    for state in run.glob("checkpoints/*/state.json"):
        state.write_text("{", encoding="utf-8")
    assert exports(run)[0] == (2, run / "exports/step-00000002")
    shutil.rmtree(run / "exports")
    assert exports(run) == [(2, run / "export")]


def test_a_lora_is_tried_at_several_strengths(data: Path, lora: Path) -> None:
    found = choose(lora, preservation=data / "old", strengths=[0.5, 1.0], num_images=4, device="cpu", seed=-1)
    assert found.seed >= 0  # drawn, and recorded
    assert [(one.step, one.strength) for one in found.candidates] == [(4, 0.5), (4, 1.0)]


def test_mistakes_are_told(tmp_path: Path, ruined: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        choose(tmp_path)
    with pytest.raises(UsageError, match=r"does not say what was to be kept.*--preservation"):
        choose(ruined)
    for judged in ({"class_prompts": ["a star"]}, {"clip": "ViT-B-32"}):
        with pytest.raises(UsageError, match=r"judges pictures, and none are drawn \(--num-pictures 12\)"):
            choose(ruined, preservation=ruined, **judged)  # type: ignore[arg-type]
    (tmp_path / "settings.toml").write_text('data_root = "x"\nmodel = "nano"\n', encoding="utf-8")
    with pytest.raises(BadInput, match="no export"):
        choose(tmp_path, train=tmp_path, preservation=tmp_path)
