"""Charts as inline SVG: bars, shares of a whole, lines, histograms, maps of dots; each as wide as its place.

Only the plotting area is scaled: positions across are percentages of it, labels hang outside at a fixed size.
So one drawing reads well at 400 and at 1200 pixels. Every value is told in words too, to whoever can't see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from edkit.page.html import Html, escape, join, tag

_ROW = 30  # pixels from bar to bar
_BAR = 16
_LABEL_PIXELS = 6.7  # width of an average character at 13 px
_MAX_LABEL = 22  # characters beside a bar
_MAX_POINTS = 1200  # of one line; more can't be told apart at the width of a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart: its points from left to right; `faint` draws raw values behind a smoothed line."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


def bars(
    title: str,
    rows: Sequence[tuple[str, float]],
    *,
    unit: str = "",
    accent: Collection[str] = (),
    digits: int = 0,
    most: float | None = None,
) -> Html:
    """One horizontal bar a row, its value at the end; those in `accent` (none: all) stand out.

    A bar of the value `most` is as wide as the plot (None: the longest bar is).
    """
    values = [_finite(value) for _, value in rows]
    top = most or max([*values, 0.0]) or 1.0
    ticks = [tick for tick in nice_ticks(0.0, top, count=4) if tick <= top]
    height = _ROW * len(rows)
    parts = [_ticks_across(ticks, top, height, "")]
    for i, ((label, _), value) in enumerate(zip(rows, values, strict=True)):
        y, width = i * _ROW + (_ROW - _BAR) // 2, 100 * value / top
        look = "c1" if not accent or label in accent else "c2"
        said = f"{value:,.{digits}f}"
        parts.append(
            tag(
                "g",
                tag("title", f"{label}: {said} {unit}".strip()),
                _row_label(label, y),
                tag("rect", x=0, y=y, width=f"{width:.3f}%", height=_BAR, class_=look),
                tag("text", said, x=f"{width:.3f}%", y=y + _BAR - 3, dx=7, class_="value"),
            )
        )
    summary = "; ".join(f"{label} {value:,.{digits}f}" for (label, _), value in zip(rows, values, strict=True))
    plot = _plot(parts, height=height, left=_left(label for label, _ in rows), right=56, says=f"{title}: {summary}")
    return _figure(title, plot, across=unit, left=_left(label for label, _ in rows), right=56)


def shares(title: str, rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str]) -> Html:
    """One bar a row, each as wide as the others: how its total divides into `parts` (up to six)."""
    height = (_ROW + 6) * len(rows)
    drawn = [_ticks_across((0.0, 25.0, 50.0, 75.0, 100.0), 100.0, height, "%")]
    told: list[str] = []
    for i, (label, numbers) in enumerate(rows):
        values = [_finite(value) for value in numbers]
        total, y, start = sum(values), i * (_ROW + 6) + 6, 0.0
        drawn.append(_row_label(label, y + 4))
        for j, value in enumerate(values):
            share = 100 * value / total if total else 0.0
            if not share:
                continue
            said = f"{share:.0f}%" if share >= 0.5 else f"{share:.1f}%"
            told.append(f"{label}, {parts[j]}: {said}")
            drawn.append(
                tag(
                    "g",
                    tag("title", f"{label}, {parts[j]}: {said} ({value:,g} of {total:,g})"),
                    tag(
                        "rect",
                        x=f"{start:.3f}%",
                        y=y,
                        width=f"{share:.3f}%",
                        height=24,
                        class_=f"c{j % 6 + 1} part",
                    ),
                    tag("text", said, x=f"{start + share / 2:.3f}%", y=y + 16, class_=f"inside on{j % 6 + 1}")
                    if share >= 14
                    else "",
                )
            )
            start += share
    plot = _plot(
        drawn,
        height=height,
        left=_left(label for label, _ in rows),
        right=20,
        says=f"{title}: {'; '.join(told)}",
    )
    return _figure(title, plot, legend=[(name, f"c{j % 6 + 1}") for j, name in enumerate(parts)])


def lines(
    title: str, series: Sequence[Series], *, across: str, up: str, height: int = 240, from_zero: bool = False
) -> Html:
    """Lines over a common axis; `across` and `up` name the axes with their units.

    Where a value isn't finite, its line has a gap.
    """
    every = [(x, y) for one in series for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not every:
        return _figure(title, tag("p", "no values", class_="note"))
    xs, ys = [x for x, _ in every], [y for _, y in every]
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 0.5, right + 0.5
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys), count=5)
    bottom, top = y_ticks[0], y_ticks[-1]

    drawn: list[Html] = []
    for value in y_ticks:
        y = f"{100 * (top - value) / (top - bottom):.3f}%"
        drawn.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid-line"))
        drawn.append(tag("text", _short(value, y_ticks), x=-10, y=y, dy="0.32em", class_="tick end"))
    x_ticks = [t for t in nice_ticks(left, right, count=5) if left <= t <= right]
    for value in x_ticks:
        x = f"{100 * (value - left) / (right - left):.3f}%"
        drawn.append(tag("line", x1=x, x2=x, y1=height, y2=height + 5, class_="axis"))
        drawn.append(tag("text", _short(value, x_ticks), x=x, y=height + 20, class_="tick middle"))
    drawn.append(tag("line", x1="0%", x2="100%", y1=height, y2=height, class_="axis"))

    told, looks, solid = [], [], 0
    for one in series:
        look = "faint" if one.faint else f"s{solid % 4 + 1}"
        solid += not one.faint
        looks.append((one.name, f"stroke {look}"))
        paths = []
        for run in _runs(one.points):
            at = [(1000 * (x - left) / (right - left), 1000 * (top - y) / (top - bottom)) for x, y in _thinned(run)]
            if len(at) == 1:
                at = [(at[0][0] - 2, at[0][1]), (at[0][0] + 2, at[0][1])]
            paths.append("M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in at))
        finite = [y for _, y in one.points if math.isfinite(y)]
        if finite:
            told.append(f"{one.name} from {finite[0]:.3g} to {finite[-1]:.3g}, lowest {min(finite):.3g}")
        # the inner drawing is stretched to the plot; its stroke isn't
        drawn.append(
            tag(
                "svg",
                tag("title", one.name),
                tag("path", d=" ".join(paths), class_=look, vector_effect="non-scaling-stroke"),
                x=0,
                y=0,
                width="100%",
                height=height,
                viewBox="0 0 1000 1000",
                preserveAspectRatio="none",
            )
        )
    widest = max(len(_short(value, y_ticks)) for value in y_ticks)
    says = f"{title}: {up} over {across}; {'; '.join(told)}"
    left_pad = max(36, 18 + 7 * widest)
    plot = _plot(drawn, height=height, left=left_pad, right=20, says=says)
    legend = looks if len(series) > 1 else []
    return _figure(title, plot, across=across, left=left_pad, right=20, up=up, legend=legend)


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    across: str,
    limit: tuple[float, str] | None = None,
    unit: str = "images",
    height: int = 150,
) -> Html:
    """Columns over equal steps: `counts[i]` lies between `edges[i]` and `edges[i + 1]`.

    `limit` is a value and what it's called: a line there, and columns that begin at it or above stand out.
    """
    if not counts or len(edges) != len(counts) + 1 or not edges[-1] > edges[0]:
        return _figure(title, tag("p", "no values", class_="note"))
    left, right = edges[0], edges[-1]
    top = nice_ticks(0.0, max(1.0, *counts), count=3)[-1]
    drawn: list[Html] = []
    y_ticks = nice_ticks(0.0, top, count=3)
    for value in y_ticks:
        y = f"{100 * (top - value) / top:.3f}%"
        drawn.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid-line" if value else "axis"))
        drawn.append(tag("text", _short(value, y_ticks), x=-8, y=y, dy="0.32em", class_="tick end"))
    x_ticks = [tick for tick in nice_ticks(left, right, count=5) if left <= tick <= right]
    for value in x_ticks:
        across_at = f"{100 * (value - left) / (right - left):.3f}%"
        drawn.append(tag("text", _short(value, x_ticks), x=across_at, y=height + 18, class_="tick middle"))
    told = []
    for i, count in enumerate(counts):
        if not count > 0:
            continue
        low, high = edges[i], edges[i + 1]
        x, width = 100 * (low - left) / (right - left), 100 * (high - low) / (right - left)
        over = limit is not None and low >= limit[0]
        said = f"{low:,.4g} to {high:,.4g}: {count:,g} {unit}"
        told.append(said)
        tall = max(1.0, height * count / top)
        drawn.append(
            tag(
                "g",
                tag("title", said),
                tag(
                    "rect",
                    x=f"{x + 0.06 * width:.3f}%",
                    y=f"{height - tall:.1f}",
                    width=f"{0.88 * width:.3f}%",
                    height=f"{tall:.1f}",
                    class_="over" if over else "c1",
                ),
            )
        )
    if limit is not None and left <= limit[0] <= right:
        x = 100 * (limit[0] - left) / (right - left)
        side, offset = ("end", -6) if x > 60 else ("start", 6)
        drawn.append(tag("line", x1=f"{x:.3f}%", x2=f"{x:.3f}%", y1=-4, y2=height, class_="limit"))
        drawn.append(tag("text", limit[1], x=f"{x:.3f}%", y=4, dx=offset, class_=f"limit-name {side}"))
    pad = max(30, 16 + 7 * max(len(_short(value, y_ticks)) for value in y_ticks))
    plot = _plot(drawn, height=height, left=pad, right=14, says=f"{title}: {'; '.join(told[:60])}")
    return _figure(title, plot, across=across, left=pad, right=14)


def intervals(
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    unit: str = "",
    digits: int = 1,
    signed: bool = True,
) -> Html:
    """One row a figure: its value as a dot, and from where to where it may lie as a line, around a common zero.

    `rows` are (label, value, low, high); figures that aren't finite have no row.
    """
    finite = [row for row in rows if all(math.isfinite(value) for value in row[1:])]
    if not finite:
        return _figure(title, tag("p", "no values", class_="note"))
    ticks = nice_ticks(min(0.0, *(row[2] for row in finite)), max(0.0, *(row[3] for row in finite)), count=5)
    first, last, height = ticks[0], ticks[-1], _ROW * len(finite)

    def at(value: float) -> str:
        return f"{100 * (value - first) / (last - first):.3f}%"

    def said(value: float) -> str:
        return f"{value:{'+' if signed else ''},.{digits}f}{unit}".replace("-", "−")

    drawn: list[Html] = []
    for value in ticks:
        look = "axis" if abs(value) < 1e-9 * (last - first) else "grid-line"
        drawn.append(tag("line", x1=at(value), x2=at(value), y1=0, y2=height, class_=look))
        label = _short(value, ticks) + unit
        drawn.append(tag("text", label, x=at(value), y=height + 18, class_="tick middle"))
    told = []
    for i, (label, value, low, high) in enumerate(finite):
        y = i * _ROW + _ROW // 2
        words = f"{label}: {said(value)} ({said(low)} to {said(high)})"
        told.append(words)
        drawn.append(
            tag(
                "g",
                tag("title", words),
                _row_label(label, y - _BAR // 2),
                tag("line", x1=at(low), x2=at(high), y1=y, y2=y, class_="s1 reach"),
                tag("circle", cx=at(value), cy=y, r=5, class_="dot solid"),
                tag("text", said(value), x=at(value), y=y - 8, class_="value middle"),
            )
        )
    left = _left(row[0] for row in finite)
    plot = _plot(drawn, height=height, left=left, right=40, says=f"{title}: {'; '.join(told)}")
    return _figure(title, plot, left=left, right=40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A place on a map: where it lies, how much it stands for, what is said of it; `out` marks it as amiss."""

    x: float
    y: float
    weight: float = 1.0
    label: str = ""
    out: bool = False


def dots(
    title: str,
    points: Sequence[Dot],
    *,
    outlines: Sequence[Dot] = (),
    across: str,
    up: str,
    names: tuple[str, str, str] = ("", "", ""),
    height: int = 320,
) -> Html:
    """Dots on two logarithmic axes (each step doubles), as large as their weight; `outlines` are drawn hollow.

    `names` are the legend's words for the dots, those that are `out`, and the outlines ("" for none).
    """
    every = [dot for dot in (*points, *outlines) if dot.x > 0 and dot.y > 0]
    if not every:
        return _figure(title, tag("p", "no values", class_="note"))
    (left, right), (low, high) = (_octaves([dot.x for dot in every]), _octaves([dot.y for dot in every]))

    def place(dot: Dot) -> tuple[str, str]:
        x = 100 * (math.log2(dot.x) - left) / (right - left)
        y = 100 * (high - math.log2(dot.y)) / (high - low)
        return f"{x:.2f}%", f"{y:.2f}%"

    drawn: list[Html] = []
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        y = f"{100 * (high - exponent) / (high - low):.2f}%"
        drawn.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid-line"))
        drawn.append(tag("text", f"{2.0**exponent:,g}", x=-8, y=y, dy="0.32em", class_="tick end"))
    for exponent in range(math.ceil(left), math.floor(right) + 1):
        x = f"{100 * (exponent - left) / (right - left):.2f}%"
        drawn.append(tag("line", x1=x, x2=x, y1=0, y2=height, class_="grid-line"))
        drawn.append(tag("text", f"{2.0**exponent:,g}", x=x, y=height + 18, class_="tick middle"))
    for dot in outlines:
        x, y = place(dot)
        ring = tag("circle", tag("title", dot.label), cx=x, cy=y, r=5, class_="ring")
        drawn.append(ring)
    most = max((dot.weight for dot in points), default=1.0)
    for dot in sorted(points, key=lambda dot: -dot.weight):
        if not (dot.x > 0 and dot.y > 0):
            continue
        x, y = place(dot)
        radius = 2.5 + 11.5 * math.sqrt(dot.weight / most) if most > 1 else 3.5
        drawn.append(
            tag(
                "circle", tag("title", dot.label), cx=x, cy=y, r=f"{radius:.1f}", class_="dot out" if dot.out else "dot"
            )
        )
    out = sum(dot.weight for dot in points if dot.out)
    says = f"{title}: {up} over {across}; {sum(dot.weight for dot in points):,g} {names[0]}, {out:,g} {names[1]}"
    legend = [(name, look) for name, look in zip(names, ("dot", "dot out", "ring"), strict=True) if name]
    plot = _plot(drawn, height=height, left=52, right=20, says=says)
    return _figure(title, plot, across=across, left=52, right=20, up=up, legend=legend)


def scatter(
    title: str,
    points: Sequence[Dot],
    *,
    across: str,
    up: str,
    limit: tuple[float, str] | None = None,
    names: tuple[str, str] = ("", ""),
    height: int = 320,
) -> Html:
    """Labelled dots on two plain axes; a line at `limit` (a value across, and its name).

    `names` are the legend's words for the dots and those that are `out` ("" for none).
    """
    every = [dot for dot in points if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not every:
        return _figure(title, tag("p", "no values", class_="note"))
    reach = [limit[0]] if limit else []
    x_ticks = nice_ticks(min(0.0, *(dot.x for dot in every)), max(0.0, *reach, *(dot.x for dot in every)), count=6)
    y_ticks = nice_ticks(min(0.0, *(dot.y for dot in every)), max(0.0, *(dot.y for dot in every)), count=5)
    left, right, low, high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[str, str]:
        return f"{100 * (x - left) / (right - left):.2f}%", f"{100 * (high - y) / (high - low):.2f}%"

    drawn: list[Html] = []
    for value in y_ticks:
        _, y = place(left, value)
        drawn.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid-line"))
        drawn.append(tag("text", _short(value, y_ticks), x=-8, y=y, dy="0.32em", class_="tick end"))
    for value in x_ticks:
        x, _ = place(value, low)
        drawn.append(tag("line", x1=x, x2=x, y1=0, y2=height, class_="grid-line"))
        drawn.append(tag("text", _short(value, x_ticks), x=x, y=height + 18, class_="tick middle"))
    if limit is not None:
        x, _ = place(limit[0], low)
        drawn.append(tag("line", x1=x, x2=x, y1=-4, y2=height, class_="limit"))
        drawn.append(tag("text", limit[1], x=x, y=4, dx=6, class_="limit-name start"))
    for dot in every:
        x, y = place(dot.x, dot.y)
        look = "dot out" if dot.out else "dot solid"
        drawn.append(tag("circle", tag("title", dot.label), cx=x, cy=y, r=5, class_=look))
        drawn.append(tag("text", dot.label, x=x, y=y, dx=9, dy="0.32em", class_="value"))
    told = "; ".join(f"{dot.label}: {dot.x:.3g}, {dot.y:.3g}" for dot in every)
    pad = max(36, 18 + 7 * max(len(_short(value, y_ticks)) for value in y_ticks))
    plot = _plot(drawn, height=height, left=pad, right=64, says=f"{title}: {up} over {across}; {told}")
    legend = [(name, look) for name, look in zip(names, ("dot solid", "dot out"), strict=True) if name]
    return _figure(title, plot, across=across, left=pad, right=64, up=up, legend=legend)


def _octaves(values: Sequence[float]) -> tuple[float, float]:
    """The span of the values as powers of two, with some room, at least two doublings wide."""
    low, high = math.log2(min(values)) - 0.25, math.log2(max(values)) + 0.25
    room = max(0.0, 2.2 - (high - low)) / 2
    return low - room, high + room


def spread(
    values: Iterable[float], *, low: float | None = None, high: float | None = None, steps: int = 24
) -> tuple[list[float], list[int]]:
    """Round edges around the values, and how many lie in each step: what `histogram` draws.

    Values beyond `low` or `high` (where given) count in the outermost steps.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return [0.0, 1.0], [0]
    first, last = min(finite) if low is None else low, max(finite) if high is None else high
    edges = nice_ticks(first, last, count=steps + 1)
    if edges[-1] <= last:  # the last step holds its own upper edge only where it must
        edges.append(edges[-1] + (edges[-1] - edges[-2]))
    counts = [0] * (len(edges) - 1)
    step = edges[1] - edges[0]
    for value in finite:
        counts[min(len(counts) - 1, max(0, math.floor((value - edges[0]) / step + 1e-9)))] += 1
    while len(counts) > 1 and not counts[-1]:
        counts.pop()
        edges.pop()
    return edges, counts


def smoothed(points: Sequence[tuple[float, float]], width: int) -> list[tuple[float, float]]:
    """Means of `width` neighbours, each at its middle; fewer points than that have none."""
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    return [(points[i + width // 2][0], (sums[i + width] - sums[i]) / width) for i in range(len(points) - width + 1)]


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round values, 1, 2, 2.5 or 5 times a power of ten apart, that enclose low..high."""
    # closer together than floats of this size can be told apart: one value
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):
        high = low + (abs(low) if abs(low) > 1e-200 else 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _figure(
    title: str,
    plot: Html,
    *,
    across: str = "",
    left: int = 0,
    right: int = 0,
    up: str = "",
    legend: Sequence[tuple[str, str]] = (),
) -> Html:
    keys = (tag("li", tag("i", class_=look, aria_hidden="true"), name) for name, look in legend)
    place = f"padding:0 {right}px 0 {left}px"
    return tag(
        "figure",
        tag("figcaption", title),
        tag("ul", *keys, class_="legend") if legend else "",
        tag("p", up, class_="axis-name") if up else "",
        plot,
        tag("p", across, class_="axis-name across", style=place) if across else "",
        class_="chart",
    )


def _plot(parts: Sequence[Html], *, height: int, left: int, right: int, says: str) -> Html:
    drawing = tag("svg", join(parts), role="img", aria_label=says, width="100%", height=height)
    return tag("div", drawing, class_="plot", style=f"padding:6px {right}px 26px {left}px")


def _ticks_across(ticks: Sequence[float], top: float, height: int, unit: str) -> Html:
    parts = []
    for value in ticks:
        x = f"{100 * value / top:.3f}%"
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=height, class_="axis" if value == 0 else "grid-line"))
        parts.append(tag("text", _short(value, ticks) + unit, x=x, y=height + 18, class_="tick middle"))
    return join(parts)


def _row_label(label: str, y: int) -> Html:
    short = label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"
    return tag("text", short, x=-10, y=y + _BAR - 3, class_="row-label end")


def _left(labels: Iterable[str]) -> int:
    longest = max((len(label) for label in labels), default=0)
    return int(24 + _LABEL_PIXELS * min(longest, _MAX_LABEL))


def _finite(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0


def _short(value: float, ticks: Sequence[float]) -> str:
    """A tick with just the decimals that tell it from its neighbours."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < step * 1e-6), 7)
    if abs(value) < step * 1e-6:
        value = 0.0
    return escape(f"{value:,.{decimals}f}".replace("-", "−"))


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `_MAX_POINTS`: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    stretch = math.ceil(2 * len(points) / _MAX_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept.extend(sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}))
    return kept
