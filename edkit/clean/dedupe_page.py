"""The page that shows what `dedupe` found: each group with its pictures, and why each one was kept or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edkit.page.html import Html
from edkit.page.layout import Figure, group, key_figures, prose, render, section
from edkit.page.pictures import Pair, Picture, grid, pairs

if TYPE_CHECKING:
    from edkit.clean.groups import Group, MirrorPair, TurnedPair
    from edkit.clean.merge import Merged
    from edkit.clean.ranking import Ranking

_MOST_GROUPS = 300  # a page with more pictures opens slowly


def page_of(
    groups: Sequence[Group],
    mirrored: Sequence[MirrorPair],
    turned: Sequence[TurnedPair],
    ranking: Ranking,
    merged: Sequence[Merged],
    path: Path,
    *,
    dry_run: bool,
) -> Html:
    """The page, to be written to `path`; made before anything moves, as it holds the pictures."""
    folder = path.absolute().parent
    members = [member for one in groups for member in one.members]
    dropped = sum(not member.protected for member in members)
    did = "would be set aside" if dry_run else "set aside"
    figures = key_figures(
        [
            Figure(value=f"{len(ranking.facts):,}", label="images compared"),
            Figure(value=f"{len(groups):,}", label="groups of duplicates"),
            Figure(value=f"{dropped:,}", label=f"images {did}"),
            *_some(len(members) - dropped, "duplicates stay", "protected"),
            *_some(len(mirrored) + len(turned), "mirrored or turned pairs", "both stay"),
        ]
    )
    parts = [figures]
    changed = {one.path: one for one in merged}
    drawn = groups[:_MOST_GROUPS]
    couples = [_pair(one, ranking, changed.get(one.kept), did, dry_run=dry_run) for one in drawn if _is_pair(one)]
    shown = [
        _group(one, ranking, changed.get(one.kept), folder, did, dry_run=dry_run) for one in drawn if not _is_pair(one)
    ]
    note = "" if len(groups) <= _MOST_GROUPS else f"The first {_MOST_GROUPS} of {len(groups):,}; --json lists all."
    if couples:
        side_by_side = pairs(couples, page_dir=folder, before="kept", after=did, at_first=120)
        parts.append(section("Pairs", side_by_side, note=note))
    if shown or not couples:
        parts.append(section("Groups", *(shown or [prose("No two images show the same.")]), note=note))
    if mirrored:
        rows = [
            Pair(
                before=_picture(pair.mirror_of, ranking),
                after=_picture(pair.path, ranking),
                label=f"distance {pair.distance:.0f} to the mirror image",
            )
            for pair in mirrored[:_MOST_GROUPS]
        ]
        why = "To a model that trains without flips these are two pictures; both stay. --mirrored sets one aside."
        parts.append(
            section("Mirrored", pairs(rows, page_dir=folder, before="one", after="mirrored", at_first=24), note=why)
        )
    if turned:
        rows = [
            Pair(
                before=_picture(pair.turned_from, ranking),
                after=_picture(pair.path, ranking),
                label=f"turned by {pair.degrees:.0f}°",
            )
            for pair in turned[:_MOST_GROUPS]
        ]
        why = "Both stay; set one aside yourself if they are the same picture to you."
        parts.append(
            section("Turned", pairs(rows, page_dir=folder, before="one", after="turned", at_first=24), note=why)
        )
    return render("Duplicates", *parts, lead="Which images show the same, which one was kept, and why.")


def _some(count: int, label: str, note: str) -> list[Figure]:
    return [Figure(value=f"{count:,}", label=label, note=note)] if count else []


def _is_pair(one: Group) -> bool:
    return len(one.members) == 1 and not one.members[0].protected


def _pair(one: Group, ranking: Ranking, merged: Merged | None, did: str, *, dry_run: bool) -> Pair:
    (member,) = one.members
    caption = f"; caption now: {merged.after}" if merged else ""
    return Pair(
        before=_picture(one.kept, ranking),
        after=_picture(member.path, ranking, linked=dry_run),
        label=member.reason + caption,
    )


def _group(one: Group, ranking: Ranking, merged: Merged | None, folder: Path, did: str, *, dry_run: bool) -> Html:
    caption = f"caption now: {merged.after}" if merged else ""
    pictures = [_picture(one.kept, ranking, badge="kept", good=True, more=caption)]
    for member in one.members:
        stays = member.protected
        pictures.append(
            _picture(
                member.path,
                ranking,
                badge="stays: protected" if stays else did,
                good=None if stays else False,
                more=member.reason,
                linked=dry_run or stays,
            )
        )
    return group(one.kept.name, grid(pictures, page_dir=folder, at_first=12))


def _picture(
    path: Path, ranking: Ranking, *, badge: str = "", good: bool | None = None, more: str = "", linked: bool = True
) -> Picture:
    size = int(ranking.facts[path]["num_bytes"] or 0)
    note = f"{ranking.area(path)}, {size / 1000:,.0f} kB"
    return Picture(
        source=path,
        caption=path.name,
        note=f"{note}; {more}" if more else note,
        badge=badge,
        good=good,
        linked=linked,
    )
