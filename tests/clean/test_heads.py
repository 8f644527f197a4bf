"""Heads that a crop would cut, where the detector is installed, on a real photo."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from edkit.clean.check import _head, _lost, check


def test_hair_stands_above_a_face_and_a_head_stays_in_the_picture() -> None:
    left, top, right, bottom = _head((0.4, 0.4, 0.6, 0.6))
    assert left < 0.4 and right > 0.6 and bottom == 0.6 and top == pytest.approx(0.34)
    assert _head((0.0, 0.0, 0.2, 0.2))[:2] == (0.0, 0.0)


def test_what_is_lost_of_a_head_is_told_by_area() -> None:
    keep = (0.25, 0.0, 0.75, 1.0)
    assert _lost((0.3, 0.1, 0.5, 0.4), keep) == 0
    assert _lost((0.15, 0.1, 0.35, 0.4), keep) == pytest.approx(0.5)
    assert _lost((0.0, 0.1, 0.2, 0.4), keep) == 1


def test_a_head_at_the_edge_of_a_real_photo_is_found_and_drawn(shared_data: Path, tmp_path: Path) -> None:
    if not (find_spec("torch") and find_spec("mtcnn")):
        pytest.skip("edkit[faces] is not installed")
    (tmp_path / "set").mkdir()
    with Image.open(shared_data / "coco-mini" / "train2017" / "000000227000.jpg") as im:
        # the strip begins where a face begins; its shape lies between two buckets, so both its ends are cut
        im.crop((31, 192, 471, 423)).save(tmp_path / "set" / "people at a parking meter.jpg", quality=95)
    result = check(tmp_path / "set", resolution=256, out=tmp_path / "page.html", heads=True)
    [finding] = [one for one in result.findings if one.kind == "head-cut"]
    assert "off a head" in finding.first[0] and finding.mend.endswith("--set-aside head-cut")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="frame bad"') == 1 and 'class="shade"' in page
    assert "head-cut" not in {one.kind for one in check(tmp_path / "set", resolution=256, heads=False).findings}
