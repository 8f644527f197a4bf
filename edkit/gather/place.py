"""From checked files in the staging folder to named images, so that a kill at any moment loses none.

Files lie in `OUT/.incoming/` under the hash of their URL until their turn comes. A batch is placed in this
order: flush the files, commit the ledger rows that name their places, rename. Whatever is killed in between
is finished by `recover`: a staged file with a ledger row goes to the place the row names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edkit.data.atomic import rename_new, sha256_of, sync_folder
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import StateError
from edkit.data.names import Namer
from edkit.gather.candidate import DUPLICATE, KEPT, OF_THE_QUERY, SURPLUS, Candidate, outcome
from edkit.gather.fetch import Fetched, stage_name

INCOMING = ".incoming"
Captions = Literal["filename", "sidecar", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of one batch."""

    kept: tuple[Path, ...]
    num_duplicates: int
    num_bytes: int


class Placer:
    """Holds a folder's names and staging for one run of one query; the catalog must be open for writing."""

    def __init__(self, catalog: Catalog, out: Path, *, query: str, captions: Captions, options: str = "") -> None:
        self.catalog, self.out, self.query, self.captions = catalog, out, query, captions
        self.options = options  # id of the fetch options, beside each row
        self.staging = out / INCOMING
        self.staging.mkdir(parents=True, exist_ok=True)
        self.waiting: dict[str, Fetched] = {}  # stage name -> an earlier run's file that waits for its turn
        self._has_past = catalog.ledger_count() > 0
        self._noted: set[str] = set()
        self._hashes: dict[str, Path] = {}  # sha256 -> image of this run
        self.num_recovered = self._recover()
        taken = [entry.name for entry in os.scandir(out)]
        self._namer = Namer(taken)
        numbers = [int(stem) for stem in (name.split(".", 1)[0] for name in taken) if stem.isdecimal()]
        self._number = max([0, *numbers])

    def settled(self, candidate: Candidate) -> str | None:
        """Why an earlier run leaves nothing to do for this URL; None where it is to be tried."""
        if not self._has_past:
            return None
        last: LedgerRow | None = None
        for row in self.catalog.ledger(url=candidate.url):
            if row.outcome == KEPT and row.path is not None and row.path.parent == self.out:
                return "kept before"
            if row.query == self.query or (row.outcome not in OF_THE_QUERY and row.outcome != KEPT):
                last = row
        if last is None or outcome(last.outcome).again:
            return None
        if last.outcome in OF_THE_QUERY and (last.extra or {}).get("options", "") != self.options:
            return None
        return "the same image kept before" if last.outcome == DUPLICATE else "failed for good before"

    # ---- a batch

    def place(self, good: Sequence[tuple[Candidate, Fetched]], failed: Sequence[tuple[Candidate, Fetched]]) -> Placed:
        """Give the good files, in this order, their names; record them and the failed ones."""
        rows = [self._row(candidate, fetched, code=fetched.code) for candidate, fetched in failed]
        kept: list[tuple[LedgerRow, Path, Fetched]] = []
        duplicates: list[Path] = []
        for candidate, fetched in good:
            assert fetched.staged is not None
            same = self._same(fetched.sha256)
            if same is not None:
                reason = f"the same bytes as {same.name}"
                rows.append(self._row(candidate, fetched, code=DUPLICATE, reason=reason))
                duplicates.append(fetched.staged)
                continue
            path, sidecar = self._name(candidate.caption, fetched.suffix)
            row = self._row(candidate, fetched, code=KEPT, path=path, sidecar=sidecar)
            rows.append(row)
            kept.append((row, fetched.staged, fetched))
            self._hashes[fetched.sha256] = path
        if kept:
            _flush([staged for _, staged, _ in kept], self.staging)
        if rows:
            self.catalog.ledger_add(rows)
        for row, staged, _ in kept:
            self._move(row, staged)
        for staged in duplicates:
            self._forget(staged)
        self.catalog.put_seen(_seen(kept))
        return Placed(
            kept=tuple(row.path for row, _, _ in kept if row.path is not None),
            num_duplicates=len(duplicates),
            num_bytes=sum(fetched.num_bytes for _, _, fetched in kept),
        )

    def note(self, candidate: Candidate, fetched: Fetched) -> None:
        """Remember a good file that waits for rows before it: a run after a kill need not fetch it again."""
        name = stage_name(candidate.url)
        if name in self._noted or fetched.staged is None:
            return
        values = {k: v for k, v in asdict(fetched).items() if k not in ("ticket", "staged")}
        part = self.staging / f"{name}.json.part"
        part.write_text(json.dumps({"query": self.query, "options": self.options, **values}), encoding="utf-8")
        part.replace(self.staging / f"{name}.json")
        self._noted.add(name)

    def discard(self, surplus: Sequence[tuple[Candidate, Fetched]]) -> None:
        """Record files past the limit, and remove them."""
        if surplus:
            self.catalog.ledger_add([self._row(c, f, code=SURPLUS) for c, f in surplus])
        for _, fetched in surplus:
            if fetched.staged is not None:
                self._forget(fetched.staged)

    def close(self, *, finished: bool) -> None:
        """Remove the staging folder; an unfinished run leaves in it what waits for its turn."""
        keep = (".img", ".json") if not finished else ()
        for entry in list(os.scandir(self.staging)):
            if not entry.name.endswith(keep or ("\0",)):
                Path(entry.path).unlink(missing_ok=True)
        if not any(os.scandir(self.staging)):
            self.staging.rmdir()

    # ---- inner

    def _same(self, sha256: str) -> Path | None:
        """The image of this folder that has these bytes, now or before it was renamed or set aside."""
        if sha256 in self._hashes:
            return self._hashes[sha256]
        for row in self.catalog.ledger(sha256=sha256, outcome=KEPT):
            if row.path is not None and row.path.parent == self.out:
                return row.path
        return None

    def _name(self, caption: str, suffix: str) -> tuple[Path, bool]:
        """The next free place for a caption, and whether it needs a sidecar."""
        while True:
            if self.captions == "sidecar":
                self._number += 1
                name, sidecar = f"{self._number:06d}{suffix}", True
            else:
                name, text = self._namer.name(caption, suffix)
                sidecar = text is not None or self.captions == "both"
            path = self.out / name
            # a name once given is not given again: undo may want to put its first owner back
            if next(self.catalog.ledger(path=path), None) is None:
                return path, sidecar

    def _row(
        self,
        candidate: Candidate,
        fetched: Fetched,
        *,
        code: str,
        reason: str = "",
        path: Path | None = None,
        sidecar: bool = False,
    ) -> LedgerRow:
        extra: dict[str, object] = {}
        if self.options:
            extra["options"] = self.options
        if sidecar:
            extra["sidecar"] = True
        if candidate.page:
            extra["page"] = candidate.page
        if candidate.key:
            extra["key"] = candidate.key
        if fetched.tries > 1:
            extra["tries"] = fetched.tries
        if fetched.checksum_matches is not None:
            extra["checksum_matches"] = fetched.checksum_matches
        return LedgerRow(
            outcome=code,
            url=candidate.url,
            final_url=fetched.final_url or None,
            http_status=fetched.http_status,
            reason=reason or fetched.reason or None,
            sha256=fetched.sha256 or None,
            num_bytes=fetched.num_bytes or None,
            width=fetched.width or None,
            height=fetched.height or None,
            caption=candidate.caption,
            licence=candidate.licence or None,
            author=candidate.author or None,
            source=candidate.table,
            row=candidate.row,
            path=path,
            query=self.query,
            extra=extra or None,
        )

    def _move(self, row: LedgerRow, staged: Path) -> None:
        assert row.path is not None
        if (row.extra or {}).get("sidecar"):
            # first, so that no image ever stands there without its caption
            part = staged.with_suffix(".txt.part")
            part.write_text(row.caption or "", encoding="utf-8", newline="\n")
            part.replace(row.path.with_name(f"{row.path.name[: -len(row.path.suffix)]}.txt"))
        try:
            rename_new(str(staged), str(row.path))
        except FileExistsError as error:
            raise StateError(
                "a file with this name appeared while edkit was about to write it",
                where=str(row.path),
                mend="move it away and run again",
            ) from error
        self._forget(staged)

    def _forget(self, staged: Path) -> None:
        staged.unlink(missing_ok=True)
        if staged.stem in self._noted:
            staged.with_suffix(".json").unlink(missing_ok=True)
            self._noted.discard(staged.stem)

    def _recover(self) -> int:
        """Finish what a killed run had recorded but not renamed, and find what waits for its turn."""
        num_moved = 0
        for staged in sorted(self.staging.glob("*.img")):
            row = self._recorded(staged)
            if row is not None and row.path is not None:
                if not os.path.lexists(row.path):
                    self._move(row, staged)
                    num_moved += 1
                else:
                    staged.unlink()
                continue
            waits = self._noted_before(staged)
            if waits is None:
                staged.unlink()
            else:
                self.waiting[staged.stem] = waits
                self._noted.add(staged.stem)
        for entry in list(os.scandir(self.staging)):
            name = Path(entry.path)
            if name.suffix != ".img" and not (name.suffix == ".json" and name.stem in self.waiting):
                name.unlink(missing_ok=True)
        return num_moved

    def _recorded(self, staged: Path) -> LedgerRow | None:
        for row in self.catalog.ledger(sha256=sha256_of(staged), outcome=KEPT):
            here = row.path is not None and row.path.parent == self.out
            if here and row.url is not None and stage_name(row.url) == staged.stem:
                return row
        return None

    def _noted_before(self, staged: Path) -> Fetched | None:
        """The note beside a staged file, where it is this query's and the file is what it says."""
        try:
            values: dict[str, Any] = json.loads(staged.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if (values.pop("query", None), values.pop("options", None)) != (self.query, self.options):
            return None
        known = {field.name for field in fields(Fetched)}
        if not values.keys() <= known or values.get("sha256") != sha256_of(staged):
            return None
        return Fetched(ticket=-1, staged=staged, **values)


def _seen(kept: Sequence[tuple[LedgerRow, Path, Fetched]]) -> list[tuple[Path, int, int, str]]:
    """What the catalog needs so as not to hash these files again."""
    found = []
    for row, _, fetched in kept:
        if row.path is not None:
            info = row.path.stat()
            found.append((row.path, info.st_size, info.st_mtime_ns, fetched.sha256))
    return found


def _flush(files: Sequence[Path], folder: Path) -> None:
    """Wait until the disk has these files and their names."""

    def sync(path: Path) -> None:
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # at a time: the disk joins flushes that wait together
    with ThreadPoolExecutor(min(8, len(files))) as pool:
        list(pool.map(sync, files))
    sync_folder(folder)
