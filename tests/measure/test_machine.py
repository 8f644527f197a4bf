"""What the machine is, asked of a real system and of the files and programs that a GPU's driver brings."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.measure.machine import Card, cards, look, memory_bytes, parse_meminfo, parse_nvidia_smi, system


def test_this_machine_has_cores_and_memory() -> None:
    here = look(with_torch=False)
    assert here.num_cores >= 1 and here.torch is None and here.gpus == ()
    total, free = memory_bytes()
    assert here.memory_bytes == total > 1 << 28
    assert free is None or 0 < free <= total


def test_the_installed_torch_is_described() -> None:
    torch = pytest.importorskip("torch")
    here = look().torch
    assert here is not None and here.version == torch.__version__ and here.error == ""
    assert here.build == (f"cuda {torch.version.cuda}" if torch.version.cuda else here.build)


def test_systems_have_their_people_s_names() -> None:
    assert [system(name) for name in ("win32", "darwin", "linux", "freebsd14")] == [
        "Windows",
        "macOS",
        "Linux",
        "Linux",
    ]


def test_meminfo_is_read() -> None:
    assert parse_meminfo("MemTotal: 100 kB\nMemFree: 7 kB\nMemAvailable:   42 kB\n") == 42 * 1024
    assert parse_meminfo("MemTotal: 100 kB\n") is None
    assert parse_meminfo("MemAvailable: much\n") is None


def test_nvidia_smi_s_lines_are_read() -> None:
    text = "NVIDIA GeForce RTX 3060, 12288, 550.54.14\nNVIDIA GB10, [N/A], 580.95.05\n\nFailed to initialize NVML\n"
    assert parse_nvidia_smi(text) == [
        Card(vendor="NVIDIA", name="NVIDIA GeForce RTX 3060", memory_bytes=12288 << 20, driver="550.54.14"),
        Card(vendor="NVIDIA", name="NVIDIA GB10", memory_bytes=None, driver="580.95.05"),
    ]


@given(st.text())
def test_no_answer_of_a_driver_breaks_it(text: str) -> None:
    assert all(card.name for card in parse_nvidia_smi(text))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for nvidia-smi")
def test_nvidia_smi_is_asked_where_it_is(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA GeForce RTX 4090, 24564, 560.35"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    nowhere = tmp_path / "nowhere"
    found = cards(which=lambda name: str(program), proc=nowhere, sys_dir=nowhere)
    assert [(card.name, card.memory_bytes) for card in found] == [("NVIDIA GeForce RTX 4090", 24564 << 20)]
    # a driver that doesn't answer: what the kernel says counts
    program.write_text("#!/bin/sh\nexit 9\n")
    gpu = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 16\n")
    found = cards(which=lambda name: str(program), proc=tmp_path / "proc", sys_dir=nowhere)
    assert [(card.name, card.driver) for card in found] == [("NVIDIA GeForce RTX 4090", "loaded")]


@pytest.mark.skipif(Path("/usr/lib/wsl/lib/nvidia-smi").is_file(), reason="this machine's own nvidia-smi would answer")
def test_a_gpu_without_a_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    devices = {
        "0": ("0x10de", "0x030000"),
        "1": ("0x10de", "0x040300"),
        "2": ("0x1002", "0x038000"),
        "3": ("0x8086", "0x030000"),
    }
    for name, (vendor, kind) in devices.items():
        folder = tmp_path / "bus" / "pci" / "devices" / name
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    found = cards(which=lambda name: None, proc=tmp_path / "nowhere", sys_dir=tmp_path)
    assert [(card.vendor, card.driver) for card in found] == [("NVIDIA", ""), ("AMD", "")]
