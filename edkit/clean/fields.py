"""All that can stand in a rule: measured facts, where an image came from, what its caption says, its name.

Values are gathered only for the names that a rule uses; None stands where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edkit.clean.files import shown
from edkit.clean.ranking import Captions
from edkit.data.catalog import Catalog, LedgerRow, Unreadable
from edkit.data.errors import Problem
from edkit.data.names import host_of
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import FACTS, Value
from edkit.measure.measure import measure
from edkit.measure.models import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A name that a rule may use."""

    name: str
    text: bool  # whether its values are words
    source: Literal["fact", "model", "ledger", "caption", "file"]
    what: str


def _field(name: str, source: Literal["ledger", "caption", "file"], what: str, *, text: bool = True) -> Field:
    return Field(name=name, text=text, source=source, what=what)


_OTHERS = (
    _field("licence", "ledger", "as the table or set it came from says"),
    _field("author", "ledger", "who made it"),
    _field("url", "ledger", "where it was fetched from"),
    _field("host", "ledger", "the host of that address: images.example.org"),
    _field("source", "ledger", "the table or file that named it"),
    _field("query", "ledger", "id of the search that found it"),
    _field("caption", "caption", "all of it: main prompt and tags"),
    _field("tags", "caption", "its tags alone, joined by a comma and a space"),
    _field("num_words", "caption", "words of the caption", text=False),
    _field("num_chars", "caption", "characters of the caption", text=False),
    _field("num_tags", "caption", "tags of the caption", text=False),
    _field("name", "file", "file name with its ending"),
    _field("folder", "file", 'folder below the data root, with "/"; the root itself is "."'),
)
FIELDS: dict[str, Field] = {
    **{
        fact.name: Field(
            name=fact.name, text=fact.text, source="model" if fact.needs == "model" else "fact", what=fact.what
        )
        for fact in FACTS.values()
        if fact.rule
    },
    **{field.name: field for field in _OTHERS},
}
"""Every name by itself."""

ALIASES = {"license": "licence", "unsafe": "nsfw", "tokens": "num_tokens", "words": "num_words", "faces": "num_faces"}
"""Other words for some of them."""


def gather(
    catalog: Catalog,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    roots: Sequence[Path],
    models: Models | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> dict[Path, dict[str, Value] | Problem]:
    """The named values of every image; the Problem where it can't be decoded.

    Raises MissingExtra where a fact needs a package that is not installed.
    """

    def of(*sources: str) -> list[str]:
        return [name for name in names if FIELDS[name].source in sources]

    captions = Captions(roots, progress=progress)
    facts = of("fact", "model")
    needed = any(FACTS[name].by_caption for name in facts)
    measured = measure(
        catalog,
        paths,
        [*facts, "width"],  # which tells what is no image even where no rule is about pixels
        workers=workers,
        models=models,
        captions={path: captions.of(path).text for path in paths} if needed else None,
        progress=progress,
    )
    found: dict[Path, dict[str, Value] | Problem] = {}
    for path, one in measured.items():
        found[path] = one if isinstance(one, Problem) else {name: one[name] for name in facts}
    good = {path: values for path, values in found.items() if not isinstance(values, Problem)}
    if of("ledger"):
        for path, row in _sources(catalog, list(good)).items():
            good[path].update({name: _of_row(row, name) for name in of("ledger")})
    for path, values in good.items():
        for name in of("caption"):
            values[name] = _of_caption(captions, path, name)
        for name in of("file"):
            values[name] = path.name if name == "name" else shown(path.parent, roots[0])
    return found


def _sources(catalog: Catalog, paths: Sequence[Path]) -> dict[Path, LedgerRow | None]:
    """The ledger's row of each image's content, or of what that was made from."""
    ids = {path: id for path, id in catalog.content_ids(paths).items() if not isinstance(id, Unreadable)}
    origins = catalog.origins(ids.values())
    held = catalog.ledger_holding({*ids.values(), *origins.values()})
    rows: dict[Path, LedgerRow | None] = {}
    for path in paths:
        own = held.get(ids.get(path, "")) or held.get(origins.get(ids.get(path, ""), ""))
        rows[path] = own[-1] if own else None
    return rows


def _of_row(row: LedgerRow | None, name: str) -> Value:
    if row is None:
        return None
    if name == "host":
        return host_of(row.url or "") or None
    value = getattr(row, name)
    return None if value is None else str(value)


def _of_caption(captions: Captions, path: Path, name: str) -> Value:
    """None where there is no caption but a camera's name; an empty sidecar says an empty one."""
    said = captions.of(path)
    if not said.real and not said.blank:
        return None
    if name == "caption":
        return said.text
    if name == "tags":
        return ", ".join(tag.text for tag in said.tags)
    return {"num_words": len(said.text.split()), "num_chars": len(said.text), "num_tags": len(said.tags)}[name]
