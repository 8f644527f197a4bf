"""The journal against a real disk: applied, undone, killed at every point, and told."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edkit.data import atomic, database, redo
from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import BadInput, NoSpace, StateError, UsageError
from edkit.data.journal import Applied, Change, Move, Trash, Undone, Write, apply, history, undo, why
from edkit.data.trash import contents, empty

Tree = dict[str, tuple[bytes, int] | None]


def tree(root: Path) -> Tree:
    """Every file below a folder with its bytes and time, every folder as None; the state left out."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] == ".edkit":
            continue
        found[name] = None if path.is_dir() else (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def bytes_of(found: Tree) -> dict[str, bytes | None]:
    return {name: value and value[0] for name, value in found.items()}


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote survives it there too."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def root(fast: Path) -> Path:
    folder = fast / "set"
    folder.mkdir()
    for i, name in enumerate("abcdefgh"):
        put(folder / f"{name}.jpg", name.encode() * 100, age=1000 + i)
    put(folder / "twin of g.jpg", b"g" * 100, age=500)
    put(folder / "note.txt", b"old words", age=100)
    return folder


def put(path: Path, data: bytes, age: float = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1.7e9 - age, 1.7e9 - age))


def do(root: Path, *changes: Change, verb: str = "tidy", dry_run: bool = False) -> Applied:
    with Catalog.open(root, command="edkit tidy", write=not dry_run) as catalog:
        return apply(catalog, changes, verb=verb, dry_run=dry_run)


def everything(root: Path) -> list[Change]:
    """One of each trouble: ring, chain, case, twins, vacated names, new folders, overwriting."""
    return [
        Move(root / "a.jpg", root / "b.jpg"),
        Move(root / "b.jpg", root / "c.jpg"),
        Move(root / "c.jpg", root / "a.jpg"),
        Move(root / "d.jpg", root / "D.jpg"),
        Move(root / "e.jpg", root / "f.jpg"),
        Move(root / "f.jpg", root / "deep/er/f.jpg", "it belongs there"),
        Trash(root / "g.jpg", "near-duplicate", facts={"distance": 3}),
        Trash(root / "twin of g.jpg", "exact duplicate"),
        Write(root / "g.jpg", b"a new file under a vacated name"),
        Write(root / "e.jpg", b"another"),
        Write(root / "note.txt", b"new words"),
        Write(root / "deep/multiply.txt", b"0.5"),
        Write(root / "deep/er/f.txt", b"a fifth write: prepared in threads"),
    ]


# ---------------------------------------------------------------------- apply


def test_all_changes_are_meant_of_the_tree_before(root: Path) -> None:
    applied = do(root, *everything(root))
    assert applied.num_done == 13
    assert not applied.skipped
    after = {name: data[:1] for name, data in bytes_of(tree(root)).items() if data is not None}
    assert after == {
        "a.jpg": b"c",
        "b.jpg": b"a",
        "c.jpg": b"b",
        "D.jpg": b"d",
        "f.jpg": b"e",
        "deep/er/f.jpg": b"f",
        "g.jpg": b"a",
        "e.jpg": b"a",
        "h.jpg": b"h",
        "note.txt": b"n",
        "deep/multiply.txt": b"0",
        "deep/er/f.txt": b"a",
    }


def test_undo_brings_back_every_byte_time_and_folder(root: Path) -> None:
    before = tree(root)
    do(root, *everything(root))
    undone = undo(root)
    assert undone.num_done == 13
    assert not undone.left
    assert tree(root) == before


def test_a_dry_run_changes_nothing_and_makes_no_state(root: Path) -> None:
    before = tree(root)
    applied = do(root, *everything(root), dry_run=True)
    assert applied == Applied(operation=None, num_done=13, skipped=[])
    assert tree(root) == before
    assert not (root / ".edkit").exists()


def test_what_changes_nothing_leaves_no_trace(root: Path) -> None:
    applied = do(root, Move(root / "a.jpg", root / "a.jpg"), Write(root / "note.txt", b"old words"))
    assert applied == Applied(operation=None, num_done=0, skipped=[])
    assert history(root) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([("a.jpg", "h.jpg")], "exists already"),
        ([("a.jpg", "x.jpg"), ("b.jpg", "x.jpg")], "two changes name"),
        ([("a.jpg", "x.jpg"), ("a.jpg", "y.jpg")], "two changes name"),
        ([("b.jpg", "y.jpg"), ("a.jpg", "note.txt/x.jpg")], "is a file, not a folder"),
    ],
)
def test_a_clash_is_refused_in_one_line_before_anything_is_done(
    root: Path, changes: list[tuple[str, str]], why: str
) -> None:
    before = tree(root)
    with pytest.raises(BadInput, match=why) as error:
        do(root, *(Move(root / a, root / b) for a, b in changes))
    assert "\n" not in str(error.value)
    assert tree(root) == before
    assert history(root) == []


def test_a_missing_file_is_skipped_and_so_is_who_waits_for_a_name_that_stays(root: Path) -> None:
    (root / "dir.jpg").mkdir()
    applied = do(
        root,
        Move(root / "gone.jpg", root / "x.jpg"),
        Move(root / "dir.jpg", root / "y.jpg"),
        Move(root / "a.jpg", root / "dir.jpg"),
        Move(root / "b.jpg", root / "a.jpg"),
        Move(root / "c.jpg", root / "z.jpg"),
    )
    assert applied.num_done == 1
    reasons = [why for _, why in applied.skipped]
    assert reasons[:2] == ["no such file", "not a file"]
    assert all("exists already" in why for why in reasons[2:])
    assert (root / "z.jpg").exists()
    assert (root / "a.jpg").read_bytes() == b"a" * 100


def test_a_name_taken_behind_the_plans_back_is_never_overwritten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = redo.carry_out

    def late(site: redo.Site, operation: int) -> None:
        (root / "x.jpg").write_bytes(b"a person's")
        (root / "b.jpg").write_bytes(b"changed")
        real(site, operation)

    monkeypatch.setattr(redo, "carry_out", late)
    applied = do(
        root,
        Move(root / "a.jpg", root / "x.jpg"),
        Trash(root / "b.jpg"),
        Move(root / "c.jpg", root / "y.jpg"),
    )
    assert applied.num_done == 1
    assert [why for _, why in applied.skipped] == [f"{root / 'x.jpg'} exists already", "it changed meanwhile"]
    assert (root / "x.jpg").read_bytes() == b"a person's"
    assert (root / "a.jpg").read_bytes() == b"a" * 100
    assert (root / "b.jpg").read_bytes() == b"changed"


def test_no_file_stays_under_a_hidden_name_when_its_new_one_is_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = redo._Worker.run

    def late(self: redo._Worker, phase: int) -> object:
        if phase == 2:
            (root / "b.jpg").write_bytes(b"a person's")
        return real(self, phase)

    monkeypatch.setattr(redo._Worker, "run", late)
    do(root, Move(root / "a.jpg", root / "b.jpg"), Move(root / "b.jpg", root / "a.jpg"))
    found = {data for data in bytes_of(tree(root)).values() if data is not None}
    assert {b"a" * 100, b"b" * 100, b"a person's"} <= found
    assert not [name for name in tree(root) if ".edkit-" in name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_links_move_as_links(root: Path) -> None:
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "other.jpg").symlink_to("a.jpg")
    applied = do(
        root,
        Trash(root / "link.jpg"),
        Move(root / "other.jpg", root / "renamed.jpg"),
        Move(root / "renamed too.jpg", root / "sub/x.jpg"),
    )
    assert applied.num_done == 2
    assert str((root / "renamed.jpg").readlink()) == "a.jpg"
    assert (root / "a.jpg").exists()
    undo(root)
    assert str((root / "link.jpg").readlink()) == "a.jpg"
    assert str((root / "other.jpg").readlink()) == "a.jpg"
    assert do(root, Move(root / "link.jpg", root / "sub/link.jpg")).num_done == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a rename of one of two hard links does nothing on POSIX only")
def test_two_hard_links_to_one_file_are_two_files(root: Path) -> None:
    os.link(root / "a.jpg", root / "a2.jpg")
    before = tree(root)
    do(
        root,
        Move(root / "a.jpg", root / "a2.jpg"),
        Move(root / "a2.jpg", root / "a.jpg"),
        Trash(root / "b.jpg"),
    )
    do(root, Trash(root / "a.jpg"), Trash(root / "a2.jpg"))
    assert "a.jpg" not in tree(root)
    undo(root, to=0)
    assert tree(root) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows names are Unicode")
def test_a_name_that_is_not_unicode_is_renamed_and_undone(root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg"))
    try:
        put(odd, b"odd")
    except OSError:
        pytest.skip("this file system holds Unicode names only")
    before = tree(root)
    do(root, Move(odd, root / "cafe.jpg", reason=f"{odd.name} is no name"))
    assert (root / "cafe.jpg").read_bytes() == b"odd"
    undo(root)
    assert tree(root) == before


def test_a_full_disk_stops_and_the_next_command_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(root)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(redo, "write_synced", full)
        with pytest.raises(NoSpace):
            do(root, Write(root / "note.txt", b"new words"), Move(root / "a.jpg", root / "x.jpg"))
    assert [entry.finished for entry in history(root)] == [False]
    with Catalog.open(root) as catalog:
        assert catalog.recovered == [1]
        assert (root / "note.txt").read_bytes() == b"new words"
    undo(root)
    assert tree(root) == before


def test_a_reader_can_not_apply(root: Path) -> None:
    with Catalog.open(root, write=False) as catalog, pytest.raises(StateError, match="opened for reading"):
        apply(catalog, [Trash(root / "a.jpg")], verb="x")


# ---------------------------------------------------------------------- undo


def test_undo_goes_backwards_one_operation_at_a_time(root: Path) -> None:
    states = [tree(root)]
    do(root, Move(root / "a.jpg", root / "x.jpg"))
    states.append(tree(root))
    do(root, Move(root / "x.jpg", root / "y.jpg"), Trash(root / "b.jpg"))
    assert undo(root).operations == [2]
    assert tree(root) == states[1]
    assert undo(root).operations == [1]
    assert tree(root) == states[0]
    assert undo(root).operations == []


def test_undo_to_n_is_the_state_after_n(root: Path) -> None:
    states = [tree(root)]
    for i in range(1, 5):
        do(
            root,
            Move(root / ("a.jpg" if i == 1 else f"{i - 1}.jpg"), root / f"{i}.jpg"),
            Write(root / "n", b"%d" % i),
        )
        states.append(tree(root))
    undo(root, to=2)
    assert bytes_of(tree(root)) == bytes_of(states[2])
    do(root, Write(root / "n", b"anew"))  # operation 7, after the undos 5 and 6
    with pytest.raises(UsageError, match="operation 3 stood then and was undone since"):
        undo(root, to=3)
    with pytest.raises(UsageError, match="no operation 99"):
        undo(root, to=99)
    undo(root, to=5 + 1)
    assert bytes_of(tree(root)) == bytes_of(states[2])
    undo(root, to=0)
    assert tree(root) == states[0]


def test_a_dry_run_of_a_long_undo_foresees_each_step(root: Path) -> None:
    do(root, Move(root / "a.jpg", root / "x.jpg"), Trash(root / "g.jpg"))
    do(
        root,
        Move(root / "x.jpg", root / "y.jpg"),
        Write(root / "note.txt", b"1"),
        Move(root / "h.jpg", root / "g.jpg"),
    )
    do(root, Trash(root / "y.jpg"), Write(root / "note.txt", b"2"))
    before, entries = tree(root), history(root)
    foreseen = undo(root, to=0, dry_run=True)
    assert (tree(root), history(root)) == (before, entries)
    done = undo(root, to=0)
    assert foreseen == done == Undone(operations=[3, 2, 1], num_done=7, changes=foreseen.changes, left=[])


def test_what_a_person_changed_since_is_left_and_named(root: Path) -> None:
    do(
        root,
        Move(root / "a.jpg", root / "x.jpg"),
        Move(root / "b.jpg", root / "y.jpg"),
        Trash(root / "c.jpg"),
        Write(root / "note.txt", b"new words"),
        Write(root / "fresh.txt", b"fresh"),
        Move(root / "d.jpg", root / "z.jpg"),
    )
    (root / "x.jpg").write_bytes(b"edited")
    (root / "y.jpg").unlink()
    (root / "c.jpg").write_bytes(b"a new c")
    (root / "note.txt").write_bytes(b"a person's words")
    (root / "fresh.txt").write_bytes(b"a person's fresh words")
    undone = undo(root)
    assert undone.num_done == 1
    assert dict(undone.left) == {
        root / "x.jpg": "it was changed since",
        root / "y.jpg": "it is gone",
        root / "c.jpg": f"{root / 'c.jpg'} exists already",
        root / "note.txt": "it was changed since",
        root / "fresh.txt": "it was changed since",
    }
    assert (root / "d.jpg").exists()
    assert (root / "x.jpg").read_bytes() == b"edited"
    assert (root / "c.jpg").read_bytes() == b"a new c"
    assert (root / "note.txt").read_bytes() == b"a person's words"


def test_what_was_left_gets_a_second_chance(root: Path) -> None:
    before = tree(root)
    do(root, Trash(root / "c.jpg"), Move(root / "a.jpg", root / "new/x.jpg"))
    (root / "c.jpg").write_bytes(b"in the way")
    assert len(undo(root).left) == 1
    (root / "c.jpg").unlink()
    assert undo(root).operations == []
    assert undo(root, to=0).num_done == 1
    assert tree(root) == before
    assert undo(root, to=0).operations == []


def test_a_file_touched_but_not_changed_is_undone_where_its_content_is_known(root: Path) -> None:
    with Catalog.open(root) as catalog:
        catalog.content_ids([root / "a.jpg"])
        apply(catalog, [Move(root / "a.jpg", root / "x.jpg"), Move(root / "b.jpg", root / "y.jpg")], verb="x")
    for name in ("x.jpg", "y.jpg"):
        os.utime(root / name)
    undone = undo(root)
    assert (root / "a.jpg").exists()
    assert undone.left == [(root / "y.jpg", "it was changed since")]


def test_the_set_and_its_state_can_be_moved_together(root: Path) -> None:
    before = tree(root)
    do(root, *everything(root))
    elsewhere = root.parent / "moved"
    root.rename(elsewhere)
    undo(elsewhere)
    assert tree(elsewhere) == before


def test_the_state_can_be_kept_elsewhere(root: Path, tmp_path: Path) -> None:
    before, state = tree(root), tmp_path / "state of set"
    with Catalog.open(root, state_dir=state) as catalog:
        apply(catalog, everything(root), verb="tidy")
    assert not (root / ".edkit").exists()
    undo(root, state_dir=state)
    assert tree(root) == before


def test_the_trash_may_be_on_another_volume(root: Path, tmp_path: Path) -> None:
    if tmp_path.stat().st_dev == root.stat().st_dev:
        pytest.skip("no second volume here")
    state = tmp_path / "state"
    before = tree(root)
    with Catalog.open(root, state_dir=state) as catalog:
        apply(catalog, [*everything(root), Move(root / "h.jpg", state / "cache/h.jpg")], verb="tidy")
    assert (state / "cache/h.jpg").read_bytes() == b"h" * 100
    assert not (root / "h.jpg").exists()
    undo(root, state_dir=state)
    assert tree(root) == before


# ---------------------------------------------------------------------- trash


def test_the_trash_holds_no_name_with_an_ending_and_tells_what_it_holds(root: Path) -> None:
    do(root, Trash(root / "g.jpg", "blurred"), Trash(root / "h.jpg", "tiny"))
    files = [path for path in (root / ".edkit/trash").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.suffix == "" and path.parent.name == path.name[:2] for path in files)
    listed = contents(root)
    assert {(item.was, item.reason, item.undoable) for item in listed.items} == {
        (root / "g.jpg", "blurred", True),
        (root / "h.jpg", "tiny", True),
    }
    assert listed.num_bytes == 200


def test_undo_takes_its_files_out_of_the_trash_but_not_those_others_need(root: Path) -> None:
    do(root, Trash(root / "g.jpg"))
    do(root, Trash(root / "twin of g.jpg"))
    undo(root)
    assert len(contents(root).items) == 1
    undo(root)
    assert contents(root).items == []


def test_emptying_is_told_and_an_undo_says_what_it_lost(root: Path) -> None:
    do(root, Trash(root / "g.jpg"), Move(root / "a.jpg", root / "x.jpg"))
    assert empty(root, dry_run=True).num_files == 1
    assert len(contents(root).items) == 1
    emptied = empty(root)
    assert (emptied.num_files, emptied.num_bytes, emptied.num_undoable) == (1, 100, 1)
    assert contents(root).items == []
    assert [entry.verb for entry in history(root)] == ["tidy", "trash empty"]
    undone = undo(root)
    assert undone.operations == [1]
    assert undone.left == [(root / "g.jpg", "its content is no longer in the trash")]
    assert (root / "a.jpg").exists()


# ---------------------------------------------------------------------- the story


def test_history_tells_who_did_what_and_what_became_of_it(root: Path) -> None:
    do(root, Trash(root / "g.jpg"), verb="dedupe")
    undo(root, command="edkit undo set")
    first, second = history(root)
    assert (first.id, first.verb, first.command, first.undone_by) == (1, "dedupe", "edkit tidy", 2)
    assert (second.verb, second.command, second.undoes, second.num_done) == ("undo", "edkit undo set", 1, 1)
    assert first.pid == os.getpid()
    assert "@" in first.who
    assert abs(first.time - second.time) < 60


def test_why_follows_a_file_through_its_names_and_to_its_source(root: Path) -> None:
    with Catalog.open(root) as catalog:
        sha = catalog.content_ids([root / "a.jpg"])[root / "a.jpg"]
        row = LedgerRow(
            outcome="ok",
            url="http://h/a.jpg",
            source="t.parquet",
            row=7,
            sha256=sha,
            caption="a dog",
            path=root / "a.jpg",
        )
        catalog.ledger_add([row])
        apply(catalog, [Move(root / "a.jpg", root / "dog_(1).jpg", "its caption")], verb="rename-captions")
        apply(
            catalog,
            [Move(root / "dog_(1).jpg", root / "sub/dog.jpg"), Move(root / "b.jpg", root / "dog_(1).jpg")],
            verb="sort",
        )
        apply(
            catalog,
            [Trash(root / "sub/dog.jpg", "near-duplicate of b.jpg", facts={"distance": 3})],
            verb="dedupe",
        )
    told = why(root / "sub/dog.jpg")
    text = "\n".join(told.sentences)
    assert not told.exists
    assert [d.verb for d in told.decisions] == ["rename-captions", "sort", "dedupe"]
    assert "fetched from http://h/a.jpg (t.parquet, row 7)" in text
    assert 'caption "a dog"' in text
    assert "moved to the trash: near-duplicate of b.jpg (distance 3)" in text
    assert why(root / "a.jpg").decisions == told.decisions
    # the name was given to another file since
    assert [d.step.path.name for d in why(root / "dog_(1).jpg").decisions] == ["b.jpg"]
    # a copy of the trashed file tells of it by content
    put(root / "found again.jpg", b"a" * 100)
    again = why(root / "found again.jpg")
    assert again.ledger
    assert any(d.by_content and d.step.what == "trash" for d in again.decisions)
    assert why(root / "never.jpg").sentences == ["edkit did not fetch, move or write never.jpg, and it does not exist."]


# ---------------------------------------------------------------------- killed


class Counting(sqlite3.Connection):
    """Tells of every transaction's beginning, of its end before it is on the disk, and after."""

    tell: Callable[[], None]

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql in ("BEGIN IMMEDIATE", "COMMIT"):
            type(self).tell()
        cursor = super().execute(sql, *args)
        if sql == "COMMIT":
            type(self).tell()
        return cursor


def in_child(work: Callable[[], object], deadly: int) -> int | None:
    """Run `work` in a process that is killed -9 just before its n-th call that changes a disk or a database.

    Returns None where it was killed, else how many such calls it made.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            calls, one_at_a_time = 0, threading.Lock()

            def tell() -> None:
                nonlocal calls
                with one_at_a_time:
                    calls += 1
                    if calls == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)

            def watch(module: Any, name: str) -> None:
                real = getattr(module, name)

                def call(*args: Any, **kwargs: Any) -> Any:
                    tell()
                    return real(*args, **kwargs)

                setattr(module, name, call)

            for name in (
                "rename",
                "replace",
                "unlink",
                "link",
                "symlink",
                "makedirs",
                "rmdir",
                "fsync",
                "utime",
            ):
                watch(os, name)
            rename, connect = atomic._exclusive_rename(), sqlite3.connect

            def exclusive(src: bytes, dst: bytes) -> int:
                tell()
                assert rename is not None
                return rename(src, dst)

            if rename is not None:
                atomic._exclusive_rename = lambda: exclusive  # type: ignore[assignment]
            Counting.tell = tell
            database.sqlite3.connect = lambda *a, **k: connect(*a, factory=Counting, **k)  # type: ignore
            work()
            os.write(writes, str(calls).encode())
            os._exit(0)
        finally:  # an error in the child must not run the rest of the tests there
            traceback.print_exc()
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0
    return int(said)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="counts calls in a forked process")


def finish(root: Path) -> None:
    Catalog.open(root).close()


@needs_fork
def test_killed_at_any_call_of_apply_it_is_finished_or_was_never_begun_and_can_be_undone(
    root: Path, fast: Path
) -> None:
    def tidy(at: Path) -> Callable[[], object]:
        return lambda: do(at, *everything(at))

    before = tree(root)
    shutil.copytree(root, fast / "whole")
    num_calls = in_child(tidy(fast / "whole"), 0)
    after = bytes_of(tree(fast / "whole"))
    assert num_calls is not None
    assert num_calls > 60
    begun = 0
    for n in range(1, num_calls + 1):
        at = fast / str(n)
        shutil.copytree(root, at)
        assert in_child(tidy(at), n) is None, f"call {n} was not reached"
        # the recovery is killed too, somewhere
        in_child(lambda at=at: finish(at), 1 + n * 7 % 23)
        finish(at)
        if history(at):
            begun += 1
            assert bytes_of(tree(at)) == after, f"killed at call {n}"
        else:
            assert tree(at) == before, f"killed at call {n}"
            do(at, *everything(at))  # run again
            assert bytes_of(tree(at)) == after
        assert undo(at).left == []
        assert tree(at) == before, f"killed at call {n}"
        assert not [name for name in tree(at) if ".edkit-" in name]
        shutil.rmtree(at)
    assert 20 < begun < num_calls


@needs_fork
def test_killed_at_any_call_of_undo_it_is_finished_or_can_be_run_again(root: Path, fast: Path) -> None:
    before = tree(root)
    shutil.copytree(root, fast / "done")
    do(fast / "done", *everything(fast / "done"))
    shutil.copytree(fast / "done", fast / "whole")
    num_calls = in_child(lambda: undo(fast / "whole"), 0)
    assert num_calls is not None
    assert num_calls > 60
    for n in range(1, num_calls + 1):
        at = fast / str(n)
        shutil.copytree(fast / "done", at)
        assert in_child(lambda at=at: undo(at), n) is None, f"call {n} was not reached"
        in_child(lambda at=at: finish(at), 1 + n * 5 % 19)
        finish(at)
        if len(history(at)) == 1:
            undo(at)
        assert tree(at) == before, f"killed at call {n}"
        assert [entry.undone_by for entry in history(at)] == [2, None]
        shutil.rmtree(at)


def test_a_process_killed_by_the_clock_is_finished_by_the_next(root: Path) -> None:
    for i in range(300):
        put(root / f"{i}.png", b"%d" % i)
    before = tree(root)
    script = """
import sys
from pathlib import Path
from edkit.data.catalog import Catalog
from edkit.data.journal import Move, Trash, Write, apply
root = Path(sys.argv[1])
with Catalog.open(root) as catalog:
    print("open", flush=True)
    files = sorted(root.glob("*.png"))
    swaps = [Move(file, files[i ^ 1]) for i, file in enumerate(files[:200])]
    rest = [change for file in files[200:] for change in (Trash(file), Write(file.with_suffix(".txt"), b"x"))]
    apply(catalog, [*swaps, *rest], verb="shuffle")
"""
    for delay in (0.02, 0.06, 0.12, 0.25):
        child = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        finish(root)  # its lock died with it
        undo(root, to=0)
        assert tree(root) == before


# ---------------------------------------------------------------------- any sequence at all

NAMES = ["a", "b", "c", "A", "sub/a", "sub/b", "sub/deeper/c"]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, str, str, bytes]]:
    one = st.tuples(
        st.sampled_from(["move", "trash", "write", "person"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.sampled_from([b"", b"1", b"22"]),
    )
    return draw(st.lists(one, min_size=1, max_size=6))


def as_changes(root: Path, batch: list[tuple[str, str, str, bytes]]) -> list[Change]:
    made: list[Change] = []
    for what, name, other, data in batch:
        if what == "move":
            made.append(Move(root / name, root / other))
        elif what == "trash":
            made.append(Trash(root / name))
        else:
            made.append(Write(root / name, data))
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps(), min_size=1, max_size=5), st.sets(st.sampled_from(NAMES)))
def test_any_sequence_of_operations_undone_is_the_tree_it_began_with(
    fast: Path, batches: list[list[tuple[str, str, str, bytes]]], present: set[str]
) -> None:
    root = Path(tempfile.mkdtemp(dir=fast))
    for i, name in enumerate(sorted(present)):
        put(root / name, name.encode() * (i % 3))
    states = [tree(root)]
    with Catalog.open(root) as catalog:
        for batch in batches:
            try:
                applied = apply(catalog, as_changes(root, batch), verb="any")
            except BadInput:
                assert tree(root) == states[-1]
                continue
            if applied.operation is None:
                assert tree(root) == states[-1]
            else:
                states.append(tree(root))
        for back in range(len(states) - 2, -1, -1):
            assert undo(catalog).left == []
            assert bytes_of(tree(root)) == bytes_of(states[back])
    assert tree(root) == states[0]
    assert all(not item.undoable for item in contents(root).items)
    shutil.rmtree(root)
