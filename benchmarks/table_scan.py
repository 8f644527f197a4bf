"""How fast a LAION-like table is searched, and in how much memory: edkit beside DuckDB, Polars and pyarrow.

    python benchmarks/table_scan.py [--rows 2000000] [--rounds 5] [--folder DIR]

Makes a synthetic table (seeded; captions and addresses as long as LAION's, hosts and words by Zipf's law) and asks
everyone the same: both sides at least 512, punsafe, aesthetic, two whole words in any case, twelve stock hosts left
out. Each answer comes from a fresh process, whoever's turn it is goes round; the time is that of the query without
imports, the memory the process's peak, imports included. edkit brings addresses, captions, licences and sizes in
table order, and how many rows each filter dropped; DuckDB is asked twice, for addresses and captions alone in any
order, and for all of that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import by_turns, machine, median_ratio, peak_mb, peer_python, peer_version, tell

WORDS = ("photo", "man")
HOSTS = ("dreamstime", "alamy", "123rf", "colourbox", "envato", "stockfresh", "depositphotos", "istockphoto",
         "shutterstock", "gettyimages", "bigstockphoto", "fineartamerica")  # fmt: skip
MIN_SIZE, MAX_UNSAFE, MIN_AESTHETIC = 512, 0.1, 5.0
BLOCK = 500_000  # rows made at a time
WHOLE = "DuckDB, the same job"  # the other row of DuckDB brings addresses and captions alone, in any order


# ---- the table


def make(path: Path, rows: int, row_group: int, seed: int = 7) -> None:
    """A table in LAION-2B-en's schema."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = rng.integers(2, 11, 40_000)
    vocabulary = ["".join(rng.choice(letters[:20], n)) for n in lengths]
    vocabulary[3:24:2] = ["the", "of", "and", "in", "for", "with", "a", "to", "on", "by", "at"]
    vocabulary[45], vocabulary[60], vocabulary[90], vocabulary[130] = "photo", "man", "Photo", "Man"
    vocabulary[70], vocabulary[100], vocabulary[200] = "woman", "photography", "são"
    vocabulary[300], vocabulary[301] = "PHOTO", "Мужчина"
    words = pa.array(vocabulary)
    names = ["cdn.shopify.com", "i.pinimg.com", "i.ebayimg.com", "thumbs.dreamstime.com", "c8.alamy.com",
             "us.123rf.com", "media.istockphoto.com", "st.depositphotos.com", "images.fineartamerica.com"]  # fmt: skip
    hosts = pa.array(names + [f"www.{vocabulary[rng.integers(40_000)]}{i}.com" for i in range(50_000)])
    roots = ("wp-content/uploads", "images/product", "media", "i")
    folders = pa.array([f"{root}/{number}" for root in roots for number in range(2000)])

    nsfw = pa.array(["UNLIKELY", "UNSURE", "NSFW"])

    def zipf(n: int, size: int) -> np.ndarray[Any, Any]:
        """Indices below `size`, the k-th as likely as 1 / (k + 8)."""
        return np.minimum(8 * ((1 + size / 8) ** rng.random(n) - 1), size - 1).astype(np.int32)

    writer = None
    pending: list[pa.Table] = []
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        counts = np.clip(rng.lognormal(2.2, 0.55, n), 1, 60).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        flat = words.take(pa.array(zipf(int(offsets[-1]), len(words))))
        ids = pc.cast(pa.array(rng.integers(0, 2**48, n)), pa.string())
        url = pc.binary_join_element_wise(
            "https://",
            hosts.take(pa.array(zipf(n, len(hosts)))),
            "/",
            folders.take(pa.array(rng.integers(0, len(folders), n))),
            "/",
            ids,
            "-",
            words.take(pa.array(rng.integers(40_000, size=n) % 40_000)),
            ".jpg",
            "",
        )
        block = pa.table(
            {
                "SAMPLE_ID": pa.array(rng.integers(0, 2**62, n)),
                "URL": url,
                "TEXT": pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), flat), " "),
                "HEIGHT": pa.array(np.rint(rng.lognormal(6.25, 0.5, n)), pa.int32()),
                "WIDTH": pa.array(np.rint(rng.lognormal(6.35, 0.5, n)), pa.int32()),
                "LICENSE": pa.array(["?"] * n),
                "NSFW": nsfw.take(pa.array((rng.random(n) ** 8 * 3).astype(np.int32))),
                "similarity": pa.array(rng.normal(0.33, 0.03, n)),
                "punsafe": pa.array((rng.random(n) ** 6).astype(np.float32)),
                "pwatermark": pa.array((rng.random(n) ** 2).astype(np.float32)),
                "aesthetic": pa.array(rng.normal(5.2, 0.7, n).astype(np.float32)),
            }
        )
        writer = writer or pq.ParquetWriter(path, block.schema)
        pending.append(block)
        held = pa.concat_tables(pending)
        while held.num_rows >= row_group or (start + n == rows and held.num_rows):
            writer.write_table(held.slice(0, row_group), row_group_size=row_group)
            held = held.slice(row_group)
        pending = [held]
    if writer is not None:
        writer.close()


# ---- the ways, each called in a fresh process; they return how many rows match, and a sum over them


def edkit(path: str) -> tuple[int, int]:
    from edkit.gather.candidate import Funnel
    from edkit.gather.laion import Filters, candidates
    from edkit.gather.tables import locate, open_table

    filters = Filters(
        search=WORDS,
        min_size=MIN_SIZE,
        max_unsafe=MAX_UNSAFE,
        min_aesthetic=MIN_AESTHETIC,
        exclude_hosts=HOSTS,
    )
    count = total = 0
    for some in candidates([open_table(each) for each in locate([path])], filters, Funnel()):
        count += len(some)
        total += sum(len(c.url) + len(c.caption) for c in some)
    return count, total


def _host_pattern() -> str:
    return r"(?i)^https?://([^/?#]*\.)?(" + "|".join(HOSTS) + r")\.[^/?#]*([/?#]|$)"


def duckdb(path: str) -> tuple[int, int]:
    import duckdb

    words = " AND ".join(f"regexp_matches(TEXT, '(?i)(^|[^\\pL\\pN]){word}($|[^\\pL\\pN])')" for word in WORDS)
    generous = " AND ".join(f"TEXT ILIKE '%{word}%'" for word in WORDS)
    found = duckdb.sql(
        f"""SELECT URL, TEXT FROM read_parquet('{path}')
        WHERE WIDTH >= {MIN_SIZE} AND HEIGHT >= {MIN_SIZE}
        AND punsafe <= {MAX_UNSAFE} AND aesthetic >= {MIN_AESTHETIC}
        AND {generous} AND {words} AND NOT regexp_matches(URL, '{_host_pattern()}')"""
    ).fetchall()
    return len(found), sum(len(url) + len(text) for url, text in found)


def duckdb_whole(path: str) -> tuple[int, int]:
    """What edkit brings: licence and sizes, too, in the file's order, and how many rows each filter dropped."""
    import duckdb

    size = f"WIDTH >= {MIN_SIZE} AND HEIGHT >= {MIN_SIZE}"
    safe, fine = f"punsafe <= {MAX_UNSAFE}", f"aesthetic >= {MIN_AESTHETIC}"
    words = " AND ".join(f"regexp_matches(TEXT, '(?i)(^|[^\\pL\\pN]){word}($|[^\\pL\\pN])')" for word in WORDS)
    generous = " AND ".join(f"TEXT ILIKE '%{word}%'" for word in WORDS)
    counts = duckdb.sql(
        f"""SELECT count(*), count_if({size}), count_if({size} AND {safe}), count_if({size} AND {safe} AND {fine})
        FROM read_parquet('{path}')"""
    ).fetchall()[0]
    worded = duckdb.sql(
        f"""SELECT file_row_number, URL, TEXT, LICENSE, WIDTH, HEIGHT, regexp_matches(URL, '{_host_pattern()}')
        FROM read_parquet('{path}', file_row_number = true)
        WHERE {size} AND {safe} AND {fine} AND {generous} AND {words} ORDER BY file_row_number"""
    ).fetchall()
    found = [row for row in worded if not row[6]]
    assert counts[3] >= len(worded) >= len(found)
    return len(found), sum(len(row[1]) + len(row[2]) for row in found)


def polars(path: str) -> tuple[int, int]:
    import polars as pl

    wanted = (
        (pl.col("WIDTH") >= MIN_SIZE)
        & (pl.col("HEIGHT") >= MIN_SIZE)
        & (pl.col("punsafe") <= MAX_UNSAFE)
        & (pl.col("aesthetic") >= MIN_AESTHETIC)
    )
    found = pl.scan_parquet(path).filter(wanted)
    for word in WORDS:
        found = found.filter(pl.col("TEXT").str.contains(rf"(?i)(^|[^\pL\pN]){word}($|[^\pL\pN])"))
    found = found.filter(~pl.col("URL").str.contains(_host_pattern())).select("URL", "TEXT")
    rows = found.collect(engine="streaming").rows()
    return len(rows), sum(len(url) + len(text) for url, text in rows)


def pyarrow(path: str) -> tuple[int, int]:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    wanted = (
        (pc.field("WIDTH") >= MIN_SIZE)
        & (pc.field("HEIGHT") >= MIN_SIZE)
        & (pc.field("punsafe") <= MAX_UNSAFE)
        & (pc.field("aesthetic") >= MIN_AESTHETIC)
        & ~pc.match_substring_regex(pc.field("URL"), _host_pattern())
    )
    for word in WORDS:
        wanted &= pc.match_substring_regex(pc.field("TEXT"), rf"(?i)(^|[^\pL\pN]){word}($|[^\pL\pN])")
    found = ds.dataset(path).to_table(columns=["URL", "TEXT"], filter=wanted).to_pylist()
    return len(found), sum(len(row["URL"]) + len(row["TEXT"]) for row in found)


WAYS: dict[str, Callable[[str], tuple[int, int]]] = {
    "edkit": edkit,
    "DuckDB": duckdb,
    WHOLE: duckdb_whole,
    "Polars": polars,
    "pyarrow": pyarrow,
}


def child(way: str, path: str) -> None:
    """Answer once and print what it took."""
    needs = {
        "edkit": ("edkit.gather.laion", "pyarrow.parquet", "pyarrow.compute", "duckdb"),
        "DuckDB": ("duckdb",),
        WHOLE: ("duckdb",),
        "Polars": ("polars",),
        "pyarrow": ("pyarrow.dataset",),
    }
    for module in needs[way]:
        __import__(module)
    started = time.perf_counter()
    count, total = WAYS[way](path)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak_mb(), "answer": [count, total]}))


# ---- the benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--row-group", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the table here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        child(*settings.child)
        return
    peers = peer_python("tables", "duckdb", "polars")
    theirs = ", ".join(f"{name} {peer_version(peers, name)}" for name in ("duckdb", "polars"))
    print(f"{machine('pyarrow', 'numpy', 'duckdb')}; in the peers' environment {theirs}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"laion-{settings.rows}-{settings.row_group}.parquet"
        if not path.exists():
            make(path, settings.rows, settings.row_group)
        compare(path, settings.rows, settings.rounds, peers)


def compare(path: Path, rows: int, rounds: int, peers: Path) -> None:
    """Print a table of everyone's median."""
    pythons = {way: Path(sys.executable) if way in ("edkit", "pyarrow") else peers for way in WAYS}
    runs = by_turns({way: partial(_run, way, path, python) for way, python in pythons.items()}, rounds)
    answers = {way: run[0]["answer"] for way, run in runs.items()}
    seconds = {way: [run["seconds"] for run in some] for way, some in runs.items()}
    print(f"\n{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, {rounds} rounds; {answers['edkit'][0]:,} match.\n")
    print("| who | median s | M rows/s | edkit's rate beside it | peak MB |\n|---|---:|---:|---:|---:|")
    for way, some in seconds.items():
        memory = max(run["peak"] for run in runs[way])
        rate = rows / 1e6 / statistics.median(some)
        print(f"| {way} | {statistics.median(some):.3f} | {rate:.1f} |"
              f" {median_ratio(some, seconds['edkit']):.2f} | {memory:.0f} |")  # fmt: skip
    ratios = [min(d, p) / e for e, d, p in zip(seconds["edkit"], seconds["DuckDB"], seconds["Polars"], strict=True)]
    same = median_ratio(seconds[WHOLE], seconds["edkit"])
    said = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"\nBeside the better of DuckDB and Polars, which bring less, round by round: {said}; beside DuckDB on")
    print(f"the same job (licence and sizes, too, in the file's order, counts by filter): {same:.2f}.")
    if len(set(map(tuple, answers.values()))) > 1:
        print(f"\nThe answers differ: {answers}")
    medians = {way: statistics.median(some) for way, some in seconds.items()}
    best = min(("DuckDB", "Polars"), key=medians.__getitem__)
    size = f"{rows // 1_000_000} million rows" if rows >= 1_000_000 else f"{rows:,} rows"
    tell(
        f"table scan, {size}", edkit=medians["edkit"], unit="s", peer=f"{best}, addresses and captions alone",
        value=medians[best], aim="1.0 of the better of DuckDB and Polars", reached=medians["edkit"] <= medians[best],
    )  # fmt: skip
    tell(
        f"table scan, {size}, the same job", edkit=medians["edkit"], unit="s", peer=WHOLE, value=medians[WHOLE],
        aim="1.0", reached=medians["edkit"] <= medians[WHOLE],
    )  # fmt: skip
    tell(
        f"table scan, {size}, memory", edkit=max(run["peak"] for run in runs["edkit"]), unit="MB", peer="DuckDB",
        value=max(run["peak"] for run in runs["DuckDB"]), aim="flat from 2 to 20 million rows",
    )  # fmt: skip


def _run(way: str, path: Path, python: Path) -> dict[str, Any]:
    here = Path(__file__).resolve()
    # a stranger's interpreter finds edkit by no path: its ways import nothing of it
    done = subprocess.run(
        [python, str(here), "--child", way, str(path)],
        capture_output=True, text=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONPATH": str(here.parent.parent)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{way}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
