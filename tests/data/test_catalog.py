"""The catalog: one writer, readers that leave no trace, nothing measured twice, a ledger that lasts."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edkit.data import database
from edkit.data.catalog import Catalog, LedgerRow, Unreadable, state_dir_for
from edkit.data.errors import StateError
from edkit.data.journal import Move, apply

HOLD = """
import sys
from pathlib import Path
from edkit.data.catalog import Catalog
with Catalog.open(Path(sys.argv[1]), command="edkit scrape laion.parquet"):
    print("open", flush=True)
    sys.stdin.read()
"""


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1.6e9, 1.6e9))  # long settled
    return path


class Lines:
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


# ---------------------------------------------------------------------- where


def test_the_state_belongs_to_the_nearest_ancestor_that_has_one(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "sub/deep/x.jpg", b"x")
    manifest = put(root / "sub/list.json", b"[]")
    assert state_dir_for(root / "sub") == root / "sub/.edkit"
    assert state_dir_for(manifest) == root / "sub/.edkit"
    assert state_dir_for(root / "new") == root / "new/.edkit"
    Catalog.open(root).close()
    assert state_dir_for(root / "sub/deep") == root / ".edkit"
    assert state_dir_for(manifest) == root / ".edkit"
    assert state_dir_for(root / "sub", tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_a_reader_creates_nothing_and_finds_an_absent_state_empty(tmp_path: Path) -> None:
    image = put(tmp_path / "a.jpg", b"x")
    with Catalog.open(tmp_path, write=False) as catalog:
        sha = catalog.content_ids([image])[image]
        assert list(catalog.ledger()) == []
        assert catalog.facts([sha], ["phash/1"]) == {}
        # what it finds out itself it knows as long as it is open
        catalog.put_facts([(sha, "phash/1", b"12345678")])
        catalog.put_cached("header", image, {"width": 3})
        assert catalog.facts([sha], ["phash/1"]) == {sha: {"phash/1": b"12345678"}}
        assert catalog.cached("header", image) == {"width": 3}
        with pytest.raises(StateError, match="opened for reading"):
            catalog.ledger_add([LedgerRow(outcome="ok")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


# ---------------------------------------------------------------------- the lock


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdin is not None
    try:
        assert first.stdout.readline().strip() == b"open"
        with pytest.raises(StateError) as error:
            Catalog.open(tmp_path)
        assert f"process {first.pid} on " in str(error.value)
        assert "edkit scrape laion.parquet" in str(error.value)
        assert "\n" not in str(error.value)
        with Catalog.open(tmp_path, write=False) as reader:
            assert list(reader.ledger()) == []
    finally:
        first.kill()  # no farewell
        first.wait()
        first.stdin.close()
        first.stdout.close()
    Catalog.open(tmp_path).close()


def test_a_writer_shuts_out_another_in_its_own_process(tmp_path: Path) -> None:
    with Catalog.open(tmp_path), pytest.raises(StateError, match=str(os.getpid())):
        Catalog.open(tmp_path)
    Catalog.open(tmp_path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_keep_the_lock_alive(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    try:
        catalog.close()
        Catalog.open(tmp_path).close()
    finally:
        os.close(writes)
        os.close(reads)
        os.waitpid(child, 0)


# ---------------------------------------------------------------------- the files


def test_a_newer_schema_and_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    Catalog.open(tmp_path).close()
    db = sqlite3.connect(tmp_path / ".edkit/edkit.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    for write in (True, False):
        with pytest.raises(StateError, match=r"newer edkit \(schema 99, this one knows 2\)"):
            Catalog.open(tmp_path, write=write)
    (tmp_path / ".edkit/edkit.db").unlink()
    (tmp_path / ".edkit/facts.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateError, match=r"damaged.*delete it"):
        Catalog.open(tmp_path)
    (tmp_path / ".edkit/facts.db").unlink()
    Catalog.open(tmp_path).close()  # and the failures held no lock


def test_a_closed_state_is_plain_files_that_can_be_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        catalog.ledger_add([LedgerRow(outcome="ok", url="http://h/a")])
        assert catalog.db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert catalog.db.execute("PRAGMA synchronous").fetchone()[0] == 2
    state = tmp_path / ".edkit"
    assert sorted(path.name for path in state.iterdir()) == ["edkit.db", "facts.db", "lock"]
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with Catalog.open(tmp_path, write=False) as catalog:
        assert catalog.ledger_count() == 1
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_where_a_write_ahead_log_can_not_work_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "on_network", lambda path: True)
    lines = Lines()
    with Catalog.open(tmp_path, progress=lines) as catalog:  # type: ignore[arg-type]
        assert catalog.db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        catalog.ledger_add([LedgerRow(outcome="ok")])
        assert catalog.ledger_count() == 1
    assert len(lines.said) == 1
    assert "a network drive can't hold a write-ahead log" in lines.said[0]


def test_this_disk_is_no_network_drive(tmp_path: Path) -> None:
    assert not database.on_network(tmp_path)


# ---------------------------------------------------------------------- contents and facts


def test_contents_are_hashed_once_and_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edkit.data import catalog as module

    read: list[str] = []
    real = module.sha256_of

    def counted(path: str | Path) -> str:
        read.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(module, "sha256_of", counted)
    a, b = put(tmp_path / "a.jpg", b"same"), put(tmp_path / "b.jpg", b"same")
    with Catalog.open(tmp_path) as catalog:
        ids = catalog.content_ids([a, b, tmp_path / "none.jpg"])
        assert ids[a] == ids[b] == "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"
        assert isinstance(ids[tmp_path / "none.jpg"], Unreadable)
    assert sorted(read) == ["a.jpg", "b.jpg"]
    with Catalog.open(tmp_path) as catalog:
        assert catalog.content_ids([a, b]) == {a: ids[a], b: ids[b]}
        assert len(read) == 2
        put(b, b"more")
        os.utime(b, (1.6e9 + 1, 1.6e9 + 1))
        assert catalog.content_ids([a, b])[b] != ids[b]
        assert read[2:] == ["b.jpg"]
        # edkit's own renames cost no second look
        apply(catalog, [Move(a, b), Move(b, a)], verb="swap")
        assert catalog.content_ids([b])[b] == ids[a]
        assert len(read) == 3


def test_a_file_written_just_now_is_read_again(tmp_path: Path) -> None:
    a = tmp_path / "a.jpg"
    with Catalog.open(tmp_path) as catalog:
        a.write_bytes(b"1")
        now = a.stat()
        first = catalog.content_ids([a])[a]
        # within one tick of the file system's clock: same size, same time, other bytes
        a.write_bytes(b"2")
        os.utime(a, ns=(now.st_atime_ns, now.st_mtime_ns))
        assert catalog.content_ids([a])[a] != first


def test_facts_belong_to_contents_and_keep_their_types(tmp_path: Path) -> None:
    one, two = "ab" * 32, "cd" * 32
    with Catalog.open(tmp_path) as catalog:
        catalog.put_facts(
            [(one, "width", 3), (one, "score/2", 0.1), (one, "phash/1", b"\x00\xff"), (one, "format", "JPEG")]
        )
        catalog.put_facts([(two, "broken", None), (one, "width", 4), ("a caption of " + one, "tokens/1", 7)])
    with Catalog.open(tmp_path, write=False) as catalog:
        names = ["width", "score/2", "phash/1", "format", "broken", "tokens/1"]
        assert catalog.facts([one, two, "ef" * 32, "a caption of " + one], names) == {
            one: {"width": 4, "score/2": 0.1, "phash/1": b"\x00\xff", "format": "JPEG"},
            two: {"broken": None},
            "a caption of " + one: {"tokens/1": 7},
        }
        assert catalog.facts([one], ["width"]) == {one: {"width": 4}}


def test_facts_of_thousands_are_asked_for_at_once(tmp_path: Path) -> None:
    ids = [f"{i:064x}" for i in range(2500)]
    with Catalog.open(tmp_path) as catalog:
        catalog.put_facts((id, "n", i) for i, id in enumerate(ids))
        assert catalog.facts(ids, ["n"]) == {id: {"n": i} for i, id in enumerate(ids)}


def test_cached_values_end_with_the_file_they_were_made_of(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a.jpg", b"1"), put(tmp_path / "b.jpg", b"1")
    with Catalog.open(tmp_path) as catalog:
        catalog.put_cached_many("header", {a: [3, 4], b: b"raw"})
        catalog.put_cached("caption", a, "a dog")
        assert catalog.cached_many("header", [a, b, tmp_path / "c.jpg"]) == {a: [3, 4], b: b"raw"}
        apply(catalog, [Move(a, tmp_path / "x.jpg")], verb="rename")
        assert catalog.cached("caption", tmp_path / "x.jpg") == "a dog"
        b.write_bytes(b"22")
        assert catalog.cached("header", b) is None


def test_threads_share_a_catalog(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:

        def work(n: int) -> None:
            for i in range(20):
                catalog.ledger_add([LedgerRow(outcome="ok", url=f"http://h/{n}/{i}")])
                catalog.put_facts([(f"{n:02x}" * 32, f"f{i}", i)])

        threads = [threading.Thread(target=work, args=[n]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert catalog.ledger_count() == 80
        assert len(catalog.facts(["03" * 32], [f"f{i}" for i in range(20)])["03" * 32]) == 20


# ---------------------------------------------------------------------- ledger


def test_the_ledger_keeps_every_field_and_finds_by_any(tmp_path: Path) -> None:
    row = LedgerRow(
        outcome="ok",
        url="http://h/a.jpg",
        final_url="http://h/b.jpg",
        time=1.7e9,
        http_status=200,
        sha256="ab" * 32,
        num_bytes=12,
        width=3,
        height=4,
        caption="ein Hund, \U0001f436",
        licence="CC0",
        author="A",
        source="t.parquet",
        row=7,
        path=tmp_path / "sub/a.jpg",
        query="q1",
        extra={"phash": "00ff"},
        who="me@here",
    )
    with Catalog.open(tmp_path) as catalog:
        catalog.ledger_add([row, LedgerRow(outcome="dead-link", url="http://h/\udce9", query="q1")])
        assert list(catalog.ledger(path=tmp_path / "sub/a.jpg")) == [row]
        assert list(catalog.ledger(url="http://h/a.jpg", query="q1")) == [row]
        assert catalog.ledger_count(query="q1") == 2
        assert catalog.ledger_count(query="q1", outcome="ok") == 1
        dead = next(catalog.ledger(outcome="dead-link"))
        assert dead.who == catalog.who
        assert dead.time is not None
    moved = tmp_path.parent / (tmp_path.name + " moved")
    tmp_path.rename(moved)
    with Catalog.open(moved, write=False) as catalog:
        assert next(catalog.ledger(sha256="ab" * 32)).path == moved / "sub/a.jpg"
