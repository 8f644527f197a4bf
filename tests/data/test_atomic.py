"""Files written whole: what stands in their place is replaced, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edkit.data.atomic import write_bytes


def test_a_folder_in_the_place_of_a_file_is_named_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_bytes(folder, b"page")
    assert caught.value.filename == str(folder)
    assert list(tmp_path.iterdir()) == [folder]
