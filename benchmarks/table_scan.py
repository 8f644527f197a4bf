"""How fast a LAION-like table is searched, and in how much memory: edkit beside DuckDB, Polars and pyarrow.

    python benchmarks/table_scan.py [--rows 2000000] [--also 20000000] [--rounds 5]

Makes a synthetic table (seeded; captions and addresses as long as LAION's, hosts and words by Zipf's law) and asks
everyone the same: both sides at least 512, punsafe, aesthetic, two whole words in any case, twelve stock hosts left
out; the matching addresses and captions in table order. Each answer comes from a fresh process, whoever's turn it is
goes round; the time is that of the query without imports, the memory the process's peak, imports included. The peers
are installed into a virtual environment in a temporary folder (`--peers PYTHON` names an interpreter that has them).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ("photo", "man")
HOSTS = ("dreamstime", "alamy", "123rf", "colourbox", "envato", "stockfresh", "depositphotos", "istockphoto",
         "shutterstock", "gettyimages", "bigstockphoto", "fineartamerica")  # fmt: skip
MIN_SIZE, MAX_UNSAFE, MIN_AESTHETIC = 512, 0.1, 5.0
BLOCK = 500_000  # rows made at a time


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
    "Polars": polars,
    "pyarrow": pyarrow,
}


def child(way: str, path: str) -> None:
    """Answer once and print what it took."""
    needs = {
        "edkit": ("edkit.gather.laion", "pyarrow.parquet", "pyarrow.compute", "duckdb"),
        "DuckDB": ("duckdb",),
        "Polars": ("polars",),
        "pyarrow": ("pyarrow.dataset",),
    }
    for module in needs[way]:
        __import__(module)
    started = time.perf_counter()
    count, total = WAYS[way](path)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak(), "answer": [count, total]}))


def peak() -> float:
    """MB this process held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage tells of a child begins with its parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# ---- the benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--also", type=int, default=0, metavar="N", help="a second, larger table")
    parser.add_argument("--row-group", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="", metavar="PYTHON", help="an interpreter with duckdb and polars")
    parser.add_argument("--folder", type=Path, help="keep the tables here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        child(*settings.child)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        peers = settings.peers or _peers(Path(temporary))
        print(_machine(peers))
        for rows in [settings.rows, *([settings.also] if settings.also else [])]:
            path = folder / f"laion-{rows}-{settings.row_group}.parquet"
            if not path.exists():
                make(path, rows, settings.row_group)
            rounds = settings.rounds if rows <= 5_000_000 else max(1, settings.rounds // 2)
            compare(path, rows, rounds, peers)


def compare(path: Path, rows: int, rounds: int, peers: str) -> None:
    """Print a table of everyone's median, after one round that warms the disk's cache."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in WAYS:
            run = _run(way, path, sys.executable if way in ("edkit", "pyarrow") else peers)
            if turn:
                runs[way].append(run)
    answers = {way: run[0]["answer"] for way, run in runs.items()}
    seconds = {way: statistics.median(run["seconds"] for run in some) for way, some in runs.items()}
    best = min(seconds["DuckDB"], seconds["Polars"])
    print(f"\n{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, {rounds} rounds; {answers['edkit'][0]:,} match\n")
    print("| who | median s | M rows/s | rate beside the better of DuckDB and Polars | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for way, some in runs.items():
        memory = max(run["peak"] for run in some)
        rate = rows / 1e6 / seconds[way]
        print(f"| {way} | {seconds[way]:.3f} | {rate:.1f} | {best / seconds[way]:.2f} | {memory:.0f} |")
    ratios = [min(d["seconds"], p["seconds"]) / e["seconds"]
              for e, d, p in zip(runs["edkit"], runs["DuckDB"], runs["Polars"], strict=True)]  # fmt: skip
    print(f"\nround by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    if len(set(map(tuple, answers.values()))) > 1:
        print(f"the answers differ: {answers}")


def _run(way: str, path: Path, python: str) -> dict[str, Any]:
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


def _peers(folder: Path) -> str:
    home = folder / "peers"
    venv.create(home, with_pip=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", "duckdb", "polars"], check=True)
    return str(python)


def _machine(peers: str) -> str:
    import numpy
    import pyarrow

    asked = "import duckdb, polars; print(f'DuckDB {duckdb.__version__}, Polars {polars.__version__}')"
    versions = subprocess.run([peers, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), Python {platform.python_version()}, "
        f"pyarrow {pyarrow.__version__}, NumPy {numpy.__version__}, {versions}"
    )


if __name__ == "__main__":
    main()
