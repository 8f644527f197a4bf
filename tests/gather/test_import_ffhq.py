"""FFHQ comes in from folders and from servers that break off, lie, or have no quota left."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.dataset import read
from edkit.data.errors import BadInput, UsageError
from edkit.gather import ffhq, resume
from edkit.gather.ffhq import import_ffhq, records
from edkit.gather.local import Refused
from edkit.gather.resume import Downloader

NUM = 12
QUOTA = b"<html><title>Google Drive - Quota exceeded</title>Too many users have viewed or downloaded this file"


def png(i: int) -> bytes:
    """An incompressible PNG of some 27 kB, so that it can break off in its middle."""
    out = io.BytesIO()
    pixels = random.Random(i).randbytes(96 * 96 * 3)
    Image.frombytes("RGB", (96, 96), pixels).save(out, "PNG")
    return out.getvalue()


def make(folder: Path, base: str = "https://drive.example/uc?id=") -> Path:
    """FFHQ's JSON and its tree of 1024 px files (here of 96)."""
    found: dict[str, Any] = {}
    for i in range(NUM):
        name, data = f"images1024x1024/00000/{i:05d}.png", png(i)
        path = folder / "ffhq" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found[str(i)] = {
            "category": "training",
            "metadata": {
                "photo_url": f"https://www.flickr.example/photos/{i}/",
                "photo_title": 'Zoë "} , {" \\',
                "author": f"Jürgen {i}",
                "country": "",
                "license": "Attribution License",
                "license_url": "https://creativecommons.org/licenses/by/2.0/",
            },
            "image": {
                "file_url": f"{base}{i}",
                "file_path": name,
                "file_size": len(data),
                "file_md5": hashlib.md5(data).hexdigest(),
                "pixel_size": [96, 96],
                "face_landmarks": [[131.62, 453.8]] * 68,
            },
            "thumbnail": {"file_url": f"{base}t{i}", "file_path": f"thumbnails128x128/00000/{i:05d}.png"},
        }
    (folder / "ffhq.json").write_text(json.dumps(found, indent=2, ensure_ascii=False), "utf-8")
    return folder / "ffhq.json"


def ledger(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger())


def pictures(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.png"))}


# ---- the JSON


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(), values, max_size=4), max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
@settings(max_examples=80, deadline=None)
def test_records_are_what_json_loads_gives_however_the_file_is_cut(data: Any, chunk: int, indent: int | None) -> None:
    import tempfile

    text = json.dumps(data, indent=indent, ensure_ascii=False)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        text = json.dumps(data, indent=indent)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "x.json")
        path.write_text(text, "utf-8", newline="")
        patch.setattr(ffhq, "_CHUNK", chunk)
        assert list(records(path)) == list(data.items())
        if len(text) > 2:
            path.write_text(text[:-1], "utf-8", newline="")
            with pytest.raises(BadInput):
                list(records(path))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"0": 3}', '{"0" {}}', '{"0": {} "1": {}}', "{0: {}}", '{"0": {"a": nope}}']
)
def test_a_json_that_is_none_of_ffhqs_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, "utf-8")
    with pytest.raises(BadInput, match=r"x\.json: no ffhq-dataset-v2\.json"):
        list(records(tmp_path / "x.json"))


def test_a_large_json_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    record = json.dumps({"image": {"file_path": "a.png", "face_landmarks": [[131.62, 453.8]] * 68}}, indent=4)
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        for i in range(6_000):
            file.write(f'{"," if i else ""}"{i}": {record}')
        file.write("}")
    import tracemalloc

    tracemalloc.start()
    assert sum(1 for _ in records(path)) == 6_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20e6 and peak < 8e6


# ---- folders


@pytest.mark.parametrize("layout", ["tree", "numbered", "flat"])
def test_files_are_found_in_each_layout_with_author_licence_and_page(layout: str, tmp_path: Path) -> None:
    metadata = make(tmp_path)
    images = tmp_path / "ffhq"
    if layout == "numbered":
        images /= "images1024x1024"
    if layout == "flat":
        images = images / "images1024x1024" / "00000"
    result = import_ffhq(metadata=metadata, images=images, out=tmp_path / "out", link=True)
    assert result.kept == NUM and {s.caption.text for s in read(tmp_path / "out")} == {"person"}
    for i, row in enumerate(ledger(tmp_path / "out")):
        assert (row.author, row.licence) == (f"Jürgen {i}", "https://creativecommons.org/licenses/by/2.0/")
        assert row.extra is not None and row.extra["page"] == f"https://www.flickr.example/photos/{i}/"
        assert row.path is not None and row.path.name == f"person_({i + 1}).png"


def test_wrong_sizes_wrong_bytes_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    metadata = make(tmp_path)
    folder = tmp_path / "ffhq" / "images1024x1024" / "00000"
    (folder / "00000.png").write_bytes(png(0) + b"!")
    same_size = bytearray(png(1))
    same_size[3000] ^= 1
    (folder / "00001.png").write_bytes(same_size)
    (folder / "00002.png").unlink()
    result = import_ffhq(metadata=metadata, images=tmp_path / "ffhq", out=tmp_path / "out")
    wrong = result.outcomes.get("hash", 0) + result.outcomes.get("broken-image", 0)
    assert (result.kept, result.outcomes["wrong-size"], wrong, result.outcomes["missing"]) == (NUM - 3, 1, 1, 1)
    assert import_ffhq(metadata=metadata, images=tmp_path / "ffhq", out=tmp_path / "x", size="wild").dropped == {
        "no wild image listed": NUM
    }


def test_options_that_do_not_go_together_are_one_line(tmp_path: Path) -> None:
    metadata = make(tmp_path)
    for wrong in (
        {},
        {"images": tmp_path, "download": True},
        {"images": tmp_path / "nowhere"},
        {"images": tmp_path, "base_urls": ["http://a.example"]},
        {"images": tmp_path, "size": "256"},
    ):
        with pytest.raises(UsageError):
            import_ffhq(metadata=metadata, out=tmp_path / "out", **wrong)  # type: ignore[arg-type]


# ---- servers


class Mirror(http.server.ThreadingHTTPServer):
    """FFHQ's tree over HTTP, with Range; `mood` makes some files go wrong."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str]] = []
        self.mood: dict[str, str] = {}
        self.sent: dict[str, int] = {}
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, name = self.server, self.path.rpartition("/")[2]
        asked = self.headers.get("Range", "")
        server.asked.append((name, asked))
        mood = server.mood.get(name, "")
        times = sum(1 for one, _ in server.asked if one == name)
        path = server.root / self.path.lstrip("/")
        if mood == "quota":
            return self.answer(200, QUOTA, {"Content-Type": "text/html; charset=utf-8"})
        if mood == "busy" and times == 1:
            return self.answer(503, b"", {"Retry-After": "0"})
        if mood == "gone" or not path.is_file():
            return self.answer(404, b"no")
        data = path.read_bytes()
        if mood == "other":
            data = png(99)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mood != "no range" else 0
        if start >= len(data):
            return self.answer(416, b"")
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        body = data[start:]
        if mood in ("breaks", "no range") and times < 3:
            return self.answer(206 if start else 200, body, headers, cut=len(body) // 2)
        return self.answer(206 if start else 200, body, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int = -1) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "image/png", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body if cut < 0 else body[:cut]
        name = self.path.rpartition("/")[2]
        self.server.sent[name] = self.server.sent.get(name, 0) + len(sent)
        self.wfile.write(sent)
        self.close_connection = True


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    make(tmp_path)
    server = Mirror(tmp_path / "ffhq")
    yield server
    server.shutdown()
    server.server_close()


def test_downloads_break_off_and_go_on_where_they_stopped(tmp_path: Path, mirror: Mirror) -> None:
    mirror.mood = {"00000.png": "breaks", "00001.png": "no range", "00002.png": "busy"}
    result = import_ffhq(
        metadata=tmp_path / "ffhq.json",
        download=True,
        base_urls=[mirror.url],
        out=tmp_path / "out",
        allow_private_hosts=True,
    )
    assert result.outcomes == {"ok": NUM}, result.failed
    assert [data for _, data in sorted(pictures(tmp_path / "out").items())] == [
        data for _, data in sorted((f"person_({i + 1}).png", png(i)) for i in range(NUM))
    ]
    # each byte of the one that breaks off came once
    assert mirror.sent["00000.png"] == len(png(0)) and mirror.sent["00001.png"] > len(png(1))
    assert any(asked.startswith("bytes=") for name, asked in mirror.asked if name == "00000.png")
    assert not list((tmp_path / "out" / ".edkit" / "cache" / "ffhq").iterdir())


def test_quota_pages_wrong_bytes_and_missing_files_go_to_the_next_mirror(tmp_path: Path, mirror: Mirror) -> None:
    good = Mirror(tmp_path / "ffhq")
    mirror.mood = {"00000.png": "quota", "00001.png": "other", "00002.png": "gone"}
    try:
        alone = import_ffhq(
            metadata=tmp_path / "ffhq.json", download=True, base_urls=[mirror.url], out=tmp_path / "a",
            allow_private_hosts=True, retries=0,
        )  # fmt: skip
        assert {k: alone.outcomes.get(k) for k in ("quota", "http-404", "ok")} == {
            "quota": 1,
            "http-404": 1,
            "ok": NUM - 3,
        }
        assert alone.outcomes.get("hash", 0) + alone.outcomes.get("wrong-size", 0) == 1
        assert ("images1024x1024/00000/00000.png", "Google Drive answered with its quota page") in alone.failed
        both = import_ffhq(
            metadata=tmp_path / "ffhq.json", download=True, base_urls=[mirror.url, good.url], out=tmp_path / "a",
            allow_private_hosts=True, retries=0,
        )  # fmt: skip
        assert both.outcomes == {"ok": 3} and both.total == NUM
    finally:
        good.shutdown()
        good.server_close()


def test_no_address_leads_to_a_private_host(tmp_path: Path, mirror: Mirror) -> None:
    result = import_ffhq(
        metadata=tmp_path / "ffhq.json", download=True, base_urls=[mirror.url], out=tmp_path / "out", limit=3, retries=0
    )
    assert set(result.outcomes) == {"private-address"} and not mirror.asked


def test_no_key_or_checksum_of_the_json_names_a_file_on_this_machine(tmp_path: Path, mirror: Mirror) -> None:
    path, mine = "images1024x1024/00000/00000.png", tmp_path / "work.part"
    mine.write_bytes(b"my own half-done download")
    leads_out = "../../../../" + "x" * 20  # of a checksum's length
    url = f"{mirror.url}/{path}"
    (tmp_path / "hostile.json").write_text(
        json.dumps(
            {
                str(tmp_path / "work"): {"image": {"file_url": url, "file_path": path}},
                "../../../../y": {"image": {"file_url": f"{url}?none", "file_path": path}},
                "0": {"image": {"file_url": url.replace("0.png", "1.png"), "file_path": path, "file_md5": leads_out}},
            }
        )
    )
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    result = import_ffhq(
        metadata=tmp_path / "hostile.json", download=True, out=tmp_path / "out", allow_private_hosts=True, retries=0
    )
    assert result.outcomes == {"ok": 1, "http-404": 1, "hash": 1}, result.failed
    assert mine.read_bytes() == b"my own half-done download"
    assert {p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "out" not in p.parents} == before


def test_a_file_without_a_size_said_is_not_taken_for_ever(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "MAX_BYTES", 10_000)
    with (
        Downloader(timeout=5, retries=0, user_agent="t", allow_private=True) as downloader,
        pytest.raises(Refused, match="too-large"),
    ):
        downloader.get([f"{mirror.url}/images1024x1024/00000/00004.png"], tmp_path / "x.part", size=0, md5="")
    assert (tmp_path / "x.part").stat().st_size == 0


def test_a_part_of_another_version_is_thrown_away(tmp_path: Path, mirror: Mirror) -> None:
    part, data = tmp_path / "parts" / "x.part", png(4)
    part.parent.mkdir()
    part.write_bytes(b"?" * 5000)
    with Downloader(timeout=5, retries=1, user_agent="t", allow_private=True) as downloader:
        url = f"{mirror.url}/images1024x1024/00000/00004.png"
        assert downloader.get([url], part, size=len(data), md5=hashlib.md5(data).hexdigest()) == data
        part.write_bytes(b"?" * (len(data) + 10))
        assert downloader.get([url], part, size=len(data), md5=hashlib.md5(data).hexdigest()) == data


def test_killed_in_the_middle_it_goes_on_and_no_whole_file_is_fetched_twice(tmp_path: Path, mirror: Mirror) -> None:
    script = (
        "import os, sys, threading, time; from pathlib import Path\n"
        "from edkit.gather.ffhq import import_ffhq; from edkit.gather import resume\n"
        "taken = resume.Downloader.get; seen = []\n"
        "def get(*a, **k):\n"
        "    data = taken(*a, **k); seen.append(1)\n"
        "    if len(seen) == 5: os.kill(os.getpid(), 9)\n"
        "    return data\n"
        "resume.Downloader.get = get\n"
        "import_ffhq(metadata=Path('ffhq.json'), download=True, base_urls=[sys.argv[1]], out=Path('out'),\n"
        "            allow_private_hosts=True, concurrency=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, mirror.url], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    result = import_ffhq(
        metadata=tmp_path / "ffhq.json",
        download=True,
        base_urls=[mirror.url],
        out=tmp_path / "out",
        allow_private_hosts=True,
    )
    assert result.total == NUM and sum(mirror.sent.values()) <= sum(len(png(i)) for i in range(NUM)) + len(png(0))
    assert [s.caption.text for s in read(tmp_path / "out")] == ["person"] * NUM
