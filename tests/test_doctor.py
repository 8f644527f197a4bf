"""The doctor names what is missing and the line that mends it; it needs no torch for that, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edkit.cli.app import app
from edkit.doctor import Disk, Finding, findings, lacking
from edkit.measure.machine import Card, Gpu, Machine, System, Torch

NVIDIA = Card(vendor="NVIDIA", name="NVIDIA GeForce RTX 3060", memory_bytes=12 << 30, driver="550.54")
CPU_TORCH = Torch(version="2.9.0+cpu", build="cpu")
CUDA_TORCH = Torch(version="2.9.0", build="cuda 12.8")
CUDA = Gpu(name="NVIDIA GeForce RTX 3060", kind="cuda", memory_bytes=12 << 30, free_bytes=11 << 30, bf16=True)


def machine(
    *,
    system: System = "Linux",
    torch: Torch | None = CUDA_TORCH,
    cards: tuple[Card, ...] = (),
    gpus: tuple[Gpu, ...] = (),
) -> Machine:
    return Machine(
        system=system, processor="x86_64", python="3.12.1", num_cores=8, memory_bytes=32 << 30, free_bytes=None,
        cards=cards, torch=torch, gpus=gpus,
    )  # fmt: skip


def said(of: Machine, what: str) -> Finding:
    found = findings(of, (), {}, has_token=True, install=lambda extra: f'pip install "edkit[{extra}]"')
    return next(one for one in found if one.what == what)


def test_a_cpu_build_beside_an_nvidia_gpu_is_the_first_thing_to_mend() -> None:
    found = said(machine(torch=CPU_TORCH, cards=(NVIDIA,)), "GPU")
    assert found.level == "bad" and "RTX 3060 is there, but this torch is a cpu build" in found.found
    assert found.mend[-1].startswith("pip install torch")
    found = said(machine(system="Windows", torch=CPU_TORCH, cards=(NVIDIA,)), "GPU")
    assert found.mend[0].startswith("pip uninstall -y torch") and "for Windows, Pip, Python, CUDA" in found.mend[1]


def test_without_torch_windows_is_told_of_the_cuda_build_first() -> None:
    found = said(machine(system="Windows", torch=None, cards=(NVIDIA,)), "torch")
    assert found.level == "bad" and "Get started" in found.mend[0] and found.mend[1] == 'pip install "edkit[train]"'
    assert said(machine(torch=None, cards=(NVIDIA,)), "torch").mend == ('pip install "edkit[train]"',)


def test_a_torch_that_does_not_load_says_why() -> None:
    broken = Torch(version="2.9.0", build="", error="[WinError 126] fbgemm.dll")
    found = said(machine(system="Windows", torch=broken), "torch")
    assert found.level == "bad" and "WinError 126" in found.found and "Visual C++" in found.mend[0]


def test_drivers_are_told_apart_from_builds() -> None:
    bare = Card(vendor="NVIDIA", name="", memory_bytes=None, driver="")
    assert "no driver is loaded" in said(machine(cards=(bare,)), "GPU").found
    assert "update NVIDIA's driver" in said(machine(cards=(NVIDIA,)), "GPU").mend[0]
    amd = Card(vendor="AMD", name="", memory_bytes=None, driver="amdgpu")
    assert "Python, ROCm" in said(machine(cards=(amd,)), "GPU").mend[-1]


def test_a_gpu_that_works_is_described() -> None:
    found = said(machine(cards=(NVIDIA,), gpus=(CUDA,)), "GPU")
    assert (found.level, found.found) == ("ok", "NVIDIA GeForce RTX 3060, 12.0 GiB, 11.0 GiB free, bf16")
    old = Gpu(name="GTX 1080", kind="cuda", memory_bytes=8 << 30, free_bytes=None, bf16=False)
    assert "no bf16" in said(machine(gpus=(old,)), "GPU").found


def test_little_room_for_models_is_told_with_the_line_of_the_system() -> None:
    full = Disk(what="models from the hub", path=Path("hub"), free_bytes=3_000_000_000)
    for system, line in (("Windows", r"setx HF_HOME"), ("Linux", "export HF_HOME")):
        of = machine(system=system)  # type: ignore[arg-type]
        found = findings(of, (full,), {}, has_token=True, install=str)
        assert line in next(one for one in found if one.what == full.what).mend[0]


def test_an_extra_lacks_what_is_absent_or_too_old() -> None:
    wanted = [
        "numpy>=2.0",
        "torch>=2.6; extra == 'train'",
        "peft>=0.17; extra == 'train'",
        "mtcnn==1.0.0; extra == 'faces'",
    ]
    wanted += ['edkit[train]; extra == "all"', "torch>=2.6; extra == 'trainer'"]
    here = {"torch": "2.10.0+cu130", "mtcnn": "1.0"}.get
    assert lacking(wanted, "train", here) == ("peft",)
    assert lacking(wanted, "faces", here) == ()
    assert lacking(wanted, "all", here) == ()
    assert lacking(wanted, "train", {"torch": "2.5.1", "peft": "1.0"}.get) == ("torch >= 2.6 (here: 2.5.1)",)


def test_the_doctor_works_where_torch_is_missing(tmp_path: Path) -> None:
    # an import hook stands for a machine without torch: neither its metadata nor its module is found
    script = """
import importlib.metadata, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
real = importlib.metadata.version
def version(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
import importlib.util
spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else spec(name, package)
sys.argv = ["edkit", "doctor", "--json"]
from edkit.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["torch"] is None and found["trains"] == []
    torch = next(one for one in found["findings"] if one["what"] == "torch")
    assert torch["level"] == "bad" and "[train]" in torch["mend"][-1]
    assert "torch" in found["extras"]["train"]
    assert list(tmp_path.iterdir()) == []  # nothing is made, not even a state folder


def test_the_command_says_it_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "this folder" in result.output and "extra train" in result.output
    table = result.output.split("\n- ")[0].split("\n! ")[0]
    assert max(map(len, table.splitlines())) <= 80
