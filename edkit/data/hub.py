"""Where the Hugging Face hub keeps its things on this machine, as its own tools find them."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The hub's folder: HF_HOME, or `huggingface` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def cache_dir() -> Path:
    """Where models and sets fetched from the hub lie."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else home() / "hub"


def token() -> str:
    """The token of the environment, or of the hub's own login; "" where there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip()
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in ("1", "true", "yes", "on"):
        return ""
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home() / "token").expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
