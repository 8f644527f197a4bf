"""`caption move`: captions between file names and sidecars, word for word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.caption.folder import Wanted, nfc, plan_folder, sidecar_changes, split
from edkit.caption.rename import options_alone
from edkit.caption.sources import (
    FolderOfImages,
    Left,
    Pictured,
    chosen_folder,
    folder_at,
    folders_of,
    whole,
)
from edkit.data.errors import BadInput, Problem
from edkit.data.names import can_name, caption_of_stem, is_camera_name
from edkit.data.options import sidecar_name
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Caption

if TYPE_CHECKING:
    from edkit.data.journal import Change

To = Literal["filename", "sidecar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What `caption_move` did, or on a dry run would do."""

    root: Path
    to: To
    num_images: int
    num_moved: int
    num_there: int  # stand where they are wanted already
    num_missing: int  # images that nothing gives a caption
    stayed: dict[str, int]  # why captions stayed where they were -> images
    left: tuple[Left, ...]  # the same by image
    steps: tuple[tuple[str, str], ...]  # image, its caption; below the root
    operation: int | None
    dry_run: bool


def caption_move(
    root: Path | str,
    *,
    to: To,
    folder: str | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Moved:
    """Move captions into file names or into sidecars, as one operation that `undo` takes back.

    Every caption is afterwards exactly what it was, tags and shared files included. `to` filename: images
    become `caption_(n)`, the sidecar that said it goes to the trash, a YAML keeps its options; what no file
    name can hold stays, with its reason. `to` sidecar: a .txt beside each image whose name is its caption.
    """
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.journal import apply

    root = folder_at(root)
    below = chosen_folder(root, folder)
    with Catalog.open(root, state_dir=state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        dataset = read(root, sizes=False, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        if not len(dataset):
            raise BadInput("no images in it", where=str(root))
        changes: list[Change] = []
        steps: list[tuple[str, str]] = []
        left: list[Left] = []
        num_there = num_missing = num_images = 0
        with progress.task("planning", total=len(dataset)) as advance:
            for one in folders_of(dataset):
                if below is not None and below not in (one.path, *one.path.parents):
                    continue
                num_images += len(one.images)
                moving: list[tuple[Pictured, str]] = []
                for image in one.images:
                    if image.missing:
                        num_missing += 1
                        continue
                    if image.problem is not None:
                        left.append(Left(path=image.path, reason=_unclear(image.problem)))
                        continue
                    found = _to_name(image) if to == "filename" else _to_sidecar(image)
                    if isinstance(found, Left):
                        left.append(found)
                    elif found is None:
                        num_there += 1
                    else:
                        moving.append((image, found))
                        steps.append((image.path.relative_to(root).as_posix(), found))
                changes += _name_all(one, moving) if to == "filename" else _write_all(one, moving)
                advance(len(one.images))
        applied = apply(catalog, changes, verb="caption move", command=command, dry_run=dry_run, progress=progress)
    return Moved(
        root=root,
        to=to,
        num_images=num_images,
        num_moved=len(steps),
        num_there=num_there,
        num_missing=num_missing,
        stayed=dict(Counter(one.reason for one in left)),
        left=tuple(left),
        steps=tuple(steps),
        operation=applied.operation,
        dry_run=dry_run,
    )


def _unclear(problem: Problem) -> str:
    return f"{Path(problem.where).name}: {problem.what}"


def _to_name(image: Pictured) -> str | Left | None:
    """The caption that is to become an image's name; None where it is so already, or why it can't."""
    lead = image.lead
    if image.named is not None:
        return None
    if lead is None:
        return Left(path=image.path, reason=f"{image.shared[0].path.name} gives it, for many images")
    if any(source.words.prompt is not None for source in image.shared):
        strong = next(source for source in image.shared if source.words.prompt is not None)
        return Left(path=image.path, reason=f"{strong.path.name} is stronger than a file name")
    if sum(source.words.prompt is not None for source in image.sidecars) > 1 or lead.words.more:
        return Left(path=image.path, reason="more than one caption stands in its sidecars")
    # a tag said twice counts once, and a name would say it twice
    text = ", ".join((lead.words.prompt or "", *dict.fromkeys(tag.text for tag in lead.words.tags)))
    if not text:
        return Left(path=image.path, reason="an empty caption, which no name can be")
    if not can_name(text):
        dot = text.endswith(".") and can_name(text.rstrip("."))
        return Left(path=image.path, reason="it ends in a full stop" if dot else "no file name can hold it")
    others = [source.words for source in image.sidecars if source is not lead]
    if not _alike(image.caption, image.with_words(text, others), image):
        return Left(path=image.path, reason="a file name would split its tags otherwise, or lose their weights")
    return text


def _alike(before: Caption, after: Caption, image: Pictured) -> bool:
    """Whether training sees the same of two captions, shuffled and limited too."""
    if before.verbatim and after.verbatim:
        return before.text == after.text
    return whole(before) == whole(after) and before.split(image.style) == after.split(image.style)


def _name_all(one: FolderOfImages, moving: list[tuple[Pictured, str]]) -> list[Change]:
    from edkit.data.journal import Move

    wanted: list[Wanted] = []
    changes: dict[Path, Change] = {}  # of sidecars whose images have the right name; shared ones once
    for image, caption in moving:
        lead = image.lead
        assert lead is not None
        kept = options_alone(lead) if lead.is_yaml else None
        want = Wanted(
            name=image.path.name,
            caption=caption,
            aside=frozenset() if kept is not None else frozenset({lead.path.name}),
            rewritten={} if kept is None else {lead.path.name: kept},
        )
        stem = split(image.path.name)[0]
        if caption_of_stem(stem) == caption and not is_camera_name(stem):
            beside = one.companions.get(nfc(stem), ())
            for change in sidecar_changes(one.path, beside, stem, stem, want, first=True):
                assert not isinstance(change, Move)
                changes[change.path] = change
        else:
            wanted.append(want)
    names = {image.name for image in wanted}
    others = [image.path.name for image in one.images if image.path.name not in names]
    return [*changes.values(), *(plan_folder(one.path, one.entries, wanted, others) if wanted else [])]


def _to_sidecar(image: Pictured) -> str | Left | None:
    return image.named  # None: a sidecar or a shared file gives it already


def _write_all(one: FolderOfImages, moving: list[tuple[Pictured, str]]) -> list[Change]:
    from edkit.data.journal import Write

    texts = {one.path / sidecar_name(image.path.stem): caption for image, caption in moving}
    return [Write(path, caption.encode("utf-8"), "the caption of its file name") for path, caption in texts.items()]
