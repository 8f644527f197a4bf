"""Tables of every kind: columns are found by name, rows stream in order, text is read where numbers pass."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edkit.data.errors import BadInput, UsageError
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.laion import Filters, candidates, check_columns, licence_name
from edkit.gather.tables import locate, open_table


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def matches(paths: list[Path], filters: Filters | None = None, **kw: object) -> tuple[list[Candidate], Funnel]:
    funnel = Funnel()
    columns = kw.pop("columns", None)
    tables = [open_table(path, columns=columns) for path in paths]  # type: ignore[arg-type]
    found = candidates(tables, filters or Filters(), funnel, **kw)  # type: ignore[arg-type]
    return [c for some in found for c in some], funnel


def captions(path: Path, **filters: object) -> list[str]:
    return [c.caption for c in matches([path], Filters(**filters))[0]]  # type: ignore[arg-type]


def captioned(tmp_path: Path, *texts: str | None) -> Path:
    return write(
        tmp_path / "t.parquet",
        URL=[f"http://e.org/{i}" for i in range(len(texts))],
        TEXT=pa.array(texts, pa.string()),
    )


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("URL", "TEXT", "WIDTH", "punsafe"), {"url": "URL", "caption": "TEXT", "unsafe": "punsafe"}),
        (("url", "caption", "license"), {"url": "url", "caption": "caption", "licence": "license"}),
        (("image_url", "alt_text", "NSFW"), {"url": "image_url", "caption": "alt_text", "unsafe": "NSFW"}),
        (("photo_image_url", "photo_description", "photo_width"), {"width": "photo_width"}),
        (("OriginalURL", "txt", "License", "Author"), {"url": "OriginalURL", "author": "Author"}),
        (("uid", "url", "text", "original_width", "width"), {"width": "original_width", "key": "uid"}),
        (
            ("Url", "Top_Caption", "AESTHETIC_SCORE"),
            {"caption": "Top_Caption", "aesthetic": "AESTHETIC_SCORE"},
        ),
    ],
)
def test_columns_are_found_by_name_in_any_case(tmp_path: Path, names: tuple[str, ...], found: dict[str, str]) -> None:
    table = open_table(write(tmp_path / "t.parquet", **{name: ["x"] for name in names}))
    assert found.items() <= table.columns.items()


def test_laions_integer_hash_is_no_checksum_but_pd12ms_text_one_is(tmp_path: Path) -> None:
    assert "checksum" not in open_table(write(tmp_path / "a.parquet", URL=["u"], TEXT=["t"], hash=[1])).columns
    assert open_table(write(tmp_path / "b.parquet", url=["u"], text=["t"], hash=["0f" * 16])).columns["checksum"]


def test_named_columns_override_and_a_wrong_name_lists_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", link=["http://e.org/1"], alt=["a dog"])
    found, _ = matches([path], columns={"url": "link", "caption": "ALT"})
    assert [(c.url, c.caption) for c in found] == [("http://e.org/1", "a dog")]
    with pytest.raises(BadInput, match=r"'nope'.*link, alt"):
        open_table(path, columns={"url": "nope"})
    with pytest.raises(BadInput, match=r"no column for the url; its columns are link, alt \(--columns url=NAME\)"):
        check_columns(open_table(path), Filters())
    with pytest.raises(UsageError, match="no such role 'picture'"):
        open_table(path, columns={"picture": "link"})


def test_a_score_filter_needs_its_column(tmp_path: Path) -> None:
    table = open_table(captioned(tmp_path, "a dog"))
    with pytest.raises(BadInput, match="aesthetic, which --min-aesthetic needs; its columns are URL, TEXT"):
        check_columns(table, Filters(min_aesthetic=5))


def test_files_folders_and_patterns_are_tables_each_file_once(tmp_path: Path) -> None:
    for name in ("b/2.parquet", "b/1.parquet", "a.parquet", "b/.hidden/3.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, URL=["u"])
    (tmp_path / "b" / "notes.md").write_text("no table")
    found = locate([tmp_path / "a.parquet", tmp_path / "b", str(tmp_path / "*.parquet")])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.parquet", "b/1.parquet", "b/2.parquet"]
    with pytest.raises(UsageError, match="no such table"):
        locate([tmp_path / "c.parquet"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no tables in this folder"):
        locate([tmp_path / "empty"])


ROWS = [
    ("http://e.org/1", "a dog, running", "640"),
    ("http://e.org/2", 'a "cat"', "320"),
    ("http://e.org/3", "ünï", ""),
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "bom.csv"])
def test_text_tables_read_as_parquet_does(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        lines = [{"url": u, "text": t, "width": int(w) if w else None} for u, t, w in ROWS]
        path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    elif kind == "tsv":
        lines = ["url\ttext\twidth", *("\t".join(row) for row in ROWS)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig" if "bom" in kind else "utf-8", newline="") as file:
            csv.writer(file).writerows([("url", "text", "width"), *ROWS])
    found, _ = matches([path])
    assert [(c.url, c.caption, c.row) for c in found] == [(u, t, i) for i, (u, t, _) in enumerate(ROWS)]


def test_two_column_tables_without_a_header_are_read_either_way_round(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text("http://e.org/1\ta dog\nhttp://e.org/2\ta cat\n", encoding="utf-8")
    (tmp_path / "cc3m.tsv").write_text("a cow\thttp://e.org/3\na hen\thttp://e.org/4\n", encoding="utf-8")
    found, _ = matches([tmp_path / "cc12m.tsv", tmp_path / "cc3m.tsv"])
    assert [(c.url[-1], c.caption) for c in found] == [
        ("1", "a dog"),
        ("2", "a cat"),
        ("3", "a cow"),
        ("4", "a hen"),
    ]


def test_a_broken_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(BadInput, match=r"t\.parquet: can't be read as parquet"):
        open_table(tmp_path / "t.parquet")
    whole = write(tmp_path / "u.parquet", URL=[f"http://e.org/{i}" for i in range(50_000)], TEXT=["t"] * 50_000)
    data = bytearray(whole.read_bytes())
    data[1000:90_000] = b"\xff" * 89_000
    whole.write_bytes(data)
    with pytest.raises(BadInput, match="broke off"):
        matches([whole])


def test_two_columns_of_one_name_are_one_line_where_the_name_is_used(tmp_path: Path) -> None:
    columns = [pa.array(["http://e.org/1"]), pa.array(["a dog"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["URL", "TEXT", "x", "x"]), tmp_path / "t.parquet")
    assert captions(tmp_path / "t.parquet") == ["a dog"]
    pq.write_table(pa.Table.from_arrays(columns, names=["URL", "TEXT", "URL", "x"]), tmp_path / "u.parquet")
    with pytest.raises(BadInput, match=r"u\.parquet: has two columns named URL"):
        open_table(tmp_path / "u.parquet")


# ---- filters


def test_words_match_whole_and_in_any_case(tmp_path: Path) -> None:
    path = captioned(tmp_path, "Photo of a MAN", "a woman's photo", "man, photo.", "photography man", "photo_man")
    assert captions(path, search=("photo", "man")) == ["Photo of a MAN", "man, photo.", "photo_man"]
    assert captions(path, search=("photo*", "man")) == [
        "Photo of a MAN",
        "man, photo.",
        "photography man",
        "photo_man",
    ]
    assert captions(path, any=("woman", "photography")) == ["a woman's photo", "photography man"]
    assert captions(path, exclude=("man",)) == ["a woman's photo"]
    assert captions(path, regex=r"^man\b") == ["man, photo."]


def test_words_of_other_scripts_and_phrases_match_whole(tmp_path: Path) -> None:
    path = captioned(tmp_path, "São Paulo à noite", "um SÃO bernardo", "sãozinho", "a red  car", "a red carpet")
    assert captions(path, search=("são",)) == ["São Paulo à noite", "um SÃO bernardo"]
    assert captions(path, search=("red car",)) == ["a red  car"]


def test_numbers_filter_and_higher_punsafe_is_less_safe(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        URL=[f"http://e.org/{i}" for i in range(6)],
        TEXT=["good", "unsafe", "ugly", "small", "long", "no score"],
        WIDTH=pa.array([640, 640, 640, 100, 3000, 640], pa.float64()),
        HEIGHT=pa.array([480, 480, 480, 480, 600, 480], pa.int64()),
        punsafe=pa.array([0.01, 0.9, 0.01, 0.01, 0.01, None], pa.float32()),
        aesthetic=pa.array([6, 6, 3, 6, 6, 6], pa.float32()),
    )
    found, funnel = matches([path], Filters(min_size=256, max_aspect=3, max_unsafe=0.1, min_aesthetic=5))
    assert [c.caption for c in found] == ["good"]
    assert funnel.rows == 6 and funnel.left == 1
    assert funnel.dropped["--min-size 256"] == 1 and funnel.dropped["--max-aspect 3"] == 1
    assert funnel.dropped["--min-aesthetic 5"] == 1
    assert funnel.dropped["--max-unsafe 0.1"] == 2  # a row without a score is not known to be safe


def test_a_row_of_unknown_size_is_left_for_the_fetch_to_judge(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", URL=["http://e.org/1", "http://e.org/2"], TEXT=["a", "b"],
                 WIDTH=pa.array([None, 0], pa.int32()), HEIGHT=pa.array([None, 0], pa.int32()))  # fmt: skip
    found, _ = matches([path], Filters(min_size=512))
    assert [(c.width, c.height) for c in found] == [(0, 0), (0, 0)]


def test_nsfw_words_count_as_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", URL=[f"http://e.org/{i}" for i in range(4)], TEXT=list("abcd"),
                 NSFW=["UNLIKELY", "UNSURE", "NSFW", None])  # fmt: skip
    assert captions(path, max_unsafe=0.2) == ["a"]
    assert captions(path, max_unsafe=0.5) == ["a", "b"]


@pytest.mark.parametrize(
    ("url", "hosts", "dropped"),
    [
        ("https://thumbs.dreamstime.com/z/1.jpg", ("stock",), True),
        ("https://c8.alamy.com/comp/1.jpg", ("alamy",), True),
        ("https://ALAMY.com:443/1.jpg", ("alamy.com",), True),
        ("https://alamy.com.evil.org/1.jpg", ("alamy.com",), False),
        ("https://notalamy.com/1.jpg", ("alamy.com", "alamy"), False),
        ("https://e.org/alamy.com/1.jpg", ("alamy.com", "stock"), False),
        ("https://user@alamy.com/1.jpg", ("alamy.com",), True),
    ],
)
def test_hosts_are_excluded_by_name_not_by_substring(
    tmp_path: Path, url: str, hosts: tuple[str, ...], dropped: bool
) -> None:
    path = write(tmp_path / "t.parquet", URL=[url], TEXT=["a"])
    assert (captions(path, exclude_hosts=hosts) == []) is dropped


def test_an_address_that_is_none_and_a_share_of_too_many_are_wrong_usage(tmp_path: Path) -> None:
    path = captioned(tmp_path, "a dog")
    with pytest.raises(UsageError, match=r"--exclude-hosts http://\[/"):
        captions(path, exclude_hosts=("http://[/",))
    with pytest.raises(UsageError, match="--part"):
        list(candidates([open_table(path)], Filters(), Funnel(), part=(10**24, 10**25)))


def test_licences_match_by_name_or_address(tmp_path: Path) -> None:
    licences = ["http://creativecommons.org/licenses/by/2.0/", "https://creativecommons.org/licenses/by-nc/4.0/",
                "CC0", "https://creativecommons.org/publicdomain/zero/1.0/", "cc-by-4.0", None]  # fmt: skip
    path = write(tmp_path / "t.parquet", URL=[f"http://e.org/{i}" for i in range(6)], TEXT=list("abcdef"),
                 License=licences)  # fmt: skip
    assert captions(path, licences=("cc-by",)) == ["a", "e"]
    assert captions(path, licences=("cc0",)) == ["c", "d"]
    assert captions(path, licences=("cc-by*",)) == ["a", "b", "e"]
    assert licence_name("http://creativecommons.org/licenses/by-nc-sa/2.0/") == "cc-by-nc-sa-2.0"


def test_rows_without_caption_or_url_and_repeated_urls_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", URL=["http://e.org/1", None, "http://e.org/2", " ", "http://e.org/1"],
                 TEXT=["a", "b", None, "d", "e"])  # fmt: skip
    found, funnel = matches([path])
    assert [(c.caption, c.row) for c in found] == [("a", 0)]
    assert funnel.dropped == {"no URL": 2, "no caption": 1, "URL of an earlier row": 1}
    assert [c.caption for c in matches([path], caption="person")[0]] == ["a", "person"]


def test_the_order_is_the_tables_over_row_groups_and_files(tmp_path: Path, laion: Callable[..., Path]) -> None:
    first = laion([f"http://e.org/a{i}" for i in range(2500)], name="1.parquet", row_group_size=700)
    second = laion([f"http://e.org/b{i}" for i in range(10)], name="2.parquet")
    found, funnel = matches([first, second])
    assert [c.url for c in found] == [f"http://e.org/a{i}" for i in range(2500)] + [
        f"http://e.org/b{i}" for i in range(10)
    ]
    assert [c.row for c in found[:2500]] == list(range(2500)) and funnel.rows == 2510


def test_text_is_not_decoded_where_no_number_passes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"URL": ["http://e.org/1"] * 2000, "TEXT": ["x" * 500] * 2000, "WIDTH": [100.0] * 2000,
                      "HEIGHT": [100.0] * 2000})  # fmt: skip
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, compression="none")
    group = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    # garbage in the captions' pages is met only by whoever reads them
    data[group.data_page_offset : group.data_page_offset + group.total_compressed_size] = (
        b"\xff" * group.total_compressed_size
    )
    path.write_bytes(data)
    opened = open_table(path)

    def rows(least: int) -> int:
        return sum(map(len, candidates([opened], Filters(min_size=least), Funnel())))

    assert rows(500) == 0
    with pytest.raises(BadInput):
        rows(50)


def test_a_selection_in_the_middle_keeps_numbers_texts_and_rows_together(tmp_path: Path) -> None:
    n = 100_000
    path = write(tmp_path / "t.parquet", URL=[f"http://e.org/{i}" for i in range(n)],
                 TEXT=["a"] * n, WIDTH=np.arange(1, n + 1), HEIGHT=np.full(n, 10**6))  # fmt: skip
    found, _ = matches([path], Filters(min_size=n - 39_999))
    assert len(found) == 40_000
    assert all(c.width == c.row + 1 and c.url.endswith(f"/{c.row}") for c in found)


def test_real_laion_rows_are_found(shared_data: Path) -> None:
    path = shared_data / "laion-rows" / "laion_url_text_1000.parquet"
    found, funnel = matches([path])
    assert funnel.rows == 1000 and funnel.left == len(found) > 950
    few, _ = matches([path], Filters(search=("black",)))
    assert 3 < len(few) < 100 and all("black" in c.caption.lower() for c in few)
