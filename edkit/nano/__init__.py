"""The small model that ships with edkit, the world it knows, and the reader that tells what a picture shows."""

from __future__ import annotations

from pathlib import Path


def model_dir() -> Path:
    """The folder of the shipped pipeline, in diffusers format."""
    return Path(__file__).parent / "model"
