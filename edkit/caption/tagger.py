"""ONNX taggers in the WD format: `model.onnx`, and `selected_tags.csv` with a name and a category for each output."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edkit.caption.models import fact_name, find_model, fingerprint
from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, MissingExtra, UsageError
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress

MODEL, TAGS = "model.onnx", "selected_tags.csv"
CATEGORIES = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta", 9: "rating"}
THRESHOLDS: Mapping[str, float] = {"general": 0.35, "character": 0.85}
"""The least score of a tag by its category; a category that is not named here is left out."""

_FILES = (MODEL, TAGS)
_WORDS = re.compile(r"[a-z]{2}", re.IGNORECASE)

Pixels = NDArray[np.float32]


class TaggerModel:
    """An ONNX tagger, loaded when the first picture needs it."""

    def __init__(
        self,
        model: str,
        *,
        thresholds: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        progress: Progress = SILENT,
    ) -> None:
        try:
            import onnxruntime  # noqa: F401 - told before anything is fetched
        except ImportError as error:
            raise MissingExtra("tag", "onnxruntime") from error
        self.thresholds = {**THRESHOLDS, **(thresholds or {})}
        unknown = set(self.thresholds) - set(CATEGORIES.values())
        if unknown:
            mend = f"known: {', '.join(CATEGORIES.values())}"
            raise UsageError(f"no category {sorted(unknown)[0]!r}", where="--threshold", mend=mend)
        self.folder, self._revision = find_model(model, wanted=_FILES, progress=progress)
        self.label = model if self._revision else self.folder.name
        self.progress = progress
        for name in _FILES:
            if not (self.folder / name).is_file():
                raise BadInput(f"no tagger: it has no {name}", where=str(self.folder))
        self.names, self.categories = _tags(self.folder / TAGS)
        self.batch_size = batch_size or 8

    def describe(self) -> Mapping[str, object]:
        return {"thresholds": dict(sorted(self.thresholds.items()))}

    def fact(self, catalog: Catalog) -> str:
        found = fingerprint(catalog, self.folder, self._revision, _FILES)
        return fact_name(self.label, found, self.describe())

    def prepare(self, path: Path) -> Pixels:
        """(S, S, 3): BGR, 0 to 255, the picture in the middle of a white square."""
        from PIL import Image

        side = self._side
        image = open_image(path, at_least=(side, side))
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        square = Image.new("RGB", (side, side), (255, 255, 255))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
        return np.asarray(square, dtype=np.float32)[:, :, ::-1]

    def captions(self, prepared: Sequence[Pixels]) -> list[str]:
        session, name, channels_first, fixed = self._loaded
        x = np.ascontiguousarray(np.stack(prepared))  # (B, S, S, 3)
        x = x.transpose(0, 3, 1, 2) if channels_first else x
        parts = [x[i : i + fixed] for i in range(0, len(x), fixed)] if fixed else [x]
        scores = np.concatenate([session.run(None, {name: np.ascontiguousarray(part)})[0] for part in parts])
        if scores.min() < 0 or scores.max() > 1:
            scores = 1 / (1 + np.exp(-scores))  # exported without its last sigmoid
        return [self._caption(row) for row in scores]

    def _caption(self, scores: NDArray[np.float32]) -> str:
        """Tags above their thresholds: characters first, then by falling score."""
        found = [
            (category != "character", -float(score), name)
            for name, category, score in zip(self.names, self.categories, scores, strict=True)
            if score >= self.thresholds.get(category, 2.0)
        ]
        return ", ".join(name for _, _, name in sorted(found))

    @property
    def _side(self) -> int:
        shape = self._loaded[0].get_inputs()[0].shape
        sides = [n for n in shape[1:] if isinstance(n, int) and n > 4]
        return sides[0] if sides else 448

    @cached_property
    def _loaded(self) -> tuple[Any, str, bool, int]:
        """(session, its input's name, whether channels come first, its batch size where that is fixed, else 0)."""
        import onnxruntime

        self.progress.say(f"loading {self.label}")
        wanted = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            session = onnxruntime.InferenceSession(str(self.folder / MODEL), providers=providers)
        except Exception as error:  # onnxruntime's own classes share no narrower parent
            first = str(error).strip().splitlines()[0]
            raise BadInput(f"can't be loaded: {first}", where=str(self.folder / MODEL)) from error
        given, made = session.get_inputs()[0], session.get_outputs()[0]
        if len(given.shape) != 4 or 3 not in (given.shape[1], given.shape[3]):
            raise BadInput(f"takes no picture: its input is {given.shape}", where=str(self.folder / MODEL))
        if isinstance(made.shape[-1], int) and made.shape[-1] != len(self.names):
            raise BadInput(
                f"has {made.shape[-1]} outputs, but {TAGS} names {len(self.names)} tags",
                where=str(self.folder / MODEL),
                mend="take both files from the same model",
            )
        fixed = given.shape[0] if isinstance(given.shape[0], int) and given.shape[0] > 0 else 0
        return session, given.name, given.shape[1] == 3, fixed


def _tags(path: Path) -> tuple[list[str], list[str]]:
    """Names and categories of the outputs, in their order."""
    names, categories = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                if row.get("name") is None or row.get("category") is None:
                    raise BadInput("needs the columns name and category", where=f"{path}:{number}")
                name = row["name"].strip()
                # faces such as ^_^ and o_o keep their underscore
                names.append(name.replace("_", " ") if _WORDS.search(name) else name)
                categories.append(CATEGORIES.get(int(row["category"]), "general"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from error
    if not names:
        raise BadInput("names no tags", where=str(path))
    return names, categories
