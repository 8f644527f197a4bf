"""For models of nano's world: what a prompt asks for, and whether its picture shows it, by nano's reader."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edkit.nano.reader import Reading
    from edkit.train.families.base import Family


def reads(family: Family) -> bool:
    """Whether the model draws nano's world: it decodes its pictures as nano does."""
    return family.resolution == 64 and family.vae_hash == _nano_vae()


@cache
def _nano_vae() -> str:
    from edkit.train.families import load_family

    return load_family("nano").vae_hash


def read(path: Path) -> Reading:
    """What a picture shows."""
    from PIL import Image

    from edkit.nano import reader

    with Image.open(path) as picture:
        return reader.read(picture)


def shows(reading: Reading, prompt: str) -> bool:
    """Whether a picture shows what a prompt of nano's world asks for: the subject, or colour and shape as named."""
    from edkit.nano import world

    words = re.findall(r"[a-z]+", prompt.lower())
    if world.SUBJECT_NAME in words:
        return reading.subject
    colour = next((word for word in words if word in world.COLOURS), reading.colour)
    shape = next((word for word in words if word in world.SHAPES), reading.shape)
    return not reading.subject and shape is not None and reading.shape == shape and reading.colour == colour
