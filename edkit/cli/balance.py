"""The command line of edkit: balance and plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edkit.cli import console

if TYPE_CHECKING:
    from edkit.balance.pick_like import PickedLike
    from edkit.balance.plan import Planned

app = typer.Typer()
PANEL = "Balance"
CUTS_SHOWN = 5


@app.command(rich_help_panel=PANEL, epilog="Example: edkit balance photos --equalize --per-epoch preservation=25")
def balance(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data root: a folder of folders of images.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FOLDER=NUMBER", help="The multiply of every folder at or below FOLDER."),
    ] = None,
    per_epoch: Annotated[
        list[str] | None,
        typer.Option("--per-epoch", metavar="FOLDER=PICKS", help="Picks an epoch from FOLDER and below."),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="FOLDER=PART", help="The part of the epoch, such as 0.3 or 30%."),
    ] = None,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize",
            help="Raise every subject folder to the picks of the largest; folders with a multiply below 1, "
            "or named in another option, are ground truth and stay.",
        ),
    ] = False,
    ground_truth: Annotated[
        list[str] | None,
        typer.Option("--ground-truth", metavar="FOLDER", help="A folder that --equalize leaves alone."),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from-run", metavar="RUN", help="Raise ground truth as the drift that edkit choose measured asks."
        ),
    ] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Show how often each folder is trained, and write the multiply.txt files that make it as you want it."""
    from edkit.balance.balance import assignments, plain
    from edkit.balance.balance import balance as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folder,
            set=assignments(set_ or [], "--set"),
            per_epoch=assignments(per_epoch or [], "--per-epoch"),
            share=assignments(share or [], "--share"),
            equalize=equalize,
            ground_truth=ground_truth or [],
            from_run=from_run,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        changed = any(part.was != part.multiply for part in result.parts)
        ui.table(
            ["Folder", "Images", *(["was"] if changed else []), "multiply", "Picks/epoch", "Share"],
            [
                [
                    part.folder,
                    part.num_images,
                    *([plain(part.was)] if changed else []),
                    plain(part.multiply),
                    f"{part.picks:,.2f}".rstrip("0").rstrip("."),
                    f"{part.share:.1%}",
                ]
                for part in result.parts
            ],
        )
        lines = [f"{part.sentence}{f' ({part.reason})' if part.reason else ''}" for part in result.parts]
        counts = sorted(set(result.epochs))
        picks = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        lines += [f"note: {note}" for note in result.notes]
        lines.append(f"{result.num_images:,} images, {picks} picks an epoch")
        if result.written:
            files = f"{len(result.written):,} multiply.txt"
            undo = f" (undo: edkit undo {folder})"
            lines.append(f"would write {files} (dry run)" if dry_run else f"wrote {files}{undo}")
        ui.done(result, *lines)


@app.command(
    "pick-like",
    rich_help_panel=PANEL,
    epilog="Example: edkit pick-like photos/subject ~/laion --limit 1000 --out photos/preservation",
)
def pick_like(
    train: Annotated[Path, typer.Argument(metavar="TRAIN_DIR", help="The training images, with their captions.")],
    pool: Annotated[Path, typer.Argument(metavar="POOL_DIR", help="The images to pick from, with theirs.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder the picks go to.")],
    limit: Annotated[int, typer.Option("--limit", help="Images to have there, earlier runs' picks too.")] = 1000,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Hard links instead of copies; across volumes a copy is made.")
    ] = False,
    seed: console.Seed = 555,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Pick ground truth out of a pool, its aspects and words as in the training set; never the same picture twice."""
    from edkit.balance.pick_like import pick_like as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            train,
            pool,
            out=out,
            limit=limit,
            link=link,
            seed=seed,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        for title, rows in (("Aspect", result.shapes), ("Word", result.words)):
            ui.table(
                [title, "Training", "Pool", "Picked"],
                [[row.what, f"{row.train:.1%}", f"{row.pool:.1%}", f"{row.picked:.1%}"] for row in rows],
            )
        ui.done(result, *([f"seed {result.seed}"] if seed == -1 else []), *_pick_lines(result))


def _pick_lines(result: PickedLike) -> list[str]:
    lines = [
        f"{what}: {before:.3f} bits from the training set in the pool, {after:.3f} in the picks"
        for what, (before, after) in (("aspects", result.shape_distance), ("words", result.word_distance))
    ]
    if result.passed_over:
        lines.append("passed over: " + ", ".join(f"{n:,} {why}" for why, n in result.passed_over.items()))
    if result.num_copied_instead:
        lines.append(f"{result.num_copied_instead:,} were copied: no link can be made there")
    lines += [f"note: {note}" for note in result.notes]
    picked = f"{len(result.picked):,} of {result.num_pool:,} images"
    before = f", beside {result.num_before:,} picked before" if result.num_before else ""
    if result.dry_run:
        lines.append(f"would pick {picked}{before} (dry run)")
    elif result.picked:
        lines.append(f"picked {picked}{before} into {result.out} (undo: edkit undo {result.out})")
    else:
        lines.append(f"nothing to do: {result.num_before:,} picked before stand in {result.out}")
    return lines


@app.command(rich_help_panel=PANEL, epilog="Example: edkit plan photos --epochs 3 --batch-size 8 --for sd1")
def plan(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="The data root: a folder, or a JSON manifest.")],
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs to look at.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images a step.")] = 8,
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", help="Buckets have the area of a square of this side. Else by --for; 512."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FAMILY",
            help="sd1, sd2, sdxl, klein, nano or a model's folder: sizes, tokens and caches.",
        ),
    ] = None,
    seed: console.Seed = 555,
    small: Annotated[
        Literal["smaller", "upscale", "leave"],
        typer.Option("--small", help="Images smaller than their bucket: a smaller bucket, scaled up, or left out."),
    ] = "smaller",
    remainder: Annotated[
        Literal["join", "duplicate", "drop"],
        typer.Option("--remainder", help="What a bucket's last, short batch does."),
    ] = "join",
    caption_fallback: Annotated[
        str | None,
        typer.Option("--caption-fallback", help="The caption of images whose name is a camera's."),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", help="Write every step, one JSON object a line."),
    ] = None,
    as_: Annotated[
        Literal["ed2", "kohya"] | None,
        typer.Option("--as", help="Beside it, what EveryDream 2 or kohya's scripts would have made of the folder."),
    ] = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Show what training would see: picks, buckets, crops, cut captions, steps, and what is wrong."""
    from edkit.balance.plan import plan as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            epochs=epochs,
            batch_size=batch_size,
            resolution=resolution,
            family=family,
            seed=seed,
            small=small,
            remainder=remainder,
            caption_fallback=caption_fallback,
            schedule=schedule,
            as_=as_,
            state_dir=state_dir,
            progress=ui.progress,
        )
        ui.table(
            ["Folder", "Images", "multiply", "Picks/epoch", "Share"],
            [
                [part.folder, part.num_images, part.multiply, _span(part.picks), f"{part.share:.1%}"]
                for part in result.folders
            ],
        )
        ui.table(
            ["Bucket", "Images", "Cut off"],
            [[f"{part.width} x {part.height}", part.num_images, f"{part.cut:.1%}"] for part in result.buckets],
        )
        if result.cut_captions:
            ui.table(
                ["Tokens", "Images", "Read up to", "Lost"],
                [
                    [cut.num_tokens, cut.num_images, f"...{cut.read[-30:]}", _short(cut.lost)]
                    for cut in result.cut_captions[:CUTS_SHOWN]
                ],
            )
        if result.mirror is not None:
            from edkit.balance.others import NAMES

            ui.table(
                ["Here", "edkit", NAMES[result.mirror.trainer]],
                [[trap.what, trap.edkit, trap.theirs] for trap in result.mirror.traps],
            )
        ui.done(result, *([f"seed {result.seed}"] if seed == -1 else []), *_plan_lines(result))


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()}..."


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _plan_lines(result: Planned) -> list[str]:
    from edkit.page.layout import duration

    lines = []
    for level, words in (
        ("error", "training refuses to start on them"),
        ("warning", "they block nothing"),
    ):
        kinds = [kind for kind in result.kinds if kind.level == level]
        if kinds:
            num = sum(kind.count for kind in kinds)
            lines.append(f"{num:,} {level}{'' if num == 1 else 's'}: {words}")
            lines += [f"  {kind.count:,} {kind.code}, the first: {kind.first}" for kind in kinds]
    if result.num_small:
        lines.append(f"{result.num_small:,} images are smaller than their bucket")
    deep = f"; {result.num_deep_cuts:,} lose over 20%" if result.num_deep_cuts else ""
    lines.append(f"crops cut off {result.cut:.1%} of an image on average{deep}")
    empty = f", {result.num_empty_captions:,} images with an empty one" if result.num_empty_captions else ""
    captions = "one caption for all" if result.num_captions == 1 else f"{result.num_captions:,} different captions"
    lines.append(f"{captions}{empty}")
    if result.cut_captions:
        more = len(result.cut_captions) - CUTS_SHOWN
        rest = f" ({more:,} more than shown; --json has all)" if more > 0 else ""
        lines.append(f"{len(result.cut_captions):,} captions are cut at {result.max_tokens} tokens{rest}")
    elif result.cut_captions is not None:
        lines.append(f"no caption is cut: all fit into {result.max_tokens} tokens")
    elif result.family is not None:
        lines.append('tokens were not counted (pip install "edkit[clip]")')
    if result.latent_bytes is not None and result.text_bytes is not None:
        latents, texts = console.size(result.latent_bytes), console.size(result.text_bytes)
        lines.append(f"caches: {latents} of latents, {texts} of text states where the text encoder is frozen")
    if result.mirror is not None:
        lines.append(f"no difference here: {', '.join(result.mirror.same)}")
        lines.append(result.mirror.beyond)
    trains = f"{result.num_training:,} of {result.num_images:,} images train"
    picks = f"{_span(result.picks)} picks in {_span(result.steps)} steps of {result.batch_size} an epoch"
    mixed = f" ({_span(result.mixed_steps)} of them mixed)" if any(result.mixed_steps) else ""
    lines.append(f"{trains}: {picks}{mixed}")
    if result.rate is not None and result.seconds is not None:
        time = f"about {duration(result.seconds)} at the {result.rate}"
    else:
        time = "how long they take is known once a run at this resolution has been here"
    lines.append(f"{console.count(result.total_steps, 'step')} in {console.count(result.epochs, 'epoch')}: {time}")
    if result.schedule is not None:
        lines.append(f"every step: {result.schedule}")
    return lines
