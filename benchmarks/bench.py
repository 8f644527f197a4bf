"""What the benchmarks share: peers in environments of their own, pictures, and figures for the summary."""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
VENVS = "EDKIT_BENCH_VENVS"  # where the peers' environments are kept; else a temporary folder
DIFFUSERS = "EDKIT_BENCH_DIFFUSERS"  # the path of train_text_to_image.py from diffusers' source
FIGURES = "EDKIT_BENCH_FIGURES"  # a file that collects what `tell` is told


def peer_python(name: str, *packages: str, over: bool = False) -> Path:
    """The interpreter of a virtual environment that has these packages, made once.

    `over`: it sees what this interpreter has installed, too, so that both sides run the very same torch.
    """
    home = Path(os.environ.get(VENVS) or Path(tempfile.gettempdir()) / "edkit-bench") / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = " ".join(packages)
    done = home / "installed"
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {wanted} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        if over:
            theirs = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
            Path(theirs, "over.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        done.write_text(wanted, encoding="utf-8")
    return python


def imagededup_python() -> Path:
    """The interpreter that has imagededup, over this one's packages: it asks for torch, which its hashes never use."""
    return peer_python("imagededup", "imagededup", over=True)


def peer_version(python: Path, package: str) -> str:
    """A package's version in a peer's environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def machine(*packages: str) -> str:
    """When and where this runs: date, Python, the packages' versions, processor."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    where = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}{_processor()}"
    return ", ".join([f"{date.today():%-d %B %Y}", f"Python {platform.python_version()}", *found, where])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f" ({platform.processor()})" if platform.processor() else ""
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    has = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flag in flags]
    return f" ({', '.join(has)})" if has else ""


def by_turns(ways: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: bool = True) -> dict[str, list[T]]:
    """What each way gave, round after round, all of them taking turns; one round before them only warms up."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, way in ways.items():
            given = way()
            if number:
                found[name].append(given)
    return found


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows a whole round down is in both."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def peak_mb() -> float:
    """The most memory this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells of a child begins with its parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def tell(
    stage: str,
    *,
    edkit: float,
    unit: str,
    peer: str = "",
    value: float | None = None,
    floor: str = "",
    limit: float | None = None,
    aim: str = "",
    reached: bool | None = None,
) -> None:
    """One line of the summary: what edkit does, what a peer does, and what the machine could do at most.

    A unit that ends in "/s" is better the larger it is; any other the smaller.
    """

    def beside(other: float | None) -> float | None:
        if not other or not edkit:
            return None
        return edkit / other if unit.endswith("/s") else other / edkit

    row = {
        "stage": stage, "edkit": edkit, "unit": unit, "peer": peer, "value": value, "ratio": beside(value),
        "floor": floor, "limit": limit, "share": beside(limit), "aim": aim, "reached": reached,
        "date": date.today().isoformat(),
    }  # fmt: skip
    into = os.environ.get(FIGURES)
    if into:
        with Path(into).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


# ---- pictures, where no photos are given

VARIANTS = 16  # of each drawn picture: mirrored, turned, its colours changed about


def draw(seed: int, size: tuple[int, int] = (640, 480), quality: int = 80) -> list[bytes]:
    """JPEGs as large as photos of that size: a gradient, and noise of several sizes (640 x 480: about 70 kB)."""
    import numpy as np
    from PIL import Image

    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / width
    picture = np.stack([rng.uniform(20, 120) + 180 * (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) ** 2] * 3, -1)
    for cells, strength in ((12, 45), (40, 30), (160, 22), (480, 13)):
        noise = rng.normal(0, strength, (cells * 3 // 4, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize(size, Image.Resampling.BILINEAR) for c in range(3)]
        picture += np.stack([np.asarray(layer) for layer in layers], -1)
    pixels = picture.clip(0, 255).astype(np.uint8)
    found = []
    for n in range(VARIANTS):
        turned = pixels[:: -1 if n & 1 else 1, :: -1 if n & 2 else 1, np.roll([0, 1, 2], n >> 2)]
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(turned + np.uint8(n >> 2))).save(out, "JPEG", quality=quality)
        found.append(out.getvalue())
    return found


def draw_all(folder: Path, num: int) -> list[int]:
    """That many pictures as NUMBER.jpg in a new folder; their sizes in bytes."""
    folder.mkdir(parents=True)
    sizes: list[int] = []
    with ProcessPoolExecutor() as pool:
        for some in pool.map(draw, range(-(-num // VARIANTS)), chunksize=4):
            for data in some[: num - len(sizes)]:
                (folder / f"{len(sizes)}.jpg").write_bytes(data)
                sizes.append(len(data))
    return sizes


def photos(folder: Path | None, scratch: Path, num: int) -> list[Path]:
    """The JPEGs below a folder, or, where none is named, drawn ones in `scratch`."""
    if folder is None:
        draw_all(scratch / "drawn", num)
        folder = scratch / "drawn"
    found = sorted(folder.rglob("*.jpg"))
    if not found:
        sys.exit(f"no .jpg below {folder}")
    return found
