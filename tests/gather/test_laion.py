"""What a search gives equals what a plain loop over the rows gives; shares, samples and lists of it are exact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edkit.data.errors import UsageError
from edkit.gather import matches
from edkit.gather.candidate import Candidate, Funnel, whole_text
from edkit.gather.laion import Batch, Filters, _phash, _Term, candidates
from edkit.gather.seen import Seen, marks_of
from edkit.gather.shuffle import shuffled
from edkit.gather.tables import open_table

WORDS = [
    "dog",
    "Dog",
    "dogs",
    "ski",
    "\u017fki",
    "SKI",
    "são",
    "SÃO",
    "red car",
    "red",
    "\u3000",
    "мужчина",
    "İs",
    "a_dog",
]
caption = st.one_of(st.none(), st.lists(st.sampled_from([*WORDS, " ", ","]), max_size=4).map(" ".join))
number = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]))
row = st.tuples(
    st.sampled_from(["http://a.org/1", "http://b.org/2", " ", "https://x.alamy.com/3", None, "http://c.org/4"]),
    *(caption, number, number, number),
)
term = st.sampled_from(["dog", "dog*", "ski", "são", "red car", "is", "мужчина", "k"])
filters = st.builds(
    Filters,
    search=st.lists(term, max_size=2).map(tuple),
    any=st.lists(term, max_size=2).map(tuple),
    exclude=st.lists(term, max_size=1).map(tuple),
    regex=st.sampled_from(["", "", "d.g"]),
    min_size=st.sampled_from([0, 2]),
    max_aspect=st.sampled_from([None, 1.5]),
    min_aesthetic=st.sampled_from([None, 2.0]),
    exclude_hosts=st.sampled_from([(), ("stock",)]),
)


def naive(rows: list[tuple[str | None, str | None, float, float, float]], f: Filters) -> tuple[list[int], Counter[str]]:
    """The same by a plain loop."""
    dropped: Counter[str] = Counter()
    left, seen = [], set()
    for i, (url, text, width, height, score) in enumerate(rows):
        url, text = (url or "").strip(), (text or "").strip()
        known = width > 0 and height > 0
        finds = lambda word: _Term(word).exact.search(text) is not None  # noqa: B023, E731
        if f.min_size and known and min(width, height) < f.min_size:
            why = f"--min-size {f.min_size}"
        elif f.max_aspect and known and max(width, height) > min(width, height) * f.max_aspect:
            why = f"--max-aspect {f.max_aspect:g}"
        elif f.min_aesthetic is not None and not score >= f.min_aesthetic:
            why = f"--min-aesthetic {f.min_aesthetic:g}"
        elif not text:
            why = "no caption"
        elif not all(map(finds, f.search)):
            why = f"--search {','.join(f.search)}"
        elif f.any and not any(map(finds, f.any)):
            why = f"--any {','.join(f.any)}"
        elif any(map(finds, f.exclude)):
            why = f"--exclude {','.join(f.exclude)}"
        elif f.regex and "dog" not in text.lower():
            why = "--regex"
        elif not url:
            why = "no URL"
        elif f.exclude_hosts and "alamy" in url:
            why = "--exclude-hosts"
        elif url in seen:
            why = "URL of an earlier row"
        else:
            seen.add(url)
            left.append(i)
            continue
        dropped[why] += 1
    return left, dropped


@given(st.lists(row, min_size=1, max_size=40), filters, st.integers(1, 40), st.sampled_from(["parquet", "csv"]))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_search_equals_a_plain_loop_with_its_funnel(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, ...]], f: Filters, group: int, kind: str
) -> None:
    url, text, width, height, score = (list(column) for column in zip(*rows, strict=True))
    names = {"URL": pa.string(), "TEXT": pa.string(), "WIDTH": pa.float64(), "HEIGHT": pa.float64()}
    schema = pa.schema([*names.items(), ("aesthetic", pa.float32())])
    table = pa.table(dict(zip(schema.names, (url, text, width, height, score), strict=True)), schema=schema)
    path = tmp_path_factory.mktemp("plain") / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        from pyarrow import csv

        csv.write_csv(table, path)
    funnel = Funnel()
    found = [c.row for some in candidates([open_table(path)], f, funnel) for c in some]
    nan = float("nan")
    plain = [(u, t, *(nan if n is None else n for n in ns)) for u, t, *ns in rows]  # type: ignore[misc]
    left, dropped = naive(plain, f)  # type: ignore[arg-type]
    assert found == left and funnel.rows == len(rows) and funnel.left == len(left)
    if kind == "parquet" and f.min_aesthetic is not None:
        # a row group all of whose rows lack the score is counted as that filter's
        assert sum(funnel.dropped.values()) == sum(dropped.values())
    else:
        assert funnel.dropped == dict(dropped)


@pytest.mark.parametrize("way", ["searched", "not searchable", "breaks off before the first row", "large row groups"])
def test_rows_have_their_numbers_whichever_way_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    from edkit.gather import rows
    from edkit.gather.words import Unsearchable

    table = pa.table({"URL": [f"http://a.org/{i}" for i in range(1000)], "TEXT": ["a dog", "a cat"] * 500})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=90)
    real = rows.searched

    @contextmanager
    def refused(*args: object, **options: object) -> Iterator[Iterator[pa.RecordBatch]]:
        raise Unsearchable("out of memory")
        yield iter(())

    @contextmanager
    def broken(*args: object, **options: object) -> Iterator[Iterator[pa.RecordBatch]]:
        def batches() -> Iterator[pa.RecordBatch]:
            raise Unsearchable("out of memory")
            yield

        with real(*args, **options):  # type: ignore[arg-type]
            yield batches()

    if way == "not searchable":
        monkeypatch.setattr(rows, "searched", refused)
    elif way == "breaks off before the first row":
        monkeypatch.setattr(rows, "searched", broken)
    elif way == "large row groups":
        monkeypatch.setattr(rows, "searched", refused)
        monkeypatch.setattr(rows, "_MOST_AT_ONCE", 50)
        monkeypatch.setattr(rows, "_BATCH_ROWS", 16)
    funnel = Funnel()
    found = [(c.row, c.url) for some in candidates([open_table(path)], Filters(search=("dog",)), funnel) for c in some]
    assert found == [(i, f"http://a.org/{i}") for i in range(0, 1000, 2)]
    assert (funnel.rows, funnel.left, funnel.dropped) == (1000, 500, {"--search dog": 500})


@given(st.text(max_size=12), st.sampled_from(["dog", "ski", "is", "são", "k", "red car", "İ", "ß", "мир*"]))
@settings(max_examples=300, deadline=None)
def test_the_generous_test_misses_nothing_the_exact_one_finds(text: str, word: str) -> None:
    import pyarrow.compute as pc

    for spelt in (text, text + word, word.upper().removesuffix("*"), f"{text} {word} {text}".swapcase()):
        try:
            spelt.encode()
        except UnicodeEncodeError:
            continue
        if _Term(word).exact.search(spelt):
            assert pc.match_substring_regex(pa.scalar(spelt), _Term(word).generous).as_py(), spelt


def test_row_groups_that_fail_by_their_statistics_are_not_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    scores = np.sort(np.random.default_rng(1).uniform(3, 7, 4000))
    pq.write_table(
        pa.table({"URL": [f"http://e.org/{i}" for i in range(4000)], "TEXT": ["a"] * 4000, "aesthetic": scores}),
        path, row_group_size=500, compression="none", use_dictionary=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(2)
    data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = (
        b"\xff" * chunk.total_compressed_size
    )
    path.write_bytes(data)
    funnel = Funnel()
    some = list(candidates([open_table(path)], Filters(min_aesthetic=6), funnel))
    assert sum(map(len, some)) == funnel.left == int((scores >= 6).sum())
    assert funnel.dropped == {"--min-aesthetic 6": 4000 - funnel.left}


# ---- shares and samples


def made(path: Path, rows: int, row_group: int = 500) -> Path:
    urls = [f"http://e.org/{i % (rows * 9 // 10)}" for i in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"dog {i}" for i in range(rows)]}), path, row_group_size=row_group)
    return path


def urls_of(path: Path, **kw: object) -> list[str]:
    some = candidates([open_table(path)], Filters(), Funnel(), **kw)  # type: ignore[arg-type]
    return [c.url for part in some for c in part]


def test_parts_are_disjoint_fair_and_whole(tmp_path: Path) -> None:
    path = made(tmp_path / "t.parquet", 8000)
    whole = urls_of(path)
    parts = [urls_of(path, part=(i, 4)) for i in (1, 2, 3, 4)]
    assert sorted(url for part in parts for url in part) == sorted(whole) and len(whole) == 7200
    assert all(1650 < len(part) < 1950 for part in parts)
    assert parts[0] == urls_of(made(tmp_path / "u.parquet", 8000, 77), part=(1, 4))
    with pytest.raises(UsageError, match="--part 5/4"):
        urls_of(path, part=(5, 4))


def test_a_shuffle_is_fair_and_the_same_for_the_same_seed_however_rows_are_stored(tmp_path: Path) -> None:
    path = made(tmp_path / "t.parquet", 2000)
    first = urls_of(path, shuffle=3)
    assert first == urls_of(made(tmp_path / "u.parquet", 2000, 333), shuffle=3) != urls_of(path, shuffle=4)
    assert sorted(first) == sorted(urls_of(path))
    # which tenth of the table the first 90 come from, over 40 seeds: chi-square with 9 degrees of freedom
    counts = Counter(int(url.rsplit("/")[-1]) // 180 for seed in range(40) for url in urls_of(path, shuffle=seed)[:90])
    expected = 40 * 90 / 10
    assert sum((counts[tenth] - expected) ** 2 / expected for tenth in range(10)) < 27.9  # p = 0.001


def test_a_shuffle_larger_than_memory_holds_goes_over_files_and_stays_the_same(tmp_path: Path) -> None:
    path = made(tmp_path / "t.parquet", 3000)
    from edkit.gather.laion import _Search

    search = _Search([open_table(path)], Filters(), None, None)

    def batches(funnel: Funnel) -> Iterator[Batch]:
        return search.batches(funnel)

    funnel = Funnel()
    small = [c.url for some in shuffled(batches, funnel, 3, held=100) for c in some]
    assert small == urls_of(path, shuffle=3) and funnel.rows == 3000


def test_marks_seen_are_exact_in_memory_and_on_disk() -> None:
    rng = np.random.default_rng(5)
    numbers = rng.integers(0, 20_000, 30_000)
    with Seen(in_memory=1500) as seen:
        fresh = np.concatenate([seen.add(marks_of([f"u{n}" for n in part])) for part in np.array_split(numbers, 37)])
        assert len(seen._files) > 3
    _, first = np.unique(numbers, return_index=True)
    assert sorted(first) == np.flatnonzero(fresh).tolist()


def test_marks_are_the_same_in_every_process(tmp_path: Path) -> None:
    code = "from edkit.gather.seen import marks_of; print(marks_of(['http://e.org/ü']).tolist())"
    runs = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


# ---- lists


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: whole_text(text).strip())
CANDIDATE = st.builds(
    Candidate,
    url=st.integers(0, 10**9).map(lambda n: f"http://e.org/{n}"),
    caption=TEXT.filter(bool),
    table=st.just("t"),
    row=st.integers(0, 10**9),
    width=st.integers(0, 10**6),
    licence=TEXT,
    author=TEXT,
    page=TEXT,
    key=TEXT,
    checksum=st.sampled_from(["", "0f" * 16, "0f" * 32]),
    phash=st.sampled_from(["", "00ff" * 4, "1234567890123456"]),
)


@pytest.mark.parametrize("ending", matches.ENDINGS)
@given(some=st.lists(CANDIDATE, max_size=8, unique_by=lambda c: c.url))
@settings(max_examples=25, deadline=None)
def test_a_list_of_matches_is_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, ending: str, some: list[Candidate]
) -> None:
    path = tmp_path_factory.mktemp("list") / f"matches{ending}"
    assert matches.write(path, iter(some)) == len(some)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if ending == ".jsonl" and not some:
        return
    found = [c for part in candidates([open_table(path)], Filters(), Funnel()) for c in part]
    fields = ("url", "width", "checksum", "phash") + (
        ("caption", "licence", "author", "key") if ending != ".tsv" else ()
    )
    assert [[getattr(c, name) for name in fields] for c in found] == [
        [getattr(c, name) for name in fields] for c in some
    ]


def test_a_list_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Candidate]:
        yield Candidate(url="http://e.org", caption="a", table="t", row=0)
        raise RuntimeError

    for ending in matches.ENDINGS:
        with pytest.raises(RuntimeError):
            matches.write(tmp_path / f"m{ending}", broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"\.parquet, \.csv"):
        matches.write(tmp_path / "m.xlsx", [])


def test_perceptual_hashes_are_hex_or_integers_of_64_bits() -> None:
    assert _phash("00FF00ff00ff00ff", False) == "00ff00ff00ff00ff"
    assert _phash("-1", True) == "f" * 16 and _phash("1234567890123456", True) == f"{1234567890123456:016x}"
    assert _phash("nope", False) == _phash(str(2**65), True) == ""


# ---- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edkit.gather.candidate import Funnel\nfrom edkit.gather.laion import Filters, candidates\n"
        "from edkit.gather.tables import open_table\nfrom pathlib import Path\n"
        "f = Filters(search=('dog',), exclude=('cat',))\n"
        "n = sum(map(len, candidates([open_table(Path(sys.argv[1]))], f, Funnel())))\n"
        # getrusage's peak would be that of the process that started this one
        "print(n, next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for rows in (50_000, 600_000):
        path = tmp_path / f"{rows}.parquet"
        with pq.ParquetWriter(path, pa.schema([("URL", pa.string()), ("TEXT", pa.string())])) as writer:
            for start in range(0, rows, 50_000):
                ids = range(start, start + 50_000)
                text = [f"a {'dog' if i % 10 == 0 else 'bird'} of some length {i} " * 6 for i in ids]
                writer.write_table(pa.table({"URL": [f"http://e.org/{i:0100d}" for i in ids], "TEXT": text}))
        out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
        count, peak = map(int, out.split())
        assert count == rows // 10
        peaks.append(peak / 1024)
    assert peaks[1] < 400 and peaks[1] < peaks[0] + 120
