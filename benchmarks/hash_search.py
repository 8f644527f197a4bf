"""How long it takes to find every pair of near hashes, beside imagededup and faiss.

    python benchmarks/hash_search.py [--hashes 1000000] [--peers 5000 50000] [--radius 8]

Random 64-bit hashes with planted neighbours: a thousandth of them is copied with 1 to `radius` bits flipped. Each
peer runs in a virtual environment of its own at the sizes it can do; what each one found is
compared with edkit's pairs. Wall time and peak memory of a fresh process each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import imagededup_python, machine, peer_python, tell

HASHES = """
import numpy as np
PLANTED = set()  # pairs that are within the radius, known without any search
def hashes(number, radius):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, number, dtype=np.uint64)
    planted = number // 1000
    sources = rng.permutation(number // 2)[:planted]
    for place, source in zip(range(number - planted, number), sources):
        bits = rng.permutation(64)[: int(rng.integers(1, radius + 1))]
        values[place] = values[source] ^ np.uint64(sum(1 << int(bit) for bit in bits))
        PLANTED.add((int(source), place))
    return values
"""
REPORT = """
import resource, sys
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
print(json.dumps({"seconds": seconds, "pairs": len(pairs), "peak": peak, "planted": sorted(pairs)[:200000],
    "num_planted": len(PLANTED), "planted_found": len(PLANTED & {(int(a), int(b)) for a, b in pairs})}))
"""
SEARCHES = {
    "edkit": """
from edkit.measure.search import pairs_within
start = time.perf_counter()
found = pairs_within(values, radius)
seconds = time.perf_counter() - start
pairs = set(zip(found.left.tolist(), found.right.tolist()))
""",
    "imagededup, BK-tree": """
from imagededup.methods import PHash
names = {str(i): f"{int(v):016x}" for i, v in enumerate(values)}
start = time.perf_counter()
found = PHash(verbose=False).find_duplicates(
    encoding_map=names, max_distance_threshold=radius, search_method="bktree", num_dist_workers=2)
seconds = time.perf_counter() - start
pairs = {(min(int(a), int(b)), max(int(a), int(b))) for a, others in found.items() for b in others}
""",
    "imagededup, brute force (its default)": """
from imagededup.methods import PHash
names = {str(i): f"{int(v):016x}" for i, v in enumerate(values)}
start = time.perf_counter()
found = PHash(verbose=False).find_duplicates(
    encoding_map=names, max_distance_threshold=radius, search_method="brute_force_cython", num_dist_workers=2)
seconds = time.perf_counter() - start
pairs = {(min(int(a), int(b)), max(int(a), int(b))) for a, others in found.items() for b in others}
""",
    "faiss, IndexBinaryFlat": """
import faiss
rows = values.view(np.uint8).reshape(-1, 8)
start = time.perf_counter()
index = faiss.IndexBinaryFlat(64)
index.add(rows)
pairs = set()
for first in range(0, len(rows), 5000):
    limits, _, labels = index.range_search(rows[first : first + 5000], radius + 1)
    queries = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64))) + first
    keep = queries < labels
    pairs |= set(zip(queries[keep].tolist(), labels[keep].tolist()))
seconds = time.perf_counter() - start
""",
    "faiss, IndexBinaryMultiHash (4 x 16 bits, 2 flips)": """
import faiss
rows = values.view(np.uint8).reshape(-1, 8)
start = time.perf_counter()
index = faiss.IndexBinaryMultiHash(64, 4, 16)
index.nflip = 2
index.add(rows)
pairs = set()
for first in range(0, len(rows), 5000):
    limits, _, labels = index.range_search(rows[first : first + 5000], radius + 1)
    queries = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64))) + first
    keep = queries < labels
    pairs |= set(zip(queries[keep].tolist(), labels[keep].tolist()))
seconds = time.perf_counter() - start
""",
}


def python_of(name: str) -> Path:
    if name.startswith("imagededup"):
        return imagededup_python()
    return peer_python("faiss", "faiss-cpu") if name.startswith("faiss") else Path(sys.executable)


def searched(name: str, number: int, radius: int, limit: float) -> dict[str, object] | str:
    """What a fresh process found, or why it found nothing."""
    code = f"import json, time\n{HASHES}\nradius = {radius}\nvalues = hashes({number}, radius)\n"
    code += "if __name__ == '__main__':\n" + "\n".join(
        f"    {line}" for line in (SEARCHES[name] + REPORT).strip().splitlines()
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "search.py"
        script.write_text(code, encoding="utf-8")
        try:
            done = subprocess.run([python_of(name), script], capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1][:80] if done.stderr.strip() else done.returncode}"
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--peers", type=int, nargs="*", default=[5_000, 50_000])
    parser.add_argument("--radius", type=int, default=8)
    parser.add_argument("--limit", type=float, default=240, metavar="SECONDS", help="for each search")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="who begins so")
    settings = parser.parse_args()
    print(f"{machine('numpy')}.\n")
    within = f"pairs within {settings.radius} bits"
    print(f"| hashes | who | {within} | of edkit's | of the planted | seconds | against edkit | peak memory |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for number in [*settings.peers, settings.hashes]:
        ours: dict[str, object] = {}
        for name in SEARCHES:
            if settings.only and not name.startswith(tuple(settings.only)):
                continue
            if number != min(settings.peers, default=0) and name.startswith("imagededup"):
                continue
            found = searched(name, number, settings.radius, settings.limit)
            if isinstance(found, str):
                print(f"| {number:,} | {name} | {found} | | | | | |", flush=True)
                continue
            ours = ours or found
            mine, theirs = ({tuple(p) for p in one["planted"]} for one in (ours, found))  # type: ignore[attr-defined]
            ratio = float(str(found["seconds"])) / float(str(ours["seconds"]))
            print(
                f"| {number:,} | {name} | {found['pairs']:,} | {len(mine & theirs) / max(1, len(mine)):.1%} |"
                f" {found['planted_found']:,} of {found['num_planted']:,} |"
                f" {found['seconds']:.2f} | {ratio:.1f} | {found['peak']:.2f} GB |",
                flush=True,
            )
            if name == "edkit" and number == settings.hashes:
                tell(
                    f"search of {number:,} hashes, radius {settings.radius}", edkit=float(str(found["seconds"])),
                    unit="s", aim="120 s, 2 GB at a million",
                    reached=float(str(found["seconds"])) <= 120 and float(str(found["peak"])) <= 2
                    and found["planted_found"] == found["num_planted"],
                )  # fmt: skip
            elif name.startswith("faiss, IndexBinaryFlat") and number == max(settings.peers):
                tell(
                    f"search of {number:,} hashes", edkit=float(str(ours["seconds"])), unit="s", peer=name,
                    value=float(str(found["seconds"])), aim="not slower",
                    reached=float(str(ours["seconds"])) <= float(str(found["seconds"])),
                )  # fmt: skip


if __name__ == "__main__":
    main()
