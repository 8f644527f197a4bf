"""The command line of edkit: captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from edkit.cli import console

if TYPE_CHECKING:
    from edkit.caption.words import Count, FolderWords


class WithPairs(TyperCommand):
    """A command whose options marked OLD NEW take two words each, time and again (typer knows no list of pairs)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        pairs = {name for param in self.params if param.metavar == "OLD NEW" for name in param.opts}
        joined: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                joined += [word, *rest]
                break
            joined.append(word)
            if word in pairs:
                if len(rest) < 2:
                    raise typer.BadParameter(f"{word} takes two words: OLD NEW", ctx=ctx)
                joined.append(rest.pop(0) + SEPARATOR + rest.pop(0))
            elif word.partition("=")[0] in pairs:
                raise typer.BadParameter(f"write {word.partition('=')[0]} OLD NEW, without =", ctx=ctx)
        parsed: list[str] = super().parse_args(ctx, joined)
        return parsed


SEPARATOR = "\x1f"  # between OLD and NEW on their way through typer; no caption holds it

app = typer.Typer()
PANEL = "Caption"
caption_app = typer.Typer(no_args_is_help=True, help="Move, edit, count and write captions.")
app.add_typer(caption_app, name="caption", rich_help_panel=PANEL)

SHOWN = 10  # lines of a list that the summary shows; --json has all
EXAMPLES = 20  # captions that are shown before and after an edit

Root = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of images; subfolders too.")]
Below = Annotated[
    str | None, typer.Option("--folder", metavar="NAME", help="Only this folder of DIR and those below it.")
]


@app.command(
    "rename-captions",
    rich_help_panel=PANEL,
    epilog='Example: edkit rename-captions photos --caption "person"',
)
def rename_captions(
    folder: Root,
    caption: Annotated[
        str | None, typer.Option("--caption", help="One caption for every image, whatever it was called.")
    ] = None,
    source: Annotated[
        Literal["filename", "sidecar"] | None,
        typer.Option("--from", help="Take captions from file names alone, or from sidecars alone."),
    ] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Rename every image to caption_(n).ext, so that its file name is its caption."""
    from edkit.caption.rename import rename_captions as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder, caption=caption, source=source, dry_run=dry_run, state_dir=state_dir, progress=ui.progress
        )
        if dry_run:
            ui.table(
                ["Would", "File", "To"],
                [[step.kind, step.path, step.to or f"({step.reason})"] for step in result.steps],
            )
        lines = _list("left as they are", [f"{left.path}: {left.reason}" for left in result.left])
        lines += [f"note: {note}" for note in result.notes]
        would = "would be renamed" if dry_run else "renamed"
        parts = [f"{result.num_renamed:,} {would}"]
        for number, words in (
            (result.num_right, "named so already"),
            (len(result.left), "left as they are"),
        ):
            parts += [f"{number:,} {words}"] if number else []
        lines.append(f"{_images(result.num_images)}: {', '.join(parts)}")
        sidecars = [
            f"{number:,} {words}"
            for number, words in (
                (result.num_followed, "went with their image"),
                (result.num_set_aside, "said otherwise (to the trash)"),
                (result.num_options_kept, "kept their options, without their caption"),
                (result.num_written, "written for captions that no file name can give"),
            )
            if number
        ]
        if sidecars:
            lines.append(f"sidecars: {', '.join(sidecars)}")
        ui.done(result, *lines, *_undo(result.operation, folder))


@caption_app.command("move", epilog="Example: edkit caption move photos --to filename")
def move(
    folder: Root,
    to: Annotated[
        Literal["filename", "sidecar"], typer.Option("--to", help="Where the captions are to stand afterwards.")
    ],
    below: Below = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Move captions into file names or into .txt sidecars, word for word."""
    from edkit.caption.move import caption_move as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            to=to,
            folder=below,
            dry_run=dry_run,
            state_dir=state_dir,
            command=f"edkit caption move --to {to}",
            progress=ui.progress,
        )
        if dry_run:
            ui.table(["Image", "Caption"], result.steps[:EXAMPLES])
        goal = "file names" if to == "filename" else "sidecars"
        lines = [f"  {n:,} stay where they are: {why}" for why, n in result.stayed.items()]
        lines += [f"  {result.num_missing:,} have no caption"] if result.num_missing else []
        if any("full stop" in why for why in result.stayed):
            lines.append(f"  to take the full stops off: edkit caption edit {folder} --regex '\\.$' ''")
        there = f", {result.num_there:,} there already" if result.num_there else ""
        moved = f"{result.num_moved:,} captions {'would go' if dry_run else 'moved'} into {goal}{there}"
        ui.done(result, f"{_images(result.num_images)}: {moved}", *lines, *_undo(result.operation, folder))


@caption_app.command(
    "edit",
    cls=WithPairs,
    epilog='Example: edkit caption edit photos --replace "a man" "john doe" --folder john --dry-run',
)
def edit(
    folder: Root,
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", metavar="OLD NEW", help="Whole words or phrases; may be given several times."),
    ] = None,
    regex: Annotated[
        list[str] | None,
        typer.Option("--regex", metavar="OLD NEW", help="A regular expression; \\1 in NEW is its first group."),
    ] = None,
    prepend: Annotated[str, typer.Option("--prepend", help="Put this before each caption.")] = "",
    append: Annotated[str, typer.Option("--append", help='Put this behind each caption; ", x" adds the tag x.')] = "",
    add_tag: Annotated[list[str] | None, typer.Option("--add-tag", help="Add a tag where it is not.")] = None,
    drop_tag: Annotated[list[str] | None, typer.Option("--drop-tag", help="Take a tag out.")] = None,
    rename_tag: Annotated[
        list[str] | None, typer.Option("--rename-tag", metavar="OLD NEW", help="Call a tag otherwise.")
    ] = None,
    sort_tags: Annotated[
        Literal["count", "name"] | None,
        typer.Option("--sort-tags", help="Most frequent of the set first, or by name; the main prompt stays first."),
    ] = None,
    dedupe_tags: Annotated[bool, typer.Option("--dedupe-tags", help="Keep each tag once in a caption.")] = False,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="WORDS", help="Only captions that have these words, or match a /pattern/."),
    ] = None,
    below: Below = None,
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", "-i", help="Find words, patterns and tags in any case.")
    ] = False,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Change words and tags in captions, wherever these stand: file name, .txt, .caption or YAML."""
    from edkit.caption.edit import caption_edit as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            replace=_pairs(replace),
            regex=_pairs(regex),
            prepend=prepend,
            append=append,
            add_tags=add_tag or (),
            drop_tags=drop_tag or (),
            rename_tags=_pairs(rename_tag),
            sort_tags=sort_tags,
            dedupe_tags=dedupe_tags,
            where=where,
            folder=below,
            ignore_case=ignore_case,
            dry_run=dry_run,
            state_dir=state_dir,
            command="edkit caption edit",
            progress=ui.progress,
        )
        lines = []
        if dry_run:
            for change in result.changes[:EXAMPLES]:
                lines += [f"{change.path} ({change.where})"]
                lines += [f"  - {change.before}", f"  + {change.after}"]
            more = len(result.changes) - EXAMPLES
            lines += [f"and {more:,} more (--json lists all)", ""] if more > 0 else [""] if lines else []
        lines += _list(
            "left as they are", [f"{left.path.relative_to(result.root)}: {left.reason}" for left in result.left]
        )
        lines += [f"note: {note}" for note in result.notes]
        where_to = []
        where_to += [f"{result.num_renamed:,} by a new file name"] if result.num_renamed else []
        where_to += [f"{result.num_files:,} {_sidecars(result.num_files)} written"] if result.num_files else []
        how = f" ({', '.join(where_to)})" if where_to else ""
        chosen = f", {result.num_chosen:,} of them meant" if result.num_chosen != result.num_images else ""
        would = "captions would change" if dry_run else "captions changed"
        lines.append(f"{_images(result.num_images)}{chosen}: {result.num_changed:,} {would}{how}")
        ui.done(result, *lines, *_undo(result.operation, folder))


@caption_app.command("words", epilog="Example: edkit caption words photos --ngrams 3")
def words(
    folder: Root,
    below: Below = None,
    ngrams: Annotated[int, typer.Option("--ngrams", metavar="N", help="Count phrases of up to N words too.")] = 1,
    small_words: Annotated[bool, typer.Option("--small-words", help="Count a, the, of, ... as well.")] = False,
    nearly_all: Annotated[
        float, typer.Option("--nearly-all", metavar="SHARE", help="What share of a folder's captions is nearly all.")
    ] = 0.9,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows of each table.")] = 15,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Count words and tags by folder, and name those that stand in nearly every caption."""
    from edkit.caption.words import caption_words as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            folder=below,
            ngrams=ngrams,
            small_words=small_words,
            nearly_all=nearly_all,
            limit=None if as_json else limit,
            progress=ui.progress,
        )
        ui.table(
            ["folder", "images", "captions", "different", "most frequent words"],
            [
                (
                    one.folder or ".",
                    one.num_images,
                    one.num_captions,
                    one.num_different,
                    ", ".join(f"{word.text} {word.num_captions:,}" for word in one.words[:6]),
                )
                for one in result.folders
            ],
        )
        total = result.total
        for name, counts in (("word", total.words), ("tag", total.tags), ("phrase", total.phrases)):
            ui.table([name, "captions", "share"], [_count_row(count) for count in counts])
        lines = [line for one in result.folders for line in _always_lines(one)]
        if lines:
            lines = ["in nearly every caption, so learned together with what the pictures share:", *lines, ""]
        rest = [
            f"{number:,} {what}"
            for number, what in ((result.num_missing, "without a caption"), (result.num_empty, "empty on purpose"))
            if number
        ]
        lines.append(f"{_images(result.num_images)}{', ' if rest else ''}{', '.join(rest)}")
        ui.done(result, *lines)


@caption_app.command(
    "auto", epilog="Example: edkit caption auto photos --model florence-community/Florence-2-base --to filename"
)
def auto(
    folder: Root,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A model's folder, or its id on the hub; else one that this machine holds."),
    ] = None,
    kind: Annotated[
        Literal["prose", "tags"],
        typer.Option("--kind", help="Sentences by a vision-language model, or tags by an ONNX tagger."),
    ] = "prose",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the model is asked; else what suits its kind.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Length of a caption at most.")] = 75,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="[CATEGORY=]X",
            help="Least score of a tag: 0.4, character=0.9, rating=0.5. By default general=0.35, character=0.85.",
        ),
    ] = None,
    to: Annotated[
        Literal["filename", "sidecar"], typer.Option("--to", help="Where the captions are to stand.")
    ] = "sidecar",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite/--only-missing", help="Caption images that have a caption as well."),
    ] = False,
    below: Below = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many images at most.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at a time.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cuda, cpu, mps; else the best there is.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
    ] = False,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Have a model caption the images that have no caption; run again, it goes on."""
    from edkit.caption.auto import caption_auto as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            model=model,
            kind=kind,
            prompt=prompt,
            max_tokens=max_tokens,
            thresholds=_thresholds(threshold or []),
            to=to,
            overwrite=overwrite,
            folder=below,
            limit=limit,
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
            dry_run=dry_run,
            state_dir=state_dir,
            command="edkit caption auto",
            progress=ui.progress,
        )
        shown = [(one.path, one.caption) for one in result.written[:EXAMPLES]]
        if dry_run:
            ui.table([f"Would be captioned by {result.model}"], [(name,) for name, _ in shown])
        else:
            ui.table(["Image", "Caption"], shown)
        more = len(result.written) - EXAMPLES
        lines = [f"and {more:,} more (--json lists all)"] if more > 0 else []
        root = result.root
        lines += _list("left as they are", [f"{left.path.relative_to(root)}: {left.reason}" for left in result.left])
        parts = [f"{len(result.written):,} {'would be captioned' if dry_run else 'captioned'}"]
        for number, what in (
            (result.num_captioned, "with a caption already"),
            (len(result.left), "left as they are"),
            (result.num_later, "for another run (--limit)"),
        ):
            parts += [f"{number:,} {what}"] if number else []
        lines.append(f"{_images(result.num_images)}: {', '.join(parts)}")
        if result.num_known:
            lines.append(f"{result.num_known:,} of the captions were known from an earlier run")
        ui.done(result, *lines, *_undo(result.operation, folder))


def _thresholds(given: list[str]) -> dict[str, float]:
    from edkit.data.errors import UsageError

    found = {}
    for text in given:
        category, _, number = text.rpartition("=")
        try:
            found[category or "general"] = float(number)
        except ValueError as error:
            raise UsageError(f"{number!r} is no number", where=f"--threshold {text}", mend="character=0.9") from error
    return found


def _pairs(given: list[str] | None) -> list[tuple[str, str]]:
    return [(old, new) for old, _, new in (pair.partition(SEPARATOR) for pair in given or ())]


def _count_row(count: Count) -> tuple[str, int, str]:
    return count.text, count.num_captions, f"{count.share:.0%}"


def _always_lines(one: FolderWords) -> list[str]:
    shown = [f"{count.text} ({count.num_captions:,} of {one.num_captions:,})" for count in one.always[:SHOWN]]
    more = f" and {len(one.always) - SHOWN:,} more" if len(one.always) > SHOWN else ""
    return [f"  {one.folder or '.'}: {', '.join(shown)}{more}"] if shown else []


def _list(title: str, items: list[str]) -> list[str]:
    more = [f"  and {len(items) - SHOWN:,} more (--json lists all)"] if len(items) > SHOWN else []
    return [f"{title}:", *(f"  {item}" for item in items[:SHOWN]), *more] if items else []


def _images(number: int) -> str:
    return f"{number:,} {'image' if number == 1 else 'images'}"


def _sidecars(number: int) -> str:
    return "sidecar" if number == 1 else "sidecars"


def _undo(operation: int | None, folder: Path) -> list[str]:
    return [] if operation is None else [f"undo: edkit undo {folder}"]
