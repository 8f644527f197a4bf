"""Train, generate and export."""

from importlib.util import find_spec

from edkit.data.errors import MissingExtra

# said here once, before a module of this wing fails on its own imports
for _package in ("torch", "diffusers", "transformers", "safetensors"):
    if find_spec(_package) is None:
        raise MissingExtra("train", _package)
