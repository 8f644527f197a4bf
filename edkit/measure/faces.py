"""Where the faces are: a cascade of three small networks (Zhang et al. 2016, "Joint Face Detection and Alignment Using
Multitask Cascaded Convolutional Networks"), with the weights that the package `mtcnn` (MIT) ships.

The networks run in torch here; the package's own code, which needs TensorFlow, is not imported. Its weight files are
held against pinned hashes before they are read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, MissingExtra, Problem
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress
from edkit.measure.batched import Model, answers
from edkit.measure.facts import Value

if TYPE_CHECKING:
    import torch
    from PIL import Image

_FILES = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
_SIDE = 640  # pixels of the longer side that faces are looked for in
_LEAST = 20  # pixels of the smallest face found there
_STEP = 0.709  # from one scale to the next: half the area
_THRESHOLDS = (0.6, 0.7, 0.85)  # of the three networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A face's box, in shares of the picture's width and height, and how sure the network is (0..1)."""

    left: float
    top: float
    right: float
    bottom: float
    score: float

    @property
    def area(self) -> float:
        """Share of the picture."""
        return (self.right - self.left) * (self.bottom - self.top)


def faces(
    catalog: Catalog, paths: Iterable[Path], *, progress: Progress = SILENT
) -> dict[Path, tuple[Face, ...] | Problem]:
    """The faces of every file, largest first, or the Problem why it can't be looked at.

    Raises MissingExtra where torch or the weights are not installed.
    """
    model = Model(
        fact=f"faces:{_FILES['onet'][:16]}/1",
        load=_networks,
        prepare=_prepared,
        compute=lambda images: [_packed(find(im)) for im in images],
        batch_size=4,
        doing="looking for faces",
    )
    found = answers(catalog, paths, model, progress=progress)
    return {path: one if isinstance(one, Problem) else _unpacked(str(one)) for path, one in found.items()}


def face_facts(
    catalog: Catalog, paths: Iterable[Path], *, progress: Progress = SILENT
) -> dict[Path, dict[str, Value] | Problem]:
    """The facts that faces give: `num_faces`, `largest_face`, `faces`."""
    return {
        path: one
        if isinstance(one, Problem)
        else {
            "num_faces": len(one),
            "largest_face": one[0].area if one else 0.0,
            "faces": _packed(one),
        }
        for path, one in faces(catalog, paths, progress=progress).items()
    }


def _packed(found: Sequence[Face]) -> str:
    return "; ".join(f"{f.left:.4f} {f.top:.4f} {f.right:.4f} {f.bottom:.4f} {f.score:.3f}" for f in found)


def _unpacked(text: str) -> tuple[Face, ...]:
    rows = [[float(number) for number in part.split()] for part in text.split(";") if part.strip()]
    return tuple(Face(left=a, top=b, right=c, bottom=d, score=e) for a, b, c, d, e in rows)


# ---- the networks


@cache
def _networks() -> dict[str, list[torch.Tensor]]:
    """Each network's weights in the order of its layers, as torch lays them out."""
    from importlib.util import find_spec

    try:
        import joblib
        import torch
    except ImportError as error:
        raise MissingExtra("faces", error.name or "torch") from error
    spec = find_spec("mtcnn")  # found, not imported: that would load TensorFlow
    if spec is None or spec.origin is None:
        raise MissingExtra("faces", "mtcnn")
    networks = {}
    for name, sha256 in _FILES.items():
        path = Path(spec.origin).parent / "assets" / "weights" / f"{name}.lz4"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadInput("the weights are not there", where=str(path), mend='pip install "mtcnn==1.0.0"') from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadInput("not the weights edkit knows", where=str(path), mend='pip install "mtcnn==1.0.0"')
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # written by an older NumPy
            arrays: list[Any] = joblib.load(path)
        # (h, w, in, out) -> (out, in, h, w); (in, out) -> (out, in); slopes to one dimension
        networks[name] = [
            torch.from_numpy(a.copy()).permute(3, 2, 0, 1).contiguous()
            if a.ndim == 4
            else torch.from_numpy(a.copy()).T.contiguous()
            if a.ndim == 2
            else torch.from_numpy(a.copy()).reshape(-1)
            for a in arrays
        ]
    return networks


def _conv(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    from torch.nn import functional as F

    return F.prelu(F.conv2d(x, weights[0], weights[1]), weights[2])


def _propose(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (H, W) and box corrections (4, H, W) of every 12-pixel window, two pixels apart."""
    from torch.nn import functional as F

    w = _networks()["pnet"]
    x = F.max_pool2d(_conv(x, w[0:3]), 2, 2, ceil_mode=True)
    x = _conv(_conv(x, w[3:6]), w[6:9])
    return F.conv2d(x, w[11], w[12])[0].softmax(0)[1], F.conv2d(x, w[9], w[10])[0]


def _refine(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (n,) and box corrections (n, 4) of windows (n, 3, 24, 24)."""
    from torch.nn import functional as F

    w = _networks()["rnet"]
    x = F.max_pool2d(_conv(x, w[0:3]), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(x, w[3:6]), 3, 2)
    x = _conv(x, w[6:9]).permute(0, 3, 2, 1).flatten(1)
    x = F.prelu(F.linear(x, w[9], w[10]), w[11])
    return F.linear(x, w[14], w[15]).softmax(1)[:, 1], F.linear(x, w[12], w[13])


def _decide(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (n,) and box corrections (n, 4) of windows (n, 3, 48, 48)."""
    from torch.nn import functional as F

    w = _networks()["onet"]
    x = F.max_pool2d(_conv(x, w[0:3]), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(x, w[3:6]), 3, 2)
    x = F.max_pool2d(_conv(x, w[6:9]), 2, 2, ceil_mode=True)
    x = _conv(x, w[9:12]).permute(0, 3, 2, 1).flatten(1)
    x = F.prelu(F.linear(x, w[12], w[13]), w[14])
    return F.linear(x, w[19], w[20]).softmax(1)[:, 1], F.linear(x, w[15], w[16])


# ---- the cascade; boxes are (n, 4) in pixels: left, top, right, bottom


def _prepared(path: Path) -> Image.Image:
    im = open_image(path, at_least=(_SIDE, _SIDE))
    from PIL import Image

    im.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return im


def find(im: Image.Image) -> tuple[Face, ...]:
    """The faces of an RGB picture, largest first; those smaller than 20 pixels are not looked for."""
    import numpy as np
    import torch

    with torch.inference_mode():
        pixels = torch.from_numpy(np.asarray(im).copy()).permute(2, 0, 1).float()[None]
        x = (pixels - 127.5) / 128
        boxes, scores = _proposals(x)
        for size, network, threshold in ((24, _refine, _THRESHOLDS[1]), (48, _decide, _THRESHOLDS[2])):
            if len(boxes) == 0:
                return ()
            boxes = _square(boxes)
            scores, corrections = network(_windows(x, boxes, size))
            good = scores >= threshold
            boxes, scores = _corrected(boxes[good], corrections[good]), scores[good]
            stays = _apart(boxes, scores, 0.7, of_smaller=size == 48)
            boxes, scores = boxes[stays], scores[stays]
        side = torch.tensor([im.width, im.height, im.width, im.height])
        rows = torch.cat([(boxes / side).clamp(0, 1), scores[:, None]], dim=1).tolist()
    found = [Face(left=a, top=b, right=c, bottom=d, score=e) for a, b, c, d, e in rows]
    return tuple(sorted((f for f in found if f.area > 0), key=lambda f: -f.area))


def _proposals(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    from torch.nn import functional as F

    boxes, scores = [torch.empty(0, 4)], [torch.empty(0)]
    scale = 12 / _LEAST
    while min(x.shape[2:]) * scale >= 12:
        size = [max(12, round(side * scale)) for side in x.shape[2:]]
        score, correction = _propose(F.interpolate(x, size=size, mode="bilinear", antialias=True))
        row, column = torch.nonzero(score >= _THRESHOLDS[0], as_tuple=True)
        if len(row):
            fx, fy = x.shape[3] / size[1], x.shape[2] / size[0]
            corner = torch.stack([2 * column * fx, 2 * row * fy], dim=1)
            own = torch.cat([corner, corner + 12 * torch.tensor([fx, fy])], dim=1)
            values = score[row, column]
            stays = _apart(own, values, 0.5)
            boxes.append(_corrected(own, correction[:, row, column].T)[stays])
            scores.append(values[stays])
        scale *= _STEP
    every, values = torch.cat(boxes), torch.cat(scores)
    stays = _apart(every, values, 0.7)
    return every[stays], values[stays]


def _corrected(boxes: torch.Tensor, corrections: torch.Tensor) -> torch.Tensor:
    """Corrections are shares of a box's sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + corrections * sides.repeat(1, 2)


def _square(boxes: torch.Tensor) -> torch.Tensor:
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(dim=1, keepdim=True).values / 2
    import torch

    return torch.cat([centre - half, centre + half], dim=1)


def _windows(x: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """What each box shows, (n, 3, size, size); grey where it leaves the picture."""
    import torch
    from torch.nn import functional as F

    height, width = x.shape[2:]
    out = torch.zeros(len(boxes), 3, size, size)
    for number, box in enumerate(boxes.round().long().tolist()):
        left, top, right, bottom = box
        part = x[:, :, max(0, top) : max(0, min(bottom, height)), max(0, left) : max(0, min(right, width))]
        if 0 in part.shape:
            continue
        around = (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))
        if any(around):
            part = F.pad(part, around)
        out[number] = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]
    return out


def _apart(boxes: torch.Tensor, scores: torch.Tensor, limit: float, *, of_smaller: bool = False) -> torch.Tensor:
    """Positions of the best boxes of which no two share more than the limit (of their union, or of the smaller)."""
    import torch

    order = scores.argsort(descending=True)
    area = (boxes[:, 2] - boxes[:, 0]).clamp(0) * (boxes[:, 3] - boxes[:, 1]).clamp(0)
    stays: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        stays.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[rest, 2:]) - torch.maximum(boxes[best, :2], boxes[rest, :2])
        common = sides.clamp(0).prod(dim=1)
        whole = torch.minimum(area[best], area[rest]) if of_smaller else area[best] + area[rest] - common
        order = rest[common <= limit * whole]
    return torch.tensor(stays, dtype=torch.long)
