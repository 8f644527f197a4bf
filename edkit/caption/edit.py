"""`caption edit`: words and tags changed in every caption that has them, wherever the caption stands."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.caption.folder import Wanted, plan_folder
from edkit.caption.sources import (
    FolderOfImages,
    Left,
    Pictured,
    Source,
    chosen_folder,
    folder_at,
    folders_of,
    whole,
)
from edkit.data.errors import BadInput, UsageError
from edkit.data.options import Words, one_line_text, said_from_yaml
from edkit.data.progress import SILENT, Progress
from edkit.data.sample import Tag
from edkit.data.yaml_text import CantEdit, Edits, Entry, edited

if TYPE_CHECKING:
    from edkit.data.journal import Change

Order = Literal["count", "name"]

_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts without spaces
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What is to become of each caption; carried out in the order of the fields."""

    replace: tuple[tuple[str, str], ...] = ()  # whole words or phrases, and what stands for them
    regex: tuple[tuple[str, str], ...] = ()  # patterns, and what stands for them (\\1 is the first group)
    rename_tags: tuple[tuple[str, str], ...] = ()
    drop_tags: tuple[str, ...] = ()
    add_tags: tuple[str, ...] = ()
    dedupe_tags: bool = False
    sort_tags: Order | None = None
    prepend: str = ""
    append: str = ""
    ignore_case: bool = False  # of words, patterns and tags that are looked for
    counts: Mapping[str, int] = field(default_factory=dict)  # how often each tag comes, for sorting

    def __post_init__(self) -> None:
        given = [self.prepend, self.append, *self.drop_tags, *self.add_tags]
        given += [text for pair in (*self.replace, *self.regex, *self.rename_tags) for text in pair]
        for text in given:
            if not _is_unicode(text):
                raise UsageError(f"not Unicode: {text!a}", mend="type it in UTF-8")
        for option, old in (
            *(("--replace", old) for old, _ in self.replace),
            *(("--regex", old) for old, _ in self.regex),
            *(("--rename-tag", old) for old, _ in self.rename_tags),
            *(("--drop-tag", old) for old in self.drop_tags),
            *(("--add-tag", new) for new in self.add_tags),
            *(("--rename-tag", new) for _, new in self.rename_tags),
        ):
            if not old.strip():
                raise UsageError("an empty text", where=option)
        for tag in (*self.add_tags, *(new for _, new in self.rename_tags)):
            if ", " in tag or tag.strip(" ,") != tag or "\n" in tag:
                raise UsageError(f"{tag!r} is not one tag", mend="give each tag an option of its own")
        for pattern, new in self.regex:
            try:
                re.compile(pattern)
                re.compile(f"{pattern}|").sub(new, "")  # it matches here, so the groups in `new` are looked at
            except (re.error, IndexError) as error:
                raise UsageError(f"not a regular expression: {error}", where=f"--regex {pattern!r} {new!r}") from error

    @property
    def says_nothing(self) -> bool:
        """Whether it would change no caption at all."""
        return not (self.words_or_tags or self.add_tags or self.prepend or self.append)

    @property
    def words_or_tags(self) -> bool:
        """Whether it changes something besides the ends of captions."""
        texts = self.replace or self.regex or self.rename_tags or self.drop_tags
        return bool(texts or self.dedupe_tags or self.sort_tags)

    # -- words

    def wording(self, text: str) -> str:
        """A text with its words replaced; as it was where none is found."""
        before = unicodedata.normalize("NFC", text)
        after, emptied = before, False
        flags = re.IGNORECASE if self.ignore_case else 0
        for old, new in self.replace:
            after, count = _word_pattern(old, flags).subn(lambda _, new=new: new, after)  # type: ignore[misc]
            emptied = emptied or (count > 0 and not new.strip())
        for pattern, new in self.regex:
            after, count = re.subn(pattern, new, after, flags=flags)
            emptied = emptied or (count > 0 and not new.strip())
        if after == before:
            return text
        return one_line_text(_tidy(after) if emptied else after)

    def tag(self, text: str) -> str:
        """A single tag under its new name."""
        text = self.wording(text)
        for old, new in self.rename_tags:
            if self._same(text, old):
                text = new
        return text

    def _same(self, one: str, other: str) -> bool:
        return self._key(one) == self._key(other)

    def _key(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.strip())
        return text.casefold() if self.ignore_case else text

    # -- lists of tags

    def listed(self, entries: list[Entry]) -> list[Entry]:
        """A list of tags after the edit, without what is added."""
        new: list[Entry] = []
        dropped = {self._key(tag) for tag in self.drop_tags}
        targets = {self._key(target) for _, target in self.rename_tags}
        seen: set[str] = set()
        for entry in entries:
            text = self.tag(entry.tag.text)
            again = text in seen and (self._key(text) in targets or text != entry.tag.text)
            if not text.strip(" ,") or self._key(text) in dropped or again:
                continue
            if self.dedupe_tags and text.casefold() in seen:
                continue
            seen |= {text, text.casefold()} if self.dedupe_tags else {text}
            new.append(entry if text == entry.tag.text else Entry(Tag(text, entry.tag.weight), entry.old))
        if self.sort_tags == "name":
            new.sort(key=lambda entry: (entry.tag.text.casefold(), entry.tag.text))
        elif self.sort_tags == "count":
            new.sort(key=lambda e: (-self.counts.get(e.tag.text, 0), e.tag.text.casefold(), e.tag.text))
        return new

    # -- whole texts

    def prompt(self, text: str, *, leads: bool) -> str:
        """A main prompt that stands beside its tags."""
        text = self.tag(text)
        return self._ends(text, self.prepend, "" if self.appended_tags else self.append) if leads else text

    def text(self, text: str, *, leads: bool, prose: bool, add: Sequence[str]) -> str:
        """A whole caption text: main prompt and tags in one."""
        text = self.wording(text)
        if not prose and (add or self.rename_tags or self.drop_tags or self.dedupe_tags or self.sort_tags):
            pieces = [piece.strip().rstrip(",").rstrip() for piece in text.split(", ")]
            new = self._pieces(pieces, add)
            text = text if new == pieces else ", ".join(new)
        return self._ends(text, self.prepend, self.append) if leads else text

    def _pieces(self, pieces: list[str], add: Sequence[str]) -> list[str]:
        unworded = replace(self, replace=(), regex=())  # the words were replaced in the whole text
        main = unworded.tag(pieces[0])
        tags = [entry.tag.text for entry in unworded.listed([Entry(Tag(p), i) for i, p in enumerate(pieces[1:])])]
        if self.dedupe_tags or main != pieces[0]:
            tags = [tag for tag in tags if tag.casefold() != main.casefold()]
        tags += [tag for tag in add if tag not in (main, *tags)]
        # booru captions are tags from their first word on: that one can go where another takes its place
        if tags and any(self._same(main, tag) for tag in self.drop_tags):
            main, *tags = tags
        return [main, *tags]

    @property
    def appended_tags(self) -> tuple[str, ...]:
        """The tags that `append` gives, where it begins with a comma."""
        if not self.append.startswith(", "):
            return ()
        return tuple(tag for piece in self.append.split(", ") if (tag := piece.strip(" ,")))

    @staticmethod
    def _ends(text: str, prepend: str, append: str) -> str:
        if prepend and not prepend[-1].isspace() and text:
            prepend += " "
        if append and text and not (append[0].isspace() or append[0] in ",.;:!?"):
            append = f" {append}"
        return one_line_text(prepend + text + append)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionChange:
    """One image whose caption changes."""

    path: str  # of the image as it was, below the root
    before: str  # with all tags
    after: str
    where: str  # the file that gives the caption: "file name", or a sidecar's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What `caption_edit` did, or on a dry run would do."""

    root: Path
    num_images: int
    num_chosen: int  # that --where and --folder leave
    num_changed: int
    num_renamed: int  # images that got another file name
    num_files: int  # sidecars written
    left: tuple[Left, ...]
    notes: tuple[str, ...]
    changes: tuple[CaptionChange, ...]
    operation: int | None
    dry_run: bool


def caption_edit(
    root: Path | str,
    *,
    replace: Sequence[tuple[str, str]] = (),
    regex: Sequence[tuple[str, str]] = (),
    prepend: str = "",
    append: str = "",
    add_tags: Sequence[str] = (),
    drop_tags: Sequence[str] = (),
    rename_tags: Sequence[tuple[str, str]] = (),
    sort_tags: Order | None = None,
    dedupe_tags: bool = False,
    where: str | None = None,
    folder: str | None = None,
    ignore_case: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> Edited:
    """Change words and tags in captions, as one operation that `undo` takes back.

    A caption is changed where it stands: in the file name (the image is renamed to `caption_(n)`), in a .txt
    or .caption, in a YAML sidecar, whose comments and options stay. What local.yaml and global.yaml say is
    shared by many images: it is told, never changed. `where` limits the edit to captions that have a word (or
    match a /pattern/), `folder` to one folder and those below it.

    Raises UsageError where nothing is to be done, or a pattern is none.
    """
    from edkit.data.catalog import Catalog
    from edkit.data.dataset import read
    from edkit.data.journal import apply

    edit = Edit(
        replace=tuple(replace),
        regex=tuple(regex),
        prepend=prepend,
        append=append,
        add_tags=tuple(add_tags),
        drop_tags=tuple(drop_tags),
        rename_tags=tuple(rename_tags),
        sort_tags=sort_tags,
        dedupe_tags=dedupe_tags,
        ignore_case=ignore_case,
    )
    if edit.says_nothing:
        raise UsageError("nothing to change", mend='say what: --replace "a man" "john doe", --add-tag, --prepend ...')
    root = folder_at(root)
    below = chosen_folder(root, folder)
    chosen = matcher(where)
    with Catalog.open(root, state_dir=state_dir, write=not dry_run, command=command, progress=progress) as catalog:
        dataset = read(root, sizes=False, catalog=catalog, progress=progress)
        dataset.must_be_whole()
        if not len(dataset):
            raise BadInput("no images in it", where=str(root))
        folders = [one for one in folders_of(dataset) if below is None or below in (one.path, *one.path.parents)]
        asked = {image.index for one in folders for image in one.images if chosen(image.whole)}
        if not asked and where is not None:
            progress.say(f"no caption has {where!r}")
        if edit.sort_tags == "count":
            edit = _with_counts(edit, [image for one in folders for image in one.images if image.index in asked])
        changes: list[Change] = []
        told: list[CaptionChange] = []
        left: list[Left] = []
        notes: list[str] = []
        num_renamed = 0
        with progress.task("editing", total=len(asked)) as advance:
            for one in folders:
                images = [image for image in one.images if image.index in asked]
                notes += _shared_notes(one, images, edit, root)
                planned, renamed = _edit_folder(one, images, edit, root, told, left)
                changes += planned
                num_renamed += renamed
                advance(len(images))
        applied = apply(catalog, changes, verb="caption edit", command=command, dry_run=dry_run, progress=progress)
    left += [Left(path=_path(change), reason=why) for change, why in applied.skipped]
    return Edited(
        root=root,
        num_images=len(dataset),
        num_chosen=len(asked),
        num_changed=len(told),
        num_renamed=num_renamed,
        num_files=sum(_is_write(change) for change in changes),
        left=tuple(left),
        notes=tuple(dict.fromkeys(notes)),
        changes=tuple(told),
        operation=applied.operation,
        dry_run=dry_run,
    )


def matcher(where: str | None) -> Callable[[str], bool]:
    """Whether a caption has a word or phrase, or matches a /regular expression/; case does not count."""
    if where is None:
        return lambda caption: True
    if not where.strip():
        raise UsageError("an empty text", where="--where")
    if len(where) > 2 and where.startswith("/") and where.endswith("/"):
        try:
            pattern = re.compile(where[1:-1], re.IGNORECASE)
        except re.error as error:
            raise UsageError(f"not a regular expression: {error}", where=f"--where {where}") from error
    else:
        pattern = _word_pattern(where, re.IGNORECASE)
    return lambda caption: pattern.search(unicodedata.normalize("NFC", caption)) is not None


def _word_pattern(word: str, flags: int) -> re.Pattern[str]:
    """Finds a word or phrase that is not a part of longer words."""
    word = unicodedata.normalize("NFC", word.strip())
    before = r"(?<!\w)" if _bounded(word[0]) else ""
    after = r"(?!\w)" if _bounded(word[-1]) else ""
    inner = r"\s+".join(re.escape(part) for part in word.split())
    return re.compile(before + inner + after, flags)


def _bounded(char: str) -> bool:
    """Whether words that end in this character end at a space or a sign."""
    return (char.isalnum() or char == "_") and not unicodedata.name(char, "").startswith(_SPACELESS)


def _tidy(text: str) -> str:
    """A text without the holes that removed words leave."""
    text = re.sub(r"\s{2,}", " ", text)
    text = re.sub(r"\s+(?=[,.;:!?])", "", text)
    text = re.sub(r"(?:,\s*)+(?=,)", "", text)
    return text.strip().removeprefix(",").removesuffix(",").strip()


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _with_counts(edit: Edit, images: Iterable[Pictured]) -> Edit:
    """The edit that knows how often each tag comes once the rest of it is done."""
    unsorted = replace(edit, sort_tags=None)
    counts: Counter[str] = Counter()
    for image in images:
        _, tags = image.caption.split(image.style)
        counts.update(entry.tag.text for entry in unsorted.listed([Entry(tag) for tag in tags]))
    return replace(edit, counts=counts)


# ---------------------------------------------------------------------- one folder


def _edit_folder(
    one: FolderOfImages,
    images: Sequence[Pictured],
    edit: Edit,
    root: Path,
    told: list[CaptionChange],
    left: list[Left],
) -> tuple[list[Change], int]:
    """The changes of one folder, and how many images they rename."""
    from edkit.data.journal import Write

    wanted: list[Wanted] = []
    writes: dict[Path, bytes] = {}
    for image in images:
        found = _edit_image(image, edit)
        if isinstance(found, Left):
            left.append(found)
            continue
        if found is None:
            continue
        named, contents, after = found
        told.append(
            CaptionChange(
                path=image.path.relative_to(root).as_posix(),
                before=image.whole,
                after=after,
                where="file name" if image.lead is None else image.lead.path.name,
            )
        )
        if named is not None and named != image.named:
            rewritten = {path.name: content for path, content in contents.items()}
            wanted.append(Wanted(name=image.path.name, caption=named, rewritten=rewritten, why="its edited caption"))
        else:
            writes.update(contents)
    # a sidecar that several images share goes with those that are renamed
    moving = {name for image in wanted for name in image.rewritten}
    changes: list[Change] = []
    if wanted:
        names = {image.name for image in wanted}
        others = [image.path.name for image in one.images if image.path.name not in names]
        changes = plan_folder(one.path, one.entries, wanted, others)
    written = {change.path for change in changes if isinstance(change, Write)}
    changes += [
        Write(path, content, "its edited caption")
        for path, content in writes.items()
        if path.name not in moving and path not in written
    ]
    return changes, len(wanted)


def _edit_image(image: Pictured, edit: Edit) -> tuple[str | None, dict[Path, bytes], str] | Left | None:
    """(caption of the file name or None, new contents of sidecars, caption after), or why not, or None: no change."""
    if image.missing:
        return Left(path=image.path, reason="it has no caption to edit")
    if image.problem is not None:
        return Left(path=image.path, reason=f"{Path(image.problem.where).name}: {image.problem.what}")
    prose = image.style == "prose"
    main, has = image.caption.split(image.style)
    there = {main, *(tag.text for tag in has)}
    add = tuple(tag for tag in dict.fromkeys(edit.add_tags) if tag not in there)
    lead = image.lead
    contents: dict[Path, bytes] = {}
    words: list[Words] = []
    try:
        for source in image.sidecars:
            new, content = _edit_source(source, edit, leads=source is lead, prose=prose, add=add)
            words.append(new)
            if content is not None:
                contents[source.path] = content
    except CantEdit as error:
        return Left(path=image.path, reason=f"{source.path.name} was left: {error}; edit it by hand")
    named = image.named
    if named is not None:
        if prose and add:
            return Left(path=image.path, reason="its caption is prose, which has no tags to add to")
        named = edit.text(named, leads=True, prose=prose, add=add)
    elif lead is None and (edit.prepend or edit.append or add) and not contents:
        return Left(
            path=image.path, reason=f"its caption comes from {image.shared[0].path.name}, which other images share"
        )
    after = image.with_words(named, words)
    if not contents and named == image.named:
        return None
    if not whole(after) and image.whole:
        return Left(path=image.path, reason="nothing would be left of its caption")
    if named is not None and not named:
        return Left(path=image.path, reason="nothing would be left of its main prompt")
    return named, contents, whole(after)


def _edit_source(
    source: Source, edit: Edit, *, leads: bool, prose: bool, add: tuple[str, ...]
) -> tuple[Words, bytes | None]:
    """A sidecar's words after the edit, and its new content (None: as it is)."""
    words = source.words
    if not source.is_yaml:
        if prose and add and leads:
            raise CantEdit("its caption is prose, which has no tags to add to")
        old = words.prompt or ""
        new = edit.text(old, leads=leads, prose=prose, add=add if leads else ())
        if new == old:
            return words, None
        ending = re.search(r"[\r\n]*\Z", source.text)
        return Words(new, True), _encoded(source.path, new + (ending[0] if ending else ""))
    if not source.text.strip():
        return words, None
    # in a YAML with a list of tags (or a bare main prompt) new tags stand in the list
    to_text = words.is_text and not words.tags
    listed = () if to_text or not leads else (*add, *(tag for tag in edit.appended_tags if not words.is_text))
    if leads and prose and to_text and add:
        raise CantEdit("its caption is prose, which has no tags to add to")

    def text(old: str) -> str:
        return edit.text(old, leads=leads, prose=prose, add=add if to_text and leads else ())

    def prompt(old: str) -> str:
        return edit.prompt(old, leads=leads)

    def other(old: str) -> str:
        return edit.prompt(old, leads=False)

    new_text = edited(
        source.text, Edits(prompt=prompt, other=other, text=text, tags=edit.listed, add=[*map(Tag, listed)])
    )
    if new_text == source.text:
        return words, None
    entries = edit.listed([Entry(tag, i) for i, tag in enumerate(words.tags)])
    tags = [entry.tag for entry in entries]
    tags += [Tag(tag) for tag in listed if all(tag != one.text for one in tags)]
    of_prompt = text if words.is_text else prompt
    new_prompt = None if words.prompt is None else of_prompt(words.prompt)
    meant = Words(new_prompt, words.is_text, tuple(tags), tuple(map(other, words.more)))
    said = said_from_yaml(new_text, source.path)
    if said.words != meant or said.options != source.options or said.problems:
        raise CantEdit("it is written in a way that can't be edited safely")
    return meant, _encoded(source.path, new_text)


def _encoded(path: Path, text: str) -> bytes:
    """A text in the encoding of the file it stands in."""
    head = path.read_bytes()[:3]
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return mark + text.encode(encoding)
    return text.encode("utf-8")


def _shared_notes(one: FolderOfImages, images: Sequence[Pictured], edit: Edit, root: Path) -> list[str]:
    """What the edit would change in files that many images share, and leaves."""
    if not images or not edit.words_or_tags:
        return []
    notes = []
    for source in images[0].shared:
        words = source.words
        said = [text for text in (words.prompt, *(tag.text for tag in words.tags)) if text]
        dropped = {tag.casefold() for tag in edit.drop_tags} if edit.ignore_case else set(edit.drop_tags)
        hit = [
            text
            for text in said
            if edit.tag(text) != text or (text.casefold() if edit.ignore_case else text) in dropped
        ]
        if hit:
            name = source.path.relative_to(root).as_posix()
            notes.append(f"{name} says {', '.join(map(repr, hit))} for many images: it was left, edit it by hand")
    return notes


def _path(change: Change) -> Path:
    from edkit.data.journal import Move

    return change.src if isinstance(change, Move) else change.path


def _is_write(change: Change) -> bool:
    from edkit.data.journal import Write

    return isinstance(change, Write)
