"""Pictures drawn on the spot, and a small CLIP made on the spot."""

from __future__ import annotations

import json
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


CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random CLIP by path: as `clip` and `pretrained` take it."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = folder / "small-clip.json"
    config.write_text(json.dumps(CLIP), encoding="utf-8")
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("small-clip").state_dict(), folder / "clip.pt")
    return {"clip": str(config), "pretrained": str(folder / "clip.pt")}
