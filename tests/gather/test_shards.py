"""WebDataset shards: the same bytes whatever happened on the way, whole or not there, and known to the ledger."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import UsageError
from edkit.data.story import why
from edkit.gather.credits import credits
from edkit.gather.scrape import scrape

Laion = Callable[..., Path]
SHARDS: dict[str, Any] = {
    "format": "webdataset",
    "shard_size": 10,
    "allow_private_hosts": True,
    "retries": 0,
    "per_host": 64,
}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def kept(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger(outcome="ok"))


def test_images_go_into_tars_of_equal_size_with_captions_and_a_table_beside_each(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    paths = [f"/image/{i}" for i in range(25)]
    paths[3:3] = ["/404", "/image/1?the-same-bytes"]
    texts = [f"une scène n° {i}: rouge/bleu\nà deux" for i in range(len(paths))]
    table = laion([web.url(p) for p in paths], texts, license=["cc0-1.0"] * len(paths), author=["Ann"] * len(paths))
    out = tmp_path / "out"
    result = scrape([table], out=out, **SHARDS)
    assert result.kept == result.total == 25
    assert sorted(files(out)) == [f"0000{n}.{ending}" for n in range(3) for ending in ("parquet", "tar")]
    keys, read = [], []
    for n, size in enumerate((10, 10, 5)):
        rows = pq.read_table(out / f"0000{n}.parquet").to_pylist()
        assert len(rows) == size
        with tarfile.open(out / f"0000{n}.tar") as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}
            for row in rows:
                image = tar.extractfile(f"{row['key']}.jpg")
                text = tar.extractfile(f"{row['key']}.txt")
                told = tar.extractfile(f"{row['key']}.json")
                assert image and text and told
                assert text.read().decode() == row["caption"]
                assert json.load(told) == row
                assert (row["status"], row["error_message"]) == ("success", None)
                assert (row["width"], row["height"], row["licence"], row["author"]) == (96, 64, "cc0-1.0", "Ann")
                assert hashlib.sha256(image.read()).hexdigest() == row["sha256"]
                keys.append(row["key"])
                read.append(row["caption"])
    assert keys == [f"{i // 10:05d}{i % 10}" for i in range(25)]
    assert read == [text for i, text in enumerate(texts) if i not in (3, 4)]
    assert [(r.path and r.path.name, (r.extra or {})["shard_key"]) for r in kept(out)][11] == ("00001.tar", "000011")


def test_shards_do_not_depend_on_timing(web: Any, laion: Laion, tmp_path: Path) -> None:
    paths = [f"/slow/{i}" if i % 7 == 0 else f"/image/{i}" for i in range(35)]
    table = laion([web.url(p) for p in paths])
    for n, at_once in enumerate((2, 64)):
        scrape([table], out=tmp_path / f"out{n}", **{**SHARDS, "per_host": at_once})
    assert files(tmp_path / "out0") == files(tmp_path / "out1") != {}


def test_a_larger_limit_goes_on_in_new_shards_and_leaves_the_old_alone(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(40)])
    out = tmp_path / "out"
    assert scrape([table], out=out, limit=12, **SHARDS).kept == 12
    before = files(out)
    again = scrape([table], out=out, limit=12, **SHARDS)
    assert again.kept == 0 and files(out) == before
    more = scrape([table], out=out, limit=20, **SHARDS)
    assert more.kept == 8 and more.total == 20
    assert {name: data for name, data in files(out).items() if name in before} == before
    assert pq.read_table(out / "00002.parquet")["row"].to_pylist() == list(range(12, 20))
    # a shard that a person deleted is not fetched again, nor its number given again
    (out / "00002.tar").unlink()
    (out / "00002.parquet").unlink()
    scrape([table], out=out, limit=25, **SHARDS)
    assert (out / "00003.tar").exists() and not (out / "00002.tar").exists()


def test_it_is_told_where_a_shard_and_what_is_in_it_came_from(web: Any, laion: Laion, tmp_path: Path) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(5)], license=["cc-by-4.0"] * 5)
    scrape([table], out=tmp_path / "out", **SHARDS)
    assert "a shard of 5 images" in why(tmp_path / "out" / "00000.tar").sentences[0]
    found = credits(tmp_path / "out")
    assert [c.image for c in found.credits] == [f"00000.tar/00000{i}" for i in range(5)]
    assert found.licences == {"CC BY 4.0": 5}


def test_a_shard_holds_at_least_one_image(laion: Laion, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shard-size 0"):
        scrape([laion(["http://example.org/1"])], out=tmp_path / "out", format="webdataset", shard_size=0)


KILL_AT = """
import os, signal, sys
from pathlib import Path
from edkit.data import catalog
from edkit.gather import shards
from edkit.gather.scrape import scrape
def killing(module, name):
    real = getattr(module, name)
    def call(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    setattr(module, name, call)
left = int(sys.argv[3])
# every step of closing a shard: its bytes, its table, its ledger rows, its names
for name in ("_write_tar", "_write_table", "sync_folder", "rename_new"):
    killing(shards, name)
killing(catalog.Catalog, "ledger_add")
scrape([sys.argv[1]], out=Path(sys.argv[2]), format="webdataset", shard_size=10, allow_private_hosts=True,
       retries=0, per_host=64)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_killed_at_any_step_of_a_shard_the_next_run_makes_the_same_shards(
    web: Any, laion: Laion, tmp_path: Path
) -> None:
    table = laion([web.url(f"/image/{i}") for i in range(25)], ["a dog"] * 25)
    scrape([table], out=tmp_path / "whole", **SHARDS)
    whole = files(tmp_path / "whole")
    steps = [2, 3, 4, 5, 6, 7, 9, 12]
    for step in steps:
        out = tmp_path / str(step)
        command = [sys.executable, "-c", KILL_AT, str(table), str(out), str(step)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert {name: data for name, data in whole.items() if name in files(out)} == files(out)
        hits = web.hits.total()
        scrape([table], out=out, **SHARDS)
        assert files(out) == whole and not (out / ".incoming").exists()
        assert [row.row for row in kept(out)] == list(range(25))
        # what was fetched before the kill, and noted, is not fetched again
        assert step == 2 or web.hits.total() - hits <= 15
