"""`caption auto`: a model writes the captions that are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edkit.caption.folder import Wanted, nfc, plan_folder, sidecar_changes, split
from edkit.caption.models import TAGGER, Captioner, ProseModel, default_model, gpu_memory_gb
from edkit.caption.move import To
from edkit.caption.rename import overruled
from edkit.caption.sources import FolderOfImages, Left, Pictured, chosen_folder, folder_at, folders_of
from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import can_name
from edkit.data.options import sidecar_name
from edkit.data.progress import SILENT, Progress

if TYPE_CHECKING:
    from edkit.data.journal import Change

Kind = Literal["prose", "tags"]

ORIGIN = "captioned/1"
"""The catalog's name for who wrote an image's caption: JSON with model, kind, caption and settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One caption that a model wrote."""

    path: str  # of the image as it was, below the root
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoCaptioned:
    """What `caption_auto` did, or on a dry run would do."""

    root: Path
    model: str
    kind: Kind
    settings: Mapping[str, object]
    to: To
    num_images: int
    num_captioned: int  # images that had a caption and keep it
    num_later: int  # that `limit` leaves for another run
    num_known: int  # captions that an earlier run of the same model had found
    written: tuple[Written, ...]  # on a dry run without their captions
    left: tuple[Left, ...]
    notes: tuple[str, ...]
    operation: int | None
    dry_run: bool


def caption_auto(
    root: Path | str,
    *,
    model: str | None = None,
    kind: Kind = "prose",
    prompt: str | None = None,
    max_tokens: int = 75,
    thresholds: Mapping[str, float] | None = None,
    to: To = "sidecar",
    overwrite: bool = False,
    folder: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> AutoCaptioned:
    """Have a model caption the images that have no caption (or, with `overwrite`, all), as one operation.

    `model`: a folder or a hub id, for prose any image-text-to-text model of transformers (without a prompt, the
    one that suits it; no sampling, so the same picture gets the same words), for tags an ONNX tagger in the WD
    format. Without a name, one that the machine holds. Each caption is kept by content, model and settings as
    soon as it is there: an interrupted run goes on where it stopped, and asks the model nothing twice. Images
    that have a caption are left alone; names that a camera gave are none.

    Raises MissingExtra, BadInput where the model can't be had or loaded.
    """
    from edkit.data.dataset import read
    from edkit.data.journal import Move, apply

    if kind == "tags" and prompt is not None:
        raise UsageError("a tagger takes no prompt", where="--prompt", mend="--kind prose")
    if kind == "prose" and thresholds:
        raise UsageError("thresholds are for tags", where="--threshold", mend="--kind tags")
    if max_tokens < 1 or (limit is not None and limit < 1) or (batch_size is not None and batch_size < 1):
        raise UsageError("--max-tokens, --limit and --batch-size are 1 or more")
    root = folder_at(root)
    below = chosen_folder(root, folder)
    with Catalog.open(root, state_dir=state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        dataset = read(root, sizes=False, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        if not len(dataset):
            raise BadInput("no images in it", where=str(root))
        folders = [one for one in folders_of(dataset) if below is None or below in (one.path, *one.path.parents)]
        left: list[Left] = []
        lacking = [one for place in folders for one in _asked(place, overwrite, to, left)]
        asked = lacking[:limit]
        num_images = sum(len(place.images) for place in folders)
        num_captioned = num_images - len(lacking) - len(left)
        notes: list[str] = []
        name = model or ""
        known: dict[Path, str] = {}
        settings: Mapping[str, object] = {}
        changes: list[Change] = []
        num_known = 0
        if asked and not name:
            name, note = _default(kind)
            notes.append(note)
            progress.say(note)
        if asked and not dry_run:
            captioner = _captioner(
                name, kind, prompt, max_tokens, thresholds, batch_size, device, trust_remote_code, progress
            )
            name, settings = captioner.label, captioner.describe()
            paths = [image.path for image in asked]
            ids = catalog.content_ids(paths, progress=progress)
            known, num_known = _captions(catalog, captioner, ids, left, progress)
            if to == "filename":
                known = {path: without_stop(caption) for path, caption in known.items()}
            facts = {"model": name, **{key: _told(value) for key, value in settings.items() if value not in ("", None)}}
            images: dict[Path, list[Pictured]] = {}
            for image in asked:
                if image.path in known:
                    images.setdefault(image.path.parent, []).append(image)
            for place in folders:
                changes += _changes(place, images.get(place.path, ()), known, to, facts, overwrite=overwrite)
            origin = json.dumps({"kind": kind, **facts}, ensure_ascii=False)
            catalog.put_facts((ids[path], ORIGIN, origin) for path in known)
        applied = apply(catalog, changes, verb="caption auto", command=command, dry_run=dry_run, progress=progress)
    left += [Left(path=c.src if isinstance(c, Move) else c.path, reason=why) for c, why in applied.skipped]
    written = [image for image in asked if dry_run or image.path in known]
    return AutoCaptioned(
        root=root,
        model=name,
        kind=kind,
        settings=settings,
        to=to,
        num_images=num_images,
        num_captioned=num_captioned,
        num_later=len(lacking) - len(asked),
        num_known=num_known,
        written=tuple(
            Written(path=image.path.relative_to(root).as_posix(), caption=known.get(image.path, ""))
            for image in written
        ),
        left=tuple(left),
        notes=tuple(notes),
        operation=applied.operation,
        dry_run=dry_run,
    )


def without_stop(caption: str) -> str:
    """A caption without its last full stop, where this alone keeps it from being a file name."""
    bare = caption.removesuffix(".")
    return bare if can_name(bare) else caption


def _told(value: object) -> object:
    """A setting as the history tells it: numbers by category on one line."""
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value


def _default(kind: Kind) -> tuple[str, str]:
    if kind == "tags":
        return TAGGER.name, f"model: {TAGGER.name} ({TAGGER.licence}); another with --model"
    memory = gpu_memory_gb()
    choice = default_model(gpu_gb=memory)
    machine = f"a GPU of {memory:.0f} GB" if memory else "a machine without a GPU"
    return choice.name, f"model: {choice.name} ({choice.licence}), for {machine}; another with --model"


def _captioner(
    name: str,
    kind: Kind,
    prompt: str | None,
    max_tokens: int,
    thresholds: Mapping[str, float] | None,
    batch_size: int | None,
    device: str | None,
    trust_remote_code: bool,
    progress: Progress,
) -> Captioner:
    if kind == "tags":
        from edkit.caption.tagger import TaggerModel

        return TaggerModel(name, thresholds=thresholds, batch_size=batch_size, progress=progress)
    return ProseModel(
        name,
        prompt=prompt,
        max_tokens=max_tokens,
        batch_size=batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )


def _asked(one: FolderOfImages, overwrite: bool, to: To, left: list[Left]) -> Iterator[Pictured]:
    """The images of a folder that the model is asked about."""
    stems: dict[str, int] = {}
    for image in one.images:
        stem = nfc(split(image.path.name)[0])
        stems[stem] = stems.get(stem, 0) + 1
    for image in one.images:
        if image.problem is not None:
            left.append(Left(path=image.path, reason=f"{Path(image.problem.where).name}: {image.problem.what}"))
        elif not (image.missing or overwrite):
            continue
        elif to == "sidecar" and stems[nfc(split(image.path.name)[0])] > 1:
            left.append(Left(path=image.path, reason="another image has its name, and would share its sidecar"))
        else:
            yield image


def _captions(
    catalog: Catalog, captioner: Captioner, ids: Mapping[Path, str], left: list[Left], progress: Progress
) -> tuple[dict[Path, str], int]:
    """What the model says to each file, from the catalog where it was asked before; and how many were."""
    fact = captioner.fact(catalog)
    stored = catalog.facts((id for id in ids.values() if not isinstance(id, Unreadable)), (fact,))
    said: dict[str, str] = {id: str(values[fact]) for id, values in stored.items()}
    num_known = sum(id in said for id in ids.values())
    jobs: dict[str, Path] = {}
    for path, id in ids.items():
        if not isinstance(id, Unreadable) and id not in said:
            jobs.setdefault(id, path)
    failed: dict[str, str] = {}
    for batch in _batches(captioner, list(jobs.items()), failed, progress):
        said.update(batch)
        # kept at once: a day's work must not hang on the last picture
        catalog.put_facts((id, fact, text) for id, text in batch)
    found: dict[Path, str] = {}
    for path, id in ids.items():
        text = "" if isinstance(id, Unreadable) else said.get(id, "")
        if text:
            found[path] = text
        else:
            why = str(id) if isinstance(id, Unreadable) else failed.get(id, "the model says nothing to it")
            left.append(Left(path=path, reason=why))
    return found, num_known


def _batches(
    captioner: Captioner, jobs: Sequence[tuple[str, Path]], failed: dict[str, str], progress: Progress
) -> Iterator[list[tuple[str, str]]]:
    """(content id, caption) batch by batch; pictures are decoded while the model looks at others."""
    if not jobs:
        return
    rest = iter(jobs)
    with progress.task("captioning", total=len(jobs)) as advance, ThreadPoolExecutor(2) as pool:

        def start() -> list[tuple[str, Future[Any]]]:
            part = islice(rest, captioner.batch_size)  # which a full GPU may have made smaller
            return [(id, pool.submit(_prepared, captioner, path)) for id, path in part]

        try:
            ahead = start()
            while ahead:
                now, ahead = ahead, start()
                ready = []
                for id, future in now:
                    prepared = future.result()
                    if isinstance(prepared, BadInput):
                        failed[id] = prepared.what
                    else:
                        ready.append((id, prepared))
                if ready:
                    texts = captioner.captions([x for _, x in ready])
                    yield [(id, text) for (id, _), text in zip(ready, texts, strict=True)]
                    advance(len(now), note=texts[-1][:40])
                else:
                    advance(len(now))
        finally:
            pool.shutdown(cancel_futures=True)


def _prepared(captioner: Captioner, path: Path) -> Any:
    try:
        return captioner.prepare(path)
    except BadInput as error:
        return error


def _changes(
    one: FolderOfImages,
    images: Sequence[Pictured],
    known: Mapping[Path, str],
    to: To,
    facts: Mapping[str, object],
    *,
    overwrite: bool,
) -> list[Change]:
    """What writes the captions of one folder's images."""
    why = f"its caption, by {facts['model']}"
    wanted: list[Wanted] = []
    for image in images:
        caption = known[image.path]
        agrees, aside, rewritten = False, frozenset[str](), dict[str, bytes]()
        if overwrite:
            beside = one.companions.get(nfc(split(image.path.name)[0]), ())
            found = overruled(image.path, beside, caption)
            if not isinstance(found, Left):
                agrees, aside, rewritten = found
        wanted.append(
            Wanted(
                name=image.path.name,
                caption=caption,
                write=to == "sidecar" or any(source.words.prompt is not None for source in image.shared),
                given=agrees,
                aside=aside,
                rewritten=rewritten,
                why=why,
                facts=facts,
            )
        )
    if to == "filename":
        names = {image.name for image in wanted}
        others = [image.path.name for image in one.images if image.path.name not in names]
        return plan_folder(one.path, one.entries, wanted, others) if wanted else []
    changes: list[Change] = []
    for want in wanted:
        stem = split(want.name)[0]
        beside = one.companions.get(nfc(stem), ())
        changes += sidecar_changes(one.path, beside, stem, stem, want, first=True, text_name=sidecar_name(stem))
    return changes
