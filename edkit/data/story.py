"""What the journal and the ledger tell: a data root's history, and how a file came to be what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edkit.data.catalog import Catalog, Gathering, LedgerRow, Unreadable, opened
from edkit.data.errors import UsageError
from edkit.data.image import IMAGE_SUFFIXES
from edkit.data.options import SIDECAR_SUFFIXES
from edkit.data.redo import DONE, FINISHED, SKIPPED, TOLD, Row, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change as the history tells it."""

    what: str  # "rename" (or a Move's own word), "trash", "restore", "write", "delete"
    path: Path
    to: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry of the history."""

    id: int
    time: float  # seconds since 1970
    verb: str
    command: str
    who: str  # user@host
    pid: int
    num_done: int
    num_skipped: int
    undoes: int | None  # the operation that this one reverted
    undone_by: int | None
    finished: bool  # False: interrupted; the next command that writes finishes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One change edkit made to a file, and why."""

    operation: int
    time: float
    verb: str
    who: str
    step: Step
    reason: str
    facts: Mapping[str, object]
    undone: bool
    by_content: bool  # found by what the file holds, not by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """All that edkit knows of how a file came to be where and what it is."""

    path: Path
    exists: bool
    sentences: list[str]
    decisions: list[Decision]  # oldest first
    ledger: list[LedgerRow]


def history(root: Path | Catalog, *, state_dir: Path | None = None) -> list[Operation]:
    """All operations on a data root, oldest first; those undone and those that undid them too."""
    with opened(root, state_dir, write=False) as catalog, catalog.told():
        found = catalog.db.execute(
            "SELECT id, time, verb, command, who, pid, "
            f"(SELECT count(*) FROM change WHERE operation = id AND step = {DONE} AND {TOLD}), "
            f"(SELECT count(*) FROM change WHERE operation = id AND step = {SKIPPED} AND {TOLD}), "
            f"undoes, undone_by, phase >= {FINISHED} FROM operation ORDER BY id"
        ).fetchall()
    names = Operation.__slots__
    return [Operation(**{**dict(zip(names, row, strict=True)), "finished": bool(row[-1])}) for row in found]


def gatherings(root: Path | Catalog, *, state_dir: Path | None = None) -> list[Gathering]:
    """All runs that fetched or imported images into a data root, oldest first."""
    with opened(root, state_dir, write=False) as catalog:
        return catalog.gatherings()


def changes_of(root: Path | Catalog, operation: int, *, state_dir: Path | None = None) -> list[Step]:
    """What one operation of the history changed, in its order. Raises UsageError where there is none of that number."""
    with opened(root, state_dir, write=False) as catalog:
        numbers = [entry.id for entry in history(catalog)]
        if operation not in numbers:
            there = f"in the history (1 to {numbers[-1]})" if numbers else "here: edkit has changed nothing"
            raise UsageError(f"no operation {operation} {there}", mend="edkit history DIR lists all")
        return [step_of(row) for row in catalog.site().rows(f"operation = ? AND step = {DONE} AND {TOLD}", [operation])]


def why(path: Path | str, *, state_dir: Path | None = None, catalog: Catalog | None = None) -> Why:
    """How a file came to be where and what it is: by its name, a name it had before, or its content.

    A file that is there is looked up by its bytes too: a copy of a trashed picture tells why it was.
    """
    file = Path(os.path.abspath(path))  # noqa: PTH100 - lexical, as the journal names files
    with opened(catalog or file.parent, state_dir, write=False, may_be_gone=True) as known:
        site, exists = known.site(), os.path.lexists(file)
        chain = _trace(site, known, file, exists=exists)
        sha256 = None
        if exists and file.is_file():
            found = known.content_ids([file])[file]
            sha256 = None if isinstance(found, Unreadable) else found
        contents = {sha256} if sha256 else {row.sha256 for row in chain if row.sha256}
        # an image's caption files are a part of its story
        beside = [row for sidecar in _sidecars(file) for row in _trace(site, known, sidecar, exists=True)]
        ids = {(row.operation, row.seq) for row in (*chain, *beside)}
        others = [
            row
            for content in sorted(contents)
            for row in site.rows(
                f"(sha256 = ? OR before_sha256 = ?) AND step = {DONE} AND {TOLD}",
                [content, content],
                limit="LIMIT 100",
            )
            if (row.operation, row.seq) not in ids
        ]
        decisions = sorted(
            [*_decisions(known, [*chain, *beside], by_content=False), *_decisions(known, others, by_content=True)],
            key=lambda decision: (decision.time, decision.operation),
        )
        names = dict.fromkeys([file, *(Path(name) for row in chain for name in (row.src, row.dst) if name)])
        sources = set(known.origins(contents).values()) - contents  # what edkit made this picture from
        held = sorted({*contents, *sources})
        ledger = {id(row): row for content in held for row in known.ledger(sha256=content)}
        if not ledger:
            ledger = {id(row): row for name in names for row in known.ledger(path=name)}
        rows = sorted(ledger.values(), key=lambda row: row.time or 0)
        if any(row.outcome == "ok" for row in rows):  # what else was fetched of it, and not kept, is no news
            rows = [row for row in rows if row.outcome not in ("surplus", "duplicate")]
        home = known.state_dir.parent
    if sum(row.path == file and row.outcome == "ok" for row in rows) > 1:
        told = [(rows[0].time or 0.0, _shard(rows))]
    else:
        told = [(row.time or 0.0, _fetched(row, row.sha256 if row.sha256 in sources else sha256)) for row in rows]
    told += [(decision.time, _decided(decision, home)) for decision in decisions]
    sentences = [sentence for _, sentence in sorted(told, key=lambda item: item[0])]
    if not sentences:
        sentences = [
            f"edkit did not fetch, move or write {file.name}" + ("." if exists else ", and it does not exist.")
        ]
    return Why(path=file, exists=exists, sentences=sentences, decisions=decisions, ledger=rows)


def _sidecars(image: Path) -> list[Path]:
    """The caption files that stand beside an image; none of any other file."""
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        return []
    beside = (image.with_suffix(suffix) for suffix in SIDECAR_SUFFIXES)
    return [path for path in beside if path.is_file()]


def _trace(site: Site, catalog: Catalog, file: Path, *, exists: bool) -> list[Row]:
    """The journaled changes to the file that has (or last had) this name, through all its names."""
    chain: list[Row] = []
    name, before = os.fspath(file), 1 << 62
    if not exists:
        left = _latest(site, catalog, "src", name, before)
        if left is None:
            return []
        before = left.operation
        onward: Row | None = left
        while onward is not None:
            chain.append(onward)
            onward = None if onward.dst is None else _next(site, catalog, onward.dst, onward.operation)
    while True:
        came = _latest(site, catalog, "dst", name, before)
        if came is None:
            return chain
        left = _latest(site, catalog, "src", name, before)
        if left is not None and left.operation > came.operation:
            return chain  # that file went away again; this one came by a person's hand
        chain.append(came)
        before = came.operation
        if came.kind == "move":
            name = came.src or ""
        elif came.kind == "restore":
            gone = _latest(site, catalog, "src", name, before)
            if gone is None:
                return chain
            chain.append(gone)
            before = gone.operation
        elif came.before_sha256 is None:
            return chain  # edkit wrote it anew


def _latest(site: Site, catalog: Catalog, side: str, name: str, before: int) -> Row | None:
    rows = site.rows(
        f"{side} = ?1 AND step = {DONE} AND {TOLD} AND operation = (SELECT max(operation) FROM change "
        f"WHERE {side} = ?1 AND step = {DONE} AND {TOLD} AND operation < ?2)",
        [catalog.places.key(name), before],
    )
    return rows[-1] if rows else None


def _next(site: Site, catalog: Catalog, name: str, after: int) -> Row | None:
    rows = site.rows(
        f"src = ? AND step = {DONE} AND {TOLD} AND operation > ?",
        [catalog.places.key(name), after],
        limit="LIMIT 1",
    )
    return rows[0] if rows else None


def _decisions(catalog: Catalog, rows: Iterable[Row], *, by_content: bool) -> list[Decision]:
    found = []
    for row in rows:
        with catalog.told():
            time, verb, who = catalog.db.execute(
                "SELECT time, verb, who FROM operation WHERE id = ?", [row.operation]
            ).fetchone()
        found.append(
            Decision(
                operation=row.operation,
                time=time,
                verb=verb,
                who=who,
                step=step_of(row),
                reason=row.reason,
                facts=json.loads(row.facts) if row.facts else {},
                undone=row.undone,
                by_content=by_content,
            )
        )
    return found


def _decided(decision: Decision, home: Path) -> str:
    def short(path: Path) -> str:
        return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)

    step = decision.step
    subject = f"{short(step.path)}, with the same content, was" if decision.by_content else short(step.path)
    match step.what:
        case "trash":
            what = f"{subject} moved to the trash"
        case "restore":
            what = f"{subject} brought back from the trash"
        case "write":
            what = f"{subject} written"
        case "delete":
            what = "what the trash kept of it deleted for good"
        case "rename" if step.to is not None and step.to.parent != step.path.parent:
            what = f"{subject} moved to {short(step.to)}"
        case "rename" if step.to is not None:
            what = f"{subject} renamed to {step.to.name}"
        case "frame" | "compress" if step.to is not None:
            what = f"{short(step.to)} made"
        case word:
            what = f"{subject}: {word}" + (f" to {short(step.to)}" if step.to is not None else "")
    because = f": {decision.reason}" if decision.reason else ""
    facts = ", ".join(f"{name} {value}" for name, value in decision.facts.items())
    facts = f" ({facts})" if facts else ""
    undone = "; undone since" if decision.undone else ""
    head = f"{_when(decision.time)} {decision.verb} (operation {decision.operation})"
    return f"{head}: {what}{because}{facts}{undone}."


def _fetched(row: LedgerRow, sha256: str | None) -> str:
    place = row.url or row.source or "an unknown place"
    if row.url and row.source:
        place += f" ({row.source}" + (f", row {row.row})" if row.row is not None else ")")
    if row.outcome == "derived":
        source = str((row.extra or {}).get("from", ""))
        place = f"a file of content {source[:12]}"
    what = f"fetched from {place}" if row.outcome == "ok" else f"{row.outcome} from {place}"
    if row.sha256 and sha256 and row.sha256 != sha256:
        what = f"a file of this name, with other content, was {what}"
    parts = [what]
    if row.reason:
        parts.append(row.reason)
    if row.caption is not None:
        parts.append(f'caption "{row.caption}"')
    if row.licence:
        parts.append(f"licence {row.licence}")
    if row.author:
        parts.append(f"by {row.author}")
    return f"{_when(row.time or 0)} {', '.join(parts)}."


def _shard(rows: list[LedgerRow]) -> str:
    """A tar of many images, which share one place."""
    sources = dict.fromkeys(row.source for row in rows if row.source)
    named = ", ".join(list(sources)[:3]) + (f" and {len(sources) - 3} more tables" if len(sources) > 3 else "")
    return f"{_when(rows[0].time or 0)} written as a shard of {len(rows):,} images fetched for {named}."


def _when(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")


def step_of(row: Row) -> Step:
    """A journaled change as people are told of it."""
    what = row.label or row.kind
    if row.src is None:
        return Step(what=what, path=Path(row.dst or ""))
    return Step(what=what, path=Path(row.src), to=None if row.dst is None else Path(row.dst))
