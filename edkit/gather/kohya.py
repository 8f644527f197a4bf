"""`edkit import kohya`: `10_subject name` folders and dataset.toml files of kohya's scripts, with multiply.txt.

What those settings do stands in kohya-ss/sd-scripts (docs/train_README, docs/config_README); here they become
files in the data root where edkit knows the same thing, and are refused by name where it does not.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

from edkit.data.catalog import Catalog
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import safe_name
from edkit.data.options import MAX_MULTIPLY, read_text
from edkit.data.progress import SILENT, Progress
from edkit.data.walk import list_folder, nfc
from edkit.gather.candidate import Candidate, Funnel
from edkit.gather.folder import check_apart
from edkit.gather.local import FolderMade, Imported, Item, Notes, Target, absolute, option_file, run_import
from edkit.gather.place import Captions

_PLACES = Decimal("0.000001")  # rounded up, so that the share is reached and not just missed
_EITHER = (".caption", ".txt")  # strongest first, as edkit reads them

# what a subset may say and edkit has too
_KNOWN = frozenset(
    {"image_dir", "num_repeats", "is_reg", "class_tokens", "caption_extension", "shuffle_caption", "keep_tokens"}
    | {"flip_aug", "caption_dropout_rate", "caption_prefix", "caption_suffix", "caption_separator", "cache_info"}
)
# the values at which an option that edkit lacks does nothing
_IDLE: Mapping[str, tuple[object, ...]] = {
    "color_aug": (False,),
    "random_crop": (False,),
    "face_crop_aug_range": (None, ""),
    "keep_tokens_separator": (None, ""),
    "secondary_separator": (None, ""),
    "enable_wildcard": (False,),
    "caption_dropout_every_n_epochs": (0,),
    "caption_tag_dropout_rate": (0, 0.0),
    "token_warmup_min": (1,),
    "token_warmup_step": (0, 0.0),
    "alpha_mask": (False,),
    "metadata_file": (None, ""),
    "conditioning_data_dir": (None, ""),
    "custom_attributes": (None, {}),
    "network_multiplier": (1, 1.0),
    "validation_split": (0, 0.0),
    "validation_seed": (None,),
    "skip_image_resolution": (None,),
    "resize_interpolation": (None, ""),
}
# settings of the training, which edkit takes on its own command line
_TRAINING: Mapping[str, str] = {
    "resolution": "--resolution",
    "batch_size": "--batch-size",
    "enable_bucket": "",
    "min_bucket_reso": "",
    "max_bucket_reso": "",
    "bucket_reso_steps": "",
    "bucket_no_upscale": "",
    "max_token_length": "",
    "prior_loss_weight": "",
    "debug_dataset": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One folder of images as kohya's scripts train it."""

    folder: Path
    name: str  # of the folder it becomes
    repeats: int
    class_tokens: str | None = None  # the caption of images without one
    is_reg: bool = False
    endings: tuple[str, ...] = _EITHER  # of its caption files, strongest first
    prefix: str = ""
    suffix: str = ""
    options: Mapping[str, str] = field(default_factory=dict)  # option file -> its text


@dataclass(slots=True)
class _Told:
    """What the captions of a run turned out to be."""

    num_by_class: int = 0
    num_cut: int = 0
    num_empty: int = 0


def import_kohya(
    source: Path,
    *,
    out: Path,
    reg: Path | None = None,
    caption_extension: str = "",
    ignore: Sequence[str] = (),
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
    """Bring a kohya train_dir (`10_subject name` folders), a project folder (img, reg) or a dataset.toml into `out`.

    Repeats become multiply.txt; regularization folders get the multiply at which one of their images comes for
    each training image. `ignore` names keys of a dataset.toml to pass over. Raises UsageError for a folder that
    holds no such folders, BadInput for a config that can't be kept.
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
    endings = (f".{caption_extension.lstrip('.')}",) if caption_extension else None
    said: list[str] = []
    if source.suffix.lower() == ".toml" and source.is_file():
        if reg is not None:
            raise UsageError("--reg: a dataset.toml names its own regularization folders (is_reg = true)")
        passed = frozenset(key.strip() for part in ignore for key in part.split(",") if key.strip())
        subsets, said = read_config(source, ignore=passed, endings=endings)
    elif source.is_dir():
        subsets, said = read_folders(source, reg, endings or _EITHER)
    else:
        raise UsageError(f"{source}: no such folder or dataset.toml")
    for subset in subsets:
        check_apart(absolute(subset.folder), absolute(out))
        if subset.repeats > MAX_MULTIPLY:
            what = f"{subset.repeats:,} repeats: {MAX_MULTIPLY:,} is the most there can be"
            raise BadInput(what, where=str(subset.folder), mend="lower its number, or move the folder away")
    told = _Told()

    def items(funnel: Funnel) -> Iterator[Item]:
        for subset in subsets:
            yield from _items(subset, funnel, caption, told)

    def finish(catalog: Catalog, notes: Notes) -> None:
        _finish(subsets, absolute(out), notes)

    asked = [str(source.resolve()), str(reg), endings, caption]
    imported = run_import("kohya", items, target, asked=asked, finish=finish)
    lines = [*imported.notes, *said]
    if told.num_by_class:
        lines.append(f"{told.num_by_class:,} images without a caption file got their folder's name, as in kohya")
    if told.num_cut:
        lines.append(f"{told.num_cut:,} caption files have more lines: kohya reads the first, and so did this")
    if told.num_empty:
        lines.append(f"{told.num_empty:,} caption files are empty: those images train without a caption")
    if any(subset.is_reg for subset in subsets):
        lines += [
            "a regularization folder is an ordinary folder here: it trains like all others",
            "pictures that a model made teach it its own errors; real photos (edkit scrape) don't",
        ]
    return replace(imported, notes=tuple(lines))


# ---- folders


def repeats_and_class(name: str) -> tuple[int, str] | None:
    """What a folder's name says: `10_subject name` -> (10, "subject name"); None where kohya passes it over.

    The number stands before the first `_`; what int() takes is a number (spaces around it, a sign), and one below 1
    means that the folder is not used.
    """
    number, _, rest = name.partition("_")
    try:
        repeats = int(number)
    except ValueError:
        return None
    return (repeats, rest) if repeats >= 1 else None


def read_folders(source: Path, reg: Path | None, endings: tuple[str, ...]) -> tuple[list[Subset], list[str]]:
    """The subsets of a train_dir, or of a project folder with `img` and `reg`, and what was passed over."""
    train = source
    if not _numbered(source):
        inner = [source / name for name in ("img", "image", "images", "train") if _numbered(source / name)]
        if not inner:
            names = sorted(p.name for p in source.iterdir() if p.is_dir())[:5]
            raise UsageError(
                f"{source}: no folders such as '10_subject name'"
                + (f"; there are {', '.join(names)}" if names else ""),
                mend="edkit import folder reads any tree",
            )
        train = inner[0]
    if reg is not None and not _numbered(reg):
        raise UsageError(f"--reg {reg}: no folders such as '1_person'")
    if reg is None:
        beside = [source / "reg", source / "regularization"]
        reg = next((p for p in beside if p != train and _numbered(p)), None)
    taken: set[str] = set()
    found: list[Subset] = []
    for root, is_reg in ((train, False), *(((reg, True),) if reg is not None else ())):
        for folder, repeats, words in _numbered(root):
            name = f"reg {words}".strip() if is_reg else words
            found.append(
                Subset(
                    folder=folder,
                    name=_free(name, taken),
                    repeats=repeats,
                    class_tokens=words,
                    is_reg=is_reg,
                    endings=endings,
                )
            )
    known = {subset.folder for subset in found} | ({reg} if reg is not None else set())
    passed = sorted(p.name for p in train.iterdir() if p.is_dir() and p not in known and not p.name.startswith("."))
    said = [f"not read, as their names have no repeats: {', '.join(passed)}"] if passed else []
    return found, said


def _numbered(folder: Path) -> list[tuple[Path, int, str]]:
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        said = repeats_and_class(path.name) if path.is_dir() else None
        if said is not None:
            found.append((path, *said))
    return found


def _free(name: str, taken: set[str]) -> str:
    """The folder's name as every system takes it, numbered where another has it."""
    wanted = safe_name(name) if name.strip() else "unnamed"
    n, free = 1, wanted
    while nfc(free).casefold() in taken:
        n += 1
        free = f"{wanted} ({n})"
    taken.add(nfc(free).casefold())
    return free


# ---- dataset.toml


def read_config(
    path: Path, *, ignore: frozenset[str] = frozenset(), endings: tuple[str, ...] | None = None
) -> tuple[list[Subset], list[str]]:
    """The subsets of a dataset.toml, and what its training settings are on edkit's command line.

    A subset's word is stronger than its dataset's, and that than [general]. Raises BadInput, naming every key edkit
    has nothing for at once.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput((error.strerror or str(error)).lower(), where=str(path)) from error
    except ValueError as error:
        raise BadInput(f"no TOML: {error}", where=str(path)) from error
    general, datasets = config.get("general", {}), config.get("datasets")
    if (
        not isinstance(general, dict)
        or not isinstance(datasets, list)
        or not all(isinstance(d, dict) for d in datasets)
    ):
        raise BadInput("no dataset config: it has no [[datasets]]", where=str(path))
    refused: dict[str, str] = {}
    for key in config.keys() - {"general", "datasets"}:
        refused[key] = f"[{key}]"
    taken: set[str] = set()
    found: list[Subset] = []
    training: dict[str, object] = {}
    for number, dataset in enumerate(datasets):
        subsets = dataset.get("subsets", [])
        if not isinstance(subsets, list) or not all(isinstance(s, dict) for s in subsets):
            raise BadInput(f"datasets[{number}]: subsets must be [[datasets.subsets]]", where=str(path))
        above = {**general, **{k: v for k, v in dataset.items() if k != "subsets"}}
        training |= {key: value for key, value in above.items() if key in _TRAINING}
        for subset in subsets:
            said = {**above, **subset}
            refused |= _not_kept(said, ignore)
            if not refused:
                found.append(_subset(said, path, taken, endings))
    if refused:
        what = ", ".join(refused[key] for key in sorted(refused))
        raise BadInput(
            f"edkit has nothing for {what}",
            where=str(path),
            mend=f"remove them, or pass them over: --ignore {','.join(sorted(refused))}",
        )
    if not found:
        raise BadInput("no dataset config: it has no [[datasets.subsets]]", where=str(path))
    loose = any("shuffle_tags.txt" in subset.options for subset in found) and not general.get("keep_tokens")
    flags = [f"{_TRAINING[key]} {_flag(value)}" for key, value in training.items() if _TRAINING[key]]
    others = [f"{key} = {value}" for key, value in training.items() if not _TRAINING[key]]
    said_lines = [f"settings of the training are yours to give: edkit train {' '.join(flags)}"] if flags else []
    said_lines += [f"not kept, as edkit's own buckets and tokens decide: {', '.join(others)}"] if others else []
    said_lines += ["where tags are shuffled, the first one always stays first here"] if loose else []
    return found, said_lines


def _flag(value: object) -> str:
    return str(max(value)) if isinstance(value, list) and value else str(value)


def _not_kept(said: Mapping[str, Any], ignore: frozenset[str]) -> dict[str, str]:
    """The keys that ask for what edkit can't do, with how to name them; unknown ones with the nearest known."""
    refused: dict[str, str] = {}
    for key, value in said.items():
        if key in ignore or key in _KNOWN or key in _TRAINING:
            continue
        if key in _IDLE:
            if not any(value == idle and type(value) is type(idle) for idle in _IDLE[key]):
                refused[key] = f"{key} = {value}"
            continue
        near = difflib.get_close_matches(key, [*_KNOWN, *_IDLE, *_TRAINING], n=1)
        refused[key] = f"{key} (did you mean {near[0]}?)" if near else key
    separator = said.get("caption_separator", ",")
    if separator.strip() != "," and said.get("shuffle_caption") and "caption_separator" not in ignore:
        refused["caption_separator"] = f"caption_separator = {separator!r}"
    return refused


def _subset(said: Mapping[str, Any], path: Path, taken: set[str], endings: tuple[str, ...] | None) -> Subset:
    def get(key: str, kind: type, default: Any) -> Any:
        value = said.get(key, default)
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise BadInput(f"{key} = {value!r}: it takes {_KINDS[kind]}", where=str(path))
        return value

    given = get("image_dir", str, None)
    if not given:
        raise BadInput("a subset without image_dir", where=str(path))
    folder = Path(given).expanduser()
    # kohya's scripts look from where they are started; people keep the file beside the folders
    tries = [folder] if folder.is_absolute() else [Path.cwd() / folder, path.absolute().parent / folder]
    place = next((p for p in tries if p.is_dir()), None)
    if place is None:
        raise BadInput(f"image_dir = {given!r}: no such folder", where=str(path))
    repeats = get("num_repeats", int, 1)
    if repeats < 1:
        raise BadInput(f"num_repeats = {repeats}: 1 or more", where=str(path))
    is_reg, words = get("is_reg", bool, False), get("class_tokens", str, None)
    by_name = repeats_and_class(place.name)
    name = by_name[1] if by_name and by_name[1] else place.name
    options: dict[str, str] = {}
    if get("shuffle_caption", bool, False):
        options["shuffle_tags.txt"] = "true"
        # kohya counts the first piece; here it always stays, and keep_tags counts those after it
        if (keep := get("keep_tokens", int, 0)) > 1:
            options["local.yaml"] = f"keep_tags: {keep - 1}"
    if get("flip_aug", bool, False):
        options["flip_p.txt"] = "0.5"
    rate = get("caption_dropout_rate", int | float, 0)  # type: ignore[arg-type]
    if not 0 <= rate <= 1:
        raise BadInput(f"caption_dropout_rate = {rate}: 0 to 1", where=str(path))
    if rate:
        options["cond_dropout.txt"] = f"{rate:g}"
    ending = get("caption_extension", str, ".caption")
    return Subset(
        folder=place,
        name=_free(f"reg {name}" if is_reg else name, taken),
        repeats=repeats,
        class_tokens=words,
        is_reg=is_reg,
        endings=endings or (f".{ending.lstrip('.')}",),
        prefix=get("caption_prefix", str, ""),
        suffix=get("caption_suffix", str, ""),
        options=options,
    )


_KINDS: Mapping[object, str] = {str: "text", int: "a whole number", bool: "true or false", int | float: "a number"}


# ---- images


def _items(subset: Subset, funnel: Funnel, fallback: str | None, told: _Told) -> Iterator[Item]:
    """The images that stand in the folder itself (kohya's scripts look no deeper), sorted."""
    listing = list_folder(str(subset.folder))
    there = {entry.name: entry for entry in subset.folder.iterdir() if entry.suffix.lower() in subset.endings}
    for number, name in enumerate(listing.images):
        funnel.rows += 1
        funnel.left += 1
        path = subset.folder / name
        plain = Candidate(url=path.absolute().as_uri(), caption="", table=str(subset.folder), row=number, key=name)
        item = Item(candidate=plain, folder=subset.name, source=path)
        beside = next((there[path.stem + e] for e in subset.endings if path.stem + e in there), None)
        try:
            text = None if beside is None else _first_line(read_text(beside), told)
        except BadInput as error:
            item.refused, item.reason = "bad-caption", str(error)
            yield item
            continue
        if text is None:
            text = subset.class_tokens if subset.class_tokens else fallback
            told.num_by_class += bool(subset.class_tokens)
        if text is None:
            item.refused = "no-caption"
            item.reason = (
                f'no {" or ".join(subset.endings)}, and its folder has no class (kohya trains it without: --caption "")'
            )
            yield item
            continue
        pieces = [subset.prefix, text, subset.suffix]
        item.candidate = replace(plain, caption=" ".join(piece for piece in pieces if piece))
        yield item


def _first_line(text: str, told: _Told) -> str:
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        told.num_empty += 1
        return ""
    told.num_cut += any(lines[1:])
    return lines[0]


# ---- how often each folder comes


def multiplies(counts: Sequence[tuple[int, int, bool]]) -> list[Decimal]:
    """The multiply of each folder of (images, repeats, is_reg).

    Training folders come as often as they repeat. Of the regularization folders together comes one image for each
    training image and repeat, as kohya's scripts pair them; among themselves they keep their repeats.
    """
    num_train = sum(n * repeats for n, repeats, is_reg in counts if not is_reg)
    num_reg = sum(n * repeats for n, repeats, is_reg in counts if is_reg)
    found = []
    for _, repeats, is_reg in counts:
        if not is_reg or not num_reg or not num_train:
            found.append(Decimal(repeats))
        else:
            exact = Decimal(repeats) * num_train / num_reg
            found.append(exact.quantize(_PLACES, rounding=ROUND_UP).normalize())
    return found


def _finish(subsets: Sequence[Subset], out: Path, notes: Notes) -> None:
    """Plan the option files, once it is known how many images each folder has."""
    there = [s for s in subsets if (out / s.name).is_dir()]
    counts = [(len(list_folder(str(out / s.name)).images), s.repeats, s.is_reg) for s in there]
    for subset, (images, repeats, _), multiply in zip(there, counts, multiplies(counts), strict=True):
        if multiply > MAX_MULTIPLY:  # few regularization images for a great many training images
            notes.lines.append(f"{subset.name}: multiply is {MAX_MULTIPLY:,}, the most there can be, not {multiply:,f}")
            multiply = Decimal(MAX_MULTIPLY)
        text = f"{multiply:f}"
        place = out / subset.name
        if multiply != 1 or (place / "multiply.txt").exists():
            option_file(place / "multiply.txt", text, notes, reason=f"kohya's repeats: {repeats}")
        for name, said in subset.options.items():
            if name == "local.yaml" and (place / name).exists() and (place / name).read_text("utf-8").strip() != said:
                notes.lines.append(f"{subset.name}/local.yaml stands there already: add to it {said}")
                continue
            option_file(place / name, said, notes, reason="kohya's dataset config")
        what = "regularization: one for each training image" if subset.is_reg else f"repeats {repeats}"
        notes.folders.append(FolderMade(folder=subset.name, images=images, multiply=text, what=what))
