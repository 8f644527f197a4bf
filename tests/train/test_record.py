"""The list of images beside a model reads back as it was, and says when it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edkit.data.dataset import read
from edkit.data.errors import BadInput
from edkit.train.record import DATASET_FILE, Entry, Record, entries_of, read_record

TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
ENTRIES = st.builds(
    Entry,
    key=TEXT,
    content=st.text("0123456789abcdef", min_size=64, max_size=64),
    caption=TEXT,
    tags=st.lists(st.tuples(TEXT, st.floats(0, 9)), max_size=2).map(tuple),
    options=st.sampled_from([{}, {"multiply": 0.5}, {"flip_p": 0.5, "batch_id": "x"}]),
    role=st.sampled_from(["train", "held_out", "left_out"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, max_size=6).map(tuple))
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, entries: tuple[Entry, ...]) -> None:
    record = Record(entries=entries, reading={"caption_fallback": None, "flip_p": 0.0})
    path = tmp_path_factory.mktemp("record") / DATASET_FILE
    path.write_bytes(record.file())
    again = read_record(path)
    assert again == record and again.root_hash == record.root_hash
    assert again.held_out() == {e.content: e.key for e in entries if e.role == "held_out"}


def test_the_root_hash_is_of_names_contents_captions_and_options() -> None:
    one = Entry(key="a.png", content="0" * 64, caption="a", tags=(), options={"multiply": 1.0}, role="train")
    two = replace(one, key="b.png")
    first = Record(entries=(one, two), reading={})
    assert first.root_hash == Record(entries=(two, one), reading={"flip_p": 1}).root_hash
    assert first.root_hash == Record(entries=(one, replace(two, role="held_out")), reading={}).root_hash
    others = [replace(one, key="c"), replace(one, content="1" * 64), replace(one, caption="b")]
    others += [replace(one, options={}), replace(one, tags=(("wet", 1.0),))]
    hashes = {Record(entries=(other, two), reading={}).root_hash for other in others}
    assert len(hashes) == 5 and first.root_hash not in hashes


def test_a_folder_becomes_a_line_an_image(pictures: Path) -> None:
    (pictures / "multiply.txt").write_text("0.50", "utf-8")
    (pictures / "red paint_(0).yaml").write_text("main_prompt: rex\ntags: [wet, {tag: brown, weight: 2}]", "utf-8")
    dataset = read(pictures)
    ids = {path: f"{i:064x}" for i, path in enumerate(dataset.paths)}
    record = Record(entries=tuple(entries_of(dataset, ids, "train")), reading={})
    head, *lines = map(json.loads, record.file().decode("utf-8").splitlines())
    assert len(lines) == 8 and head["root_hash"] == record.root_hash and head["options"][0]["multiply"] == 0.5
    (rex,) = [line for line in lines if line["key"] == "red paint_(0).png"]
    assert rex["caption"] == "rex" and rex["tags"] == [["wet", 1.0], ["brown", 2.0]]


def test_a_damaged_list_is_told_by_line(tmp_path: Path) -> None:
    entry = Entry(key="a.png", content="0" * 64, caption="a", tags=(), options={}, role="train")
    good = Record(entries=(entry, replace(entry, key="b.png")), reading={}).file().decode()
    path = tmp_path / DATASET_FILE
    for text, said in [
        ("", "is no list of images"),
        ("[]", "is no list of images"),
        (good.replace('"key": "b.png"', '"kye": "b.png"'), r"jsonl:3: is damaged"),
        (good[:-9], r"jsonl:3: is damaged"),
        (good.replace('"b.png"', '"c.png"'), "not those it was written with"),
    ]:
        path.write_text(text, "utf-8")
        with pytest.raises(BadInput, match=said):
            read_record(path)
    with pytest.raises(BadInput, match="can't be read"):
        read_record(tmp_path / "nowhere")
