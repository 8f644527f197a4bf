"""From checked files in the staging folder to WebDataset shards: tars of images with captions, a Parquet beside each.

A shard is written in the staging folder, flushed, recorded in the ledger (one commit for all its images), and
renamed; so it stands under its name whole or not at all. Killed before the commit, it is made again of the
staged files, byte for byte; killed after it, the next run only renames it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from edkit.data.atomic import rename_new, sync_folder
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import StateError, UsageError
from edkit.gather.candidate import DUPLICATE, KEPT, Candidate
from edkit.gather.fetch import Fetched
from edkit.gather.place import Good, Placed, Placer

_TEXTS = (
    *("key", "url", "caption", "status", "error_message"),
    *("licence", "author", "page", "sha256", "source"),
)
_NUMBERS = ("width", "height", "original_width", "original_height", "row")


class ShardPlacer(Placer):
    """Places images into `OUT/00000.tar`, `00001.tar`, ...: `shard_size` in each, what is left in the last."""

    _into_tars = True

    def __init__(self, catalog: Catalog, out: Path, *, query: str, options: str = "", shard_size: int = 10_000) -> None:
        if shard_size < 1:
            raise UsageError(f"--shard-size {shard_size}: images in a shard, 1 or more")
        self.shard_size = shard_size
        self._held: list[tuple[str, Candidate, Fetched]] = []  # (key, ...) of the shard in the making
        self._keys: dict[str, str] = {}  # content -> key, of those
        super().__init__(catalog, out, query=query, captions="sidecar", options=options)

    def _begin(self) -> None:
        self._shard = self._next_shard(0)

    def _called(self, row: LedgerRow) -> str:
        assert row.path is not None
        return f"{(row.extra or {}).get('shard_key', '')} in {row.path.name}"

    def place(self, good: Good, failed: Good) -> Placed:
        """Take the good files, in this order, into the shard in the making; record the failed ones."""
        self.note(good)
        rows = [self._row(candidate, fetched, code=fetched.code) for candidate, fetched in failed]
        names = self._names_of(good)
        duplicates: list[Fetched] = []
        kept: list[Path] = []
        num_bytes = 0
        for candidate, fetched in good:
            same = names.get(fetched.sha256) or self._keys.get(fetched.sha256)
            if same is not None:
                rows.append(self._row(candidate, fetched, code=DUPLICATE, reason=f"the same bytes as {same}"))
                duplicates.append(fetched)
                continue
            key = f"{self._shard:05d}{len(self._held):0{len(str(self.shard_size - 1))}d}"
            self._held.append((key, candidate, fetched))
            self._keys[fetched.sha256] = key
            kept.append(self._path(self._shard))
            num_bytes += fetched.num_bytes
            if len(self._held) == self.shard_size:
                names.update(dict.fromkeys(self._keys, self._path(self._shard).name))
                self._seal()
        self._record(rows)
        for fetched in duplicates:
            self._forget(fetched)
        return Placed(kept=tuple(kept), num_duplicates=len(duplicates), num_bytes=num_bytes)

    def finish(self) -> None:
        """Close the last shard, however many images it holds."""
        if self._held:
            self._seal()

    # ---- inner

    def _path(self, shard: int) -> Path:
        return self.out / f"{shard:05d}.tar"

    def _next_shard(self, at_least: int) -> int:
        """The first number that no shard has or had."""
        number = at_least
        while True:
            path = self._path(number)
            known = self._has_past and next(self.catalog.ledger(path=path), None) is not None
            if not known and not path.exists() and not path.with_suffix(".parquet").exists():
                return number
            number += 1

    def _seal(self) -> None:
        """Write the shard in the making, record its images, and give it its name."""
        final = self._path(self._shard)
        tar, table = self.staging / final.name, self.staging / final.with_suffix(".parquet").name
        entries = [_entry(key, candidate, fetched) for key, candidate, fetched in self._held]
        part = tar.with_suffix(".part")
        try:
            _write_tar(part, [(entry, fetched) for entry, (_, _, fetched) in zip(entries, self._held, strict=True)])
            part.replace(tar)
            _write_table(part, entries)
            part.replace(table)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(self.staging)
        self._record(
            [self._row(candidate, fetched, code=KEPT, path=final, key=key) for key, candidate, fetched in self._held]
        )
        self._name_shard(final)
        for _, _, fetched in self._held:
            self._forget(fetched)
        self._held.clear()
        self._keys.clear()
        self._shard = self._next_shard(self._shard + 1)

    def _name_shard(self, final: Path) -> None:
        """Move a recorded shard and its table from the staging folder to their place."""
        # the tar last: whoever sees it finds its table
        for name in (final.with_suffix(".parquet"), final):
            staged = self.staging / name.name
            if not staged.exists():
                continue
            try:
                rename_new(str(staged), str(name))
            except FileExistsError as error:
                raise StateError(
                    "a file with this name appeared while edkit was about to write it",
                    where=str(name),
                    mend="move it away and run again",
                ) from error
        sync_folder(self.out)

    def _recover(self) -> int:
        num_named = 0
        for staged in sorted(self.staging.glob("*.tar")):
            final = self.out / staged.name
            if next(self.catalog.ledger(path=final, outcome=KEPT), None) is not None:
                self._name_shard(final)
                num_named += 1
        return num_named + super()._recover()

    def _finish(self, row: LedgerRow, staged: Path) -> bool:
        staged.unlink()  # its shard is recorded, and so has its bytes
        return False


def _entry(key: str, candidate: Candidate, fetched: Fetched) -> dict[str, str | int | None]:
    """What a shard's table and an image's .json say; nothing of when or how often it was fetched."""
    return {
        "key": key,
        "url": candidate.url,
        "caption": candidate.caption,
        "status": "success",
        "error_message": None,
        "width": fetched.width,
        "height": fetched.height,
        "original_width": fetched.width,
        "original_height": fetched.height,
        "sha256": fetched.sha256,
        "licence": candidate.licence or None,
        "author": candidate.author or None,
        "page": candidate.page or None,
        "source": candidate.table,
        "row": candidate.row,
    }


def _write_tar(path: Path, images: Sequence[tuple[dict[str, str | int | None], Fetched]]) -> None:
    """The same images make the same bytes: no times, owners or rights of this machine."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for entry, fetched in images:
                assert fetched.staged is not None
                key = entry["key"]
                with fetched.staged.open("rb") as image:
                    member = tarfile.TarInfo(f"{key}{fetched.suffix}")
                    member.size = fetched.num_bytes
                    tar.addfile(member, image)
                _add(tar, f"{key}.txt", str(entry["caption"]).encode())
                _add(tar, f"{key}.json", json.dumps(entry, ensure_ascii=False).encode())
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_table(path: Path, entries: Sequence[dict[str, str | int | None]]) -> None:
    """The shard's Parquet, with the columns that readers of img2dataset's output look for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = list(entries[0])
    kinds = {**dict.fromkeys(_TEXTS, pa.string()), **dict.fromkeys(_NUMBERS, pa.int64())}
    schema = pa.schema([(name, kinds[name]) for name in order])
    with path.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(list(entries), schema=schema), file)
        file.flush()
        os.fsync(file.fileno())
