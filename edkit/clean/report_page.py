"""The page of `report`: a data root at a glance, then its pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edkit.clean.charts import buckets_chart, sizes_chart, tokens_chart
from edkit.clean.dedupe import Group
from edkit.clean.files import shown
from edkit.clean.findings import command
from edkit.clean.survey import Survey
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import FACTS
from edkit.measure.preview import KIND
from edkit.page import charts, layout, pictures
from edkit.page.html import Html, join, tag

_ENDS = 6  # pictures at each end of a fact
_GROUPS = 40
_REMOVED = 24
_ROWS = 300
_BARS = 14
_WORD_FOLDERS = 6

_FIRST = ("aesthetic", "sharpness", "brightness", "contrast", "saturation", "entropy")
_NAMES = {
    "sharpness": ("Sharpness", "blurred", "sharp"),
    "brightness": ("Brightness", "darkest", "brightest"),
    "contrast": ("Contrast", "flattest", "hardest"),
    "saturation": ("Saturation", "greyest", "most colourful"),
    "entropy": ("Entropy", "emptiest", "fullest"),
    "num_bytes": ("File size", "smallest", "largest"),
    "aspect": ("Aspect", "tallest", "widest"),
    "megapixels": ("Megapixels", "smallest", "largest"),
}


def write_page(found: Survey, out: Path, *, progress: Progress = SILENT) -> Path:
    """Write the page of a survey; links on it lead to the files from where it lies."""
    root = Path(os.path.abspath(found.root))  # noqa: PTH100 - links stay links
    page_dir = Path(os.path.abspath(out)).parent  # noqa: PTH100
    drawn: list[tuple[str, str, Html]] = []
    makers: list[tuple[str, str, Callable[[], Html]]] = [
        ("Balance", "balance", lambda: _balance(found)),
        ("Sizes", "sizes", lambda: _sizes(found)),
        ("Captions", "captions", lambda: _captions(found, root, page_dir)),
        ("Measured", "measured", lambda: _measured(found, root, page_dir)),
        ("Near-duplicates", "duplicates", lambda: _duplicates(found, root, page_dir)),
        ("Overlap", "overlap", lambda: _overlap(found, page_dir)),
        ("Set aside", "removed", lambda: _removed(found, root, page_dir)),
        ("Sources", "sources", lambda: _sources(found)),
        ("All pictures", "pictures", lambda: _pictures(found, root, page_dir)),
    ]
    with progress.task("drawing the page", total=len(makers), unit="parts") as advance:
        for label, anchor, make in makers:
            part = make()
            if part:
                drawn.append((label, anchor, part))
            advance(1)
    page = layout.render(
        root.name or str(root),
        _figures(found),
        *(part for _, _, part in drawn),
        above="edkit report",
        lead=_lead(found),
        contents=[(label, anchor) for label, anchor, _ in drawn],
        footer=join(
            [
                "Made by ",
                tag("code", command("report", str(found.root), "--out", out.name)),
                ". Everything is inside this page; nothing is fetched, and no script runs. ",
                "Pictures open their files on this disk.",
            ]
        ),
    )
    return layout.write(out, page)


def _lead(found: Survey) -> str:
    picks = sum(folder.picks for folder in found.folders)
    many = "1 folder" if len(found.folders) == 1 else f"{len(found.folders):,} folders"
    held = f", held against {found.target.name}" if found.target else ""
    return f"{len(found.paths):,} pictures in {many}; an epoch trains {_amount(picks)} of them{held}."


def _figures(found: Survey) -> Html:
    num_bytes = sum(folder.num_bytes for folder in found.folders)
    errors = {found.dataset.path(i) for i in range(len(found.dataset)) if found.dataset.error(i) is not None}
    errors |= {Path(one.where) for one in found.broken}
    extra = sum(len(group.members) for group in found.groups)
    groups = f"in {len(found.groups):,} groups" if len(found.groups) > 1 else "in 1 group" if found.groups else ""
    figures = [
        layout.Figure(value=f"{len(found.paths):,}", label="pictures", note=_size(num_bytes)),
        layout.Figure(value=_amount(sum(folder.picks for folder in found.folders)), label="picks an epoch"),
        layout.Figure(value=f"{extra:,}", label="near-duplicates", note=groups),
        layout.Figure(value=f"{len(found.removed):,}", label="set aside so far"),
    ]
    problem = ""
    if errors:
        see = tag("code", command("check", str(found.root), "--open"))
        problem = tag("p", f"An error stands against {len(errors):,} of them: ", see, class_="lead aside")
    notes = [tag("p", note, class_="note") for note in found.notes]
    return tag("section", layout.key_figures(figures), problem, *notes)


# ---- folders


def _balance(found: Survey) -> Html:
    folders = sorted(found.folders, key=lambda folder: -folder.picks)
    total = sum(folder.picks for folder in folders) or 1.0
    top = [(folder.key, folder.picks) for folder in folders[:_BARS]]
    if len(folders) > _BARS:
        top.append((f"{len(folders) - _BARS:,} others", sum(folder.picks for folder in folders[_BARS:])))
    digits = 1 if any(picks != int(picks) for _, picks in top) else 0
    rows = [
        (one.key, one.num_images, one.multiply, round(one.picks, 2), f"{one.picks / total:.1%}", _size(one.num_bytes))
        for one in folders[:_ROWS]
    ]
    columns = ("folder", "images", "multiply", "picks an epoch", "share", "size")
    table = layout.table(columns, rows)
    parts = [
        charts.bars("Picks an epoch", top, unit="picks", digits=digits),
        table if len(rows) <= 12 else layout.fold("All", table),
    ]
    change = command("balance", str(found.root), "--share", f"{folders[-1].key}=0.3") if len(folders) > 1 else ""
    more = layout.command(change, "It changes how much of an epoch a folder makes up.") if change else ""
    note = "How often each folder is trained: its images times its multiply."
    return layout.section("Folders and balance", *parts, more, note=note, anchor="balance")


def _sizes(found: Survey) -> Html:
    sizes = [(_whole(one["width"]), _whole(one["height"])) for one in found.facts.values()]
    if not sizes:
        return Html("")
    parts = [sizes_chart(sizes, found.target, found.resolution)]
    if found.resolution is not None:
        parts.append(buckets_chart(sizes, found.target, found.resolution))
        note = "Each picture trains at the bucket nearest to its shape; a smaller one trains at a smaller size."
    else:
        note = "Say --for sdxl (or another family) to hold them against the sizes it trains at."
    return layout.section("Sizes", layout.beside(*parts), note=note, anchor="sizes")


# ---- captions


def _captions(found: Survey, root: Path, page_dir: Path) -> Html:
    parts: list[object] = []
    if found.num_tokens and found.target is not None:
        parts.append(tokens_chart(found.num_tokens, found.target))
        if found.cut:
            rows = [
                (layout.link(shown(path, root), path, page_dir=page_dir), n)
                for path, n in sorted(found.cut, key=lambda one: -one[1])[:_ROWS]
            ]
            table = layout.table(["picture", "tokens"], rows)
            many = "The caption that is cut" if len(rows) == 1 else f"The {len(found.cut):,} captions that are cut"
            parts.append(layout.fold(many, table))
    by_size = sorted(found.words, key=lambda folder: -(found.words[folder][0].num_images if found.words[folder] else 0))
    words = []
    for folder in by_size[:_WORD_FOLDERS]:
        if not found.words[folder]:
            continue
        name = shown(folder, root) if folder != root else "."
        top = [(word.text, 100 * word.share) for word in found.words[folder][:_BARS]]
        accent = [word.text for word in found.words[folder] if word.share >= 0.9]
        words.append(charts.bars(f"Words of {name}", top, unit="% of captions", accent=accent or ["-"], most=100))
    if words:
        parts.append(layout.beside(*words))
    rest = by_size[_WORD_FOLDERS:]
    if rest:
        lines = [
            (
                shown(folder, root),
                ", ".join(f"{word.text} {word.share:.0%}" for word in found.words[folder][:8]),
            )
            for folder in rest[:_ROWS]
        ]
        parts.append(layout.fold(f"Words of {len(rest):,} more folders", layout.table(["folder", "words"], lines)))
    note = "Words that stand in nine of ten captions or more (in colour) are learned with the subject."
    return layout.section("Captions", *parts, note=note, anchor="captions") if parts else Html("")


# ---- facts


def _measured(found: Survey, root: Path, page_dir: Path) -> Html:
    """A histogram of every fact, and the pictures at both its ends."""
    names = sorted(found.scores, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    parts = []
    for name in names:
        fact, values = FACTS[name], found.scores[name]
        title, low, high = _NAMES.get(name, (name.replace("_", " ").capitalize(), "lowest", "highest"))
        ordered = sorted(values, key=lambda path: (values[path], str(path)))
        # a few odd values must not press all others into one column
        first, last = values[ordered[len(ordered) // 200]], values[ordered[-1 - len(ordered) // 200]]
        edges, counts = charts.spread(values.values(), low=first, high=last, steps=24)
        unit = f", {fact.unit}" if fact.unit else ""
        chart = charts.histogram(f"Pictures by {title.lower()}", edges, counts, across=f"{name}{unit}")
        ends = [
            tag("h4", low),
            _ends(ordered[:_ENDS], values, root, page_dir),
            tag("h4", high),
            _ends(ordered[::-1][:_ENDS], values, root, page_dir),
        ]
        known = "" if len(values) == len(found.facts) else f" Known of {len(values):,} pictures."
        said = f"{fact.what[:1].upper()}{fact.what[1:]}.{known}"
        parts.append(layout.group(title, tag("div", chart, tag("div", *ends), class_="measure"), note=said))
    note = "Each is a fact of the picture alone, and can stand in a rule: edkit filter --rule."
    return layout.section("Measured", *parts, note=note, anchor="measured") if parts else Html("")


def _ends(paths: Sequence[Path], values: Mapping[Path, float], root: Path, page_dir: Path) -> Html:
    shown_ones = [pictures.Picture(source=path, caption=_short(values[path]), hint=shown(path, root)) for path in paths]
    return pictures.grid(shown_ones, page_dir=page_dir, box=96)


# ---- what is doubled, and what is gone


def _duplicates(found: Survey, root: Path, page_dir: Path) -> Html:
    if not found.groups:
        return Html("")
    rows = [
        tag("li", pictures.grid(list(_members(group, root)), page_dir=page_dir, box=112))
        for group in sorted(found.groups, key=lambda group: -len(group.members))[:_GROUPS]
    ]
    first, rest = rows[:8], rows[8:]
    parts: list[object] = [
        layout.command(
            command("dedupe", str(found.root)),
            "It keeps the best of each group and moves the others to the trash.",
        ),
        tag("ul", *first, class_="groups"),
    ]
    if rest:
        parts.append(layout.fold(f"{len(rest):,} more groups", tag("ul", *rest, class_="groups")))
    if len(found.groups) > _GROUPS:
        parts.append(tag("p", f"{len(found.groups) - _GROUPS:,} smaller groups are not drawn.", class_="note"))
    extra = sum(len(group.members) for group in found.groups)
    note = f"{extra:,} pictures show the same as another one, which would stay."
    return layout.section("Near-duplicates", *parts, note=note, anchor="duplicates")


def _members(group: Group, root: Path) -> Iterator[pictures.Picture]:
    yield pictures.Picture(source=group.kept, caption=group.kept.name, badge="stays", good=True)
    for one in group.members[:11]:
        note = "same bytes" if one.same_bytes else f"distance {one.distance:.0f}"
        yield pictures.Picture(source=one.path, caption=one.path.name, note=note, hint=shown(one.path, root))


def _overlap(found: Survey, page_dir: Path) -> Html:
    """What another folder shows too: there the subject would be preserved as it was before it was learned."""
    if found.overlap is None:
        return Html("")
    shared = found.overlap.shared
    if not shared:
        note = f"None of the {found.overlap.num_preservation:,} pictures over there shows what one of these shows."
        return layout.section("Overlap", note=note, anchor="overlap")
    rows = [
        pictures.Pair(
            before=pictures.Picture(source=one.train, caption=one.train.name),
            after=pictures.Picture(source=one.path, caption=one.path.name),
            label=one.how if one.distance == 0 else f"{one.how}, distance {one.distance:.3g}",
        )
        for one in shared[:_GROUPS]
    ]
    note = (
        f"{len(shared):,} of the {found.overlap.num_preservation:,} pictures over there show what one of these shows."
        " Preservation data that holds the subject defeats its purpose."
    )
    grid = pictures.pairs(rows, page_dir=page_dir, box=144, at_first=12, before="here", after="over there")
    other = str(found.overlap_with)
    move = layout.command(
        command("overlap", str(found.root), other, "--move"),
        join(["It moves those over there to the trash. To take it back: ", tag("code", command("undo", other))]),
    )
    return layout.section("Overlap", move, grid, note=note, anchor="overlap")


def _removed(found: Survey, root: Path, page_dir: Path) -> Html:
    if not found.removed:
        return Html("")
    by_verb = Counter(one.verb for one in found.removed)
    some = [
        pictures.Picture(
            source=one.kept_at if one.kept_at.is_file() else None,
            caption=one.path.name,
            note=one.reason,
            linked=False,
        )
        for one in found.removed[:_REMOVED]
    ]
    rows = [(shown(one.path, root), one.verb, one.operation, one.reason) for one in found.removed[:_ROWS]]
    table = layout.table(["picture", "by", "operation", "why"], rows)
    more = f"The newest {_ROWS:,}, by name" if len(found.removed) > _ROWS else "All, by name"
    return layout.section(
        "Set aside, and why",
        charts.bars("Set aside by", by_verb.most_common(_BARS), unit="images"),
        pictures.grid(some, page_dir=page_dir, box=112, at_first=12),
        layout.fold(more, table),
        layout.command(command("undo", str(found.root)), "It takes back the last operation; undo --to N, all after N."),
        note="These pictures are in the trash of this data root; nothing is deleted until the trash is emptied.",
        anchor="removed",
    )


# ---- where they came from


def _sources(found: Survey) -> Html:
    origins = found.origins
    if not origins.num_known:
        return Html("")
    parts: list[object] = [
        layout.beside(
            charts.bars("Licences", _top(origins.licences), unit="images"),
            charts.bars("Places", _top(origins.places), unit="images"),
        )
    ]
    authors = [(name, n) for name, n in origins.authors.items() if name != "not stated"]
    if authors:
        table = layout.table(["author", "images"], authors[:_ROWS])
        parts.append(layout.fold(f"{len(authors):,} authors", table))
    own = len(found.paths) - origins.num_known
    note = f"edkit knows where {origins.num_known:,} pictures came from" + (
        f"; {own:,} were put here by a person." if own else "."
    )
    return layout.section("Sources and licences", *parts, note=note, anchor="sources")


def _top(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    items = list(counts.items())
    rest = sum(n for _, n in items[_BARS:])
    return [*((name, float(n)) for name, n in items[:_BARS]), *([("others", float(rest))] if rest else [])]


# ---- every picture


def _pictures(found: Survey, root: Path, page_dir: Path) -> Html:
    by_folder: dict[Path, list[Path]] = {}
    for path in found.previews:
        by_folder.setdefault(path.parent, []).append(path)
    counts = {folder.path: folder.num_images for folder in found.folders}
    parts = []
    for folder, paths in by_folder.items():
        tiles = [pictures.Tile(data=found.previews[path], href=path, label=path.name, kind=KIND) for path in paths]
        name = shown(folder, root) if folder != root else "."
        all_of_it = counts.get(folder, len(paths))
        said = f"{name}: {all_of_it:,} pictures"
        if len(paths) < all_of_it:
            said += f", {len(paths):,} of them shown"
        parts.append(layout.fold(said, pictures.sheet(tiles, page_dir=page_dir), opened=len(found.previews) <= 600))
    note = "Every picture, by folder; each opens its file, and says its name where the pointer rests."
    if len(found.previews) < len(found.paths):
        note = (
            f"An even sample of {len(found.previews):,} of {len(found.paths):,} pictures (--thumbnails says how many)."
        )
    return layout.section("All pictures", *parts, note=note, anchor="pictures") if parts else Html("")


# ---- words


def _amount(picks: float) -> str:
    return f"{picks:,.0f}" if picks >= 100 or picks == int(picks) else f"{picks:,.1f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
