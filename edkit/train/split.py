"""Which images train and which are held out: near-duplicates stand on one side, and a resumed run keeps its split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset
from edkit.data.errors import BadInput, Problem
from edkit.data.progress import SILENT, Progress
from edkit.data.random import unit
from edkit.measure.facts import Facts
from edkit.measure.hashes import ORIENTATIONS, as_integers, same_colours
from edkit.measure.measure import measure
from edkit.measure.search import copies_within

_RADIUS = 10  # bits: finds copies that were cropped a little, resized and compressed again
_FACTS = ("phash", "phash_mirror", "thumb")


def drawn_out(
    folders: Sequence[int], groups: Sequence[int], names: Sequence[str], *, share: float, seed: int
) -> list[int]:
    """The samples to hold out: of each folder as near `share` of its images as whole `groups` allow.

    `folders` and `groups`: each sample's; a group goes as one, and with the folder of its first sample. `names`: what
    a sample is drawn by (its content), so that one more image moves few others. At least one group is held out, and
    one always trains; empty where there is only one.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    if len(members) < 2:
        return []
    by_folder: dict[int, list[list[int]]] = defaultdict(list)
    for rows in members.values():
        by_folder[folders[rows[0]]].append(rows)
    luck = {rows[0]: unit(seed, "held out", min(names[i] for i in rows)) for rows in members.values()}
    held: list[int] = []
    seen = 0
    for folder in sorted(by_folder):
        drawn = sorted(by_folder[folder], key=lambda rows: luck[rows[0]])
        seen += sum(map(len, drawn))
        room = min(round(share * seen), len(groups) - 1)
        for rows in drawn:
            if len(held) + len(rows) <= room:
                held += rows
    if not held:
        held = min(members.values(), key=lambda rows: (len(rows), luck[rows[0]]))
    return sorted(held)


def near_duplicates(facts: Sequence[Facts | None]) -> list[int]:
    """A number for each picture, equal for those that show the same (perhaps mirrored), however many steps apart.

    `facts` hold phash, phash_mirror and thumb; a picture without them (None) is like no other.
    """
    leader = list(range(len(facts)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    def join(i: int, j: int, orientation: str) -> bool:
        one, other = (thumb for k in (i, j) if isinstance(thumb := (facts[k] or {})["thumb"], bytes))
        alike = same_colours(one, other, orientation=orientation)
        if alike:
            leader[max(find(i), find(j))] = min(find(i), find(j))
        return alike

    known = [i for i, one in enumerate(facts) if one is not None]
    if not known:
        return leader
    hashes = np.stack([as_integers([str((facts[i] or {})[name]) for i in known]) for name in _FACTS[:2]], axis=1)
    values, inverse = np.unique(hashes, axis=0, return_inverse=True)
    kinds: list[list[int]] = [[] for _ in values]  # of each hash, a picture of each colouring
    for i, value in zip(known, inverse.reshape(-1).tolist(), strict=True):
        if not any(join(other, i, "same") for other in kinds[value]):
            kinds[value].append(i)
    pairs = copies_within(values, _RADIUS, (0, 1))
    for left, right, kind in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.orientation.tolist(), strict=True):
        for i, j in product(kinds[left], kinds[right]):
            join(i, j, ORIENTATIONS[kind])
    return [find(i) for i in range(len(facts))]


def hold_out(
    dataset: Dataset,
    ids: Mapping[Path, str],
    catalog: Catalog,
    *,
    share: float,
    seed: int,
    recorded: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> list[int]:
    """The samples of a data root that a run holds out, looking at every picture once for its near-duplicates.

    `ids`: each file's content. `recorded`: the contents that a run to be resumed held out; they stay out, whatever was
    added since, and so does nothing else.
    """
    if recorded is not None:
        if share and not recorded:
            progress.say("validate_share: this run began without it and has trained on all images: none is held out")
        return [i for i, path in enumerate(dataset.paths) if ids[path] in recorded]
    if not share:
        return []
    paths = dataset.paths
    measured = measure(catalog, paths, _FACTS, progress=progress)
    facts = [None if isinstance(one := measured[path], Problem) else one for path in paths]
    names, folders = [ids[path] for path in paths], dataset.folder_ids.tolist()
    held = drawn_out(folders, near_duplicates(facts), names, share=share, seed=seed)
    if not held:
        raise BadInput(
            "all images show the same, or there is only one: none can be held out",
            where=str(dataset.root),
            mend="validate_share = 0, or name a folder: validate_root",
        )
    return held


def fixed_part(names: Sequence[str], *, share: float, seed: int) -> list[int]:
    """The places of `share` of the names (at least one), drawn by each name alone."""
    drawn = sorted(range(len(names)), key=lambda i: unit(seed, "fixed part", names[i]))
    return sorted(drawn[: max(1, round(share * len(names)))])
