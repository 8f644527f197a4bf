"""What servers do wrong, each with the outcome it has, and nothing half-written in any case."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edkit.gather.candidate import outcome
from edkit.gather.fetch import Fetched, Fetcher, FetchSettings, Request

QUICK = FetchSettings(
    per_host=64,
    timeout=5.0,
    idle_timeout=2.0,  # long enough for a busy machine
    retries=1,
    max_bytes=3_000_000,
    min_size=32,
    max_aspect=4.0,
    allow_private=True,
    fails_in_a_row=1000,  # here every URL is a case of its own
)

MISBEHAVIOURS = {
    "/404": "http-404",
    "/403": "http-403",
    "/410": "http-410",
    "/500": "http-500",
    "/503": "http-503",
    "/429": "http-429",
    "/429-then-good": "fetched",
    "/500-then-good": "fetched",
    "/503-until-a-date": "fetched",
    "/reset-then-good": "fetched",
    "/hang": "timeout",
    "/hang-in-body": "timeout",
    "/drip": "timeout",
    "/headers-drip": "timeout",
    "/headers-without-end": "bad-answer",
    "/header-too-long": "bad-answer",
    "/closed-at-once": "reset",
    "/length-too-long": "reset",
    "/length-too-short": "bad-answer",
    "/two-lengths": "bad-answer",
    "/length-no-number": "bad-answer",
    "/chunked-cut-short": "reset",
    "/chunks-no-number": "bad-answer",
    "/garbage": "bad-answer",
    "/loop": "redirects",
    "/endless-redirects": "redirects",
    "/to-nowhere": "redirects",
    "/redirect": "fetched",
    "/to-metadata": "private-address",
    "/to-private": "private-address",
    "/to-odd-literal": "private-address",
    "/to-file": "bad-url",
    "/huge-announced": "too-large",
    "/endless": "too-large",
    "/gzip": "fetched",
    "/gzip-that-is-plain": "fetched",
    "/gzip-cut": "broken-image",
    "/gzip-bomb": "too-large",
    "/packed-as-br": "not-an-image",
    "/pixel-flood": "too-many-pixels",
    "/header-lies": "broken-image",
    "/truncated": "broken-image",
    "/closed-too-early": "broken-image",
    "/noise": "broken-image",
    "/html-as-jpeg": "not-an-image",
    "/html-200-not-found": "not-an-image",
    "/pdf": "not-an-image",
    "/svg": "not-an-image",
    "/jpeg-as-html": "fetched",
    "/png-named.jpg": "fetched",
    "/empty": "empty",
    "/no-content": "empty",
    "/tiny": "too-small",
    "/long": "extreme-aspect",
    "/noai": "opt-out",
    "/noai-case-variant": "opt-out",
    "/noai-second-header": "opt-out",
    "/tdm": "opt-out",
    "/noai-for-others": "fetched",
    "/tdm-0": "fetched",
    "/kind/animated.gif": "fetched",
    "/kind/animated.webp": "fetched",
    "/kind/cmyk.jpg": "fetched",
    "/kind/grey.jpg": "fetched",
    "/kind/progressive.jpg": "fetched",
    "/kind/16-bit.png": "fetched",
    "/kind/palette-alpha.png": "fetched",
    "/kind/rotated.jpg": "fetched",
    "/kind/trailing-bytes.jpg": "fetched",
    "ftp://example.org/1.jpg": "bad-url",
    "http://": "bad-url",
    "not a url": "bad-url",
    "http://example.org:25/1.jpg": "bad-url",
    "http://127.0.0.1:1/closed.jpg": "connect",
    "http://unknown.test/1.jpg": "dns",
    "http://metadata.test/1.jpg": "private-address",
    "http://[::ffff:169.254.169.254]/1.jpg": "private-address",
    "http://0xa9fea9fe/1.jpg": "private-address",
}


def names(host: str, port: int, family: int, kind: int) -> list[Any]:
    """The name service of these tests."""
    known = {"metadata.test": "169.254.169.254", "web.test": "127.0.0.1", "other.test": "127.0.0.1"}
    if host not in known:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(socket.AF_INET, kind, 6, "", (known[host], port))]


def fetch(
    urls: Sequence[str], staging: Path, settings: FetchSettings = QUICK, look_up: Any = names, **fields: Any
) -> dict[str, Fetched]:
    """Fetch them all; how each ended."""
    staging.mkdir(exist_ok=True)
    found: dict[str, Fetched] = {}
    with Fetcher(settings, staging, look_up=look_up) as fetcher:
        fetcher.submit([Request(ticket=i, url=url, **fields) for i, url in enumerate(urls)])
        deadline = time.monotonic() + 60
        while len(found) < len(set(urls)) and time.monotonic() < deadline:
            for each in fetcher.results(timeout=0.2):
                found[urls[each.ticket]] = each
    assert len(found) == len(set(urls)), set(urls) - set(found)
    return found


@pytest.fixture(scope="module")
def ended(one_web: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Fetched]]:
    """All of them at once."""
    staging = tmp_path_factory.mktemp("staging")
    urls = {path: one_web.url(path) if path.startswith("/") else path for path in MISBEHAVIOURS}
    found = fetch(list(urls.values()), staging)
    return staging, {path: found[url] for path, url in urls.items()}


@pytest.mark.parametrize("path", MISBEHAVIOURS)
def test_a_misbehaviour_has_its_outcome(path: str, ended: tuple[Path, dict[str, Fetched]]) -> None:
    result = ended[1][path]
    assert result.code == MISBEHAVIOURS[path], result
    assert outcome(result.code).what != result.code  # it has a name for people
    if result.code == "fetched":
        assert result.staged is not None
        with Image.open(result.staged) as im:
            im.load()
            seen = im.size[::-1] if path == "/kind/rotated.jpg" else im.size
        assert (result.width, result.height) == seen
        assert result.num_bytes == result.staged.stat().st_size
    else:
        assert result.staged is None


def test_nothing_half_written_is_left(ended: tuple[Path, dict[str, Fetched]]) -> None:
    staging, results = ended
    good = {result.staged for result in results.values() if result.code == "fetched"}
    assert set(staging.iterdir()) == good


def test_what_a_file_is_decides_its_ending(ended: tuple[Path, dict[str, Fetched]]) -> None:
    endings = {path: result.suffix for path, result in ended[1].items() if path.startswith("/kind/")}
    assert all(path.endswith(suffix) for path, suffix in endings.items())
    assert ended[1]["/png-named.jpg"].suffix == ".png"


def test_bytes_are_kept_as_they_came(one_web: Any, tmp_path: Path) -> None:
    one_web.pages["/exact"] = picture = _picture()
    result = fetch([one_web.url("/exact")], tmp_path / "s")[one_web.url("/exact")]
    assert result.staged is not None and result.staged.read_bytes() == picture


def _picture() -> bytes:
    import io

    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "JPEG", comment=b"kept")
    return out.getvalue()


def test_only_what_may_pass_is_tried_again(ended: tuple[Path, dict[str, Fetched]]) -> None:
    for path, result in ended[1].items():
        again = path.endswith(("-then-good", "-date")) or result.code in (
            "timeout",
            "reset",
            "http-429",
            "http-500",
            "http-503",
        )
        assert result.tries == (2 if again else 1), (path, result)


def test_a_large_body_that_breaks_off_leaves_no_file(one_web: Any, tmp_path: Path) -> None:
    result = fetch([one_web.url("/endless")], tmp_path / "s", replace(QUICK, max_bytes=8_000_000))
    assert [r.code for r in result.values()] == ["too-large"] and not list((tmp_path / "s").iterdir())


def test_opt_outs_can_be_overruled(one_web: Any, tmp_path: Path) -> None:
    urls = [one_web.url(p) for p in ("/noai", "/tdm", "/noai-case-variant")]
    found = fetch(urls, tmp_path / "s", replace(QUICK, honour_opt_out=False))
    assert {r.code for r in found.values()} == {"fetched"}


def test_the_policy_of_a_reservation_is_noted(ended: tuple[Path, dict[str, Fetched]]) -> None:
    assert "https://example.org/p" in ended[1]["/tdm"].reason
    assert ended[1]["/noai-case-variant"].reason == "X-Robots-Tag: noimageai"


# ---- names that change


class Rebinding:
    """A name that leads here when it is checked, and elsewhere from then on."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.num_asked = answers, 0

    def __call__(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        self.num_asked += 1
        answer = self.answers[min(self.num_asked, len(self.answers)) - 1]
        return [(socket.AF_INET, kind, 6, "", (answer, port))]


def test_a_name_that_changes_between_check_and_use_is_connected_where_it_was_checked(
    one_web: Any, tmp_path: Path
) -> None:
    look_up = Rebinding("127.0.0.1", "169.254.169.254")
    urls = [f"http://rebinding.test:{one_web.port}/image/{i}" for i in range(20)]
    found = fetch(urls, tmp_path / "s", look_up=look_up)
    assert {r.code for r in found.values()} == {"fetched"}
    assert look_up.num_asked == 1


def test_a_name_that_leads_inside_is_refused_without_a_connection(one_web: Any, tmp_path: Path) -> None:
    hits = one_web.hits.total()
    url = f"http://rebinding.test:{one_web.port}/image/1"
    found = fetch([url], tmp_path / "s", replace(QUICK, allow_private=False), Rebinding("127.0.0.1"))
    assert found[url].code == "private-address" and one_web.hits.total() == hits


def test_environment_proxies_are_not_used(one_web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = one_web.url("/image/3")
    assert fetch([url], tmp_path / "s")[url].code == "fetched"


# ---- TLS


@pytest.fixture
def https(tmp_path: Path) -> Iterator[int]:
    """A TLS server whose certificate nobody vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(plain, server_side=True).close()
            except OSError:
                plain.close()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_a_bad_certificate_is_refused(https: int, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{https}/1.jpg"
    assert fetch([url], tmp_path / "s")[url].code == "tls"
    assert not list((tmp_path / "s").iterdir())
