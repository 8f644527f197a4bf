"""Whatever is done to captions in whatever order: edkit reads what was meant, and undo brings every byte back."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edkit.caption.edit import caption_edit
from edkit.caption.move import caption_move
from edkit.caption.rename import rename_captions
from edkit.data.dataset import read
from edkit.data.errors import BadInput
from edkit.data.journal import undo
from edkit.data.names import can_name

WORDS = [
    "dog",
    "Dog",
    "a cat",
    "süß",
    "e\u0301",
    "猫",
    "10,000 people",
    "CON",
    "it's",
    "#1",
    "a: b",
    "x_y",
    "who?",
    "-",
    "Ж",
]
PIECES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co", "Cn")), min_size=1, max_size=40)
TEXTS = st.one_of(PIECES.map(" ".join), PIECES.map(", ".join), ANY_TEXT)


@st.composite
def yaml_texts(draw: st.DrawFn) -> str:
    """A YAML sidecar as people write them: flow or block, quoted or bare, with comments and options."""
    import json

    lines = ["# made by hand"] if draw(st.booleans()) else []
    if draw(st.booleans()):
        lines.append("main_prompt: " + json.dumps(draw(PIECES.map(" ".join)), ensure_ascii=False) + "  # what it is")
    tags = draw(st.lists(st.sampled_from(WORDS), max_size=4))
    quoted = [
        json.dumps(tag, ensure_ascii=False) if draw(st.booleans()) or tag in ("-", "#1", "a: b") else tag
        for tag in tags
    ]
    if draw(st.booleans()):
        lines.append(f"tags: [{', '.join(q if ',' not in q or q[0] == chr(34) else json.dumps(q) for q in quoted)}]")
    elif quoted:
        indent = draw(st.sampled_from(["", "  "]))
        lines += ["tags:", *(f"{indent}- {tag}" + ("  # a comment" if i % 2 else "") for i, tag in enumerate(quoted))]
    if draw(st.booleans()):
        lines.append("flip_p: 0.5 # half")
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n# the end\n"]))


IMAGE = st.tuples(
    st.sampled_from(["", "sub/"]),
    st.sampled_from(["name", "IMG"]),
    TEXTS,
    st.sampled_from(["", ".txt", ".caption", ".yaml", ".yml"]),
    yaml_texts(),
)
STEP = st.one_of(
    st.just(("rename",)),
    st.sampled_from([("move", "filename"), ("move", "sidecar")]),
    st.tuples(st.just("replace"), st.sampled_from(WORDS), st.sampled_from([*WORDS, "", "two words"])),
    st.tuples(st.sampled_from(["prepend", "append"]), st.sampled_from(["photo of", ", wet", "!", "猫"])),
    st.tuples(st.sampled_from(["add_tags", "drop_tags"]), st.sampled_from(WORDS)),
    st.sampled_from([("sort", "name"), ("sort", "count"), ("dedupe",)]),
)


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and ".edkit" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def captions(root: Path) -> dict[bytes, str]:
    """Each image's caption with its tags, by the image's bytes; None where it has none."""
    dataset = read(root, sizes=False)
    found = {}
    for i, sample in enumerate(dataset):
        text = ", ".join(p for p in (sample.caption.text, *(tag.text for tag in sample.caption.tags)) if p)
        found[sample.path.read_bytes()] = text if dataset.error(i) is None else "<none>"
    return found


def carried_out(root: Path, step: tuple[str, ...]) -> dict[bytes, str]:
    """Carry out one step; what the captions are meant to be afterwards."""
    before = captions(root)
    images = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
    kind, *words = step
    if kind == "rename":
        try:
            rename_captions(root)
        except BadInput as error:
            assert "no image has a caption" in str(error)
        # no two names that a file system which ignores case and composition would take for one
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.png")]
        assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)
        return before
    if kind == "move":
        caption_move(root, to=words[0])  # type: ignore[arg-type]
        return before
    if kind == "replace":
        result = caption_edit(root, replace=[(words[0], words[1])])
    elif kind == "sort":
        result = caption_edit(root, sort_tags=words[0])  # type: ignore[arg-type]
    elif kind == "dedupe":
        result = caption_edit(root, dedupe_tags=True)
    elif kind in ("prepend", "append"):
        result = caption_edit(root, **{kind: words[0]})  # type: ignore[arg-type]
    else:
        result = caption_edit(root, **{kind: [words[0]]})  # type: ignore[arg-type]
    told = {images[change.path]: change for change in result.changes}
    assert all(before[image] == change.before for image, change in told.items())
    return {image: told[image].after if image in told else text for image, text in before.items()}


# EDKIT_EXAMPLES=1000 looks longer
@settings(
    max_examples=int(os.environ.get("EDKIT_EXAMPLES", "25")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
    images=st.lists(IMAGE, min_size=1, max_size=5),
    shared=st.sampled_from(["", "", "tags: [sunny, dog]\n", "main_prompt: a thing\n", "caption_style: prose\n"]),
    steps=st.lists(STEP, min_size=1, max_size=4),
)
def test_captions_are_what_was_meant_and_undo_is_exact(
    tmp_path: Path,
    png: bytes,
    images: list[tuple[str, str, str, str, str]],
    shared: str,
    steps: list[tuple[str, ...]],
) -> None:
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    (root / "sub").mkdir(parents=True)
    if shared:
        (root / "sub" / "global.yaml").write_text(shared, "utf-8")
    for i, (folder, kind, text, suffix, yaml) in enumerate(images):
        stem = f"{text}_{i}" if kind == "name" and can_name(text) else f"IMG_{i:04d}"
        (root / folder / f"{stem}.png").write_bytes(png + bytes([i]))
        if suffix:
            content = yaml if suffix in (".yaml", ".yml") else text
            (root / folder / f"{stem}{suffix}").write_bytes(content.encode("utf-8"))
    before = tree(root)
    for step in steps:
        meant = carried_out(root, step)
        assert captions(root) == meant, step
    undo(root, to=0)
    assert tree(root) == before
