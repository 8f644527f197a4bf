"""Find duplicates, keep the best of each group, set the rest aside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edkit.clean.files import Listing, Unwanted, list_images, open_catalog, set_aside, shown
from edkit.clean.groups import Group as Group
from edkit.clean.groups import Member, MirrorPair, TurnedPair
from edkit.clean.likeness import ByEmbedding, ByHash, ByPixels, Exact, Likeness
from edkit.clean.merge import Merged, merge
from edkit.clean.ranking import PREFERENCES, Captions, Ranking
from edkit.data.catalog import Catalog
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash, Write
from edkit.data.progress import SILENT, Progress
from edkit.data.yaml_text import CantEdit
from edkit.measure.facts import Facts
from edkit.measure.measure import measure

METHODS = ("exact", "pixels", "phash", "embedding")
MOST_TURNED = 50_000  # images among which turned copies are looked for unless asked: the time grows with their square


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduped:
    """What `dedupe` did."""

    num_images: int  # compared: those that could be measured
    groups: tuple[Group, ...]
    mirrored: tuple[MirrorPair, ...]  # reported, not removed
    turned: tuple[TurnedPair, ...]  # reported, never removed
    merged: tuple[Merged, ...]
    num_trashed: int
    num_bytes: int  # of the images set aside
    broken: tuple[Problem, ...]  # not compared, left where they are
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    operation: int | None
    page: Path | None = None


def dedupe(
    folders: Path | Sequence[Path],
    *,
    method: str = "phash",
    radius: int = 8,
    threshold: float = 0.95,
    prefer: str = "largest",
    protect: Sequence[Path] = (),
    mirrored: bool = False,
    turned: bool | None = None,
    merge_captions: bool = False,
    clip: str | None = None,
    pretrained: str | None = None,
    report: Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Deduped:
    """Group images that show the same, keep the best of each group, move the others to the trash.

    `method`: "exact" (same bytes), "pixels" (same pixels, however stored), "phash" (hashes within `radius`
    bits, and alike in colour) or "embedding" (cosine of at least `threshold`; needs `clip`). `prefer` says which is
    best: the largest (then the least compressed, the sharpest, the one with the better caption, the oldest), the
    sharpest or the oldest. Mirror images are reported, and only with `mirrored` set aside. Turned ones
    are reported (`turned` None: among at most 50,000 images). Images under a `protect` folder always stay.
    `merge_captions` adds to the kept image's sidecar what the others' captions say besides. `report` is a page
    that shows the groups. The state is that of the first folder.
    """
    roots = [Path(folders)] if isinstance(folders, str | Path) else [Path(one) for one in folders]
    _validate(roots, method, radius, threshold, prefer, clip)
    for folder in protect:
        if not folder.is_dir():
            raise UsageError("no such folder to protect", where=str(folder))
    listing = list_images(roots)
    with open_catalog(
        roots[0], state_dir=state_dir, changes=not dry_run, command="dedupe", progress=progress
    ) as catalog:
        measured = measure(catalog, listing.images, FACTS_NEEDED, workers=workers, progress=progress)
        facts = {path: one for path, one in measured.items() if not isinstance(one, Problem)}
        ids = catalog.content_ids(facts)
        captions = Captions(roots, progress=progress)
        ranking = Ranking(facts, prefer, listing.under(protect), captions)
        contents = _contents(ranking, ids)
        firsts = [paths[0] for paths in contents]
        alike: Likeness = Exact() if method == "exact" else ByHash([facts[path] for path in firsts], radius)
        if method == "pixels":
            exact = measure(catalog, firsts, ["pixel_hash"], workers=workers, progress=progress)
            alike = ByPixels(
                [None if isinstance(one := exact[path], Problem) else str(one["pixel_hash"]) for path in firsts]
            )
        elif method == "embedding":
            from edkit.measure.embed import Encoder, resolve

            assert clip is not None
            encoder = Encoder(resolve(clip, pretrained, progress=progress), progress=progress)
            vectors = encoder.embeddings(catalog, firsts, progress=progress)
            known = [facts[path] for path in firsts]
            alike = ByEmbedding(vectors, firsts, known, threshold=threshold, radius=radius)
        merging = _Telling(ranking, listing, roots[0], merges=merge_captions)
        groups, pairs = _group(contents, alike, mirrored, merging)
        turned_pairs: list[TurnedPair] = []
        if turned or (turned is None and method in ("phash", "embedding")):
            if turned is None and len(contents) > MOST_TURNED:
                progress.say(f"turned copies are not looked for among more than {MOST_TURNED:,} images (--turned does)")
            else:
                stay = _staying(contents, groups)
                turned_pairs = _turned(catalog, stay, facts, ids, workers=workers, progress=progress)
        trashed = [(group, member) for group in groups for member in group.members if not member.protected]
        merged = _merged(groups, captions, listing, ranking.protected, progress) if merge_captions else []
        page = None
        if report is not None:  # while the pictures stand where they are
            from edkit.clean.dedupe_page import page_of

            page = page_of(groups, pairs, turned_pairs, ranking, [one for one, _ in merged], report, dry_run=dry_run)
        applied = set_aside(
            catalog,
            listing,
            [
                Unwanted(path=member.path, reason=member.reason, facts=_measured(member, group, ranking, roots[0]))
                for group, member in trashed
            ],
            more=[write for _, write in merged],
            verb="dedupe",
            command=_command(method, radius, threshold, prefer, mirrored, merge_captions),
            dry_run=dry_run,
            progress=progress,
        )
    if page is not None and report is not None:
        from edkit.page.layout import write

        write(report, page)
    skipped = tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash))
    unwritten = {change.path for change, _ in applied.skipped if isinstance(change, Write)}
    left = {path for path, _ in skipped}
    gone = [member.path for _, member in trashed if member.path not in left]
    return Deduped(
        num_images=len(facts),
        groups=tuple(groups),
        mirrored=tuple(pairs),
        turned=tuple(turned_pairs),
        merged=tuple(one for one, _ in merged if one.sidecar not in unwritten),
        num_trashed=len(gone),
        num_bytes=sum(int(facts[path]["num_bytes"] or 0) for path in gone),
        broken=tuple(one for one in measured.values() if isinstance(one, Problem)),
        skipped=skipped,
        operation=applied.operation,
        page=report,
    )


FACTS_NEEDED = ("width", "height", "num_bytes", "sharpness", "phash", "phash_mirror", "thumb")


def _validate(roots: Sequence[Path], method: str, radius: int, threshold: float, prefer: str, clip: str | None) -> None:
    if not roots:
        raise UsageError("no folder was given")
    if method not in METHODS:
        raise UsageError(f"no method is called {method!r}", mend=f"one of {', '.join(METHODS)}")
    if prefer not in PREFERENCES:
        raise UsageError(f"--prefer {prefer} says nothing", mend=f"one of {', '.join(PREFERENCES)}")
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31", mend="8 finds copies, above 12 strangers meet")
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is not above 0 and at most 1")
    if method == "embedding" and clip is None:
        raise UsageError("--method embedding needs a model", mend="--clip ViT-L-14-quickgelu --pretrained openai")


def _command(method: str, radius: int, threshold: float, prefer: str, mirrored: bool, merge_captions: bool) -> str:
    closeness = {"phash": f" --radius {radius}", "embedding": f" --threshold {threshold:g}"}.get(method, "")
    switches = " --mirrored" * mirrored + " --merge-captions" * merge_captions
    return f"dedupe --method {method}{closeness} --prefer {prefer}{switches}"


def near_duplicates(
    listing: Listing, facts: Mapping[Path, Facts], ids: Mapping[Path, str], *, radius: int, root: Path
) -> list[Group]:
    """The groups that `dedupe` would find by pHash; `facts` as `FACTS_NEEDED` names them."""
    ranking = Ranking(facts, "largest", frozenset(), Captions([root] if root.is_dir() else []))
    contents = _contents(ranking, ids)
    alike = ByHash([facts[paths[0]] for paths in contents], radius)
    return _group(contents, alike, False, _Telling(ranking, listing, root, merges=False))[0]


def _contents(ranking: Ranking, ids: Mapping[Path, str]) -> list[list[Path]]:
    """The files of each content, best first, and the contents by their best file."""
    contents: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(ranking.facts, key=ranking.key):
        contents[ids[path]].append(path)
    return list(contents.values())


def _measured(member: Member, group: Group, ranking: Ranking, root: Path) -> dict[str, object]:
    """What a decision rests on."""
    return {
        "distance": round(member.distance, 4),
        "kept": shown(group.kept, root),
        "size": ranking.area(member.path),
        "kept_size": ranking.area(group.kept),
    }


# ---- turned copies


def _staying(contents: Sequence[Sequence[Path]], groups: Iterable[Group]) -> list[Path]:
    """One file of each content that is kept."""
    going = {member.path for group in groups for member in group.members}
    return [paths[0] for paths in contents if paths[0] not in going]


def _turned(
    catalog: Catalog,
    paths: Sequence[Path],
    facts: Mapping[Path, Facts],
    ids: Mapping[Path, str],
    *,
    workers: int | None,
    progress: Progress,
) -> list[TurnedPair]:
    from edkit.clean.fingerprints import littles, turned_pairs

    aspects = {ids[path]: float(facts[path]["width"] or 1) / float(facts[path]["height"] or 1) for path in paths}
    found = littles(catalog, {ids[path]: path for path in paths}, aspects, workers=workers, progress=progress)
    known = [path for path in paths if ids[path] in found]
    return [
        TurnedPair(path=known[right], turned_from=known[left], degrees=degrees, correlation=correlation)
        for left, right, degrees, correlation in turned_pairs([found[ids[path]] for path in known])
    ]


# ---- captions


def _merged(
    groups: Sequence[Group], captions: Captions, listing: Listing, protected: frozenset[Path], progress: Progress
) -> list[tuple[Merged, Write]]:
    """The kept images' new captions; nothing is written where all is protected, mirrored copies say nothing."""
    found = []
    for group in groups:
        dropped = [one.path for one in group.members if not (one.protected or one.mirrored)]
        try:
            one = None if group.kept in protected else merge(group.kept, dropped, captions, listing)
        except CantEdit as error:
            progress.say(f"{group.kept.name}: no caption was merged into its sidecar, as {error}; edit it by hand")
            continue
        if one is not None:
            found.append(one)
    return found


# ---- groups


def _group(
    contents: Sequence[Sequence[Path]], alike: Likeness, mirrored: bool, tell: _Telling
) -> tuple[list[Group], list[MirrorPair]]:
    """Go from the best content down: each one not yet taken is kept, and takes what is near *it*."""
    taken = bytearray(len(contents))
    groups: list[Group] = []
    keepers: list[int] = []
    for one, paths in enumerate(contents):
        if taken[one]:
            continue
        taken[one] = 1
        keepers.append(one)
        kept = paths[0]
        found = [(one, 0.0, False)]
        near = sorted(alike.near(one), key=lambda pair: (pair[1], pair[0]))
        found += [(other, distance, False) for other, distance in near]
        if mirrored:
            flipped = sorted(alike.near_mirror(one), key=lambda pair: (pair[1], pair[0]))
            found += [(other, distance, True) for other, distance in flipped]
        members: list[Member] = []
        for other, distance, flip in found:
            if other != one:
                if taken[other]:
                    continue
                taken[other] = 1
            members += [
                tell.member(path, kept, distance, other == one, flip) for path in contents[other] if path != kept
            ]
        if members:
            groups.append(Group(kept=kept, members=tuple(members)))
    pairs: list[MirrorPair] = []
    if not mirrored:
        kept_ones = set(keepers)
        for one in keepers:
            pairs += [
                MirrorPair(path=contents[other][0], mirror_of=contents[one][0], distance=distance)
                for other, distance in sorted(alike.near_mirror(one))
                if other > one and other in kept_ones
            ]
    return groups, pairs


@dataclass(frozen=True, slots=True, kw_only=False)
class _Telling:
    """Makes the members of groups, each with its reason."""

    ranking: Ranking
    listing: Listing
    root: Path
    merges: bool

    def member(self, path: Path, kept: Path, distance: float, same_bytes: bool, flip: bool) -> Member:
        near = f"{distance:.0f}" if distance == int(distance) else f"{distance:.3f}"
        name = shown(kept, self.root)
        what = (
            f"the same bytes as {name}"
            if same_bytes
            else f"{'mirrored ' if flip else ''}near-duplicate of {name}, distance {near}"
        )
        sidecars = self.listing.sidecars
        return Member(
            path=path,
            distance=distance,
            same_bytes=same_bytes,
            mirrored=flip,
            reason=f"{what}, {self.ranking.why(kept, path)}",
            protected=path in self.ranking.protected,
            caption_lost=path in sidecars and kept not in sidecars and not self.merges,
        )
