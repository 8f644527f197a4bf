"""Every fact edkit can measure from an image's bytes, and the one decode that serves them all.

A fact is a plain function of a `View` and one row in `FACTS`. Raise its version when its values change:
what the catalog holds under the old version is then measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edkit.data import image
from edkit.data.errors import BadInput, UsageError
from edkit.measure import hashes, quality

Value = int | float | str | bytes | None
Facts = Mapping[str, Value]


class View:
    """One image file as the facts see it: read once, its header parsed once, decoded at most once."""

    def __init__(self, data: bytes, *, max_pixels: int = image.DEFAULT_MAX_PIXELS) -> None:
        self.data = data
        self.max_pixels = max_pixels

    @cached_property
    def header(self) -> image.Header:
        return image.probe(self.data, max_pixels=self.max_pixels)

    @cached_property
    def rgb(self) -> Image.Image:
        """Upright RGB, averaged down by 2, 4, 8, ... while both sides keep `quality.SIDE` pixels.

        JPEG's own scaled decoding (up to 1/8) averages the same blocks, so a JPEG and a PNG of one picture
        look alike here. Raises BadInput where the file can't be decoded to its end.
        """
        side = quality.SIDE
        im = image.open_image(self.data, max_pixels=self.max_pixels, at_least=(side, side))
        if _perhaps_cut(self.data, self.header.format, im):
            image.verify(self.data, max_pixels=self.max_pixels)
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
        return _averaged(self.gray, 64)

    @cached_property
    def scaled_gray(self) -> Image.Image:
        """Grey at the measuring scale: the shorter side at `quality.SIDE` pixels."""
        return quality.at_scale(self.gray)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        return quality.histogram(self.gray)

    @cached_property
    def phashes(self) -> tuple[str, str]:
        return hashes.phashes(self.small_gray)


def _averaged(im: Image.Image, side: int) -> Image.Image:
    """Averaged down by the largest power of two that leaves the shorter side `side` pixels."""
    factor = 1
    while min(im.size) // (2 * factor) >= side:
        factor *= 2
    return im.reduce(factor) if factor > 1 else im


def _perhaps_cut(data: bytes, format: str, im: Image.Image) -> bool:
    """Whether the file deserves the slow look for missing rows that the decoder filled in without a word."""
    if format == "JPEG":
        # libjpeg repeats the last block it has: a picture that ends in one flat colour may be cut
        corner = im.crop((max(0, im.width - 4), max(0, im.height - 2), im.width, im.height))
        return data[-2:] != b"\xff\xd9" or len(set(np.asarray(corner).reshape(-1, 3).max(axis=1).tolist())) == 1
    if format == "PNG":
        return b"IEND" not in data[-64:]
    return format in ("GIF", "WEBP")  # their own check needs no second decode worth saving


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One measured fact: its name and version in the catalog, its unit and range, and how it is measured."""

    name: str
    version: int
    unit: str
    range: str
    what: str
    measure: Callable[[View], Value]
    rule: bool = True  # whether it can stand in a rule (`edkit filter`)
    text: bool = False  # whether its values are words

    @property
    def key(self) -> str:
        """The name the catalog keeps it under."""
        return f"{self.name}/{self.version}"


def _number(name: str, unit: str, range: str, measure: Callable[[View], Value], what: str) -> Fact:
    return Fact(name=name, version=1, unit=unit, range=range, what=what, measure=measure)


def _word(name: str, range: str, measure: Callable[[View], Value], what: str) -> Fact:
    return Fact(name=name, version=1, unit="", range=range, what=what, measure=measure, text=True)


def _opaque(name: str, unit: str, measure: Callable[[View], Value], what: str) -> Fact:
    return Fact(name=name, version=1, unit=unit, range="", what=what, measure=measure, rule=False)


_ROWS = (
    _number("num_bytes", "bytes", "1..", lambda v: len(v.data), "size of the file"),
    _word("format", "JPEG, PNG, WEBP, ...", lambda v: v.header.format, "true type, by content"),
    _number("width", "pixels", "1..", lambda v: v.header.width, "width as seen upright"),
    _number("height", "pixels", "1..", lambda v: v.header.height, "height as seen upright"),
    _number("aspect", "", "0..", lambda v: v.header.width / v.header.height, "width over height, upright"),
    _number("megapixels", "MP", "0..", lambda v: v.header.width * v.header.height / 1e6, "number of pixels"),
    _number("orientation", "", "1..8", lambda v: v.header.orientation, "EXIF orientation; 1 is upright"),
    _word("mode", "RGB, L, CMYK, P, ...", lambda v: v.header.mode, "kind of pixels as stored"),
    _number("sharpness", "", "0..1", lambda v: quality.sharpness(v.scaled_gray), "fine detail where sharpest"),
    _number("brightness", "", "0..1", lambda v: quality.brightness(v.shares), "mean grey, 0 is black"),
    _number("contrast", "", "0..1", lambda v: quality.contrast(v.shares), "spread of grey, 0 is blank"),
    _number("saturation", "", "0..1", lambda v: quality.saturation(v.small), "colourfulness, 0 is greyscale"),
    _number("entropy", "bits", "0..8", lambda v: quality.entropy(v.shares), "entropy of the grey levels"),
    _opaque("phash", "64 bits, hex", lambda v: v.phashes[0], "perceptual hash"),
    _opaque("phash_mirror", "64 bits, hex", lambda v: v.phashes[1], "perceptual hash of the mirror image"),
    _opaque("dhash", "64 bits, hex", lambda v: hashes.dhash(v.small_gray), "difference hash"),
    _opaque("thumb", "192 bytes", lambda v: hashes.thumb(v.small), "8 x 8 RGB pixels"),
)
FACTS: dict[str, Fact] = {fact.name: fact for fact in _ROWS}
"""Every fact by its name."""

BROKEN = "broken/1"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one file gave: facts by catalog name, or why there are none."""

    facts: dict[str, Value]
    broken: str | None = None  # the content can't be decoded: true of the bytes for good
    unreadable: str | None = None  # the file couldn't be read this time


def measure_file(path: Path | str, names: Iterable[str], *, max_pixels: int = image.DEFAULT_MAX_PIXELS) -> Outcome:
    """The named facts of one file, by one read and at most one decode; never raises over the file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Outcome(facts={}, unreadable=(error.strerror or str(error)).lower())
    view = View(data, max_pixels=max_pixels)
    try:
        facts = {FACTS[name].key: FACTS[name].measure(view) for name in names}
    except BadInput as error:
        return Outcome(facts={BROKEN: error.what}, broken=error.what)
    return Outcome(facts=facts)
