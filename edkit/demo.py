"""The whole workflow on a small world of its own, from a web of pictures to samples before and after.

A web is drawn and served on this machine, with the faults a real one has. edkit's own verbs make a training
set of it, teach the small model that ships with edkit a subject it has never seen, and draw the subject and
the old world before and after. Nothing is fetched from outside, and no part stands in for a real one.

    given -> scrape -> rename-captions -> dedupe -> filter -> balance -> plan -> train -> generate -> page
"""

from __future__ import annotations

import io
import json
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from edkit.data import atomic
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress

if TYPE_CHECKING:
    from PIL import Image

    from edkit.data.story import Operation
    from edkit.nano.world import Scene
    from edkit.page.html import Html
    from edkit.page.pictures import Pair, Picture
    from edkit.train.settings import TrainSettings

# What the demo asks of each verb; docs/demo.md tells how the training was chosen.
_T = TypeVar("_T")
SEARCH = ("circle", "square", "triangle", "star", "heart", "ring")
MIN_SIZE = 128  # pixels
MAX_UNSAFE = 0.5
MAX_WATERMARK = 0.8
RADIUS = 4  # bits of the perceptual hash: in a world this small, strangers meet at 8
RULE = "sharpness >= 0.042"
SHARE = 0.5  # of an epoch that is ground truth
RESOLUTION = 64  # pixels: what the small model draws
BATCH_SIZE = 16
LR = 1e-3
TEXT_ENCODER_LR = 1e-3
GUIDANCE = 4.0
RECORD = "demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of the pictures show what their prompt says, by the reader's judgement."""

    right: int
    of: int

    def __str__(self) -> str:
        return f"{self.right} of {self.of}"

    @property
    def share(self) -> float:
        """0..1."""
        return self.right / self.of if self.of else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo made, removed, trained and saw."""

    out: Path
    page: Path
    seconds: float  # of work, over all runs into this folder
    stages: Mapping[str, float]  # seconds
    num_rows: int  # of the table
    num_matched: int  # rows that passed the table's filters
    num_fetched: int  # pictures kept by scrape
    outcomes: Mapping[str, int]  # how the other fetches ended
    num_duplicates: int  # set aside by dedupe
    num_blurred: int  # set aside by filter
    num_ground_truth: int  # left to train on
    num_subject: int
    steps: int
    pictures_trained: int
    first_loss: float
    last_loss: float
    subject_before: Score
    subject_after: Score
    world_before: Score
    world_after: Score
    survived: Score  # of the old world's pictures that were right before, those that still are


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """How large a demo; what a rerun must agree with."""

    seed: int
    num_pool: int
    num_subject: int
    max_steps: int
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Removed:
    """A picture that was set aside: the name it had, where the trash keeps it, why, and what was measured."""

    was: Path
    file: Path
    reason: str
    facts: Mapping[str, object]


class _Place:
    """The folders of a demo, and its record: the finished stages, and what each found."""

    def __init__(self, out: Path, wish: _Wish) -> None:
        self.out, self.wish = out, wish
        self.given, self.data, self.run = out / "1-given", out / "2-data", out / "3-run"
        self.pictures, self.page = out / "4-pictures", out / "demo.html"
        self.web, self.table = self.given / "web", self.given / "web.parquet"
        self.subject, self.ground_truth = self.data / "subject", self.data / "ground_truth"
        self.state = self.data / ".edkit"  # named outright: a data root above `out` must not take it in
        self.record = out / RECORD
        self.stages: dict[str, dict[str, Any]] = {}
        self._open()

    def _open(self) -> None:
        """Take over what an interrupted demo left. UsageError for a folder that isn't ours to fill."""
        wish = {name: getattr(self.wish, name) for name in _Wish.__slots__}
        if not self.out.exists():
            self.out.mkdir(parents=True)
        elif not self.out.is_dir():
            raise UsageError("not a folder", where=str(self.out), mend="--out names a new folder")
        elif not self.record.is_file() and any(self.out.iterdir()):
            raise UsageError(
                "there are other things in this folder", where=str(self.out), mend="--out names a new folder"
            )
        if self.record.is_file():
            try:
                before = json.loads(self.record.read_text(encoding="utf-8"))
                stages, wished = dict(before["stages"]), before["wish"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"not the record of a demo: {error}",
                    where=str(self.record),
                    mend="--out names a new folder",
                ) from error
            if wished != wish:
                raise UsageError(
                    f"a demo with other settings was begun here ({_differs(wished, wish)})",
                    where=str(self.out),
                    mend="--out names a new folder",
                )
            self.stages = stages
        self._wish = wish
        self._write()

    def done(self, stage: str, seconds: float, found: Mapping[str, Any]) -> None:
        """Record a finished stage."""
        self.stages[stage] = {"seconds": round(seconds, 2), **found}
        self._write()

    def seconds(self) -> float:
        """Of all work so far, over all runs."""
        return float(sum(stage["seconds"] for stage in self.stages.values()))

    def found(self, stage: str) -> Mapping[str, Any]:
        """What a finished stage found."""
        return self.stages[stage]

    def operations(self, verb: str) -> list[Operation]:
        """The journal's operations of one verb that still hold."""
        from edkit.data.journal import history

        known = history(self.data, state_dir=self.state)
        return [one for one in known if one.verb == verb and one.undone_by is None]

    def outcomes(self) -> Counter[str]:
        """How the fetches ended, by the ledger; of an address that was tried twice, the last."""
        from edkit.data.catalog import Catalog

        with Catalog.open(self.data, state_dir=self.state, write=False) as catalog:
            last = {row.url: row.outcome for row in catalog.ledger()}
        return Counter(last.values())

    def removed(self, verb: str) -> list[_Removed]:
        """The pictures that a verb set aside, with the journal's reasons, by name."""
        from edkit.data import trash
        from edkit.data.catalog import Catalog
        from edkit.data.image import is_image
        from edkit.data.journal import why

        gone = []
        with Catalog.open(self.data, state_dir=self.state, write=False) as catalog:
            for item in trash.contents(catalog).items:
                if item.was is None or item.verb != verb or not is_image(item.was):
                    continue
                facts = why(item.was, catalog=catalog).decisions[-1].facts
                place = Path(catalog.site().trash_path(item.sha256))
                gone.append(_Removed(was=item.was, file=place, reason=item.reason, facts=facts))
        return sorted(gone, key=lambda one: one.was)

    def _write(self) -> None:
        said = {"wish": self._wish, "stages": self.stages}
        atomic.write_text(self.record, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def _drawn_seed(out: Path) -> int:
    """A fresh seed, or the one an interrupted demo drew."""
    from edkit.data.random import draw_seed

    try:
        return int(json.loads((out / RECORD).read_text(encoding="utf-8"))["wish"]["seed"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that _Place will refuse
        return draw_seed()


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {before.get(key)}" for key in now if before.get(key) != now[key])


def demo(
    out: Path | str = "edkit-demo",
    *,
    seed: int = 555,
    num_pool: int = 300,
    num_subject: int = 20,
    max_steps: int = 360,
    num_samples: int = 48,
    progress: Progress = SILENT,
) -> Demo:
    """Run the whole workflow into the folder `out`, and write `demo.html` there.

    `num_pool` good pictures of the known world stand in the web, `num_subject` show the new subject; at most
    `num_samples` of each are drawn before and after. Called again after an interruption it goes on where it
    stopped. Raises UsageError where `out` holds anything else or a finished demo, MissingExtra without the
    train extra.
    """
    import edkit.train  # noqa: F401 - says at once, not after minutes, what isn't installed

    out = Path(out).absolute()
    wish = _Wish(
        seed=_drawn_seed(out) if seed == -1 else seed,
        num_pool=num_pool,
        num_subject=num_subject,
        max_steps=max_steps,
        num_samples=num_samples,
    )
    place = _Place(out, wish)
    if "page" in place.stages:
        raise UsageError(f"a finished demo is here: {place.page}", mend="look at it, or --out names a new folder")
    for number, (name, what, stage) in enumerate(_STAGES, 1):
        if name in place.stages:
            continue
        progress.say(f"{number}/{len(_STAGES)}  {what}")
        began = time.perf_counter()
        found = stage(place, progress)
        place.done(name, time.perf_counter() - began, found)
        if "said" in found:
            progress.say(f"     {found['said']}")
    return _result(place)


# ---- the web and the subject


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
class _Row:
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


def _rows(wish: _Wish) -> list[_Row]:
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
    rows: list[_Row] = []

    def add(fault: Fault, scene: Scene | None, number: int, *, caption: str = "", side: int = 256) -> None:
        code = random.words(1, wish.seed, "demo web", len(rows))[0]
        said = caption or (world.caption(scene) if scene else "")
        row = _Row(name=f"{int(code):016x}.jpg", caption=said, fault=fault, scene=scene, number=number, side=side)
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


def _file(row: _Row, seed: int) -> bytes | None:
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


def _give(place: _Place, progress: Progress) -> dict[str, Any]:
    """Draw the web's files and the pictures of the subject, as a camera would name them, captions beside."""
    from edkit.nano import world

    wish, rows = place.wish, _rows(place.wish)
    for path in (place.given, place.data):
        shutil.rmtree(path, ignore_errors=True)  # an interrupted stage's
    half = place.out / "1-given.part"
    shutil.rmtree(half, ignore_errors=True)
    web, subject = half / "web", half / "subject"
    web.mkdir(parents=True)
    subject.mkdir()
    with progress.task("drawing", total=len(rows) + wish.num_subject) as advance:
        for row in rows:
            data = _file(row, wish.seed)
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


def _write_table(place: _Place, address: str) -> None:
    """The table as LAION publishes its own: addresses, alt texts, sizes and scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from edkit.data import random

    rows, seed = _rows(place.wish), place.wish.seed

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


@contextmanager
def _served(folder: Path, port: int) -> Iterator[tuple[str, Counter[str]]]:
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


# ---- the workflow, verb by verb


def _scrape(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.gather.scrape import scrape

    with _served(place.web, _port_of(place.table)) as (address, asked):
        if not _is_from(place.table, address):
            _write_table(place, address)
        found = scrape(
            [place.table],
            out=place.ground_truth,
            any=SEARCH,
            min_size=MIN_SIZE,
            max_unsafe=MAX_UNSAFE,
            max_watermark=MAX_WATERMARK,
            allow_private_hosts=True,
            state_dir=place.state,
            progress=progress,
        )
    lost = {code: n for code, n in place.outcomes().items() if code != "ok"}
    said = (
        f"{found.rows_read} rows, {found.matched} match, {found.total} pictures fetched, "
        f"{sum(lost.values())} not to be had"
    )
    return {
        "said": said,
        "rows": found.rows_read,
        "matched": found.matched,
        "dropped": dict(found.dropped),
        "kept": found.total,
        "outcomes": lost,
        "asked": sum(asked.values()),
    }


def _is_from(table: Path, address: str) -> bool:
    return table.is_file() and f":{_port_of(table)}" == address[-len(f":{_port_of(table)}") :]


def _port_of(table: Path) -> int:
    """The port that the table's addresses name; 0 where there is no table yet."""
    import pyarrow.parquet as pq

    if not table.is_file():
        return 0
    first = pq.read_table(table, columns=["URL"]).column("URL")[0].as_py()
    return int(first.split("/")[2].rpartition(":")[2])


def _rename(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.caption.rename import rename_captions

    rename_captions(place.data, state_dir=place.state, progress=progress)
    num = sum(one.num_done for one in place.operations("rename-captions"))
    return {"said": f"{num} changes: every picture's name is its caption now", "changes": num}


def _dedupe(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.clean.dedupe import dedupe

    found = dedupe(place.data, radius=RADIUS, protect=[place.subject], state_dir=place.state, progress=progress)
    num = len(place.removed("dedupe"))
    return {"said": f"{found.num_images} compared, {num} near-duplicates set aside", "removed": num}


def _filter(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.clean.filter import filter as keep

    keep(place.data, [RULE], state_dir=place.state, progress=progress)
    num = len(place.removed("filter"))
    return {"said": f"{num} blurred pictures set aside ({RULE})", "removed": num}


def _balance(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.balance.balance import balance

    found = balance(place.data, share={place.ground_truth.name: str(SHARE)}, state_dir=place.state, progress=progress)
    parts = [
        {
            "folder": p.folder,
            "images": p.num_images,
            "multiply": str(p.multiply),
            "picks": p.picks,
            "said": p.sentence,
        }
        for p in found.parts
    ]
    return {"said": "; ".join(p.sentence for p in found.parts), "parts": parts, "picks": found.picks}


def _plan(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.balance.plan import plan

    found = plan(
        place.data,
        epochs=3,
        batch_size=BATCH_SIZE,
        resolution=RESOLUTION,
        seed=place.wish.seed,
        state_dir=place.state,
        progress=progress,
    )
    said = (
        f"{found.num_images} pictures, {found.num_captions} captions, {found.total_steps} steps in "
        f"{found.epochs} epochs, {len(found.problems)} problems"
    )
    return {"said": said, "captions": found.num_captions, "problems": len(found.problems)}


def _training(place: _Place) -> TrainSettings:
    from edkit.nano import model_dir
    from edkit.train.settings import TrainSettings

    return TrainSettings(
        data_root=str(place.data),
        model=str(model_dir()),
        out=place.run,
        max_steps=place.wish.max_steps,
        batch_size=BATCH_SIZE,
        lr=LR,
        train_text_encoder=True,
        text_encoder_lr=TEXT_ENCODER_LR,
        lr_schedule="cosine",
        lr_warmup_steps=10,
        cond_dropout=0.1,
        save_every_minutes=1.0,
        export_on_save=False,
        keep_checkpoints=1,
        seed=place.wish.seed,
        state_dir=place.state,
    )


def _train(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit.train.checkpoint import checkpoints
    from edkit.train.loop import train

    # an interrupted run goes on from its last checkpoint; one that has none yet begins anew
    if checkpoints(place.run):
        run = train(_training(place), resume=place.run, progress=progress)
    else:
        shutil.rmtree(place.run, ignore_errors=True)
        run = train(_training(place), progress=progress)
    assert run.export is not None
    said = f"{run.step} steps, loss {run.first_loss:.3f} -> {run.last_loss:.3f}"
    return {
        "said": said,
        "steps": run.step,
        "images": run.step * run.settings.batch_size,
        "first_loss": run.first_loss,
        "last_loss": run.last_loss,
        "export": run.export.relative_to(place.out).as_posix(),
    }


def _prompts(num: int) -> dict[str, list[Scene]]:
    """The scenes asked for before and after: the subject's, and the old world's in unseen combinations.

    At most `num` of each; in every order's beginning all colours, shapes, grounds and places take turns.
    """
    from edkit.nano import world

    grounds, spots = tuple(world.BACKGROUNDS), tuple(world.POSITIONS)
    subject = [
        world.Scene(
            colour=world.SUBJECT_COLOURS[0],
            shape=world.SUBJECT_CLASS,
            background=grounds[i % len(grounds)],
            position=spots[i % len(spots)],
            size="large",
            subject=True,
        )
        for i in range(math.lcm(len(grounds), len(spots)))
    ]
    held_out = [prompt.scene for prompt in world.held_out_prompts()]
    stride = next(n for n in range(37, 1000) if math.gcd(n, len(held_out)) == 1)
    mixed = [held_out[i * stride % len(held_out)] for i in range(len(held_out))]
    return {"subject": subject[:num], "world": mixed[:num]}


def _spread(items: Sequence[_T], num: int) -> list[_T]:
    """`num` of the items, evenly over all."""
    return [items[i * len(items) // num] for i in range(num)] if num < len(items) else list(items)


def _generate(place: _Place, progress: Progress) -> dict[str, Any]:
    """Draw every prompt with the model before and after, and let the reader say what the pictures show."""
    from PIL import Image

    from edkit.nano import model_dir, reader, world
    from edkit.train.generate import generate

    models = {"before": model_dir(), "after": place.out / place.found("train")["export"]}
    found: dict[str, Any] = {}
    for what, scenes in _prompts(place.wish.num_samples).items():
        for when, model in models.items():
            folder, half = place.pictures / f"{what}-{when}", place.pictures / f"{what}-{when}.part"
            for left in (folder, half):
                shutil.rmtree(left, ignore_errors=True)  # an interrupted stage's
            texts = [world.caption(scene) for scene in scenes]
            paths = generate(model, texts, half, guidance=GUIDANCE, seed=place.wish.seed, progress=progress)
            half.replace(folder)
            shown = []
            for path, scene in zip(paths, scenes, strict=True):
                with Image.open(folder / path.name) as image:
                    shown.append(reader.read(image).shows(scene))
            found[f"{what}-{when}"] = {"files": [path.name for path in paths], "right": shown}
    subject, world_ = _score(found["subject-after"]), _score(found["world-after"])
    return {"said": f"the new subject is found in {subject}; of the old world {world_} are right", **found}


def _score(found: Mapping[str, Any]) -> Score:
    return Score(right=sum(found["right"]), of=len(found["right"]))


def _survived(found: Mapping[str, Any]) -> Score:
    """Of the old world's prompts that were right before: how many are after."""
    both = zip(found["world-before"]["right"], found["world-after"]["right"], strict=True)
    after = [right for was, right in both if was]
    return Score(right=sum(after), of=len(after))


# ---- the page


def _write_page(place: _Place, progress: Progress) -> dict[str, Any]:
    from edkit import __version__
    from edkit.nano import world
    from edkit.page import layout

    sections = (_key_figures, _subject, _gathered, _set_aside, _balanced, _trained, _learned, _kept, _again)
    page = layout.render(
        f"How a small model met a {world.SUBJECT_NAME}",
        *(section(place) for section in sections),
        lead=(
            f"{place.wish.num_subject} pictures of something the model had never seen, and the world it knew "
            "beside them: gathered, cleaned, balanced and trained by edkit on this machine."
        ),
        footer=f"Made by edkit {__version__} with seed {place.wish.seed}. All of it is in this one file.",
    )
    layout.write(place.page, page)
    return {}


def _key_figures(place: _Place) -> Html:
    from edkit.page.layout import Figure, duration, key_figures

    drawn = place.found("generate")
    learned, before = _score(drawn["subject-after"]), _score(drawn["subject-before"])
    removed = place.found("dedupe")["removed"] + place.found("filter")["removed"]
    return key_figures(
        [
            Figure(
                value=f"{learned.share:.0%}",
                note=f"was {before.share:.0%}",
                label="of the pictures asked for show the new subject",
            ),
            Figure(
                value=f"{_survived(drawn).share:.0%}",
                label="of the old world's pictures that were right before still are",
            ),
            Figure(value=f"{removed}", label="pictures set aside before training"),
            Figure(value=duration(place.seconds()), label="from nothing to this page"),
        ]
    )


def _subject(place: _Place) -> Html:
    from edkit.nano import world
    from edkit.page import layout, pictures

    return layout.section(
        "The new subject",
        pictures.grid(_pictures_of(place.subject), page_dir=place.out, box=112, at_first=10),
        note=(
            f"A {world.SUBJECT_NAME}: a {world.SUBJECT_CLASS} of two colours, with eyes. The pictures came "
            "as a camera names them, captions beside them; rename-captions made the captions their names."
        ),
    )


def _gathered(place: _Place) -> Html:
    from edkit.gather.candidate import outcome
    from edkit.page import charts, layout, pictures

    found, truth = place.found("scrape"), _pictures_of(place.ground_truth)
    funnel = [
        ("rows of the table", found["rows"]),
        ("match the search", found["matched"]),
        ("fetched", found["kept"]),
        ("after dedupe", found["kept"] - place.found("dedupe")["removed"]),
        ("left to train on", len(truth)),
    ]
    stayed_out = [
        [why.replace(",", ", "), n, "told by the table; never asked for"] for why, n in found["dropped"].items()
    ]
    stayed_out += [[outcome(code).what, n, "asked for; noted in the ledger"] for code, n in found["outcomes"].items()]
    return layout.section(
        "The ground truth",
        charts.bars("From the table to the training set", funnel, unit="pictures", accent=[funnel[-1][0]]),
        layout.table(["what stayed out", "rows", "how it was known"], stayed_out),
        layout.group(
            "Some of what came in",
            pictures.grid(_spread(truth, 24), page_dir=place.out, box=112, at_first=16),
        ),
        note=(
            "Pictures of the world the model knows already, found through a table of addresses like LAION's "
            "and fetched over HTTP, each under the caption it came with. They are there so that nothing is "
            "forgotten."
        ),
    )


def _set_aside(place: _Place) -> Html:
    from edkit.page import layout, pictures
    from edkit.page.pictures import Pair, Picture

    twins = [
        Pair(
            before=Picture(source=gone.file, linked=False),
            after=Picture(source=place.data / str(gone.facts["kept"])),
            label=gone.reason,
        )
        for gone in place.removed("dedupe")
    ]
    blurred = [
        Picture(source=gone.file, caption=gone.was.name, note=gone.reason, linked=False)
        for gone in place.removed("filter")
    ]
    return layout.section(
        "What was set aside, and why",
        layout.group(
            f"{len(twins)} near-duplicates",
            pictures.pairs(twins, page_dir=place.out, box=128, at_first=6, before="set aside", after="kept instead"),
            note="Found by a perceptual hash and confirmed by colour; of each group the best stays.",
        ),
        layout.group(
            f"{len(blurred)} blurred pictures",
            pictures.grid(blurred, page_dir=place.out, box=144, at_first=6),
            note=f"They fail the rule {RULE}.",
        ),
        note="Nothing was deleted. It lies in the trash with its reason, and edkit undo brings it back.",
    )


def _balanced(place: _Place) -> Html:
    from edkit.page import charts, layout

    parts = place.found("balance")["parts"]
    shares = [("as it lies", [p["images"] for p in parts]), ("as it trains", [p["picks"] for p in parts])]
    return layout.section(
        "The balance",
        charts.shares("Share of an epoch", shares, [p["folder"] for p in parts]),
        layout.table(
            ["folder", "pictures", "picks an epoch", "multiply.txt"],
            [[p["folder"], p["images"], round(p["picks"]), p["multiply"]] for p in parts],
        ),
        *(layout.prose(f"{p['said']}.") for p in parts),
        note=(
            "A multiply.txt says how often its folder trains. Here ground truth is to be "
            f"{SHARE:.0%} of every epoch, other pictures of it each time."
        ),
    )


def _trained(place: _Place) -> Html:
    from edkit.page import charts, layout
    from edkit.page.charts import Series
    from edkit.train.watch import read_metrics

    found = place.found("train")
    points = [(row["step"], row["loss"]) for row in read_metrics(place.run)]
    mean = Series(name="mean of 25 steps", points=charts.smoothed(points, 25))
    return layout.section(
        "The training",
        charts.lines(
            "Loss",
            [Series(name="each step", points=points, faint=True), mean],
            across="step",
            up="mean squared error of the predicted noise",
            from_zero=True,
        ),
        layout.prose(
            f"{found['steps']:,} steps of {BATCH_SIZE} pictures, {found['images']:,} in all, in "
            f"{layout.duration(place.found('train')['seconds'])}."
        ),
        note="Most of this loss is noise no model can foretell. What it learned, the pictures tell.",
    )


def _learned(place: _Place) -> Html:
    from edkit.nano import world
    from edkit.page import layout, pictures

    drawn = place.found("generate")
    return layout.section(
        "What it learned",
        pictures.pairs(_before_after(place, "subject", "found", "not found"), page_dir=place.out, box=128, at_first=12),
        note=(
            f"Asked for a {world.SUBJECT_NAME}, from the same noise before and after. The reader, plain "
            "image analysis that asks no model, finds it in "
            f"{_score(drawn['subject-before'])} pictures before, in {_score(drawn['subject-after'])} after."
        ),
    )


def _kept(place: _Place) -> Html:
    from edkit.page import charts, layout, pictures

    drawn = place.found("generate")
    fates = Counter(zip(drawn["world-before"]["right"], drawn["world-after"]["right"], strict=True))
    named = {
        "right before and after": fates[True, True],
        "right before, wrong after": fates[True, False],
        "wrong before, right after": fates[False, True],
        "wrong before and after": fates[False, False],
    }
    rows = _before_after(place, "world", "right", "wrong")
    changed = [row for row in rows if row.before.good != row.after.good]
    same = [row for row in rows if row.before.good == row.after.good]
    return layout.section(
        "What it kept",
        charts.shares("The old world's pictures", [("prompts", list(named.values()))], list(named)),
        layout.group("Where the verdict changed", pictures.pairs(changed, page_dir=place.out, box=128))
        if changed
        else "",
        layout.group("Where it stayed", pictures.pairs(same, page_dir=place.out, box=128, at_first=9)),
        note=(
            "Asked for colours, shapes and grounds in combinations it was never trained on: "
            f"{_score(drawn['world-before'])} are right before, {_score(drawn['world-after'])} after. "
            f"Of those right before, {_survived(drawn)} still are."
        ),
    )


def _before_after(place: _Place, what: str, good: str, bad: str) -> list[Pair]:
    from edkit.nano import world
    from edkit.page.pictures import Pair, Picture

    drawn = place.found("generate")

    def picture(when: str, i: int) -> Picture:
        one = drawn[f"{what}-{when}"]
        right = bool(one["right"][i])
        path = place.pictures / f"{what}-{when}" / one["files"][i]
        return Picture(source=path, badge=good if right else bad, good=right)

    return [
        Pair(before=picture("before", i), after=picture("after", i), label=world.caption(scene))
        for i, scene in enumerate(_prompts(place.wish.num_samples)[what])
    ]


def _again(place: _Place) -> Html:
    from edkit.page import layout

    data, run, truth = place.data.name, place.run.name, place.ground_truth.name
    commands = (
        f'edkit scrape TABLE --any "{",".join(SEARCH)}" --min-size {MIN_SIZE} --max-unsafe {MAX_UNSAFE:g} '
        f"--max-watermark {MAX_WATERMARK:g} --out {data}/{truth}",
        f"edkit rename-captions {data}",
        f"edkit dedupe {data} --radius {RADIUS} --protect {data}/{place.subject.name}",
        f'edkit filter {data} --rule "{RULE}"',
        f"edkit balance {data} --share {truth}={SHARE:g}",
        f"edkit plan {data}",
        f"edkit train --data-root {data} --model MODEL --out {run} --max-steps {place.wish.max_steps}",
        f'edkit generate {run}/export --prompt "{_a_prompt()}" --out DIR',
    )
    rows = [[name, round(float(stage["seconds"]), 1)] for name, stage in place.stages.items()]
    return layout.section(
        "The same with your own pictures",
        layout.code("\n".join(commands)),
        layout.fold("How long each stage took here", layout.table(["stage", "seconds"], rows)),
        note="This page is made of these commands. In the folder beside it lies all they made.",
    )


def _a_prompt() -> str:
    from edkit.nano import world

    return world.caption(_prompts(1)["subject"][0])


def _pictures_of(folder: Path) -> list[Picture]:
    """The pictures of a folder under the captions their names say."""
    from edkit.data.image import is_image
    from edkit.data.names import caption_of_stem
    from edkit.page.pictures import Picture

    paths = sorted(path for path in folder.iterdir() if is_image(path))
    return [Picture(source=path, caption=caption_of_stem(path.stem)) for path in paths]


def _result(place: _Place) -> Demo:
    scraped, trained, drawn = place.found("scrape"), place.found("train"), place.found("generate")
    images = {part["folder"]: part["images"] for part in place.found("balance")["parts"]}
    return Demo(
        out=place.out,
        page=place.page,
        seconds=place.seconds(),
        stages={name: stage["seconds"] for name, stage in place.stages.items()},
        num_rows=scraped["rows"],
        num_matched=scraped["matched"],
        num_fetched=scraped["kept"],
        outcomes=scraped["outcomes"],
        num_duplicates=place.found("dedupe")["removed"],
        num_blurred=place.found("filter")["removed"],
        num_ground_truth=images[place.ground_truth.name],
        num_subject=images[place.subject.name],
        steps=trained["steps"],
        pictures_trained=trained["images"],
        first_loss=trained["first_loss"],
        last_loss=trained["last_loss"],
        subject_before=_score(drawn["subject-before"]),
        subject_after=_score(drawn["subject-after"]),
        world_before=_score(drawn["world-before"]),
        world_after=_score(drawn["world-after"]),
        survived=_survived(drawn),
    )


_Stage = Callable[[_Place, Progress], dict[str, Any]]
_STAGES: tuple[tuple[str, str, _Stage], ...] = (
    ("given", "drawing a small web of pictures, and a subject the model has never seen", _give),
    ("scrape", "scrape: searching its table, fetching what matches", _scrape),
    ("rename-captions", "rename-captions: captions become file names", _rename),
    ("dedupe", "dedupe: looking for pictures that show the same", _dedupe),
    ("filter", "filter: measuring sharpness", _filter),
    ("balance", "balance: how much ground truth an epoch holds", _balance),
    ("plan", "plan: what training will see", _plan),
    ("train", "train: fine-tuning the small model", _train),
    ("generate", "generate: drawing before and after", _generate),
    ("page", "the page", _write_page),
)
