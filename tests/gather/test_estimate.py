"""An estimate fetches a fair sample, keeps nothing of it, and says what the whole would come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edkit.cli.gather import duration
from edkit.data.catalog import Catalog
from edkit.data.errors import UsageError
from edkit.gather import estimate
from edkit.gather.estimate import wilson
from edkit.gather.scrape import scrape

Laion = Callable[..., Path]
QUICK: dict[str, Any] = {"allow_private_hosts": True, "retries": 0, "per_host": 64}


@pytest.mark.parametrize(
    ("good", "n", "low", "high"),
    # the textbook's figures (Newcombe 1998, table I, method 3)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(good: int, n: int, low: float, high: float) -> None:
    assert wilson(good, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_nothing_tried_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.fixture
def half_dead(web: Any, laion: Laion, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six hundred rows, every second of them dead; a probe takes sixty."""
    monkeypatch.setattr(estimate, "NUM_PROBED", 60)
    return laion([web.url(f"/image/{i}" if i % 2 else f"/404?{i}") for i in range(600)])


def test_it_probes_a_sample_and_keeps_none_of_it(web: Any, half_dead: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = scrape([half_dead], out=out, limit=100, estimate=True, **QUICK)
    found = result.estimate
    assert found is not None and found.probed == 60 and result.kept == result.total == 0
    assert found.good == result.outcomes["ok"] and found.good + result.outcomes["http-404"] == 60
    # the draw goes by URL, and so by the server's port: half are dead, give or take five deviations of such a draw
    assert found.rate == found.good / 60 and abs(found.rate - 0.5) < 5 * (0.25 / 60) ** 0.5
    assert (found.rate_low, found.rate_high) == wilson(found.good, 60)
    assert found.wanted == 100 and found.reachable
    assert found.downloads_low <= found.downloads <= found.downloads_high <= 600
    assert abs(found.rows - found.downloads) <= 1, "every row matches"
    assert found.num_bytes == pytest.approx(100 * found.mean_bytes) and 500 < found.mean_bytes < 50_000
    assert found.seconds > 0 and found.busiest_host == "127.0.0.1" and found.busiest_share == 1.0
    assert [p.name for p in out.iterdir()] == [".edkit"]
    with Catalog.open(out, write=False) as catalog:
        assert catalog.ledger_count(outcome="http-404") == 60 - found.good
        assert catalog.ledger_count(outcome="ok") == 0


def test_the_sample_is_spread_over_the_table_and_the_same_for_a_seed(web: Any, half_dead: Path) -> None:
    def probed(seed: int) -> set[str]:
        web.hits.clear()
        scrape([half_dead], estimate=True, seed=seed, **QUICK)
        return {path for path in web.hits if path.startswith(("/image", "/404"))}

    first = probed(555)
    assert probed(555) == first and probed(556) != first
    rows = sorted(int(path.replace("?", "/").rsplit("/", 1)[1]) for path in first)
    assert len(rows) == 60 and rows[0] < 60 and rows[-1] > 540
    assert all(any(low <= row < low + 150 for row in rows) for low in range(0, 600, 150))


def test_what_earlier_runs_settled_is_not_asked_again(web: Any, half_dead: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scrape([half_dead], out=out, limit=40, **QUICK)
    with Catalog.open(out, write=False) as catalog:  # what was under way when the limit was reached is not in it
        settled = {row.url: web.hits[row.url.split(str(web.port))[1]] for row in catalog.ledger() if row.url}
    result = scrape([half_dead], out=out, limit=100, estimate=True, **QUICK)
    assert result.total == 40 and result.estimate is not None and result.estimate.wanted == 60
    assert sum(result.skipped.values()) == 600 - result.estimate.untried > 40
    dead = {url: n for url, n in settled.items() if "/404" in url}
    assert dead and all(web.hits[url.split(str(web.port))[1]] == n for url, n in dead.items())
    # and the failures the probe met are not met again by the run itself
    with Catalog.open(out, write=False) as catalog:
        before = {row.url.split(str(web.port))[1] for row in catalog.ledger(outcome="http-404") if row.url}
    assert len(before) > len(dead)
    web.hits.clear()
    scrape([half_dead], out=out, limit=100, **QUICK)
    assert not before & set(web.hits)


def test_a_table_that_cannot_give_as_many_is_told_so(web: Any, half_dead: Path) -> None:
    found = scrape([half_dead], limit=5000, estimate=True, **QUICK).estimate
    assert found is not None and not found.reachable and found.downloads == 600
    assert found.num_bytes < 600 * found.mean_bytes


def test_a_dead_table_is_told_so(web: Any, laion: Laion) -> None:
    table = laion([web.url(f"/404?{i}") for i in range(10)])
    found = scrape([table], limit=5, estimate=True, **QUICK).estimate
    assert found is not None and (found.good, found.rate, found.mean_bytes) == (0, 0.0, 0.0)
    assert not found.reachable and found.rate_high < 0.35


def test_a_busy_host_asked_politely_decides_the_time(web: Any, laion: Laion) -> None:
    table = laion([web.url(f"/slow/{i}") for i in range(30)])
    few = scrape([table], estimate=True, **{**QUICK, "per_host": 2, "concurrency": 30}).estimate
    assert few is not None and few.waits_for_host
    # thirty of 0.3 s, two at a time
    assert few.seconds > 4


def test_estimate_and_list_exclude_each_other(laion: Laion) -> None:
    with pytest.raises(UsageError, match="one of them at a time"):
        scrape([laion(["http://example.org/1"])], estimate=True, dry_run=True)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (70, "70 s"), (200, "3.3 min"), (5000, "83 min"), (7200, "2.0 h"), (3e5, "3.5 days")],
)
def test_durations_are_told_in_a_unit_that_fits(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_json_holds_the_estimate(web: Any, half_dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from edkit.cli.app import app

    done = CliRunner().invoke(
        app, ["scrape", str(half_dead), "--estimate", "--allow-private-hosts", "--retries", "0", "--json"]
    )
    told = json.loads(done.stdout)["estimate"]
    assert told["probed"] == 60 and 0 < told["rate_low"] < told["rate"] < told["rate_high"] < 1
