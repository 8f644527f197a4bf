"""What the captions of set-aside duplicates say more than the kept image's goes into its sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edkit.clean.files import Listing
from edkit.clean.ranking import Captions, Said, sidecar_of
from edkit.data.journal import Write
from edkit.data.options import FOLDER_FILES, read_text, said_from_yaml, sidecar_name
from edkit.data.sample import Tag
from edkit.data.walk import nfc
from edkit.data.yaml_text import CantEdit, Edits, edited, scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A kept image whose caption took over words of its duplicates."""

    path: Path
    before: str
    after: str
    sidecar: Path


def merge(kept: Path, dropped: Sequence[Path], captions: Captions, listing: Listing) -> tuple[Merged, Write] | None:
    """The kept image's caption with what the dropped ones' (nearest first) say besides; None where that is nothing.

    The kept image's main prompt stays; where it has no real caption, the first dropped one that has gives its
    main prompt. Then follow its own tags, and of each dropped image its main prompt, where that is another, and
    the tags not yet there (compared without case). An empty sidecar is an intended empty caption and
    stays empty. Written into the strongest sidecar there is (YAML keeps its other keys and all weights), else
    into a new text, or a new `.yaml` where the words hold commas of their own or weights. Raises CantEdit where
    a YAML's tags can't be added to safely.
    """
    own = captions.of(kept)
    sidecar = sidecar_of(kept, listing)
    shared = listing.siblings.get((str(kept.parent), nfc(kept.stem)), 1) > 1  # its sidecar is another image's too
    if shared or (sidecar is not None and not own.real):
        return None
    main, tags = (own.main, list(own.tags)) if own.real else ("", [])
    known = {main.casefold(), *(tag.text.casefold() for tag in tags)}
    more: list[Tag] = []
    for path in dropped:
        said = captions.of(path)
        if not said.real:
            continue
        if not main:
            main = said.main
            known.add(main.casefold())
        for tag in (Tag(said.main), *said.tags):
            if tag.text and tag.text.casefold() not in known:
                known.add(tag.text.casefold())
                more.append(tag)
    if not more and main == own.main:
        return None
    names = ", ".join(path.name for path in dropped)
    after = Said(main=main, tags=(*tags, *more))
    target, content = _written(kept, sidecar, after, more)
    reason = f"captions of {names} merged into that of {kept.name}"
    return (
        Merged(path=kept, before=own.text if own.real else "", after=after.text, sidecar=target),
        Write(target, content, reason, facts={"caption": after.text}),
    )


def _written(kept: Path, sidecar: Path | None, after: Said, more: Sequence[Tag]) -> tuple[Path, bytes]:
    """The sidecar to write and its bytes."""
    if sidecar is None:
        odd = any(", " in tag.text or tag.weight != 1.0 for tag in after.tags) or (
            bool(after.tags) and ", " in after.main
        )
        target = kept.with_suffix(".yaml")
        if not odd or target.name.lower() in FOLDER_FILES:
            return kept.with_name(sidecar_name(kept.stem)), f"{after.text}\n".encode()
        start = f"main_prompt: {scalar(after.main, flow=False)}\n"
        return target, edited(start, Edits(add=after.tags)).encode()
    text = read_text(sidecar)
    if sidecar.suffix.lower() in (".yaml", ".yml"):
        return sidecar, _with_tags(text, sidecar, more).encode()
    return sidecar, f"{', '.join([text.rstrip().rstrip(','), *(tag.text for tag in more)])}\n".encode()


def _with_tags(text: str, path: Path, more: Sequence[Tag]) -> str:
    """The YAML text with more tags, all else in it as it was."""
    new = edited(text, Edits(add=more))
    before, after = said_from_yaml(text, path), said_from_yaml(new, path)
    meant = replace(before.words, tags=(*before.words.tags, *more))
    if after.words != meant or after.options != before.options or after.problems:
        raise CantEdit("it is written in a way that can't be edited safely")
    return new
