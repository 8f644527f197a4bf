"""How fast the last run went is known to the next one: by resolution, by family, on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edkit.data.catalog import Catalog
from edkit.data.rates import keep_rate, last_rate

SD1 = {"family": "sd1", "method": "full", "resolution": 512, "device": "cpu"}


def test_the_last_rate_at_a_resolution_is_kept(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        assert last_rate(catalog, resolution=512) is None
        keep_rate(catalog, images_per_second=1.0, **SD1)  # type: ignore[arg-type]
        keep_rate(catalog, images_per_second=3.21, **SD1)  # type: ignore[arg-type]
    with Catalog.open(tmp_path, write=False) as catalog:
        rate = last_rate(catalog, resolution=512)
        assert rate is not None and rate.images_per_second == 3.21
        assert str(rate).startswith("3.21 images/s of the last run here (sd1, full, 512 pixels, on cpu, 2")
        assert last_rate(catalog, resolution=512, family="sd1") == rate
        assert last_rate(catalog, resolution=512, family="sdxl") is None
        assert last_rate(catalog, resolution=768) is None


def test_another_machine_s_rate_is_none_of_this_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog.open(tmp_path) as catalog:
        keep_rate(catalog, images_per_second=1.0, **SD1)  # type: ignore[arg-type]
        monkeypatch.setattr(platform, "node", lambda: "elsewhere")
        assert last_rate(catalog, resolution=512) is None
