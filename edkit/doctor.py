"""`doctor`: what this machine can do, what is missing, and the line that mends it. Works where torch is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from edkit.data import hub
from edkit.data.errors import MissingExtra
from edkit.data.places import state_dir_for
from edkit.measure.machine import Machine, look

EXTRAS: dict[str, str] = {
    "train": "training, generating",
    "clip": "aesthetic scores, embeddings, token counts",
    "caption": "captions by a vision-language model",
    "tag": "tags by an ONNX tagger",
    "nsfw": "unsafe scores",
    "faces": "faces, and crops that cut them",
    "video": "frames of videos",
    "remote": "tables and sets on s3:// and hf://",
    "dev": "the tests",
}
"""Each extra, and what it is for; `all` is the sum of most."""

_GET_STARTED = 'the "Get started" page of the torch project'
_MODEL_BYTES = 14_000_000_000  # what a large model, as published, takes of a disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "bad"]  # note: nothing that edkit does here needs it now
    what: str
    found: str
    mend: tuple[str, ...] = ()  # lines to type or to follow, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk that matters."""

    what: str
    path: Path
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one family trains here by one method."""

    family: str
    method: str
    preset: str | None  # None: no preset fits
    needed_gib: float  # of the preset; of the smallest one where none fits
    figure: str  # how that is known: "computed 30 November 2026"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `doctor` found."""

    machine: Machine
    disks: tuple[Disk, ...]
    extras: dict[str, tuple[str, ...]]  # what each lacks
    findings: tuple[Finding, ...]
    trains: tuple[Fit, ...]  # empty where the packages for it are missing


def doctor() -> Diagnosis:
    """Look at this machine, the installed packages and the disks; nothing is changed, nothing is fetched."""
    machine = look()
    requirements, install = _requirements()
    extras = {name: lacking(requirements, name) for name in EXTRAS} if requirements else {}
    places = {
        "this folder": Path.cwd(),
        "models from the hub": hub.cache_dir(),
        "edkit's state": state_dir_for(Path.cwd()),
    }
    disks = tuple(Disk(what=what, path=path, free_bytes=_free(path)) for what, path in places.items())
    return Diagnosis(
        machine=machine,
        disks=disks,
        extras=extras,
        findings=tuple(findings(machine, disks, extras, has_token=bool(hub.token()), install=install)),
        trains=_trains(machine),
    )


def findings(
    machine: Machine,
    disks: Sequence[Disk],
    extras: Mapping[str, Sequence[str]],
    *,
    has_token: bool,
    install: Callable[[str], str],
) -> list[Finding]:
    """What is to be said of a machine; `install` is the line that installs an extra."""
    m = machine
    processor = f"{m.num_cores} core{'s' if m.num_cores > 1 else ''}, {gibibytes(m.memory_bytes)} of memory"
    if m.free_bytes is not None:
        processor += f", {gibibytes(m.free_bytes)} free"
    found = [
        Finding(level="ok", what="system", found=f"{m.system} {m.processor}, Python {m.python}"),
        Finding(level="ok", what="processor", found=processor),
        _torch_finding(m, install),
        *_gpu_findings(m),
    ]
    for disk in disks:
        room = f"{gigabytes(disk.free_bytes)} free at {disk.path}"
        short = disk.what == "models from the hub" and disk.free_bytes < _MODEL_BYTES
        mend: tuple[str, ...] = ()
        if short:
            set_home = {"Windows": r"setx HF_HOME D:\huggingface"}.get(m.system, "export HF_HOME=/larger/huggingface")
            mend = (f"a large model takes {gigabytes(_MODEL_BYTES)}; keep them elsewhere: {set_home}",)
        found.append(Finding(level="note" if short else "ok", what=disk.what, found=room, mend=mend))
    token = "there" if has_token else "none: models that ask you to accept terms can't be fetched"
    login = () if has_token else ("hf auth login",)
    found.append(Finding(level="ok" if has_token else "note", what="hub token", found=token, mend=login))
    for name, missing in extras.items():
        lacks = f"complete ({EXTRAS[name]})" if not missing else f"lacks {', '.join(missing)} ({EXTRAS[name]})"
        how = (install(name),) if missing else ()
        found.append(Finding(level="note" if missing else "ok", what=f"extra {name}", found=lacks, mend=how))
    return found


def _torch_finding(m: Machine, install: Callable[[str], str]) -> Finding:
    nvidia = any(card.vendor == "NVIDIA" for card in m.cards)
    if m.torch is None:
        first = (f"first the line of {_GET_STARTED} for Windows, Pip, Python, CUDA",)
        own_line = first if m.system == "Windows" and nvidia else ()
        found = "not installed: gathering, cleaning, balancing run; training and CLIP don't"
        return Finding(level="bad", what="torch", found=found, mend=(*own_line, install("train")))
    if m.torch.error:
        again = ("pip uninstall -y torch", f"then the line of {_GET_STARTED} for {m.system}")
        first = ("install Microsoft's Visual C++ redistributable (x64); where that mends nothing:",)
        found = f"{m.torch.version}, and it can't be imported: {m.torch.error}"
        return Finding(level="bad", what="torch", found=found, mend=(*(first if m.system == "Windows" else ()), *again))
    return Finding(level="ok", what="torch", found=f"{m.torch.version}, {m.torch.build} build")


def _gpu_findings(m: Machine) -> list[Finding]:
    if m.gpus:
        return [
            Finding(
                level="ok" if gpu.bf16 else "note",
                what="GPU",
                found=f"{gpu.name}, {gibibytes(gpu.memory_bytes)}"
                + (f", {gibibytes(gpu.free_bytes)} free" if gpu.free_bytes is not None else "")
                + (", bf16" if gpu.bf16 else ", no bf16"),
                mend=() if gpu.bf16 else ("train with --precision fp16; presets do so by themselves",),
            )
            for gpu in m.gpus
        ]
    seen = [card for card in m.cards if m.system != "macOS"]
    if not seen:
        if m.system == "macOS" and m.processor == "x86_64":
            found = "none that torch can use (an Intel Mac)"
        else:
            found = "none: training runs on the processor, which is slow for real models"
        return [Finding(level="note", what="GPU", found=found)]
    card = seen[0]
    name = card.name or f"an {card.vendor} GPU"
    uses = {"NVIDIA": "cuda", "AMD": "rocm"}[card.vendor]
    if not card.driver:
        found = f"{name} is there, but no driver is loaded"
        return [Finding(level="bad", what="GPU", found=found, mend=(f"install {card.vendor}'s driver, then reboot",))]
    if m.torch is None or m.torch.error:
        return [Finding(level="note", what="GPU", found=f"{name}, driver {card.driver}: torch will tell more")]
    if not m.torch.build.startswith(uses):
        found = f"{name} is there, but this torch is a {m.torch.build} build and can't use it"
        return [Finding(level="bad", what="GPU", found=found, mend=_other_build(m, uses))]
    found = f"{name} is there (driver {card.driver}), but torch's {m.torch.build} build can't use it"
    how = f"update {card.vendor}'s driver, which is likely older than this torch wants, then reboot"
    return [Finding(level="bad", what="GPU", found=found, mend=(how,))]


def _other_build(m: Machine, uses: str) -> tuple[str, ...]:
    """The lines that replace torch by a build for this GPU."""
    packages = "torch torchvision" if _installed("torchvision") else "torch"
    if uses == "cuda" and m.system == "Linux":
        return (f"pip uninstall -y {packages}", f"pip install {packages}")
    if uses == "rocm" and m.system == "Windows":
        return (f"see {_GET_STARTED}: whether it has a ROCm build for Windows and this GPU",)
    kind = {"cuda": "CUDA", "rocm": "ROCm"}[uses]
    return (f"pip uninstall -y {packages}", f"then the line of {_GET_STARTED} for {m.system}, Pip, Python, {kind}")


# ---- extras


def _requirements() -> tuple[list[str], Callable[[str], str]]:
    """edkit's own requirements, and the line that installs an extra of this installation."""
    try:
        about = metadata.distribution("edkit")
    except metadata.PackageNotFoundError:  # a checkout on the path, never installed
        return [], lambda extra: f'pip install -e ".[{extra}]"'
    source = about.read_text("direct_url.json")
    origin = json.loads(source) if source else {}
    if origin.get("dir_info", {}).get("editable"):
        folder = url2pathname(unquote(urlsplit(origin["url"]).path))
        return about.requires or [], lambda extra: f'pip install -e "{folder}[{extra}]"'
    return about.requires or [], lambda extra: f'pip install "edkit[{extra}]"'


def lacking(
    requirements: Sequence[str], extra: str, version: Callable[[str], str | None] | None = None
) -> tuple[str, ...]:
    """What an extra needs (`name>=1.2; extra == 'x'`, as package metadata has it) and what isn't installed so."""
    known = version or _installed
    missing = []
    for line in requirements:
        wanted, _, marker = line.partition(";")
        found = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(>=|==)?\s*([0-9.]*)", wanted.strip())
        if found is None or not re.search(rf"""extra\s*==\s*['"]{extra}['"]""", marker) or found[1] == "edkit":
            continue
        name, sign, number = found[1], found[2], found[3]
        have = known(name)
        if have is None:
            missing.append(name)
        elif (sign == ">=" and _release(have) < _release(number)) or (
            sign == "==" and _release(have) != _release(number)
        ):
            missing.append(f"{name} {sign} {number} (here: {have})")
    return tuple(missing)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """`2.14.1+cu130` -> (2, 14, 1), without zeros at the end."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# ---- what runs


def _trains(machine: Machine) -> tuple[Fit, ...]:
    try:
        from edkit.train.presets import FIGURE, METHODS, PRESETS, fitting, smallest
    except MissingExtra:
        return ()
    rows = []
    for family in dict.fromkeys(preset.family for preset in PRESETS):
        for method in METHODS:
            chosen = fitting(machine, family, method)
            told = chosen or smallest(machine, family, method)
            rows.append(
                Fit(
                    family=family,
                    method=method,
                    preset=chosen.name if chosen else None,
                    needed_gib=told.needed_gib,
                    figure=FIGURE,
                )
            )
    return tuple(rows)


def _free(path: Path) -> int:
    """Free bytes of the disk that a path is on, or would be on."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def gigabytes(num_bytes: int) -> str:
    """`12.3 GB`, as disks are sold: 1000 million bytes each."""
    return f"{num_bytes / 1e9:.1f} GB"


def gibibytes(num_bytes: int) -> str:
    """`12.0 GiB`, as memory is sold: 1024 x 1024 x 1024 bytes each."""
    return f"{num_bytes / 2**30:.1f} GiB"
