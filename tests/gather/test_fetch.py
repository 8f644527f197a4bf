"""The fetcher as a whole: hosts that fail and come back, checksums, large bodies, waiting as asked."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edkit.data.errors import UsageError
from edkit.gather.fetch import Fetched, Fetcher, FetchSettings, Request
from edkit.gather.judge import PHASH_RADIUS
from edkit.gather.web import retry_after

QUICK = FetchSettings(timeout=3.0, idle_timeout=0.5, retries=0, allow_private=True, per_host=4, rests=(0.2, 0.4))


def fetch(
    requests: list[Request], staging: Path, settings: FetchSettings = QUICK, seconds: float = 40
) -> list[Fetched]:
    """How each ended, in the order of the requests."""
    staging.mkdir(exist_ok=True)
    found: dict[int, Fetched] = {}
    with Fetcher(settings, staging) as fetcher:
        fetcher.submit(requests)
        deadline = time.monotonic() + seconds
        while len(found) < len(requests) and time.monotonic() < deadline:
            found.update((each.ticket, each) for each in fetcher.results(timeout=0.2))
    return [found[request.ticket] for request in requests]


def asking(*urls: str, **fields: Any) -> list[Request]:
    return [Request(ticket=i, url=url, **fields) for i, url in enumerate(urls)]


# ---- hosts that fail


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    held: list[Any] = []

    def hold() -> None:
        while True:
            try:
                held.append(listener.accept())
            except OSError:
                return

    threading.Thread(target=hold, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_a_host_that_never_answers_is_given_up_and_holds_up_nobody(silent: int, web: Any, tmp_path: Path) -> None:
    settings = replace(QUICK, honour_robots=False, concurrency=16)
    dead = [f"http://127.0.0.1:{silent}/{i}.jpg" for i in range(300)]
    began = time.monotonic()
    results = fetch(asking(*dead, *(web.url(f"/image/{i}") for i in range(100))), tmp_path / "s", settings)
    codes = [r.code for r in results]
    assert codes[300:] == ["fetched"] * 100
    assert set(codes[:300]) == {"timeout", "host-failing"} and codes[:300].count("timeout") <= 16
    # 300 at half a second, four at a time, would be 37 s
    assert time.monotonic() - began < 12
    assert "timeout" in next(r.reason for r in results if r.code == "host-failing")


def test_with_robots_a_silent_host_costs_one_question(silent: int, tmp_path: Path) -> None:
    began = time.monotonic()
    results = fetch(asking(*(f"http://127.0.0.1:{silent}/{i}.jpg" for i in range(200))), tmp_path / "s")
    assert {r.code for r in results} == {"robots-unreachable"} and time.monotonic() - began < 15


def test_a_host_that_comes_back_is_fetched_to_its_end(web: Any, tmp_path: Path) -> None:
    web.broken_until = time.monotonic() + 0.6
    settings = replace(QUICK, retries=2, rests=(0.3, 0.6, 1.0))
    results = fetch(asking(*(web.url(f"/image/{i}") for i in range(60))), tmp_path / "s", settings)
    codes = [r.code for r in results]
    assert codes.count("fetched") >= 50 and "host-failing" not in codes
    # it was left alone while it failed: not every URL met the failure
    assert web.num_broken <= 12


def test_dead_hosts_end_at_once(web: Any, tmp_path: Path) -> None:
    dead = [f"http://127.0.0.1:1/{i}.jpg" for i in range(100)] + [
        f"http://no-such-{i % 9}.invalid/" for i in range(100)
    ]
    began = time.monotonic()
    codes = {r.code for r in fetch(asking(*dead), tmp_path / "s")}
    assert codes <= {"connect", "host-failing", "dns"} and time.monotonic() - began < 15


# ---- checksums


def photo(seed: int = 1, size: tuple[int, int] = (320, 240), **options: Any) -> bytes:
    """Something like a photo: smooth shapes, few of them alike."""
    import numpy as np

    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", **options)
    return out.getvalue()


def imagehash_of(data: bytes) -> str:
    """As COYO's table has it: imagehash's pHash of the file."""
    import imagehash

    with Image.open(io.BytesIO(data)) as im:
        return str(imagehash.phash(im))


def test_a_checksum_is_recorded_and_only_strict_refuses(web: Any, tmp_path: Path) -> None:
    web.pages["/a"] = photo()
    md5 = hashlib.md5(web.pages["/a"], usedforsecurity=False).hexdigest()
    sha = hashlib.sha256(web.pages["/a"]).hexdigest()
    for mode in ("off", "strict", "perceptual"):
        settings = replace(QUICK, check_hash=mode)  # type: ignore[arg-type]
        for checksum, matches in ((md5, True), (sha.upper(), True), ("0" * 32, False), ("0" * 64, False)):
            (result,) = fetch(asking(web.url("/a"), checksum=checksum), tmp_path / "s", settings)
            assert result.checksum_matches is matches
            assert result.code == ("hash" if mode == "strict" and not matches else "fetched")


def test_a_perceptual_hash_forgives_what_hosts_do_to_a_picture_and_not_another_picture(
    web: Any, tmp_path: Path
) -> None:
    original = photo(3, (640, 480), quality=92)
    with Image.open(io.BytesIO(original)) as im:
        smaller, worse = io.BytesIO(), io.BytesIO()
        im.resize((213, 160)).save(smaller, "WEBP", quality=70)
        im.save(worse, "JPEG", quality=30)
    web.pages.update(
        {"/same": original, "/smaller": smaller.getvalue(), "/worse": worse.getvalue(), "/other": photo(4)}
    )
    requests = asking(*map(web.url, ("/same", "/smaller", "/worse", "/other")), phash=imagehash_of(original))
    for mode, code in (("off", "fetched"), ("strict", "fetched"), ("perceptual", "hash")):
        results = fetch(requests, tmp_path / "s", replace(QUICK, check_hash=mode))  # type: ignore[arg-type]
        assert [r.code for r in results] == ["fetched"] * 3 + [code]
        assert [r.checksum_matches for r in results] == [True, True, True, False]
        distances = [r.phash_distance for r in results]
        assert all(d is not None and d <= PHASH_RADIUS for d in distances[:3]) and (distances[3] or 0) > PHASH_RADIUS


def test_a_turned_photo_is_compared_as_it_is_stored_too(web: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation in range(2, 9):
        exif[0x0112] = orientation
        web.pages["/turned"] = photo(5, exif=exif)
        request = asking(web.url("/turned"), phash=imagehash_of(web.pages["/turned"]))
        (result,) = fetch(request, tmp_path / "s", replace(QUICK, check_hash="perceptual"))
        assert result.code == "fetched" and result.phash_distance is not None and result.phash_distance <= 4, (
            orientation
        )


@pytest.mark.parametrize("phash", ["", "xyz", "12", "-1", "0" * 17])
def test_what_is_no_hash_checks_nothing(web: Any, tmp_path: Path, phash: str) -> None:
    (result,) = fetch(asking(web.url("/image/1"), phash=phash), tmp_path / "s", replace(QUICK, check_hash="perceptual"))
    assert result.code == "fetched" and result.checksum_matches is None and result.phash_distance is None


# ---- bodies


def test_a_large_body_passes_through_a_file_and_arrives_whole(web: Any, tmp_path: Path) -> None:
    import numpy as np

    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG", compress_level=0)
    web.pages["/large"] = out.getvalue()
    (result,) = fetch(asking(web.url("/large")), tmp_path / "s")
    assert result.code == "fetched" and result.staged is not None and result.num_bytes > 2_000_000
    assert result.staged.read_bytes() == web.pages["/large"]
    assert list((tmp_path / "s").iterdir()) == [result.staged]


def test_a_folder_that_cannot_be_written_is_raised_and_not_taken_for_the_network(web: Any, tmp_path: Path) -> None:
    with Fetcher(QUICK, tmp_path / "none" / "such") as fetcher:
        fetcher.submit(asking(web.url("/image/1")))
        with pytest.raises(OSError, match="such"):
            for _ in range(100):
                fetcher.results(timeout=0.2)


def test_leaving_stops_at_once_and_leaves_nothing_half_written(web: Any, tmp_path: Path) -> None:
    with Fetcher(replace(QUICK, idle_timeout=20, timeout=30), tmp_path) as fetcher:
        fetcher.submit(asking(*(web.url(f"/hang-in-body?{i}") for i in range(20)), web.url("/endless")))
        time.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 15 and not list(tmp_path.glob("*.part"))


# ---- waiting as asked


@given(st.integers(0, 10**12))
def test_seconds_are_read(seconds: int) -> None:
    assert retry_after(f" {seconds} ") == min(seconds, 1e8) or len(str(seconds)) < 9


@given(st.integers(-(10**6), 10**6))
def test_dates_are_read(seconds: int) -> None:
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    assert abs(retry_after(format_datetime(when, usegmt=True)) - max(0, seconds)) < 30


@given(st.text(max_size=60))
def test_any_text_means_some_wait_or_none(text: str) -> None:
    assert 0 <= retry_after(text) < 1e12


@pytest.mark.parametrize("wrong", ["²", "-5", "1.5", "soon", "", "Mon, 99 Foo 2026 25:61:61 GMT", "١٢"])
def test_what_is_no_wait_is_none(wrong: str) -> None:
    assert retry_after(wrong) == 0


def test_wrong_settings_are_one_line() -> None:
    wrong: list[dict[str, Any]] = [
        *({"check_hash": "sometimes"}, {"user_agent": "two\nlines"}, {"user_agent": "näme"}, {"retries": -1}),
        *({"timeout": 0}, {"max_bytes": 0}),
    ]
    for each in wrong:
        with pytest.raises(UsageError, match="--"):
            FetchSettings(**each)
    assert FetchSettings(check_hash=True).check_hash == "strict"
