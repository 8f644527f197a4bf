"""How fast training went here before: kept in a data root's catalog, to say how long the next run will take."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import date

from edkit.data.catalog import Catalog

_FACT = "training_rate/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What the last run at a resolution did on this machine."""

    images_per_second: float
    family: str
    method: str
    resolution: int  # pixels
    device: str  # its name
    day: str  # as ISO writes it

    def __str__(self) -> str:
        what = f"{self.family}, {self.method}, {self.resolution} pixels, on {self.device}, {self.day}"
        return f"{self.images_per_second:.3g} images/s of the last run here ({what})"


def keep_rate(
    catalog: Catalog, *, images_per_second: float, family: str, method: str, resolution: int, device: str
) -> None:
    """Remember how fast a run was, in place of what stood there for its resolution on this machine."""
    rate = Rate(
        images_per_second=images_per_second, family=family, method=method, resolution=resolution, device=device,
        day=date.today().isoformat(),
    )  # fmt: skip
    catalog.put_facts([(_key(resolution), _FACT, json.dumps(asdict(rate)))])


def last_rate(catalog: Catalog, *, resolution: int, family: str | None = None) -> Rate | None:
    """The rate of the last run at this resolution (of this family, where one is named); None where none is known."""
    known = catalog.facts([_key(resolution)], [_FACT]).get(_key(resolution), {}).get(_FACT)
    rate = Rate(**json.loads(known)) if isinstance(known, str) else None
    return rate if rate is None or family in (None, rate.family) else None


def _key(resolution: int) -> str:
    # a data root on a shared drive is seen from several machines
    return f"training at {resolution} on {platform.node()}"
