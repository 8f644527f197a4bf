"""The folders of a demo and its record: which stages are finished, and what each found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data import atomic
from edkit.data.errors import BadInput, UsageError

if TYPE_CHECKING:
    from edkit.data.story import Operation

RECORD = "demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How large a demo; what a rerun must agree with."""

    seed: int
    num_pool: int
    num_subject: int
    max_steps: int
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A picture that was set aside: the name it had, where the trash keeps it, why, and what was measured."""

    was: Path
    file: Path
    reason: str
    facts: Mapping[str, object]


class Place:
    """The folders of a demo, and its record: the finished stages, and what each found."""

    def __init__(self, out: Path, wish: Wish) -> None:
        self.out, self.wish = out, wish
        self.given, self.data, self.run = out / "1-given", out / "2-data", out / "3-run"
        self.pictures, self.page = out / "4-pictures", out / "demo.html"
        self.web, self.table = self.given / "web", self.given / "web.parquet"
        self.subject, self.ground_truth = self.data / "subject", self.data / "ground_truth"
        self.state = self.data / ".edkit"  # named outright: a data root above `out` must not take it in
        self.record = out / RECORD
        self.stages: dict[str, dict[str, Any]] = {}
        self._open()

    def _open(self) -> None:
        """Take over what an interrupted demo left. UsageError for a folder that isn't ours to fill."""
        wish = {name: getattr(self.wish, name) for name in Wish.__slots__}
        if not self.out.exists():
            self.out.mkdir(parents=True)
        elif not self.out.is_dir():
            raise UsageError("not a folder", where=str(self.out), mend="--out names a new folder")
        elif not self.record.is_file() and any(self.out.iterdir()):
            raise UsageError(
                "there are other things in this folder", where=str(self.out), mend="--out names a new folder"
            )
        if self.record.is_file():
            try:
                before = json.loads(self.record.read_text(encoding="utf-8"))
                stages, wished = dict(before["stages"]), before["wish"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"not the record of a demo: {error}",
                    where=str(self.record),
                    mend="--out names a new folder",
                ) from error
            if wished != wish:
                raise UsageError(
                    f"a demo with other settings was begun here ({_differs(wished, wish)})",
                    where=str(self.out),
                    mend="--out names a new folder",
                )
            self.stages = stages
        self._wish = wish
        self._write()

    def done(self, stage: str, seconds: float, found: Mapping[str, Any]) -> None:
        """Record a finished stage."""
        self.stages[stage] = {"seconds": round(seconds, 2), **found}
        self._write()

    def seconds(self) -> float:
        """Of all work so far, over all runs."""
        return float(sum(stage["seconds"] for stage in self.stages.values()))

    def found(self, stage: str) -> Mapping[str, Any]:
        """What a finished stage found."""
        return self.stages[stage]

    def operations(self, verb: str) -> list[Operation]:
        """The journal's operations of one verb that still hold."""
        from edkit.data.journal import history

        known = history(self.data, state_dir=self.state)
        return [one for one in known if one.verb == verb and one.undone_by is None]

    def outcomes(self) -> Counter[str]:
        """How the fetches ended, by the ledger; of an address that was tried twice, the last."""
        from edkit.data.catalog import Catalog

        with Catalog.open(self.data, state_dir=self.state, write=False) as catalog:
            last = {row.url: row.outcome for row in catalog.ledger()}
        return Counter(last.values())

    def removed(self, verb: str) -> list[Removed]:
        """The pictures that a verb set aside, with the journal's reasons, by name."""
        from edkit.data import trash
        from edkit.data.catalog import Catalog
        from edkit.data.image import is_image
        from edkit.data.journal import why

        gone = []
        with Catalog.open(self.data, state_dir=self.state, write=False) as catalog:
            for item in trash.contents(catalog).items:
                if item.was is None or item.verb != verb or not is_image(item.was):
                    continue
                facts = why(item.was, catalog=catalog).decisions[-1].facts
                place = Path(catalog.site().trash_path(item.sha256))
                gone.append(Removed(was=item.was, file=place, reason=item.reason, facts=facts))
        return sorted(gone, key=lambda one: one.was)

    def _write(self) -> None:
        said = {"wish": self._wish, "stages": self.stages}
        atomic.write_text(self.record, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def drawn_seed(out: Path) -> int:
    """A fresh seed, or the one an interrupted demo drew."""
    from edkit.data.random import draw_seed

    try:
        return int(json.loads((out / RECORD).read_text(encoding="utf-8"))["wish"]["seed"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that Place will refuse
        return draw_seed()


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {before.get(key)}" for key in now if before.get(key) != now[key])
