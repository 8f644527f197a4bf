"""`edkit import folder`: any tree of images, with its captions, subfolders and option files as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.dataset import Dataset, read
from edkit.data.errors import UsageError, one_line
from edkit.data.journal import Write
from edkit.data.names import caption_of_stem
from edkit.data.options import FOLDER_FILES, read_yaml
from edkit.data.progress import SILENT, Progress
from edkit.data.walk import MASK, Listing, list_folder, nfc, option_files
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.local import Imported, Item, Notes, Target, absolute, run_import
from edkit.gather.place import Captions


def import_folder(
    source: Path,
    *,
    out: Path,
    caption: str | None = None,
    link: bool = False,
    limit: int | None = None,
    captions: Captions = "filename",
    licence: str = "",
    author: str = "",
    dry_run: bool = False,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Put the images of a tree into `out`, in the same subfolders, with the captions edkit reads there.

    YAML sidecars and the folders' option files come along as they are. `caption` is for images that have none (a
    camera's names). Holds the names and captions of the tree in memory, and no image. Raises UsageError where
    the tree and `out` overlap.
    """
    target = Target(
        out=out,
        link=link,
        limit=limit,
        captions=captions,
        caption=caption,
        licence=licence,
        author=author,
        dry_run=dry_run,
        state_dir=state_dir,
        progress=progress,
    )
    root = absolute(source)
    check_apart(root, absolute(out))
    with progress.task("reading the folder", unit="images"):
        dataset = read(root, sizes=False, caption_fallback=caption)

    named: dict[Path, None] = {}  # caption files that the YAMLs which come along name

    def items(funnel: Funnel) -> Iterator[Item]:
        listing: Listing | None = None
        with_sidecars = False
        for i in range(len(dataset)):
            funnel.rows += 1
            funnel.left += 1
            path = dataset.path(i)
            if listing is None or listing.path != str(path.parent):
                listing = list_folder(str(path.parent))
                # a name is weaker than a main prompt of the folder's, as no sidecar is
                with_sidecars = _has_main_prompt(path.parent, root)
            item = _item(dataset, i, path, root, listing, with_sidecars=with_sidecars)
            named.update(dict.fromkeys(_named_by(sidecar for _, sidecar in item.beside)))
            yield item

    def finish(catalog: Catalog, notes: Notes) -> None:
        for folder in dataset.folders:
            for name in _option_files(folder.path):
                place = absolute(out).joinpath(*folder.key.split("/")) if folder.key else absolute(out)
                if place.is_dir():
                    notes.changes.append(Write(place / name.lower(), (folder.path / name).read_bytes(), "imported"))
                    named.update(dict.fromkeys(_named_by([folder.path / name])))
        for above in _above(dataset, root):
            place = absolute(out) / above.parent.relative_to(root)
            if place.is_dir():
                notes.changes.append(Write(place / above.name.lower(), above.read_bytes(), "imported"))
                named.update(dict.fromkeys(_named_by([above])))
        for file in named:
            place = absolute(out) / file.relative_to(root)
            if not place.exists():  # what a person wrote there since stays
                notes.changes.append(Write(place, file.read_bytes(), "imported"))
        if dataset.skipped:
            shown = ", ".join(f"{s.path} ({s.reason})" for s in dataset.skipped[:3])
            more = f" and {len(dataset.skipped) - 3:,} more" if len(dataset.skipped) > 3 else ""
            notes.lines.append(f"{len(dataset.skipped):,} other files were not read: {shown}{more}")

    asked = [str(root), caption]
    return run_import("folder", items, target, asked=asked, finish=finish, expected=len(dataset))


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError where one of the two folders stands in the other."""
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder")
    real, real_out = source.resolve(), out.resolve()
    if real == real_out or real in real_out.parents or real_out in real.parents:
        raise UsageError(f"--out {out}: stands in the folder it imports, or holds it; take another")


def _has_main_prompt(folder: Path, root: Path) -> bool:
    """Whether the folder's local.yaml, or a global.yaml from there up to the root, says a main prompt."""
    files = [folder / name for lower, name in option_files(folder).items() if lower == "local.yaml"]
    while True:
        files += [folder / name for lower, name in option_files(folder).items() if lower == "global.yaml"]
        if folder == root:
            return any(read_yaml(file).words.prompt is not None for file in files)
        folder = folder.parent


def _named_by(files: Iterable[Path]) -> list[Path]:
    return [named for file in files if file.suffix.lower() in (".yaml", ".yml") for named in read_yaml(file).files]


def _item(dataset: Dataset, i: int, path: Path, root: Path, listing: Listing, *, with_sidecars: bool) -> Item:
    """An image of the tree as an Item; `with_sidecars`: what stands beside it comes along, even a plain text."""
    folder = path.parent.relative_to(root).as_posix()
    plain = Candidate(url=path.as_uri(), caption="", table=str(root), row=i, key=path.relative_to(root).as_posix())
    item = Item(candidate=plain, folder="" if folder == "." else folder, source=path)
    problem = dataset.error(i)
    if problem is not None:
        code = "no-caption" if problem.code in ("camera-name", "no-caption") else "bad-caption"
        item.refused = code
        item.reason = problem.what if code == "no-caption" else one_line(problem.what, problem.where, problem.mend)
        return item
    caption, sources = dataset.caption(i), dataset.sources(i)
    text = caption.text
    if not caption.verbatim and sources and sources[0] == path:
        text = caption_of_stem(path.stem)  # the whole of it, tags too
    item.candidate = replace(plain, caption=text)
    sidecars = {suffix: path.with_name(name) for suffix, name in listing.sidecars.get(nfc(path.stem), {}).items()}
    if sidecars.keys() & {".yaml", ".yml"} or (sidecars and (with_sidecars or not caption.verbatim)):
        # what a YAML says (weights, options) no name can carry: then all its sidecars come along, word for word
        if ".txt" not in sidecars and ".caption" in sidecars:
            sidecars[".txt"] = sidecars.pop(".caption")
        item.beside = tuple(sidecars.items())
        item.sole = bool(sources) and sources[0] != path and sources[0].parent == path.parent
    mask = dataset.mask(i)
    if mask is not None:
        item.beside = (*item.beside, (f"{MASK}.png", mask))
    return item


def _option_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.lower() in FOLDER_FILES and entry.is_file())


def _above(dataset: Dataset, root: Path) -> list[Path]:
    """The `global.yaml` of folders that hold no images themselves."""
    with_images = {folder.path for folder in dataset.folders}
    found: dict[Path, None] = {}
    for folder in with_images:
        for above in folder.parents:
            if above in with_images or not (above == root or root in above.parents):
                continue
            for entry in above.iterdir():
                if entry.name.lower() == "global.yaml":
                    found[entry] = None
    return sorted(found)
