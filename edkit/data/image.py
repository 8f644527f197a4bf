"""The one way edkit opens an image: safely, upright, in RGB; and the crop a training step sees.

A *source* is a path or the file's bytes. Nothing here trusts a file: its ending, its header, its length and
its pixel count are checked before they are believed, and every failure is one `BadInput` line.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from edkit.data.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image, ImageCms

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"}
    | {".avif", ".heic", ".heif", ".hif", ".tif", ".tiff", ".gif"}
)
"""File endings (lower case, with the dot) that count as images."""

DEFAULT_MAX_PIXELS = 178_956_970
"""More pixels than this (2 GiB / 12 bytes: Pillow's own hard limit) are a decompression bomb, not a photo."""

_SUFFIX_FOR = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "AVIF": ".avif",
    "HEIF": ".heic",
    "TIFF": ".tif",
    "GIF": ".gif",
}
_ORIENTATION_TAG = 0x0112

Source = Path | str | bytes


class TooManyPixels(BadInput):
    """A header speaks of more pixels than are to be decoded; nothing was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file's header says of its image; width and height in pixels, as seen upright."""

    format: str  # Pillow's name: "JPEG", "PNG", "WEBP", ...
    width: int
    height: int
    orientation: int  # EXIF orientation 1..8; 1 is upright
    mode: str  # Pillow's mode as stored: "RGB", "CMYK", "P", "I;16", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What else a file's header says of the picture and of how it was made."""

    has_alpha: bool  # an alpha channel, or a colour that stands for transparent
    camera: str  # EXIF make and model in one line; "": not said
    taken: str  # EXIF "2024-05-01T12:30:00" by the camera's own clock; "": not said
    jpeg_quality: int | None  # 1..100 on libjpeg's scale, from the quantization table; None: no JPEG


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """How an upright image becomes a bucket: scaled to `scaled_*`, then cut out at (left, top).

    All in pixels. `flip` mirrors the result left to right.
    """

    width: int
    height: int
    scaled_width: int
    scaled_height: int
    left: int
    top: int
    flip: bool = False


def is_image(path: Path | str) -> bool:
    """Whether the file's ending names an image format edkit reads."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - fast on plain strings


def suffix_for(format: str) -> str:
    """The file ending for a format as `Header.format` names it: "JPEG" -> ".jpg".

    Raises BadInput for a format edkit doesn't read.
    """
    try:
        return _SUFFIX_FOR[format.upper()]
    except KeyError:
        raise BadInput(f"{format} is no image format edkit writes a name for") from None


def probe(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """What the header says, without decoding a pixel.

    Raises BadInput in one line: unreadable, not an image, too many pixels.
    """
    with _opened(source, max_pixels) as (im, file):
        return _header(im, file)


def look(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Header, Details]:
    """All that the header says, without decoding a pixel; raises as `probe` does."""
    with _opened(source, max_pixels) as (im, file):
        return _header(im, file), _details(im, file)


def decode(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> tuple[Header, Details, Image.Image]:
    """What `look`, `open_image` and `verify` say of a file's bytes, by one opening and (mostly) one decoding.

    Raises BadInput where anything is missing, also where the decoder fills it in silently.
    """
    with _opened(data, max_pixels) as (im, file):
        header, details = _header(im, file), _details(im, file)
        _load(im, header.orientation, at_least)
        missing = _missing_end(data, header.format, im)
        if missing:
            raise BadInput(missing, mend=_MEND_BROKEN)
        return header, details, _seen(im, header.orientation, background)


def open_image(
    source: Source,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> Image.Image:
    """The whole image in 8-bit sRGB, upright, its transparent parts over `background` (None: left, as RGBA).

    `at_least` (width, height of the upright result) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size,
    as long as neither side falls below it. Of an animation the first frame is taken. Raises BadInput where
    the file can't be decoded to its end.
    """
    with _opened(source, max_pixels) as (im, file):
        orientation = _orientation(im, file)
        _load(im, orientation, at_least)
        return _seen(im, orientation, background)


def verify(
    source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS, first: Callable[[Header], object] | None = None
) -> Header:
    """Decode to the last row and return the header; BadInput where anything is missing.

    `first` sees the header before anything is decoded, and may raise where the image is not wanted.

    Pillow fills what a cut JPEG, PNG, WEBP or GIF lacks when only the end mark or the last blocks are gone.
    A baseline JPEG is decoded to grey at an eighth: every byte of it is read all the same, block by block, and
    only pixels are saved.
    """
    data = source if isinstance(source, bytes) else _read(source)
    where = None if isinstance(source, bytes) else os.fspath(source)
    with _opened(data, max_pixels, where=where) as (im, file):
        header = _header(im, file)
        if first is not None:
            first(header)
        _reduce(im)
        im.load()
        missing = _missing_end(data, header.format, im)
        if missing:
            raise BadInput(missing, where=where, mend=_MEND_BROKEN)
        return header


def load_crop(
    source: Source,
    crop: Crop,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """The RGB image, `crop.width` x `crop.height`, that a training step sees; the same on every call."""
    from PIL import Image

    # twice the wanted size: the JPEG's own downscaling stays well below what Lanczos then takes away
    at_least = (2 * crop.scaled_width, 2 * crop.scaled_height)
    im = open_image(source, max_pixels=max_pixels, at_least=at_least, background=background)
    out = im.resize((crop.width, crop.height), Image.Resampling.LANCZOS, box=_box(im, crop))
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else out


def load_mask(
    source: Source,
    crop: Crop,
    size: tuple[int, int],
    channel: Literal["file", "alpha"],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """The mask of a crop in grey, scaled to `size` (width, height): each pixel the mean of those below it.

    `source` is the mask itself (its brightness counts), or with "alpha" the image whose opacity is the mask (white
    where it has none). Raises BadInput where a mask has another aspect than its image.
    """
    from PIL import Image

    im = open_image(source, max_pixels=max_pixels, background=None if channel == "alpha" else (0, 0, 0))
    if channel == "alpha":
        im = im.getchannel("A") if im.mode == "RGBA" else Image.new("L", im.size, 255)
    else:
        im = im.convert("L")
        # a pixel's rounding on either side is no other aspect
        off = abs(im.width * crop.scaled_height - im.height * crop.scaled_width)
        if off > 2 * max(im.width, im.height, crop.scaled_width, crop.scaled_height):
            shape = f"the mask is {im.width} x {im.height}, which is not its image's aspect"
            raise BadInput(shape, mend="draw it at the image's size")
    out = im.resize(size, Image.Resampling.BOX, box=_box(im, crop))
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else out


def _box(im: Image.Image, crop: Crop) -> tuple[float, float, float, float]:
    """The crop in the pixels of an image decoded at any size."""
    sx, sy = im.width / crop.scaled_width, im.height / crop.scaled_height
    box = (crop.left * sx, crop.top * sy, (crop.left + crop.width) * sx, (crop.top + crop.height) * sy)
    return box[0], box[1], min(box[2], im.width), min(box[3], im.height)


# ---- opening

_MEND_BROKEN = "fetch or export it again, or remove it"


@cache
def _formats() -> tuple[str, ...]:
    """The formats this machine's Pillow opens (HEIC through pillow-heif); the safe ones only."""
    import warnings

    from PIL import Image

    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    # `max_pixels` judges pixel counts, and does so in one line
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    known = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "AVIF", "HEIF", "TIFF", "GIF")
    return tuple(name for name in known if name in Image.OPEN)


def decoder_errors() -> tuple[type[BaseException], ...]:
    """What Pillow's decoders raise on bytes that aren't what they claim to be."""
    from PIL import Image

    return (
        *(
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            struct.error,
            zlib.error,
            LookupError,
            TypeError,
            AttributeError,
        ),
        *(ArithmeticError, RuntimeError, MemoryError, Image.DecompressionBombError),
    )


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(_reason(error), where=os.fspath(path)) from error


@contextmanager
def _opened(source: Source, max_pixels: int, *, where: str | None = None) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Pillow's lazily opened image and the file below it; whatever goes wrong inside becomes BadInput."""
    from PIL import Image, UnidentifiedImageError

    file: BinaryIO
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    else:
        where = os.fspath(source)
        try:
            file = Path(source).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise BadInput(_reason(error), where=where) from error
    with file:
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels  # only ever raised, and only because the user asked for it
        try:
            with Image.open(file, formats=_formats()) as im:
                if im.width * im.height > max_pixels:
                    raise TooManyPixels(
                        f"{im.width} x {im.height} is more than {max_pixels:,} pixels",
                        where=where,
                        mend="raise --max-pixels if it is no decompression bomb",
                    )
                if im.width < 1 or im.height < 1:
                    raise BadInput("the image is empty", where=where, mend=_MEND_BROKEN)
                yield im, file
        except UnidentifiedImageError as error:
            raise BadInput(_why_unidentified(file), where=where, mend=_MEND_BROKEN) from error
        except Image.DecompressionBombError as error:
            raise TooManyPixels(
                f"more than {max_pixels:,} pixels",
                where=where,
                mend="it looks like a decompression bomb: remove it",
            ) from error
        except decoder_errors() as error:
            raise BadInput(f"can't be decoded: {_reason(error)}", where=where, mend=_MEND_BROKEN) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _why_unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(512)
    if not start:
        return "the file is empty"
    if start.lstrip()[:1] == b"<":
        return "it is a web page or an SVG, not an image"
    return "not an image, or damaged at its start"


def _header(im: Image.Image, file: BinaryIO) -> Header:
    orientation = _orientation(im, file)
    width, height = im.size
    # Pillow gives a TIFF's size upright already
    if orientation >= 5 and im.format != "TIFF":
        width, height = height, width
    return Header(
        format="JPEG" if im.format == "MPO" else "BMP" if im.format == "DIB" else str(im.format),
        width=width,
        height=height,
        orientation=orientation,
        mode=im.mode,
    )


def _orientation(im: Image.Image, file: BinaryIO) -> int:
    """EXIF orientation 1..8; 1 where there is none or the EXIF block is damaged (as viewers do)."""
    try:
        value = _exif(im, file).get(_ORIENTATION_TAG, 1)
    except decoder_errors():
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(im: Image.Image, file: BinaryIO) -> Image.Exif:
    """The EXIF block, empty where there is none; raises what Pillow raises over a damaged one."""
    from PIL import Image

    if im.format != "PNG" or "exif" in im.info:
        return im.getexif()
    # Pillow would decode the whole image to look for a block behind the pixels
    block = _png_chunk(file, b"eXIf")
    if block is not None:
        im.info["exif"] = b"Exif\0\0" + block
    elif not im.info.keys() & {"XML:com.adobe.xmp", "Raw profile type exif"}:
        return Image.Exif()
    return Image.Image.getexif(im)


def _details(im: Image.Image, file: BinaryIO) -> Details:
    camera, taken = "", ""
    try:
        exif = _exif(im, file)
        if len(exif):
            make, model = (_words(exif.get(tag)) for tag in (0x010F, 0x0110))
            camera = model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()
            own = exif.get_ifd(0x8769)
            taken = _moment(own.get(0x9003)) or _moment(own.get(0x9004))
    except decoder_errors():
        pass  # a damaged block says nothing, as in viewers
    tables = getattr(im, "quantization", None) if im.format in ("JPEG", "MPO") else None
    return Details(
        has_alpha=im.has_transparency_data,
        camera=camera,
        taken=taken,
        jpeg_quality=_jpeg_quality(sum(tables[0])) if tables and len(tables.get(0, ())) == 64 else None,
    )


def _words(value: object) -> str:
    """An EXIF text in one printable line; cameras pad it with blanks and zeros."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text.partition("\0")[0]).split())[:120]


def _moment(value: object) -> str:
    """EXIF's "2024:05:01 12:30:00" as "2024-05-01T12:30:00"; "" where it is no time that was."""
    from datetime import datetime

    try:
        return datetime.strptime(_words(value), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return ""


def _jpeg_quality(total: int) -> int:
    """The quality (1..100) whose luminance table, as libjpeg scales it, has the sum nearest to `total`."""
    sums = _quality_sums()
    above = bisect_left(sums, -total, 1, 100)
    return above - 1 if above > 1 and -total - sums[above - 1] < sums[above] + total else above


@cache
def _quality_sums() -> tuple[int, ...]:
    """Minus the sum of libjpeg's luminance table at every quality, so that it rises (place 0 is unused)."""
    scales = [0, *(5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101))]
    return tuple(-sum(min(255, max(1, (value * scale + 50) // 100)) for value in _LUMINANCE) for scale in scales)


_LUMINANCE = (  # ITU-T T.81, table K.1
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def _png_chunk(file: BinaryIO, name: bytes) -> bytes | None:
    """The content of a PNG's first chunk of that name, found by hopping from chunk to chunk."""
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == name:
                return file.read(min(length, 1 << 20))
            if head[4:] == b"IEND":
                return None
            file.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        file.seek(position)


# ---- pixels


def _load(im: Image.Image, orientation: int, at_least: tuple[int, int] | None) -> None:
    """Decode; a JPEG at 1/2, 1/4 or 1/8 where both sides stay at least that long."""
    if at_least is not None and im.format in ("JPEG", "MPO"):
        im.draft(None, at_least[::-1] if orientation >= 5 else at_least)
    im.load()


def _seen(im: Image.Image, orientation: int, background: tuple[int, int, int] | None) -> Image.Image:
    """What was decoded as people see it: upright, 8-bit sRGB, over a background (None: transparent as it was)."""
    # Pillow turns TIFFs itself while it loads them
    return _flatten(_srgb(im if im.format == "TIFF" else _upright(im, orientation)), background)


def _upright(im: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return im.transpose(turns[orientation]) if orientation in turns else im


def _srgb(im: Image.Image) -> Image.Image:
    """8 bits a channel, in sRGB: mode "L", "LA", "RGB" or "RGBA" (or what `convert` makes "RGB" of)."""
    if im.mode.startswith(("I", "F")):
        return _eight_bit(im)
    if im.mode == "P" or im.mode == "PA":
        im = im.convert("RGBA" if "transparency" in im.info or im.mode == "PA" else "RGB")
    elif "transparency" in im.info and im.mode in ("1", "L", "RGB"):
        im = im.convert("RGBA")
    profile = im.info.get("icc_profile")
    if not profile or im.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return im
    from PIL import ImageCms

    try:
        transform = _to_srgb(profile, im.mode, "RGBA" if im.mode == "RGBA" else "RGB")
        return im if transform is None else ImageCms.applyTransform(im, transform) or im
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return im  # a damaged profile, or one for another kind of pixels: viewers ignore it too


@lru_cache(maxsize=16)  # photos of one camera share a profile, and a transform costs more than using it
def _to_srgb(profile: bytes, mode: str, wanted: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB's; None where they are sRGB's already."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(source):
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, wanted)


def _eight_bit(im: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as 8-bit grey, without the clipping `convert` would do."""
    import numpy as np
    from PIL import Image

    values = np.nan_to_num(np.asarray(im).astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if im.mode == "F":
        full = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else top
    else:
        full = 65535.0 if im.mode.startswith("I;16") or 255.0 < top <= 65535.0 else 255.0 if top <= 255.0 else top
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8), mode=None)


def _flatten(im: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    from PIL import Image

    if im.mode in ("RGBA", "LA", "La", "RGBa"):
        im = im.convert("RGBA")
        if background is None:
            return im
        under = Image.new("RGBA", im.size, (*background, 255))
        return Image.alpha_composite(under, im).convert("RGB")
    if im.mode != "RGB":
        return im.convert("RGB")
    # the same pixels without the file, which is about to be closed: a copy would cost a tenth of a small JPEG
    return im.copy() if im.readonly else im._new(im.im)


# ---- truncation


def _missing_end(data: bytes, format: str, im: Image.Image) -> str | None:
    """What a decoded file lacks at its end, or None."""
    if format == "JPEG":
        return _missing_jpeg_end(data, im)
    if format == "PNG" and b"IEND" not in data[-4096:] and b"IEND" not in data:
        return "truncated: the PNG's end mark is missing"
    if format == "PNG" and _lacks_rows(data, im):
        return "truncated: it has fewer rows than its header says"
    if format == "GIF" and data.rstrip(b"\0")[-1:] != b";":
        return "truncated: the GIF's end mark is missing"
    if format in ("WEBP",) and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return "truncated: the file is shorter than its header says"
    return None


def _lacks_rows(data: bytes, im: Image.Image) -> bool:
    """Whether a PNG's data end before its last row, which Pillow then leaves black without a word."""
    if any(high for _, high in _extrema(im.crop((0, im.height - 1, im.width, im.height)))):
        return False
    position, expected, found = 8, 0, 0
    unpacker = zlib.decompressobj()
    while position + 8 <= len(data):
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        chunk = data[position + 8 : position + 8 + length]
        if name == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", chunk)
            bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
            # Adam7: (first column, first row, column step, row step) of each pass
            passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
            for x, y, across, down in passes if interlaced else [(0, 0, 1, 1)]:
                columns, rows = -(-max(0, width - x) // across), -(-max(0, height - y) // down)
                expected += rows * (1 + -(-columns * bits // 8)) if columns else 0
        elif name == b"IDAT":
            while chunk and not unpacker.eof:
                found += len(unpacker.decompress(chunk, 1 << 20))
                chunk = unpacker.unconsumed_tail
        position += 12 + length
    return found < expected


def _reduce(im: Image.Image) -> bool:
    """Have a baseline JPEG of grey or colour decoded to grey at an eighth; False where it can't be.

    Not a progressive one: there an eighth needs only the first of its scans to look right.
    """
    if im.format not in ("JPEG", "MPO") or im.mode not in ("L", "RGB") or "progressive" in im.info:
        return False
    im.draft("L", (max(1, im.width // 8), max(1, im.height // 8)))
    return True


def _missing_jpeg_end(data: bytes, im: Image.Image) -> str | None:
    """What a JPEG lacks: its end mark, or image data before it (libjpeg fills both in silently)."""
    progressive = "progressive" in im.info
    if not progressive and not _all_restarts(data):
        return "truncated: image data is missing before the JPEG's end"
    if data[-2:] == b"\xff\xd9" and not progressive and not _made_up(im):
        return None
    position, lacking = _jpeg_end(data)
    if position < 0:
        return "truncated: the JPEG's end mark is missing"
    if progressive and lacking:
        return "truncated: scans are missing before the JPEG's end"
    if not progressive and not _made_up(im):
        return None
    # more data before the end mark changes nothing in a whole image, and is drawn in a cut one
    again = data[:position] + b"\x2a\x55\x91\x5b\x36\xc9\x6d\x24" * 512 + data[position:]
    from PIL import Image

    try:
        with Image.open(io.BytesIO(again), formats=_formats()) as other:
            if (other.mode, other.size) != (im.mode, im.size):
                # reduced sizes are rounded up, so that the scale can't be had by dividing
                scale = next(
                    s for s in (1, 2, 4, 8) if -(-other.width // s) <= im.width and -(-other.height // s) <= im.height
                )
                other.draft(None if other.mode == im.mode else im.mode, (other.width // scale, other.height // scale))
            other.load()
            if other.tobytes() == im.tobytes():
                return None
    except decoder_errors():
        pass
    return "truncated: image data is missing before the JPEG's end"


def _all_restarts(data: bytes) -> bool:
    """Whether a baseline JPEG with restart marks (each lets the decoder begin afresh) has as many as it must.

    After a missing one libjpeg goes on with what look like blocks.
    """
    position, interval, mcus, num_components = 2, 0, 0, 0
    while position + 9 < len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker in (0xC0, 0xC1):
            height, width = struct.unpack_from(">HH", data, position + 5)
            sampling = data[position + 11 : position + 2 + length : 3]
            num_components = len(sampling)
            across, down = (
                (max(b >> 4 for b in sampling), max(b & 15 for b in sampling)) if num_components > 1 else (1, 1)
            )
            mcus = -(-width // (8 * across)) * -(-height // (8 * down)) if across and down else 0
        elif marker == 0xDD:
            interval = int.from_bytes(data[position + 4 : position + 6], "big")
        elif marker == 0xDA:
            if not mcus or not interval or data[position + 4] != num_components:
                return True  # none to count, or several scans
            found = sum(data.count(bytes((0xFF, 0xD0 + n)), position) for n in range(8))
            return found >= -(-mcus // interval) - 1
        elif marker in (0xD9, 0x00):
            return True
        position += 2 + length
    return True


def _made_up(im: Image.Image) -> bool:
    """Whether a decoded JPEG ends in the flat middle grey that libjpeg draws where data are missing."""
    corner = im.crop((max(0, im.width - 2), max(0, im.height - 1), im.width, im.height))
    return all(low >= 127 and high <= 128 for low, high in _extrema(corner))  # 127: inverted CMYK


def _jpeg_end(data: bytes) -> tuple[int, bool]:
    """Where the end mark stands (-1: nowhere), and whether the scans before it lack bits of any component."""
    position, num_components = 2, 0
    exact: dict[int, int] = {}  # component -> coefficients that came down to their last bit
    while True:  # marker by marker, over the entropy-coded data of each scan
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return -1, False
        marker = data[position + 1]
        if marker == 0xD9:
            return position, any(count < 64 for count in exact.values()) or len(exact) < num_components
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        block = data[position + 4 : position + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2) and len(block) > 5:
            num_components = block[5]
        elif marker == 0xDA and block and len(block) >= 4 + 2 * block[0]:
            first, last, bits = block[1 + 2 * block[0] :][:3]
            if bits & 15 == 0:
                for component in block[1 : 1 + 2 * block[0] : 2]:
                    exact[component] = exact.get(component, 0) + last - first + 1
        position += 2 + length


def _extrema(im: Image.Image) -> list[tuple[float, float]]:
    low_high = im.getextrema()
    pairs = low_high if isinstance(low_high[0], tuple) else (low_high,)
    return [(float(low), float(high)) for low, high in pairs]
