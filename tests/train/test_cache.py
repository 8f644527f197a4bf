"""Latents come back as they were made, and only for what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edkit.data.errors import BadInput
from edkit.data.image import Crop
from edkit.train.cache import LatentCache, View

Make = Callable[..., LatentCache]


def crop(width: int = 16, height: int = 16, *, flip: bool = False) -> Crop:
    return Crop(width=width, height=height, scaled_width=width, scaled_height=height, left=0, top=0, flip=flip)


def view(path: Path, at: Crop | None = None) -> View:
    return View(path=path, content_id=hashlib.sha256(path.read_bytes()).hexdigest(), crop=at or crop())


def draw(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Caches over one database, with a small convolution as encoder."""
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 4, 4, stride=4).requires_grad_(False)

    def open_cache(**changes: object) -> LatentCache:
        said: dict[str, object] = {"encode": encoder, "encoder_id": "conv", "memory_bytes": 1 << 20}
        path = changes.pop("path", tmp_path / "cache" / "latents.db")
        return LatentCache(path, **(said | changes))  # type: ignore[arg-type]

    return open_cache


def test_stored_latents_are_the_made_ones_to_the_bit(make: Make, tmp_path: Path) -> None:
    views = [view(draw(tmp_path / f"{i}.png", i)) for i in range(20)]
    first = make()
    made = first.latents(views)
    first.close()
    assert first.num_encoded == 20 and made[0].shape == (4, 4, 4) and made[0].dtype == torch.float16
    second = make()
    again = second.latents(views)
    second.close()
    assert second.num_encoded == 0
    uncached = make(path=None, memory_bytes=0)
    alone = [uncached.latents([one])[0] for one in views]
    uncached.close()
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(made, again, alone, strict=True))


def test_an_edited_image_gets_new_latents_and_a_renamed_one_keeps_its_own(make: Make, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", 1)
    cache = make()
    before = cache.latents([view(path)])[0]
    moved = path.rename(tmp_path / "b.png")
    renamed = cache.latents([view(moved)])[0]
    assert cache.num_encoded == 1 and torch.equal(before, renamed)
    draw(moved, 2)
    edited = cache.latents([view(moved)])[0]
    cache.close()
    assert cache.num_encoded == 2 and not torch.equal(before, edited)


def test_crop_flip_encoder_and_precision_are_part_of_the_key(make: Make, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", 1)
    cache = make()
    plain, mirrored, wide = cache.latents([view(path), view(path, crop(flip=True)), view(path, crop(32, 16))])
    cache.close()
    assert cache.num_encoded == 3 and not torch.equal(plain, mirrored) and wide.shape == (4, 4, 8)
    for change in ({"encoder_id": "another"}, {"precision": "fp32"}):
        other = make(**change)
        other.latents([view(path)])
        other.close()
        assert other.num_encoded == 1


def test_an_image_that_changes_while_the_run_goes_is_refused_by_name(make: Make, tmp_path: Path) -> None:
    seen = view(draw(tmp_path / "a.png", 1))
    draw(tmp_path / "a.png", 2)
    cache = make()
    with pytest.raises(BadInput, match=r"a\.png: changed since the run began"):
        cache.latents([seen])
    cache.close()


def test_warming_reports_broken_images_and_makes_all_others(make: Make, tmp_path: Path) -> None:
    views = [view(draw(tmp_path / f"{i}.png", i)) for i in range(3)]
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    cache = make()
    broken = cache.warm([*views, view(tmp_path / "bad.png")])
    cache.close()
    assert list(broken) == [tmp_path / "bad.png"] and cache.num_encoded == 3


def test_what_does_not_fit_in_memory_is_read_from_the_database(make: Make, tmp_path: Path) -> None:
    views = [view(draw(tmp_path / f"{i}.png", i)) for i in range(5)]
    cache = make(memory_bytes=2 * 4 * 4 * 4 * 2)
    cache.warm(views)
    everything = cache.latents(views)
    cache.close()
    assert cache.num_encoded == 5 and len(everything) == 5


def test_what_was_made_before_a_failure_is_kept(make: Make, tmp_path: Path) -> None:
    views = [view(draw(tmp_path / f"{i}.png", i)) for i in range(40)]
    calls = 0

    def failing(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("the power went")
        return torch.nn.functional.avg_pool2d(pixels, 4)

    first = make(encode=failing)
    with pytest.raises(RuntimeError):
        first.warm(views)
    first.close()
    second = make(encode=lambda pixels: torch.nn.functional.avg_pool2d(pixels, 4))
    second.warm(views)
    second.close()
    assert second.num_encoded == 40 - 2 * 16


def test_a_damaged_database_is_made_anew(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "latents.db"
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 1000)
    cache = make()
    cache.latents([view(draw(tmp_path / "a.png", 1))])
    cache.close()
    assert cache.num_encoded == 1


def test_numbers_that_are_not_finite_name_the_image(make: Make, tmp_path: Path) -> None:
    cache = make(encode=lambda pixels: pixels[:, :1] / 0)
    with pytest.raises(BadInput, match=r"a\.png: the image encoder gave"):
        cache.latents([view(draw(tmp_path / "a.png", 1))])
    cache.close()
