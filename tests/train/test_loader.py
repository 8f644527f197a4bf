"""A batch is what its picks say: captions word for word, and noise of each pick's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edkit.data.progress import SILENT
from edkit.data.sample import caption_text, drops_caption
from edkit.train.families import load_family
from edkit.train.loader import Batch, Loader, Noise, Planned
from edkit.train.losses import timestep_weights
from edkit.train.noise import normal
from edkit.train.prepare import Prepared, prepare
from edkit.train.settings import TrainSettings, resolve
from edkit.train.texts import TextStates

Settings = Callable[..., TrainSettings]


@contextmanager
def loading(
    s: TrainSettings, *, micro_batch_size: int | None = None, num_workers: int | None = None
) -> Iterator[tuple[Loader, Prepared]]:
    family = load_family(s.model)
    s = resolve(
        s,
        resolution=family.resolution,
        bucket_step=family.bucket_step,
        num_timesteps=1000,
        family=family.name,
    )
    with prepare(s, family, torch.device("cpu"), dry_run=False, progress=SILENT) as data:
        yield (
            Loader(
                family=family,
                sample=data.sample,
                view=data.view,
                latents=data.latents,
                seed=s.seed,
                timesteps=(0, 1000),
                micro_batch_size=micro_batch_size,
                weights=timestep_weights(
                    family.snr(torch.arange(1000)),
                    family.prediction_type,
                    min_snr_gamma=s.min_snr_gamma,
                    debiased=s.debiased,
                ),
                noise=Noise(offset=s.offset_noise, pyramid=s.pyramid_noise, input_perturbation=s.input_perturbation),
                pixel_weights=data.pixel_weights,
                num_workers=num_workers,
            ),
            data,
        )


def planned(data: Prepared, epoch: int) -> list[Planned]:
    steps = data.steps(epoch)
    return [Planned(step=steps[i], epoch=epoch, index=i, last=i + 1 == len(steps)) for i in range(len(steps))]


def all_captions(batches: list[Batch]) -> dict[str, str]:
    return {s.key: c for b in batches for m in b.micros for s, c in zip(m.samples, m.captions, strict=True)}


def test_captions_reach_the_batch_exactly_as_the_samples_say(settings: Settings, pictures: Path) -> None:
    said = {
        "red paint_(0).png": "red,  odd   spacing , 10,000 signs",
        "blue paint_(1).png": "",
        "red paint_(2).png": "un tableau très rouge",
    }
    for name, caption in said.items():
        (pictures / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    with loading(settings(cond_dropout=0.0)) as (loader, data):
        seen = all_captions([loader.batch(step) for step in planned(data, 0)])
        assert {name: seen[name] for name in said} == said
        assert seen["red paint_(4).png"] == "red paint"
        assert len(seen) == 8
        for i in range(8):
            sample = data.sample(i)
            assert seen[sample.key] == caption_text(sample, seed=555, epoch=0)


def test_dropped_captions_are_those_the_data_layer_drops(settings: Settings) -> None:
    with loading(settings(cond_dropout=0.5)) as (loader, data):
        dropped = 0
        for epoch in range(4):
            for batch in (loader.batch(step) for step in planned(data, epoch)):
                for micro in batch.micros:
                    for sample, caption in zip(micro.samples, micro.captions, strict=True):
                        drop = drops_caption(sample, seed=555, epoch=epoch)
                        dropped += drop
                        assert caption == ("" if drop else sample.main_prompt)
        assert 6 <= dropped <= 26  # of 32 at one half


def test_each_row_of_tokens_is_its_images_caption(settings: Settings) -> None:
    with loading(settings(cond_dropout=0.3)) as (loader, data):
        family = load_family(settings().model)
        for step in planned(data, 0):
            for micro in loader.batch(step).micros:
                rows = micro.tokens["input_ids"][micro.which]
                assert torch.equal(rows, family.tokenize(micro.captions)["input_ids"])


def test_a_picks_noise_and_timestep_do_not_depend_on_its_neighbours(settings: Settings) -> None:
    def by_name(batch_size: int, micro: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor, int, float]]:
        found = {}
        with loading(settings(batch_size=batch_size, min_snr_gamma=5.0), micro_batch_size=micro) as (
            loader,
            data,
        ):
            for step in planned(data, 0):
                for m in loader.batch(step).micros:
                    for i, sample in enumerate(m.samples):
                        found[sample.key] = (
                            m.noisy[i],
                            m.target[i],
                            int(m.timesteps[i]),
                            float(m.weights[i]),
                        )
        return found

    one, other = by_name(4, None), by_name(8, 3)
    assert one.keys() == other.keys() and len({row[2] for row in one.values()}) > 4
    for key, (noisy, target, timestep, weight) in one.items():
        assert torch.equal(noisy, other[key][0]) and torch.equal(target, other[key][1])
        assert (timestep, weight) == other[key][2:]


def test_more_noise_is_each_picks_own_and_the_target_is_what_was_added(settings: Settings) -> None:
    def by_name(batch_size: int, **changes: float) -> dict[str, tuple[torch.Tensor, torch.Tensor, int]]:
        found = {}
        with loading(settings(batch_size=batch_size, **changes)) as (loader, data):
            for step in planned(data, 0):
                for m in loader.batch(step).micros:
                    for i, sample in enumerate(m.samples):
                        found[sample.key] = (m.noisy[i], m.target[i], int(m.timesteps[i]))
        return found

    plain = by_name(4)
    more = {"offset_noise": 0.1, "pyramid_noise": 0.5}
    one, other = by_name(4, **more), by_name(2, **more)
    shaken = by_name(4, input_perturbation=0.2)
    family = load_family(settings().model)
    for key, (noisy, target, timestep) in one.items():
        assert torch.equal(noisy, other[key][0]) and torch.equal(target, other[key][1])
        assert not torch.allclose(target, plain[key][1])
        # the latents under the noise are the same
        alpha = family.snr(torch.tensor([timestep])) / (1 + family.snr(torch.tensor([timestep])))
        change = (noisy - plain[key][0]) - (1 - alpha).sqrt().float() * (target - plain[key][1])
        assert float(change.abs().max()) < 1e-5
        # perturbed input: the same target, other input
        assert torch.equal(shaken[key][1], plain[key][1]) and not torch.allclose(shaken[key][0], plain[key][0])


def test_noise_is_standard_normal_and_a_function_of_its_name() -> None:
    rows = normal((4, 16, 16), 555, "noise", [("a", 0, 0), ("a", 1, 0), ("b", 0, 0)])
    assert torch.equal(rows[1], normal((4, 16, 16), 555, "noise", [("a", 1, 0)])[0])
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], normal((4, 16, 16), 556, "noise", [("a", 0, 0)])[0])
    many = normal((100,), 1, "noise", [(i,) for i in range(1000)])
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01


def test_loss_scale_and_min_snr_weigh_each_image(settings: Settings, pictures: Path) -> None:
    (pictures / "red paint_(0).yaml").write_text("main_prompt: red\nloss_scale: 3\n", encoding="utf-8")
    with loading(settings()) as (loader, data):
        plain = {
            s.key: float(w)
            for step in planned(data, 0)
            for m in loader.batch(step).micros
            for s, w in zip(m.samples, m.weights, strict=True)
        }
    assert plain.pop("red paint_(0).png") == 3.0
    assert set(plain.values()) == {1.0}


@pytest.mark.parametrize("room", [1 << 30, 1])
def test_kept_text_states_are_the_encoders_to_the_bit(model: Path, room: int) -> None:
    family = load_family(model)
    states = TextStates(family, torch.device("cpu"), memory_bytes=room)
    captions = [f"paint {i}" for i in range(11)]
    together = states.states(family.tokenize(captions))["states"]
    again = states.states(family.tokenize(captions[7:8]))["states"][0]
    alone = TextStates(family, torch.device("cpu")).states(family.tokenize(captions[7:8]))["states"][0]
    assert torch.equal(together[7], again) and torch.equal(together[7], alone)
    with torch.no_grad():
        plain = family.encode_text(family.tokenize(captions[7:8]))["states"][0]
    torch.testing.assert_close(together[7], plain)


def same_tensors(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return all(same_tensors(value, other[name]) for name, value in one.items())  # type: ignore[index]
    return one == other


@pytest.mark.parametrize("cached", [True, False])
def test_how_many_threads_make_batches_changes_no_number(settings: Settings, cached: bool) -> None:
    found: list[list[Batch]] = []
    more = {"cond_dropout": 0.5, "flip_p": 0.5, "batch_size": 3, "cache_latents": cached, "crop": "random"}
    for num in (1, 4):
        with loading(settings(**more), num_workers=num) as (loader, data):
            found.append(list(loader.batches(iter([step for epoch in range(3) for step in planned(data, epoch)]))))
    assert len(found[0]) == len(found[1]) == 8
    for one, other in zip(*found, strict=True):
        assert (one.epoch, one.index, one.last) == (other.epoch, other.index, other.last)
        for a, b in zip(one.micros, other.micros, strict=True):
            assert all(same_tensors(value, vars(b)[name]) for name, value in vars(a).items())


def test_masks_reach_the_batch_cut_and_mirrored_as_their_images(settings: Settings, pictures: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(pictures / "red paint_(0)-masklabel.png")
    flipped = set()
    more = {"masks": "file", "flip_p": 0.5, "unmasked_weight": 0.25, "normalise_masks": False}
    with loading(settings(**more)) as (loader, data):
        for epoch in range(8):
            for step in planned(data, epoch):
                for (micro,), picks in [(loader.batch(step).micros, step.step[0].picks)]:
                    for i, sample in enumerate(micro.samples):
                        weights = torch.ones(1, 8, 8) if micro.pixel_weights is None else micro.pixel_weights[i]
                        if sample.key != "red paint_(0).png":
                            assert weights.eq(1).all()
                            continue
                        left, right = weights[..., :4].unique().tolist(), weights[..., 4:].unique().tolist()
                        assert (left, right) == (([0.25], [1.0]) if picks[i].crop.flip else ([1.0], [0.25]))
                        flipped.add(picks[i].crop.flip)
    assert flipped == {True, False}


def test_with_a_number_of_crops_an_image_has_so_many_and_each_is_made_once(
    settings: Settings, tmp_path: Path, draw_pictures: Callable[..., Path]
) -> None:
    root = draw_pictures(tmp_path / "wide", 4, sizes=((100, 40),))
    s = settings(data_root=str(root), crop="random", crops_per_image=3, flip_p=0.5, resolution=32, batch_size=4)
    with loading(s) as (_, data):
        seen = {
            view(pick) for view in [data.view] for e in range(40) for p in planned(data, e) for pick in p.step[0].picks
        }
        by_path = {path: {one.crop for one in seen if one.path == path} for path in {one.path for one in seen}}
        assert {len(crops) for crops in by_path.values()} == {6}  # three, each mirrored too
        assert {crop for i in range(4) for crop in data.plan.crops(i) or []} == {one.crop for one in seen}
        assert data.resting == {"vae", "text_encoder"}
    with loading(s.but(crops_per_image=0)) as (_, data):
        assert data.plan.crops(0) is None and data.resting == {"text_encoder"}


def test_perturbed_input_is_its_papers_formula(settings: Settings) -> None:
    """Ning et al. 2023, section 4.1: the input has the noise eps + gamma xi, the target is eps alone."""
    gamma = 0.3
    with loading(settings(input_perturbation=gamma)) as (loader, data):
        family = load_family(settings().model)
        for step in planned(data, 0):
            micro = loader.batch(step).micros[0]
            latents = torch.stack(data.latents([data.view(pick) for pick in step.step[0].picks])).double()
            shape = tuple(latents.shape[1:])
            eps = normal(shape, 555, "noise", micro.names).double()
            xi = normal(shape, 555, "input perturbation", micro.names).double()
            snr = family.snr(micro.timesteps).view(-1, 1, 1, 1)
            alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
            torch.testing.assert_close(micro.noisy.double(), alpha * latents + sigma * (eps + gamma * xi))
            torch.testing.assert_close(micro.target.double(), eps)
