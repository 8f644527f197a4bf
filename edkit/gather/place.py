"""From checked files in the staging folder to named images, so that a kill at any moment loses none.

Files lie in `OUT/.incoming/` under the hash of their URL until their turn comes. A batch is placed in this
order: flush the files, commit the ledger rows that name their places, rename. Whatever is killed in between
is finished by the next run: a staged file with a ledger row goes to the place the row names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edkit.data.atomic import rename_new, sha256_of, sync_folder
from edkit.data.catalog import Catalog, LedgerRow, Tried
from edkit.data.errors import StateError
from edkit.data.names import Namer
from edkit.gather.candidate import DUPLICATE, FETCHED, KEPT, OF_THE_QUERY, SURPLUS, Candidate, outcome
from edkit.gather.fetch import Fetched, stage_name

INCOMING = ".incoming"
Captions = Literal["filename", "sidecar", "both"]
Good = Sequence[tuple[Candidate, Fetched]]

_NOTES = "waiting.jsonl"
_JUDGED_BY_OPTIONS = OF_THE_QUERY - {SURPLUS, DUPLICATE, FETCHED, "too-small", "extreme-aspect"}
# what the ledger has columns for, or no use of
_NOT_EXTRA = frozenset(
    {"ticket", "code", "reason", "http_status", "final_url", "sha256", "num_bytes", "width", "height", "suffix"}
    | {"staged", "tries"}
)
_NOTED = tuple(field.name for field in fields(Fetched) if field.name not in ("ticket", "staged"))
_EXTRA = tuple(field.name for field in fields(Fetched) if field.name not in _NOT_EXTRA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of one batch."""

    kept: tuple[Path, ...]
    num_duplicates: int
    num_bytes: int


class Placer:
    """Holds a folder's names and staging for one run of one query; the catalog must be open for writing."""

    _into_tars = False

    def __init__(
        self,
        catalog: Catalog,
        out: Path,
        *,
        query: str,
        captions: Captions,
        options: str = "",
        gathering: Callable[[], int] | None = None,
    ) -> None:
        """`gathering` gives the number of a run in the history that another begins and ends (an import's)."""
        self._given_gathering = gathering
        self.catalog, self.out, self.query, self.captions = catalog, out, query, captions
        self._folder = str(out)
        self.options = options  # id of the fetch options, beside each row
        self.staging = out / INCOMING
        self.staging.mkdir(parents=True, exist_ok=True)
        self.waiting: dict[str, Fetched] = {}  # stage name -> an earlier run's file that waits for its turn
        self._since = time.time()
        self._gathering: int | None = None  # in the history, once there is something to tell
        self._has_past = catalog.ledger_count() > 0
        self._noted: dict[str, str] = {}  # stage name -> its line among the notes
        self._num_lines = 0
        self.num_recovered = self._recover()
        self._begin()

    def _begin(self) -> None:
        """Look at what stands in the folder."""
        taken = [entry.name for entry in os.scandir(self.out)]
        self._namer = Namer(taken)
        numbers = [int(stem) for stem in (name.split(".", 1)[0] for name in taken) if stem.isdecimal()]
        self._number = max([0, *numbers])

    def _is_own(self, path: str | Path) -> bool:
        """Whether a place in the ledger is one that this placer gives."""
        folder, _, name = str(path).rpartition(os.sep)
        return folder == self._folder and name.endswith(".tar") == self._into_tars

    # ---- what earlier runs leave to do

    def num_kept(self) -> int:
        """Images of this query over all its runs."""
        return self.catalog.ledger_count(query=self.query, outcome=KEPT)

    def settled(self, candidate: Candidate) -> str | None:
        """Why an earlier run leaves nothing to do for this URL; None where it is to be tried."""
        return self.settled_many([candidate])[0]

    def settled_many(self, candidates: Sequence[Candidate]) -> list[str | None]:
        """`settled` for each of them, with one look into the ledger for all."""
        if not self._has_past:
            return [None] * len(candidates)
        tried = self.catalog.ledger_tried(candidate.url for candidate in candidates)
        return [self._why_settled(tried.get(candidate.url, ())) for candidate in candidates]

    def _why_settled(self, tried: Sequence[Tried]) -> str | None:
        if not tried:
            return None
        last: Tried | None = None
        for one in tried:
            if one.outcome == KEPT and one.path is not None and self._is_own(one.path):
                return "kept before"
            if one.query == self.query or (one.outcome not in OF_THE_QUERY and one.outcome != KEPT):
                last = one
        if last is None or outcome(last.outcome).again:
            return None
        if last.outcome in _JUDGED_BY_OPTIONS and json.loads(last.extra or "{}").get("options", "") != self.options:
            return None
        return "the same image kept before" if last.outcome == DUPLICATE else "failed for good before"

    # ---- a batch

    def place(self, good: Good, failed: Good) -> Placed:
        """Give the good files, in this order, their names; record them and the failed ones."""
        rows = [self._row(candidate, fetched, code=fetched.code) for candidate, fetched in failed]
        kept: list[tuple[LedgerRow, Path, Fetched]] = []
        duplicates: list[Fetched] = []
        names = self._names_of(good)
        for candidate, fetched in good:
            assert fetched.staged is not None
            same = names.get(fetched.sha256)
            if same is not None:
                rows.append(self._row(candidate, fetched, code=DUPLICATE, reason=f"the same bytes as {same}"))
                duplicates.append(fetched)
                continue
            path, sidecar = self._name(candidate.caption, fetched.suffix)
            names[fetched.sha256] = path.name
            row = self._row(candidate, fetched, code=KEPT, path=path, sidecar=sidecar)
            rows.append(row)
            kept.append((row, fetched.staged, fetched))
        if kept:
            written = [staged for _, staged, _ in kept]
            written += [_stage_sidecar(row, staged) for row, staged, _ in kept if _has_sidecar(row)]
            _flush(written, self.staging)
        self._record(rows)
        for row, staged, _ in kept:
            self._move(row, staged)
        for fetched in duplicates:
            self._forget(fetched)
        self.catalog.put_seen(_seen(kept))
        return Placed(
            kept=tuple(row.path for row, _, _ in kept if row.path is not None),
            num_duplicates=len(duplicates),
            num_bytes=sum(fetched.num_bytes for _, _, fetched in kept),
        )

    def note(self, good: Good) -> None:
        """Remember good files that wait for rows before them: a run after a kill need not fetch them again."""
        fresh: list[str] = []
        for candidate, fetched in good:
            name = stage_name(candidate.url)
            if name not in self._noted and fetched.staged is not None:
                values = {k: getattr(fetched, k) for k in _NOTED}
                line = json.dumps({"stage": name, "query": self.query, "options": self.options, **values}) + "\n"
                self._noted[name] = line
                fresh.append(line)
        if not fresh:
            return
        notes = self.staging / _NOTES
        self._num_lines += len(fresh)
        if self._num_lines > 4 * len(self._noted) + 20_000:  # most of them are of files long placed
            part = notes.with_suffix(".part")
            part.write_text("".join(self._noted.values()), encoding="utf-8")
            part.replace(notes)
            self._num_lines = len(self._noted)
            return
        with notes.open("a", encoding="utf-8") as file:
            file.writelines(fresh)

    def discard(self, surplus: Good, *, reason: str = "") -> None:
        """Record good files that are not needed, and remove them."""
        self._record([self._row(c, f, code=SURPLUS, reason=reason) for c, f in surplus])
        for _, fetched in surplus:
            self._forget(fetched)

    def finish(self) -> None:
        """All candidates have been seen: bring what was held back to its end."""

    def close(self, *, finished: bool, keep_waiting: bool = False) -> None:
        """Remove the staging folder; an unfinished run leaves in it what waits for its turn."""
        for entry in list(os.scandir(self.staging)):
            if (finished and not keep_waiting) or not (entry.name.endswith(".img") or entry.name == _NOTES):
                Path(entry.path).unlink(missing_ok=True)
        if not any(os.scandir(self.staging)):
            self.staging.rmdir()
        if finished and self._gathering is not None and self._given_gathering is None:
            self.catalog.gathering_end(self._gathering)

    # ---- inner

    def _record(self, rows: Sequence[LedgerRow]) -> None:
        """Add rows to the ledger, and to this run's tally in the history."""
        if not rows:
            return
        if self._gathering is None and self._given_gathering is not None:
            self._gathering = self._given_gathering()
        elif self._gathering is None:
            self._gathering = self.catalog.gathering_begin(query=self.query, folder=self.out, since=self._since)
        self.catalog.ledger_add(rows, gathering=self._gathering)

    def _names_of(self, good: Good) -> dict[str, str]:
        """Content -> name of the image of this folder that has it, now or before it was renamed or set aside."""
        names: dict[str, str] = {}
        for sha256, rows in self.catalog.ledger_holding({fetched.sha256 for _, fetched in good}).items():
            for row in rows:
                if row.path is not None and self._is_own(row.path):
                    names.setdefault(sha256, self._called(row))
        return names

    def _called(self, row: LedgerRow) -> str:
        return row.path.name if row.path is not None else ""

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
            if not self._has_past or next(self.catalog.ledger(path=path), None) is None:
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
        key: str = "",
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
        if key:
            extra["shard_key"] = key
        if fetched.tries > 1:
            extra["tries"] = fetched.tries
        # whatever else the fetch found out, such as whether the table's hashes match
        for name in _EXTRA:
            value = getattr(fetched, name)
            if value is not None and value != "":
                extra[name] = value
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
        if _has_sidecar(row):
            # first, so that no image ever stands there without its caption
            sidecar = staged.with_suffix(".txt")
            sidecar.replace(row.path.with_name(f"{row.path.name[: -len(row.path.suffix)]}.txt"))
        try:
            rename_new(str(staged), str(row.path))
        except FileExistsError as error:
            raise StateError(
                "a file with this name appeared while edkit was about to write it",
                where=str(row.path),
                mend="move it away and run again",
            ) from error
        self._noted.pop(staged.stem, None)

    def _forget(self, fetched: Fetched) -> None:
        if fetched.staged is not None:
            fetched.staged.unlink(missing_ok=True)
            self._noted.pop(fetched.staged.stem, None)

    def _recover(self) -> int:
        """Finish what a killed run had recorded but not renamed, and find what waits for its turn."""
        num_moved = 0
        notes = self._read_notes()
        for staged in sorted(self.staging.glob("*.img")):
            sha256 = sha256_of(staged)
            row = self._recorded(staged, sha256)
            if row is not None:
                num_moved += self._finish(row, staged)
                continue
            waits = notes.get(staged.stem)
            if waits is None or waits.sha256 != sha256:
                staged.unlink()
            else:
                self.waiting[staged.stem] = waits
        for entry in list(os.scandir(self.staging)):
            if not entry.name.endswith(".img"):
                Path(entry.path).unlink(missing_ok=True)
        self._noted = {stage: line for stage, line in self._noted.items() if stage in self.waiting}
        if self._noted:
            (self.staging / _NOTES).write_text("".join(self._noted.values()), encoding="utf-8")
        self._num_lines = len(self._noted)
        return num_moved

    def _recorded(self, staged: Path, sha256: str) -> LedgerRow | None:
        for row in self.catalog.ledger(sha256=sha256, outcome=KEPT):
            here = row.path is not None and self._is_own(row.path)
            if here and row.url is not None and stage_name(row.url) == staged.stem:
                return row
        return None

    def _finish(self, row: LedgerRow, staged: Path) -> bool:
        """Put a file to the place its row names; whether there was anything to do."""
        if row.path is None or os.path.lexists(row.path):
            staged.unlink()
            return False
        if _has_sidecar(row):
            _stage_sidecar(row, staged)
        self._move(row, staged)
        return True

    def _read_notes(self) -> dict[str, Fetched]:
        """The files that an earlier run of this query left waiting, by stage name."""
        try:
            lines = (self.staging / _NOTES).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        known = {field.name for field in fields(Fetched)}
        found: dict[str, Fetched] = {}
        for line in lines:
            try:
                values: dict[str, Any] = json.loads(line)
            except ValueError:  # the last line of a killed run
                continue
            stage = values.pop("stage", "")
            ours = (values.pop("query", None), values.pop("options", None)) == (self.query, self.options)
            if ours and values.keys() <= known:
                found[stage] = Fetched(ticket=-1, staged=self.staging / f"{stage}.img", **values)
                self._noted[stage] = line
        return found


def _has_sidecar(row: LedgerRow) -> bool:
    return bool((row.extra or {}).get("sidecar"))


def _stage_sidecar(row: LedgerRow, staged: Path) -> Path:
    """Write a row's caption beside its staged image."""
    sidecar = staged.with_suffix(".txt")
    sidecar.write_text(row.caption or "", encoding="utf-8", newline="\n")
    return sidecar


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

    def sync(some: Sequence[Path]) -> None:
        for path in some:
            handle = os.open(path, os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    # at a time: the disk joins flushes that wait together
    num_threads = min(8, len(files))
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(sync, [files[start::num_threads] for start in range(num_threads)]))
    sync_folder(folder)
