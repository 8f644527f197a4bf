"""Killed, interrupted or out of room: the same command goes on, to the folder an uninterrupted run makes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edkit.data.catalog import Catalog
from edkit.data.story import gatherings
from edkit.gather.scrape import scrape

Laion = Callable[..., Path]
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills")
QUICK: dict[str, Any] = {"allow_private_hosts": True, "retries": 0, "per_host": 64}
COMMAND = [sys.executable, "-m", "edkit", "scrape"]
POLITE = ["--allow-private-hosts", "--retries", "0", "--per-host", "64"]


def tree(out: Path) -> dict[str, str]:
    """Name -> hash of all that stands in a folder (the state aside)."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir()) if p.name != ".edkit"}


def kept(out: Path) -> list[tuple[object, ...]]:
    """The ledger's rows of what was kept: all that doesn't tell the time."""
    with Catalog.open(out, write=False) as catalog:
        rows = list(catalog.ledger(outcome="ok"))
    return [(r.url, r.row, r.caption, r.sha256, r.num_bytes, r.width, r.licence, r.path and r.path.name) for r in rows]


KILL_WHILE_IT_WORKS = """
import contextlib, os, random, signal, sys, time
from pathlib import Path
import aiohttp, PIL.Image, pyarrow.compute, pyarrow.parquet
import edkit.gather.scrape
from edkit.cli.app import main
times, out, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
draw, kills = random.Random(555), 0
def num_files():
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir(out)) + (len(os.listdir(out / ".incoming")) if (out / ".incoming").exists() else 0)
    return 0
for _ in range(times):
    enough = num_files() + draw.randrange(60)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.argv = command
        main()
    while num_files() < enough and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.003)
    time.sleep(draw.random() * 0.02)
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
print(kills)
"""


def killed(command: list[str], out: Path, *, times: int) -> int:
    """Run a command that many times, each killed at a drawn moment of its work; how many kills hit.

    Each is a process of its own, forked from one that has imported all: starting takes longer than the work.
    """
    driver = [sys.executable, "-c", KILL_WHILE_IT_WORKS, str(times), str(out), *command]
    return int(subprocess.run(driver, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.fixture
def thousands(web: Any, laion: Laion) -> Path:
    """Two thousand tiny pictures: some slow, some gone, some twice, many captions alike or unfit for names."""
    paths = []
    for i in range(2000):
        if i % 700 == 7:
            paths.append(f"/slow/{i}")
        elif i % 19 == 3:
            paths.append(f"/404?{i}")
        else:
            paths.append(f"/image/{i % 1800}?{i}")
    texts = [f"a {('dog', 'Dog', 'red/blue thing', 'straße ☕')[i % 4]}" for i in range(len(paths))]
    return laion([web.url(path) for path in paths], texts, license=["cc0"] * len(paths))


@FORKS
def test_killed_twenty_times_it_ends_as_if_it_had_never_been(web: Any, thousands: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    expected = scrape([thousands], out=whole, limit=1000, **QUICK)
    assert expected.kept == 1000
    command = ["edkit", "scrape", str(thousands), "--out", str(out), "--limit", "1000", *POLITE]
    assert killed(command, out, times=20) >= 10
    last = scrape([thousands], out=out, limit=1000, **QUICK)
    assert last.total == 1000
    assert tree(out) == tree(whole)
    assert kept(out) == kept(whole)
    assert any(run.ended is None for run in gatherings(out)) and gatherings(out)[-1].ended is not None


@FORKS
def test_killed_between_its_shards_it_makes_the_same_shards(web: Any, thousands: Path, tmp_path: Path) -> None:
    shards: dict[str, Any] = {"format": "webdataset", "shard_size": 60, **QUICK}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    scrape([thousands], out=whole, limit=400, **shards)
    command = ["edkit", "scrape", str(thousands), "--out", str(out), "--limit", "400", *POLITE]
    killed([*command, "--format", "webdataset", "--shard-size", "60"], out, times=4)
    assert scrape([thousands], out=out, limit=400, **shards).total == 400
    assert tree(out) == tree(whole) and len(tree(out)) == 14
    assert kept(out) == kept(whole)


KILL_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from edkit.gather import place
from edkit.gather.scrape import scrape
real, calls = place.rename_new, 0
def rename(src, dst):
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(src, dst)
place.rename_new = rename
for at in (1, 7, 12):
    child = os.fork()
    if not child:
        scrape([sys.argv[1]], out=Path(sys.argv[2]) / str(at), allow_private_hosts=True, per_host=64)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@FORKS
def test_killed_between_the_ledger_and_the_names_it_finishes_the_names(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(12)], ["a/b"] * 12)
    whole = tmp_path / "whole"
    scrape([table], out=whole, **QUICK)
    command = [sys.executable, "-c", KILL_AT_A_RENAME, str(table), str(tmp_path / "killed")]
    subprocess.run(command, check=True)
    for at in (1, 7, 12):
        out = tmp_path / "killed" / str(at)
        assert len(list(out.glob("*.jpg"))) < 12
        hits = web.hits.total()
        again = scrape([table], out=out, **QUICK)
        assert tree(out) == tree(whole) and again.total == 12
        assert sum(web.hits.values()) - hits <= 1, "all had been fetched before the kill"


def test_interrupted_it_keeps_what_it_has_and_goes_on(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/slow/{i}") for i in range(60)])
    command = [*COMMAND, table.name, "--out", "out", "--allow-private-hosts", "--per-host", "4"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while web.hits.total() < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in complaints
    assert complaints.strip().splitlines()[-1] == "edkit: interrupted; the same command goes on from here"
    there = len(list((tmp_path / "out").glob("*.jpg")))
    assert 8 <= there < 60
    again = scrape([table], out=tmp_path / "out", **QUICK)
    assert again.total == 60 and again.kept <= 60 - there


# ---- no room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; skips where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_a_full_disk_is_one_line_and_nothing_half_written(
    web: Any, laion: Laion, tmp_path: Path, small_disk: Path, form: str
) -> None:
    import io

    from PIL import Image

    noise = random.Random(1)
    for i in range(24):  # 60 kB each: twenty don't fit
        picture = Image.frombytes("L", (240, 240), noise.randbytes(240 * 240))
        data = io.BytesIO()
        picture.save(data, "PNG")
        web.pages[f"/{i}.png"] = data.getvalue()
    table = laion([web.url(f"/{i}.png") for i in range(24)])
    out = small_disk / "out"
    command = [*COMMAND, str(table), "--out", str(out), *POLITE, "--format", form, "--shard-size", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the disk is full" in last and "Traceback" not in done.stderr
    for path in out.iterdir():
        if path.suffix == ".png":
            assert path.read_bytes() in web.pages.values()
    # with room, the same command goes on to what it would have been
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    shape: dict[str, Any] = {"format": form, "shard_size": 4, **QUICK}
    assert scrape([table], out=out, **shape).total == 24
    scrape([table], out=tmp_path / "whole", **shape)
    assert tree(out) == tree(tmp_path / "whole")
