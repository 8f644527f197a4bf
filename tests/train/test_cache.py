"""Latents come back as they were made, and only for what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edkit.data.errors import BadInput
from edkit.data.image import Crop
from edkit.data.progress import SILENT
from edkit.train.cache import LatentCache, MaskCache, MaskView, View
from edkit.train.store import Store, key_of


class Lines:
    """Progress that keeps what it is told."""

    def __init__(self, said: list[str]) -> None:
        self.say = said.append

    task = SILENT.task


Make = Callable[..., LatentCache]


def crop(width: int = 16, height: int = 16, *, flip: bool = False) -> Crop:
    return Crop(width=width, height=height, scaled_width=width, scaled_height=height, left=0, top=0, flip=flip)


def view(path: Path, at: Crop | None = None) -> View:
    return View(path=path, content_id=hashlib.sha256(path.read_bytes()).hexdigest(), crop=at or crop())


def draw(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Caches over one database, with a small convolution as encoder."""
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 4, 4, stride=4).requires_grad_(False)

    stores: list[Store] = []

    def open_cache(*, path: Path | None = tmp_path / "cache" / "tensors.db", **changes: object) -> LatentCache:
        said: dict[str, object] = {"encode": encoder, "encoder_id": "conv", "memory_bytes": 1 << 20}
        if path is not None:
            stores.append(Store(path, limit_bytes=1 << 30))
        return LatentCache(stores[-1] if path else None, **(said | changes))  # type: ignore[arg-type]

    yield open_cache
    for store in stores:
        store.close()


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
    path = tmp_path / "cache" / "tensors.db"
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


def mask_of(path: Path, at: Crop, source: str = "file") -> MaskView:
    content_id = hashlib.sha256(path.read_bytes()).hexdigest()
    return MaskView(path=path, content_id=content_id, crop=at, source=source)  # type: ignore[arg-type]


def test_a_mask_is_cut_as_its_image_is_and_each_latent_has_the_mean_below_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (16, 32), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a-masklabel.png")
    cut = Crop(width=16, height=16, scaled_width=32, scaled_height=16, left=8, top=0)
    cache = MaskCache(None, factor=4, memory_bytes=1 << 20)
    plain = cache.masks([mask_of(tmp_path / "a-masklabel.png", cut)])[0]
    wanted = pixels[:, 8:24].reshape(4, 4, 4, 4).mean(axis=(1, 3)) / 255
    torch.testing.assert_close(plain.double(), torch.from_numpy(wanted), atol=1.1 / 255, rtol=0)  # Pillow rounds twice
    mirrored = cache.masks([mask_of(tmp_path / "a-masklabel.png", replace(cut, flip=True))])[0]
    assert torch.equal(mirrored, plain.flip(-1))
    # drawn at half the size, it covers the same picture
    small = Image.fromarray(pixels.reshape(8, 2, 16, 2).mean(axis=(1, 3)).round().astype(np.uint8))
    small.save(tmp_path / "small.png")
    half = cache.masks([mask_of(tmp_path / "small.png", cut)])[0]
    torch.testing.assert_close(half, plain, atol=2.1 / 255, rtol=0)


def test_a_mask_of_another_aspect_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("L", (30, 16)).save(tmp_path / "a-masklabel.png")
    cache = MaskCache(None, factor=4, memory_bytes=1 << 20)
    with pytest.raises(BadInput, match=r"a-masklabel\.png: the mask is 30 x 16, which is not its image's aspect"):
        cache.masks([mask_of(tmp_path / "a-masklabel.png", crop())])


def test_opacity_is_a_mask_and_an_image_without_it_is_meant_whole(tmp_path: Path) -> None:
    rgba = np.full((16, 16, 4), 200, np.uint8)
    rgba[:8, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    draw(tmp_path / "b.png", 1)
    cache = MaskCache(None, factor=4, memory_bytes=1 << 20)
    half, whole = cache.masks([mask_of(tmp_path / name, crop(), "alpha") for name in ("a.png", "b.png")])
    assert half[:2].eq(0).all() and torch.allclose(half[2:], torch.tensor(200 / 255)) and whole.eq(1).all()


def test_the_oldest_unused_entries_go_beyond_the_limit_and_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    entry = {"value": torch.zeros(250, dtype=torch.float32)}  # 1000 bytes
    store = Store(tmp_path / "tensors.db", limit_bytes=5000, progress=Lines(said))
    for age in (3, 2, 1, 0):
        store._today -= age  # as if it had been another day
        store.put({key_of(age, n): entry for n in range(2)})
        store._today += age
    assert store.have([key_of(3, 0)]) == {key_of(3, 0)}  # used again today
    assert store.collect() == 3 and store.collect() == 0
    every = [key_of(age, n) for age in (3, 2, 1, 0) for n in range(2)]
    there = store.have(every)
    # of the three oldest days: what was used again, and one of the yesterday's two
    assert key_of(3, 0) in there and len(there) == 5 and {key_of(0, 0), key_of(0, 1)} < there
    assert set(store.get(every)) == there
    store.close()
    assert len(said) == 1 and "3 unused entries removed" in said[0]


def test_what_this_run_uses_stays_whatever_the_limit(tmp_path: Path) -> None:
    said: list[str] = []
    with closing(Store(tmp_path / "tensors.db", limit_bytes=10, progress=Lines(said))) as store:
        store.put({key_of(1): {"value": torch.zeros(8)}})
        assert store.collect() == 0 and store.get([key_of(1)])
    assert "this run's own entries take" in said[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_every_type_and_shape_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    entry = {"a": torch.arange(24).reshape(2, 3, 4).to(dtype), "scalar": torch.tensor(3).to(dtype)}
    with closing(Store(tmp_path / "tensors.db", limit_bytes=1 << 20)) as store:
        store.put({key_of("x"): entry})
        found = store.get([key_of("x"), key_of("y")])
    assert set(found) == {key_of("x")} and found[key_of("x")].keys() == entry.keys()
    assert all(torch.equal(value, entry[name]) for name, value in found[key_of("x")].items())
