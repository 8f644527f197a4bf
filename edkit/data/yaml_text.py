"""Changing the words of a YAML sidecar and nothing else: comments, order, quoting and options stay.

The places of the values come from PyYAML's marks; the text between them is never touched. Whoever edits
reads the result again and compares it with what was meant, so that odd YAML is refused, not damaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkit.data.options import SIDECAR_SUFFIXES, one_line_text, said_from_yaml
from edkit.data.sample import Tag

Texts = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a list on its way through an edit: what it says, and which of the old ones it was."""

    tag: Tag
    old: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is to become of a sidecar's words: prompts, a whole caption text, lists of tags."""

    prompt: Texts = str  # of the main prompt that leads
    other: Texts = str  # of further main prompts
    text: Texts = str  # of a whole caption text
    tags: Callable[[list[Entry]], list[Entry]] = list
    add: Sequence[Tag] = ()  # tags to put at the end of its first list; a list is made where there is none


class CantEdit(Exception):
    """The YAML is written in a way that a change of its text could damage."""


_Change = tuple[int, int, str]  # from, to, new text


def edited(text: str, edits: Edits) -> str:
    """The YAML text with its words changed; CantEdit where that is not safe."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CantEdit("it is not valid YAML") from error
    if not isinstance(root, yaml.MappingNode):
        raise CantEdit("it holds no `key: value` lines")
    changes: list[_Change] = []
    listed = _mapping(text, root, edits, changes, leads=True)
    if edits.add and not listed:
        _add_key(text, root, f"tags: [{', '.join(_new_tag(tag, flow=True) for tag in edits.add)}]", changes)
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _mapping(text: str, node: Any, edits: Edits, changes: list[_Change], *, leads: bool) -> bool:
    """Gather the changes of one mapping's words; returns whether it holds a list of tags."""
    import yaml

    values = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    listed = False
    if "main_prompt" in values:
        value = values["main_prompt"][1]
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for item in items:
            if isinstance(item, yaml.ScalarNode) and item.tag != "tag:yaml.org,2002:null":
                _scalar(text, item, edits.prompt if leads else edits.other, changes, flow=_in_flow(value, node))
                leads = False
    if "tags" in values:
        key, value = values["tags"]
        if isinstance(value, yaml.SequenceNode):
            _sequence(text, key, value, edits, changes)
            listed = True
        elif value.tag != "tag:yaml.org,2002:null":
            _tag_text(text, value, edits, changes, flow=bool(node.flow_style))
            listed = True
    if "caption" in values:
        value = values["caption"][1]
        if isinstance(value, yaml.MappingNode):
            inner = _mapping(text, value, edits, changes, leads=leads)
            if inner and listed:
                raise CantEdit("it has two lists of tags")
            listed = listed or inner
        elif isinstance(value, yaml.ScalarNode) and value.tag != "tag:yaml.org,2002:null":
            if os.path.splitext(one_line_text(value.value))[1].lower() in SIDECAR_SUFFIXES:  # noqa: PTH122
                raise CantEdit(f"it names another file, {one_line_text(value.value)}")
            _scalar(text, value, edits.text if leads else edits.other, changes, flow=bool(node.flow_style))
    return listed


def _in_flow(value: Any, parent: Any) -> bool:
    return bool(parent.flow_style) or bool(getattr(value, "flow_style", False))


def _scalar(text: str, node: Any, change: Texts, changes: list[_Change], *, flow: bool) -> None:
    old = one_line_text(node.value)
    new = change(old)
    if new != old:
        changes.append((node.start_mark.index, node.end_mark.index, _as_written(node, new, flow=flow)))


def _as_written(node: Any, new: str, *, flow: bool) -> str:
    """The new text of a scalar in the quoting of the old one."""
    if node.style in ("|", ">"):
        return scalar(new, flow=flow) + "\n"
    if node.style == "'" and new.isprintable():
        return "'" + new.replace("'", "''") + "'"
    return json.dumps(new, ensure_ascii=False) if node.style == '"' else scalar(new, flow=flow)


def _tag_text(text: str, node: Any, edits: Edits, changes: list[_Change], *, flow: bool) -> None:
    pieces = [piece for raw in one_line_text(node.value).split(", ") if (piece := raw.strip(" ,"))]
    entries = [Entry(Tag(piece), i) for i, piece in enumerate(pieces)]
    new = [entry.tag.text for entry in edits.tags(entries)]
    new += [tag.text for tag in edits.add if tag.text not in new]
    if new != pieces:
        if any(tag.weight != 1.0 for tag in edits.add):
            raise CantEdit("its tags are one text, which holds no weights")
        changes.append((node.start_mark.index, node.end_mark.index, _as_written(node, ", ".join(new), flow=flow)))


def _sequence(text: str, key: Any, node: Any, edits: Edits, changes: list[_Change]) -> None:
    """The changes of one list of tags: in place where only words change, else item by item."""
    items = [item for item in node.value if _tag_of(item) is not None]
    entries = [Entry(tag, i) for i, item in enumerate(items) if (tag := _tag_of(item)) is not None]
    ends = [item.end_mark.index for item in items]
    if any(item.start_mark.index < end for item, end in zip(items[1:], ends, strict=False)):
        raise CantEdit("it uses anchors")
    new = edits.tags(list(entries))
    new += [Entry(tag) for tag in edits.add if all(entry.tag.text != tag.text for entry in new)]
    if new == entries:
        return
    flow = bool(node.flow_style)
    pieces = [_piece(text, items[e.old], e.tag, flow=flow) if e.old is not None else None for e in new]
    if [e.old for e in new] == list(range(len(items))):
        for item, piece, entry, old in zip(items, pieces, new, entries, strict=True):
            if entry != old and piece is not None:
                changes.append((item.start_mark.index, item.end_mark.index, piece))
        return
    written = [_new_tag(e.tag, flow=flow) if piece is None else piece for e, piece in zip(new, pieces, strict=True)]
    start, end = node.start_mark.index, node.end_mark.index
    if flow:
        if "#" in text[start:end] and "\n" in text[start:end]:
            raise CantEdit("its list of tags holds comments")
        changes.append((start, end, f"[{', '.join(written)}]"))
    elif not written:
        last = items[-1].end_mark.index
        changes.append((key.end_mark.index, last, ": []"))
    else:
        changes.append(_lines(text, node, items, new, written))


def _lines(text: str, node: Any, items: Sequence[Any], new: Sequence[Entry], written: Sequence[str]) -> _Change:
    """A block list rewritten line by line: an item takes the comment behind it and the lines below it along."""
    starts = [text.rfind("\n", 0, item.start_mark.index) + 1 for item in items]
    if len(set(starts)) < len(items) or starts[0] > node.start_mark.index:
        raise CantEdit("its list of tags is written in an unusual way")
    last_end = text.find("\n", max(items[-1].end_mark.index - 1, items[-1].start_mark.index))
    bounds = [*starts, len(text) if last_end < 0 else last_end + 1]
    dash = " " * node.start_mark.column + "- "
    newline = "\r\n" if "\r\n" in text else "\n"
    out = ""
    for entry, piece in zip(new, written, strict=True):
        if entry.old is None:
            out += f"{dash}{piece}{newline}"
            continue
        item = items[entry.old]
        head, tail = text[bounds[entry.old] : item.start_mark.index], text[item.end_mark.index : bounds[entry.old + 1]]
        line = head + piece + ("" if piece.endswith("\n") else tail)
        out += line if line.endswith("\n") else line + newline
    end = bounds[-1]
    if end == len(text) and not text.endswith("\n"):
        out = out.removesuffix(newline)
    return bounds[0], end, out


def _piece(text: str, item: Any, tag: Tag, *, flow: bool) -> str:
    """The source text of one tag, its words changed where they are."""
    import yaml

    source = text[item.start_mark.index : item.end_mark.index]
    if isinstance(item, yaml.ScalarNode):
        return source if one_line_text(item.value) == tag.text else _as_written(item, tag.text, flow=flow)
    value = next(value for key, value in item.value if key.value == "tag")
    if one_line_text(value.value) == tag.text:
        return source
    base = item.start_mark.index
    new = _as_written(value, tag.text, flow=flow or bool(item.flow_style))
    return source[: value.start_mark.index - base] + new + source[value.end_mark.index - base :]


def _tag_of(item: Any) -> Tag | None:
    """What an item of a list of tags says; None where it says nothing."""
    import yaml

    if isinstance(item, yaml.ScalarNode):
        text = one_line_text(item.value)
        return Tag(text) if text and item.tag != "tag:yaml.org,2002:null" else None
    if not isinstance(item, yaml.MappingNode):
        raise CantEdit("a tag in it is neither text nor a mapping")
    said = {key.value: value for key, value in item.value if isinstance(value, yaml.ScalarNode)}
    if "tag" not in said:
        raise CantEdit("a tag in it has no text")
    weight = said["weight"].value if "weight" in said else ""
    try:
        return Tag(one_line_text(said["tag"].value), float(weight) if weight else 1.0)
    except ValueError as error:
        raise CantEdit("a weight in it is no number") from error


def _new_tag(tag: Tag, *, flow: bool) -> str:
    """A tag as a list holds it: its text, or a mapping that gives its weight too."""
    if tag.weight == 1.0:
        return scalar(tag.text, flow=flow)
    return f"{{tag: {scalar(tag.text, flow=True)}, weight: {tag.weight:.12g}}}"


def _add_key(text: str, root: Any, line: str, changes: list[_Change]) -> None:
    """Put a `key: value` at the end of the outermost mapping."""
    if root.flow_style:
        end = root.end_mark.index - 1
        changes.append((end, end, f", {line}" if root.value else line))
        return
    # after the last value's own line, before whatever comments follow it
    last = root.value[-1][1].end_mark.index
    at = last if text[:last].endswith("\n") else text.find("\n", last) + 1
    if at <= 0:
        at, line = len(text), "\n" + line
    indent = " " * root.start_mark.column
    changes.append((at, at, f"{indent}{line}\n" if not line.startswith("\n") else f"\n{indent}{line[1:]}\n"))


def without_words(text: str, path: Path) -> str | None:
    """The YAML text without main_prompt, tags and caption; None where its lines can't simply be taken out.

    What the rest says is exactly what the whole said besides its words.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return None
    out = text
    starts = [text.rfind("\n", 0, key.start_mark.index) + 1 for key, _ in root.value]
    for (key, value), start in reversed(list(zip(root.value, starts, strict=True))):
        if key.value not in ("main_prompt", "tags", "caption"):
            continue
        end = value.end_mark.index
        if not text[:end].endswith("\n"):
            newline = text.find("\n", end)
            end = len(text) if newline < 0 else newline + 1
        # a block list's end is found behind the comments that follow it: those are the next key's
        following = [other for other in starts if other > start]
        end = min([end, *following])
        out = out[:start] + out[end:]
    before, after = said_from_yaml(text, path), said_from_yaml(out, path)
    words = after.words
    right = after.options == before.options and not after.problems and words.prompt is None and not words.tags
    return out if right else None


def scalar(text: str, *, flow: bool) -> str:
    """A text as YAML writes it: bare where it reads back as that very text, else in double quotes."""
    import yaml

    try:
        node: Any = yaml.compose(f"[{text}]" if flow else f"k: {text}\n", Loader=yaml.SafeLoader)
        value = node.value[0] if flow else node.value[0][1]
        alone = len(node.value) == 1 and isinstance(value, yaml.ScalarNode)
        if alone and value.value == text and value.tag == "tag:yaml.org,2002:str" and value.style is None:
            return text
    except (yaml.YAMLError, AttributeError, IndexError, TypeError):
        pass  # it has to be quoted
    return json.dumps(text, ensure_ascii=False)
