"""A data root written in one line of a test."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

Content = str | bytes | tuple[int, int]
Make = Callable[[Mapping[str, Content]], Path]


@cache
def picture(width: int, height: int, format: str) -> bytes:
    """The bytes of a grey picture of that size."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, format)
    return file.getvalue()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes {path: text, bytes or a picture's (width, height)} below a fresh folder."""

    def write(files: Mapping[str, Content]) -> Path:
        root = tmp_path / "set"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                content = picture(*content, "PNG" if path.suffix == ".png" else "JPEG")
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return write
