"""SQLite as edkit's state needs it: Ctrl-C at any moment costs at most what was being written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from edkit.data.catalog import Catalog


@contextmanager
def interrupted_after(calls: int) -> Iterator[None]:
    """Raise KeyboardInterrupt where Python would: as a call returns, the `calls`th from here."""
    left = calls

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("return", "c_return"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_what_ctrl_c_breaks_off_anywhere_can_be_written_right_after(tmp_path: Path) -> None:
    rows = [(f"{number:064x}", "phash/2", "f9d0") for number in range(5)]
    for calls in range(1, 1000):
        (tmp_path / str(calls)).mkdir()
        with Catalog.open(tmp_path / str(calls)) as catalog:
            try:
                with interrupted_after(calls):
                    catalog.put_facts(rows)
                break
            except KeyboardInterrupt:
                catalog.put_facts(rows)  # what every long job does in its `finally`
            assert len(catalog.facts([id for id, _, _ in rows], ["phash/2"])) == 5
    assert 40 < calls < 999  # the write was reached, and at last it ended by itself


def test_a_transaction_that_raised_leaves_nothing_of_itself(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        with pytest.raises(KeyError):
            catalog.put_facts([("0" * 64, "phash/2", "f9d0"), ("1" * 64, None, "f9d0")])  # type: ignore[list-item]
        catalog.put_facts([("2" * 64, "phash/2", "f9d0")])
        assert list(catalog.facts([c * 64 for c in "012"], ["phash/2"])) == ["2" * 64]
