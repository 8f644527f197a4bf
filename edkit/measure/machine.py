"""What the machine is: processors, memory, GPUs, and the torch that is to use them. Works where torch is missing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

System = Literal["Linux", "Windows", "macOS"]

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_DISPLAY = "0x03"  # how the PCI class of display controllers begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    kind: Literal["cuda", "rocm", "mps"]
    memory_bytes: int
    free_bytes: int | None  # None: the system doesn't say
    bf16: bool  # computes in bf16 by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU that the system has, whether or not torch can use it."""

    vendor: str  # "NVIDIA", "AMD"
    name: str  # "" where only the bus was asked
    memory_bytes: int | None
    driver: str  # its version; "" where none is loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The installed torch."""

    version: str
    build: str  # "cpu", "cuda 13.0", "rocm 6.4", "mps"
    error: str = ""  # why it can't be imported
    bf16_cpu: bool = False  # this processor computes in bf16 by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine, as it is now."""

    system: System
    processor: str  # "x86_64", "arm64"
    python: str
    num_cores: int  # that this process may use
    memory_bytes: int
    free_bytes: int | None
    cards: tuple[Card, ...]
    torch: Torch | None  # None: not installed
    gpus: tuple[Gpu, ...]  # in torch's order


def look(*, with_torch: bool = True) -> Machine:
    """What this machine is; `with_torch` imports torch where it is installed."""
    torch, gpus = _torch() if with_torch else (None, ())
    memory, free = memory_bytes()
    return Machine(
        system=system(),
        processor=platform.machine(),
        python=platform.python_version(),
        num_cores=num_cores(),
        memory_bytes=memory,
        free_bytes=free,
        cards=cards(),
        torch=torch,
        gpus=gpus,
    )


def system(name: str = sys.platform) -> System:
    """The system's family; whatever is neither Windows nor macOS is treated as Linux."""
    return "Windows" if name == "win32" else "macOS" if name == "darwin" else "Linux"


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def memory_bytes() -> tuple[int, int | None]:
    """RAM in bytes: (all that this process may use, what is free of it where the system says)."""
    if sys.platform == "win32":
        return _windows_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = None
    with contextlib.suppress(OSError, UnicodeDecodeError):  # macOS has none
        free = parse_meminfo(Path("/proc/meminfo").read_text("ascii"))
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))  # "max" where a container has no limit
    except (OSError, ValueError):
        limit = total
    total = min(total, limit)
    return total, None if free is None else min(free, total)


def parse_meminfo(text: str) -> int | None:
    """`MemAvailable` of Linux's /proc/meminfo, in bytes."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name == "MemAvailable" and words and words[0].isdecimal():
            return int(words[0]) * 1024
    return None


def _windows_memory() -> tuple[int, int | None]:
    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "pages", "free_pages", "virtual", "v", "x")),
        )

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll")  # noqa: B009 (there is none elsewhere)
    windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total), int(status.free)


# ---- the system's GPUs


def cards(
    *, which: Callable[[str], str | None] = shutil.which, proc: Path = Path("/proc"), sys_dir: Path = Path("/sys")
) -> tuple[Card, ...]:
    """NVIDIA and AMD GPUs that the system has: by nvidia-smi, else the driver's files, else the PCI bus."""
    on_bus = _on_bus(sys_dir / "bus" / "pci" / "devices")
    nvidia = _nvidia_smi(which) or _driver_files(proc / "driver" / "nvidia")
    if not nvidia:
        nvidia = [Card(vendor="NVIDIA", name="", memory_bytes=None, driver="")] * on_bus.count("NVIDIA")
    amd_driver = (sys_dir / "module" / "amdgpu").is_dir()
    amd = Card(vendor="AMD", name="", memory_bytes=None, driver="amdgpu" if amd_driver else "")
    return (*nvidia, *[amd] * on_bus.count("AMD"))


def _nvidia_smi(which: Callable[[str], str | None]) -> list[Card]:
    root = os.environ.get("SYSTEMROOT", r"C:\Windows")
    places = [which("nvidia-smi"), rf"{root}\System32\nvidia-smi.exe" if sys.platform == "win32" else None]
    places.append("/usr/lib/wsl/lib/nvidia-smi")
    program = next((place for place in places if place and Path(place).is_file()), None)
    if program is None:
        return []
    asked = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run([program, *asked], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []  # the driver doesn't answer: its files, or the bus, may tell
    return parse_nvidia_smi(said.stdout)


def parse_nvidia_smi(text: str) -> list[Card]:
    """Lines of `name, memory in MiB, driver's version`; a line of another form is none."""
    found = []
    for line in text.splitlines():
        name, *rest = (part.strip() for part in line.rsplit(",", 2))
        if name and len(rest) == 2:
            memory = int(rest[0]) << 20 if rest[0].isascii() and rest[0].isdecimal() else None
            found.append(Card(vendor="NVIDIA", name=name, memory_bytes=memory, driver=rest[1]))
    return found


def _driver_files(folder: Path) -> list[Card]:
    """What NVIDIA's Linux driver says under /proc."""
    found = []
    for path in sorted(folder.glob("gpus/*/information")):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text("utf-8", "replace").splitlines() if ":" in line)
        except OSError:
            continue
        name = lines.get("Model", "").strip()
        found.append(Card(vendor="NVIDIA", name=name, memory_bytes=None, driver="loaded"))
    return found


def _on_bus(devices: Path) -> list[str]:
    """Vendors of the display controllers that Linux sees on the PCI bus."""
    found = []
    for device in sorted(devices.glob("*")):
        try:
            vendor = (device / "vendor").read_text("ascii").strip()
            kind = (device / "class").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if kind.startswith(_DISPLAY) and vendor in _VENDORS:
            found.append(_VENDORS[vendor])
    return found


# ---- torch


def _torch() -> tuple[Torch | None, tuple[Gpu, ...]]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("torch")
    except PackageNotFoundError:
        return None, ()
    try:
        import torch
    except (ImportError, OSError) as error:  # on Windows a missing system library is an OSError
        first = str(error).strip().splitlines()
        return Torch(version=number, build="", error=first[0] if first else type(error).__name__), ()
    number = str(torch.__version__)
    if torch.version.cuda:
        build = f"cuda {torch.version.cuda}"
    elif getattr(torch.version, "hip", None):
        build = f"rocm {torch.version.hip}"
    else:
        build = "mps" if torch.backends.mps.is_built() else "cpu"
    native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return Torch(version=number, build=build, bf16_cpu=bool(native and native())), tuple(_gpus(torch))


def _gpus(torch: Any) -> Sequence[Gpu]:
    if torch.cuda.is_available():
        return [_cuda(torch, i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        memory = int(torch.mps.recommended_max_memory())
        free = memory - int(torch.mps.driver_allocated_memory())
        return [Gpu(name=platform.processor() or "Apple", kind="mps", memory_bytes=memory, free_bytes=free, bf16=True)]
    return []


def _cuda(torch: Any, number: int) -> Gpu:
    about = torch.cuda.get_device_properties(number)
    try:
        free: int | None = torch.cuda.mem_get_info(number)[0]
    except RuntimeError:  # full to the last byte: not even room to ask
        free = None
    rocm = bool(getattr(torch.version, "hip", None))
    # is_bf16_supported() also says yes to cards that only emulate it (before Ampere, compute capability 8)
    bf16 = rocm or about.major >= 8
    kind: Literal["cuda", "rocm"] = "rocm" if rocm else "cuda"
    return Gpu(name=about.name, kind=kind, memory_bytes=about.total_memory, free_bytes=free, bf16=bf16)
