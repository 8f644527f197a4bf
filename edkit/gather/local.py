"""The room every importer shares: items of a source, verified many at a time, placed in the source's own order.

A source is a generator of Items, in an order that is the same on every run. An item's bytes come from a file or
out of an archive; they are decoded to the last row and staged under a hash, never under a name the source gave.
Run again, an import goes on: what was kept is passed over, what failed is tried once more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edkit.data.catalog import Catalog, state_dir_for
from edkit.data.errors import BadInput, UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS, suffix_for, verify
from edkit.data.journal import Change, Write, apply
from edkit.data.places import Places
from edkit.data.progress import SILENT, Advance, Progress
from edkit.gather import candidate as fetching
from edkit.gather.candidate import FETCHED, KEPT, Candidate, Funnel, Outcome, whole_text
from edkit.gather.collect import Counts
from edkit.gather.fetch import Fetched, stage_name
from edkit.gather.place import Captions, Placer

MAX_BYTES = 512 << 20  # of one image file; what is larger is no picture to train on
_WINDOW = 256  # items on the way at once
_WINDOW_BYTES = 64 << 20  # of archives' bytes held in memory at once
_CHUNK = 8  # items handed to a thread at once: each hand-over costs as much as a small image's header
_BATCH = 256  # images flushed and recorded together
_BATCH_SECONDS = 2.0
_LISTED = 1000  # failures a result lists; the ledger has all
_MAGIC = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
# another volume, a file system without links, too many of them, or none allowed
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES, errno.ENOSYS})

_OUTCOMES = (
    Outcome(code="missing", what="the source names it, but it is not there", again=True),
    Outcome(code="unreadable", what="can't be read", again=True, hint="look at the disk, and at who may read it"),
    Outcome(code="empty", what="an empty file"),
    Outcome(code="no-caption", what="no caption", again=True, hint='--caption "..." says what they show'),
    Outcome(code="bad-caption", what="its caption can't be read", again=True, hint="--json says which, and why"),
    Outcome(code="wrong-size", what="not as many bytes as its set says", again=True),
    Outcome(code="hash", what="not the bytes its set's checksum means", again=True),
    Outcome(code="too-large", what=f"more than {MAX_BYTES >> 20} MB"),
    Outcome(code="unsafe-name", what="a name that leads out of its archive or folder"),
    Outcome(code="link-member", what="a link in an archive"),
    Outcome(code="device-member", what="a device or pipe in an archive"),
    Outcome(code="sparse-member", what="a file with holes in an archive"),
    Outcome(code="odd-member", what="an archive member of an unknown kind"),
    Outcome(code="duplicate-member", what="said twice in an archive: the first counts"),
    Outcome(code="no-image", what="a sample without an image"),
    Outcome(code="broken-archive", what="an archive that is damaged or hostile", hint="what stood before it was taken"),
    Outcome(code="truncated-archive", what="an archive that is cut short", again=True, hint="fetch it again"),
    Outcome(code="quota", what="Google Drive's quota for it is spent", again=True, hint="a mirror: --base-url URL"),
)
_BY_CODE = {outcome.code: outcome for outcome in _OUTCOMES}


def outcome(code: str) -> Outcome:
    """What an import's outcome means to the user."""
    return _BY_CODE.get(code) or fetching.outcome(code)


@dataclass(slots=True, kw_only=True)
class Item:
    """One image of a source: where its bytes are, and what the source says about it.

    Its bytes are `data`, or the file `source`, or what `load` gives (called in the pool: it may take long, and
    may raise `Refused`).
    `refused` is an outcome's code where the source itself says that it can't be had.
    """

    candidate: Candidate
    folder: str = ""  # below --out, "/"-separated
    source: Path | None = None
    data: bytes | None = None
    load: Callable[[], bytes] | None = None
    beside: tuple[tuple[str, Path], ...] = ()  # sidecars that come along as they are: (new ending, file)
    sole: bool = False  # those beside give the whole caption: a .txt of its own would say it twice
    done: Callable[[], object] | None = None  # called once the image stands under its name
    strict: bool = False  # a checksum that differs refuses the image (else it is only recorded)
    refused: str = ""
    reason: str = ""


class Refused(Exception):
    """An image that can't be had: an outcome's code, and why."""

    def __init__(self, code: str, reason: str = "") -> None:
        self.code, self.reason = code, whole_text(reason)
        super().__init__(code, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an import goes and how; what every source's options have in common. Raises UsageError."""

    out: Path
    link: bool = False
    limit: int | None = None
    captions: Captions = "filename"
    caption: str | None = None  # of images that have none
    licence: str = ""  # of images whose source doesn't say
    author: str = ""
    dry_run: bool = False
    state_dir: Path | None = None
    progress: Progress = SILENT

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: how many images to have, 1 or more")
        if self.captions not in ("filename", "sidecar", "both"):
            raise UsageError("--captions filename, sidecar or both")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMade:
    """A folder of the import and how often its images come in an epoch."""

    folder: str
    images: int
    multiply: str
    what: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import found, took and left."""

    source: str  # "coco", "kohya", ...
    out: Path
    query: str
    dry_run: bool
    rows_read: int
    dropped: Mapping[str, int]
    matched: int
    skipped: Mapping[str, int]  # kept before
    outcomes: Mapping[str, int]
    kept: int
    total: int  # of this import over all its runs
    limit: int | None
    num_bytes: int
    seconds: float
    seed: int | None = None  # of the caption choice, as drawn where -1 was asked for
    notes: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # (name, why), the first thousand; the ledger has all
    planned: tuple[tuple[str, str], ...] = ()  # (name, caption) on a dry run, the first hundred
    folders: tuple[FolderMade, ...] = ()


@dataclass(slots=True, kw_only=True)
class Notes:
    """What a source learns on its way and tells at the end."""

    lines: list[str] = field(default_factory=list)
    folders: list[FolderMade] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # to be journaled when all images stand


Source = Callable[[Funnel], Iterator[Item]]
"""Yields items in an order that is the same on every run, and fills the funnel as it reads."""

Finish = Callable[[Catalog, Notes], None]
"""Called when every image stands: adds option files to write (through the journal) and lines to tell."""


def query_of(kind: str, target: Target, asked: Sequence[object]) -> str:
    """The id of an import: the same source with the same options into the same folder."""
    out = absolute(target.out)
    place = os.fsdecode(Places(state_dir_for(out, target.state_dir)).key(out))
    text = json.dumps([kind, place, *asked], default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def absolute(path: Path) -> Path:
    """The absolute path, lexically, as the catalog does it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def run_import(
    kind: str,
    source: Source,
    target: Target,
    *,
    asked: Sequence[object],
    finish: Finish | None = None,
    expected: int | None = None,
    workers: int | None = None,
    seed: int | None = None,
    stop: Callable[[], None] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Imported:
    """Import a source into `target.out`, or (dry run) say what would be imported.

    `asked` is what tells one import from another; `expected` how many items there are, where that is known;
    `workers` the threads that load and decode; `stop` breaks off what they wait for.
    """
    started = time.monotonic()
    out = absolute(target.out)
    query = query_of(kind, target, asked)
    funnel, notes = Funnel(), Notes()
    if target.dry_run:
        with Catalog.open(out, state_dir=target.state_dir, write=False) as catalog:
            look = _Look(catalog, out, target)
            look.run(source(funnel))
            total = catalog.ledger_count(query=query, outcome=KEPT)
        counts, failed, planned = look.counts, look.failed, look.planned
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"can't be made: {(error.strerror or str(error)).lower()}", where=str(out)) from error
        command = f"import {kind}"
        with Catalog.open(out, state_dir=target.state_dir, command=command, progress=target.progress) as catalog:
            work = _Work(catalog, out, target, query, max_pixels)
            work.run(source(funnel), expected, workers, stop)
            if finish is not None:
                finish(catalog, notes)
            if notes.changes:
                done = apply(catalog, notes.changes, verb=command, progress=target.progress)
                if done.num_done:
                    files = "option file" if done.num_done == 1 else "option files"
                    notes.lines.append(f"{done.num_done:,} {files} written (edkit undo takes them back)")
            counts, failed, planned, total = work.counts, work.failed, [], work.total
            if work.num_copied_instead:
                notes.lines.append(
                    f"{work.num_copied_instead:,} files were copied, not linked: "
                    f"{out.name} can't hold hard links to where they are"
                )
    return Imported(
        source=kind,
        out=out,
        query=query,
        dry_run=target.dry_run,
        rows_read=funnel.rows,
        dropped=funnel.dropped,
        matched=funnel.left,
        skipped=counts.skipped,
        outcomes=counts.outcomes,
        kept=counts.outcomes.get(KEPT, 0),
        total=total,
        limit=target.limit,
        num_bytes=counts.num_bytes,
        seconds=time.monotonic() - started,
        seed=seed,
        notes=tuple(notes.lines),
        failed=tuple(failed),
        planned=tuple(planned),
        folders=tuple(notes.folders),
    )


def option_file(path: Path, text: str, notes: Notes, *, reason: str) -> None:
    """Plan to write a folder's option file; where another word stands there, say what it was."""
    content = f"{text}\n".encode()
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        before = None
    if before == content:
        return
    if before is not None and before.strip() != content.strip():
        was = " ".join(before.decode("utf-8", "replace").split())[:40]
        notes.lines.append(f"{path.parent.name}/{path.name}: {text} (was {was}; edkit undo brings it back)")
    notes.changes.append(Write(path, content, reason))


# ---- inner


@dataclass(slots=True)
class _Slot:
    items: list[Item]
    num_held: int  # bytes in memory
    future: Future[list[Fetched]]


class _Work:
    """One run: a window of items in the pool, batches placed in order, one folder at a time."""

    def __init__(self, catalog: Catalog, out: Path, target: Target, query: str, max_pixels: int) -> None:
        self.catalog, self.out, self.target, self.query = catalog, out, target, query
        self.max_pixels = max_pixels
        self.counts = Counts()
        self.failed: list[tuple[str, str]] = []
        self.num_copied_instead = 0
        self._guard = threading.Lock()
        self._gathering: int | None = None
        self._since = time.time()
        self.total = catalog.ledger_count(query=query, outcome=KEPT)
        self._placer: Placer | None = None
        self._folder: str | None = None
        self._chunk: list[Item] = []  # to be handed to the pool together
        self._window: deque[_Slot] = deque()
        self._num_in_window = 0  # items, those of the chunk among them
        self._num_held = 0
        self._on_way: set[str] = set()  # their URLs
        self._ended: list[tuple[Item, Fetched]] = []  # in order, not placed yet
        self._num_good = 0  # of those
        self._last = time.monotonic()

    def run(
        self, items: Iterator[Item], expected: int | None, workers: int | None, stop: Callable[[], None] | None
    ) -> None:
        """Import until the limit or the source's end."""
        finished = False
        pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 2), thread_name_prefix="edkit-import")
        try:
            with self.target.progress.task("importing", total=expected, unit="images") as advance:
                try:
                    self._loop(items, pool, advance)
                except KeyboardInterrupt:
                    self._place(advance)
                    raise
            finished = True
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if stop is not None and not finished:
                stop()
            pool.shutdown(wait=True)
            close = getattr(items, "close", None)
            if close is not None:
                close()
            self._leave(finished=finished)
            if finished and self._gathering is not None:
                self.catalog.gathering_end(self._gathering)

    def _loop(self, items: Iterator[Item], pool: ThreadPoolExecutor, advance: Advance) -> None:
        done = False
        while True:
            while not done and self._room():
                item = next(items, None)
                if item is None:
                    done = True
                else:
                    self._take(item, pool, advance)
            self._hand_over(pool)
            self._collect()
            now = time.monotonic()
            idle = not self._window
            if len(self._ended) >= _BATCH or idle or now - self._last > _BATCH_SECONDS:
                self._place(advance)
                self._last = now
            if idle and (done or self._reached()):
                return

    def _reached(self) -> bool:
        return self.target.limit is not None and self.total >= self.target.limit

    def _room(self) -> bool:
        if self._num_in_window >= _WINDOW or (self._num_in_window and self._num_held >= _WINDOW_BYTES):
            return False
        if self.target.limit is None:
            return True
        # never more than the limit may take: nothing is decoded to be thrown away
        return self.total + self._num_in_window + self._num_good < self.target.limit

    def _take(self, item: Item, pool: ThreadPoolExecutor, advance: Advance) -> None:
        if item.folder != self._folder:
            self._drain(pool, advance)
            self._enter(item.folder)
        if item.candidate.url in self._on_way:
            self._drain(pool, advance)  # the same URL again: its first file's fate decides
        assert self._placer is not None
        settled = self._placer.settled(item.candidate)
        # what failed may be whole by now: only what was kept is settled
        if settled is not None and settled != "failed for good before":
            self.counts.skip(settled)
            if item.beside and settled == "kept before":
                self._bring_beside([item])
            advance(1)
            return
        if self.target.licence or self.target.author:
            said = item.candidate
            item.candidate = replace(
                said, licence=said.licence or self.target.licence, author=said.author or self.target.author
            )
        self._on_way.add(item.candidate.url)
        self._num_held += len(item.data or b"")
        self._num_in_window += 1
        self._chunk.append(item)
        # what waits for the network is handed over at once
        if item.load is not None or len(self._chunk) >= _CHUNK or self._num_held >= _WINDOW_BYTES:
            self._hand_over(pool)

    def _hand_over(self, pool: ThreadPoolExecutor) -> None:
        if self._chunk:
            assert self._placer is not None
            items, self._chunk = self._chunk, []
            num_held = sum(len(item.data or b"") for item in items)
            self._window.append(_Slot(items, num_held, pool.submit(self._stage_all, items, self._placer.staging)))

    def _enter(self, folder: str) -> None:
        self._leave(finished=True)
        self._folder = folder
        place = self.out.joinpath(*folder.split("/")) if folder else self.out
        self._placer = Placer(
            self.catalog, place, query=self.query, captions=self.target.captions, gathering=self._in_history
        )

    def _in_history(self) -> int:
        """The run's number in the history: one for all its folders, once there is something to tell."""
        if self._gathering is None:
            self._gathering = self.catalog.gathering_begin(query=self.query, folder=self.out, since=self._since)
        return self._gathering

    def _leave(self, *, finished: bool) -> None:
        if self._placer is not None:
            self._placer.close(finished=finished)
            if self._folder:
                with suppress(OSError):  # a folder that holds anything stays
                    self._placer.out.rmdir()
            self._placer = None

    def _collect(self) -> None:
        """Take what has ended from the window's left; wait for the first where nothing else is to do."""
        wait = len(self._ended) < _BATCH
        while self._window and (self._window[0].future.done() or wait):
            wait = False
            slot = self._window.popleft()
            self._num_held -= slot.num_held
            self._num_in_window -= len(slot.items)
            for item, fetched in zip(slot.items, slot.future.result(), strict=True):
                item.data = None
                self._ended.append((item, fetched))
                self._num_good += fetched.code == FETCHED

    def _drain(self, pool: ThreadPoolExecutor, advance: Advance) -> None:
        self._hand_over(pool)
        while self._window:
            self._collect()
            if len(self._ended) >= _BATCH:
                self._place(advance)
        self._place(advance)

    def _place(self, advance: Advance) -> None:
        """Name and record what has ended."""
        ended, self._ended, self._num_good = self._ended, [], 0
        if not ended:
            return
        assert self._placer is not None
        good = [(item, fetched) for item, fetched in ended if fetched.code == FETCHED]
        bad = [(item, fetched) for item, fetched in ended if fetched.code != FETCHED]
        news = [(item.candidate, fetched) for item, fetched in bad if not self._known(item, fetched)]
        placed = self._placer.place([(item.candidate, fetched) for item, fetched in good], news)
        for item, fetched in bad:
            self.counts.add(fetched.code)
            if len(self.failed) < _LISTED:
                self.failed.append((_name(item), fetched.reason or outcome(fetched.code).what))
        self.counts.add(KEPT, len(placed.kept))
        self.counts.add(fetching.DUPLICATE, placed.num_duplicates)
        self.counts.num_bytes += placed.num_bytes
        self.total += len(placed.kept)
        self._on_way.difference_update(item.candidate.url for item, _ in ended)
        self._bring_beside([item for item, _ in good if item.beside])
        for item, _ in good:
            if item.done is not None:
                item.done()
        num_lost = sum(self.counts.outcomes.values()) - self.counts.outcomes.get(KEPT, 0)
        advance(len(ended), note=f"{num_lost:,} not kept" if num_lost else "")

    def _known(self, item: Item, fetched: Fetched) -> bool:
        """Whether the ledger's last word on it is this failure already: reruns must not repeat it for ever."""
        last = None
        for row in self.catalog.ledger(url=item.candidate.url):
            last = row
        return last is not None and (last.outcome, last.query) == (fetched.code, self.query)

    def _bring_beside(self, items: Sequence[Item]) -> None:
        """Copy sidecars beside their images, under the images' new stems."""
        for item in items:
            place = None
            for row in self.catalog.ledger(url=item.candidate.url, outcome=KEPT):
                place = row.path or place
            if place is None or not place.exists():
                continue
            stem = place.name[: -len(place.suffix)]
            own = item.candidate.caption.encode("utf-8", "replace")
            for suffix, sidecar in item.beside:
                wanted = place.with_name(f"{stem}{suffix}")
                # what a person wrote there since stays; the caption that was written with the image does not
                if wanted.exists() and wanted.read_bytes() != own:
                    continue
                part = wanted.with_name(f".{wanted.name}.part")
                part.write_bytes(sidecar.read_bytes())
                part.replace(wanted)
            text = place.with_name(f"{stem}.txt")
            if item.sole and ".txt" not in dict(item.beside) and text.exists() and text.read_bytes() == own:
                text.unlink()

    # ---- in the pool

    def _stage_all(self, items: Sequence[Item], staging: Path) -> list[Fetched]:
        return [self._stage(item, staging) for item in items]

    def _stage(self, item: Item, staging: Path) -> Fetched:
        """One verified image in the staging folder."""
        try:
            if item.refused:
                raise Refused(item.refused, item.reason)
            data = _bytes(item)
            header = _header(data, self.max_pixels)
        except Refused as refused:
            return Fetched(ticket=0, code=refused.code, reason=refused.reason)
        wanted, matches = item.candidate.checksum, None
        sha256 = hashlib.sha256(data).hexdigest()
        if wanted:
            actual = sha256 if len(wanted) == 64 else hashlib.md5(data, usedforsecurity=False).hexdigest()
            matches = actual == wanted
            if item.strict and not matches:
                return Fetched(ticket=0, code="hash", reason=f"{actual} is not {wanted}", checksum_matches=False)
        staged = staging / f"{stage_name(item.candidate.url)}.img"
        if not (self.target.link and item.source is not None and self._link(item.source, staged)):
            # never through a name that exists: it might be a hard link to somebody's file. Half-written by a kill it
            # has no row in the ledger, and the next run removes it
            staged.unlink(missing_ok=True)
            with staged.open("xb") as file:
                file.write(data)
        return Fetched(
            ticket=0,
            code=FETCHED,
            sha256=sha256,
            num_bytes=len(data),
            width=header[0],
            height=header[1],
            suffix=header[2],
            staged=staged,
            checksum_matches=matches,
        )

    def _link(self, source: Path, staged: Path) -> bool:
        staged.unlink(missing_ok=True)
        try:
            os.link(os.path.realpath(source), staged)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with self._guard:
                self.num_copied_instead += 1
            return False
        return True


class _Look:
    """A dry run: goes over the items, decodes none and writes nothing."""

    def __init__(self, catalog: Catalog, out: Path, target: Target) -> None:
        self.catalog, self.out, self.target = catalog, out, target
        self.counts = Counts()
        self.failed: list[tuple[str, str]] = []
        self.planned: list[tuple[str, str]] = []

    def run(self, items: Iterator[Item]) -> None:
        """Count what would be tried, and what can't be had."""
        num_planned = 0
        with self.target.progress.task("looking", unit="images") as advance:
            for item in items:
                if self.target.limit is not None and num_planned >= self.target.limit:
                    break
                advance(1)
                place = self.out.joinpath(*item.folder.split("/")) if item.folder else self.out
                rows = self.catalog.ledger(url=item.candidate.url, outcome=KEPT)
                if item.refused:
                    self.counts.add(item.refused)
                    if len(self.failed) < _LISTED:
                        self.failed.append((_name(item), whole_text(item.reason) or outcome(item.refused).what))
                elif any(row.path is not None and row.path.parent == place for row in rows):
                    self.counts.skip("kept before")
                else:
                    num_planned += 1
                    if len(self.planned) < 100:
                        self.planned.append((_name(item), item.candidate.caption))


def _name(item: Item) -> str:
    name = item.candidate.key or item.candidate.url
    if item.candidate.url.startswith("tar:"):
        return f"{Path(item.candidate.table).name}: {name}"
    return f"{item.folder}/{name}" if item.folder and "/" not in name else name


def _bytes(item: Item) -> bytes:
    if item.data is not None:
        data = item.data
    elif item.load is not None:
        data = item.load()
    else:
        assert item.source is not None
        data = read_file(item.source)
    if not data:
        raise Refused("empty")
    return data


def read_file(path: Path) -> bytes:
    """An image file's bytes; raises Refused where they can't be had."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Refused("too-large", f"{size:,} bytes")
            return file.read()
    except FileNotFoundError:
        raise Refused("missing", str(path)) from None
    except OSError as error:
        raise Refused("unreadable", f"{path}: {(error.strerror or str(error)).lower()}") from error


def _header(data: bytes, max_pixels: int) -> tuple[int, int, str]:
    """Width, height and ending of an image that decodes to its last row."""
    try:
        header = verify(data, max_pixels=max_pixels)
        return header.width, header.height, suffix_for(header.format)
    except BadInput as error:
        if "pixels" in error.what:
            raise Refused("too-many-pixels", error.what) from error
        # a picture's first bytes, or an ISO container's: it was one once
        code = "broken-image" if data.startswith(_MAGIC) or data[4:8] == b"ftyp" else "not-an-image"
        raise Refused(code, error.what) from error
