"""The charts that the pages of this wing share: sizes against buckets, captions against the token limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from edkit.data.plan import buckets, nearest
from edkit.measure.families import Family
from edkit.page import charts
from edkit.page.html import Html

_MAX_ASPECT = 4.0
_MOST_BUCKETS = 12
_MOST_DOTS = 600  # more places than this are joined


def sizes_chart(sizes: Iterable[tuple[int, int]], target: Family | None, resolution: int | None) -> Html:
    """Every image's width and height (pixels, upright); those smaller than their bucket stand out."""
    counted = _joined(Counter(size for size in sizes if size[0] > 0 and size[1] > 0))
    if resolution is None:
        points = [_dot(size, n, False) for size, n in counted.items()]
        names = ("images", "", "")
        return charts.dots("Sizes", points, across="width, pixels", up="height, pixels", names=names)
    among = buckets(resolution, 64 if target is None else target.bucket_step, _MAX_ASPECT)
    points = []
    for size, n in counted.items():
        bucket = among[nearest(*size, among)]
        points.append(_dot(size, n, size[0] < bucket[0] or size[1] < bucket[1]))
    return charts.dots(
        f"Sizes, and the buckets of {target.name if target else resolution}",
        points,
        outlines=[charts.Dot(x=w, y=h, label=f"bucket {w} x {h}") for w, h in among],
        across="width, pixels",
        up="height, pixels",
        names=("images", "smaller than their bucket", "buckets"),
    )


def buckets_chart(sizes: Iterable[tuple[int, int]], target: Family | None, resolution: int) -> Html:
    """How many images are nearest to each bucket; the fullest buckets, tall ones first."""
    among = buckets(resolution, 64 if target is None else target.bucket_step, _MAX_ASPECT)
    full: Counter[tuple[int, int]] = Counter()
    for width, height in sizes:
        if width > 0 and height > 0:
            full[among[nearest(width, height, among)]] += 1
    top = {bucket for bucket, _ in full.most_common(_MOST_BUCKETS)}
    rows = [(f"{w} x {h}", float(full[w, h])) for w, h in among if (w, h) in top]
    rest = full.total() - sum(full[bucket] for bucket in top)
    if rest:
        rows.append((f"{len(full) - len(top)} other buckets", float(rest)))
    return charts.bars("Images by bucket, tall to wide", rows, unit="images")


def _dot(size: tuple[int, int], n: float, out: bool) -> charts.Dot:
    said = "1 image" if n == 1 else f"{n:,.0f} images"
    return charts.Dot(x=size[0], y=size[1], weight=n, label=f"{size[0]} x {size[1]}: {said}", out=out)


def _joined(counted: Counter[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Sizes and how often each comes; where there are too many, those nearly alike become one."""
    if len(counted) <= _MOST_DOTS:
        return dict(counted)
    cells: dict[tuple[int, int], Counter[tuple[int, int]]] = {}
    for (width, height), n in counted.items():
        cell = round(10 * _log2(width)), round(10 * _log2(height))  # within 7%
        cells.setdefault(cell, Counter())[width, height] += n
    return {members.most_common(1)[0][0]: members.total() for members in cells.values()}


def _log2(value: int) -> float:
    from math import log2

    return log2(value)


def tokens_chart(num_tokens: Sequence[int], target: Family) -> Html:
    """How long captions are in a family's tokens, against its limit."""
    over = sum(n > target.max_tokens for n in num_tokens)
    most = max([*num_tokens, target.max_tokens])
    edges, counts = charts.spread(num_tokens, low=0, high=most + 1, steps=30)
    title = "Caption lengths" + (f": {over:,} of {len(num_tokens):,} are cut" if over else "")
    limit = (float(target.max_tokens), f"{target.name} reads {target.max_tokens}")
    return charts.histogram(title, edges, counts, across="tokens of a caption", limit=limit, height=200)
