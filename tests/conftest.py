"""What all tests share: where the real photos lie, and pictures drawn on the spot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no failure
settings.register_profile("edkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edkit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # started in a shell's background, where Ctrl-C is ignored, by every child as well: the tests that send it mean it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def swap_killed_midway(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    """Swaps two files of a folder, and is killed when both lie under hidden names."""

    def swap(one: Path, other: Path) -> None:
        from edkit.data import redo
        from edkit.data.catalog import Catalog
        from edkit.data.journal import Move, apply

        run = redo._Worker.run

        def killed(self: redo._Worker, phase: int) -> Iterator[int]:
            if phase == 2:
                raise KeyboardInterrupt
            yield from run(self, phase)

        with (
            monkeypatch.context() as patch,
            Catalog.open(one.parent) as catalog,
            pytest.raises(KeyboardInterrupt),
        ):
            patch.setattr(redo._Worker, "run", killed)
            apply(catalog, [Move(one, other), Move(other, one)], verb="swap")

    return swap


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the checkout (EDKIT_SHARED_DATA elsewhere); skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDKIT_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real photos at {folder} (set EDKIT_SHARED_DATA)")
    return folder
