"""What `check` finds, kind by kind: what it's called, why it matters, and the one command that mends it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edkit.clean.files import shown
from edkit.data.dataset import Dataset
from edkit.data.errors import Problem
from edkit.measure.facts import Facts
from edkit.measure.families import Family

Level = Literal["error", "warning", "note"]
Box = tuple[float, float, float, float]  # left, top, right, bottom as parts of an upright picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One place of a finding, and what can be shown of it."""

    problem: Problem
    image: Path | None = None
    aside: tuple[Path, ...] = ()  # the files that `--set-aside` moves
    others: tuple[tuple[Path, str], ...] = ()  # further pictures of it, each with a few words
    keep: Box | None = None  # what a crop leaves of the picture
    bad: tuple[Box, ...] = ()  # what it should not have cut
    read: str = ""  # the part of a caption that is read,
    unread: str = ""  # and the part that isn't
    text: Path | None = None  # the file that holds nothing but that caption


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """All problems of one kind: errors block training, warnings don't, notes are only worth knowing."""

    kind: str  # what `--set-aside` calls it
    level: Level
    count: int
    title: str
    why: str  # what it does to a training
    mend: str  # one command, as typed into a shell; "" where only a person can mend it
    does: str  # what that command does
    by_hand: str  # what a person can do instead
    first: tuple[str, ...]  # the first places, each with what is wrong there


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line asked `check` for, so that commands named in findings ask for the same."""

    root: Path
    family: str | None = None
    resolution: int | None = None
    radius: int = 8
    num_images: int = 0

    def check(self, *more: str) -> str:
        """This very check, with more options."""
        for_family = ["--for", self.family] if self.family else []
        size = ["--resolution", str(self.resolution)] if self.resolution else []
        return command("check", str(self.root), *for_family, *size, *more)


def command(*words: str) -> str:
    """An `edkit` command as it is typed into a shell, every odd name quoted."""
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline(["edkit", *words])
    import shlex

    return shlex.join(["edkit", *words])


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that one look at a data root gives: what the page draws."""

    asked: Asked
    target: Family | None
    resolution: int | None
    dataset: Dataset
    facts: Mapping[Path, Facts]
    findings: Sequence[tuple[Finding, Sequence[Spot]]]
    num_tokens: Sequence[int]  # of each caption; none without a tokenizer
    looked_for_heads: bool
    notes: tuple[str, ...]


Mend = Callable[[Asked, Sequence[Spot]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row of what can be found."""

    one: str
    many: str  # with {n}
    why: str
    mend: Mend | None = None
    does: str = ""
    by_hand: str = ""
    level: Level | None = None  # None: as its problems say


def _fix(asked: Asked, spots: Sequence[Spot]) -> str:
    return command("check", str(asked.root), "--fix")


def _aside(kind: str) -> Mend:
    def mend(asked: Asked, spots: Sequence[Spot]) -> str:
        return asked.check("--set-aside", kind) if any(spot.aside for spot in spots) else ""

    return mend


def _filter(rule: str) -> Mend:
    return lambda asked, spots: command("filter", str(asked.root), "--rule", rule)


def _dedupe(asked: Asked, spots: Sequence[Spot]) -> str:
    return command("dedupe", str(asked.root), "--radius", str(asked.radius))


def _caption(asked: Asked, spots: Sequence[Spot]) -> str:
    return command("check", str(asked.root), "--fix", "--caption-fallback", "WORDS")


def _multiply(asked: Asked, spots: Sequence[Spot]) -> str:
    root = os.path.abspath(asked.root)  # noqa: PTH100 - links stay links
    folders = [os.path.relpath(spot.problem.where, root).replace(os.sep, "/") for spot in spots]
    words = [word for folder in folders[:20] for word in ("--set", f"{folder}=1")]
    return command("balance", str(asked.root), *words)


def _shorten(asked: Asked, spots: Sequence[Spot]) -> str:
    return asked.check("--shorten") if any(spot.text is not None for spot in spots) else ""


def _words(asked: Asked, spots: Sequence[Spot]) -> str:
    if not asked.root.is_dir():
        return ""
    folder = os.path.relpath(spots[0].problem.where, os.path.abspath(asked.root))  # noqa: PTH100
    inside = [] if folder == "." else ["--folder", folder.replace(os.sep, "/")]
    return command("caption", "edit", str(asked.root), *inside, "--ignore-case", "--replace", "WORD", "")


def _options(asked: Asked, spots: Sequence[Spot]) -> str:
    if all(spot.problem.mend == "use a point, not a comma" for spot in spots):
        return _fix(asked, spots)
    return _aside("bad-options")(asked, spots)


def _tiny(asked: Asked, spots: Sequence[Spot]) -> str:
    if 2 * len(spots) > asked.num_images:  # a set that is small as a whole is not mended by emptying it
        return ""
    return asked.check("--set-aside", "tiny-image")


_TO_TRASH = "moves these pictures to the trash, with their sidecars"
_TEXT_TO_TRASH = "moves these text files to the trash; their folders then train as if they were not there"
_CAPTION_WHY = (
    "Where no text stands beside a picture, its file name is its caption. A name that a camera gave would be"
    " learned as a word, so training refuses it."
)

KINDS: dict[str, Kind] = {
    "unreadable-image": Kind(
        one="1 picture can't be opened",
        many="{n} pictures can't be opened",
        why="They are damaged at the start, empty, or no pictures at all. A training would stop there.",
        mend=_aside("unreadable-image"),
        does=_TO_TRASH,
        by_hand="Fetch or export them again where you can.",
    ),
    "truncated-image": Kind(
        one="1 picture is cut off",
        many="{n} pictures are cut off",
        why="Their files end too early (a broken download, a full disk). The missing rows would train as grey.",
        mend=_aside("truncated-image"),
        does=_TO_TRASH,
        by_hand="Fetch or copy them again where you can.",
    ),
    "camera-name": Kind(
        one="1 picture has no caption but a camera's name",
        many="{n} pictures have no caption but a camera's name",
        why=_CAPTION_WHY,
        mend=_caption,
        does="writes your WORDS beside each of them, as its .txt",
        by_hand="Or rename them to what they show, or write a .txt of the same name beside each.",
    ),
    "no-caption": Kind(
        one="1 picture has no caption",
        many="{n} pictures have no caption",
        why="Their names begin with _, where the caption of a file name ends; and no text stands beside them.",
        mend=_caption,
        does="writes your WORDS beside each of them, as its .txt",
        by_hand="Or rename them to what they show.",
    ),
    "bad-encoding": Kind(
        one="1 text file can't be read",
        many="{n} text files can't be read",
        why="They are neither UTF-8 nor marked UTF-16, so what their letters mean can only be guessed.",
        mend=_aside("bad-encoding"),
        does=_TEXT_TO_TRASH,
        by_hand="Better: open them in an editor and save them as UTF-8.",
    ),
    "bad-options": Kind(
        one="1 option file can't be understood",
        many="{n} lines of option files can't be understood",
        why="What edkit can't read it never guesses: these folders don't train until it's mended.",
        mend=_options,
        does="mends decimal commas, where that is all; else it moves the text files to the trash",
        by_hand="Better: open the file at the line named and mend it.",
    ),
    "unreadable-folder": Kind(
        one="1 folder can't be read",
        many="{n} folders can't be read",
        why="Whatever is in them doesn't train.",
        by_hand="Give yourself the right to read them.",
    ),
    "not-unicode": Kind(
        one="1 name is not Unicode",
        many="{n} names are not Unicode",
        why="No caption, table or other machine could take these names, so the files and folders aren't read.",
        by_hand="Rename them. On Linux they are mostly Latin-1 of an old disk or archive: convmv mends many at once.",
    ),
    "unfinished-change": Kind(
        one="1 folder is in the midst of a change",
        many="{n} folders are in the midst of a change",
        why="Images without their names are not to be seen, and nothing of the set trains.",
        by_hand="Let the command that is at it end, and check again, with the --state-dir it had, if any. Where that"
        " state is lost: look at the .edkit-* files, and name them yourself.",
    ),
    "bad-row": Kind(
        one="1 row of the manifest is not understood",
        many="{n} rows of the manifest are not understood",
        why="These images never become samples.",
        by_hand='Mend the rows: each is {"image": path, ...}.',
    ),
    "missing-image": Kind(
        one="1 image of the manifest is not there",
        many="{n} images of the manifest are not there",
        why="The manifest names files that don't exist.",
        by_hand="Mend the paths, or remove the rows.",
    ),
    # ---- warnings
    "head-cut": Kind(
        one="1 head would be cut by the crop",
        many="{n} heads would be cut by the crop",
        why="Training scales a picture to its bucket and cuts off what stands over (shaded). Cut heads are learned.",
        mend=_aside("head-cut"),
        does=_TO_TRASH,
        by_hand="Better: crop them yourself, nearer to a bucket's shape, with the head inside.",
    ),
    "near-duplicate": Kind(
        one="1 picture has near-duplicates",
        many="{n} groups of near-duplicates",
        why="A picture that stands in a set five times is learned five times as hard, flaws and background too.",
        mend=_dedupe,
        does="keeps the best of each group and moves the others to the trash",
    ),
    "burst": Kind(
        one="1 burst of pictures",
        many="{n} bursts of pictures",
        why="Shot within seconds, they show the same moment: it is learned as hard as they are many.",
        mend=_aside("burst"),
        does="keeps the sharpest of each burst and moves the others to the trash",
        by_hand="Or pick the ones that differ most, by eye.",
    ),
    "tiny-image": Kind(
        one="1 picture is too small",
        many="{n} pictures are too small",
        why="Smaller than what they are trained at: they train at three quarters or half of it, and teach softness.",
        mend=_tiny,
        does=_TO_TRASH,
        by_hand="Better: find larger copies; where most are small, train at a lower resolution (--resolution 512).",
    ),
    "extreme-aspect": Kind(
        one="1 picture is too long or too tall",
        many="{n} pictures are too long or too tall",
        why="No bucket goes beyond 4:1; what stands over is cut off (shaded).",
        mend=_filter("0.25 <= aspect <= 4"),
        does=_TO_TRASH,
        by_hand="Better: crop them to the part that matters.",
    ),
    "caption-cut": Kind(
        one="1 caption is longer than the model reads",
        many="{n} captions are longer than the model reads",
        why="The text encoder stops at its token limit. What stands after it is never seen by the training.",
        mend=_shorten,
        does="cuts the caption files at the last whole word that is read",
        by_hand="Better: shorten them yourself, or move what matters to the front.",
    ),
    "mislabelled-image": Kind(
        one="1 picture's ending is wrong",
        many="{n} pictures' endings are wrong",
        why="edkit reads by content, but other tools go by the name and fail, or skip the file.",
        mend=_fix,
        does="gives each the ending of what it is; nothing is encoded anew",
    ),
    "double-ending": Kind(
        one="1 option file has a name that is not read",
        many="{n} option files have names that are not read",
        why="Editors add .txt without showing it: a multiply.txt.txt says nothing to anyone.",
        mend=_fix,
        does="gives each the name that is read",
    ),
    "clashing-names": Kind(
        one="1 pair of names differs in case alone",
        many="{n} pairs of names differ in case alone",
        why="Windows and macOS take them for one file: copy the set there and one of the two is lost.",
        mend=_fix,
        does="gives the second image of each pair a number, its sidecars with it",
    ),
    "shared-sidecar": Kind(
        one="1 caption file belongs to several images",
        many="{n} caption files belong to several images",
        why="Change the caption of one picture, and the other's changes with it.",
        mend=_fix,
        does="gives each image a name and a copy of the caption of its own",
    ),
    "sidecar-without-image": Kind(
        one="1 caption file has no image",
        many="{n} caption files have no image",
        why="An image was renamed or removed without its caption, or the caption's name has a typing error.",
        mend=_aside("sidecar-without-image"),
        does="moves these text files to the trash",
        by_hand="Look first whether an image beside it lost its caption.",
    ),
    "main-prompt-twice": Kind(
        one="1 place gives more than one caption",
        many="{n} places give more than one caption",
        why="Only the strongest is used: .yaml before .caption before .txt, the image's before the folder's.",
        mend=_aside("main-prompt-twice"),
        does="moves the caption files that aren't used to the trash",
        by_hand="Look first whether the right one is used.",
    ),
    "said-twice": Kind(
        one="1 option is said twice",
        many="{n} options are said twice",
        why="multiply.txt and its kin win over local.yaml.",
        by_hand="Keep one of them.",
    ),
    "multiply-zero": Kind(
        one="1 folder is left out of training",
        many="{n} folders are left out of training",
        why="Their multiply is 0.",
        mend=_multiply,
        does="trains each of their images once an epoch",
        by_hand="Nothing to do if that is what you meant.",
    ),
    "option-without-images": Kind(
        one="1 option file stands in a folder without images",
        many="{n} option files stand in folders without images",
        why="multiply.txt and local.yaml hold for their own folder alone, not for those below.",
        mend=_aside("option-without-images"),
        does="moves these option files to the trash",
        by_hand="Move it beside the images, or use global.yaml, which holds for all below.",
    ),
    "image-twice": Kind(
        one="1 image comes more than once",
        many="{n} images come more than once",
        why="Each time counts: it trains that much more often.",
        by_hand="Use multiply to say so, or remove the repeats.",
    ),
    "prose-shuffled": Kind(
        one="1 folder shuffles sentences as if they were tags",
        many="{n} folders shuffle sentences as if they were tags",
        why="Shuffled at their commas, sentences turn to nonsense.",
        by_hand="Say `caption_style: prose` in local.yaml, or turn shuffle_tags off.",
    ),
    "empty-tag": Kind(
        one="1 empty tag", many="{n} empty tags", why="They were left out.", by_hand="Remove them from the list."
    ),
    # ---- notes
    "common-words": Kind(
        one="Words of nearly every caption",
        many="Words of nearly every caption",
        why=(
            "What every caption says can't be told apart from the subject: it is learned with it. Good for the"
            " subject's name; not for “photo”, a place or a colour that should stay free."
        ),
        level="note",
        mend=_words,
        does="takes WORD out of these captions",
        by_hand="Leave the subject's name, and take out what isn't part of it; or add pictures without it.",
    ),
    "marked-text": Kind(
        one="1 text file is UTF-16 or begins with a mark",
        many="{n} text files are UTF-16 or begin with a mark",
        why="edkit reads them. Other trainers read a stray character at the start, or nothing.",
        level="note",
        mend=_fix,
        does="writes the same text as plain UTF-8",
    ),
}
"""Every kind of finding, in the order in which they are told within their level."""

_OPTIONS = ("bad-number", "bad-value", "bad-yaml", "unknown-key", "key-twice", "missing-caption-file")
_KIND_OF = dict.fromkeys(_OPTIONS, "bad-options")
_PLACE = re.compile(r":\d+$|, row \d+$")


def kind_of(problem: Problem) -> str:
    """The kind a problem belongs to."""
    return _KIND_OF.get(problem.code, problem.code)


def file_of(where: str) -> Path:
    """The file a problem's place names, without its line."""
    return Path(_PLACE.sub("", where))


def place_of(problem: Problem, root: Path) -> str:
    """The place of a problem as a person reads it: relative to the data root, with its line."""
    file = file_of(problem.where)
    here = str(root) if file == Path(os.path.abspath(root)) else shown(file, root)  # noqa: PTH100
    return here + problem.where.removeprefix(str(file))


def grouped(spots: Iterable[Spot], asked: Asked) -> list[tuple[Finding, list[Spot]]]:
    """The findings, errors first, then in the order of `KINDS`, each with its places."""
    by_kind: dict[tuple[Level, str], list[Spot]] = {}
    for spot in spots:
        name = kind_of(spot.problem)
        kind = KINDS.get(name)
        level: Level = spot.problem.level if kind is None or kind.level is None else kind.level
        by_kind.setdefault((level, name), []).append(spot)
    order = {name: i for i, name in enumerate(KINDS)}
    levels: Mapping[Level, int] = {"error": 0, "warning": 1, "note": 2}
    found = []
    for (level, name), members in sorted(
        by_kind.items(), key=lambda item: (levels[item[0][0]], order.get(item[0][1], len(order)), item[0][1])
    ):
        found.append((_finding(name, level, members, asked), members))
    return found


_FEW = 3  # places that a finding names


def _finding(name: str, level: Level, spots: Sequence[Spot], asked: Asked) -> Finding:
    kind = KINDS.get(name)
    n = len(spots)
    first = tuple(f"{place_of(spot.problem, asked.root)}: {spot.problem.what}" for spot in spots[:_FEW])
    if kind is None:  # a reader's new kind of problem: told in its own words
        problem = spots[0].problem
        return Finding(
            kind=name,
            level=level,
            count=n,
            title=problem.what,
            why="",
            mend="",
            does="",
            by_hand=problem.mend,
            first=first,
        )
    mend = kind.mend(asked, spots) if kind.mend is not None else ""
    return Finding(
        kind=name,
        level=level,
        count=n,
        title=kind.one if n == 1 else kind.many.format(n=f"{n:,}"),
        why=kind.why,
        mend=mend,
        does=kind.does if mend else "",
        by_hand=kind.by_hand,
        first=first,
    )
