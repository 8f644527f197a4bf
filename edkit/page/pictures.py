"""Pictures on a page: thumbnails inside the file itself, in grids and pairs, each linked to its own file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.data.errors import BadInput
from edkit.data.image import open_image
from edkit.page.html import Html, escape, file_url, join, tag
from edkit.page.layout import fold

if TYPE_CHECKING:
    from PIL import Image

_SMALL = 128  # pixels: up to this side a picture is embedded as it is and scaled up in whole pixels
_SHARP = 2  # thumbnails hold this many pixels a CSS pixel, for dense screens


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A rectangle on a picture: `box` is left, top, right, bottom as parts (0..1) of its width and height.

    "keep" shades all that lies outside; "bad" and "good" frame what lies inside.
    """

    box: tuple[float, float, float, float]
    kind: Literal["keep", "bad", "good"] = "bad"
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and what is said of it.

    `source` is a file, an open image, or None (a tile that says so). `badge` is a short verdict, good, bad or
    neutral (None). The picture links to `href`, or to its own file; `hint` shows where the pointer rests.
    """

    source: Path | Image.Image | None
    caption: str = ""
    note: str = ""
    badge: str = ""
    good: bool | None = None
    href: Path | None = None
    linked: bool = True
    marks: tuple[Mark, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two pictures that are looked at together, and what they have in common."""

    before: Picture
    after: Picture
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One picture of a contact sheet: its thumbnail as the bytes of a file (None: it has none), and its name."""

    data: bytes | None
    href: Path
    label: str
    kind: str = "webp"


def sheet(tiles: Sequence[Tile], *, page_dir: Path, side: int = 64) -> Html:
    """Many small pictures close together, each with its file's link and its name as the hint.

    The markup is spare: ten thousand of them open at once.
    """
    parts = []
    for tile in tiles:
        label, address = escape(tile.label), escape(file_url(tile.href, page_dir))
        if tile.data is None:
            parts.append(f'<a href="{address}" title="{label}"><i title="can&#39;t be read"></i></a>')
            continue
        # a background, as browsers leave those of folded lists alone: ten thousand <img> are all decoded on opening
        source = f"data:image/{tile.kind};base64,{base64.b64encode(tile.data).decode('ascii')}"
        parts.append(f'<a href="{address}" title="{label}" style="background-image:url({source})"></a>')
    return tag("div", Html("".join(parts)), class_="sheet", style=f"--side:{side}px")


def thumbnail(image: Image.Image, *, box: int) -> Html:
    """An <img> that holds the picture itself, at most `box` CSS pixels wide and high.

    Small pictures stay PNG and are scaled up by a whole factor, pixel for pixel; larger ones become JPEG.
    """
    return _thumbnail(image, box=box, alt="")


def grid(pictures: Sequence[Picture], *, page_dir: Path, box: int = 144, at_first: int | None = None) -> Html:
    """Pictures in rows, as many in a row as fit; those past `at_first` are folded away.

    `page_dir` is where the page will lie (for the links).
    """
    cards = [tag("li", _card(picture, page_dir=page_dir, box=box)) for picture in pictures]
    return _list("grid", cards, box=box, at_first=at_first)


def pairs(
    rows: Sequence[Pair],
    *,
    page_dir: Path,
    box: int = 144,
    at_first: int | None = None,
    before: str = "before",
    after: str = "after",
) -> Html:
    """Pairs of pictures, each with its two captions above and what they share below; as `grid`."""
    cards = [
        tag(
            "li",
            tag(
                "div",
                tag("div", tag("span", before, class_="when"), _card(row.before, page_dir=page_dir, box=box)),
                tag("div", tag("span", after, class_="when"), _card(row.after, page_dir=page_dir, box=box)),
                class_="pair",
            ),
            tag("p", row.label, class_="label", dir="auto") if row.label else "",
        )
        for row in rows
    ]
    return _list("pairs", cards, box=box, at_first=at_first)


def _list(kind: str, cards: Sequence[Html], *, box: int, at_first: int | None) -> Html:
    def drawn(some: Sequence[Html]) -> Html:
        return tag("ul", *some, class_=kind, style=f"--box:{box}px")

    if at_first is None or len(cards) <= at_first:
        return drawn(cards)
    return join([drawn(cards[:at_first]), fold(f"The other {len(cards) - at_first}", drawn(cards[at_first:]))])


def _card(picture: Picture, *, page_dir: Path, box: int) -> Html:
    shown, own = _shown(picture, box=box)
    if picture.marks:
        shown = tag("span", shown, _marks(picture.marks), class_="marked")
    href = picture.href or own
    if href is not None and picture.linked:
        shown = tag("a", shown, href=file_url(href, page_dir))
    words = [
        tag("span", picture.badge, class_=f"badge {_VERDICT[picture.good]}") if picture.badge else "",
        tag("span", picture.caption, class_="says", dir="auto") if picture.caption else "",
        tag("small", picture.note, dir="auto") if picture.note else "",
    ]
    return tag("figure", shown, tag("figcaption", *words) if any(words) else "", title=picture.hint or None)


def _marks(marks: Sequence[Mark]) -> Html:
    """The rectangles, drawn over the picture whatever size it's shown at."""
    drawn = []
    for mark in marks:
        left, top, right, bottom = (100 * min(1.0, max(0.0, side)) for side in mark.box)
        if mark.kind == "keep":
            inside = f"M{left:.2f} {top:.2f}V{bottom:.2f}H{right:.2f}V{top:.2f}Z"
            drawn.append(tag("path", d=f"M0 0H100V100H0Z{inside}", class_="shade"))
        drawn.append(
            tag(
                "rect",
                x=f"{left:.2f}",
                y=f"{top:.2f}",
                width=f"{right - left:.2f}",
                height=f"{bottom - top:.2f}",
                class_=f"frame {mark.kind}",
                vector_effect="non-scaling-stroke",
            )
        )
    says = "; ".join(mark.label for mark in marks if mark.label)
    return tag(
        "svg", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=says or "marked"
    )


_VERDICT = {True: "good", False: "bad", None: "neutral"}


def _shown(picture: Picture, *, box: int) -> tuple[Html, Path | None]:
    """The thumbnail or the tile in its place, and the file it stands for."""
    if picture.source is None:
        return _tile("no picture", box), None
    if not isinstance(picture.source, Path):
        return _thumbnail(picture.source, box=box, alt=picture.caption), None
    try:
        image = open_image(picture.source, at_least=(box * _SHARP, box * _SHARP))
    except (BadInput, OSError):
        return _tile("can't be read", box), picture.source
    return _thumbnail(image, box=box, alt=picture.caption), picture.source


def _tile(words: str, box: int) -> Html:
    return tag("span", words, class_="tile", style=f"width:{box}px;height:{box}px")


def _thumbnail(image: Image.Image, *, box: int, alt: str) -> Html:
    from PIL import Image as Pillow

    image = image.convert("RGB")
    side = max(image.size)
    buffer = io.BytesIO()
    if side <= min(_SMALL, box):
        factor = box // side
        width, height = image.width * factor, image.height * factor
        image.save(buffer, "PNG", optimize=True)
        kind, style = "png", "pixel"
    else:
        scale = box / side
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image.thumbnail((box * _SHARP, box * _SHARP), Pillow.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=84, optimize=True)
        kind, style = "jpeg", None
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f"data:image/{kind};base64,{data}"
    return tag("img", src=Html(source), alt=alt, width=width, height=height, class_=style, loading="lazy")
