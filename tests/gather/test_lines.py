"""Text tables that break every rule: nothing is lost without being counted, and nothing breaks."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edkit.data.errors import BadInput
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.laion import Filters, candidates
from edkit.gather.lines import split
from edkit.gather.tables import open_table


def found(path: Path, **filters: object) -> tuple[list[Candidate], Funnel]:
    funnel = Funnel()
    some = candidates([open_table(path)], Filters(**filters), funnel)  # type: ignore[arg-type]
    return [c for part in some for c in part], funnel


@given(
    st.lists(st.lists(st.text(alphabet='ab",\n;é', max_size=6), min_size=2, max_size=2), max_size=30),
    st.integers(min_value=1, max_value=40),
)
@settings(max_examples=150, deadline=None)
def test_blocks_end_where_records_do(rows: list[list[str]], size: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    data = out.getvalue().encode()
    blocks = list(split(io.BytesIO(data), quoted=True, size=size))
    assert b"".join(block.data for block in blocks) == data and not any(block.num_broken for block in blocks)
    read = [row for block in blocks for row in csv.reader(io.StringIO(block.data.decode(), newline=""))]
    assert read == rows


@given(st.binary(max_size=400), st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]))
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, junk: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("junk") / name
    start = {
        "t.csv": b"url,text\nhttp://e.org/1,dog\n",
        "t.tsv": b"url\ttext\nhttp://e.org/1\tdog\n",
        "t.jsonl": b'{"url": "http://e.org/1", "text": "dog"}\n',
    }[name]
    path.write_bytes(start + junk)
    some, funnel = found(path)
    assert some[0].url == "http://e.org/1"
    assert funnel.rows == funnel.left + sum(funnel.dropped.values())


def test_ragged_lines_and_broken_text_are_counted_and_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"url,text,width\nhttp://e.org/0,dog,5\nhttp://e.org/1,too,many,cells\nhttp://e.org/2\n"
        b"http://e.org/3,\xff\xfe,5\nhttp://e.org/4,n\x00ul,wide\n\xff,\xff\nhttp://e.org/6,cat,7\n"
    )
    some, funnel = found(path)
    assert [(c.row, c.caption, c.width) for c in some] == [(0, "dog", 5), (4, "nul", 0), (6, "cat", 7)]
    assert funnel.dropped == {"unreadable line": 3, "text that is not UTF-8": 1} and funnel.rows == 7


def test_a_number_that_turns_into_text_late_is_unknown_and_breaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"http://e.org/{i},dog,{i + 1},600" for i in range(60_000)]
    rows[59_000] = "http://e.org/59000,dog,n/a,600"
    path.write_text("url,text,width,height\n" + "\n".join(rows), encoding="utf-8")
    some, _ = found(path, min_size=550)
    assert len(some) == 60_000 - 549 and [c.width for c in some if c.row == 59_000] == [0]


def test_a_quote_that_never_ends_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('url,text\nhttp://e.org/0,a\nhttp://e.org/1,"open\nhttp://e.org/2,b\nhttp://e.org/3,c\n')
    some, funnel = found(path)
    assert [c.row for c in some] == [0, 2, 3] and funnel.dropped == {"unreadable line": 1}


def test_a_cell_of_ten_megabytes_is_read_and_one_too_long_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"url,text\nhttp://e.org/0,a\nhttp://e.org/1,{'x' * 10_000_000}\nhttp://e.org/2,b\n")
    assert [len(c.caption) for c in found(path)[0]] == [1, 10_000_000, 1]
    monkeypatch.setattr("edkit.gather.lines.MAX_LINE_BYTES", 5_000_000)
    some, funnel = found(path)
    assert [c.row for c in some] == [0, 2] and funnel.dropped == {"unreadable line": 1}


def test_json_lines_of_other_kinds_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"url": "http://e.org/0", "text": "a", "width": 640, "id": 5}\n{"url": "http://e.org/1", "text": 7, '
        '"width": "320", "id": 6}\nnot json\n[1]\n{"url": "http://e.org/4", "text": "\\ud800"}\n'
        '{"url": "http://e.org/5", "text": "b", "width": {"x": 1}}\n'
    )
    some, funnel = found(path)
    assert [(c.row, c.caption, c.width, c.key) for c in some] == [
        (0, "a", 640, "5"),
        (1, "7", 320, "6"),
        (5, "b", 0, ""),
    ]
    assert funnel.dropped == {"unreadable line": 3} and funnel.rows == 6


def test_a_packed_table_that_is_cut_short_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    rows = "".join(f"http://e.org/{i * 7919},dog {i * 31 % 977}\n" for i in range(200_000))
    whole = gzip.compress(f"url,text\n{rows}".encode())
    path.write_bytes(whole)
    assert len(found(path)[0]) == 200_000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"t\.csv\.gz: broke off"):
        found(path)


def test_utf_16_is_refused_with_a_mend(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("url,text\nhttp://e.org/0,a\n", encoding="utf-16")
    with pytest.raises(BadInput, match=r"is in UTF-16 .*UTF-8"):
        open_table(path)
