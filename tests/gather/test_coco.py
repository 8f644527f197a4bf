"""COCO comes in by category, with one caption an image, its licence and its source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import caption_of_stem
from edkit.gather.coco import import_coco


def make(folder: Path, n: int = 6) -> dict[str, Path]:
    """A set of n images in COCO's layout: two captions each; even ones show a dog, every third a cat."""
    images = folder / "train2017"
    images.mkdir(parents=True)
    data: dict[str, Any] = {
        "licenses": [{"id": 4, "name": "Attribution", "url": "http://creativecommons.org/licenses/by/2.0/"}],
        "images": [],
        "annotations": [],
    }
    shown = []
    for i in range(n):
        Image.new("RGB", (80 + i, 60), (i * 40 % 256, 90, 10)).save(images / f"{i:012d}.jpg")
        data["images"].append(
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 80 + i, "height": 60, "license": 4,
             "coco_url": f"http://images.example/{i:012d}.jpg", "flickr_url": f"http://flickr.example/{i}"}
        )  # fmt: skip
        data["annotations"] += [{"image_id": i, "id": 2 * i + k, "caption": f"scene {i} of {'ab'[k]}"} for k in (1, 0)]
        shown += [{"image_id": i, "id": i, "category_id": c, "segmentation": [[1, 2]]}
                  for c, every in ((18, 2), (17, 3)) if i % every == 0]  # fmt: skip
    (folder / "captions.json").write_text(json.dumps(data), encoding="utf-8")
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    (folder / "instances.json").write_text(json.dumps({"annotations": shown, "categories": categories}), "utf-8")
    return {"annotations": folder / "captions.json", "images": images}


def names(out: Path) -> list[str]:
    return sorted(p.name for p in out.glob("*.*") if p.is_file())


def ledger(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger())


def test_each_image_gets_its_first_caption_licence_and_source(tmp_path: Path) -> None:
    result = import_coco(**make(tmp_path), out=tmp_path / "out")  # type: ignore[arg-type]
    assert result.kept == result.total == 6
    assert names(tmp_path / "out") == [f"scene {i} of a_(1).jpg" for i in range(6)]
    for i, row in enumerate(ledger(tmp_path / "out")):
        assert row.licence == "http://creativecommons.org/licenses/by/2.0/" and row.row == i
        assert row.extra is not None and row.extra["page"] == f"http://flickr.example/{i}"
        assert (row.width, row.height) == (80 + i, 60) and row.url == f"http://images.example/{i:012d}.jpg"


def test_a_category_picks_the_images_that_show_it_and_a_typo_names_the_nearest(tmp_path: Path) -> None:
    coco: dict[str, Any] = {**make(tmp_path), "instances": tmp_path / "instances.json"}
    result = import_coco(**coco, out=tmp_path / "dogs", categories=["dog"])
    assert [row.row for row in ledger(tmp_path / "dogs")] == [0, 2, 4] and result.dropped == {"--category": 3}
    import_coco(**coco, out=tmp_path / "both", categories=["Dog, cat"])
    assert [row.row for row in ledger(tmp_path / "both")] == [0, 2, 3, 4]
    with pytest.raises(UsageError, match=r"--category dgo: not in instances\.json; there is dog"):
        import_coco(**coco, out=tmp_path / "no", categories=["dgo"])


def test_small_objects_crowds_and_unwanted_categories_can_be_left_out(tmp_path: Path) -> None:
    coco: dict[str, Any] = {**make(tmp_path), "instances": tmp_path / "instances.json"}
    shown = json.loads(coco["instances"].read_text("utf-8"))
    shown["images"] = json.loads(coco["annotations"].read_text("utf-8"))["images"]
    for note in shown["annotations"]:
        note.update(area=10.0 if note["image_id"] == 2 else 3000.0, iscrowd=int(note["image_id"] == 4))
    coco["instances"].write_text(json.dumps(shown), "utf-8")

    def rows(out: str, **options: Any) -> list[int | None]:
        import_coco(**coco, out=tmp_path / out, **options)
        return [row.row for row in ledger(tmp_path / out)]

    assert rows("large", categories=["dog"], min_area=0.1) == [0, 4]
    assert rows("single", categories=["dog"], crowds=False) == [0, 2]
    assert rows("no cats", categories=["dog"], exclude_categories=["cat"]) == [2, 4]
    assert rows("only no cats", exclude_categories=["cat"]) == [1, 2, 4, 5]
    with pytest.raises(UsageError, match=r"--min-area 2: a share"):
        rows("no", categories=["dog"], min_area=2.0)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path)
    data = json.loads(coco["annotations"].read_text("utf-8"))
    data["images"][0]["file_name"] = "../outside.jpg"
    data["images"][1]["license"] = 99
    coco["annotations"].write_text(json.dumps(data), "utf-8")
    result = import_coco(**coco, out=tmp_path / "out", licence="unknown")
    assert result.outcomes == {"ok": 5, "unsafe-name": 1}
    assert [row.licence for row in ledger(tmp_path / "out") if row.row == 1] == ["unknown"]


def test_a_random_caption_depends_on_seed_and_image_alone(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path, 40)
    found = {}
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_coco(**coco, out=tmp_path / out, caption_choice="random", seed=seed)
        found[out] = names(tmp_path / out)
    assert found["a"] == found["b"] != found["c"]
    assert 8 < sum(" b_" in name for name in found["a"]) < 32


def test_run_again_it_goes_on_and_a_limit_holds_over_all_runs(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path)
    missing = coco["images"] / f"{1:012d}.jpg"
    whole = missing.read_bytes()
    missing.write_bytes(whole[:300])
    (coco["images"] / f"{2:012d}.jpg").unlink()
    out = tmp_path / "out"
    first = import_coco(**coco, out=out, limit=3)
    assert first.outcomes == {"ok": 3, "broken-image": 1, "missing": 1}
    assert [name for name, _ in first.failed] == [f"{1:012d}.jpg", f"{2:012d}.jpg"]
    missing.write_bytes(whole)
    assert import_coco(**coco, out=out, limit=3).kept == 0
    rest = import_coco(**coco, out=out)
    assert rest.kept == 2 and rest.total == 5 and rest.outcomes["missing"] == 1
    assert len(names(out)) == 5 and not (out / ".incoming").exists()


def test_links_share_the_file_and_copies_do_not(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path)
    import_coco(**coco, out=tmp_path / "linked", link=True)
    import_coco(**coco, out=tmp_path / "copied")
    source = coco["images"] / f"{0:012d}.jpg"
    assert source.samefile(tmp_path / "linked" / "scene 0 of a_(1).jpg")
    assert not source.samefile(tmp_path / "copied" / "scene 0 of a_(1).jpg")
    assert source.read_bytes() == (tmp_path / "copied" / "scene 0 of a_(1).jpg").read_bytes()


def test_download_fetches_what_the_annotations_name(tmp_path: Path, web: Any) -> None:
    coco = make(tmp_path)
    data = json.loads(coco["annotations"].read_text("utf-8"))
    for i, image in enumerate(data["images"]):
        image["coco_url"] = web.url(f"/image/{i}" if i != 2 else "/404")
    coco["annotations"].write_text(json.dumps(data), "utf-8")
    result = import_coco(annotations=coco["annotations"], download=True, out=tmp_path / "out", allow_private_hosts=True)
    assert result.outcomes == {"ok": 5, "http-404": 1}
    assert names(tmp_path / "out") == [f"scene {i} of a_(1).jpg" for i in (0, 1, 3, 4, 5)]


def test_wrong_files_and_calls_are_one_line(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path)
    with pytest.raises(UsageError, match="--images DIR, or --download"):
        import_coco(annotations=coco["annotations"], out=tmp_path / "out")
    with pytest.raises(UsageError, match="--category and --instances"):
        import_coco(**coco, out=tmp_path / "out", categories=["dog"])
    with pytest.raises(BadInput, match="no COCO file: it has no list of images"):
        import_coco(annotations=tmp_path / "instances.json", images=coco["images"], out=tmp_path / "out")
    (tmp_path / "broken.json").write_text("{", "utf-8")
    with pytest.raises(BadInput, match=r"broken\.json: not JSON"):
        import_coco(annotations=tmp_path / "broken.json", images=coco["images"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("odd", [{"width": "abc"}, {"width": float("inf")}, {"file_name": 5}, {"coco_url": [1]}])
def test_a_value_of_another_kind_is_one_line(odd: dict[str, Any], tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path, 2)
    data = json.loads(coco["annotations"].read_text("utf-8"))
    data["images"][1].update(odd)
    coco["annotations"].write_text(json.dumps(data).replace("Infinity", "1e999"), "utf-8")
    with pytest.raises(BadInput, match=r"captions\.json: not as COCO writes it"):
        import_coco(**coco, out=tmp_path / "out")


def test_a_json_nested_without_end_is_one_line(tmp_path: Path) -> None:
    coco: dict[str, Any] = make(tmp_path, 2)
    coco["annotations"].write_text("[" * 200_000, "utf-8")
    with pytest.raises(BadInput, match=r"captions\.json: not JSON"):
        import_coco(**coco, out=tmp_path / "out")


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    result = import_coco(**make(tmp_path), out=tmp_path / "out", dry_run=True)  # type: ignore[arg-type]
    assert result.matched == 6 and result.kept == 0 and not (tmp_path / "out").exists()


def test_real_coco_photos_as_a_user_imports_them(tmp_path: Path, shared_data: Path) -> None:
    coco = shared_data / "coco-mini"
    done = subprocess.run(
        [sys.executable, "-m", "edkit", "import", "coco", "--out", "pool",
         "--annotations", str(coco / "annotations" / "captions_train2017.json"),
         "--images", str(coco / "train2017"), "--category", "person",
         "--instances", str(coco / "annotations" / "instances_train2017.json")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80 and "added to pool" in done.stdout
    written = json.loads((coco / "annotations" / "captions_train2017.json").read_text("utf-8"))
    captions = {note["caption"].strip() for note in written["annotations"]}
    rows = ledger(tmp_path / "pool")
    assert 20 < len(rows) < 80
    for row in rows:
        assert row.path is not None and row.caption in captions
        sidecar = row.path.with_name(f"{row.path.stem}.txt")
        read = sidecar.read_text("utf-8") if sidecar.exists() else caption_of_stem(row.path.stem)
        assert read == row.caption and row.licence
