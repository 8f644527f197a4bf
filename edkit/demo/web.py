"""The web the demo gathers from: drawn pictures with a real web's faults, their table, and their server."""

from __future__ import annotations

import io
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edkit.data.progress import Progress
from edkit.demo.place import Place, Wish

if TYPE_CHECKING:
    from PIL import Image

    from edkit.nano.world import Scene

Fault = Literal[
    "",
    "copy",
    "resized",
    "recompressed",
    "blurred",
    "cut",
    "gone",
    "page",
    "unsafe",
    "watermark",
    "small",
    "other",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: a picture of the web, and what is wrong with it."""

    name: str  # of its file in the web folder
    caption: str
    fault: Fault = ""
    scene: Scene | None = None
    number: int = 0  # of the drawing: two rows with one number show the same picture
    side: int = 256  # pixels


_OTHER = (
    "cheap flights to Lisbon, book now",
    "garden chairs, set of four",
    "our team at the summer party",
    "size chart",
    "apple pie recipe, step 3",
    "logo",
    "used car, one owner, low mileage",
)


def rows_of(wish: Wish) -> list[Row]:
    """The table's rows: `num_pool` good pictures, no two of one scene, and a web's faults among them."""
    from edkit.data import random
    from edkit.nano import world

    scenes: dict[tuple[str, ...], Scene] = {}
    some = max(1, wish.num_pool // 40)
    wanted = wish.num_pool + 8 * some
    for index in range(100 * wanted):
        scene = world.training_scene(index, wish.seed)
        scenes.setdefault((*scene.triple, scene.position, scene.size), scene)
        if len(scenes) == wanted:
            break
    drawn = list(scenes.values())
    rows: list[Row] = []

    def add(fault: Fault, scene: Scene | None, number: int, *, caption: str = "", side: int = 256) -> None:
        code = random.words(1, wish.seed, "demo web", len(rows))[0]
        said = caption or (world.caption(scene) if scene else "")
        row = Row(name=f"{int(code):016x}.jpg", caption=said, fault=fault, scene=scene, number=number, side=side)
        rows.append(row)

    for number, scene in enumerate(drawn[: wish.num_pool]):
        add("", scene, number)
    for i in range(some):
        twins: tuple[tuple[Fault, int], ...] = (("copy", 256), ("resized", 176), ("recompressed", 256))
        for j, (fault, side) in enumerate(twins):
            number = (3 * i + j) % wish.num_pool
            # another site tells the same picture in other words
            scene = replace(drawn[number], phrasing=drawn[number].phrasing + 2)
            add(fault, scene, number, side=side)
    left: tuple[Fault, ...] = ("blurred", "blurred", "cut", "gone", "gone", "unsafe", "watermark", "small")
    for i, scene in enumerate(drawn[wish.num_pool :]):
        fault = left[i % len(left)]
        add(fault, scene, wish.num_pool + i, side=96 if fault == "small" else 256)
    for i in range(max(1, some // 4)):
        add("page", drawn[i], i)
    for i in range(4 * some):
        add("other", None, 0, caption=_OTHER[i % len(_OTHER)], side=640)
    order = random.permutation(len(rows), wish.seed, "demo table")
    return [rows[i] for i in order.tolist()]


def file_of(row: Row, seed: int) -> bytes | None:
    """What the web answers for a row; None: nothing."""
    from PIL import Image, ImageFilter

    from edkit.nano import world

    if row.fault in ("gone", "unsafe", "watermark", "small", "other"):
        return None  # gone, or never to be asked for
    if row.fault == "page":
        return b"<!doctype html><title>Moved</title><p>This picture has moved.</p>\n"
    assert row.scene is not None
    image = world.draw(row.scene, seed * 1_000_003 + row.number, size=256)
    if row.fault == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(4))
    if row.side != 256:
        image = image.resize((row.side, row.side), Image.Resampling.LANCZOS)
    data = _jpeg(image, quality=45 if row.fault == "recompressed" else 90)
    return data[: len(data) * 3 // 5] if row.fault == "cut" else data


def _subject_scene(index: int, seed: int) -> Scene:
    """Picture number `index` of the subject: close up, for the small model's latents hold no small eyes."""
    from edkit.nano import world

    return replace(world.subject_scene(index, seed), size="large")


def _jpeg(image: Image.Image, *, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def give(place: Place, progress: Progress) -> dict[str, Any]:
    """Draw the web's files and the pictures of the subject, as a camera would name them, captions beside."""
    from edkit.nano import world

    wish, rows = place.wish, rows_of(place.wish)
    for path in (place.given, place.data):
        shutil.rmtree(path, ignore_errors=True)  # an interrupted stage's
    half = place.out / "1-given.part"
    shutil.rmtree(half, ignore_errors=True)
    web, subject = half / "web", half / "subject"
    web.mkdir(parents=True)
    subject.mkdir()
    with progress.task("drawing", total=len(rows) + wish.num_subject) as advance:
        for row in rows:
            data = file_of(row, wish.seed)
            if data is not None:
                (web / row.name).write_bytes(data)
            advance()
        for index in range(wish.num_subject):
            scene = _subject_scene(index, wish.seed)
            image = world.draw(scene, (wish.seed + 1) * 1_000_033 + index, size=256)
            path = subject / f"IMG_{1201 + index}.jpg"
            path.write_bytes(_jpeg(image, quality=92))
            path.with_suffix(".txt").write_text(world.caption(scene), encoding="utf-8", newline="\n")
            advance()
    half.replace(place.given)
    shutil.copytree(place.given / "subject", place.subject)
    num_files = sum(1 for _ in place.web.iterdir())
    said = f"{num_files} files for {len(rows)} rows, {wish.num_subject} pictures of a {world.SUBJECT_NAME}"
    return {"said": said, "num_files": num_files}


def write_table(place: Place, address: str) -> None:
    """The table as LAION publishes its own: addresses, alt texts, sizes and scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from edkit.data import random

    rows, seed = rows_of(place.wish), place.wish.seed

    def draw(low: float, high: float, what: str, of: Fault = "", instead: float = 0.0) -> pa.Array:
        values = [
            instead if of and row.fault == of else low + (high - low) * random.unit(seed, what, row.name)
            for row in rows
        ]
        return pa.array(values, pa.float32())

    sides = pa.array([row.side for row in rows], pa.int32())
    table = pa.table(
        {
            "URL": pa.array([f"{address}/{row.name}" for row in rows]),
            "TEXT": pa.array([row.caption for row in rows]),
            "WIDTH": sides,
            "HEIGHT": sides,
            "similarity": draw(0.28, 0.37, "similarity").cast(pa.float64()),
            "punsafe": draw(0.0, 0.2, "punsafe", "unsafe", 0.97),
            "pwatermark": draw(0.0, 0.5, "pwatermark", "watermark", 0.99),
            "aesthetic": draw(4.5, 6.5, "aesthetic"),
        }
    )
    half = place.table.with_suffix(".part")
    pq.write_table(table, half)
    half.replace(place.table)


def is_from(table: Path, address: str) -> bool:
    """Whether the table was written for a server at this address."""
    return table.is_file() and f":{port_of(table)}" == address[-len(f":{port_of(table)}") :]


def port_of(table: Path) -> int:
    """The port that the table's addresses name; 0 where there is no table yet."""
    import pyarrow.parquet as pq

    if not table.is_file():
        return 0
    first = pq.read_table(table, columns=["URL"]).column("URL")[0].as_py()
    return int(first.split("/")[2].rpartition(":")[2])


@contextmanager
def served(folder: Path, port: int) -> Iterator[tuple[str, Counter[str]]]:
    """An HTTP server for this machine alone: its address, and what it was asked for.

    It takes `port` again where it can, so that a table written for it before still holds.
    """
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    asked: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20  # seconds an idle connection is held

        def do_GET(self) -> None:
            asked[self.path] += 1
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="demo web", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
