"""Pictures drawn on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Draws the picture of a seed into `tmp_path`: another seed is another picture."""

    def picture(
        name: str,
        seed: int = 0,
        size: tuple[int, int] = (360, 270),
        **change: Callable[[Image.Image], Image.Image],
    ) -> Path:
        rng = np.random.default_rng(seed)
        cells = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        grain = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
        im = Image.blend(cells.resize(grain.size, Image.Resampling.BICUBIC), grain, 0.2)
        im = im.resize(size, Image.Resampling.LANCZOS)
        for step in change.values():
            im = step(im)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        im.save(path)
        return path

    return picture
