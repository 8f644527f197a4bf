"""Set aside what doesn't satisfy rules over measured facts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edkit.clean.files import Unwanted, list_images, open_catalog, set_aside
from edkit.clean.rules import Rule, parse
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import Facts, Value
from edkit.measure.measure import measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An image that was set aside: the first rule it failed, and the values that failed it."""

    path: Path
    rule: str
    values: dict[str, Value]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """How one fact's values lie among the images on one side of a filter."""

    fact: str
    side: str  # "kept" or "dropped"
    num_images: int
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many images one rule would drop by itself."""

    rule: str
    num_fail: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What `filter` did."""

    num_images: int  # judged: those that could be measured
    num_kept: int
    dropped: tuple[Dropped, ...]
    tallies: tuple[Tally, ...]
    spans: tuple[Span, ...]
    broken: tuple[Problem, ...]  # not judged, left where they are
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    operation: int | None


def filter(
    root: Path | Sequence[Path],
    rules: Sequence[str | Rule],
    *,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Filtered:
    """Move every image that fails any of the rules to the trash, with the rule and the value as its reason.

    An image that can't be decoded is reported and left where it is. The state is that of the first folder.
    Raises UsageError for a rule that can't be read.
    """
    folders = [Path(root)] if isinstance(root, str | Path) else [Path(one) for one in root]
    parsed = [rule if isinstance(rule, Rule) else parse(rule) for rule in rules]
    if not parsed:
        raise UsageError("no rule was given", mend='such as --rule "sharpness >= 0.2"')
    names = tuple(dict.fromkeys(name for rule in parsed for name in rule.names))
    listing = list_images(folders)
    with open_catalog(
        folders[0], state_dir=state_dir, changes=not dry_run, command="filter", progress=progress
    ) as catalog:
        measured = measure(catalog, listing.images, names, workers=workers, progress=progress)
        judged = {path: facts for path, facts in measured.items() if not isinstance(facts, Problem)}
        failed = {path: [rule for rule in parsed if not rule.holds(facts)] for path, facts in judged.items()}
        dropped = tuple(
            Dropped(
                path=path,
                rule=broken[0].text,
                values=broken[0].values(judged[path]),
                reason=broken[0].because(judged[path]),
            )
            for path, broken in failed.items()
            if broken
        )
        applied = set_aside(
            catalog,
            listing,
            [Unwanted(path=one.path, reason=one.reason, facts=one.values) for one in dropped],
            verb="filter",
            command=" ".join(f'--rule "{rule.text}"' for rule in parsed),
            dry_run=dry_run,
            progress=progress,
        )
    kept = [facts for path, facts in judged.items() if not failed[path]]
    return Filtered(
        num_images=len(judged),
        num_kept=len(kept),
        dropped=dropped,
        tallies=tuple(
            Tally(rule=rule.text, num_fail=sum(rule in broken for broken in failed.values())) for rule in parsed
        ),
        spans=(
            *_spans(names, kept, "kept"),
            *_spans(names, [judged[one.path] for one in dropped], "dropped"),
        ),
        broken=tuple(facts for facts in measured.values() if isinstance(facts, Problem)),
        skipped=tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash)),
        operation=applied.operation,
    )


def _spans(names: Sequence[str], images: Sequence[Facts], side: str) -> list[Span]:
    spans = []
    for name in names:
        values = [value for facts in images if isinstance(value := facts[name], int | float)]
        if values:
            spans.append(
                Span(
                    fact=name,
                    side=side,
                    num_images=len(values),
                    lowest=min(values),
                    median=statistics.median(values),
                    highest=max(values),
                )
            )
    return spans
