"""How fast pictures come from a web server to checked files with captions: edkit, img2dataset, and a bare loop.

    python benchmarks/download.py [--images 4000] [--rounds 2] [--dir DIR] [--bad]

Needs nginx. Makes JPEGs of about 70 KB, serves them on loopback, and has each program fetch all of them from the same
table, in turns, process start included. `--dir /dev/shm` keeps everything in memory, so that the disk, whose flush
only edkit waits for, can be told apart. `--bad` runs the second scenario: 5% of the URLs hang, 10% are dead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import draw_all, machine, median_ratio, peer_python, peer_version, tell

HOSTS = [f"127.0.0.{n}" for n in range(1, 17)]  # one server under sixteen names, as a table has many hosts
BARE = "bare aiohttp loop"
HANGING = [f"127.0.1.{n}" for n in range(1, 6)]
CAPTION_WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "old",
    "red",
    "house",
    "dog",
    "on",
    "green",
    "hill",
    "near",
    "water",
    "under",
    "clouds",
    "with",
    "two",
    "small",
    "boats",
]


def main() -> None:
    """Make the pictures, run the programs in turns, print a table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, default=4000)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--bad", action="store_true", help="5% of the URLs hang and 10% are dead, against none")
    options.add_argument("--only", default="", help="run only these: edkit,img2dataset,unseen,bare")
    options.add_argument("--dir", type=Path, default=None, help="work in this folder (default: a temporary one)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        work = Path(folder)
        pictures = work / "www"
        sizes = draw_all(pictures, args.images)
        with served(pictures, work) as port:
            runs = scenario(args, work, port)
        report(runs, args, sizes)


# ---- the servers


@contextmanager
def served(pictures: Path, work: Path) -> Iterator[int]:
    """nginx on all of HOSTS, and listeners on all of HANGING that never answer; the port of both."""
    port = free_port()
    listen = "".join(f"listen {host}:{port} backlog=1024;" for host in HOSTS)
    config = work / "nginx.conf"
    user = "user root;" if os.name == "posix" and os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {work}/{kind};" for kind in kinds)
    config.write_text(
        f"""daemon off; worker_processes 1; error_log stderr crit; pid {work}/nginx.pid; {user}
        events {{ worker_connections 2048; }}
        http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; types {{ image/jpeg jpg; }}
        {temporary} server {{ {listen} root {pictures}; }} }}"""
    )
    work.chmod(0o755)
    nginx = subprocess.Popen([_nginx(), "-p", str(work), "-c", str(config)])
    silent = []
    for host in HANGING:
        listener = socket.create_server((host, port), backlog=512)
        silent.append(listener)
        threading.Thread(target=never_answer, args=(listener,), daemon=True).start()
    try:
        while True:
            try:
                socket.create_connection((HOSTS[0], port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        nginx.terminate()
        nginx.wait()
        for listener in silent:
            listener.close()


def _nginx() -> str:
    return shutil.which("nginx") or "/usr/sbin/nginx"


def never_answer(listener: socket.socket) -> None:
    held = []
    while True:
        try:
            held.append(listener.accept())
        except OSError:
            return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def table(path: Path, urls: list[str]) -> None:
    """A Parquet table of URLs and captions."""
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(7)
    texts = [" ".join(rng.sample(CAPTION_WORDS, 8)) for _ in urls]
    pq.write_table(pa.table({"url": urls, "caption": texts}), path)


# ---- the programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One program's run over one table."""

    name: str
    seconds: float
    num_good: int
    peak: int  # bytes, of the largest process
    cpu: float  # seconds of all its processes


def timed(name: str, command: list[str], out: Path, pattern: str, log: Path) -> Run:
    """Run a command in a process of its own; count the files it leaves."""
    os.sync()
    with log.open("ab") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.stderr.write(log.read_text()[-3000:])
        raise SystemExit(f"{name} ended with {process.returncode}")
    num_good = sum(1 for _ in out.rglob(pattern))
    # kept until the end: for minutes after many deletions ext4 searches long for free inodes, at the next one's cost
    out.rename(out.with_name(f"{out.name}-{time.monotonic_ns()}"))
    cpu = usage.ru_utime + usage.ru_stime
    return Run(name=name, seconds=seconds, num_good=num_good, peak=usage.ru_maxrss * 1024, cpu=cpu)


def edkit(work: Path, source: Path, *more: str) -> Run:
    """The command, with its defaults: robots.txt, opt-outs, every file decoded, captions, ledger."""
    out = work / "edkit"
    command = [
        sys.executable,
        "-m",
        "edkit",
        "scrape",
        str(source),
        "--out",
        str(out),
        "--allow-private-hosts",
        "--quiet",
    ]
    return timed("edkit scrape", [*command, *more], out, "*.jpg", work / "edkit.log")


def img2dataset_python() -> Path:
    return peer_python("img2dataset", "img2dataset")


def img2dataset(work: Path, source: Path, *, raw: bool) -> Run:
    """Two processes of 32 threads, files, no resizing; `raw`: what came is written unseen, not decoded."""
    out = work / "i2d"
    program = str(img2dataset_python().with_name("img2dataset"))
    command = [program, "--url_list", str(source), "--input_format", "parquet", "--url_col", "url", "--caption_col",
               "caption", "--output_format", "files", "--output_folder", str(out), "--processes_count", "2",
               "--thread_count", "32", "--resize_mode", "no", "--disable_all_reencoding", str(raw), "--retries", "0",
               "--number_sample_per_shard", "1000", "--enable_wandb", "False"]  # fmt: skip
    return timed("img2dataset, unseen" if raw else "img2dataset", command, out, "*.jpg", work / "i2d.log")


def bare(work: Path, source: Path) -> Run:
    """The floor: an aiohttp loop that writes what it gets, unchecked, unnamed, unrecorded."""
    out = work / "bare"
    return timed(BARE, [sys.executable, __file__, "BARE", str(source), str(out)], out, "*.jpg", work / "bare.log")


async def bare_loop(source: Path, out: Path) -> None:
    import aiohttp
    import pyarrow.parquet as pq

    out.mkdir()
    urls = iter(list(enumerate(pq.read_table(source)["url"].to_pylist())))

    async def worker(session: aiohttp.ClientSession) -> None:
        for i, url in urls:
            async with session.get(url) as response:
                data = await response.read()
                if response.status == 200:
                    (out / f"{i}.jpg").write_bytes(data)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
        await asyncio.gather(*(worker(session) for _ in range(64)))


def scenario(args: argparse.Namespace, work: Path, port: int) -> list[Run]:
    """All runs, in turns."""
    clean = [f"http://{HOSTS[i % len(HOSTS)]}:{port}/{i}.jpg" for i in range(args.images)]
    table(work / "clean.parquet", clean)
    programs: list[Callable[[], Run]] = []
    if args.bad:
        # of 100 rows: 85 good, 5 that hang (on hosts of their own), 4 not there, 3 refused connections, 3 unknown names
        dead_port = free_port()
        rows = []
        for i, url in enumerate(clean):
            rows.append(url)
            spread = i * 37 % 85
            if spread < 5:
                rows.append(f"http://{HANGING[spread]}:{port}/{i}.jpg")
            elif spread < 9:
                rows.append(f"http://{HOSTS[i % len(HOSTS)]}:{port}/none-{i}.jpg")
            elif spread < 12:
                rows.append(f"http://127.0.2.{spread}:{dead_port}/{i}.jpg")
            elif spread < 15:
                rows.append(f"http://host-{i % 40}.invalid/{i}.jpg")
        table(work / "bad.parquet", rows)
        limits = ("--timeout", "5", "--idle-timeout", "2", "--retries", "1")
        programs = [
            lambda: edkit(work, work / "clean.parquet", *limits),
            lambda: named("edkit scrape, 15% bad", edkit(work, work / "bad.parquet", *limits)),
        ]
    else:
        clean_table = work / "clean.parquet"
        known: dict[str, Callable[[], Run]] = {"edkit": lambda: edkit(work, clean_table)}
        known["img2dataset"] = lambda: img2dataset(work, clean_table, raw=False)
        known["unseen"] = lambda: img2dataset(work, clean_table, raw=True)
        known["bare"] = lambda: bare(work, clean_table)
        programs = [known[name] for name in (args.only.split(",") if args.only else known)]
    runs = []
    for _ in range(args.rounds):
        for program in programs:
            runs.append(program())
            sys.stderr.write(f"{runs[-1].name}: {runs[-1].num_good / runs[-1].seconds:,.0f} images/s\n")
    return runs


def named(name: str, run: Run) -> Run:
    return Run(name=name, seconds=run.seconds, num_good=run.num_good, peak=run.peak, cpu=run.cpu)


def report(runs: list[Run], args: argparse.Namespace, sizes: list[int]) -> None:
    """A Markdown table: medians over the rounds, ratios to the first program."""
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run.name, []).append(run.num_good / run.seconds)
    ours = next(iter(rates.values()))
    nginx = subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=False).stderr.strip()
    versions = [machine("aiohttp", "pillow", "pyarrow"), nginx.removeprefix("nginx version: ")]
    if not args.bad:
        versions.append(f"img2dataset {peer_version(img2dataset_python(), 'img2dataset')}")
    where = f"in {args.dir}" if args.dir else "on disk"
    print(f"{', '.join(versions)}.")
    print(
        f"{len(sizes):,} JPEGs of {statistics.mean(sizes) / 1000:.1f} kB, 640 x 480, on {len(HOSTS)} hosts; {where}.\n"
    )
    print("| program | images/s | rounds | edkit is | CPU ms an image | peak RSS of a process |")
    print("|---|---:|---|---:|---:|---:|")
    for name, some in rates.items():
        each = ", ".join(f"{rate:,.0f}" for rate in some)
        those = [run for run in runs if run.name == name]
        cpu = statistics.median(run.cpu / run.num_good * 1000 for run in those)
        peak = max(run.peak for run in those) / 2**20
        print(
            f"| {name} | {statistics.median(some):,.0f} | {each} | {median_ratio(ours, some):.2f} x |"
            f" {cpu:.2f} | {peak:,.0f} MiB |"
        )
    medians = {name: statistics.median(some) for name, some in rates.items()}
    mine = next(iter(medians.values()))
    stage = f"download{', in memory' if args.dir else ''}"
    if args.bad:
        clean, bad = medians.values()
        tell("download, 15% of the addresses bad", edkit=bad, unit="images/s", peer="none bad", value=clean,
             aim="0.7 of none bad", reached=bad >= 0.7 * clean)  # fmt: skip
    elif {"img2dataset", BARE} <= set(medians):
        tell(
            stage, edkit=mine, unit="images/s", peer="img2dataset", value=medians["img2dataset"], floor=BARE,
            limit=medians[BARE], aim="5 times img2dataset, 0.5 of the bare loop",
            reached=mine >= 5 * medians["img2dataset"] and mine >= medians[BARE] / 2,
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["BARE"]:
        asyncio.run(bare_loop(Path(sys.argv[2]), Path(sys.argv[3])))
    else:
        main()
