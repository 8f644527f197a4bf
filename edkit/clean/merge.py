"""What the captions of set-aside duplicates say more than the kept image's goes into its sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.clean.files import Listing
from edkit.clean.ranking import Captions, Said, sidecar_of
from edkit.data.journal import Write
from edkit.data.options import read_text
from edkit.data.sample import Tag
from edkit.data.walk import nfc


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
    into a new `.txt`, or a new `.yaml` where the words hold commas of their own or weights.
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
    if content is None:
        return None
    reason = f"captions of {names} merged into that of {kept.name}"
    return (
        Merged(path=kept, before=own.text if own.real else "", after=after.text, sidecar=target),
        Write(target, content, reason, facts={"caption": after.text}),
    )


def _written(kept: Path, sidecar: Path | None, after: Said, more: Sequence[Tag]) -> tuple[Path, bytes | None]:
    """The sidecar to write and its bytes; no bytes where the sidecar can't be rewritten safely."""
    if sidecar is None:
        odd = any(", " in tag.text or tag.weight != 1.0 for tag in after.tags) or (
            bool(after.tags) and ", " in after.main
        )
        if not odd:
            return kept.with_suffix(".txt"), (after.text + "\n").encode("utf-8")
        said = {"main_prompt": after.main, "tags": [_yaml_tag(tag) for tag in after.tags]}
        return kept.with_suffix(".yaml"), _dumped(said)
    if sidecar.suffix.lower() in (".yaml", ".yml"):
        return sidecar, _with_tags(sidecar, more)
    text = read_text(sidecar).rstrip().rstrip(",")
    return sidecar, (", ".join([text, *(tag.text for tag in more)]) + "\n").encode("utf-8")


def _with_tags(sidecar: Path, more: Sequence[Tag]) -> bytes | None:
    import yaml

    try:
        said = yaml.safe_load(read_text(sidecar)) or {}
    except yaml.YAMLError:
        return None
    if not isinstance(said, dict):
        return None
    tags = said.get("tags") or []
    if isinstance(tags, str):
        tags = [tag.strip(" ,") for tag in tags.split(", ")]
    if not isinstance(tags, list):
        return None
    said["tags"] = [*tags, *(_yaml_tag(tag) for tag in more)]
    return _dumped(said)


def _yaml_tag(tag: Tag) -> object:
    return tag.text if tag.weight == 1.0 else {"tag": tag.text, "weight": tag.weight}


def _dumped(said: dict[str, Any]) -> bytes:
    import yaml

    text: str = yaml.safe_dump(said, allow_unicode=True, sort_keys=False, width=1 << 20)
    return text.encode("utf-8")
