"""Scraping from a real server: what misbehaviour ends as, exact limits and names, going on after anything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import caption_of_stem
from edkit.gather.collect import options_id
from edkit.gather.fetch import USER_AGENT, FetchSettings
from edkit.gather.scrape import Scrape, honest_agent, scrape

Laion = Callable[..., Path]
QUICK: dict[str, Any] = {"allow_private_hosts": True, "retries": 1, "per_host": 64, "max_bytes": 3_000_000}
# long enough for a busy machine, short enough to wait for
IMPATIENT = {**QUICK, "timeout": 5.0, "idle_timeout": 2.5}


def images(out: Path) -> dict[str, str]:
    """Name -> hash of what lies in a folder (the state aside)."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir()) if p.name != ".edkit"}


def ledger(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger())


MISBEHAVIOURS = {
    "/404": "http-404",
    "/403": "http-403",
    "/410": "http-410",
    "/500": "http-500",
    "/429-then-good": "ok",
    "/500-then-good": "ok",
    "/reset-then-good": "ok",
    "/hang": "timeout",
    "/hang-in-body": "timeout",
    "/drip": "timeout",
    "/truncated": "broken-image",
    "/html-as-jpeg": "not-an-image",
    "/jpeg-as-html": "ok",
    "/length-too-long": "reset",
    "/length-too-short": "bad-answer",
    "/chunked-cut-short": "reset",
    "/loop": "redirects",
    "/endless-redirects": "redirects",
    "/to-metadata": "private-address",
    "/to-file": "bad-url",
    "/redirect": "ok",
    "/huge-announced": "too-large",
    "/endless": "too-large",
    "/gzip": "ok",
    "/gzip-bomb": "too-large",
    "/pixel-flood": "too-many-pixels",
    "/svg": "not-an-image",
    "/empty": "empty",
    "/no-content": "empty",
    "/png-named.jpg": "ok",
    "/garbage": "bad-answer",
    "/tiny": "too-small",
    "/long": "extreme-aspect",
    "ftp://example.org/1.jpg": "bad-url",
    "http://": "bad-url",
    "not a url": "bad-url",
    "http://127.0.0.1:1/closed.jpg": "connect",
    "http://no-such-host.invalid/1.jpg": "dns",
    "http://[::ffff:169.254.169.254]/1.jpg": "private-address",
}


def test_every_misbehaviour_has_its_outcome_and_leaves_nothing_half_written(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    urls = [path if not path.startswith("/") else web.url(path) for path in MISBEHAVIOURS]
    out = tmp_path / "out"
    result = scrape([laion(urls)], out=out, min_size=32, max_aspect=4, **IMPATIENT)
    rows = {row.url: row for row in ledger(out)}
    # five paths serve the same picture: the first in table order is kept, the others are its duplicates
    got = {p: rows[u].outcome.replace("duplicate", "ok") for p, u in zip(MISBEHAVIOURS, urls, strict=True)}
    assert got == MISBEHAVIOURS
    assert rows[web.url("/429-then-good")].outcome == "ok" and rows[web.url("/gzip")].outcome == "duplicate"
    assert sum(result.outcomes.values()) == len(urls)
    files = images(out)
    assert len(files) == result.kept == 3
    for row in rows.values():
        if row.outcome == "ok":
            assert row.path is not None and files[row.path.name] == row.sha256
            assert (row.width, row.height) == (96, 64) and row.num_bytes == row.path.stat().st_size
    redirected = rows[web.url("/redirect")]
    assert redirected.final_url == web.url("/image/77") and redirected.http_status == 200
    png = rows[web.url("/png-named.jpg")].path
    assert png is not None and png.suffix == ".png"


def test_private_addresses_are_refused_by_default(web: Any, laion: Laion, tmp_path: Path) -> None:
    urls = [web.url("/image/1"), web.url("/image/2").replace("127.0.0.1", "localhost"),
            web.url("/image/3").replace("127.0.0.1", "0x7f.1")]  # fmt: skip
    result = scrape([laion(urls)], out=tmp_path / "out")
    assert result.outcomes == {"private-address": 3}
    assert not web.hits


def test_only_what_may_pass_is_tried_again_and_a_rerun_fetches_nothing_twice(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    table = laion([web.url(p) for p in ("/image/1", "/404", "/500", "/truncated", "/image/1?same")])
    first = scrape([table], out=tmp_path / "out", **QUICK)
    assert web.hits["/500"] == 2 and web.hits["/404"] == 1 and web.hits["/truncated"] == 1
    again = scrape([table], out=tmp_path / "out", **QUICK)
    assert web.hits["/500"] == 4 and web.hits["/404"] == 1 and web.hits["/image/1"] == 1
    assert again.outcomes == {"http-500": 1} and again.kept == 0
    assert first.total == again.total == 1
    assert again.skipped == {
        "kept before": 1,
        "failed for good before": 2,
        "the same image kept before": 1,
    }


def test_a_host_that_asks_for_an_hour_is_left_alone_for_this_run(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url("/429-for-an-hour"), *(web.url(f"/image/{i}") for i in range(20))])
    started = time.monotonic()
    result = scrape([table], out=tmp_path / "out", **{**QUICK, "per_host": 1})
    assert result.outcomes == {"http-429": 1, "host-paused": 20}
    assert web.hits.total() == 1 and time.monotonic() - started < 20


def test_a_retry_waits_as_long_as_the_server_asks(web: Any, laion: Laion, tmp_path: Path) -> None:
    started = time.monotonic()
    result = scrape([laion([web.url("/429-then-good")])], out=tmp_path / "out", **QUICK)
    assert result.kept == 1 and 1.0 <= time.monotonic() - started < 15


def test_the_limit_is_the_first_good_ones_in_table_order_whatever_the_timing(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    paths = ["/slow/0", "/404", "/slow/1", *(f"/image/{i}" for i in range(2, 40))]
    table = laion([web.url(p) for p in paths], ["a dog"] * len(paths))
    result = scrape([table], out=tmp_path / "out", limit=5, **QUICK)
    assert result.kept == result.total == 5
    kept = [row for row in ledger(tmp_path / "out") if row.outcome == "ok"]
    assert [row.row for row in kept] == [0, 2, 3, 4, 5]
    assert [row.path.name for row in kept if row.path] == [f"a dog_({n}).jpg" for n in range(1, 6)]
    assert set(images(tmp_path / "out")) == {f"a dog_({n}).jpg" for n in range(1, 6)}
    # near the limit no more is asked for than is likely needed
    assert web.hits.total() < 15


def test_the_limit_counts_over_all_runs_of_the_same_query(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(30)])
    out = tmp_path / "out"
    assert scrape([table], out=out, limit=5, **QUICK).kept == 5
    hits = web.hits.total()
    assert scrape([table], out=out, limit=5, **QUICK).kept == 0 and web.hits.total() == hits
    more = scrape([table], out=out, limit=12, **QUICK)
    assert more.kept == 7 and more.total == 12
    rows = [row.row for row in ledger(out) if row.outcome == "ok"]
    assert rows == list(range(12))
    other = scrape([table], out=out, search=["scene"], limit=3, **QUICK)
    assert other.kept == 3 and [row.row for row in ledger(out) if row.query == other.query and row.outcome == "ok"] == [
        12,
        13,
        14,
    ]


def test_the_folder_is_the_same_for_any_concurrency(web: Any, laion: Laion, tmp_path: Path) -> None:
    paths = [f"/slow/{i}" if i % 7 == 0 else f"/image/{i % 25}?{i}" for i in range(60)]
    table = laion([web.url(p) for p in paths], [f"a {('dog', 'cat', 'Dog')[i % 3]}" for i in range(60)])
    folders = []
    for n, at_once in enumerate((1, 7, 64)):
        out = tmp_path / f"out{n}"
        scrape([table], out=out, **{**QUICK, "per_host": at_once})
        folders.append(images(out))
    assert folders[0] == folders[1] == folders[2]
    assert len(folders[0]) == len(set(folders[0].values()))


def test_a_slow_host_delays_itself_alone(web: Any, laion: Laion, tmp_path: Path) -> None:
    # `localhost` and `127.0.0.1` are two hosts to the queue
    slow = [web.url(f"/slow/{i}").replace("127.0.0.1", "localhost") for i in range(10)]
    table = laion([*slow, *(web.url(f"/image/{i}") for i in range(100, 300))])
    started = time.monotonic()
    result = scrape([table], out=tmp_path / "out", **{**QUICK, "per_host": 2, "concurrency": 4})
    # ten at 0.3 s, two at a time: 1.5 s; the other two hundred pass meanwhile
    assert result.kept == 210 and time.monotonic() - started < 15
    assert web.most_at_once <= 4


def test_captions_survive_whole_in_names_or_sidecars(web: Any, laion: Laion, tmp_path: Path) -> None:
    texts = [
        *("a dog on a beach", "a/b: c?", "日本の猫", "con", "IMG_1234", "ends with a dot.", "x" * 300),
        *(
            "two\nlines",
            "snake_case",
            "a dog on a beach",
            "A Dog on a beach",
            "naïve café ☕",
            "…",
            "  padded  ",
        ),
    ]
    table = laion([web.url(f"/image/{i}") for i in range(len(texts))], texts)
    for mode in ("filename", "sidecar", "both"):
        out = tmp_path / mode
        scrape([table], out=out, captions=mode, **QUICK)  # type: ignore[arg-type]
        rows = [row for row in ledger(out) if row.outcome == "ok"]
        assert len(rows) == len(texts)
        for row, text in zip(rows, texts, strict=True):
            assert row.path is not None and row.path.is_file()
            sidecar = row.path.with_name(row.path.name[: -len(row.path.suffix)] + ".txt")
            if mode != "filename":
                assert sidecar.is_file()
            read = sidecar.read_text("utf-8") if sidecar.exists() else caption_of_stem(row.path.stem)
            assert read == text.strip() == row.caption
    assert (tmp_path / "filename" / "a dog on a beach_(1).jpg").exists()
    assert not (tmp_path / "filename" / "a dog on a beach_(1).txt").exists()
    assert (tmp_path / "sidecar" / "000001.jpg").exists()


def test_a_checksum_is_recorded_and_with_strict_refused(web: Any, laion: Laion, tmp_path: Path) -> None:
    web.pages["/a"], web.pages["/b"] = b"", b""
    from PIL import Image

    for path, colour in (("/a", 10), ("/b", 200)):
        Image.new("L", (64, 64), colour).save(tmp_path / "x.png")
        web.pages[path] = (tmp_path / "x.png").read_bytes()
    right = hashlib.md5(web.pages["/a"], usedforsecurity=False).hexdigest()
    table = laion([web.url("/a"), web.url("/b")], md5=[right, "0" * 32])
    kept = scrape([table], out=tmp_path / "off", **QUICK)
    assert kept.kept == 2
    assert [(r.extra or {}).get("checksum_matches") for r in ledger(tmp_path / "off")] == [True, False]
    strict = scrape([table], out=tmp_path / "strict", check_hash="strict", **QUICK)
    assert strict.outcomes == {"ok": 1, "hash": 1}


def test_the_user_agent_is_honest_or_yours(web: Any, laion: Laion, tmp_path: Path) -> None:
    scrape([laion([web.url("/image/1")])], out=tmp_path / "a", **QUICK)
    assert all(agent.startswith("edkit/") for agent in web.user_agents)
    scrape([laion([web.url("/image/1")])], out=tmp_path / "b", user_agent="me (me@example.org)", **QUICK)
    assert "me (me@example.org)" in web.user_agents


def test_a_dry_run_lists_matches_and_touches_nothing(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(30)])
    result = scrape([table], out=tmp_path / "out", limit=10, dry_run=True)
    assert len(result.matches) == 10 and not web.hits and not (tmp_path / "out").exists()


def test_wrong_calls_are_one_line(laion: Laion, tmp_path: Path) -> None:
    table = laion(["http://example.org/1"])
    for wrong in ({"limit": 0}, {"retries": -1}, {"regex": "("}, {"max_aspect": 0.5}, {"concurrency": 0}):
        with pytest.raises(UsageError, match="--"):
            scrape([table], out=tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="licence, which --license needs"):
        scrape([table], out=tmp_path / "out", licences=["cc0"])
    assert not (tmp_path / "out").exists()


def test_options_that_judge_images_open_the_question_again(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url("/image/1")])
    small = {**QUICK, "max_bytes": 100}
    assert scrape([table], out=tmp_path / "out", **small).outcomes == {"too-large": 1}
    assert scrape([table], out=tmp_path / "out", **small).outcomes == {}
    assert scrape([table], out=tmp_path / "out", **QUICK).outcomes == {"ok": 1}


def test_an_image_set_aside_since_is_not_fetched_again_nor_its_name_given_again(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    table = laion([web.url(f"/image/{i}") for i in range(4)], ["a dog"] * 4)
    scrape([table], out=out, limit=2, **QUICK)
    (out / "a dog_(2).jpg").unlink()
    result = scrape([table], out=out, limit=3, **QUICK)
    assert result.kept == 1 and set(images(out)) == {"a dog_(1).jpg", "a dog_(3).jpg"}


def images_only(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.jpg"))


# ---- shares, orders, lists, hosts


def test_shares_are_queries_of_their_own_and_together_the_whole(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(60)])
    rows: list[int | None] = []
    queries = set()
    for i in (1, 2, 3):
        result = scrape([table], out=tmp_path / "out", part=(i, 3), **QUICK)
        queries.add(result.query)
        rows += [row.row for row in ledger(tmp_path / "out") if row.query == result.query and row.outcome == "ok"]
        assert 5 < result.kept < 40
    assert sorted(row for row in rows if row is not None) == list(range(60)) and len(queries) == 3
    with pytest.raises(UsageError, match="--part 4/3"):
        scrape([table], out=tmp_path / "out", part=(4, 3), **QUICK)


def test_a_drawn_order_is_its_seeds_and_its_names_and_limit_follow_it(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(60)], ["a dog"] * 60)

    def kept(seed: int, out: str, at_once: int) -> list[int | None]:
        scrape([table], out=tmp_path / out, limit=10, shuffle=True, seed=seed, **{**QUICK, "per_host": at_once})
        return [row.row for row in ledger(tmp_path / out) if row.outcome == "ok"]

    first = kept(7, "a", 64)
    assert first != sorted(row for row in first if row is not None) and len(first) == 10
    assert kept(7, "b", 2) == first and images(tmp_path / "a") == images(tmp_path / "b")
    assert kept(8, "c", 64) != first
    # more of the same order
    more = scrape([table], out=tmp_path / "a", limit=15, shuffle=True, seed=7, **QUICK)
    assert more.kept == 5 and more.total == 15


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl"])
def test_a_list_of_matches_scrapes_to_the_same_images(web: Any, laion: Laion, tmp_path: Path, ending: str) -> None:
    texts = [f'a "quoted", naïve ☕ dog {i}' for i in range(12)]
    table = laion([web.url(f"/image/{i}") for i in range(12)], texts, license=["cc0"] * 12)
    listed = scrape([table], limit=8, list_to=tmp_path / f"matches.{ending}", min_size=100)
    assert listed.listed == tmp_path / f"matches.{ending}" and not web.hits and listed.matches == ()
    scrape([tmp_path / f"matches.{ending}"], out=tmp_path / "from-list", **QUICK)
    scrape([table], out=tmp_path / "from-table", limit=8, **QUICK)
    assert images(tmp_path / "from-list") == images(tmp_path / "from-table")
    assert {row.licence for row in ledger(tmp_path / "from-list")} == {"cc0"}


def test_outcomes_are_counted_by_host_where_asked_for(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(p) for p in ("/image/1", "/image/2", "/404", "http://no-such-host.invalid/1.jpg")[:3]])
    assert scrape([table], out=tmp_path / "a", **QUICK).hosts == {}
    result = scrape([table], out=tmp_path / "b", by_host=True, **QUICK)
    assert result.hosts == {"127.0.0.1": {"ok": 2, "http-404": 1}}


def test_a_contact_stands_in_an_honest_user_agent(web: Any, laion: Laion, tmp_path: Path) -> None:
    scrape([laion([web.url("/image/1")])], out=tmp_path / "a", contact="me@example.org", **QUICK)
    assert all(agent.startswith("edkit/") and "contact: me@example.org" in agent for agent in web.user_agents)
    assert honest_agent("my bot", "me@example.org") == "my bot (contact: me@example.org)"
    assert honest_agent("my bot", "") == "my bot" and honest_agent("", "") == USER_AGENT


def test_leave_given_later_opens_the_question_again(laion: Laion) -> None:
    honoured, leave = FetchSettings(), FetchSettings(honour_robots=False)
    assert options_id(honoured) != options_id(leave) != options_id(FetchSettings(honour_opt_out=False))
    assert options_id(honoured) == options_id(FetchSettings(concurrency=1, retries=0, timeout=3))


# ---- as a user sees it


def edkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edkit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )


def test_the_command_shows_the_funnel_the_outcomes_and_what_to_do(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion(
        [web.url(p) for p in ("/image/1", "/404", "/500", "/image/2", "/image/3")],
        ["a photo of a man", "man photo", "photo: man", "a woman", "photo man"],
        punsafe=[0, 0, 0, 0, 0.9],
    )
    done = edkit("laion-scrape", table.name, "--out", "pool", "--search", "photo,man", "--max-unsafe", "0.5",
                 "--retries", "0", "--allow-private-hosts", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "--max-unsafe 0.5" in done.stdout and "--search photo,man" in done.stdout
    assert "HTTP 404 (not found)" in done.stdout and "run again" in done.stdout
    assert "url=URL, caption=TEXT" in done.stderr
    assert images_only(tmp_path / "pool") == ["a photo of a man_(1).jpg"]
    listed = edkit("scrape", table.name, "--out", "other", "--dry-run", cwd=tmp_path)
    assert "a photo of a man" in listed.stdout and not (tmp_path / "other").exists()
    wrong = edkit("scrape", table.name, "--out", "pool", "--columns", "url=LINK", cwd=tmp_path)
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1 and "LINK" in wrong.stderr


def test_real_photos_behind_real_captions(web: Any, laion: Laion, tmp_path: Path, shared_data: Path) -> None:
    import pyarrow.parquet as pq

    photos = sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:40]
    texts = pq.read_table(shared_data / "laion-rows" / "laion_url_text_1000.parquet")["TEXT"].to_pylist()
    for photo in photos:
        web.pages[f"/{photo.name}"] = photo.read_bytes()
    table = laion([web.url(f"/{photo.name}") for photo in photos], texts[:40])
    result: Scrape = scrape([table], out=tmp_path / "out", min_size=200, **QUICK)
    assert result.kept == 40
    by_hash = {hashlib.sha256(p.read_bytes()).hexdigest() for p in photos}
    assert {row.sha256 for row in ledger(tmp_path / "out")} == by_hash


def test_the_commands_that_look_back_show_a_scrape(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(p) for p in ("/image/1", "/404", "/image/2")], license=["cc0", "cc0", "cc-by-4.0"])
    edkit("scrape", table.name, "--out", "pool", "--retries", "0", "--allow-private-hosts", "--quiet", cwd=tmp_path)
    shown = edkit("history", "pool", cwd=tmp_path).stdout
    assert "edkit scrape" in shown and "tried" in shown and max(map(len, shown.splitlines())) <= 80
    told = json.loads(edkit("history", "pool", "--json", cwd=tmp_path).stdout)
    (run,) = told["gathered"]
    assert (run["tried"], run["kept"], run["failed"]) == (3, 2, 1) and run["outcomes"] == {"ok": 2, "http-404": 1}
    assert run["command"].startswith(f"edkit scrape {table.name} --out pool") and told["operations"] == []
    listed = edkit("credits", "pool", cwd=tmp_path).stdout
    assert listed.startswith("# Credits") and "## [CC BY 4.0]" in listed and "## [CC0]" in listed
    written = edkit("credits", "pool", "--out", "CREDITS.csv", cwd=tmp_path)
    assert "2 images credited in CREDITS.csv" in written.stdout and (tmp_path / "CREDITS.csv").exists()
    nothing = edkit("scrape", table.name, cwd=tmp_path)
    assert nothing.returncode == 2 and "--out DIR" in nothing.stderr and len(nothing.stderr.splitlines()) == 1


def test_help_fits_a_terminal_and_groups_the_options(tmp_path: Path) -> None:
    shown = edkit("scrape", "--help", cwd=tmp_path).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for group in ("Which captions", "Which images", "Look first", "Fetching", "Manners and safety"):
        assert group in shown
