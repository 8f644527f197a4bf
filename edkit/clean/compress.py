"""Make large pictures smaller: resized down, upright, in sRGB, captions kept, the originals in the trash."""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.clean.files import Listing, list_images, open_catalog, shown
from edkit.data import atomic
from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.image import decoder_errors, open_image, probe, suffix_for
from edkit.data.journal import Change, Move, Trash, apply
from edkit.data.progress import SILENT, Progress
from edkit.data.walk import nfc
from edkit.data.workers import Died, spread

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("webp", "jpeg", "png", "keep")
_PILLOW = {"webp": "WEBP", "jpeg": "JPEG", "png": "PNG"}
_KEPT_TAGS = (0x010E, 0x010F, 0x0110, 0x0132, 0x013B, 0x8298)  # description, make, model, date, artist, copyright
_TAKEN_AT = 0x9003  # DateTimeOriginal


@dataclass(frozen=True, slots=True, kw_only=True)
class Smaller:
    """One image that was made smaller."""

    path: Path  # the original, now in the trash
    to: Path
    num_bytes: int  # before
    new_bytes: int
    size: tuple[int, int]  # width, height in pixels, before
    new_size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What `compress` did."""

    num_images: int  # looked at
    smaller: tuple[Smaller, ...]
    left: tuple[tuple[Path, str], ...]  # stay as they are, with the reason
    broken: tuple[Problem, ...]  # can't be decoded, left where they are
    num_bytes: int  # of the originals that were replaced
    new_bytes: int  # of what stands in their place
    operation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a picture is written anew; valid from the start.

    `max_mp`: megapixels (millions) a picture keeps at most; None: any. `quality` 1..100 (PNG has none).
    `format`: one of `FORMATS`. `bake`: rewrite pictures too that are small enough but stored turned or in
    another colour space.
    """

    max_mp: float | None = 1.5
    quality: int = 95
    format: str = "webp"
    bake: bool = False

    def __post_init__(self) -> None:
        if self.max_mp is not None and not 0.001 <= self.max_mp <= 1000:
            raise UsageError(f"--max-mp {self.max_mp:g} is not in 0.001..1000", mend="megapixels, such as 1.5")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is not in 1..100")
        if self.format not in FORMATS:
            raise UsageError(f"no format is called {self.format!r}", mend=f"one of {', '.join(FORMATS)}")

    @property
    def digest(self) -> str:
        """Names what was made by these settings."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def compress(
    root: Path,
    *,
    max_mp: float | None = 1.5,
    quality: int = 95,
    format: str = "webp",
    bake: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Compressed:
    """Write every image that is too large, or in another format, anew, and set the original aside.

    Pictures are only ever scaled down, to at most `max_mp` megapixels; EXIF orientation and colour profile
    are baked in (sRGB). Names keep their stem, so sidecars go on belonging to them. Left as they are, each
    with the reason: what is small already, what would not become smaller, animations, 16-bit pictures, and
    names that are taken. What was made stays in the cache until all is made, then everything changes place in
    one journaled operation: killed before, the same command goes on where it was. A dry run makes the pictures
    too (to know their sizes) and keeps none.
    """
    settings = Settings(max_mp=max_mp, quality=quality, format=format, bake=bake)
    listing = list_images([root])
    with open_catalog(root, state_dir=state_dir, changes=not dry_run, command="compress", progress=progress) as catalog:
        ids = catalog.content_ids(listing.images, progress=progress)
        staged = None if dry_run else catalog.cache_dir / "compress"
        jobs = _jobs(listing, ids, settings, staged)
        broken: list[Problem] = []
        left: list[tuple[Path, str]] = []
        made: dict[str, Made] = {}  # by content
        for path, id in ids.items():
            if isinstance(id, Unreadable):
                broken.append(_problem(path, str(id)))
        for job, result in spread(_make, jobs, what="compressing", workers=workers, few=8, progress=progress):
            made[job.id] = Made(broken=str(result)) if isinstance(result, Died) else result
        pairs: list[tuple[Smaller, Made]] = []
        for path in listing.images:
            id = ids[path]
            if isinstance(id, Unreadable):
                continue
            how = made[id]
            if how.broken:
                broken.append(_problem(path, how.broken))
            elif how.left:
                left.append((path, how.left))
            else:
                pairs.append((_smaller(path, how), how))
        pairs = _without_clashes(pairs, listing, left)
        changes: list[Change] = []
        derived: list[tuple[str, str, Path]] = []
        if staged is None:
            changes = [Trash(one.path, _reason(one, root)) for one, _ in pairs]
        else:
            used: dict[Path, int] = defaultdict(int)
            for one, how in pairs:
                try:
                    info = one.path.stat()
                except FileNotFoundError:  # nothing may stand in the place of what a person took away meanwhile
                    left.append((one.path, "it is gone"))
                    continue
                file = _own_copy(staged, how, used)
                os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))  # as old as the picture it shows
                facts = {"num_bytes": one.num_bytes, "new_bytes": one.new_bytes}
                changes.append(Trash(one.path, _reason(one, root), facts=facts))
                changes.append(Move(file, one.to, _reason(one, root), kind="compress", facts=facts))
                derived.append((how.sha256, ids[one.path], one.to))
            # before the files change place: a row too many says nothing false, one too few loses an author
            _remember(catalog, derived)
        applied = apply(
            catalog,
            changes,
            verb="compress",
            command=" ".join(
                [
                    "compress",
                    *([] if max_mp is None else [f"--max-mp {max_mp:g}"]),
                    f"--quality {quality}",
                    f"--format {format}",
                    *["--bake"] * bake,
                ]
            ),
            dry_run=dry_run,
            progress=progress,
        )
    stayed = {change.path: why for change, why in applied.skipped if isinstance(change, Trash)}
    going = {change.path for change in changes if isinstance(change, Trash)}
    done = [one for one, _ in pairs if one.path in going and one.path not in stayed]
    return Compressed(
        num_images=len(listing.images),
        smaller=tuple(done),
        left=(*left, *stayed.items()),
        broken=tuple(broken),
        num_bytes=sum(one.num_bytes for one in done),
        new_bytes=sum(one.new_bytes for one in done),
        operation=applied.operation,
    )


# ---- one picture, in a worker process


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    id: str
    path: str
    settings: Settings
    staged: str | None  # the folder for what is made; None: only its size is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one content: a new file's name, size and hash; or why it was left, or is broken."""

    name: str = ""
    suffix: str = ""
    sha256: str = ""
    num_bytes: int = 0
    size: tuple[int, int] = (0, 0)
    new_size: tuple[int, int] = (0, 0)
    new_bytes: int = 0
    left: str = ""
    broken: str = ""


def _jobs(listing: Listing, ids: dict[Path, str], settings: Settings, staged: Path | None) -> list[_Job]:
    if staged is not None and listing.images:
        staged.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, _Job] = {}
    for path in listing.images:
        id = ids[path]
        if not isinstance(id, Unreadable) and id not in jobs:
            folder = None if staged is None else str(staged)
            jobs[id] = _Job(id=id, path=str(path), settings=settings, staged=folder)
    return list(jobs.values())


def _make(job: _Job) -> Made:
    """Make one picture smaller; what an interrupted run has made already is taken as it is."""
    try:
        data = Path(job.path).read_bytes()
        return _made(data, job)
    except BadInput as error:
        return Made(broken=error.what)
    except OSError as error:
        if error.errno == 28:  # ENOSPC: no later picture has room either
            raise
        return Made(broken=(error.strerror or str(error)).lower())


def _made(data: bytes, job: _Job) -> Made:
    settings = job.settings
    header = probe(data)
    target = header.format if settings.format == "keep" else _PILLOW[settings.format]
    if target not in _PILLOW.values():
        return Made(left=f"{header.format} is not written anew; --format webp would")
    kind = _kind(data)
    if kind.special:
        return Made(left=kind.special)
    size = header.width, header.height
    new_size = _fitting(size, settings.max_mp)
    baked = settings.bake and (header.orientation != 1 or kind.profile)
    if new_size == size and target == header.format and not baked:
        return Made(left="small enough already")
    suffix = Path(job.path).suffix if target == header.format else suffix_for(target)
    name = f"{job.id}-{settings.digest}"  # no image's ending: a visible state folder in a data root is walked
    file = None if job.staged is None else Path(job.staged, name)
    if file is not None and file.is_file():
        new = file.read_bytes()
    else:
        at_least = None if new_size == size else (2 * new_size[0], 2 * new_size[1])
        im = open_image(data, at_least=at_least, background=(255, 255, 255) if target == "JPEG" else None)
        if im.size != new_size:
            from PIL import Image

            im = im.resize(new_size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        try:
            new = _encoded(im, target, settings.quality, kind.exif)
        except decoder_errors() as error:
            return Made(left=f"can't be written as {target}: {' '.join(str(error).split()) or type(error).__name__}")
    if len(new) >= len(data) and not baked:
        return Made(left=f"it would not become smaller ({len(new):,} bytes instead of {len(data):,})")
    if file is not None and not file.is_file():
        atomic.write_bytes(file, new)
    return Made(
        name=name,
        suffix=suffix,
        sha256=hashlib.sha256(new).hexdigest(),
        num_bytes=len(data),
        size=size,
        new_size=new_size,
        new_bytes=len(new),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    special: str  # why it is left alone; "" where it is an ordinary picture
    profile: bool  # its colours need a profile to be read right
    exif: bytes  # what of its EXIF goes into the new file


def _kind(data: bytes) -> _Kind:
    from PIL import Image, ImageCms

    special, exif, profile = "", b"", False
    try:
        with Image.open(io.BytesIO(data)) as im:
            frames = 1 if im.format == "MPO" else int(getattr(im, "n_frames", 1))
            if frames > 1:
                special = f"{frames} pages" if im.format == "TIFF" else f"animated ({frames} frames)"
            elif im.mode.startswith(("I", "F")) or (im.format == "PNG" and data[24] == 16):
                special = "more than 8 bits a channel, which the new file can't hold"
            exif = _exif(im)
            if im.info.get("icc_profile"):
                try:
                    embedded = ImageCms.ImageCmsProfile(io.BytesIO(im.info["icc_profile"]))
                    profile = "sRGB" not in ImageCms.getProfileDescription(embedded)
                except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
                    profile = False  # damaged: nobody reads it
    except decoder_errors():
        pass  # decoding it will say what is wrong
    return _Kind(special=special, profile=profile, exif=exif)


def _exif(im: Image.Image) -> bytes:
    """Author, copyright, camera and date; place, thumbnail and the rest stay behind."""
    from PIL import Image

    old, new = im.getexif(), Image.Exif()
    for tag in _KEPT_TAGS:
        if isinstance(value := old.get(tag), str) and value.strip("\0 "):
            new[tag] = value
    if isinstance(taken := old.get_ifd(0x8769).get(_TAKEN_AT), str):
        new.get_ifd(0x8769)[_TAKEN_AT] = taken
    return new.tobytes() if len(new) or isinstance(taken, str) else b""


def _fitting(size: tuple[int, int], max_mp: float | None) -> tuple[int, int]:
    """The size scaled down to at most `max_mp` megapixels, its aspect kept to the pixel."""
    width, height = size
    area = width * height
    if max_mp is None or area <= max_mp * 1e6:
        return size
    scale = (max_mp * 1e6 / area) ** 0.5
    return max(1, int(width * scale)), max(1, int(height * scale))


def _encoded(im: Image.Image, target: str, quality: int, exif: bytes) -> bytes:
    out = io.BytesIO()
    more: dict[str, object] = {"exif": exif} if exif else {}
    if target == "JPEG":
        sampling = 0 if quality >= 90 else 2  # 4:4:4 where quality is asked for
        more |= {"quality": quality, "subsampling": sampling, "optimize": True, "progressive": True}
    elif target == "WEBP":
        more |= {"quality": quality, "method": 4}
    else:
        more |= {"optimize": True}
    try:
        im.save(out, target, **more)
    except OSError:
        if target != "JPEG":
            raise
        # Pillow guesses how large an optimized JPEG gets at most, and noise outgrows the guess
        out = io.BytesIO()
        im.save(out, target, **more | {"optimize": False, "progressive": False})
    return out.getvalue()


# ---- changing places


def _smaller(path: Path, made: Made) -> Smaller:
    return Smaller(
        path=path,
        to=path.with_suffix(made.suffix),
        num_bytes=made.num_bytes,
        new_bytes=made.new_bytes,
        size=made.size,
        new_size=made.new_size,
    )


def _without_clashes(
    smaller: list[tuple[Smaller, Made]], listing: Listing, left: list[tuple[Path, str]]
) -> list[tuple[Smaller, Made]]:
    """Those whose new name is free: not another image's that stays, nor wanted twice."""
    going = {_key(one.path) for one, _ in smaller}
    staying = {_key(path): path for path in listing.images if _key(path) not in going}
    wanted: dict[str, Path] = {}
    free = []
    for one, made in smaller:
        key = _key(one.to)
        owner = staying.get(key) or wanted.get(key)
        others = key in going and key != _key(one.path)  # a.jpg would become a.webp while a.webp is rewritten too
        if owner is not None or others or (one.to != one.path and key not in going and os.path.lexists(one.to)):
            left.append((one.path, f"{one.to.name} is taken" + (f" by {owner.name}" if owner else "")))
        else:
            wanted[key] = one.path
            free.append((one, made))
    return free


def _key(path: Path) -> str:
    """What a file system that ignores case takes for one name."""
    return nfc(str(path)).casefold()


def _own_copy(staged: Path, made: Made, used: dict[Path, int]) -> Path:
    """The staged file of a content, or a copy of it where several images have this content."""
    file = staged / made.name
    used[file] += 1
    if used[file] == 1:
        return file
    copy = file.with_name(f"{file.name}-{used[file]}")
    if not copy.is_file():
        atomic.write_bytes(copy, file.read_bytes())
    return copy


def _remember(catalog: Catalog, derived: list[tuple[str, str, Path]]) -> None:
    """Note what each new content was made from, once."""
    origins = catalog.origins(sha for sha, _, _ in derived)
    new = {sha: (sha, old, path) for sha, old, path in derived if origins[sha] == sha}
    catalog.add_derived(new.values(), by="compress")


def _reason(one: Smaller, root: Path) -> str:
    (width, height), (new_width, new_height) = one.size, one.new_size
    sizes = (
        f"{width}x{height} to {new_width}x{new_height}" if one.size != one.new_size else f"{width}x{height} as it was"
    )
    return f"compressed into {shown(one.to, root)}: {sizes}, {_kilobytes(one.num_bytes)} to {_kilobytes(one.new_bytes)}"


def _kilobytes(num_bytes: int) -> str:
    return f"{num_bytes / 1000:,.0f} kB"


def _problem(path: Path, why: str) -> Problem:
    return Problem(
        level="error",
        code="unreadable-image",
        where=str(path),
        what=why,
        mend="fetch or export it again, or remove it",
    )
