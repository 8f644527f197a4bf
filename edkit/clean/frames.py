"""Take still images out of videos: the sharpest of each moment, near-duplicates left out, each with its source."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.clean.files import open_catalog
from edkit.data import atomic
from edkit.data.catalog import Catalog, LedgerRow, Unreadable
from edkit.data.errors import BadInput, MissingExtra, Problem, UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS
from edkit.data.journal import Change, Move, Write, apply
from edkit.data.names import Namer, caption_of_stem, is_camera_name, safe_name
from edkit.data.progress import SILENT, Progress
from edkit.data.workers import Died, spread

if TYPE_CHECKING:
    from PIL import Image

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}
    | {".ogv", ".gif"}
)
"""File endings (lower case) that count as videos where a folder is given."""

# what a file may turn out to be: playlists and the like name other files and addresses, and are refused
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif,h264,hevc,m4v,ivf,mxf,dv,apng"
)
_LOOKED_AT = 12  # frames of a moment that compete for the sharpest
_CUT = 0.12  # root mean square between two frames' 8 x 8 pixels that begins a new scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A still that was taken."""

    path: Path
    video: Path
    time: float  # seconds from the video's start
    sharpness: float  # 0..1, as the fact
    size: tuple[int, int]  # pixels, upright


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """What `frames` did."""

    num_videos: int
    num_decoded: int  # frames
    frames: tuple[Frame, ...]
    num_duplicates: int  # left out as near-duplicates of one taken
    num_known: int  # taken by an earlier run, and still there
    broken: tuple[Problem, ...]  # videos that gave nothing, or not all
    operation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Which frames are taken; valid from the start. `every`: seconds; `scenes`: one of each scene instead."""

    every: float = 1.0
    scenes: bool = False
    radius: int = 8
    start: float = 0.0
    end: float | None = None
    limit: int | None = None  # a video
    min_sharpness: float = 0.0
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0.01 <= self.every <= 86_400:
            raise UsageError(f"--every {self.every:g} is not in 0.01..86400", mend="seconds, such as 2")
        if not 0 <= self.radius <= 31:
            raise UsageError(f"--radius {self.radius} is not in 0..31", mend="8; 0 keeps all that differ at all")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise UsageError("--start and --end leave no time between them")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} takes nothing")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is not in 1..100")


def frames(
    videos: Sequence[Path] | Path,
    out: Path,
    *,
    every: float = 1.0,
    scenes: bool = False,
    radius: int = 8,
    start: float = 0.0,
    end: float | None = None,
    limit: int | None = None,
    min_sharpness: float = 0.0,
    quality: int = 95,
    caption: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Framed:
    """Take the sharpest frame of every `every` seconds (or of every scene) of videos, as JPEGs in `out`.

    Frames within `radius` bits of one taken before from the same video, and alike in colour, are left out;
    `limit` is of each video, its first ones. Turned and non-square pixels are set right. `caption` names the
    files (`person_(1).jpg`); without one the video's name does. The ledger keeps video and time; running
    again adds only what is not there. All files appear in one journaled operation. A video that can't
    be read, or stops half way, is one Problem. Raises MissingExtra without PyAV.
    """
    given = [Path(videos)] if isinstance(videos, str | Path) else [Path(one) for one in videos]
    settings = Settings(
        every=every,
        scenes=scenes,
        radius=radius,
        start=start,
        end=end,
        limit=limit,
        min_sharpness=min_sharpness,
        quality=quality,
    )
    _av()
    files = _videos(given)
    if not dry_run:
        out.mkdir(parents=True, exist_ok=True)
    with open_catalog(out, state_dir=state_dir, changes=not dry_run, command="frames", progress=progress) as catalog:
        ids = catalog.content_ids(files, progress=progress)
        broken = [_problem(path, str(id)) for path, id in ids.items() if isinstance(id, Unreadable)]
        staged = None if dry_run else catalog.cache_dir / "frames"
        if staged is not None:
            staged.mkdir(parents=True, exist_ok=True)
        jobs = [
            _Job(id=id, path=str(path), settings=settings, staged=None if staged is None else str(staged))
            for path, id in ids.items()
            if not isinstance(id, Unreadable)
        ]
        taken: dict[str, _Taken] = {}
        if staged is not None:  # what stands in `out` already is not decoded again
            for job in jobs:
                done = _noted(staged / f"{job.name}.json")
                if done is not None and set(done.hashes) <= _known(catalog, done.hashes):
                    taken[job.path] = done
        jobs = [job for job in jobs if job.path not in taken]
        for job, found in spread(_take, jobs, what="taking frames", workers=workers, few=2, progress=progress):
            taken[job.path] = _Taken(broken=str(found)) if isinstance(found, Died) else found
        found_frames: list[Frame] = []
        changes: list[Change] = []
        rows: list[LedgerRow] = []
        num_known = 0
        known = _known(catalog, [sha256 for one in taken.values() for sha256 in one.hashes])
        namer = Namer([one.name for one in out.iterdir()] if out.is_dir() else ())
        for path in files:
            one = taken.get(str(path))
            if one is None:
                continue
            if one.broken:
                broken.append(_problem(path, one.broken))
            for still in one.stills:
                if still.sha256 in known:
                    num_known += 1
                    continue
                known.add(still.sha256)
                name, text = _named(namer, path, caption)
                target = out.absolute() / name
                size = still.width, still.height
                found_frames.append(
                    Frame(path=target, video=path, time=still.time, sharpness=still.sharpness, size=size)
                )
                if staged is None:
                    continue
                reason = f"frame of {path.name} at {still.time:.2f} s"
                changes.append(Move(staged / still.name, target, reason, kind="frame"))
                if text is not None:
                    changes.append(Write(target.with_suffix(".txt"), text.encode("utf-8"), f"caption of {name}"))
                rows.append(_row(still, path, target, caption, str(ids[path])))
        operation = None
        if changes:
            catalog.ledger_add(rows)  # before the files: a row too many says nothing false
            command = _command(settings, caption)
            operation = apply(catalog, changes, verb="frames", command=command, progress=progress).operation
    return Framed(
        num_videos=len(files),
        num_decoded=sum(one.num_decoded for one in taken.values()),
        frames=tuple(found_frames),
        num_duplicates=sum(one.num_duplicates for one in taken.values()),
        num_known=num_known,
        broken=tuple(broken),
        operation=operation,
    )


def _videos(given: Sequence[Path]) -> list[Path]:
    """The files that were named, and the videos in folders that were."""
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in VIDEO_SUFFIXES and one.is_file())
            found.update(dict.fromkeys(one.absolute() for one in inside if not one.name.startswith(".")))
        elif path.exists():
            found[path.absolute()] = None
        else:
            raise UsageError("no such video", where=str(path))
    if not found:
        raise UsageError("no video was found", where=", ".join(map(str, given)))
    return list(found)


def _named(namer: Namer, video: Path, caption: str | None) -> tuple[str, str | None]:
    """A free name, and the text of the sidecar where the name can't carry the caption."""
    if caption is not None:
        return namer.name(caption, ".jpg")
    stem = video.stem
    if not is_camera_name(stem) and (said := caption_of_stem(stem)):
        return namer.name(said, ".jpg")
    return namer.name(safe_name(stem), ".jpg")[0], None  # a camera's name says nothing: `check` asks for a caption


def _known(catalog: Catalog, hashes: Sequence[str]) -> set[str]:
    """Contents that an earlier run took and that still stand where it put them."""
    rows = catalog.ledger_holding(hashes, outcome="frame")
    return {sha for sha, found in rows.items() if any(row.path is not None and row.path.is_file() for row in found)}


def _row(still: _Still, video: Path, path: Path, caption: str | None, video_id: str) -> LedgerRow:
    return LedgerRow(
        outcome="frame",
        source=str(video),
        row=still.number,
        reason=f"at {still.time:.2f} s",
        sha256=still.sha256,
        num_bytes=still.num_bytes,
        width=still.width,
        height=still.height,
        caption=caption,
        path=path,
        extra={"time": round(still.time, 3), "video_sha256": video_id},
    )


def _command(settings: Settings, caption: str | None) -> str:
    parts = ["--scenes" if settings.scenes else f"--every {settings.every:g}", f"--radius {settings.radius}"]
    return " ".join(["frames", *parts, *([f'--caption "{caption}"'] if caption else [])])


def _problem(path: Path, why: str) -> Problem:
    return Problem(level="error", code="bad-video", where=str(path), what=why, mend="convert it anew, or leave it out")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("video", "PyAV") from error
    return av


# ---- one video, in a worker process


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    id: str
    path: str
    settings: Settings
    staged: str | None  # None: nothing is written

    @property
    def name(self) -> str:
        """Names what is made of this video by these settings."""
        return f"{self.id[:24]}-{hashlib.sha256(repr(self.settings).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Still:
    name: str  # in the staging folder
    number: int  # of the frame in the video
    time: float
    sharpness: float
    sha256: str
    num_bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    stills: tuple[_Still, ...] = ()
    num_decoded: int = 0
    num_duplicates: int = 0
    broken: str = ""

    @property
    def hashes(self) -> list[str]:
        """The contents of its stills."""
        return [one.sha256 for one in self.stills]


@dataclass(slots=True)
class _Seen:
    """A decoded frame that may be taken."""

    number: int
    time: float
    image: Image.Image
    sharpness: float


def _take(job: _Job) -> _Taken:
    """All stills of one video; an interrupted run's are taken as they are."""
    settings = job.settings
    note = None if job.staged is None else Path(job.staged, f"{job.name}.json")
    if note is not None and (done := _noted(note)) and all(note.with_name(one.name).is_file() for one in done.stills):
        return done
    stills: list[_Still] = []
    hashes: list[tuple[int, bytes]] = []
    counts = {"decoded": 0, "duplicates": 0}
    broken = ""
    try:
        with _opened(Path(job.path)) as (container, stream):
            for seen in _moments(container, stream, settings, counts):
                if settings.limit is not None and len(stills) >= settings.limit:
                    break
                if seen.sharpness < settings.min_sharpness:
                    continue
                if _is_copy(seen, hashes, settings.radius):
                    counts["duplicates"] += 1
                    continue
                stills.append(_kept(seen, job))
    except BadInput as error:
        broken = error.what
    except (_av().FFmpegError, ValueError, OSError, MemoryError, ArithmeticError, LookupError) as error:
        if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        text = text.partition("; last error")[0].partition(": '")[0]
        at = f"stops after {stills[-1].time:.1f} s: " if stills else "can't be decoded: "
        broken = at + text.partition("] ")[2] if text.startswith("[Errno") else at + text
    if not stills and not broken and counts["decoded"] == 0:
        broken = "no frame lies in the time that was asked for" if settings.start else "it holds no frames"
    taken = _Taken(
        stills=tuple(stills), num_decoded=counts["decoded"], num_duplicates=counts["duplicates"], broken=broken
    )
    if note is not None and not broken:
        atomic.write_text(note, json.dumps(asdict(taken)))
    return taken


def _noted(note: Path) -> _Taken | None:
    """What an earlier run made of a video; None where there was none, or it was cut off."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stills = tuple(_Still(**one) for one in said["stills"])
    return _Taken(stills=stills, num_decoded=said["num_decoded"], num_duplicates=said["num_duplicates"])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; nothing but this one file is ever read."""
    av = _av()
    with path.open("rb") as file:
        options = {"protocol_whitelist": "none", "format_whitelist": _CONTAINERS}
        with av.open(file, options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadInput("it holds no pictures")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > DEFAULT_MAX_PIXELS:
                raise BadInput(f"{width} x {height} is more than {DEFAULT_MAX_PIXELS:,} pixels")
            stream.thread_type = "AUTO"
            yield container, stream


def _moments(container: Any, stream: Any, settings: Settings, counts: dict[str, int]) -> Iterator[_Seen]:
    """The sharpest frame of each window of time, or of each scene."""
    rate = float(stream.average_rate or 25)
    skip = 1 if settings.scenes else max(1, int(settings.every * rate / _LOOKED_AT))
    first: float | None = None
    window: int | None = None
    best: _Seen | None = None
    before: bytes | None = None
    since = 0
    for number, frame in enumerate(container.decode(stream)):
        counts["decoded"] += 1
        if frame.time is None:
            continue
        first = frame.time if first is None else first
        time = float(frame.time - first)
        if time < settings.start:
            continue
        if settings.end is not None and time >= settings.end:
            break
        now = int((time - settings.start) / settings.every)
        if not settings.scenes and now != window:
            if best is not None:
                yield best
            best, window, since = None, now, 0
        since += 1
        if (since - 1) % skip:
            continue
        small = _small(frame)
        if settings.scenes:
            thumb = _thumb(small)
            if before is not None and _apart(before, thumb) > _CUT:
                if best is not None:
                    yield best
                best = None
            before = thumb
        sharpness = _sharpness(small)
        if best is None or sharpness > best.sharpness:
            best = _Seen(number, time, _upright(frame, stream), sharpness)
    if best is not None:
        yield best


def _small(frame: Any) -> Image.Image:
    """The frame as a small RGB picture, the shorter side at 240 pixels, as it is stored."""
    scale = min(1.0, 240 / max(1, min(frame.width, frame.height)))
    width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
    image: Image.Image = frame.reformat(width=width, height=height, format="rgb24").to_image()
    return image


def _sharpness(im: Image.Image) -> float:
    import numpy as np

    from edkit.measure import quality

    gray = im.convert("L")
    return quality.sharpness(np.asarray(quality.at_scale(gray)), quality.variance(quality.histogram(gray)))


def _thumb(im: Image.Image) -> bytes:
    from edkit.measure.hashes import thumb

    return thumb(im)


def _apart(one: bytes, other: bytes) -> float:
    import numpy as np

    a, b = (np.frombuffer(data, dtype=np.uint8).astype(np.float32) / 255 for data in (one, other))
    return float(np.sqrt(((a - b) ** 2).mean()))


def _upright(frame: Any, stream: Any) -> Image.Image:
    """The whole frame as it is shown: square pixels, turned as the camera was held."""
    from PIL import Image

    im: Image.Image = frame.to_image()
    ratio = stream.codec_context.sample_aspect_ratio
    if ratio and ratio != 1 and 0.1 < float(ratio) < 10:
        im = im.resize((max(1, round(im.width * float(ratio))), im.height), Image.Resampling.LANCZOS)
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    degrees = round(getattr(frame, "rotation", 0) or 0) % 360
    return im.transpose(turns[degrees]) if degrees in turns else im


def _is_copy(seen: _Seen, kept: list[tuple[int, bytes]], radius: int) -> bool:
    """Whether a frame taken before shows the same; notes this one where not."""
    from edkit.clean.likeness import same_hues
    from edkit.measure.facts import View
    from edkit.measure.hashes import same_colours

    view = View(_jpeg(seen.image.resize(_half(seen.image.size)), 90))
    phash, thumb = int(view.phashes[0], 16), _thumb(view.small)
    for other, theirs in kept:
        if (phash ^ other).bit_count() <= radius and same_colours(thumb, theirs) and same_hues(thumb, theirs):
            return True
    kept.append((phash, thumb))
    return False


def _half(size: tuple[int, int]) -> tuple[int, int]:
    """At most 256 pixels on the shorter side: all a hash looks at."""
    scale = min(1.0, 256 / max(1, min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _kept(seen: _Seen, job: _Job) -> _Still:
    data = _jpeg(seen.image, job.settings.quality)
    name = f"{job.name}-{seen.number}"  # no image's ending: a visible state folder in a data root is walked
    if job.staged is not None:
        atomic.write_bytes(Path(job.staged, name), data)
    return _Still(
        name=name,
        number=seen.number,
        time=seen.time,
        sharpness=seen.sharpness,
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        width=seen.image.width,
        height=seen.image.height,
    )


def _jpeg(im: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    im.save(out, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return out.getvalue()
