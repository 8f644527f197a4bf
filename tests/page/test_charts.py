"""Charts: round ticks around the data, lengths in proportion, every value told to those who can't see."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.page import charts
from edkit.page.charts import Series, nice_ticks, smoothed

from .test_html import HOSTILE, seen  # isort: skip

numbers = st.floats(-1e9, 1e9, allow_nan=False)


def rects(markup: str) -> list[tuple[float, float]]:
    """(start, width) of each bar, in percent of the plot."""
    drawn = [attrs for name, attrs in seen(markup).tags if name == "rect"]
    return [(float(str(a["x"]).rstrip("%")), float(str(a["width"]).rstrip("%"))) for a in drawn]


@given(numbers, numbers, st.integers(2, 8))
def test_ticks_enclose_the_data_and_are_not_many(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, count=count)
    slack = 1e-6 * max(abs(low), abs(high), 1e-180)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 2 * count + 2
    assert all(x < y for x, y in itertools.pairwise(ticks))


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 163, count=4) == [0, 100, 200]
    assert nice_ticks(0.03, 0.41) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert nice_ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1]


def test_bars_are_as_long_as_their_values_and_say_them() -> None:
    markup = charts.bars("Picks", [("subject", 100), ("truth", 25), ("none", 0)], unit="images")
    widths = [width for _, width in rects(markup)]
    assert widths[0] == pytest.approx(4 * widths[1]) and widths[2] == 0
    assert widths[0] <= 100
    assert "subject: 100 images" in seen(markup).text


def test_shares_fill_the_bar_one_after_another() -> None:
    markup = charts.shares("Share", [("before", [1, 2, 1]), ("after", [0, 0, 5])], ["a", "b", "c"])
    assert rects(markup) == [(0, 25), (25, 50), (75, 25), (0, 100)]
    [svg] = [attrs for name, attrs in seen(markup).tags if name == "svg"]
    assert "before, b: 50%" in str(svg["aria-label"])


def test_lines_run_from_edge_to_edge_and_leave_gaps_where_there_is_no_value() -> None:
    points = [(0, 0.0), (1, 1.0), (2, math.nan), (3, 0.5), (4, math.inf), (5, 0.0), (6, 1.0)]
    markup = charts.lines("Loss", [Series(name="train", points=points)], across="step", up="loss")
    [path] = [str(attrs["d"]) for name, attrs in seen(markup).tags if name == "path"]
    runs = path.split("M")[1:]
    assert len(runs) == 3
    assert runs[0].strip() == "0.0,1000.0L166.7,0.0"
    assert runs[2].strip().endswith("1000.0,0.0")


def test_a_long_line_is_thinned_and_keeps_its_spikes() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    train = Series(name="train", points=points)
    markup = charts.lines("Loss", [train], across="step", up="loss", from_zero=True)
    [path] = [str(attrs["d"]) for name, attrs in seen(markup).tags if name == "path"]
    heights = [float(point.split(",")[1]) for point in path.removeprefix("M").split("L")]
    assert len(heights) < 3000
    assert min(heights) == pytest.approx(100.0)  # 9 on an axis from 0 to 10


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(0.0, math.nan)], [(3.0, 2.0), (3.0, 2.0)]])
def test_few_or_no_values_make_a_chart_all_the_same(points: list[tuple[float, float]]) -> None:
    markup = charts.lines("Loss", [Series(name="train", points=points)], across="step", up="loss")
    assert "Loss" in markup and "nan" not in markup


def test_no_rows_and_only_zeros_make_charts_too() -> None:
    assert "<svg" in charts.bars("none", [])
    assert rects(charts.bars("zeros", [("a", 0.0), ("b", math.nan)])) == [(0, 0), (0, 0)]
    assert rects(charts.shares("zeros", [("a", [0, 0])], ["x", "y"])) == []


def test_a_chart_is_an_image_with_a_name_for_those_who_hear_it() -> None:
    for markup in (
        charts.bars("Picks", [("a", 1)]),
        charts.shares("Picks", [("a", [1])], ["x"]),
        charts.lines("Picks", [Series(name="a", points=[(0, 1), (1, 2)])], across="step", up="loss"),
    ):
        outer = next(attrs for name, attrs in seen(markup).tags if name == "svg")
        assert outer["role"] == "img" and str(outer["aria-label"]).startswith("Picks: ")


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_labels_stay_labels_and_the_drawing_stays_well_formed(words: str) -> None:
    for markup in (
        charts.bars(words, [(words, 3)], unit=words, accent=[words]),
        charts.shares(words, [(words, [1, 2])], [words, words]),
        charts.lines(words, [Series(name=words, points=[(0, 1), (1, 2)])] * 2, across=words, up=words),
    ):
        names = {name for name, _ in seen(markup).tags}
        around = {"figure", "figcaption", "ul", "li", "i", "p", "div"}
        assert names <= around | {"svg", "g", "title", "text", "rect", "line", "path"}
        ElementTree.fromstring(markup)


def test_smoothing_takes_means_at_their_middles() -> None:
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, 9.0), (4.0, 5.0)]
    assert smoothed(points, 3) == [(2.0, 5.0), (3.0, 6.0)]
    assert smoothed(points, 5) == []


def test_a_histogram_s_columns_are_as_tall_as_their_counts_and_those_past_the_limit_stand_out() -> None:
    markup = charts.histogram("Lengths", [0, 10, 20, 30], [4, 2, 1], across="tokens", limit=(20, "sd1 reads 20"))
    drawn = [attrs for name, attrs in seen(markup).tags if name == "rect"]
    heights = [float(str(attrs["height"])) for attrs in drawn]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2) and heights[1] == pytest.approx(2 * heights[2], abs=0.2)
    assert [attrs["class"] for attrs in drawn] == ["c1", "c1", "over"]
    assert "20 to 30: 1 images" in seen(markup).text and "sd1 reads 20" in seen(markup).text


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=60), st.integers(2, 30))
def test_every_value_falls_into_one_step_of_its_spread(values: list[float], steps: int) -> None:
    edges, counts = charts.spread(values, steps=steps)
    assert sum(counts) == len(values) and len(edges) == len(counts) + 1
    assert all(a < b for a, b in itertools.pairwise(edges))
    slack = 1e-6 * max(1e-180, *map(abs, values))
    assert edges[0] <= min(values) + slack and edges[-1] >= max(values) - slack


def test_values_beyond_what_is_asked_for_count_in_the_outer_steps() -> None:
    edges, counts = charts.spread([0, 1, 2, 3, 1000], low=0, high=4, steps=4)
    assert edges[-1] <= 6 and sum(counts) == 5 and counts[-1] == 1


def test_dots_lie_where_their_logarithms_say_and_weigh_what_they_stand_for() -> None:
    markup = charts.dots(
        "Sizes",
        [
            charts.Dot(x=256, y=256, weight=1),
            charts.Dot(x=512, y=512, weight=4),
            charts.Dot(x=1024, y=1024, weight=16, out=True),
        ],
        outlines=[charts.Dot(x=512, y=256, label="bucket 512 x 256")],
        across="width",
        up="height",
        names=("images", "too small", "buckets"),
    )
    drawn = [attrs for name, attrs in seen(markup).tags if name == "circle"]
    places = sorted(float(str(attrs["cx"]).rstrip("%")) for attrs in drawn if "dot" in str(attrs["class"]))
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    radii = sorted(float(str(attrs["r"])) for attrs in drawn if "dot" in str(attrs["class"]))
    assert radii[0] < radii[1] < radii[2]
    [outer] = [str(attrs["aria-label"]) for name, attrs in seen(markup).tags if name == "svg"]
    assert "21 images, 16 too small" in outer


def test_no_values_make_these_charts_too() -> None:
    assert "no values" in charts.histogram("h", [0.0, 0.0], [1], across="x")
    assert "no values" in charts.dots("d", [charts.Dot(x=0, y=5)], across="x", up="y")
    assert charts.spread([math.nan]) == ([0.0, 1.0], [0])


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_stay_words_in_histograms_and_on_maps(words: str) -> None:
    dot = charts.Dot(x=2, y=3, label=words)
    for markup in (
        charts.histogram(words, [0, 1, 2], [1, 2], across=words, limit=(1, words), unit=words),
        charts.dots(words, [dot], outlines=[dot], across=words, up=words, names=(words, words, words)),
    ):
        names = {name for name, _ in seen(markup).tags}
        around = {"figure", "figcaption", "ul", "li", "i", "p", "div"}
        assert names <= around | {"svg", "g", "title", "text", "rect", "line", "circle"}
        ElementTree.fromstring(markup)


def test_intervals_lie_where_their_values_are() -> None:
    markup = charts.intervals(
        "Change", [("a", 0.0, -10.0, 10.0), ("b", 5.0, 5.0, 5.0), ("c", math.nan, 0, 1)], unit="%"
    )
    places = [float(str(attrs["cx"]).rstrip("%")) for name, attrs in seen(markup).tags if name == "circle"]
    assert places == pytest.approx([50, 75])
    reach = [attrs for name, attrs in seen(markup).tags if name == "line" and "reach" in str(attrs["class"])]
    assert (reach[0]["x1"], reach[0]["x2"]) == ("0.000%", "100.000%")
    [svg] = [attrs for name, attrs in seen(markup).tags if name == "svg"]
    assert "a: +0.0% (−10.0% to +10.0%)" in str(svg["aria-label"])
    assert "no values" in charts.intervals("h", [])


def test_a_scatter_has_plain_axes_and_says_its_dots() -> None:
    some = [
        charts.Dot(x=0, y=0, label="a"),
        charts.Dot(x=5, y=10, label="b", out=True),
        charts.Dot(x=10, y=5, label="c"),
    ]
    markup = charts.scatter("Trade", some, across="cost", up="gain", limit=(2.5, "allowed"))
    places = [
        (float(str(attrs["cx"]).rstrip("%")), float(str(attrs["cy"]).rstrip("%")))
        for name, attrs in seen(markup).tags
        if name == "circle"
    ]
    assert places == [(0, 100), (50, 0), (100, 50)]
    assert "allowed" in seen(markup).text and "b" in seen(markup).text
    for words in HOSTILE:
        hostile = charts.scatter(words, [charts.Dot(x=1, y=1, label=words)], across=words, up=words, limit=(1, words))
        ElementTree.fromstring(hostile)
        ElementTree.fromstring(charts.intervals(words, [(words, 0, 0, 1)], unit=words))
