"""Plans: every epoch's steps, as a pure function."""

from __future__ import annotations

import pickle
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput, UsageError
from edkit.data.plan import Epoch, Plan, PlanSettings, Step, buckets, crop_for, nearest, nearest_many
from edkit.data.reader import BY_NAME, Columns
from edkit.data.sample import DEFAULTS, Options

SIZES = [(512, 512), (768, 512), (512, 768), (2000, 700), (700, 2000), (640, 480), (1024, 1024)]


def dataset(folders: list[tuple[str, list[tuple[tuple[int, int], Options]]]]) -> Dataset:
    """A set of so many folders of images, without files: (name, [(size, options), ...]) each."""
    from pathlib import Path

    columns = Columns()
    columns.source_table[(BY_NAME,)] = 0
    columns.caption_table["a picture"] = 0
    sizes = []
    for f, (name, images) in enumerate(folders):
        columns.folder_paths.append(f"/set/{name}")
        columns.folder_keys.append(name)
        for n, (size, options) in enumerate(images):
            columns.names.append(f"a picture_({n}).jpg")
            columns.folders.append(f)
            columns.captions.append(0)
            columns.sources.append(0)
            columns.options.append(columns.option_table.setdefault(options.over(DEFAULTS), len(columns.option_table)))
            sizes.append(size)
    made = Dataset(columns, roots=(Path("/set"),))
    for i, (width, height) in enumerate(sizes):
        made.widths[i], made.heights[i] = width, height
    return made


def simple(num: int, multiply: str = "1", size: tuple[int, int] = (512, 512), name: str = "a") -> Dataset:
    return dataset([(name, [(size, Options(multiply=Decimal(multiply)))] * num)])


def picks(step: Step) -> list[tuple[int, int, int]]:
    return [(p.index, p.epoch, p.occurrence) for micro in step for p in micro.picks]


def flat(epoch: Epoch) -> list[list[tuple[int, int, int]]]:
    return [picks(step) for step in epoch.steps]


# ---- buckets


@pytest.mark.parametrize("resolution", [512, 576, 640, 768, 1024, 500, 1000, 64, 65])
def test_buckets_are_as_near_the_area_as_can_be_and_mirrored(resolution: int) -> None:
    found = buckets(resolution)
    square = resolution // 64 * 64
    assert {(h, w) for w, h in found} == set(found) and (square, square) in found
    for w, h in found:
        assert w % 64 == h % 64 == 0 and max(w, h) <= 4 * min(w, h)
        assert w * h <= resolution**2
        if w != h:
            assert (w + 64) * h > resolution**2 and w * (h + 64) > resolution**2
    aspects = [w / h for w, h in found]
    assert aspects == sorted(aspects) and len(set(aspects)) == len(aspects)


def test_the_sizes_of_sdxl_come_out() -> None:
    found = buckets(1024)
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768)} <= set(found)


def test_a_small_family_states_a_smaller_step() -> None:
    assert buckets(64, 8)[0] == (32, 128) and (64, 64) in buckets(64, 8)
    with pytest.raises(UsageError):
        buckets(32, 64)


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.sampled_from([256, 512, 768, 1000]))
def test_mirrored_images_take_mirrored_buckets_and_the_nearest_in_log_aspect(w: int, h: int, r: int) -> None:
    import math

    found = buckets(r)
    bw, bh = found[nearest(w, h, found)]
    assert found[nearest(h, w, found)] == (bh, bw)
    distance = abs(math.log(w / h) - math.log(bw / bh))
    assert all(distance <= abs(math.log(w / h) - math.log(x / y)) + 1e-9 for x, y in found)


@given(
    st.lists(st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)), max_size=30),
    st.sampled_from([256, 512, 1000]),
    st.integers(1, 2**31 - 1),
)
def test_many_images_take_the_buckets_that_each_takes_alone(sizes: list[tuple[int, int]], r: int, huge: int) -> None:
    found = buckets(r)
    borders = [(w1 * k, h1 * k) for w1, h1 in found for k in (1, 3)]
    for among in (sizes + borders, [*sizes, (huge, 3)]):
        widths, heights = (np.asarray([size[side] for size in among], np.int64) for side in (0, 1))
        assert nearest_many(widths, heights, found).tolist() == [nearest(w, h, found) for w, h in among]


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(buckets(512)))
def test_a_crop_lies_inside_the_scaled_image_and_touches_two_of_its_sides(
    w: int, h: int, bucket: tuple[int, int]
) -> None:
    crop = crop_for(w, h, bucket)
    assert (crop.width, crop.height) == bucket
    assert crop.scaled_width == crop.width or crop.scaled_height == crop.height
    assert 0 <= crop.left <= crop.scaled_width - crop.width and 0 <= crop.top <= crop.scaled_height - crop.height
    mirrored = crop_for(h, w, bucket[::-1])
    assert (mirrored.scaled_width, mirrored.scaled_height) == (crop.scaled_height, crop.scaled_width)


def test_what_crops_cut_off_is_counted_as_each_crop_cuts() -> None:
    sizes = [(w, h) for w in (100, 333, 640, 2000) for h in (64, 333, 700, 1900)]
    plan = Plan(dataset([("a", [(size, Options()) for size in sizes])]), PlanSettings())
    for i, cut in enumerate(plan.cuts().tolist()):
        crop = plan.crop(i)
        assert cut == pytest.approx(1 - crop.width * crop.height / (crop.scaled_width * crop.scaled_height))


# ---- picks

decimals = st.sampled_from(["0", "0.025", "0.1", "0.3", "0.05", "0.5", "1", "1.5", "2.75", "3", "0.333", "0.001"]).map(
    Decimal
)
images = st.tuples(
    st.sampled_from(SIZES),
    st.builds(Options, multiply=decimals, batch_id=st.sampled_from([None, None, "one", "two"])),
)
sets = st.lists(st.lists(images, min_size=1, max_size=25), min_size=1, max_size=4).map(
    lambda folders: [(f"f{i}", content) for i, content in enumerate(folders)]
)
plans = st.builds(
    lambda folders, size, seed: (folders, PlanSettings(batch_size=size, seed=seed)),
    sets.filter(lambda folders: any(o.multiply for _, content in folders for _, o in content)),
    st.integers(1, 9),
    st.integers(0, 3),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(plans, st.integers(1, 12))
def test_over_any_epochs_each_image_comes_as_often_as_its_multiply_says_to_within_one(
    made: object, epochs: int
) -> None:
    folders, s = made  # type: ignore[misc]
    ds = dataset(folders)
    plan = Plan(ds, s)
    count = Counter(p for e in range(epochs) for step in flat(plan.epoch(e, last=e == epochs - 1)) for p in step)
    assert set(count.values()) <= {1}, "nothing is duplicated"
    by_image = Counter(index for index, _, _ in count)
    for i in range(len(ds)):
        assert abs(by_image[i] - ds.options(i).multiply * epochs) < 1  # type: ignore[operator]
    # and in no epoch more or fewer than the whole part and one
    by_epoch = Counter((index, epoch) for index, epoch, _ in count)
    for i in range(len(ds)):
        whole = int(ds.options(i).multiply or 0)
        assert all(whole <= by_epoch[i, e] <= whole + 1 for e in range(epochs))


@quick
@given(plans, st.integers(1, 8))
def test_the_number_of_picks_of_an_epoch_is_exact(made: object, epochs: int) -> None:
    folders, s = made  # type: ignore[misc]
    plan = Plan(dataset(folders), s)
    for e in range(epochs):
        expected = 0
        for _, content in folders:
            for value, n in Counter(o.multiply for _, o in content).items():
                whole, part = divmod(value, 1)
                expected += int(whole) * n + int(n * part * (e + 1)) - int(n * part * e)
        assert plan.num_picks(e) == expected == sum(plan.picks_by_folder(e).values())


@quick
@given(plans, st.integers(1, 8))
def test_every_step_holds_exactly_one_batch_and_every_micro_batch_one_bucket_and_name(
    made: object, epochs: int
) -> None:
    folders, s = made  # type: ignore[misc]
    ds = dataset(folders)
    plan = Plan(ds, s)
    steps = [step for e in range(epochs) for step in plan.epoch(e, last=e == epochs - 1).steps]
    assert [len(picks(step)) for step in steps[:-1]] == [s.batch_size] * (len(steps) - 1)
    assert not steps or 1 <= len(picks(steps[-1])) <= s.batch_size
    assert len(steps) == plan.total_steps(epochs)
    for step in steps:
        assert len({micro.bucket for micro in step}) == len(step), "a bucket stands once in a step"
        for micro in step:
            assert {plan.bucket(p.index) for p in micro.picks} == {micro.bucket}
            assert {(p.crop.width, p.crop.height) for p in micro.picks} == {micro.bucket}
            if micro.batch_id is not None:
                assert {ds.options(p.index).batch_id for p in micro.picks} == {micro.batch_id}
                assert len(micro.picks) == s.batch_size


@quick
@given(plans, st.integers(0, 12))
def test_an_epoch_is_the_same_whatever_was_asked_before(made: object, epoch: int) -> None:
    folders, s = made  # type: ignore[misc]
    ds = dataset(folders)
    fresh = flat(Plan(ds, s).epoch(epoch))
    asked = Plan(ds, s)
    for e in [*range(epoch), epoch + 3]:
        asked.epoch(e)
    assert flat(asked.epoch(epoch)) == fresh == flat(pickle.loads(pickle.dumps(asked)).epoch(epoch))


@quick
@given(plans, st.integers(1, 6))
def test_what_is_left_of_an_epoch_opens_the_next(made: object, epochs: int) -> None:
    folders, s = made  # type: ignore[misc]
    plan = Plan(dataset(folders), s)
    for e in range(epochs):
        this, following = plan.epoch(e), plan.epoch(e + 1)
        late = [n for n, step in enumerate(flat(following)) if any(epoch <= e for _, epoch, _ in step)]
        assert this.num_left < s.batch_size
        assert late in ([0], []) and (late == [0]) == bool(this.num_left and len(following))
        if late:
            assert len([p for p in flat(following)[0] if p[1] <= e]) == this.num_left


@quick
@given(plans)
def test_a_bucket_that_fills_micro_batches_fills_them(made: object) -> None:
    folders, s = made  # type: ignore[misc]
    ds = dataset(folders)
    plan, size = Plan(ds, s), s.batch_size
    epoch = plan.epoch(0, last=True)
    own = Counter((plan.bucket(i), ds.options(i).batch_id) for step in epoch.indices() for i in step)
    expected: Counter[object] = Counter()
    for bucket in {bucket for bucket, _ in own}:
        named = {name: n for (b, name), n in own.items() if b == bucket and name is not None}
        expected.update({(bucket, name): n // size for name, n in named.items()})
        expected[bucket, None] = (own[bucket, None] + sum(n % size for n in named.values())) // size
    full = Counter((m.bucket, m.batch_id) for step in epoch.steps for m in step if len(m.picks) == size)
    assert full == +expected


def test_ten_at_a_twentieth_come_once_in_every_second_epoch() -> None:
    plan = Plan(simple(10, "0.05"), PlanSettings(batch_size=1))
    assert [plan.num_picks(e) for e in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [len(plan.epoch(e)) for e in range(6)] == [0, 1, 0, 1, 0, 1]


def test_fractions_go_round_before_any_image_comes_twice() -> None:
    plan = Plan(simple(1000, "0.025"), PlanSettings(batch_size=25))
    seen = [i for e in range(40) for step in plan.epoch(e).indices() for i in step.tolist()]
    assert [plan.num_picks(e) for e in range(40)] == [25] * 40
    assert sorted(seen) == list(range(1000))


def test_a_folder_draws_the_same_whatever_stands_beside_it() -> None:
    one = ("b", [((512, 512), Options(multiply=Decimal("0.5")))] * 9)
    other = ("a", [((512, 512), Options(multiply=Decimal("1.5")))] * 5)
    alone, beside = (
        Plan(dataset([one]), PlanSettings(batch_size=1)),
        Plan(dataset([other, one]), PlanSettings(batch_size=1)),
    )
    for e in range(4):
        drawn = {p[0] for step in flat(alone.epoch(e)) for p in step}
        assert drawn == {p[0] - 5 for step in flat(beside.epoch(e)) for p in step if p[0] >= 5}


def test_epochs_and_seeds_differ() -> None:
    ds = simple(64)
    plan = Plan(ds, PlanSettings(batch_size=4))
    assert flat(plan.epoch(0)) != flat(plan.epoch(1))
    assert flat(plan.epoch(0)) != flat(Plan(ds, PlanSettings(batch_size=4, seed=1)).epoch(0))


def test_the_plan_is_a_known_one() -> None:
    """A change of this order is a change of what every recorded seed means."""
    plan = Plan(simple(7, "1.5"), PlanSettings(batch_size=4))
    assert [[p[0] for p in step] for step in flat(plan.epoch(0))] == KNOWN_0
    assert [[p[0] for p in step] for step in flat(plan.epoch(3))] == KNOWN_3


KNOWN_0 = [[3, 6, 1, 5], [0, 6, 4, 2]]
KNOWN_3 = [[5, 2, 4, 2], [3, 5, 6, 0], [4, 3, 1, 0]]


# ---- steps


def test_remainders_of_different_buckets_join_into_one_step() -> None:
    ds = dataset([("a", [(size, Options()) for size in SIZES[:5]] + [((512, 512), Options())] * 3)])
    plan = Plan(ds, PlanSettings(batch_size=4))
    sizes = sorted(len(step) for step in plan.epoch(0).steps)
    assert sizes == [1, 4] and plan.epoch(0).num_left == 0


def test_the_rest_after_the_last_epoch_trains_as_one_short_step() -> None:
    plan = Plan(simple(10), PlanSettings(batch_size=4))
    assert [len(step) for step in flat(plan.epoch(0))] == [4, 4]
    assert [len(step) for step in flat(plan.epoch(0, last=True))] == [4, 4, 2]
    assert [len(step) for step in flat(plan.epoch(1))] == [4, 4, 4]
    assert plan.total_steps(1) == 3 and plan.total_steps(2) == 5 and plan.first_step(1) == 2


def test_a_set_smaller_than_a_batch_collects_over_epochs() -> None:
    plan = Plan(simple(3), PlanSettings(batch_size=8))
    assert [len(plan.epoch(e)) for e in range(6)] == [0, 0, 1, 0, 0, 1]
    first = flat(plan.epoch(2))[0]
    assert sorted(p[:2] for p in first if p[1] < 2) == [(i, e) for i in range(3) for e in range(2)]
    assert flat(plan.epoch(0, last=True))[0] and len(flat(plan.epoch(1, last=True))[0]) == 6


def test_a_named_batch_stays_together_and_its_remainder_joins_the_unnamed() -> None:
    named = [((512, 512), Options(batch_id="sky"))] * 6
    ds = dataset([("a", named + [((512, 512), Options())] * 2)])
    micro = [m for step in Plan(ds, PlanSettings(batch_size=4)).epoch(0).steps for m in step]
    assert {m.batch_id for m in micro} == {"sky", None} and len(micro) == 2
    (plain,) = (m for m in micro if m.batch_id is None)
    assert sum(ds.options(p.index).batch_id == "sky" for p in plain.picks) == 2


def test_the_old_ways_duplicate_or_drop_a_bucket_remainder() -> None:
    ds = dataset([("a", [((512, 512), Options())] * 6 + [((512, 768), Options())] * 3)])
    twice = Plan(ds, PlanSettings(batch_size=4, remainder="duplicate"))
    steps = flat(twice.epoch(0))
    assert [len(step) for step in steps] == [4, 4, 4] and {p[0] for s in steps for p in s} == set(range(9))
    assert len({p for s in steps for p in s}) == 12, "a duplicate has draws of its own"
    dropped = Plan(ds, PlanSettings(batch_size=4, remainder="drop"))
    assert [len(step) for step in flat(dropped.epoch(0))] == [4]
    assert twice.total_steps(2) == 6 and dropped.total_steps(2) == 2
    assert flat(dropped.epoch(0)) != flat(dropped.epoch(1))


def test_steps_can_be_indexed_sliced_and_run_through() -> None:
    epoch = Plan(simple(20), PlanSettings(batch_size=4)).epoch(0)
    assert list(epoch.steps) == epoch.steps[:] == [epoch.steps[n] for n in range(5)]
    assert epoch.steps[-1] == epoch.steps[4] and epoch.num_picks == 20
    with pytest.raises(IndexError):
        epoch.steps[5]


# ---- small images, crops, flips


def test_a_small_image_keeps_its_aspect_at_a_smaller_size() -> None:
    sizes = [(512, 512), (400, 400), (300, 300), (100, 100), (480, 360)]
    ds = dataset([("a", [(size, Options()) for size in sizes])])
    plan = Plan(ds, PlanSettings(resolution=512))
    assert [plan.bucket(i) for i in range(5)] == [(512, 512), (384, 384), (256, 256), (256, 256), (448, 320)]
    assert plan.small == [1, 2, 3, 4] and {p.code for p in plan.problems} == {"small-image"}
    assert [Plan(ds, PlanSettings(small="upscale")).bucket(i) for i in range(4)] == [(512, 512)] * 4
    left = Plan(ds, PlanSettings(small="leave"))
    assert [i for i, _ in left.left_out] == [1, 2, 3, 4] and left.num_picks(0) == 1


def test_levels_of_resolution_that_share_a_size_are_counted_together() -> None:
    # at 128 in steps of 64, three quarters and half of the resolution both hold 64 x 64
    folders = [("a", [((70, 70), DEFAULTS), ((40, 40), DEFAULTS)])]
    plan = Plan(dataset(folders), PlanSettings(batch_size=1, resolution=128))
    assert plan.bucket_counts == {(64, 64): 2}


def test_an_extreme_aspect_is_reported_with_what_is_seen_of_it() -> None:
    plan = Plan(simple(1, size=(8000, 1000)), PlanSettings())
    assert plan.bucket(0) == (1024, 256)
    (problem,) = plan.problems
    assert problem.code == "extreme-aspect" and "50%" in problem.what


def test_flips_come_at_their_rate_and_differ_by_epoch() -> None:
    ds = dataset([("a", [((512, 512), Options(flip_p=0.5))] * 200)])
    plan = Plan(ds, PlanSettings(batch_size=10))
    flipped = [{p.index for step in plan.epoch(e).steps for m in step for p in m.picks if p.crop.flip} for e in (0, 1)]
    assert 70 <= len(flipped[0]) <= 130 and flipped[0] != flipped[1]


def test_random_crops_stay_inside_and_differ_by_epoch() -> None:
    plan = Plan(simple(1, size=(2000, 512)), PlanSettings(crop="random", max_aspect=1.0))
    crops = [plan.crop(0, epoch=e) for e in range(20)]
    assert len({c.left for c in crops}) > 10 and all(0 <= c.left <= c.scaled_width - c.width for c in crops)
    assert {c.top for c in crops} == {0}


# ---- what a plan refuses


def test_a_plan_refuses_images_without_a_size_and_empty_sets() -> None:
    with pytest.raises(BadInput, match="size"):
        Plan(simple(2, size=(0, 0)), PlanSettings())
    with pytest.raises(BadInput, match="no image"):
        Plan(simple(2, "0"), PlanSettings())
    with pytest.raises(BadInput, match="no image"):
        Plan(dataset([]), PlanSettings())


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"seed": -1}, {"small": "no"}, {"resolution": 32}, {"max_aspect": 0.5}]
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PlanSettings(**bad)  # type: ignore[arg-type]


# ---- rated images


def rated(ratings: list[float | None], **said: object) -> Plan:
    options = [((512, 512), Options(rating=rating)) for rating in ratings]
    return Plan(dataset([("a", options)]), PlanSettings(**({"batch_size": 4} | said)))  # type: ignore[arg-type]


def seen(plan: Plan, epochs: int) -> list[Counter[int]]:
    """How often each image is drawn for each epoch, wherever it trains."""
    counts = [Counter[int]() for _ in range(epochs)]
    for e in range(epochs):
        for step in plan.epoch(e, last=e + 1 == epochs).steps:
            for index, epoch, _ in picks(step):
                counts[epoch][index] += 1
    return counts


def test_rated_images_fade_out_in_exact_numbers_and_others_stay() -> None:
    plan = rated([1.0] * 10 + [None] * 7, rated_dropout=0.5, rated_epochs=6)
    counts = seen(plan, 6)
    assert [sum(i < 10 for i in one) for one in counts] == [10, 9, 8, 7, 6, 5]
    assert all(set(range(10, 17)) <= set(one) and set(one.values()) == {1} for one in counts)
    assert [plan.num_picks(e) for e in range(6)] == [17, 16, 15, 14, 13, 12]
    assert [plan.picks_by_folder(e) for e in (0, 5)] == [{plan.dataset.folders[0].path: n} for n in (17, 12)]
    # every step but the last is whole
    steps = [picks(step) for e in range(6) for step in plan.epoch(e, last=e == 5).steps]
    assert len(steps) == plan.total_steps(6) == -(-sum(range(12, 18)) // 4)
    assert {len(step) for step in steps[:-1]} == {4}


def test_an_image_stays_in_proportion_to_its_rating() -> None:
    left: Counter[int] = Counter()
    for seed in range(400):
        left.update(rated([1, 2, 4, 0], rated_dropout=0.5, rated_epochs=2, seed=seed).left_out_by_rating(1).tolist())
    assert left[3] == 400  # rated 0: always the first to go
    # of the other three one goes: the last of a draw without replacement, weights 1, 2 and 4
    for image, (a, b, c) in enumerate([(1, 2, 4), (2, 1, 4), (4, 1, 2)]):
        chance = b / (a + b + c) * c / (a + c) + c / (a + b + c) * b / (a + b)
        assert abs(left[image] / 400 - chance) < 0.08


def test_who_fades_is_drawn_anew_and_the_plan_needs_no_order() -> None:
    straight = rated([3.0] * 20, rated_dropout=0.4, rated_epochs=5)
    known = [flat(straight.epoch(e)) for e in range(8)]
    fresh = rated([3.0] * 20, rated_dropout=0.4, rated_epochs=5)
    assert [flat(fresh.epoch(e)) for e in (7, 3, 0)] == [known[e] for e in (7, 3, 0)]
    gone = [set(straight.left_out_by_rating(e).tolist()) for e in range(8)]
    assert [len(one) for one in gone] == [0, 2, 4, 6, 8, 8, 8, 8] and gone[5] != gone[6]


def test_ratings_do_nothing_unless_asked_for() -> None:
    assert [flat(rated([1.0, None] * 5).epoch(e)) for e in range(3)] == [
        flat(rated([None] * 10).epoch(e)) for e in range(3)
    ]
    with pytest.raises(UsageError, match="the number of epochs must be known"):
        rated([1.0], rated_dropout=0.5)
