"""A real HTTP server on loopback that behaves as the web does, and tables that lead to it."""

from __future__ import annotations

import asyncio
import gzip
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import formatdate
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

Handler = Callable[["Web", asyncio.StreamWriter], Awaitable[None]]


@cache
def jpeg(seed: int = 0, size: tuple[int, int] = (96, 64), format: str = "JPEG", **options: object) -> bytes:
    """A picture whose bytes differ by seed (up to 65,535)."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    for bit in range(16):
        if seed >> bit & 1:
            x, y = bit % 4 * 16, bit // 4 * 16
            image.paste((250, 40, 90), (x, y, x + 14, y + 14))
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


class Web:
    """The server: `url(path)` for a page; `hits` counts requests, `most_at_once` those open together.

    `/robots.txt` (404 unless `robots` holds one) is counted by the host asked for, in `robots_hits`.
    """

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.robots: dict[str, str] = {}  # host:port or "*" -> a robots.txt, or how it misbehaves
        self.robots_hits: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.active = self.most_at_once = 0
        self.pages: dict[str, bytes] = {}  # path -> an image's bytes
        self.redirects: dict[str, str] = {}  # path -> where it leads
        self.broken_until = 0.0  # monotonic: until then every page is a 503
        self.num_broken = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            if path == "/robots.txt":
                host = next(li[5:].strip() for li in head.split("\r\n") if li.lower().startswith("host:"))
                self.robots_hits[host] += 1
                await self._robots(self.robots.get(host) or self.robots.get("*", "404"), writer)
                return
            for line in head.split("\r\n"):
                if line.lower().startswith("user-agent:"):
                    self.user_agents.add(line[11:].strip())
            self.hits[path] += 1
            self.active += 1
            self.most_at_once = max(self.most_at_once, self.active)
            try:
                await self._answer(path, writer)
            finally:
                self.active -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _robots(self, text: str, writer: asyncio.StreamWriter) -> None:
        if text.isdecimal():
            await send(writer, b"no", status=int(text), kind="text/plain")
        elif text == "hang":
            await asyncio.sleep(30)
        elif text == "10 MB":
            await send(writer, b"User-agent: *\nDisallow: /early/\n" + b"Disallow: /x\n" * 800_000 + b"Disallow: /\n")
        elif text.startswith("redirect "):
            await redirect(writer, text.split()[1])
        else:
            await send(writer, text.encode(), kind="text/plain")

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        first = self.hits[path] == 1
        name = path.strip("/").split("/")[0].split("?")[0]
        good = self.pages.get(path) or jpeg(7)
        if time.monotonic() < self.broken_until:
            self.num_broken += 1
            await send(writer, b"", status=503)
        elif path in self.redirects:
            await redirect(writer, self.redirects[path])
        elif path in self.pages:
            await send(writer, good)
        elif name == "slow":
            await asyncio.sleep(0.3)
            await send(writer, jpeg(int(path.rsplit("/", 1)[1])))
        elif name == "image":
            await send(writer, jpeg(int(path.rsplit("/", 1)[1].split("?")[0])))
        elif name in ("404", "403", "410", "500", "503"):
            await send(writer, b"no", status=int(name), kind="text/plain")
        elif name == "429-then-good":
            await send(writer, *((b"", 429, "text/plain", "Retry-After: 1\r\n") if first else (good,)))
        elif name == "429":
            await send(writer, b"", status=429)
        elif name == "503-until-a-date":
            date = formatdate(time.time() + 2, usegmt=True)
            await send(writer, *((b"", 503, "text/plain", f"Retry-After: {date}\r\n") if first else (good,)))
        elif name == "headers-drip":
            for byte in ok(len(good)):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)
        elif name == "headers-without-end":
            writer.write(b"HTTP/1.1 200 OK\r\n")
            for i in range(100_000):
                writer.write(b"X-%d: y\r\n" % i)
                await writer.drain()
        elif name == "header-too-long":
            await send(writer, good, headers=f"X-Long: {'y' * 200_000}\r\n")
        elif name == "two-lengths":
            await send(writer, good, headers="Content-Length: 7\r\n")
        elif name == "length-no-number":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + good)
        elif name == "chunks-no-number":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + good)
        elif name == "closed-at-once":
            writer.transport.abort()
        elif name == "packed-as-br":
            await send(writer, good, headers="Content-Encoding: br\r\n")
        elif name == "gzip-that-is-plain":
            await send(writer, good, headers="Content-Encoding: gzip\r\n")
        elif name == "gzip-cut":
            await send(writer, gzip.compress(good)[:-200], headers="Content-Encoding: gzip\r\n")
        elif name == "pdf":
            await send(writer, b"%PDF-1.7\n" + b"0" * 500)
        elif name == "html-200-not-found":
            await send(writer, b"\n\n <html><title>404</title></html>", kind="text/html; charset=utf-8")
        elif name == "closed-too-early":
            await send(writer, good[: len(good) // 2] + b"\xff\xd9")
        elif name == "header-lies":
            await send(writer, lying_png())
        elif name == "noise":
            await send(writer, b"\xff\xd8\xff" + bytes(i * 7919 % 251 for i in range(4000)))
        elif name == "to-private":
            await redirect(writer, "http://[::ffff:169.254.169.254]/")
        elif name == "to-odd-literal":
            await redirect(writer, "http://2852039166/latest/meta-data/")  # 169.254.169.254
        elif name == "to-nowhere":
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif name == "noai":
            await send(writer, good, headers="X-Robots-Tag: noai\r\n")
        elif name == "noai-case-variant":
            await send(writer, good, headers="x-rObots-TAG: all, NoImageAI\r\n")
        elif name == "noai-second-header":
            await send(writer, good, headers="X-Robots-Tag: otherbot: noindex\r\nX-Robots-Tag: edkit: none\r\n")
        elif name == "noai-for-others":
            await send(writer, good, headers="X-Robots-Tag: otherbot: noai, noindex\r\n")
        elif name == "tdm":
            await send(writer, good, headers="tdm-reservation: 1\r\ntdm-policy: https://example.org/p\r\n")
        elif name == "tdm-0":
            await send(writer, good, headers="tdm-reservation: 0\r\n")
        elif name == "kind":
            await send(writer, kinds()[path.rsplit("/", 1)[1]])
        elif name == "429-for-an-hour":
            await send(writer, b"", status=429, headers="Retry-After: 3600\r\n")
        elif name == "500-then-good":
            await send(writer, *((b"", 500) if first else (good,)))
        elif name == "hang":
            await asyncio.sleep(30)
        elif name == "hang-in-body":
            writer.write(ok(len(good)) + good[:100])
            await writer.drain()
            await asyncio.sleep(30)
        elif name == "drip":
            writer.write(ok(len(good)))
            for i in range(len(good)):
                writer.write(good[i : i + 1])
                await writer.drain()
                await asyncio.sleep(0.2)
        elif name == "reset-then-good":
            if first:
                writer.write(ok(len(good)) + good[:100])
                await writer.drain()
                writer.transport.abort()
            else:
                await send(writer, good)
        elif name == "truncated":
            await send(writer, good[: len(good) // 2])
        elif name == "html-as-jpeg":
            await send(writer, b"<!DOCTYPE html><html><body>Sorry</body></html>")
        elif name == "jpeg-as-html":
            await send(writer, good, kind="text/html")
        elif name == "length-too-long":
            writer.write(ok(len(good) + 500) + good)
        elif name == "length-too-short":
            writer.write(ok(len(good) - 500) + good)
        elif name == "chunked-cut-short":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + good[:100])
        elif name == "loop":
            await redirect(writer, self.url("/loop"))
        elif name == "endless-redirects":
            await redirect(writer, self.url(f"/endless-redirects/{self.hits.total()}"))
        elif name == "to-metadata":
            await redirect(writer, "http://169.254.169.254/latest/meta-data/")
        elif name == "to-file":
            await redirect(writer, "file:///etc/hostname")
        elif name == "redirect":
            await redirect(writer, "/image/77")
        elif name == "huge-announced":
            writer.write(ok(10**13))
            await writer.drain()
            await asyncio.sleep(5)
        elif name == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n")
            while True:
                writer.write(b"\0" * 65536)
                await writer.drain()
        elif name == "gzip":
            await send(writer, gzip.compress(good), headers="Content-Encoding: gzip\r\n")
        elif name == "gzip-bomb":
            await send(writer, gzip_bomb(), headers="Content-Encoding: gzip\r\n")
        elif name == "svg":
            await send(writer, b'<svg xmlns="http://www.w3.org/2000/svg"/>', kind="image/svg+xml")
        elif name == "empty":
            await send(writer, b"")
        elif name == "no-content":
            await send(writer, b"", status=204)
        elif name == "png-named.jpg":
            await send(writer, jpeg(21, format="PNG"))
        elif name == "garbage":
            writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        elif name == "pixel-flood":
            await send(writer, pixel_flood())
        elif name == "tiny":
            await send(writer, jpeg(3, (20, 20)))
        elif name == "long":
            await send(writer, jpeg(3, (600, 60)))
        await writer.drain()


@cache
def gzip_bomb() -> bytes:
    return gzip.compress(b"\0" * 50_000_000, 1)


@cache
def pixel_flood() -> bytes:
    """A small file whose header speaks of 900 million pixels."""
    size = struct.pack(">II", 30_000, 30_000) + bytes([1, 0, 0, 0, 0])
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@cache
def lying_png() -> bytes:
    """A PNG whose header speaks of five times the rows that are in it."""
    whole = jpeg(5, format="PNG")
    size = struct.pack(">II", 96, 300) + whole[24:29]
    return whole[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + whole[33:]


@cache
def kinds() -> dict[str, bytes]:
    """Good images of unusual kinds."""
    base = Image.open(io.BytesIO(jpeg(9))).convert("RGB")
    frames = [base, base.rotate(90), base.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(im: Image.Image, format: str, **options: object) -> bytes:
        out = io.BytesIO()
        im.save(out, format, **options)
        return out.getvalue()

    palette = base.quantize(16)
    return {
        "animated.gif": save(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": save(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": save(base.convert("CMYK"), "JPEG"),
        "grey.jpg": save(base.convert("L"), "JPEG"),
        "progressive.jpg": save(base, "JPEG", progressive=True),
        "16-bit.png": save(base.convert("I;16"), "PNG"),
        "palette-alpha.png": save(palette, "PNG", transparency=3),
        "rotated.jpg": save(base, "JPEG", exif=exif),
        "trailing-bytes.jpg": save(base, "JPEG", quality=60) + b"motion photo" * 50,
    }


def ok(length: int, kind: str = "image/jpeg") -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


async def send(
    writer: asyncio.StreamWriter, body: bytes, status: int = 200, kind: str = "image/jpeg", headers: str = ""
) -> None:
    length = f"Content-Length: {len(body)}\r\n" if status != 204 else ""
    head = f"HTTP/1.1 {status} Some\r\nContent-Type: {kind}\r\n{length}{headers}Connection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def redirect(writer: asyncio.StreamWriter, target: str) -> None:
    await send(writer, b"", status=302, headers=f"Location: {target}\r\n")


@pytest.fixture
def web() -> Iterator[Web]:
    """A server of its own for each test."""
    server = Web()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def one_web() -> Iterator[Web]:
    """A server for all tests of a file."""
    server = Web()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def laion(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Parquet table in LAION-2B's schema; columns not given get plausible values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(
        urls: Sequence[str | None],
        texts: Sequence[str | None] | None = None,
        *,
        name: str = "part-0.parquet",
        row_group_size: int = 1000,
        **columns: Sequence[object],
    ) -> Path:
        n = len(urls)
        given = {
            "URL": pa.array(urls, pa.string()),
            "TEXT": pa.array(texts if texts is not None else [f"scene {i} of many" for i in range(n)], pa.string()),
            "WIDTH": pa.array(columns.pop("width", [640] * n), pa.float64()),
            "HEIGHT": pa.array(columns.pop("height", [480] * n), pa.float64()),
            "similarity": pa.array(columns.pop("similarity", [0.3] * n), pa.float64()),
            "hash": pa.array(range(n), pa.int64()),
            "punsafe": pa.array(columns.pop("punsafe", [0.01] * n), pa.float32()),
            "pwatermark": pa.array(columns.pop("pwatermark", [0.1] * n), pa.float32()),
            "aesthetic": pa.array(columns.pop("aesthetic", [5.5] * n), pa.float32()),
            **{key: pa.array(values) for key, values in columns.items()},
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(given), path, row_group_size=row_group_size)
        return path

    return write
