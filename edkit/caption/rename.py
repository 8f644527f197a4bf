"""`rename-captions`: every image gets the file name that is its caption."""

# text paths: Path objects cost more than the work in loops over 100,000 files
# ruff: noqa: PTH208
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.caption.folder import Companion, Wanted, companions_of, nfc, plan_folder, split
from edkit.caption.sources import YAML, Left, Source, folder_at, shared_sources, whole
from edkit.data.errors import BadInput, Problem, UsageError
from edkit.data.names import caption_of_stem, is_camera_name
from edkit.data.options import SIDECAR_SUFFIXES, Said, one_line_text, read_text, read_yaml, said_from_yaml
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import NOTHING_SAID, OPTION_NAMES, Options
from edkit.data.yaml_text import without_words

if TYPE_CHECKING:
    from edkit.data.dataset import Dataset
    from edkit.data.journal import Change

From = Literal["filename", "sidecar"]

_CASCADES = ("local.yaml", "global.yaml")
_CAPTION_ERRORS = ("bad-encoding", "bad-yaml", "missing-caption-file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change of a file: `move`, `trash` or `write`; paths relative to the data root."""

    kind: Literal["move", "trash", "write"]
    path: str
    to: str  # for a move; else ""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """What `rename_captions` did, or on a dry run would do."""

    root: Path
    num_images: int
    num_renamed: int
    num_right: int  # had the right name already
    num_followed: int  # sidecars that went with their image
    num_set_aside: int  # sidecars that said otherwise, moved to the trash
    num_options_kept: int  # YAML sidecars whose options went on without their caption
    num_written: int  # captions that stand in a .txt, as no file name can hold them
    left: tuple[Left, ...]
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    operation: int | None
    dry_run: bool


def rename_captions(
    root: Path | str,
    *,
    caption: str | None = None,
    source: From | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Renamed:
    """Rename every image of a folder tree to `caption_(n).ext`, as one operation that `undo` takes back.

    The caption is what training would see today (the sidecar's before the file name's), or `caption` for
    every image, or with `source` strictly the one of the file name or of the sidecar. Sidecars that say the
    same go with their image; those that say otherwise go to the trash, the options of a YAML sidecar stay. A
    caption that no file name can hold stands whole in a `.txt` sidecar; the name shows a safe form of it.

    Raises UsageError (no folder, an empty caption, both `caption` and `source`), BadInput where no image has
    a caption to be named by.
    """
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.journal import Move, Write, apply

    root = folder_at(root)
    if caption is not None and source is not None:
        raise UsageError("--caption and --from say two different things", mend="give one of them")
    if caption is not None:
        caption = _given(caption)

    with Catalog.open(root, state_dir=state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        dataset = read(root, sizes=False, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        if not len(dataset):
            raise BadInput("no images in it", where=str(root))
        changes: list[Change] = []
        left: list[Left] = []
        notes: list[str] = []
        num_wanted = num_renamed = 0
        aside: set[Path] = set()
        stripped: set[Path] = set()
        shared: dict[str, Source | None] = {}
        with progress.task("naming", total=len(dataset)) as advance:
            for folder, members in _folders(dataset).items():
                cascade = _cascade_main(Path(folder), root, shared)
                names = {name for _, name in members}
                entries = os.listdir(folder)
                companions = companions_of(entries, names)
                wanted: list[Wanted] = []
                others: list[str] = []
                for i, name in members:
                    found = _wanted(dataset, i, name, companions, caption, source, cascade)
                    if isinstance(found, Left):
                        left.append(found)
                        others.append(name)
                    else:
                        wanted.append(found)
                        aside.update(Path(folder, name) for name in found.aside)
                        stripped.update(Path(folder, name) for name in found.rewritten)
                if cascade is not None and any(image.write for image in wanted):
                    notes.append(
                        f"{_relative(cascade, root)} gives a main prompt, which is stronger than file names: "
                        f"it stays, and the captions in {_relative(folder, root)} stand in .txt sidecars too"
                    )
                planned = plan_folder(Path(folder), entries, wanted, others)
                num_renamed += sum(isinstance(change, Move) and change.src.name in names for change in planned)
                changes += planned
                num_wanted += len(wanted)
                advance(len(members))
        if not num_wanted:
            first = left[0]
            raise BadInput(
                f"no image has a caption to be named by: {first.reason}",
                where=_relative(first.path, root),
                mend='say what the pictures show: --caption "person"',
            )
        applied = apply(catalog, changes, verb="rename-captions", command=command, dry_run=dry_run, progress=progress)
    if applied.skipped:
        left += [Left(path=_subject(change), reason=why) for change, why in applied.skipped]
        failed = {id(change) for change, _ in applied.skipped}
        images = set(dataset.paths)
        num_renamed -= sum(isinstance(change, Move) and change.src in images for change, _ in applied.skipped)
        changes = [change for change in changes if id(change) not in failed]
    num_moved = sum(isinstance(change, Move) for change in changes)
    return Renamed(
        root=root,
        num_images=len(dataset),
        num_renamed=num_renamed,
        num_right=num_wanted - num_renamed,
        num_followed=num_moved - num_renamed,
        num_set_aside=len(aside),
        num_options_kept=len(stripped),
        num_written=sum(isinstance(change, Write) and change.path.suffix == ".txt" for change in changes),
        left=tuple(left),
        notes=tuple(notes),
        steps=tuple(_step(change, root) for change in changes),
        operation=applied.operation,
        dry_run=dry_run,
    )


def _given(caption: str) -> str:
    """A caption as it was typed, on one line; UsageError where it can't be one."""
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"not Unicode: {caption!a}", where="--caption", mend="type it in UTF-8") from error
    caption = one_line_text(caption.lstrip("\ufeff"))
    if not caption:
        raise UsageError(
            "an empty caption can't name an image", where="--caption", mend="empty .txt sidecars make empty captions"
        )
    return caption


def _folders(dataset: Dataset) -> dict[str, list[tuple[int, str]]]:
    """(row, name) of the images of each folder, the folders in sorted order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for i in range(len(dataset)):
        folder, name = os.path.split(dataset.path(i))
        found.setdefault(folder, []).append((i, name))
    return dict(sorted(found.items()))


def _wanted(
    dataset: Dataset,
    i: int,
    name: str,
    companions: Mapping[str, list[Companion]],
    caption: str | None,
    source: From | None,
    cascade: Path | None,
) -> Wanted | Left:
    """The caption that one image is to be named by, and what its sidecars say to it."""
    stem = split(name)[0]
    beside = companions.get(nfc(stem), ())
    if caption is not None:
        return _overruling(dataset.path(i), beside, caption, cascade)
    path = dataset.path(i)
    problem = dataset.error(i)
    if source != "filename" and problem is not None and problem.code in _CAPTION_ERRORS:
        return _left_for(path, problem)
    if source != "filename" and (beside or cascade is not None):
        sources = dataset.sources(i)
        own = [found for found in sources if found != path and found.name.lower() not in _CASCADES]
        if path not in sources and (own or source != "sidecar"):
            return Wanted(name=name, caption=whole(dataset.caption(i)), given=True)
    if source == "sidecar":
        return Left(path=path, reason="no sidecar gives it a caption")
    if is_camera_name(stem):
        return Left(path=path, reason="a camera or a program gave this name; it is no caption")
    caption = caption_of_stem(stem)
    if not caption:
        return Left(path=path, reason="its name says nothing before the first _")
    if source is None:
        return Wanted(name=name, caption=caption)
    return _overruling(path, beside, caption, cascade)


def _overruling(path: Path, companions: Iterable[Companion], caption: str, cascade: Path | None) -> Wanted | Left:
    """The image under a caption that its sidecars may not agree with."""
    found = overruled(path, companions, caption)
    if isinstance(found, Left):
        return found
    agrees, aside, options = found
    return Wanted(
        name=path.name,
        caption=caption,
        write=cascade is not None,
        given=agrees,
        aside=aside,
        rewritten=options,
        why="its caption",
    )


def overruled(
    path: Path, companions: Iterable[Companion], caption: str
) -> tuple[bool, frozenset[str], dict[str, bytes]] | Left:
    """What a new caption makes of an image's sidecars.

    Whether one of them says that very caption; the names of those that say otherwise and have nothing else
    to say; and the new contents of the YAML among them whose options stay.
    """
    aside: set[str] = set()
    options: dict[str, bytes] = {}
    agrees = False
    for companion in companions:
        name, suffix = companion.name, companion.tail.lower()
        sidecar = path.with_name(name)
        if suffix in YAML:
            said = read_yaml(sidecar)
            errors = [problem for problem in said.problems if problem.level == "error"]
            if errors:
                return _left_for(path, errors[0])
            words = said.words
            if said == Said():
                aside.add(name)  # an empty YAML means an empty caption
            elif words.prompt is None and not words.tags:
                continue  # it says nothing of the caption
            if words.prompt == caption and not words.tags and not words.more:
                agrees = True
            elif (kept := _options_alone(sidecar, read_text(sidecar), said.options)) is not None:
                options[name] = kept
            else:
                aside.add(name)
        elif suffix in SIDECAR_SUFFIXES:
            if _text_of(sidecar) == caption:
                agrees = True
            else:
                aside.add(name)
    return agrees, frozenset(aside), options


def _text_of(sidecar: Path) -> str | None:
    try:
        return one_line_text(read_text(sidecar))
    except BadInput:  # whatever it says, it is not the caption; it goes to the trash as it is
        return None


def _left_for(path: Path, problem: Problem) -> Left:
    return Left(path=path, reason=f"{Path(problem.where).name}: {problem.what}")


def options_alone(source: Source) -> bytes | None:
    """A YAML sidecar without its caption; None where it has no options to keep."""
    return _options_alone(source.path, source.text, source.options)


def _options_alone(path: Path, text: str, options: Options) -> bytes | None:
    if options == NOTHING_SAID:
        return None
    kept = without_words(text, path)
    if kept is not None and said_from_yaml(kept, path).options == options:
        return kept.encode("utf-8")
    return dump_options(options)


def dump_options(options: Options) -> bytes:
    """Options as a YAML sidecar says them: one `key: value` line each, numbers in their own digits."""
    import yaml

    lines = []
    for name in OPTION_NAMES:
        value = getattr(options, name)
        if isinstance(value, Decimal):
            lines.append(f"{name}: {value:f}\n")
        elif value is not None:
            lines.append(yaml.safe_dump({name: value}, allow_unicode=True, width=1000))
    return "".join(lines).encode("utf-8")


def _cascade_main(folder: Path, root: Path, known: dict[str, Source | None]) -> Path | None:
    """The strongest local.yaml or global.yaml that gives the images of a folder a main prompt."""
    shared = shared_sources(folder, root, known)
    return next((source.path for source in shared if source.words.prompt is not None), None)


def _relative(path: Path | str, root: Path) -> str:
    text, home = os.fspath(path), os.fspath(root).rstrip(os.sep) + os.sep
    text = text[len(home) :] if text.startswith(home) else Path(text).relative_to(root).as_posix()
    return text.replace(os.sep, "/") if os.sep != "/" else text


def _subject(change: Change) -> Path:
    from edkit.data.journal import Move

    return change.src if isinstance(change, Move) else change.path


def _step(change: Change, root: Path) -> Step:
    from edkit.data.journal import Move, Trash

    if isinstance(change, Move):
        return Step(
            kind="move",
            path=_relative(change.src, root),
            to=_relative(change.dst, root),
            reason=change.reason,
        )
    kind: Literal["trash", "write"] = "trash" if isinstance(change, Trash) else "write"
    return Step(kind=kind, path=_relative(change.path, root), to="", reason=change.reason)
