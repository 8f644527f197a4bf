"""Which of several images of one picture is the best, and what their captions say."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, total_ordering
from pathlib import Path

from edkit.clean.files import Listing
from edkit.data.names import is_camera_name
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Tag
from edkit.measure.facts import Facts

PREFERENCES = ("largest", "sharpest", "oldest")
_SHOWN = 40  # characters of a caption in a reason
# what systems add to the name of a copy makes no better caption
_COPY_MARK = re.compile(
    r"^(copy|kopie|copie) (of|von|de) | (- )?(copy|kopie|copie)( ?\(?\d+\)?)?$| ?\(\d+\)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the folder says of an image: main prompt and tags, and whether a person said it."""

    main: str = ""
    tags: tuple[Tag, ...] = ()
    real: bool = False  # False: a camera's file name, or nothing at all
    prose: bool = False  # commas make no tags
    blank: bool = False  # a file says that the caption is empty

    @property
    def text(self) -> str:
        """All of it as one caption."""
        return ", ".join(part for part in (self.main, *(tag.text for tag in self.tags)) if part)


class Captions:
    """The captions of all images below some folders; read when the first is asked for."""

    def __init__(self, roots: Sequence[Path], *, progress: Progress = SILENT) -> None:
        self.roots = [Path(os.path.abspath(root)) for root in roots]  # noqa: PTH100 - as images are listed
        self.progress = progress

    @cached_property
    def _said(self) -> dict[Path, Said]:
        from edkit.data.dataset import read

        said: dict[Path, Said] = {}
        for root in self.roots:  # one by one: folders given may lie in one another
            for sample in read(root, sizes=False, progress=self.progress):
                named = sample.sources == (sample.path,)
                said[sample.path] = Said(
                    main=sample.main_prompt,
                    tags=sample.tags,
                    real=bool(sample.caption.text or sample.caption.tags)
                    and not (named and is_camera_name(sample.path.stem)),
                    prose=sample.options.caption_style == "prose",
                    blank=not named and not (sample.caption.text or sample.caption.tags),
                )
        return said

    def of(self, path: Path) -> Said:
        """What is said of one image."""
        return self._said.get(path, Said())


class Ranking:
    """Which of two images is better, and why in a few words."""

    def __init__(
        self,
        facts: Mapping[Path, Facts],
        prefer: str,
        protected: frozenset[Path],
        captions: Captions,
    ) -> None:
        self.facts, self.protected, self.captions = facts, protected, captions
        tests = {"largest": self._larger, "sharpest": self._sharper, "oldest": self._older}
        others = (self._larger, self._less_compressed, self._sharper, self._captioned, self._older)
        self._tests = list(dict.fromkeys([self._guarded, tests[prefer], *others]))
        self._mtimes = {path: _mtime(path) for path in facts}

    def key(self, path: Path) -> tuple[object, ...]:
        """Sorts the best first; captions are read only where all before them is equal."""
        late = _Late(self, path)
        return (*(late if test == self._captioned else -test(path)[0] for test in self._tests), str(path))

    def why(self, kept: Path, other: Path) -> str:
        """What makes the kept one better: `a.jpg is larger (640x480 over 300x300)`."""
        for test in self._tests:
            (one, said), (two, said_of_other) = test(kept), test(other)
            if one > two:
                values = f" ({said} over {said_of_other})" if said and said_of_other else ""
                return f"{kept.name} {self._WORDS[test.__name__]}{values}"
        return f"{kept.name} comes first by name"

    _WORDS = {  # noqa: RUF012
        "_guarded": "is protected",
        "_larger": "is larger",
        "_less_compressed": "is less compressed",
        "_sharper": "is sharper",
        "_captioned": "has the better caption",
        "_older": "is older",
    }

    def area(self, path: Path) -> str:
        """Width and height in pixels: `640x480`."""
        return self._larger(path)[1]

    def _guarded(self, path: Path) -> tuple[float, str]:
        return float(path in self.protected), ""

    def _larger(self, path: Path) -> tuple[float, str]:
        width, height = _number(self.facts[path]["width"]), _number(self.facts[path]["height"])
        return width * height, f"{width:.0f}x{height:.0f}"

    def _less_compressed(self, path: Path) -> tuple[float, str]:
        size = _number(self.facts[path]["num_bytes"])
        return size, f"{size:,.0f} bytes"

    def _sharper(self, path: Path) -> tuple[float, str]:
        value = _number(self.facts[path]["sharpness"])
        return value, f"{value:.3f}"

    def _captioned(self, path: Path) -> tuple[float, str]:
        said = self.captions.of(path)
        text = said.text
        if not said.real:
            return 0.0, "none"
        return float(len(_COPY_MARK.sub("", text))), f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'

    def _older(self, path: Path) -> tuple[float, str]:
        return -float(self._mtimes[path]), ""


@total_ordering
class _Late:
    """How good an image's caption is, looked up when it is compared."""

    __slots__ = ("path", "ranking")

    def __init__(self, ranking: Ranking, path: Path) -> None:
        self.ranking, self.path = ranking, path

    def _value(self) -> float:
        return -self.ranking._captioned(self.path)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Late) and self._value() == other._value()

    def __lt__(self, other: _Late) -> bool:
        return self._value() < other._value()

    __hash__ = None  # type: ignore[assignment]


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone since it was measured: whatever is still there is older
        return sys.maxsize


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def sidecar_of(path: Path, listing: Listing) -> Path | None:
    """An image's strongest sidecar."""
    found = listing.sidecars.get(path, ())
    return min(found, key=lambda one: _STRENGTH.index(one.suffix.lower()), default=None)


_STRENGTH = (".yaml", ".yml", ".caption", ".txt")
