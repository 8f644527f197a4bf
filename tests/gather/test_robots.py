"""What sites ask of robots: robots.txt, X-Robots-Tag, TDM-Reservation; parsed, fetched once, obeyed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from edkit.gather.fetch import USER_AGENT, Fetched, Fetcher, FetchSettings, Request
from edkit.gather.robots import MAX_BYTES, names_in, opt_out, parse

QUICK = FetchSettings(timeout=2.0, idle_timeout=0.7, retries=0, allow_private=True, per_host=4)


def fetch(urls: list[str], staging: Path, settings: FetchSettings = QUICK) -> list[Fetched]:
    """How each ended, in the order of the URLs."""
    staging.mkdir(exist_ok=True)
    found: dict[int, Fetched] = {}
    with Fetcher(settings, staging) as fetcher:
        fetcher.submit([Request(ticket=i, url=url) for i, url in enumerate(urls)])
        deadline = time.monotonic() + 40
        while len(found) < len(urls) and time.monotonic() < deadline:
            found.update((each.ticket, each) for each in fetcher.results(timeout=0.2))
    return [found[i] for i in range(len(urls))]


# ---- the file


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/a.jpg", True),
        ("User-agent: *\nDisallow: /", "/a.jpg", False),
        ("User-agent: *\nDisallow: /private/", "/a.jpg", True),
        ("User-agent: *\nDisallow: /private/", "/private/a.jpg", False),
        ("User-agent: *\nDisallow: /p\nAllow: /pub", "/pub/a.jpg", True),  # the longest match wins
        ("User-agent: *\nAllow: /p\nDisallow: /pub", "/pub/a.jpg", False),
        ("User-agent: *\nDisallow: /*.jpg$", "/x/a.jpg", False),
        ("User-agent: *\nDisallow: /*.jpg$", "/x/a.jpg?size=1", True),
        ("User-agent: *\nDisallow: /a*b*c", "/aXbYc.png", False),
        ("User-agent: *\nDisallow:", "/a.jpg", True),
        ("User-agent: otherbot\nDisallow: /", "/a.jpg", True),
        ("User-agent: EDKIT\nDisallow: /\n\nUser-agent: *\nAllow: /", "/a.jpg", False),
        ("User-agent: edkit\nAllow: /\n\nUser-agent: *\nDisallow: /", "/a.jpg", True),
        ("User-agent: otherbot\nUser-agent: edkit\nDisallow: /", "/a.jpg", False),
        ("<!DOCTYPE html><html><body>Not found</body></html>", "/a.jpg", True),
        ("\x00\xff garbage : : :\n\n::", "/a.jpg", True),
    ],
)
def test_rules_are_read_as_rfc_9309_says(text: str, path: str, allowed: bool) -> None:
    assert parse(text, ("edkit",)).allows(f"https://example.org{path}") is allowed


def test_whoever_the_user_agent_names_is_judged_too() -> None:
    assert names_in(USER_AGENT) == ("edkit",)
    assert names_in("FooBot/1.2 (+https://example.org/bot)") == ("edkit", "foobot")
    assert names_in("Mozilla/5.0 (compatible; FooBot/1.2; +https://example.org)") == ("edkit", "mozilla", "foobot")
    text = "User-agent: foobot\nDisallow: /\n\nUser-agent: *\nAllow: /"
    assert not parse(text, names_in("FooBot/1.2")).allows("https://example.org/a")
    leave = "User-agent: foobot\nAllow: /\n\nUser-agent: *\nDisallow: /"
    assert parse(leave, names_in("FooBot/1.2")).allows("https://example.org/a")
    both = leave + "\n\nUser-agent: edkit\nDisallow: /"
    assert not parse(both, names_in("FooBot/1.2")).allows("https://example.org/a")


@given(st.text(max_size=300))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    parse(text, ("edkit",)).allows("https://example.org/a.jpg")


# ---- fetched


def test_it_is_asked_once_a_host_and_obeyed(web: Any, tmp_path: Path) -> None:
    web.robots["*"] = "User-agent: *\nDisallow: /image/1\n"
    urls = [web.url(f"/image/{i}") for i in (1, 2, 10, 20, 3)]
    urls += [url.replace("127.0.0.1", "localhost") for url in urls]
    codes = [r.code for r in fetch(urls, tmp_path / "s")]
    assert codes == ["robots", "fetched", "robots", "fetched", "fetched"] * 2
    assert dict(web.robots_hits) == {f"127.0.0.1:{web.port}": 1, f"localhost:{web.port}": 1}
    assert web.hits["/image/1"] == 0 and all(agent.startswith("edkit/") for agent in web.user_agents | {"edkit/"})


def test_it_can_be_overruled(web: Any, tmp_path: Path) -> None:
    web.robots["*"] = "User-agent: *\nDisallow: /\n"
    (result,) = fetch([web.url("/image/1")], tmp_path / "s", replace(QUICK, honour_robots=False))
    assert result.code == "fetched" and not web.robots_hits


@pytest.mark.parametrize(
    ("robots", "code", "requests"),
    [
        ("404", "fetched", 1),
        ("403", "fetched", 1),
        ("500", "robots-unreachable", 1),
        ("503", "robots-unreachable", 1),
        ("429", "robots-unreachable", 1),
        ("hang", "robots-unreachable", 1),
        ("User-agent: *\nDisallow: /\n", "robots", 1),
        ("redirect /404", "fetched", 1),
        ("redirect /robots.txt", "fetched", 1),  # in a circle: it can't be had
        ("redirect http://169.254.169.254/robots.txt", "private-address", 6),
    ],
)
def test_a_file_that_cannot_be_had(web: Any, tmp_path: Path, robots: str, code: str, requests: int) -> None:
    web.robots["*"] = robots
    began = time.monotonic()
    results = fetch([web.url(f"/image/{i}") for i in range(6)], tmp_path / "s")
    assert {r.code for r in results} == {code}
    assert web.robots_hits.total() == requests
    assert web.hits.total() - web.hits["/404"] == (6 if code == "fetched" else 0)
    assert time.monotonic() - began < 10


def test_ten_megabytes_are_cut_at_500_kib(web: Any, tmp_path: Path) -> None:
    web.robots["*"] = "10 MB"
    began = time.monotonic()
    early, late = fetch([web.url("/early/1"), web.url("/image/1")], tmp_path / "s")
    # what stands in the first half of a megabyte holds; `Disallow: /` at the very end is not read
    assert (early.code, late.code) == ("robots", "fetched")
    assert MAX_BYTES == 512_000 and time.monotonic() - began < 15


def test_a_redirect_is_judged_by_the_robots_of_where_it_leads(web: Any, tmp_path: Path) -> None:
    web.robots[f"localhost:{web.port}"] = "User-agent: *\nDisallow: /image/\n"
    target = f"http://localhost:{web.port}/image/5"
    web.redirects["/there"] = target
    (result,) = fetch([web.url("/there")], tmp_path / "s")
    assert result.code == "robots" and result.final_url == target and web.hits["/image/5"] == 0


def test_a_crawl_delay_is_kept_and_a_very_long_one_ends_this_run(web: Any, tmp_path: Path) -> None:
    web.robots["*"] = "User-agent: *\nCrawl-delay: 0.5\n"
    began = time.monotonic()
    results = fetch([web.url(f"/image/{i}") for i in range(4)], tmp_path / "s")
    assert {r.code for r in results} == {"fetched"} and time.monotonic() - began > 1.4
    assert web.most_at_once == 1
    web.robots["*"] = "User-agent: *\nCrawl-delay: 3600\n"
    codes = [r.code for r in fetch([web.url(f"/image/{i}") for i in range(4)], tmp_path / "s")]
    assert codes == ["fetched", *["host-paused"] * 3]


# ---- what a header says


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


@pytest.mark.parametrize(
    ("lines", "withheld"),
    [
        (["noai"], True),
        (["NOAI"], True),
        (["noimageai"], True),
        (["noimageindex"], True),
        (["noindex"], True),
        (["none"], True),
        (["noindex, nofollow"], True),
        (["all, noai"], True),
        (["nofollow", "noai"], True),
        (["edkit: noai"], True),
        (["Edkit : NoAI"], True),
        (["*: noai"], True),
        (["otherbot: noai, noindex"], False),
        (["otherbot: noai, edkit: noindex"], True),
        (["max-snippet: 5, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], False),
        (["max-image-preview: none"], False),
        (["otherbot: max-image-preview: none", "edkit: max-image-preview: none"], False),
        (["all"], False),
        (["nofollow, noarchive"], False),
        (["noaia, xnoai"], False),
        ([""], False),
    ],
)
def test_x_robots_tag_is_read_in_all_its_forms(lines: list[str], withheld: bool) -> None:
    assert bool(opt_out(headers(*(("x-robots-TAG", line) for line in lines)))) is withheld


def test_a_reservation_is_read_and_its_policy_named() -> None:
    assert opt_out(headers(("TDM-Reservation", " 1 "))) == "TDM-Reservation: 1"
    both = headers(("tdm-reservation", "1"), ("tdm-policy", "https://example.org/policy"))
    assert "https://example.org/policy" in opt_out(both)
    assert not opt_out(headers(("TDM-Reservation", "0"))) and not opt_out(headers(("Content-Type", "image/jpeg")))


WORDS = st.sampled_from(["noai", "noindex", "nofollow", "all", "noarchive", "noimageai", "index"])


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from([str.lower, str.upper, str.title]), st.booleans())
def test_a_list_withholds_if_one_of_its_words_does(words: list[str], case: Any, apart: bool) -> None:
    found = headers(
        *(("X-Robots-Tag", case(w)) for w in words) if apart else [("X-Robots-Tag", case(", ".join(words)))]
    )
    assert bool(opt_out(found)) is bool({"noai", "noindex", "noimageai"} & set(words))
    others = headers(*(("X-Robots-Tag", f"otherbot: {case(w)}") for w in words))
    assert not opt_out(others)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80))
def test_any_header_is_read_without_a_fault(text: str) -> None:
    opt_out(headers(("X-Robots-Tag", text), ("TDM-Reservation", text)))
