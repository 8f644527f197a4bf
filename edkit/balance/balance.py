"""How often each folder is trained: what `multiply.txt` says today, and what it should say.

The arithmetic is exact (decimals and fractions, no floats): 1000 images at 0.025 are 25 picks in every
epoch, not 24.999. `propose` is pure; `balance` reads the folder, asks `propose`, and writes through the
journal.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edkit.balance.from_run import advise, read_figures
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress

if TYPE_CHECKING:
    from edkit.data.dataset import Dataset

EXACT_EPOCHS = 1000  # a rounded multiply gives the asked picks in each of this many epochs
MAX_EXACT_DIGITS = 6  # a decimal up to this long is written exactly; a longer one is rounded up
STEEP = 10  # equalize says so where it raises a folder by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder that holds images itself; some may have a multiply of their own, from a YAML sidecar."""

    path: str  # relative to the data root, with "/"; "." is the root itself
    num_images: int
    multiply: Decimal  # of the images without one of their own
    own: tuple[tuple[Decimal, int], ...] = ()  # (multiply, images) of those with one of their own

    @property
    def num_free(self) -> int:
        """Images that `multiply.txt` governs."""
        return self.num_images - sum(n for _, n in self.own)

    @property
    def own_picks(self) -> Fraction:
        """Picks an epoch of the images with a multiply of their own."""
        return sum((Fraction(multiply) * n for multiply, n in self.own), Fraction(0))

    @property
    def picks(self) -> Fraction:
        """Picks an epoch, averaged over epochs."""
        return Fraction(self.multiply) * self.num_free + self.own_picks

    def picks_in(self, epoch: int) -> int:
        """Picks of one epoch: the whole part, and the fraction carried on from epoch to epoch."""
        groups: dict[Decimal, int] = {}
        for multiply, n in ((self.multiply, self.num_free), *self.own):
            groups[multiply] = groups.get(multiply, 0) + n
        return sum(picks_of(n, multiply, epoch) for multiply, n in groups.items())


def picks_of(num_images: int, multiply: Decimal, epoch: int) -> int:
    """Picks of n images at one multiply in an epoch: m*n + floor(n*f*(e+1)) - floor(n*f*e), exactly."""
    exact = Fraction(multiply)
    whole = math.floor(exact)
    drawn = num_images * (exact - whole)
    return whole * num_images + math.floor(drawn * (epoch + 1)) - math.floor(drawn * epoch)


def multiply_for(picks: Fraction, num_images: int) -> Decimal:
    """The multiply that makes n images give this many picks an epoch: exact where a short decimal is.

    Otherwise rounded up at the digit where `EXACT_EPOCHS` epochs add up to less than one pick too many:
    300 images to 25 picks is 0.083334, which gives 25 in each of the first 1000 epochs (0.083333 would give
    24 in the first).
    """
    wanted = picks / num_images
    for digits in range(MAX_EXACT_DIGITS + 1):
        if (wanted * 10**digits).denominator == 1:
            return _decimal(int(wanted * 10**digits), digits)
    digits = len(str(num_images * EXACT_EPOCHS))
    return _decimal(math.ceil(wanted * 10**digits), digits)


def _decimal(units: int, digits: int) -> Decimal:
    text = str(units).rjust(digits + 1, "0")
    return Decimal(plain(Decimal(f"{text[: len(text) - digits]}.{text[len(text) - digits :] or '0'}")))


def plain(multiply: Decimal) -> str:
    """The decimal as people write it: no exponent, no trailing zeros."""
    text = f"{multiply:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- what the user asks for -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one call of `balance` asks for; folders are relative to the data root."""

    set: Mapping[str, Decimal]
    per_epoch: Mapping[str, Fraction]
    share: Mapping[str, Fraction]
    equalize: bool = False
    ground_truth: tuple[str, ...] = ()  # left alone by equalize

    def __post_init__(self) -> None:
        for folder, multiply in self.set.items():
            if multiply < 0:
                raise UsageError(f"multiply can't be negative: {plain(multiply)}", where=f"--set {folder}")
        for folder, picks in self.per_epoch.items():
            if picks < 0:
                raise UsageError("picks can't be negative", where=f"--per-epoch {folder}")
        for folder, share in self.share.items():
            if not 0 < share < 1:
                raise UsageError(
                    f"{float(share):g} is no share of an epoch",
                    where=f"--share {folder}",
                    mend="give a number above 0 and below 1, such as 0.3",
                )
        if sum(self.share.values()) >= 1:
            total = float(sum(self.share.values()))
            raise UsageError(
                f"the shares add up to {total:g}, which leaves nothing for the other folders",
                where="--share",
                mend="give shares that add up to less than 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The folders as they would be, and what a person should know about them."""

    folders: tuple[Folder, ...]
    why: Mapping[str, str]  # folder -> the words that say where its new multiply comes from
    notes: tuple[str, ...]


def propose(folders: Sequence[Folder], wish: Wish) -> Proposal:
    """Work out every multiply: first `set`, then `equalize`, then `per_epoch`, then `share` of what came out.

    Raises UsageError for a folder that isn't there (naming the nearest), one that holds no images at or below
    it, or one that two options claim; BadInput where a file other than multiply.txt rules.
    """
    names = [folder.path for folder in folders]
    claimed = _claims(names, wish)
    now = {folder.path: folder for folder in folders}
    why: dict[str, str] = {}
    notes: list[str] = []

    def put(path: str, multiply: Decimal, reason: str) -> None:
        if now[path].num_free == 0:
            notes.append(f"{path}: every image has a multiply of its own (YAML), which is stronger; left as it is")
            return
        now[path] = replace(now[path], multiply=multiply)
        why[path] = reason

    # the deepest folder that is named decides
    for asked in sorted(wish.set, key=lambda name: len(_parts(name))):
        for path in _below(names, asked):
            put(path, wish.set[asked], f"set{_at(asked, path)}")

    if wish.equalize:
        _equalize(list(now.values()), claimed, wish.ground_truth, put, notes)

    for asked, picks in wish.per_epoch.items():
        _reach([now[path] for path in _below(names, asked)], picks, asked, "--per-epoch", put)

    if wish.share:
        shared = {path for asked in wish.share for path in _below(names, asked)}
        others = sum((folder.picks for folder in now.values() if folder.path not in shared), Fraction(0))
        if not others:
            raise UsageError(
                "no other folder trains, so there is nothing to take a share of",
                where=f"--share {next(iter(wish.share))}",
            )
        total = others / (1 - sum(wish.share.values(), Fraction(0)))
        for asked, share in wish.share.items():
            _reach([now[path] for path in _below(names, asked)], share * total, asked, "--share", put)

    return Proposal(folders=tuple(now[name] for name in names), why=why, notes=tuple(notes))


def from_figures(folders: Sequence[Folder], run: Path, named: Sequence[str]) -> Proposal:
    """The balance that a measured run asks for: the multiply of every ground truth folder raised alike, or none.

    Ground truth is what is `named`, else what has a multiply below 1. Raises UsageError where there is none, or nothing
    else.
    """
    names = [folder.path for folder in folders]
    keeping = {path for name in named for path in _below(names, name, "--ground-truth")}
    keeping = keeping or {folder.path for folder in folders if folder.multiply < 1}
    kept = sum((folder.picks for folder in folders if folder.path in keeping), Fraction(0))
    others = sum((folder.picks for folder in folders if folder.path not in keeping), Fraction(0))
    figures = read_figures(run)
    if not kept or not others:
        raise UsageError(
            "no folder trains as ground truth" if not kept else "no folder but ground truth trains",
            where="--from-run",
            mend="name what is to be kept: --ground-truth FOLDER",
        )
    advice = advise(figures, kept=kept, others=others)
    if advice.factor == 1:
        return Proposal(folders=tuple(folders), why={}, notes=(advice.reason,))
    times = advice.factor
    raised = {
        one.path: replace(one, multiply=multiply_for(times * Fraction(one.multiply) * one.num_free, one.num_free))
        for one in folders
        if one.path in keeping and one.num_free
    }
    why = dict.fromkeys(raised, f"{advice.reason}: {float(times):.3g} times the picks")
    return Proposal(folders=tuple(raised.get(one.path, one) for one in folders), why=why, notes=())


def _reach(folders: Sequence[Folder], picks: Fraction, asked: str, option: str, put: object) -> None:
    assert callable(put)
    num_free = sum(folder.num_free for folder in folders)
    own = sum((folder.own_picks for folder in folders), Fraction(0))
    if num_free == 0:
        raise UsageError(
            "every image there has a multiply of its own (YAML), which is stronger than multiply.txt",
            where=f"{option} {asked}",
        )
    if own > picks:
        raise UsageError(
            f"images with a multiply of their own (YAML) alone give {_amount(own)} picks an epoch",
            where=f"{option} {asked}",
            mend=f"ask for more than {_amount(own)}",
        )
    multiply = multiply_for(picks - own, num_free)
    reason = f"{_amount(picks)} picks for {num_free:,} {_images(num_free)}"
    for folder in folders:
        if folder.num_free:
            put(folder.path, multiply, f"{reason}{_at(asked, folder.path)}")


def _equalize(
    folders: Sequence[Folder],
    claimed: Mapping[str, str],
    ground_truth: Sequence[str],
    put: object,
    notes: list[str],
) -> None:
    assert callable(put)
    names = [folder.path for folder in folders]
    excepted = {path for name in ground_truth for path in _below(names, name)}
    subjects = [
        folder
        for folder in folders
        if folder.path not in claimed and folder.path not in excepted and folder.multiply >= 1 and folder.num_free
    ]
    left = [folder.path for folder in folders if folder.multiply < 1 and folder.path not in claimed]
    if left:
        notes.append(f"taken as ground truth and left alone (multiply below 1): {_list(left)}")
    if not subjects:
        raise UsageError("no subject folder to equalize (all have a multiply below 1, or are named otherwise)")
    level = max(folder.num_free + folder.own_picks for folder in subjects)
    steep = []
    for folder in subjects:
        multiply = multiply_for(level - folder.own_picks, folder.num_free)
        put(folder.path, multiply, f"raised to the {_amount(level)} picks of the largest subject folder")
        if multiply >= STEEP:
            steep.append(f"{folder.path} x {plain(multiply)}")
    if steep:
        largest = max(subjects, key=lambda folder: folder.num_free + folder.own_picks).path
        notes.append(f"steep: {_list(steep)}; if {largest} is ground truth, say so: --ground-truth {largest}")


def _claims(names: Sequence[str], wish: Wish) -> dict[str, str]:
    """Which option rules each folder; two that both rule it are an error (for --set the deeper one rules)."""
    claims: dict[str, str] = {}
    for option, asked in (
        *(("--set", name) for name in wish.set),
        *(("--per-epoch", name) for name in wish.per_epoch),
        *(("--share", name) for name in wish.share),
    ):
        for path in _below(names, asked, option):
            before = claims.get(path)
            if before and not (option == "--set" and before.startswith("--set ")):
                raise UsageError(f"claimed by both {before} and {option} {asked}", where=path)
            claims[path] = f"{option} {asked}"
    for name in wish.ground_truth:
        _below(names, name, "--ground-truth")
    return claims


def _below(names: Sequence[str], asked: str, option: str = "") -> list[str]:
    """The folders at or below the one asked for that hold images."""
    parts = _parts(asked)
    found = [name for name in names if _parts(name)[: len(parts)] == parts]
    if not found:
        known = sorted({"/".join(_parts(name)[:i]) for name in names for i in range(1, len(_parts(name)) + 1)})
        near = difflib.get_close_matches("/".join(parts), known, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]}?" if near else f"folders with images: {_list(known or ['.'])}"
        raise UsageError(f"no folder {asked!r} with images in it", where=option or None, mend=mend)
    return found


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != ".")


def _at(asked: str, path: str) -> str:
    return "" if _parts(asked) == _parts(path) else f" in {asked}"


def _list(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _images(n: int) -> str:
    return "image" if n == 1 else "images"


def _amount(picks: Fraction) -> str:
    return f"{int(picks):,}" if picks.denominator == 1 else f"{float(picks):,.2f}"


# --- what it says to a person -------------------------------------------------------------------------------


def sentence(folder: Folder, total: Fraction) -> str:
    """One folder's number in words: picks, share of the epoch, and how long until every image was seen."""
    n, multiply = folder.num_free, plain(folder.multiply)
    share = f"{float(folder.picks / total):.1%} of the epoch" if total else "nothing trains"
    if folder.own:
        num_own = folder.num_images - n
        whose = "its" if num_own == 1 else "their"
        head = f"{n:,} {_images(n)} × {multiply} + {num_own:,} with a multiply of {whose} own"
    else:
        head = f"{n:,} {_images(n)} × {multiply}"
    if not folder.picks:
        return f"{folder.path}: {head}: left out of training"
    text = f"{folder.path}: {head} = {how_many(folder)}, {share}"
    if folder.own or n == 0:
        return text
    exact = Fraction(folder.multiply)
    if exact == 1:
        return f"{text}; each image once"
    if exact < 1:
        return f"{text}; every image is seen once in {_amount_up(1 / exact)} epochs"
    if exact.denominator == 1:
        return f"{text}; each image {int(exact)} times"
    return f"{text}; each image {math.floor(exact)} or {math.ceil(exact)} times, in turn"


def how_many(folder: Folder) -> str:
    """`25 picks in every epoch`, `1 pick in every 2nd epoch`, or the average and its range."""
    counts = {folder.picks_in(epoch) for epoch in range(100)}
    if len(counts) == 1:
        n = counts.pop()
        return f"{n:,} {_picks(n)} in every epoch"
    if folder.picks < 1:
        return f"1 pick in about every {round(1 / folder.picks)} epochs"
    return f"{float(folder.picks):,.2f} picks an epoch on average ({min(counts):,} to {max(counts):,})"


def _amount_up(epochs: Fraction) -> str:
    # a rounded multiply must not turn 12 epochs into 13
    nearest = round(epochs)
    return f"{nearest:,}" if abs(epochs - nearest) < Fraction(1, 20) else f"about {float(epochs):,.1f}"


def _picks(n: int) -> str:
    return "pick" if n == 1 else "picks"


# --- the verb -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one folder is in an epoch, before and after."""

    folder: str
    num_images: int
    multiply: Decimal
    was: Decimal
    picks: float  # an epoch, on average
    share: float  # 0..1 of the epoch
    sentence: str
    reason: str  # where a new multiply comes from; "" where it stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """The balance of a data root, and what was written to change it."""

    root: Path
    parts: tuple[Part, ...]
    num_images: int
    picks: float  # an epoch, on average
    epochs: tuple[int, ...]  # picks of the first epochs, counted one by one
    written: tuple[Path, ...]  # the multiply.txt files written (with dry_run: that would be)
    notes: tuple[str, ...]
    operation: int | None
    dry_run: bool


EPOCHS_SHOWN = 6

Number = Decimal | int | float | str


def balance(
    root: Path | str,
    *,
    set: Mapping[str, Number] | None = None,
    per_epoch: Mapping[str, Number] | None = None,
    share: Mapping[str, Number] | None = None,
    equalize: bool = False,
    ground_truth: Sequence[str] = (),
    from_run: Path | None = None,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Balanced:
    """Show how often each folder is trained; with any wish, write `multiply.txt` files that make it so.

    Folders are named relative to `root` and mean every folder at or below that holds images. `set` gives
    the multiply itself, `per_epoch` the picks, `share` the part (0..1) of the epoch; `equalize` raises every
    subject folder (multiply of 1 or more, not named otherwise, not in `ground_truth`) to the largest. `from_run` is
    a run that `choose` measured: its drift says whether ground truth (`ground_truth`, else the folders with a multiply
    below 1) should train more.

    Raises UsageError (an unknown folder, a number that can't be), BadInput (a bad option file).
    """
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.journal import Write, apply

    if from_run is not None and (set or per_epoch or share or equalize):
        raise UsageError("--from-run works out the balance by itself", mend="give it without the other options")
    root = Path(os.path.abspath(root))  # noqa: PTH100 - links stay links
    if not root.is_dir():
        raise UsageError("no such folder", where=str(root))
    wish = Wish(
        set={_inside(root, name): exact(value, f"--set {name}") for name, value in (set or {}).items()},
        per_epoch={
            _inside(root, name): Fraction(exact(value, f"--per-epoch {name}"))
            for name, value in (per_epoch or {}).items()
        },
        share={_inside(root, name): Fraction(exact(value, f"--share {name}")) for name, value in (share or {}).items()},
        equalize=equalize,
        ground_truth=tuple(_inside(root, name) for name in ground_truth),
    )
    asked = bool(wish.set or wish.per_epoch or wish.share or wish.equalize or from_run)
    with Catalog.open(root, state_dir=state_dir, write=asked and not dry_run, command=command) as catalog:
        dataset = read(root, sizes=False, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        before = folders_of(dataset, certain=asked)
        if not before:
            raise BadInput("no images in it", where=str(root))
        if from_run is not None:
            proposal = from_figures(before, from_run, wish.ground_truth)
        else:
            proposal = propose(before, wish) if asked else Proposal(folders=tuple(before), why={}, notes=())
        bad = {problem.where.rpartition(":")[0]: problem for problem in dataset.errors}
        files = {folder.path: _multiply_file(root / folder.path) for folder in before}
        changes = [
            Write(
                files[new.path].absolute(),
                f"{plain(new.multiply)}\n".encode(),
                f"balance: {proposal.why[new.path]}",
            )
            for old, new in zip(before, proposal.folders, strict=True)
            if new.path in proposal.why and (old.multiply != new.multiply or str(files[new.path]) in bad)
        ]
        applied = apply(
            catalog,
            changes,
            verb="balance",
            command=command,
            dry_run=dry_run or not changes,
            progress=progress,
        )
    mended = {str(change.path) for change in changes}
    notes = [
        *(str(bad[str(path)]) for path in files.values() if str(path) in bad and str(path) not in mended),
        *proposal.notes,
    ]
    skipped = {change.path: why for change, why in applied.skipped if isinstance(change, Write)}
    total = sum((folder.picks for folder in proposal.folders), Fraction(0))
    return Balanced(
        root=root,
        parts=tuple(
            Part(
                folder=new.path,
                num_images=new.num_images,
                multiply=new.multiply,
                was=old.multiply,
                picks=float(new.picks),
                share=float(new.picks / total) if total else 0.0,
                sentence=sentence(new, total),
                reason=proposal.why.get(new.path, "") if new.multiply != old.multiply else "",
            )
            for old, new in zip(before, proposal.folders, strict=True)
        ),
        num_images=sum(folder.num_images for folder in proposal.folders),
        picks=float(total),
        epochs=tuple(sum(folder.picks_in(epoch) for folder in proposal.folders) for epoch in range(EPOCHS_SHOWN)),
        written=tuple(change.path for change in changes if change.path not in skipped),
        notes=(*notes, *(f"{path}: not written: {why}" for path, why in skipped.items())),
        operation=applied.operation,
        dry_run=dry_run,
    )


def folders_of(dataset: Dataset, *, certain: bool = False) -> list[Folder]:
    """The folders of a data root, the images that multiply.txt governs told from those it does not.

    An image whose multiply is not its folder's has one of its own. `certain` reads the YAML sidecars too, for
    images whose own multiply happens to be their folder's.
    """
    import numpy as np

    pairs, counts = np.unique(np.stack([dataset.folder_ids, dataset.option_ids]), axis=1, return_counts=True)
    groups: dict[int, dict[Decimal, int]] = {}
    for (number, option), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        multiply = dataset.option_table[option].multiply
        group = groups.setdefault(number, {})
        key = Decimal(1) if multiply is None else multiply
        group[key] = group.get(key, 0) + count
    found = []
    for folder, group in zip(dataset.folders, (groups[number] for number in sorted(groups)), strict=True):
        said = _said_of(folder.path, dataset.root)
        own = {multiply: n for multiply, n in group.items() if multiply != said}
        if certain and said in group:
            same = _own_multiplies(folder.path).count(said)
            own |= {said: same} if same else {}
        found.append(
            Folder(path=folder.key or ".", num_images=folder.count, multiply=said, own=tuple(sorted(own.items())))
        )
    return found


def _said_of(folder: Path, root: Path) -> Decimal:
    """What files say of a folder's multiply: its own, its local.yaml, the nearest global.yaml; else 1."""
    from edkit.data.options import read_option_file, read_yaml
    from edkit.data.walk import option_files

    options = option_files(folder)
    if "multiply.txt" in options:
        said = read_option_file(folder / options["multiply.txt"]).options.multiply
        if said is not None:
            return said
    if "local.yaml" in options:
        said = read_yaml(folder / options["local.yaml"]).options.multiply
        if said is not None:
            return said
    for place in (folder, *folder.parents):
        options = option_files(place)
        if "global.yaml" in options:
            said = read_yaml(place / options["global.yaml"]).options.multiply
            if said is not None:
                return said
        if place == root:
            break
    return Decimal(1)


def _own_multiplies(folder: Path) -> list[Decimal]:
    """The multiplies that images of a folder have of their own, by their YAML sidecars."""
    from edkit.data.options import read_yaml
    from edkit.data.walk import list_folder, nfc

    listing = list_folder(str(folder))
    found = []
    for name in listing.images:
        beside = listing.sidecars.get(nfc(Path(name).stem), {})
        for ending in (".yaml", ".yml"):
            multiply = read_yaml(folder / beside[ending]).options.multiply if ending in beside else None
            if multiply is not None:
                found.append(multiply)
                break
    return found


def _multiply_file(folder: Path) -> Path:
    """The folder's multiply.txt, however it spells its name."""
    from edkit.data.walk import option_files

    return folder / option_files(folder).get("multiply.txt", "multiply.txt")


def exact(value: Number, where: str) -> Decimal:
    """A number as a person wrote it, in decimal; UsageError where it is none."""
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        number = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        number = Decimal("NaN")
    if number.is_finite() and number.adjusted() > 6:
        raise UsageError(f"{text} is more than a million", where=where)
    if not number.is_finite():
        raise UsageError(f"{text!r} is no number", where=where, mend="write it like 0.025")
    return number / 100 if percent else number


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """`FOLDER=NUMBER` as the command line gives them, as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        folder, equals, value = text.rpartition("=")
        if not equals or not folder or not value:
            raise UsageError(f"{text!r} is not FOLDER=NUMBER", where=option, mend=f"{option} preservation=0.025")
        if folder in found:
            raise UsageError(f"{folder} is named twice", where=option)
        found[folder] = value
    return found


def _inside(root: Path, name: str) -> str:
    """A folder's name relative to the root; a path from where the user stands is understood too."""
    name = name.replace("\\", "/") if not (root / name).is_dir() else name
    if not (root / name).is_dir() and Path(name).is_dir():
        here = Path(name).resolve()
        if here.is_relative_to(root.resolve()):
            return here.relative_to(root.resolve()).as_posix()
    return PurePosixPath(name).as_posix()
