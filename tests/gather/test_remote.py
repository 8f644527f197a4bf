"""Tables behind real loopback servers: by ranges, as a stream, refused, broken off, and on a hub."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edkit.data.errors import BadInput, UsageError
from edkit.gather import remote
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.laion import Filters, candidates
from edkit.gather.tables import locate, open_table


class Files:
    """A server of files; `ranges`, `token` and `breaks` say how it behaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.token = ""
        self.break_after = 0  # bytes of an answer after which it hangs up, until `breaks` is used up
        self.breaks = 0
        self.busy = 0  # how many requests to answer with 503 first
        self.sent = 0
        self.authorized: list[str] = []
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                return

            def do_GET(self) -> None:
                owner.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(request.path)
        self.authorized.append(request.headers.get("Authorization", ""))
        data = self.files.get(path)
        status, extra = 200, {}
        if self.busy:
            self.busy -= 1
            status, data = 503, b""
        elif self.token and self.authorized[-1] != f"Bearer {self.token}":
            status, data = 403, b""
        elif data is None:
            status, data = 404, b""
        elif self.ranges and request.headers.get("Range"):
            start, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
            total, first = len(data), int(start)
            data = data[first : int(end) + 1 if end else None]
            status, extra = 206, {"Content-Range": f"bytes {first}-{first + len(data) - 1}/{total}"}
        request.send_response(status)
        for name, value in extra.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if self.breaks and len(data) > self.break_after:
            self.breaks -= 1
            request.wfile.write(data[: self.break_after])
            request.close_connection = True
            return
        request.wfile.write(data)
        self.sent += len(data)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    server = Files()
    yield server
    server.server.shutdown()
    server.server.server_close()


def parquet(tmp_path: Path, rows: int = 20_000, **options: object) -> bytes:
    path = tmp_path / "made.parquet"
    table = pa.table({"URL": [f"http://e.org/{i}" for i in range(rows)], "TEXT": [f"dog {i}" for i in range(rows)],
                      "WIDTH": list(range(1, rows + 1)), "HEIGHT": [10**6] * rows,
                      "other": [str(i * 7919 % 10**9) * 60 for i in range(rows)]})  # fmt: skip
    pq.write_table(table, path, row_group_size=rows // 4, compression="none", use_dictionary=False, **options)
    return path.read_bytes()


def found(url: str, **filters: object) -> tuple[list[Candidate], Funnel]:
    funnel = Funnel()
    tables = [open_table(each) for each in locate([url])]
    return [c for some in candidates(tables, Filters(**filters), funnel) for c in some], funnel  # type: ignore[arg-type]


def test_only_the_wanted_columns_of_the_wanted_row_groups_are_fetched(files: Files, tmp_path: Path) -> None:
    files.files["/t.parquet"] = parquet(tmp_path)
    some, funnel = found(f"{files.base}/t.parquet", min_size=19_001)
    assert [c.row for c in some] == list(range(19_000, 20_000)) and funnel.rows == 20_000
    assert files.sent < len(files.files["/t.parquet"]) / 20
    assert some[0].table == f"{files.base}/t.parquet"


def test_a_server_without_ranges_is_read_all_the_same(files: Files, tmp_path: Path) -> None:
    files.ranges = False
    files.files["/t.parquet"] = parquet(tmp_path)
    assert len(found(f"{files.base}/t.parquet")[0]) == 20_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stream_that_breaks_off_goes_on_where_it_stood(files: Files, ranges: bool) -> None:
    lines = "url\ttext\n" + "".join(f"http://e.org/{i}\tdog {i}\n" for i in range(30_000))
    files.files["/t.tsv"] = lines.encode()
    files.ranges, files.break_after, files.breaks = ranges, 300_000, 2
    assert [c.row for c in found(f"{files.base}/t.tsv")[0]] == list(range(30_000))


def test_ranges_that_break_off_or_meet_a_busy_server_are_asked_again(files: Files, tmp_path: Path) -> None:
    files.files["/t.parquet"] = parquet(tmp_path)
    files.break_after, files.breaks, files.busy = 30_000, 3, 2
    assert len(found(f"{files.base}/t.parquet")[0]) == 20_000


def test_a_server_that_keeps_breaking_off_is_one_line(files: Files) -> None:
    files.files["/t.csv"] = b"url,text\n" + b"http://e.org/1,dog\n" * 1000
    files.break_after, files.breaks = 0, 10**6
    with pytest.raises(BadInput, match=r"t\.csv: its server broke off 5 times") as error:
        found(f"{files.base}/t.csv?secret=abc")
    assert "abc" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("ending", "pack"), [(".csv", bytes), (".csv.gz", gzip.compress), (".jsonl", bytes)])
def test_text_tables_are_streamed_and_unpacked(files: Files, ending: str, pack: Callable[[bytes], bytes]) -> None:
    if ending == ".jsonl":
        data = "\n".join(json.dumps({"url": f"http://e.org/{i}", "text": "é"}) for i in range(500))
    else:
        data = "url,text\n" + "".join(f"http://e.org/{i},é\n" for i in range(500))
    files.files[f"/t{ending}"] = pack(data.encode())
    some, _ = found(f"{files.base}/t{ending}")
    assert len(some) == 500 and some[499].caption == "é"


def test_what_a_server_refuses_says_how_to_get_in(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"HTTP 404 \(not found\)"):
        found(f"{files.base}/none.parquet")
    files.token = "hf_secret"
    with pytest.raises(BadInput, match=r"HTTP 403.*wants a login"):
        found(f"{files.base}/t.parquet")
    monkeypatch.setenv("HF_ENDPOINT", files.base)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(BadInput, match=r"accept the set's terms at .*/datasets/org/set\)") as error:
        found("hf://datasets/org/set/t.parquet")
    assert "hf_other" not in str(error.value)


def test_a_hubs_folder_pattern_and_file_are_read_with_its_token(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", files.base)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    files.token = "hf_secret"
    at = "/datasets/org/set/resolve/main/data/"
    for name in ("a.parquet", "b.parquet", "notes.md"):
        files.files[at + name] = parquet(tmp_path, 40)
    listing = [{"type": "file", "path": f"data/{name}"} for name in ("b.parquet", "notes.md", "a.parquet")]
    listing.append({"type": "directory", "path": "data/more.parquet"})
    files.files["/api/datasets/org/set/tree/main/data"] = json.dumps(listing).encode()
    for asked in ("hf://datasets/org/set/data", "hf://datasets/org/set/data/*.parquet"):
        sources = locate([asked])
        assert [source.name for source in sources if isinstance(source, remote.Remote)] == [
            "hf://datasets/org/set/data/a.parquet",
            "hf://datasets/org/set/data/b.parquet",
        ]
    assert len(found("hf://datasets/org/set/data/a.parquet")[0]) == 40
    with pytest.raises(UsageError, match="hf://datasets/ORG/NAME"):
        locate(["hf://models/x"])


def test_the_hubs_token_goes_to_no_other_server(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    files.files["/t.csv"] = b"url,text\nhttp://e.org/1,dog\n"
    assert found(f"{files.base}/t.csv")[0] and set(files.authorized) == {""}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://u:p@e.org/a/t.parquet?X-Amz-Signature=1&token=2#x", "https://e.org/a/t.parquet"),
        ("https://e.org/get?sig=1&file=a/t.csv.gz", "https://e.org/get?file=a/t.csv.gz"),
    ],
)
def test_names_hold_no_secrets(url: str, name: str) -> None:
    assert remote.public_name(url) == name
    assert "X-Amz" not in repr(locate([url]))
