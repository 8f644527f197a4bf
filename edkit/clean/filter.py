"""Set aside what doesn't satisfy rules over measured facts, sources and captions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.clean.fields import FIELDS, gather
from edkit.clean.files import Unwanted, list_images, open_catalog, set_aside, shown
from edkit.clean.rules import Rule, field_named, parse, value_text
from edkit.data.errors import Problem, UsageError
from edkit.data.journal import Trash
from edkit.data.progress import SILENT, Progress
from edkit.data.random import draw_seed, unit
from edkit.measure.facts import Facts, Value

if TYPE_CHECKING:
    from edkit.measure.models import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An image that was set aside: the first rule it failed, and the values that failed it."""

    path: Path
    rule: str
    values: dict[str, Value]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """An image of which a rule can't say, as values it hangs on are not known."""

    path: Path
    rule: str
    missing: tuple[str, ...]


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
    num_undecided: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What `filter` did."""

    num_images: int  # judged: those that could be measured
    num_kept: int
    dropped: tuple[Dropped, ...]
    undecided: tuple[Undecided, ...]  # dropped too where `missing` is "drop"
    tallies: tuple[Tally, ...]
    spans: tuple[Span, ...]
    broken: tuple[Problem, ...]  # not judged, left where they are
    skipped: tuple[tuple[Path, str], ...]  # to be set aside, but could not be
    seed: int  # of the draw by `limit`
    operation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """A rule and which outcome keeps an image."""

    rule: Rule
    keeps: bool

    @property
    def said(self) -> str:
        return self.rule.text if self.keeps else f"drop {self.rule.text}"


def filter(
    root: Path | Sequence[Path],
    rules: Sequence[str | Rule] = (),
    *,
    drop: Sequence[str | Rule] = (),
    top: int | float | None = None,
    by: str | None = None,
    lowest: bool = False,
    limit: int | None = None,
    seed: int = 555,
    missing: Literal["keep", "drop"] = "keep",
    models: Models | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Filtered:
    """Move images to the trash that fail any of the rules or satisfy any of `drop`, with the value as the reason.

    Of what is left, `top` keeps that many (an int) or that share (a float up to 1) with the highest (`lowest`: the
    lowest) value of `by`; `limit` keeps at most that many: the best by `by`, or without it a fair draw by `seed`
    (-1: by one that is drawn). Where a value is not known that the outcome hangs on, the image is reported as
    undecided and stays, unless `missing` is "drop". An image that can't be decoded is reported and left where it
    is. The state is that of the first folder. Raises UsageError for a rule that can't be read, MissingExtra where
    a fact needs a package that is not installed.
    """
    seed = draw_seed() if seed == -1 else seed
    folders = [Path(root)] if isinstance(root, str | Path) else [Path(one) for one in root]
    judges = [_Judge(rule=one if isinstance(one, Rule) else parse(one), keeps=True) for one in rules]
    judges += [_Judge(rule=one if isinstance(one, Rule) else parse(one), keeps=False) for one in drop]
    _validate(judges, top, by, limit, missing)
    fact = None if by is None else field_named(by).name
    if fact is not None and FIELDS[fact].text:
        raise UsageError(f"--by {by}: its values are words", mend="a number, such as sharpness")
    names = tuple(dict.fromkeys([*(name for one in judges for name in one.rule.names), *([fact] if fact else [])]))
    listing = list_images(folders)
    with open_catalog(
        folders[0], state_dir=state_dir, changes=not dry_run, command="filter", progress=progress
    ) as catalog:
        gathered = gather(
            catalog, listing.images, names, roots=folders, models=models, workers=workers, progress=progress
        )
        judged: dict[Path, Facts] = {path: one for path, one in gathered.items() if not isinstance(one, Problem)}
        outcomes = {path: [one.rule.holds(facts) for one in judges] for path, facts in judged.items()}
        dropped = {
            path: found for path, facts in judged.items() if (found := _judged(path, facts, outcomes[path], judges))
        }
        undecided = _undecided(judged, outcomes, judges, dropped)
        if missing == "drop":
            dropped |= {one.path: _for_missing(one, judged[one.path]) for one in undecided}
        left = {path: facts for path, facts in judged.items() if path not in dropped}
        dropped |= _ranked(left, top, limit, fact, lowest, seed, folders[0], undecided)
        in_order = [dropped[path] for path in judged if path in dropped]
        applied = set_aside(
            catalog,
            listing,
            [Unwanted(path=one.path, reason=one.reason, facts=one.values) for one in in_order],
            verb="filter",
            command=_command(judges, top, by, lowest, limit, seed, missing),
            dry_run=dry_run,
            progress=progress,
        )
    kept = [facts for path, facts in judged.items() if path not in dropped]
    return Filtered(
        num_images=len(judged),
        num_kept=len(kept),
        dropped=tuple(in_order),
        undecided=tuple(undecided),
        tallies=tuple(
            Tally(
                rule=judge.said,
                num_fail=sum(found[number] is (not judge.keeps) for found in outcomes.values()),
                num_undecided=sum(found[number] is None for found in outcomes.values()),
            )
            for number, judge in enumerate(judges)
        ),
        spans=(
            *_spans(names, kept, "kept"),
            *_spans(names, [judged[one.path] for one in in_order], "dropped"),
        ),
        broken=tuple(one for one in gathered.values() if isinstance(one, Problem)),
        skipped=tuple((change.path, why) for change, why in applied.skipped if isinstance(change, Trash)),
        seed=seed,
        operation=applied.operation,
    )


def _validate(judges: Sequence[_Judge], top: float | None, by: str | None, limit: int | None, missing: str) -> None:
    if not judges and top is None and limit is None and by is None:
        raise UsageError("no rule was given", mend='such as --rule "sharpness >= 0.2"')
    if top is not None and by is None:
        raise UsageError("--top needs the fact that decides", mend="--top 1000 --by sharpness")
    if by is not None and top is None and limit is None:
        raise UsageError("--by says what decides, but not how many stay", mend="--top 1000 or --top 50%")
    if top is not None and limit is not None:
        raise UsageError("--top and --limit both say how many stay", mend="give one of them")
    if top is not None and not (top >= 1 if isinstance(top, int) else 0 < top <= 1):
        raise UsageError(f"--top {top} keeps nothing", mend="a number of images, or a share such as 50%")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} keeps nothing")
    if missing not in ("keep", "drop"):
        raise UsageError(f"--missing {missing} says nothing", mend="keep or drop")


def _judged(path: Path, facts: Facts, outcome: Sequence[bool | None], judges: Sequence[_Judge]) -> Dropped | None:
    """Why an image goes by the first rule that is against it; None where none is."""
    for judge, found in zip(judges, outcome, strict=True):
        if found is (not judge.keeps):
            return Dropped(
                path=path,
                rule=judge.rule.text,
                values=judge.rule.values(facts),
                reason=judge.rule.because(facts, dropping=not judge.keeps),
            )
    return None


def _undecided(
    judged: Mapping[Path, Facts],
    outcomes: Mapping[Path, Sequence[bool | None]],
    judges: Sequence[_Judge],
    dropped: Mapping[Path, Dropped],
) -> list[Undecided]:
    found = []
    for path, outcome in outcomes.items():
        if path not in dropped and None in outcome:
            rule = judges[list(outcome).index(None)].rule
            found.append(Undecided(path=path, rule=rule.text, missing=rule.missing(judged[path])))
    return found


def _for_missing(one: Undecided, facts: Facts) -> Dropped:
    names = " and ".join(one.missing)
    return Dropped(
        path=one.path,
        rule=one.rule,
        values={name: facts.get(name) for name in one.missing},
        reason=f"{names} {'is' if len(one.missing) == 1 else 'are'} not known; the rule is {one.rule}",
    )


def _ranked(
    left: Mapping[Path, Facts],
    top: float | None,
    limit: int | None,
    fact: str | None,
    lowest: bool,
    seed: int,
    root: Path,
    undecided: list[Undecided],
) -> dict[Path, Dropped]:
    """What goes because others come before it; images without the deciding value stay and are undecided."""
    if top is None and limit is None:
        return {}
    if fact is None:
        assert limit is not None
        order = sorted(left, key=lambda path: unit(seed, "filter", shown(path, root)))
        reason = f"not among the {limit:,} drawn (seed {seed})"
        return {path: Dropped(path=path, rule=f"limit {limit}", values={}, reason=reason) for path in order[limit:]}
    known: dict[Path, float] = {}
    for path, facts in left.items():
        value = facts.get(fact)
        if isinstance(value, int | float):
            known[path] = float(value)
        elif all(one.path != path for one in undecided):
            undecided.append(Undecided(path=path, rule=f"by {fact}", missing=(fact,)))
    most = limit if top is None else top
    assert most is not None
    count = most if isinstance(most, int) else round(most * len(known))
    # equal values by name: the same set gives the same images on every machine
    order = sorted(known, key=lambda path: (known[path] if lowest else -known[path], shown(path, root)))
    side = "lowest" if lowest else "highest"
    return {
        path: Dropped(
            path=path,
            rule=f"top {most} by {fact}",
            values={fact: left[path][fact]},
            reason=f"{fact} is {value_text(left[path][fact])}; kept are the {count:,} {side}",
        )
        for path in order[count:]
    }


def _command(
    judges: Sequence[_Judge],
    top: float | None,
    by: str | None,
    lowest: bool,
    limit: int | None,
    seed: int,
    missing: str,
) -> str:
    parts = [f'--{"rule" if judge.keeps else "drop"} "{judge.rule.text}"' for judge in judges]
    if top is not None:
        parts.append(f"--top {top if isinstance(top, int) else f'{top:.4g}'}")
    if limit is not None:
        parts.append(f"--limit {limit}" + (f" --seed {seed}" if by is None else ""))
    parts += [f"--by {by}"] if by else []
    parts += ["--lowest"] * lowest + [f"--missing {missing}"] * (missing != "keep")
    return " ".join(["filter", *parts])


def _spans(names: Sequence[str], images: Sequence[Facts], side: str) -> list[Span]:
    spans = []
    for name in names:
        values = [value for facts in images if isinstance(value := facts.get(name), int | float)]
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


def count_or_share(text: str) -> int | float:
    """`1000` as a number of images, `50%` or `0.5` as a share; UsageError for anything else."""
    bare = text.strip().replace("_", "").replace(",", "")
    try:
        if bare.endswith("%"):
            share = float(bare[:-1]) / 100
            if 0 < share <= 1:
                return share
        elif "." in bare:
            if 0 < float(bare) <= 1:
                return float(bare)
        elif int(bare) >= 1:
            return int(bare)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is neither a number of images nor a share", mend="such as 1000 or 50%")
