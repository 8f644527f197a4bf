"""What a person wrote beside the images: caption texts, option files, YAML and manifest rows, read strictly.

Every reader gives what was said and a list of problems with file and line; it never raises for content, and
never guesses. A value that is wrong is a problem of level "error" and counts as not said.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from edkit.data.errors import BadInput, Problem
from edkit.data.names import is_safe_path
from edkit.data.sample import NOTHING_SAID, Options, Tag

SIDECAR_SUFFIXES = (".yaml", ".yml", ".caption", ".txt")
"""Endings of an image's sidecars, strongest first."""

NUMBER_FILES = ("multiply", "cond_dropout", "flip_p", "loss_scale")
FOLDER_FILES = frozenset(
    {f"{name}.txt" for name in (*NUMBER_FILES, "batch_id", "shuffle_tags")} | {"local.yaml", "global.yaml"}
)
"""Names (lower case) that say something about a folder rather than about an image."""


def sidecar_name(stem: str) -> str:
    """The name of the caption text for an image's stem (`multiply.txt` would be an option of the folder)."""
    plain = f"{stem}.txt"
    return f"{stem}.caption" if plain.lower() in FOLDER_FILES or stem.lower() in FOLDER_FILES else plain


MAX_MULTIPLY = 10_000
_MAX_TEXT_BYTES = 1 << 20
_MAX_NODES = 20_000
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_CAPTION_KEYS = ("main_prompt", "tags", "caption")
_OPTION_KEYS = (
    *("rating", "max_caption_length", "multiply", "cond_dropout", "flip_p", "shuffle_tags", "batch_id"),
    *("loss_scale", "keep_tags", "caption_style"),
)
KEYS = (*_CAPTION_KEYS, *_OPTION_KEYS)
"""Keys of a YAML sidecar, of `local.yaml`, `global.yaml` and of a manifest's rows (there with `image`)."""


@dataclass(frozen=True, slots=True)
class Words:
    """What one source says towards a caption: a whole text, or a main prompt, and tags of its own.

    `prompt` is None where it says no main prompt (an empty one is a word too); `is_text`: the prompt is a
    whole caption text, which is split only where tags must move. `more` are further main prompts, which
    lose.
    """

    prompt: str | None = None
    is_text: bool = False
    tags: tuple[Tag, ...] = ()
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What one file or manifest row says: towards the caption, and as options."""

    words: Words = field(default_factory=Words)
    options: Options = NOTHING_SAID
    problems: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = ()  # caption files it names, and those that they name


def read_text(path: Path) -> str:
    """A file's text: UTF-8 or UTF-16 with a byte-order mark, or UTF-8 without.

    Raises BadInput naming the file, and the line where the bytes stop making sense.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4096)
            if len(data) == 4096:  # room for a megabyte costs more than reading what most captions need
                data += file.read(_MAX_TEXT_BYTES + 1 - len(data))
    except OSError as error:
        raise BadInput(f"can't be read: {(error.strerror or str(error)).lower()}", where=str(path)) from error
    if len(data) > _MAX_TEXT_BYTES:
        raise BadInput("over 1 MB: this is no caption or option file", where=str(path), mend="move it")
    return decode(data, str(path))


def decode(data: bytes, where: str) -> str:
    """Bytes of a text file as text, its byte-order mark taken off. Raises BadInput as `read_text` does."""
    encoding, start = "utf-8", 0
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            encoding, start = name, len(mark)
            break
    mend = "save it as UTF-8"
    try:
        text = data[start:].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: start + error.start].count(b"\n") + 1
        what = f"broken {encoding.upper()} (byte 0x{data[start + error.start]:02X})"
        raise BadInput(what, where=f"{where}:{line}", mend=mend) from error
    if "\0" in text:
        raise BadInput("holds NUL characters (UTF-16 without a byte-order mark?)", where=where, mend=mend)
    return text.lstrip("\ufeff")  # some editors write the mark twice


def one_line_text(text: str) -> str:
    """A caption's or name's text on one line, without outer white space."""
    text = text.replace("\t", " ").strip()
    lines = text.splitlines()
    return text if len(lines) <= 1 else " ".join(line.strip() for line in lines if line.strip())


def caption_words(text: str) -> Words:
    """What a caption file's text says; an empty one says an empty caption."""
    return Words(one_line_text(text), True)


# ---- folder option files


def read_option_file(path: Path) -> Said:
    """A folder's `multiply.txt`, or one of its kin (numbers, `batch_id.txt`, `shuffle_tags.txt`)."""
    key = path.name.lower().removesuffix(".txt")
    if key == "shuffle_tags":
        return Said(options=Options(shuffle_tags=True))
    try:
        text = one_line_text(read_text(path))
    except BadInput as error:
        return Said(problems=(_problem("bad-encoding", error),))
    collect = _Collector(str(path))
    node = _Node(text, text, f"{path}:1")
    options = collect.options({key: node})
    return Said(options=options, problems=tuple(collect.problems))


# ---- YAML and JSON, brought to one form


@dataclass(frozen=True, slots=True)
class _Node:
    """A value with its source text and place: None, bool, str, Decimal, list[_Node] or dict[str, _Node]."""

    value: Any
    raw: str
    where: str


def read_yaml(path: Path) -> Said:
    """A YAML sidecar, `local.yaml` or `global.yaml`."""
    try:
        text = read_text(path)
    except BadInput as error:
        return Said(problems=(_problem("bad-encoding", error),))
    return said_from_yaml(text, path)


def said_from_yaml(text: str, path: Path, *, _depth: int = 0) -> Said:
    """What a YAML text says; `path` is where it stands, for messages and for caption files beside it."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    collect = _Collector(str(path), folder=path.parent, depth=_depth)
    try:
        root = yaml.compose(text, Loader=loader)
        if root is None:
            return Said()
        node = _from_yaml(root, str(path), collect)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        what = f"not valid YAML: {error.problem or error.context or 'can not be parsed'}"
        return Said(problems=(Problem(level="error", code="bad-yaml", where=f"{path}{line}", what=what),))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = f"not valid YAML: {error or type(error).__name__}"
        return Said(problems=(Problem(level="error", code="bad-yaml", where=str(path), what=what),))
    return collect.said(node)


def said_from_row(row: dict[str, Any], manifest: Path, number: int) -> Said:
    """What a manifest's row says besides its `image`; numbers must come as Decimal. Rows count from 1."""
    where = f"{manifest}, row {number}"
    collect = _Collector(where, folder=manifest.parent, extra_keys=("image",))
    try:
        node = _from_json({k: v for k, v in row.items() if k != "image"}, where)
    except UnicodeEncodeError:
        collect.error("bad-value", where, "a text holds half a character (a lone surrogate)", "mend it")
        node = _Node(None, "", where)
    return collect.said(node)


def _from_yaml(root: Any, file: str, collect: _Collector) -> _Node:
    import yaml

    budget = _MAX_NODES
    constructor = yaml.SafeLoader("")

    def convert(node: Any, depth: int) -> _Node:
        nonlocal budget
        budget -= 1
        # aliases may unfold one small file into billions of values, or into itself
        if budget < 0 or depth > 8:
            raise ValueError("too many or too deeply nested values")
        where = f"{file}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.SequenceNode):
            return _Node([convert(child, depth + 1) for child in node.value], "", where)
        if isinstance(node, yaml.MappingNode):
            items: dict[str, _Node] = {}
            for key_node, value_node in node.value:
                key_where = f"{file}:{key_node.start_mark.line + 1}"
                if not isinstance(key_node, yaml.ScalarNode):
                    collect.error("bad-yaml", key_where, "a key must be a word")
                    continue
                if key_node.value in items:
                    collect.error("key-twice", key_where, f"{key_node.value} is said twice", "keep one")
                items[key_node.value] = convert(value_node, depth + 1)
            return _Node(items, "", where)
        raw = str(node.value)
        value: object = raw
        if node.tag == "tag:yaml.org,2002:null":
            value = None
        elif node.tag == "tag:yaml.org,2002:bool":
            value = constructor.bool_values.get(raw.lower(), raw)  # `!!bool foo` stays text
        elif node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            # the written digits, so that 0.1 is a tenth; odd notations (0x10, .nan, 1_000) stay text
            value = Decimal(raw) if _PLAIN_NUMBER.fullmatch(raw) else raw
        return _Node(value, raw, where)

    return convert(root, 0)


def _from_json(value: Any, where: str) -> _Node:
    if isinstance(value, dict):
        return _Node({str(k): _from_json(v, where) for k, v in value.items()}, "", where)
    if isinstance(value, list):
        return _Node([_from_json(v, where) for v in value], "", where)
    if isinstance(value, bool) or value is None:
        return _Node(value, str(value).lower(), where)
    if isinstance(value, int | float):
        value = Decimal(str(value))
    text = str(value)
    text.encode()  # JSON can say half a character; no file and no tokenizer takes it
    return _Node(value, text, where)


class _Collector:
    """Turns nodes into what was said, and gathers the problems on the way."""

    def __init__(
        self, where: str, *, folder: Path | None = None, depth: int = 0, extra_keys: tuple[str, ...] = ()
    ) -> None:
        self.where, self.folder, self.depth, self.keys = where, folder, depth, (*KEYS, *extra_keys)
        self.problems: list[Problem] = []
        self.files: list[Path] = []

    def error(self, code: str, where: str, what: str, mend: str = "") -> None:
        self.problems.append(Problem(level="error", code=code, where=where, what=what, mend=mend))

    def warn(self, code: str, where: str, what: str, mend: str = "") -> None:
        self.problems.append(Problem(level="warning", code=code, where=where, what=what, mend=mend))

    def said(self, node: _Node) -> Said:
        if node.value is None:
            return Said(problems=tuple(self.problems))
        if not isinstance(node.value, dict):
            self.error("bad-yaml", node.where, "must hold `key: value` lines", f"caption: {node.raw[:40]}")
            return Said(problems=tuple(self.problems))
        words, options = self.mapping(node.value, 0)
        return Said(words=words, options=options, problems=tuple(self.problems), files=tuple(self.files))

    def mapping(self, items: dict[str, _Node], nested: int) -> tuple[Words, Options]:
        from difflib import get_close_matches

        for key in items.keys() - set(self.keys):
            near = get_close_matches(key.lower(), self.keys, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(self.keys)}"
            self.error("unknown-key", items[key].where, f"unknown key {key!r}", mend)
        options = self.options({k: v for k, v in items.items() if k in _OPTION_KEYS})
        prompts = list(self.prompts(items["main_prompt"])) if "main_prompt" in items else []
        tags = tuple(self.tags(items["tags"])) if "tags" in items else ()
        words = Words(prompts[0] if prompts else None, False, tags, tuple(prompts[1:]))
        if "caption" in items:
            inner, inner_options = self.caption(items["caption"], nested)
            options = options.over(inner_options)
            words = _merge(words, inner)
        return words, options

    def caption(self, node: _Node, nested: int) -> tuple[Words, Options]:
        if node.value is None:
            return Words(), NOTHING_SAID
        if isinstance(node.value, dict):
            if nested >= 3:
                self.error("bad-value", node.where, "caption is nested too deeply")
                return Words(), NOTHING_SAID
            return self.mapping(node.value, nested + 1)
        if isinstance(node.value, list):
            self.error("bad-value", node.where, "caption must be text, not a list", "use main_prompt and tags")
            return Words(), NOTHING_SAID
        text = one_line_text(node.raw)
        if os.path.splitext(text)[1].lower() in SIDECAR_SUFFIXES and self.folder is not None:  # noqa: PTH122
            if not is_safe_path(text):
                self.error("bad-value", node.where, f"{text} leads out of its folder", "name a file beside this one")
                return Words(), NOTHING_SAID
            said = self.caption_file(self.folder / text, node.where)
            self.problems += said.problems
            self.files += said.files
            return said.words, said.options
        return Words(text, True), NOTHING_SAID

    def caption_file(self, path: Path, where: str) -> Said:
        """The file that a `caption` names; a path is only ever looked for here."""
        if not os.path.isfile(path):  # noqa: PTH113 - a name too long for the disk is not there, and raises nothing
            self.error("missing-caption-file", where, f"{path} is not there", "mend the path")
            return Said()
        if self.depth >= 4:
            self.error("bad-value", where, "caption files name each other in a circle")
            return Said()
        try:
            text = read_text(path)
        except BadInput as error:
            self.problems.append(_problem("bad-encoding", error))
            return Said()
        if path.suffix.lower() in (".yaml", ".yml"):
            said = said_from_yaml(text, path, _depth=self.depth + 1)
            return replace(said, files=(path, *said.files))
        return Said(words=caption_words(text), files=(path,))

    def prompts(self, node: _Node) -> Iterator[str]:
        for item in node.value if isinstance(node.value, list) else [node]:
            if isinstance(item.value, list | dict):
                self.error("bad-value", item.where, "main_prompt must be text or a list of texts")
            elif item.value is not None:
                yield one_line_text(item.raw)

    def tags(self, node: _Node) -> Iterator[Tag]:
        if node.value is None:
            return
        if isinstance(node.value, dict):
            self.error("bad-value", node.where, "tags must be a list", "write them as [one, two]")
            return
        if not isinstance(node.value, list):
            # one text: as in a caption, comma plus space stands between tags
            pieces = one_line_text(node.raw).split(", ")
            yield from (Tag(tag) for piece in pieces if (tag := piece.strip(" ,")))
            return
        for item in node.value:
            if item.value is None:
                self.warn("empty-tag", item.where, "an empty tag was left out")
            elif isinstance(item.value, list):
                self.error("bad-value", item.where, "a tag must be text or {tag: ..., weight: ...}")
            elif isinstance(item.value, dict):
                if weighted := self.weighted(item):
                    yield weighted
            elif text := one_line_text(item.raw):
                yield Tag(text)

    def weighted(self, node: _Node) -> Tag | None:
        items: dict[str, _Node] = node.value
        for key in items.keys() - {"tag", "weight"}:
            self.error("unknown-key", items[key].where, f"unknown key {key!r} in a tag", "known keys: tag, weight")
        text = items.get("tag")
        if text is None or text.value is None or isinstance(text.value, list | dict) or not text.raw.strip():
            self.error("bad-value", node.where, "a weighted tag needs its text", "{tag: red hair, weight: 2}")
            return None
        weight = items.get("weight")
        if weight is None or weight.value is None:
            return Tag(one_line_text(text.raw))
        number = self.number("weight", weight, low=0.0)
        return Tag(one_line_text(text.raw), 1.0 if number is None else float(number))

    # -- options

    def options(self, items: dict[str, _Node]) -> Options:
        readers: dict[str, Callable[[str, _Node], object]] = {
            "multiply": self.multiply,
            "cond_dropout": lambda k, n: self.real(k, n, low=0.0, high=1.0),
            "flip_p": lambda k, n: self.real(k, n, low=0.0, high=1.0),
            "loss_scale": self.real,
            "rating": self.real,
            "max_caption_length": lambda k, n: self.whole(k, n, low=1),
            "keep_tags": lambda k, n: self.whole(k, n, low=0),
            "shuffle_tags": self.truth,
            "batch_id": self.name,
            "caption_style": self.style,
        }
        given = {key: readers[key](key, node) for key, node in items.items() if node.value is not None}
        return replace(NOTHING_SAID, **given) if given else NOTHING_SAID  # type: ignore[arg-type]

    def number(self, key: str, node: _Node, *, low: float = -math.inf, high: float = math.inf) -> Decimal | None:
        text = node.raw.strip() if isinstance(node.value, str | Decimal) else ""
        mend = "use a point, not a comma" if re.fullmatch(r"[+-]?\d*,\d+", text) else ""
        if not _PLAIN_NUMBER.fullmatch(text):
            what = f"{key} is empty" if node.value == "" else f"{key} must be a number, not {_shown(node)}"
            self.error("bad-number", node.where, what, mend or "write a plain number such as 0.5")
            return None
        number = Decimal(text)
        if math.isinf(float(number)):
            self.error("bad-number", node.where, f"{key} is {text}", "write a plain number such as 0.5")
            return None
        if not low <= number <= high:
            span = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            self.error("bad-number", node.where, f"{key} is {text}", f"it must be {span}")
            return None
        return number

    def multiply(self, key: str, node: _Node) -> Decimal | None:
        return self.number(key, node, low=0.0, high=MAX_MULTIPLY)

    def real(self, key: str, node: _Node, *, low: float = -math.inf, high: float = math.inf) -> float | None:
        number = self.number(key, node, low=low, high=high)
        return None if number is None else float(number)

    def whole(self, key: str, node: _Node, *, low: int) -> int | None:
        number = self.number(key, node, low=low)
        if number is not None and number != int(number):
            self.error("bad-number", node.where, f"{key} is {node.raw.strip()}", "it must be a whole number")
            return None
        return None if number is None else int(number)

    def truth(self, key: str, node: _Node) -> bool | None:
        if isinstance(node.value, bool):
            return node.value
        self.error("bad-value", node.where, f"{key} must be true or false, not {_shown(node)}")
        return None

    def name(self, key: str, node: _Node) -> str | None:
        text = one_line_text(node.raw) if not isinstance(node.value, list | dict) else ""
        if not text:
            self.error("bad-value", node.where, f"{key} must be a name", "write one, or remove it")
            return None
        return text

    def style(self, key: str, node: _Node) -> str | None:
        if node.value in ("tags", "prose"):
            return str(node.value)
        self.error("bad-value", node.where, f"{key} must be tags or prose, not {_shown(node)}")
        return None


def _merge(first: Words, second: Words) -> Words:
    """Two words of one source as one: the first prompt leads, the tags join."""
    if first.prompt is None:
        # prompt of the second, tags of both
        return Words(second.prompt, second.is_text, first.tags + second.tags, second.more)
    more = first.more if second.prompt is None else (*first.more, second.prompt, *second.more)
    return Words(first.prompt, first.is_text, first.tags + second.tags, more)


def _shown(node: _Node) -> str:
    if isinstance(node.value, list):
        return "a list"
    return "a mapping" if isinstance(node.value, dict) else repr(node.raw[:40])


def _problem(code: str, error: BadInput) -> Problem:
    return Problem(level="error", code=code, where=error.where or "", what=error.what, mend=error.mend or "")
