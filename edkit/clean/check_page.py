"""The page of `check`: what to do first, then every finding with its pictures and the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edkit.clean.charts import sizes_chart, tokens_chart
from edkit.clean.files import shown
from edkit.clean.findings import Finding, Look, Spot, command, file_of, place_of
from edkit.clean.fix import Fixed
from edkit.data.progress import SILENT, Progress
from edkit.page import layout, pictures
from edkit.page.html import Html, join, tag

_AT_FIRST = 12  # pictures of a finding that stand open
_AT_MOST = 60  # pictures of a finding that the page holds
_ROWS = 200  # lines of a table
_BOX = 168  # CSS pixels of a picture
_MARKED_BOX = 300  # of one that has something drawn on it


def write_page(seen: Look, out: Path, *, fixed: Fixed | None = None, progress: Progress = SILENT) -> Path:
    """Write the page of one look at a data root; links on it lead to the files from where it lies."""
    root, page_dir = Path(os.path.abspath(seen.asked.root)), Path(os.path.abspath(out)).parent  # noqa: PTH100
    sections = [_overview(seen, fixed, root)]
    with progress.task("drawing the page", total=len(seen.findings), unit="findings") as advance:
        for finding, spots in seen.findings:
            sections.append(_finding(finding, spots, root, page_dir, seen))
            advance(1)
    sections.append(_glance(seen))
    sections.append(_fine(seen))
    page = layout.render(
        root.name or str(root),
        *sections,
        above=f"edkit check{f' for {seen.target.name}' if seen.target else ''}",
        lead=_lead(seen),
        footer=join(
            [
                "Made by ",
                tag("code", seen.asked.check()),
                ". The pictures are inside this page; nothing is fetched, and no script runs. ",
                "Its links open the files on this disk.",
            ]
        ),
    )
    return layout.write(out, page)


def _lead(seen: Look) -> str:
    levels = [finding.level for finding, _ in seen.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    if not len(seen.dataset):
        return "There is no image in this folder."
    if errors:
        kinds = "one thing stops" if errors == 1 else f"{errors} things stop"
        return f"Not ready yet: {kinds} a training. Each has one command that mends it, and undo takes it back."
    if warnings:
        kinds = "One thing" if warnings == 1 else f"{warnings} things"
        return f"Ready to train. {kinds} would make it better; each has its command, and undo takes it back."
    return "Ready to train: nothing was found that is broken or doubtful."


def _overview(seen: Look, fixed: Fixed | None, root: Path) -> Html:
    num = len(seen.dataset)
    blocked = {file_of(s.problem.where) for f, spots in seen.findings if f.level == "error" for s in spots}
    bad = sum(seen.dataset.error(i) is not None or seen.dataset.path(i) in blocked for i in range(num))
    touched = {
        path
        for finding, spots in seen.findings
        if finding.level == "warning"
        for spot in spots
        for path in (spot.image, *(other for other, _ in spot.others))
        if path is not None
    }
    figures = [
        layout.Figure(value=f"{num:,}", label="pictures"),
        layout.Figure(value=f"{num - bad:,}", label="can train", note=f"of {num:,}" if bad else ""),
        layout.Figure(value=f"{bad:,}", label="stopped by an error"),
        layout.Figure(value=f"{len(touched):,}", label="named in a warning"),
    ]
    rows = [
        layout.Task(
            label=finding.title,
            note="" if finding.mend else finding.by_hand,
            command=finding.mend,
            anchor=finding.kind,
            mark=finding.level,
            good=False if finding.level == "error" else None,
        )
        for finding, _ in seen.findings
    ]
    done = _done(fixed, root) if fixed is not None and fixed.mended else ""
    todo = [tag("h2", "What to do, the most urgent first"), layout.tasks(rows)] if rows else []
    return tag("section", layout.key_figures(figures), done, tag("div", *todo, class_="first") if todo else "")


def _done(fixed: Fixed, root: Path) -> Html:
    rows = [(shown(one.path, root), one.what, "" if one.to is None else shown(one.to, root)) for one in fixed.mended]
    said = f"{len(rows):,} mended just now" if len(rows) > 1 else "1 mended just now"
    return layout.fold(said, layout.table(["file", "what was done", "now"], rows[:_ROWS]))


def _finding(finding: Finding, spots: Sequence[Spot], root: Path, page_dir: Path, seen: Look) -> Html:
    parts: list[object] = []
    if finding.mend:
        undo = tag("code", command("undo", str(seen.asked.root)))
        parts.append(layout.command(finding.mend, join([f"It {finding.does}. To take it back: ", undo])))
    if finding.by_hand:
        parts.append(layout.prose(finding.by_hand))
    if finding.kind == "caption-cut":
        parts.append(_cut_captions(spots, root, page_dir))
    elif finding.kind in ("near-duplicate", "burst"):
        parts.append(_groups(spots, root, page_dir))
    elif any(spot.image is not None for spot in spots):
        some = spots[:_AT_MOST]
        same = len(spots) > 1 and len({spot.problem.what for spot in some}) == 1
        shown_ones = [_picture(spot, root, said=not same) for spot in some]
        box = _MARKED_BOX if any(spot.keep is not None for spot in some) else _BOX
        parts.append(pictures.grid(shown_ones, page_dir=page_dir, box=box, at_first=_AT_FIRST))
        parts.append(_rest(spots[_AT_MOST:], root))
    else:
        rows = [(place_of(spot.problem, root), spot.problem.what) for spot in spots[:_ROWS]]
        parts.append(layout.table(["where", "what"], rows))
        parts.append(_rest(spots[_ROWS:], root))
    badge = layout.badge(finding.level, good=False if finding.level == "error" else None)
    return layout.section(finding.title, *parts, note=finding.why, anchor=finding.kind, badge=badge)


def _picture(spot: Spot, root: Path, *, said: bool) -> pictures.Picture:
    assert spot.image is not None
    marks = [] if spot.keep is None else [pictures.Mark(box=spot.keep, kind="keep", label="what the crop leaves")]
    marks += [pictures.Mark(box=box, kind="bad", label="a head that is cut") for box in spot.bad]
    return pictures.Picture(
        source=spot.image, caption=shown(spot.image, root), note=spot.problem.what if said else "", marks=tuple(marks)
    )


def _groups(spots: Sequence[Spot], root: Path, page_dir: Path) -> Html:
    """A row a group: the picture that stays, then those like it."""
    rows = []
    for spot in spots[:_AT_MOST]:
        assert spot.image is not None
        members = [pictures.Picture(source=spot.image, caption=shown(spot.image, root), badge="stays", good=True)]
        members += [
            pictures.Picture(source=path, caption=shown(path, root), note=note) for path, note in spot.others[:11]
        ]
        grid = pictures.grid(members, page_dir=page_dir, box=128)
        more = len(spot.others) - 11
        rows.append(tag("li", grid, tag("p", f"and {more:,} more like it", class_="note") if more > 0 else ""))
    shown_rows = tag("ul", *rows[:_AT_FIRST], class_="groups")
    if len(rows) > _AT_FIRST:
        folded = layout.fold(f"The other {len(rows) - _AT_FIRST}", tag("ul", *rows[_AT_FIRST:], class_="groups"))
        shown_rows = join([shown_rows, folded])
    return join([shown_rows, _rest(spots[_AT_MOST:], root)])


def _cut_captions(spots: Sequence[Spot], root: Path, page_dir: Path) -> Html:
    """The captions themselves, what is read in ink and what isn't struck out."""
    rows = []
    for spot in spots[:_AT_MOST]:
        assert spot.image is not None
        name = layout.link(shown(spot.image, root), spot.image, page_dir=page_dir)
        text = join([spot.read, tag("del", spot.unread, title="not read")])
        thumb = pictures.grid([pictures.Picture(source=spot.image)], page_dir=page_dir, box=96)
        rows.append(tag("li", thumb, tag("div", tag("p", text, dir="auto"), tag("small", name, " · ", _tokens(spot)))))
    return join([tag("ul", *rows, class_="captions"), _rest(spots[_AT_MOST:], root)])


def _tokens(spot: Spot) -> str:
    return spot.problem.what.split(":")[0]


def _rest(spots: Sequence[Spot], root: Path) -> Html:
    if not spots:
        return Html("")
    rows = [(place_of(spot.problem, root), spot.problem.what) for spot in spots[:2000]]
    more = f" (the first {len(rows):,} of them)" if len(spots) > len(rows) else ""
    return layout.fold(f"{len(spots):,} more, by name{more}", layout.table(["where", "what"], rows))


def _glance(seen: Look) -> Html:
    """The set's sizes and caption lengths, against what the family wants."""
    sizes = [(int(one["width"] or 0), int(one["height"] or 0)) for one in seen.facts.values()]
    charts = [sizes_chart(sizes, seen.target, seen.resolution)] if sizes else []
    if seen.num_tokens and seen.target is not None:
        charts.append(tokens_chart(seen.num_tokens, seen.target))
    return layout.section("The set at a glance", layout.beside(*charts), anchor="glance") if charts else Html("")


_LOOKED = {
    "unreadable-image": "Every file opens, and is a picture",
    "truncated-image": "No picture is cut off (each was decoded to its last row)",
    "camera-name": "Every picture has a caption that isn't a camera's name",
    "bad-options": "Every option file can be understood",
    "bad-encoding": "Every text file can be read",
    "double-ending": "No option file has a name that isn't read (multiply.txt.txt)",
    "near-duplicate": "No near-duplicates",
    "tiny-image": "No picture is too small",
    "extreme-aspect": "No picture is longer than 4:1",
    "mislabelled-image": "Every ending is true",
    "clashing-names": "No two names differ in case alone",
    "sidecar-without-image": "Every caption file has its image",
}


def _fine(seen: Look) -> Html:
    """What was looked for and not found, and what wasn't looked at."""
    found = {finding.kind for finding, _ in seen.findings}
    fine = [tag("li", said) for kind, said in _LOOKED.items() if kind not in found]
    if seen.looked_for_heads and "head-cut" not in found:
        fine.append(tag("li", "No crop cuts a head"))
    if seen.num_tokens and "caption-cut" not in found:
        fine.append(tag("li", "Every caption is read to its end"))
    notes = list(seen.notes)
    if seen.target is None:
        notes.append("Sizes and captions were held against no model: say --for sd1, sd2, sdxl, klein or nano.")
    return layout.section(
        "Looked at and fine",
        tag("ul", *fine, class_="checks") if fine else "",
        tag("div", *(tag("p", note, class_="note") for note in notes)),
        anchor="fine",
    )
