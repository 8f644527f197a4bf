"""`edkit import img2dataset`: what img2dataset downloaded, as folders of files or as tar shards, with its tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from edkit.data.errors import BadInput, UsageError
from edkit.data.image import is_image
from edkit.data.options import read_text
from edkit.data.progress import SILENT, Progress
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.local import Imported, Item, Target, run_import
from edkit.gather.place import Captions
from edkit.gather.webdataset import caption_text_of, captioned, described, read_meta, shard_items

_SHARD = re.compile(r"\d{3,}")
_TABLE_COLUMNS = frozenset(
    {"key", "status", "url", "caption", "license", "licence", "author", "creator", "sha256", "md5", "page"}
    | {"original_width", "original_height", "width", "height"}
)


def import_img2dataset(
    source: Path,
    *,
    out: Path,
    caption_key: str = "",
    caption: str | None = None,
    check_hash: Literal["off", "strict"] = "off",
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put what img2dataset downloaded (its folder of shards) with captions, addresses and licences into `out`.

    Rows whose download failed are counted by their status. img2dataset's checksums are of what it downloaded,
    before it resized: they are recorded, and refuse a file only with `check_hash` "strict". Raises UsageError
    for a folder that holds no shards.
    """
    target = Target(
        out=out,
        link=link,
        limit=limit,
        captions=captions,
        caption=caption,
        licence=licence,
        author=author,
        dry_run=dry_run,
        state_dir=state_dir,
        progress=progress,
    )
    if check_hash not in ("off", "strict"):
        raise UsageError("--check-hash off or strict")
    shards = _shards(source)
    strict = check_hash == "strict"

    def items(funnel: Funnel) -> Iterator[Item]:
        for shard in shards:
            failed = _failed(shard, funnel)
            if shard.is_dir():
                yield from _file_items(shard, funnel, caption_key, caption, strict)
            else:
                yield from shard_items(shard, funnel, caption_key=caption_key, caption=caption, strict=strict)
            funnel.rows += failed

    asked = [str(source.resolve()), caption_key, caption, check_hash]
    imported = run_import("img2dataset", items, target, asked=asked)
    unfinished = [shard.name for shard in shards if not _stats(shard).exists()]
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (", ..." if len(unfinished) > 5 else "")
        line = f"img2dataset did not finish {len(unfinished):,} of {len(shards):,} shards: {shown}"
        imported = replace(imported, notes=(*imported.notes, line))
    return imported


def _shards(source: Path) -> list[Path]:
    """The shards of an output folder, in order: folders of files, and tars."""
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder (img2dataset's output_folder)")
    inside = sorted(source.iterdir())
    found = [p for p in inside if _SHARD.fullmatch(p.name) and p.is_dir()]
    found += [p for p in inside if p.suffix == ".tar" and _SHARD.fullmatch(p.stem)]
    if found:
        return found
    names = {p.suffix for p in inside}
    if ".tfrecord" in names:
        raise UsageError(f"{source}: TFRecord shards are not read; run img2dataset with --output_format webdataset")
    if ".parquet" in names:
        raise UsageError(f"{source}: images in Parquet files: edkit import hf {source} --out DIR")
    raise UsageError(f"{source}: no shards (00000/ or 00000.tar) in this folder")


def _stats(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem if shard.suffix == '.tar' else shard.name}_stats.json")


def _table(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem if shard.suffix == '.tar' else shard.name}.parquet")


def _failed(shard: Path, funnel: Funnel) -> int:
    """How many rows of a shard's table img2dataset could not get, counted in the funnel by status."""
    path = _table(shard)
    if not path.is_file():
        return 0
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    num_failed = 0
    try:
        with pq.ParquetFile(path) as file:
            if "status" not in file.schema_arrow.names:
                return 0
            for batch in file.iter_batches(columns=["status"]):
                for entry in pc.value_counts(batch.column(0)).to_pylist():
                    status, n = entry["values"], entry["counts"]
                    if status != "success":
                        funnel.drop(f"img2dataset: {status or 'no status'}", n)
                        num_failed += n
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"no Parquet: {error}", where=str(path), mend="move it away, and its rows go uncounted"
        ) from error
    return num_failed


def _rows(shard: Path) -> dict[str, dict[str, Any]]:
    """A shard's table by key: for files whose .json was not written, or was removed."""
    path = _table(shard)
    if not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.lower() in _TABLE_COLUMNS]
            if "key" not in names:
                return {}
            return {str(row["key"]): row for batch in file.iter_batches(columns=names) for row in batch.to_pylist()}
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"no Parquet: {error}", where=str(path)) from error


def _file_items(shard: Path, funnel: Funnel, caption_key: str, fallback: str | None, strict: bool) -> Iterator[Item]:
    names = sorted(entry.name for entry in shard.iterdir() if not entry.name.startswith("."))
    there = frozenset(names)
    rows: dict[str, dict[str, Any]] | None = None
    for number, name in enumerate(name for name in names if is_image(name)):
        path = shard / name
        funnel.rows += 1
        funnel.left += 1
        plain = Candidate(url=path.absolute().as_uri(), caption="", table=str(shard), row=number, key=name)
        try:
            texts, meta = {}, {}
            if f"{path.stem}.txt" in there:
                texts["txt"] = read_text(path.with_suffix(".txt")).encode()
            if f"{path.stem}.json" in there:
                meta = read_meta(read_text(path.with_suffix(".json")).encode(), path.stem)
            else:
                rows = _rows(shard) if rows is None else rows
                meta = rows.get(path.stem, {})
            text = caption_text_of(texts, meta, path.stem, caption_key)
        except BadInput as error:
            yield Item(candidate=plain, refused="bad-caption", reason=str(error))
            continue
        yield captioned(Item(candidate=described(meta, plain), source=path, strict=strict), text, fallback)
