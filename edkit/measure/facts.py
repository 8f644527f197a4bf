"""Every fact edkit can measure of an image, and the one decode that serves those its pixels give.

A fact is one row in `FACTS`: most are a plain function of a `View`; those that need a model or a caption are computed
by `models.py`. Raise a row's version when its values change: what the catalog holds under the old version is
then measured anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edkit.data import image
from edkit.data.errors import BadInput, UsageError
from edkit.measure import hashes, quality

Value = int | float | str | bytes | None
Facts = Mapping[str, Value]


class View:
    """One image file as the facts see it: read once, opened once, decoded at most once."""

    def __init__(self, data: bytes, *, max_pixels: int = image.DEFAULT_MAX_PIXELS) -> None:
        self.data = data
        self.max_pixels = max_pixels

    @property
    def header(self) -> image.Header:
        return self._look[0]

    @property
    def details(self) -> image.Details:
        return self._look[1]

    @cached_property
    def _look(self) -> tuple[image.Header, image.Details]:
        return image.look(self.data, max_pixels=self.max_pixels)

    @cached_property
    def rgb(self) -> Image.Image:
        """Upright RGB, averaged down by 2, 4, 8, ... while both sides keep `quality.SIDE` pixels.

        JPEG's own scaled decoding (up to 1/8) averages the same blocks, so a JPEG and a PNG of one picture
        look alike here. Raises BadInput where the file can't be decoded to its end.
        """
        side = quality.SIDE
        header, details, im = image.decode(self.data, max_pixels=self.max_pixels, at_least=(side, side))
        self._look = header, details
        return _averaged(im, side)

    @cached_property
    def gray(self) -> Image.Image:
        return self.rgb.convert("L")

    @cached_property
    def small(self) -> Image.Image:
        """`rgb` averaged down further, the shorter side at 64 pixels or more."""
        return _averaged(self.rgb, 64)

    @cached_property
    def small_gray(self) -> Image.Image:
        return self.small.convert("L")

    @cached_property
    def scaled(self) -> NDArray[np.uint8]:
        """Grey pixels (height, width) at the measuring scale: the shorter side at `quality.SIDE`."""
        return np.asarray(quality.at_scale(self.gray))

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        return quality.histogram(self.gray)

    @cached_property
    def chroma(self) -> NDArray[np.uint8]:
        return quality.chroma(self.small)

    @cached_property
    def phashes(self) -> tuple[str, ...]:
        return hashes.phashes(self.small_gray)

    @cached_property
    def bars(self) -> tuple[float, float, float, float]:
        """Letterbox bars at left, top, right and bottom, as shares of the picture's width or height."""
        height, width = self.scaled.shape
        left, top, right, bottom = quality.bars(self.scaled)
        return left / width, top / height, right / width, bottom / height


def _averaged(im: Image.Image, side: int) -> Image.Image:
    """Averaged down by the largest power of two that leaves the shorter side `side` pixels."""
    factor = 1
    while min(im.size) // (2 * factor) >= side:
        factor *= 2
    return im.reduce(factor) if factor > 1 else im


Needs = Literal["bytes", "header", "pixels", "full", "model"]
"""What a fact is made of: the file's bytes, its header, reduced pixels, a full decode of its own, or a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact: its name and version in the catalog, its unit and range, and how it is measured."""

    name: str
    version: int
    unit: str
    range: str
    what: str
    needs: Needs
    measure: Callable[[View], Value] | None = None  # None: a model's or a caption's, see models.py
    rule: bool = True  # whether it can stand in a rule (`edkit filter`)
    text: bool = False  # whether its values are words
    on_request: bool = False  # measured only where it is asked for by name
    extra: str = ""  # of edkit, that its model needs: "clip", "nsfw", "faces"
    by_caption: bool = False  # depends on the caption too

    @property
    def key(self) -> str:
        """The name the catalog keeps it under."""
        return f"{self.name}/{self.version}"


def _number(
    name: str,
    unit: str,
    range: str,
    measure: Callable[[View], Value],
    what: str,
    needs: Needs = "pixels",
    version: int = 1,
) -> Fact:
    return Fact(name=name, version=version, unit=unit, range=range, what=what, needs=needs, measure=measure)


def _word(name: str, range: str, measure: Callable[[View], Value], what: str, needs: Needs = "header") -> Fact:
    return Fact(name=name, version=1, unit="", range=range, what=what, needs=needs, measure=measure, text=True)


def _opaque(
    name: str,
    unit: str,
    measure: Callable[[View], Value],
    what: str,
    *,
    needs: Needs = "pixels",
    version: int = 1,
    on_request: bool = False,
) -> Fact:
    return Fact(
        name=name,
        version=version,
        unit=unit,
        range="",
        what=what,
        needs=needs,
        measure=measure,
        rule=False,
        on_request=on_request,
    )


def _model(
    name: str,
    extra: str,
    unit: str,
    range: str,
    what: str,
    *,
    rule: bool = True,
    by_caption: bool = False,
) -> Fact:
    return Fact(
        name=name,
        version=1,
        unit=unit,
        range=range,
        what=what,
        needs="model",
        rule=rule,
        on_request=True,
        extra=extra,
        by_caption=by_caption,
    )


def _pixel_hash(view: View) -> str:
    im = image.open_image(view.data, max_pixels=view.max_pixels)
    return hashlib.sha256(b"%d %d " % im.size + im.tobytes()).hexdigest()


def _whash(view: View) -> str:
    import imagehash

    return str(imagehash.whash(view.small_gray))


_ROWS = (
    _opaque("sha256", "256 bits, hex", lambda v: hashlib.sha256(v.data).hexdigest(), "hash of the file", needs="bytes"),
    _number("num_bytes", "bytes", "1..", lambda v: len(v.data), "size of the file", "bytes"),
    _word("format", "JPEG, PNG, WEBP, ...", lambda v: v.header.format, "true type, by content"),
    _number("width", "pixels", "1..", lambda v: v.header.width, "as seen upright (EXIF orientation counts)", "header"),
    _number("height", "pixels", "1..", lambda v: v.header.height, "as seen upright", "header"),
    _number("aspect", "", "0..", lambda v: v.header.width / v.header.height, "width over height, upright", "header"),
    _number("megapixels", "MP", "0..", lambda v: v.header.width * v.header.height / 1e6, "number of pixels", "header"),
    _number("orientation", "", "1..8", lambda v: v.header.orientation, "EXIF orientation; 1 is upright", "header"),
    _word("mode", "RGB, L, CMYK, P, ...", lambda v: v.header.mode, "kind of pixels as stored"),
    _number("has_alpha", "", "0..1", lambda v: int(v.details.has_alpha), "1: stored with transparency", "header"),
    _word("camera", "Canon EOS 5D, ...", lambda v: v.details.camera, 'EXIF make and model; "": not said'),
    _word("taken", "2024-05-01T12:30:00", lambda v: v.details.taken, 'EXIF time by the camera\'s clock; "": not said'),
    _number(
        "jpeg_quality",
        "",
        "0..100",
        lambda v: v.details.jpeg_quality or 0,
        "on libjpeg's scale, from the quantization table; 0: no JPEG",
        "header",
    ),
    _number(
        "sharpness",
        "",
        "0..1",
        lambda v: quality.sharpness(v.scaled, quality.variance(v.shares)),
        "fine detail against contrast where the picture is sharpest",
        version=2,
    ),
    _number("brightness", "", "0..1", lambda v: quality.brightness(v.shares), "mean grey: 0 black, 1 white"),
    _number(
        "contrast",
        "",
        "0..1",
        lambda v: quality.contrast(v.shares),
        "twice the standard deviation of grey: 0 one grey, 1 half black and half white; photos 0.3 to 0.6",
    ),
    _number(
        "saturation",
        "",
        "0..1",
        lambda v: quality.saturation(v.chroma),
        "mean difference between the strongest and the weakest channel: 0 greyscale",
    ),
    _number("greyscale", "", "0..1", lambda v: int(quality.is_grey(v.chroma)), "1: no colour that an eye would see"),
    _number("entropy", "bits", "0..8", lambda v: quality.entropy(v.shares), "Shannon entropy of the 256 grey levels"),
    _number(
        "letterbox",
        "",
        "0..1",
        lambda v: 1 - (1 - v.bars[0] - v.bars[2]) * (1 - v.bars[1] - v.bars[3]),
        "share of the picture that even bars along its edges take",
    ),
    _opaque(
        "bars",
        "left top right bottom, shares of a side",
        lambda v: " ".join(f"{bar:.4f}" for bar in v.bars),
        "where the letterbox bars are",
    ),
    _opaque("phash", "64 bits, hex", lambda v: v.phashes[0], "perceptual hash", version=2),
    _opaque("phash_mirror", "64 bits, hex", lambda v: v.phashes[1], "perceptual hash of the mirror image", version=2),
    _opaque(
        "phash_turned",
        "6 x 64 bits, hex",
        lambda v: "".join(v.phashes[2:]),
        "perceptual hashes of the picture turned and mirrored, in the order of `hashes.ORIENTATIONS`",
    ),
    _opaque("dhash", "64 bits, hex", lambda v: hashes.dhash(v.small_gray), "difference hash", version=2),
    _opaque("thumb", "192 bytes", lambda v: hashes.thumb(v.small), "8 x 8 RGB pixels, to confirm what hashes find"),
    _opaque("whash", "64 bits, hex", _whash, "wavelet hash", on_request=True),
    _opaque(
        "pixel_hash",
        "256 bits, hex",
        _pixel_hash,
        "hash of the decoded upright RGB pixels: the same picture in two files",
        needs="full",
        on_request=True,
    ),
    _model(
        "nsfw", "nsfw", "", "0..1", "how likely it is pornographic (Yahoo's Open-NSFW): below 0.2 safe, above 0.8 not"
    ),
    _model("num_faces", "faces", "", "0..", "number of faces found"),
    _model("largest_face", "faces", "", "0..1", "share of the picture that its largest face's box takes; 0: no face"),
    _model(
        "faces",
        "faces",
        "left top right bottom score, shares of a side, largest first",
        "",
        "where the faces are",
        rule=False,
    ),
    _model("embedding", "clip", "float16 numbers, length 1", "", "CLIP embedding of the picture", rule=False),
    _model(
        "aesthetic", "clip", "", "1..10", "score of an aesthetic head on the embedding; people keep 5 or 6 and above"
    ),
    _model(
        "caption_similarity",
        "clip",
        "",
        "-1..1",
        "cosine of the caption's and the picture's CLIP embeddings; of fitting captions about 0.2 to 0.4",
        by_caption=True,
    ),
    _model(
        "num_tokens", "clip", "tokens", "0..", "length of the caption as the model family reads it", by_caption=True
    ),
)
FACTS: dict[str, Fact] = {fact.name: fact for fact in _ROWS}
"""Every fact by its name."""

USUAL: tuple[str, ...] = tuple(fact.name for fact in _ROWS if not fact.on_request)
"""The facts that one reduced decode gives."""

BROKEN = "broken/2"
"""The catalog's name for the fact that an image can't be decoded; its value is the reason."""


def known(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each and in order; UsageError names the nearest fact where one is unknown."""
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in FACTS:
            raise UsageError(f"no fact is called {name!r}", mend=nearest(name, FACTS))
    return wanted


def nearest(name: str, among: Iterable[str]) -> str:
    """A hint for a name nobody knows: the nearest one, else all of them."""
    from difflib import get_close_matches

    choices = list(among)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(choices)}"


def table() -> str:
    """The Markdown table of all facts, as docs/facts.md holds it."""
    cost = {"bytes": "reading", "header": "the header", "pixels": "one reduced decode", "full": "a full decode"}
    lines = ["| fact | unit | range | what it says | made from |", "|---|---|---|---|---|"]
    for fact in FACTS.values():
        made = cost.get(fact.needs, f"a model (extra `{fact.extra}`)")
        notes = [
            *(["with the caption"] if fact.by_caption else []),
            *(["on request"] if fact.on_request else []),
            *([] if fact.rule else ["not for rules"]),
        ]
        cells = (f"`{fact.name}`", fact.unit, fact.range, fact.what, ", ".join((made, *notes)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one file gave: facts by catalog name, or why there are none."""

    facts: dict[str, Value]
    broken: str | None = None  # the content can't be decoded: true of the bytes for good
    unreadable: str | None = None  # the file couldn't be read this time


def measure_file(path: Path | str, names: Iterable[str], *, max_pixels: int = image.DEFAULT_MAX_PIXELS) -> Outcome:
    """The named facts (no model's) of one file, by one read and at most one decode; never raises over the file."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path may be plain text
            data = file.read()
    except OSError as error:
        return Outcome(facts={}, unreadable=(error.strerror or str(error)).lower())
    rows = [(FACTS[name].key, FACTS[name]) for name in names]
    view = View(data, max_pixels=max_pixels)
    try:
        if any(fact.needs == "pixels" for _, fact in rows):
            _ = view.rgb  # its opening serves the header's facts too
        facts = {key: fact.measure(view) for key, fact in rows if fact.measure is not None}
    except BadInput as error:
        return Outcome(facts={BROKEN: error.what}, broken=error.what)
    return Outcome(facts=facts)
