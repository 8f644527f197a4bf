"""The families there are, and the module of each."""

from __future__ import annotations

import importlib
from typing import Any

REGISTRY: dict[str, str] = {
    "sd1": "edkit.train.families.sd1",
    "sd2": "edkit.train.families.sd1",
    "sdxl": "edkit.train.families.sdxl",
    "klein": "edkit.train.families.klein",
}
"""Family name -> its module, which has

- `PIPELINES`: the classes of `model_index.json` that it loads,
- `load(folder) -> Family`: a diffusers folder in fp32 on the CPU,
- `build(name, size, *, prediction, folder) -> Family`: random weights, of size `tiny` or `real`.
"""


def module_of(name: str) -> Any:
    """The module of a family."""
    return importlib.import_module(REGISTRY[name])
