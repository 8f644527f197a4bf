"""Files on the network: found by name, read by byte ranges or as a stream, taken up again where they broke off.

`https://` and `hf://` speak HTTP by requests; `s3://` and other schemes go through fsspec's drivers. The addresses are
the user's own, so they may lead anywhere; what they answer is read as a table and as nothing else.
"""

from __future__ import annotations

import fnmatch
import io
import os
import random
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit, urlunsplit

from edkit.data.errors import BadInput, MissingExtra, UsageError
from edkit.data.hub import token as hub_token

if TYPE_CHECKING:
    import requests

_PIECE_BYTES = 2 << 20  # fetched at once
_HELD_PIECES = 24  # of one open file
_TIMEOUT = (15.0, 60.0)  # seconds: to connect, between bytes
_TRIES = 5  # without a byte more
_FIRST_PAUSE = 0.5  # seconds; doubles
_MOST_PAUSE = 30.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_GLOB = re.compile(r"[*?\[]")


def is_remote(text: str) -> bool:
    """Whether a table's name is an address on the network."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None or text.startswith("hf:")


@dataclass(frozen=True, slots=True, eq=False)
class Remote:
    """One file on the network; `name` may be shown and kept, `url` may hold a signature."""

    name: str
    url: str = field(repr=False)
    _backend: _Backend = field(repr=False)

    @contextmanager
    def open_random(self) -> Iterator[RemoteFile]:
        """The file for reading anywhere; from a server without byte ranges it is first copied to a temporary file."""
        file = RemoteFile(self._backend)
        try:
            yield file
        finally:
            file.close()

    @contextmanager
    def open_stream(self) -> Iterator[IO[bytes]]:
        """The file's bytes from the start, taken up again where the connection breaks off."""
        with io.BufferedReader(_Stream(self._backend.stream), buffer_size=1 << 18) as stream:
            yield stream


class _Backend(Protocol):
    name: str

    def size(self) -> int: ...
    def read(self, start: int, end: int) -> bytes: ...
    def stream(self) -> Iterator[bytes]: ...


# ---- which files


def locate_remote(text: str, is_table: Callable[[str], bool]) -> list[Remote]:
    """The files an address, a folder or a pattern names, in sorted order; folders' hold only tables."""
    scheme = text.split(":", 1)[0].lower()
    if scheme in ("http", "https"):
        return [_web_file(text)]
    if scheme == "hf":
        return _hub_files(text, is_table)
    return _driver_files(text, is_table)


def _web_file(url: str) -> Remote:
    hub = _hub()
    headers = _hub_headers() if _origin(url) == _origin(hub) else {}
    name = public_name(url)
    return Remote(
        name, url, _Http(url, name, headers, _gated_hint(url) if headers or _origin(url) == _origin(hub) else "")
    )


def public_name(url: str) -> str:
    """An address without user, fragment and query, but for a parameter that names the file."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path
    named = [value for _, value in parse_qsl(parts.query) if re.fullmatch(r"[\w./ -]+\.[A-Za-z0-9.]{2,14}", value)]
    query = ""
    if not re.search(r"\.[A-Za-z0-9]{2,10}$", path) and named:
        query = f"file={quote(named[0])}"
    return urlunsplit((parts.scheme, host, path, query, ""))


# ---- Hugging Face


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _hub_headers() -> dict[str, str]:
    token = hub_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _gated_hint(url: str) -> str:
    match = re.match(r"/(datasets/[^/]+/[^/]+)", urlsplit(url).path)
    page = f"{_hub()}/{match[1]}" if match else _hub()
    login = "" if hub_token() else " and log in: hf auth login, or HF_TOKEN"
    return f"accept the set's terms at {page}{login}"


def _hub_files(text: str, is_table: Callable[[str], bool]) -> list[Remote]:
    # org/name@revision/path; a revision such as refs/convert/parquet has slashes of its own
    match = re.fullmatch(r"hf:/*datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?", text)
    if match is None:
        raise UsageError(f"{text}: an address on the hub is hf://datasets/ORG/NAME/path/*.parquet")
    repo, revision, path = match[1], unquote(match[2] or "main"), (match[3] or "").strip("/")
    at = f"@{match[2]}" if match[2] else ""
    prefix = f"{_hub()}/datasets/{repo}/resolve/{quote(revision, safe='')}/"

    def file(path: str) -> Remote:
        url = prefix + quote(path)
        name = f"hf://datasets/{repo}{at}/{path}"
        return Remote(name, url, _Http(url, name, _hub_headers(), _gated_hint(url)))

    if is_table(path) and not _GLOB.search(path):
        return [file(path)]
    folder = path
    if _GLOB.search(path):
        folder = "/".join(path[: _GLOB.search(path).start()].split("/")[:-1])  # type: ignore[union-attr]
    api = f"{_hub()}/api/datasets/{repo}/tree/{quote(revision, safe='')}"
    api += (f"/{quote(folder)}" if folder else "") + "?recursive=true"
    listing = _Http(api, f"hf://datasets/{repo}", _hub_headers(), _gated_hint(f"{_hub()}/datasets/{repo}"))
    paths = [entry["path"] for entry in listing.pages() if entry.get("type") == "file"]
    return [file(found) for found in sorted(_wanted(paths, path, is_table))]


def _wanted(paths: Sequence[str], asked: str, is_table: Callable[[str], bool]) -> list[str]:
    """Of a folder's files those that a pattern, or the folder's name, asks for."""
    if _GLOB.search(asked):
        pattern = re.compile(_pattern(asked))
        return [path for path in paths if pattern.fullmatch(path) and is_table(path)]
    return [path for path in paths if is_table(path) and not any(part.startswith(".") for part in path.split("/"))]


def _pattern(glob: str) -> str:
    """A glob as a regular expression: `*` and `?` stay within a folder, `**/` crosses folders."""
    parts = []
    for part in glob.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            inside = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            parts.append(inside.replace(".*", "[^/]*").replace("(?>", "(?:") + "/")
    return "".join(parts).removesuffix("/")


# ---- HTTP


class _Http:
    """A file behind an http or https address."""

    def __init__(self, url: str, name: str, headers: dict[str, str], hint: str) -> None:
        self.url, self.name, self.headers, self.hint = url, name, headers, hint
        self._local = threading.local()
        self._lock = threading.Lock()
        self._direct = ""  # where redirects led, which saves asking again for every range
        self._size: int | None = None
        self._tag = ""
        self._copy: IO[bytes] | None = None  # of a file from a server without byte ranges

    def size(self) -> int:
        with self._lock:
            if self._size is None:
                first = self._get(range_=(0, 1))
                with first:
                    self._learn(first)
                    if first.status_code != 206:
                        self._take_copy(first)
            assert self._size is not None
            return self._size

    def read(self, start: int, end: int) -> bytes:
        self.size()
        if self._copy is not None:
            with self._lock:
                self._copy.seek(start)
                return self._copy.read(end - start)
        data = bytearray()
        tries = 0
        while len(data) < end - start:
            before = len(data)
            try:
                with self._get(range_=(start + len(data), end)) as answer:
                    if answer.status_code != 206:
                        raise BadInput("its server gave no byte range this time", where=self.name)
                    self._same(answer)
                    for more in answer.iter_content(1 << 18):
                        data += more
                        if len(data) > end - start:
                            raise BadInput("its server gave more bytes than were asked for", where=self.name)
            except _broken() as error:
                tries = self._again(tries, len(data) > before, error)
        return bytes(data)

    def stream(self) -> Iterator[bytes]:
        position = tries = 0
        while True:
            before = position
            try:
                with self._get(range_=(position, None) if position else None) as answer:
                    skip = 0
                    if position and answer.status_code == 206:
                        self._same(answer)
                    else:
                        skip = position  # no ranges there: read on from the start
                        self._same(answer)
                    for more in answer.iter_content(1 << 18):
                        passed = more[skip:]
                        skip = max(0, skip - len(more))
                        if passed:
                            position += len(passed)
                            yield passed
                    return
            except _broken() as error:
                tries = self._again(tries, position > before, error)

    def pages(self) -> Iterator[dict[str, Any]]:
        """The entries of a JSON list that comes in pages, led on by `Link: <...>; rel="next"`."""
        url = self.url
        while True:
            with self._get(url=url) as answer:
                entries = answer.json()
                more = answer.links.get("next", {}).get("url", "")
            if not isinstance(entries, list):
                raise BadInput("its server's listing is none", where=self.name)
            yield from (entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str))
            if not more:
                return
            url = urljoin(url, more)
            if _origin(url) != _origin(self.url):
                raise BadInput("its server's listing leads elsewhere", where=self.name)

    def _get(self, *, range_: tuple[int, int | None] | None = None, url: str = "") -> requests.Response:
        """An answer of status 200 or 206, its body not read yet."""
        import requests

        tries = 0
        while True:
            direct = self._direct if not url else ""
            asked = direct or url or self.url
            headers = {"User-Agent": "edkit", "Accept-Encoding": "identity"}
            if _origin(asked) == _origin(self.url):
                headers |= self.headers  # requests itself takes them away where a redirect leaves the host
            if range_ is not None:
                start, end = range_
                headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            try:
                answer = self._session().get(asked, headers=headers, stream=True, timeout=_TIMEOUT)
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
                raise UsageError(f"{self.name}: no address: {error}") from None
            except _broken() as error:
                tries = self._again(tries, False, error)
                continue
            if answer.status_code in (200, 206):
                if answer.history and not url:
                    self._direct = answer.url
                return answer
            status = answer.status_code
            after = answer.headers.get("Retry-After", "")
            answer.close()
            if direct and status in (400, 401, 403, 404, 410):
                self._direct = ""  # a signed address that has run out
                continue
            if status in _AGAIN and tries < _TRIES:
                tries = self._again(tries, False, None, pause=float(after) if after.isdigit() else None)
                continue
            raise BadInput(f"its server answers HTTP {status}{_STATUS.get(status, '')}", where=self.name,
                           mend=self._mend(status))  # fmt: skip

    def _mend(self, status: int) -> str | None:
        if status in (401, 403):
            return self.hint or "it wants a login, or a signed address that has not run out"
        return "run again later" if status in _AGAIN else None

    def _session(self) -> requests.Session:
        import requests

        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = True
            session.auth = _keep_headers
        return session

    def _learn(self, answer: requests.Response) -> None:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if answer.status_code == 206:
            if not total.isdigit():
                raise BadInput("its server doesn't say how long it is", where=self.name)
            self._size = int(total)
        self._tag = _tag(answer)

    def _same(self, answer: requests.Response) -> None:
        tag = _tag(answer)
        if self._tag and tag and tag != self._tag:
            raise BadInput("changed while it was read", where=self.name, mend="run again")
        self._tag = self._tag or tag

    def _take_copy(self, answer: requests.Response) -> None:
        copy = tempfile.TemporaryFile(prefix="edkit-")  # noqa: SIM115 - as long-lived as this object
        answer.close()
        for more in self.stream():
            copy.write(more)
        self._copy, self._size = copy, copy.tell()

    def _again(self, tries: int, grew: bool, error: BaseException | None, *, pause: float | None = None) -> int:
        """Wait before the next try; raises where there were enough of them."""
        tries = 1 if grew else tries + 1
        if tries > _TRIES:
            raise BadInput(f"its server broke off {_TRIES} times: {_reason(error)}", where=self.name,
                           mend="run again later") from error  # fmt: skip
        wait = _FIRST_PAUSE * 2 ** (tries - 1) * random.uniform(0.7, 1.3) if pause is None else pause
        time.sleep(min(_MOST_PAUSE, wait))
        return tries


_STATUS = {
    401: " (wants a login)",
    403: " (forbidden)",
    404: " (not found)",
    410: " (gone)",
    429: " (too many requests)",
}


def _keep_headers(request: Any) -> Any:
    """No login from a .netrc in the place of the one given."""
    return request


def _broken() -> tuple[type[BaseException], ...]:
    import requests
    import urllib3

    return (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)


def _reason(error: BaseException | None) -> str:
    """An error without the address in it, which may be a signed one."""
    text = str(error) if error is not None else "busy"
    match = re.search(
        r"\[Errno[^\]]*\][^'\")]*|[Tt]imed out|IncompleteRead\([^)]*\)|[Nn]ame or service not known", text
    )
    return match[0] if match else type(error).__name__


def _tag(answer: requests.Response) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


# ---- fsspec


def _driver_files(text: str, is_table: Callable[[str], bool]) -> list[Remote]:
    scheme = text.split(":", 1)[0].lower()
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(text, **_driver_options(scheme))
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme, f"a driver for {scheme}://")
        raise MissingExtra("remote", package) from error
    except ValueError:
        raise UsageError(f"{text}: no such kind of address", mend="https://, hf://datasets/..., s3://") from None
    root = text[: len(text) - len(path)] if text.endswith(path) else f"{scheme}://"
    with _driver_told(text):
        if _GLOB.search(path):
            paths = [found for found in system.glob(path) if is_table(found)]
        elif is_table(path):
            paths = [path]
        else:
            paths = [found for found in system.find(path) if is_table(found)]
    return [Remote(root + p, root + p, _Driver(system, p, root + p)) for p in sorted(map(str, paths))]


def _driver_options(scheme: str) -> dict[str, Any]:
    if scheme not in ("s3", "s3a"):
        return {}
    # public buckets are read without a login where there is none
    has_login = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN"))
    has_login = has_login or Path("~/.aws").expanduser().exists()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"anon": not has_login, **({"endpoint_url": endpoint} if endpoint else {})}


class _Driver:
    """A file behind one of fsspec's drivers."""

    def __init__(self, system: Any, path: str, name: str) -> None:
        self.system, self.path, self.name = system, path, name
        self._size: int | None = None

    def size(self) -> int:
        if self._size is None:
            with _driver_told(self.name):
                self._size = int(self.system.size(self.path))
        return self._size

    def read(self, start: int, end: int) -> bytes:
        with _driver_told(self.name):
            return bytes(self.system.cat_file(self.path, start=start, end=end))

    def stream(self) -> Iterator[bytes]:
        for start in range(0, self.size(), _PIECE_BYTES):
            yield self.read(start, min(start + _PIECE_BYTES, self.size()))


@contextmanager
def _driver_told(name: str) -> Iterator[None]:
    """Turns a driver's errors, of which each has its own, into one line."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput("no such file", where=name) from None
    except PermissionError as error:
        raise BadInput(f"its server refuses it: {error}", where=name, mend="log in as its driver expects") from error
    except (BadInput, MissingExtra, KeyboardInterrupt):
        raise
    except Exception as error:
        raise BadInput(f"can't be read: {type(error).__name__}: {error}", where=name) from error


# ---- reading


class RemoteFile(io.RawIOBase):
    """A remote file's bytes by seek and read, fetched in pieces that are read ahead within what was `expect`ed."""

    def __init__(self, backend: _Backend) -> None:
        super().__init__()
        self._backend = backend
        self._position = 0
        self._size = backend.size()
        self._ranges: list[tuple[int, int]] = []
        self._pieces: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="edkit-remote")

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """What will be read, as (start, end): each from its start on."""
        self._ranges = sorted((max(0, start), min(end, self._size)) for start, end in ranges)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file."""
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        parts = []
        while self._position < end:
            key = self._piece_at(self._position, end)
            data = self._fetch(key).result()
            self._ahead(key)
            part = data[self._position - key[0] : end - key[0]]
            if not part:
                raise EOFError("the file is shorter than its server said")
            parts.append(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pieces.clear()
        super().close()

    def _piece_at(self, position: int, end: int) -> tuple[int, int]:
        """The piece that holds a byte: a part of what was expected, or just what is read."""
        for key in self._pieces:
            if key[0] <= position < key[1]:
                return key
        for start, stop in self._ranges:
            if start <= position < stop:
                first = start + (position - start) // _PIECE_BYTES * _PIECE_BYTES
                return first, min(first + _PIECE_BYTES, stop)
        # the footer is asked for in two small reads: one of 64 KB holds both as a rule
        first = max(0, self._size - 65536) if position >= self._size - 65536 else position
        return first, max(end, self._size if first < position else end)

    def _fetch(self, key: tuple[int, int]) -> Future[bytes]:
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._pool.submit(self._backend.read, *key)
            while len(self._pieces) > _HELD_PIECES:
                self._pieces.popitem(last=False)
        self._pieces.move_to_end(key)
        return piece

    def _ahead(self, key: tuple[int, int]) -> None:
        """Starts the piece after this one."""
        for start, stop in self._ranges:
            if start <= key[0] and key[1] < stop:
                self._fetch((key[1], min(key[1] + _PIECE_BYTES, stop)))


class _Stream(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, start: Callable[[], Iterator[bytes]]) -> None:
        super().__init__()
        self._parts = start()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._parts, b"")
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n
