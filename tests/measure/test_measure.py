"""Facts of many files: measured once, kept by content, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edkit.data.catalog import Catalog
from edkit.data.errors import Problem
from edkit.measure import measure as module
from edkit.measure.facts import FACTS
from edkit.measure.measure import measure

BAR_SCRIPT = """
import sys
from pathlib import Path
from edkit.data.catalog import Catalog
from edkit.measure import measure as module

class Bar:
    def task(self, what, total=None, unit="images"):
        from contextlib import contextmanager
        @contextmanager
        def bar():
            def advance(n=1, note=""):
                if what == "measuring":
                    print("moved", flush=True)
            yield advance
        return bar()
    def say(self, line):
        print(line, flush=True)

module._KEEP_EVERY = 16

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Catalog.open(folder) as catalog:
        paths = sorted(folder.glob("in/*"))
        module.measure(catalog, paths, ["phash", "sharpness"], workers=2, progress=Bar())
"""


NAMES = ("width", "sharpness", "phash")


def draw(folder: Path, number: int, size: int = 96) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        path = folder / f"{seed:04}.png"
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path, compress_level=0)
        paths.append(path)
    return paths


def test_a_second_run_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw(tmp_path / "in", 5)
    with Catalog.open(tmp_path) as catalog:
        first = measure(catalog, paths, NAMES)
    monkeypatch.delattr(module, "measure_file")
    with Catalog.open(tmp_path) as catalog:
        assert measure(catalog, paths, NAMES) == first


def test_processes_and_one_process_measure_the_same(tmp_path: Path) -> None:
    paths = draw(tmp_path / "in", 70)
    (tmp_path / "in" / "0005.png").write_bytes(b"broken")
    results = []
    for workers in (1, 2):
        with Catalog.open(tmp_path, state_dir=tmp_path / f"state{workers}") as catalog:
            results.append(measure(catalog, paths, NAMES, workers=workers))
    assert results[0] == results[1]
    assert [path.name for path, one in results[0].items() if isinstance(one, Problem)] == ["0005.png"]


def test_a_renamed_file_keeps_its_facts_and_a_changed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw(tmp_path / "in", 2)
    seen: list[str] = []
    true_measure = module.measure_file
    monkeypatch.setattr(
        module,
        "measure_file",
        lambda path, *a, **k: seen.append(Path(path).name) or true_measure(path, *a, **k),
    )
    with Catalog.open(tmp_path) as catalog:
        measure(catalog, paths, NAMES)
        renamed = paths[0].rename(tmp_path / "in" / "new name.png")
        Image.new("RGB", (50, 40)).save(paths[1])
        seen.clear()
        found = measure(catalog, [renamed, paths[1]], NAMES)
    assert seen == ["0001.png"]
    changed = found[paths[1]]
    assert not isinstance(changed, Problem) and changed["width"] == 50


def test_equal_files_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = draw(tmp_path / "in", 1)
    copy = path.with_name("copy.png")
    copy.write_bytes(path.read_bytes())
    calls: list[object] = []
    true_measure = module.measure_file
    monkeypatch.setattr(module, "measure_file", lambda path, *a, **k: calls.append(path) or true_measure(path, *a, **k))
    with Catalog.open(tmp_path) as catalog:
        found = measure(catalog, [path, copy], NAMES)
    assert len(calls) == 1
    assert found[path] == found[copy]


def test_a_broken_image_is_a_fact_and_the_run_goes_on(tmp_path: Path) -> None:
    paths = draw(tmp_path / "in", 3)
    paths[1].write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with Catalog.open(tmp_path) as catalog:
        found = measure(catalog, [*paths, tmp_path / "missing.png"], NAMES)
    problems = [one for one in found.values() if isinstance(one, Problem)]
    assert [Path(one.where).name for one in problems] == ["0001.png", "missing.png"]
    assert all(one.level == "error" and one.code == "unreadable-image" for one in problems)


def test_facts_are_only_measured_where_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw(tmp_path / "in", 4)
    with Catalog.open(tmp_path) as catalog:
        measure(catalog, paths[:3], NAMES)
        seen: list[str] = []
        true_measure = module.measure_file
        monkeypatch.setattr(
            module,
            "measure_file",
            lambda path, *a, **k: seen.append(Path(path).name) or true_measure(path, *a, **k),
        )
        measure(catalog, paths, NAMES)
    assert seen == ["0003.png"]


def test_a_file_that_kills_its_process_is_reported(tmp_path: Path) -> None:
    paths = draw(tmp_path / "in", 70)
    script = tmp_path / "run.py"
    script.write_text(
        """
import os, sys
from pathlib import Path
from edkit.data.catalog import Catalog
from edkit.data.errors import Problem
from edkit.measure import facts, measure as module

true_phash = facts.View.phashes.func
def deadly(view):
    if len(view.data) == 999:
        os._exit(9)
    return true_phash(view)
facts.View.phashes = property(deadly)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Catalog.open(folder) as catalog:
        found = module.measure(catalog, sorted(folder.glob("in/*")), ["phash"], workers=2)
    print(len(found), [Path(p.where).name for p in found.values() if isinstance(p, Problem)])
""",
        encoding="utf-8",
    )
    data = paths[40].read_bytes()
    small = paths[40]
    Image.new("RGB", (8, 8)).save(small)
    small.write_bytes(small.read_bytes() + b"\0" * (999 - small.stat().st_size))
    assert len(data) != 999
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "70 ['0040.png']"


def test_a_killed_run_costs_only_what_was_not_yet_kept(tmp_path: Path) -> None:
    draw(tmp_path / "in", 200, size=300)
    script = tmp_path / "run.py"
    script.write_text(BAR_SCRIPT, encoding="utf-8")
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert run.stdout is not None
    for _ in range(70):
        run.stdout.readline()
    run.kill()
    run.wait(timeout=30)
    paths = sorted((tmp_path / "in").iterdir())
    with Catalog.open(tmp_path) as catalog:
        kept = catalog.facts(catalog.content_ids(paths).values(), [FACTS["phash"].key])
        assert 48 <= len(kept) < 200
        found = measure(catalog, paths, ["phash", "sharpness"])
    assert len(found) == 200 and not any(isinstance(one, Problem) for one in found.values())


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    draw(tmp_path / "in", 300, size=300)
    script = tmp_path / "run.py"
    script.write_text(
        BAR_SCRIPT,
        encoding="utf-8",
    )
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    for _ in range(40):
        run.stdout.readline()
    os.killpg(run.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
    started = time.monotonic()
    run.wait(timeout=30)
    assert time.monotonic() - started < 20  # under a second on a quiet machine
    with Catalog.open(tmp_path) as catalog:
        ids = catalog.content_ids(sorted((tmp_path / "in").iterdir()))
        kept = catalog.facts(ids.values(), [FACTS["phash"].key])
    assert 40 <= len(kept) < 300
