"""Images and their sidecars go to the trash, and come back, together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edkit.clean.files import Unwanted, list_images, open_catalog, set_aside
from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, UsageError
from edkit.data.journal import Trash, undo


def tree(root: Path, *names: str) -> dict[str, Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return {name: root / name for name in names}


def names(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and ".edkit" not in p.parts}


def test_lists_images_and_their_sidecars(tmp_path: Path) -> None:
    at = tree(tmp_path, "b.JPG", "a.png", "a.txt", "a.yaml", "sub/c.webp", ".hidden/d.jpg", ".e.jpg", "notes.md")
    found = list_images([tmp_path, tmp_path / "sub"])
    assert found.images == (at["a.png"], at["b.JPG"], at["sub/c.webp"])
    assert set(found.sidecars[at["a.png"]]) == {at["a.txt"], at["a.yaml"]}


def test_folder_options_are_no_sidecars(tmp_path: Path) -> None:
    at = tree(tmp_path, "multiply.jpg", "multiply.txt", "local.png", "local.yaml")
    found = list_images([tmp_path])
    assert found.sidecars == {}
    with Catalog.open(tmp_path) as catalog:
        set_aside(
            catalog,
            found,
            [Unwanted(path=at[name], reason="test") for name in ("multiply.jpg", "local.png")],
            verb="filter",
        )
    assert names(tmp_path) == {"multiply.txt", "local.yaml"}


def test_sidecars_go_with_their_image_and_come_back(tmp_path: Path) -> None:
    at = tree(tmp_path, "a.jpg", "a.txt", "a.yaml", "b.jpg", "b.txt")
    before = names(tmp_path)
    with Catalog.open(tmp_path) as catalog:
        listing = list_images([tmp_path])
        applied = set_aside(catalog, listing, [Unwanted(path=at["a.jpg"], reason="test")], verb="filter")
    assert applied.num_done == 3
    assert names(tmp_path) == {"b.jpg", "b.txt"}
    undo(tmp_path)
    assert names(tmp_path) == before
    assert at["a.txt"].read_bytes() == b"a.txt"


def test_a_shared_sidecar_stays_until_its_last_image_goes(tmp_path: Path) -> None:
    at = tree(tmp_path, "a.jpg", "a.png", "a.txt")
    with Catalog.open(tmp_path) as catalog:
        listing = list_images([tmp_path])
        set_aside(catalog, listing, [Unwanted(path=at["a.jpg"], reason="test")], verb="filter")
        assert names(tmp_path) == {"a.png", "a.txt"}
    undo(tmp_path)
    with Catalog.open(tmp_path) as catalog:
        both = [Unwanted(path=at[name], reason="test") for name in ("a.jpg", "a.png")]
        assert set_aside(catalog, list_images([tmp_path]), both, verb="filter").num_done == 3
    assert names(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a right that users seldom have")
def test_a_file_is_one_image_however_many_links_lead_to_it(tmp_path: Path) -> None:
    at = tree(tmp_path, "z/real.jpg", "z/other.jpg")
    (tmp_path / "a_link.jpg").symlink_to(at["z/real.jpg"])
    (tmp_path / "b").symlink_to(tmp_path / "z")
    found = list_images([tmp_path])
    assert found.images == (at["z/other.jpg"], at["z/real.jpg"])
    assert found.links[tmp_path / "a_link.jpg"] == found.links[tmp_path / "b" / "real.jpg"] == at["z/real.jpg"]
    assert found.under([tmp_path / "b"]) == set(found.images)
    with Catalog.open(tmp_path) as catalog:
        linked = [Unwanted(path=tmp_path / "b" / "real.jpg", reason="test")]
        applied = set_aside(catalog, found, linked, verb="filter")
    assert applied.num_done == 0
    assert [(change.path, why) for change, why in applied.skipped if isinstance(change, Trash)] == [
        (tmp_path / "b" / "real.jpg", f"the same file as {at['z/real.jpg']}, which stays")
    ]


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    at = tree(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").hardlink_to(at["a.jpg"])
    assert list_images([tmp_path]).images == (at["a.jpg"], tmp_path / "b.jpg")


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list_images([tmp_path / "none"])


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    at = tree(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="not a folder"):
        list_images([at["a.jpg"]])


def test_looking_makes_no_state_where_there_is_none(tmp_path: Path) -> None:
    with open_catalog(tmp_path, state_dir=None, changes=False, command="check") as catalog:
        assert not catalog.writable
    assert list(tmp_path.iterdir()) == []


def test_looking_keeps_facts_where_there_is_a_state(tmp_path: Path) -> None:
    Catalog.open(tmp_path).close()
    with open_catalog(tmp_path, state_dir=None, changes=False, command="check") as catalog:
        assert catalog.writable


def test_a_dry_run_finishes_nothing_that_was_interrupted(
    tmp_path: Path, swap_killed_midway: Callable[[Path, Path], None]
) -> None:
    at = tree(tmp_path, "a.jpg", "b.jpg")
    swap_killed_midway(at["a.jpg"], at["b.jpg"])
    before = names(tmp_path)
    with pytest.raises(BadInput, match=r"operation 1 \(swap\) is under way.*edkit check"):
        open_catalog(tmp_path, state_dir=None, changes=False, command="dedupe")
    assert names(tmp_path) == before
    with open_catalog(tmp_path, state_dir=None, changes=False, finish=True, command="check"):
        assert names(tmp_path) == {"a.jpg", "b.jpg"} != before


def test_looking_works_while_another_edkit_writes(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import pathlib, sys\nfrom edkit.data.catalog import Catalog\n"
        "with Catalog.open(pathlib.Path(sys.argv[1])):\n    print('open', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with open_catalog(tmp_path, state_dir=None, changes=False, command="check") as catalog:
            assert not catalog.writable
        other.communicate("")
