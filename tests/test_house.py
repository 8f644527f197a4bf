"""The house stands as docs/architecture.md draws it: who may import whom, and nothing runs in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "edkit"
GROUND = {"data", "measure", "nano", "page"}
WINGS = {"gather", "clean", "caption", "balance", "train", "prove"}
ROOT = ""  # edkit/__init__.py, which holds the version

ALLOWED: dict[str, set[str]] = {
    ROOT: set(),
    "data": {ROOT, "data"},
    **{room: {ROOT, "data", room} for room in GROUND - {"data"}},
    **{wing: {ROOT, wing} | GROUND for wing in WINGS},
    "prove": {ROOT, "prove", "train"} | GROUND,
    "demo": {ROOT, "demo"} | GROUND | WINGS,
    "doctor": {ROOT} | GROUND | WINGS,
    "api": {ROOT, "demo", "doctor"} | GROUND | WINGS,
    "cli": {ROOT, "cli", "demo", "doctor"} | GROUND | WINGS,
    "__main__": {"cli"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the leading `edkit`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, path: Path) -> set[str]:
    """The modules of edkit that this one imports, wherever in the file (inside functions too)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            base = node.module or ""
            inside = base == "edkit" or base.startswith("edkit.")
            targets = [f"{base}.{a.name}" if inside else base for a in node.names]
        else:
            continue
        for target in targets:
            if target == "edkit" or target.startswith("edkit."):
                dotted = target.removeprefix("edkit").removeprefix(".")
                # `from edkit.data.errors import X` names a thing inside a module: climb to the module
                while dotted not in MODULES:
                    dotted = dotted.rpartition(".")[0]
                found.add(dotted)
    return found - {name}


GRAPH = {name: imports(name, path) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", GRAPH)
def test_a_room_imports_only_what_the_house_allows(module: str) -> None:
    strangers = {target for target in GRAPH[module] if room(target) not in ALLOWED[room(module)]}
    assert not strangers, f"edkit.{module} may not import {sorted(strangers)}"


def test_nothing_runs_in_a_circle() -> None:
    # a package's __init__ is a room's door: importing a module through it is no arrow of its own
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_the_tests_mirror_the_house() -> None:
    for name in GROUND | WINGS:
        modules = [m for m in MODULES if m.startswith(f"{name}.")]
        folder = PACKAGE.parent / "tests" / name
        assert not modules or list(folder.glob("test_*.py")), f"tests/{name}/ is missing"
