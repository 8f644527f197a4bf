"""The command line of edkit: clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edkit.cli import console
from edkit.cli.console import count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edkit.clean.findings import Finding
    from edkit.clean.fix import Fixed
    from edkit.data.errors import Problem

app = typer.Typer()
PANEL = "Clean"

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The data root.")]
Dirs = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders; the first one keeps the state.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes to measure with (one a core).")]
Clip = Annotated[str, typer.Option("--clip", help="open_clip model, a model config (.json), or a model folder.")]
Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="open_clip's name for the weights, or a checkpoint's path.")
]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write a page that shows the pictures.")]


@app.command(rich_help_panel=PANEL, epilog="Example: edkit check photos --for sdxl --open")
def check(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="The data root, or a manifest.")],
    family: Annotated[
        str | None,
        typer.Option("--for", help="sd1, sd2, sdxl, klein, nano or a model's folder: sizes and token limit."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=8, help="Pixels; instead of the family's own.")
    ] = None,
    caption_fallback: Annotated[
        str | None,
        typer.Option("--caption-fallback", help="Caption of images whose name is no caption; --fix writes it down."),
    ] = None,
    radius: Annotated[int, typer.Option("--radius", help="Bits near-duplicates differ in at most.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write a page that shows every finding with pictures.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="First mend what has one safe, lossless mend (undo takes it back).")
    ] = False,
    shorten: Annotated[
        bool, typer.Option("--shorten", help="First cut caption files where the model of --for stops reading.")
    ] = False,
    set_aside: Annotated[
        list[str] | None,
        typer.Option("--set-aside", metavar="KIND", help="First move the files of this kind of finding to the trash."),
    ] = None,
    heads: Annotated[
        bool | None,
        typer.Option(
            "--heads/--no-heads",
            help="Look for heads that a crop would cut; default: in sets of up to 400 pictures, where edkit[faces] is.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="Print every problem on a line of its own.")] = False,
    workers: Workers = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
    show: console.Open = False,
) -> None:
    """List everything in a data root that is broken or doubtful, each with the command that mends it."""
    from edkit.clean.check import check as verb
    from edkit.clean.files import shown

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            family=family,
            resolution=resolution,
            caption_fallback=caption_fallback,
            radius=radius,
            heads=heads,
            out=_page_of(root, "check") if out is None and show else out,
            fix=fix,
            shorten=shorten,
            set_aside=set_aside or (),
            dry_run=dry_run,
            workers=workers,
            state_dir=state_dir,
            progress=ui.progress,
        )
        if result.fixed is not None:
            _some(
                ui,
                ["file", "would be mended" if dry_run else "mended", "new name"],
                [
                    (shown(one.path, root), one.what, "" if one.to is None else shown(one.to, root))
                    for one in result.fixed.mended
                ],
            )
        lines: list[str] = []
        for finding in result.findings if not every else ():
            lines += _told(finding)
        if every or quiet:
            for problem in result.problems:
                if not as_json and (not quiet or problem.level == "error"):
                    typer.echo(str(problem))
        ui.done(
            result,
            *lines,
            *(_mends(result.fixed, root, dry_run) if result.fixed is not None else ()),
            f"{count(result.num_images, 'image')}: {count(result.num_errors, 'error')},"
            f" {count(result.num_warnings, 'warning')}; {result.num_ready:,} can train",
            *(f"note: {note}" for note in result.notes),
            *([f"page: {result.page} ({console.size(result.page.stat().st_size)})"] if result.page else []),
        )
    if show and result.page is not None:
        console.open_page(result.page)
    if result.problems:
        raise typer.Exit(console.FOUND)


@app.command(rich_help_panel=PANEL, epilog="Example: edkit report photos --out report.html --open")
def report(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="The data root, or a manifest.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page to write.")] = None,
    family: Annotated[
        str | None,
        typer.Option("--for", help="sd1, sd2, sdxl, klein, nano or a model's folder: sizes and token limit."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=8, help="Pixels; instead of the family's own.")
    ] = None,
    overlap_with: Annotated[
        Path | None,
        typer.Option("--overlap", metavar="DIR", help="Show which pictures of this folder show what these show."),
    ] = None,
    caption_fallback: Annotated[
        str | None, typer.Option("--caption-fallback", help="Caption of images whose name is no caption.")
    ] = None,
    radius: Annotated[int, typer.Option("--radius", help="Bits near-duplicates differ in at most.")] = 8,
    thumbnails: Annotated[
        int, typer.Option("--thumbnails", min=0, help="Small pictures on the page at most (about 1.3 kB each).")
    ] = 10_000,
    workers: Workers = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
    show: console.Open = False,
) -> None:
    """Write one page that shows the whole set: balance, sizes, captions, facts, duplicates, sources, pictures."""
    from edkit.clean.report import report as verb
    from edkit.data.errors import UsageError

    if out is None and not show:
        raise UsageError("where to?", where="report", mend="--out report.html, or --open just to look")
    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            out=out or _page_of(root, "report"),
            family=family,
            resolution=resolution,
            overlap=overlap_with,
            caption_fallback=caption_fallback,
            radius=radius,
            thumbnails=thumbnails,
            workers=workers,
            state_dir=state_dir,
            progress=ui.progress,
        )
        ui.done(
            result,
            f"{count(result.num_images, 'image')} in {count(result.num_folders, 'folder')},"
            f" {result.picks:,.6g} picks an epoch",
            *([f"{count(result.num_shared, 'image')} of {overlap_with} overlap"] if overlap_with else []),
            f"{count(result.num_groups, 'group')} of near-duplicates, {result.num_removed:,} set aside so far",
            *([f"{count(result.num_broken, 'image')} can't be read (see: edkit check)"] if result.num_broken else []),
            *([f"{count(result.num_cut_captions, 'caption')} cut at the limit"] if result.num_cut_captions else []),
            *(f"note: {note}" for note in result.notes),
            f"page: {result.page} ({console.size(result.num_bytes)}, {count(result.num_thumbnails, 'thumbnail')})",
        )
    if show:
        console.open_page(result.page)


@app.command(rich_help_panel=PANEL, epilog="Example: edkit dedupe photos --radius 8 --report duplicates.html --dry-run")
def dedupe(
    folders: Dirs,
    method: Annotated[str, typer.Option("--method", help="exact, pixels, phash or embedding.")] = "phash",
    radius: Annotated[int, typer.Option("--radius", help="Bits (of 64) two hashes may differ in.")] = 8,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least cosine of two embeddings (--method embedding).")
    ] = 0.95,
    prefer: Annotated[str, typer.Option("--prefer", help="largest, sharpest or oldest.")] = "largest",
    protect: Annotated[
        list[Path] | None, typer.Option("--protect", metavar="DIR", help="A folder whose images all stay.")
    ] = None,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Set mirror images aside too; without it they are reported.")
    ] = False,
    turned: Annotated[
        bool | None,
        typer.Option("--turned/--no-turned", help="Report turned copies (default: among at most 50,000 images)."),
    ] = None,
    merge_captions: Annotated[
        bool, typer.Option("--merge-captions", help="Add what the others' captions say to the kept image's sidecar.")
    ] = False,
    clip: Annotated[
        str | None, typer.Option("--clip", help="open_clip model of the embeddings (--method embedding).")
    ] = None,
    pretrained: Pretrained = None,
    report: Report = None,
    open_it: console.Open = False,
    workers: Workers = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Group duplicates, keep the best of each group, move the others to the trash."""
    from edkit.clean.dedupe import dedupe as verb
    from edkit.clean.files import shown

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            folders,
            method=method,
            radius=radius,
            threshold=threshold,
            prefer=prefer,
            protect=protect or (),
            mirrored=mirrored,
            turned=turned,
            merge_captions=merge_captions,
            clip=clip,
            pretrained=pretrained,
            report=_page(report, open_it, folders[0], "duplicates"),
            workers=workers,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _some(
            ui,
            ["kept", "trashed" if not dry_run else "would be trashed", "why"],
            [
                (shown(group.kept, folders[0]), shown(member.path, folders[0]), member.reason)
                for group in result.groups
                for member in group.members
                if not member.protected
            ],
        )
        _some(
            ui,
            ["caption merged" if not dry_run else "caption would be merged", "into"],
            [(one.after, shown(one.sidecar, folders[0])) for one in result.merged],
        )
        lost = sum(m.caption_lost and not m.protected for g in result.groups for m in g.members)
        stayed = sum(m.protected for g in result.groups for m in g.members)
        ui.done(
            result,
            f"{count(result.num_images, 'image')}, {count(len(result.groups), 'group')}:"
            f" {count(result.num_trashed, 'image')} ({console.size(result.num_bytes)})"
            f" {_moved(dry_run, folders[0], result.num_trashed)}",
            *([f"{count(stayed, 'duplicate')} stayed: protected"] if stayed else []),
            *([f"{count(lost, 'image')} had a sidecar, the kept image has none (--merge-captions)"] if lost else []),
            *_first(
                f"mirrored: {shown(pair.path, folders[0])} is {shown(pair.mirror_of, folders[0])} mirrored,"
                f" distance {pair.distance:.0f} (both stay; --mirrored sets one aside)"
                for pair in result.mirrored
            ),
            *_first(
                f"turned: {shown(pair.path, folders[0])} is {shown(pair.turned_from, folders[0])} turned by"
                f" {pair.degrees:.0f} degrees (both stay)"
                for pair in result.turned
            ),
            *_left(result.broken, result.skipped),
            *_wrote(result.page),
        )
        _show(result.page, open_it)


@app.command(rich_help_panel=PANEL, epilog="Example: edkit overlap photos/me photos/preservation --move")
def overlap(
    train: Annotated[Path, typer.Argument(metavar="TRAIN_DIR", help="What is trained; never touched.")],
    preservation: Annotated[
        Path, typer.Argument(metavar="PRESERVATION_DIR", help="What must not show it; keeps the state.")
    ],
    radius: Annotated[int, typer.Option("--radius", help="Bits (of 64) two hashes may differ in.")] = 8,
    crops: Annotated[bool, typer.Option("--crops/--no-crops", help="Look for pieces of one in the other.")] = True,
    clip: Annotated[
        str | None, typer.Option("--clip", help="open_clip model, to find by its embeddings besides.")
    ] = None,
    pretrained: Pretrained = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Least cosine of two embeddings.")] = 0.95,
    move: Annotated[bool, typer.Option("--move", help="Move what is found in PRESERVATION_DIR to the trash.")] = False,
    report: Report = None,
    open_it: console.Open = False,
    workers: Workers = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Find preservation images that show what is trained, also mirrored, cropped, recompressed (exit 3: found)."""
    from edkit.clean.files import shown
    from edkit.clean.overlap import overlap as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            train,
            preservation,
            radius=radius,
            crops=crops,
            clip=clip,
            pretrained=pretrained,
            threshold=threshold,
            move=move,
            report=_page(report, open_it, preservation, "overlap"),
            workers=workers,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _some(
            ui,
            ["preservation", "training", "how"],
            [
                (
                    shown(pair.path, preservation),
                    shown(pair.train, train),
                    pair.reason.partition(", which is trained on")[0],
                )
                for pair in result.shared
            ],
        )
        ui.done(
            result,
            f"{count(result.num_train, 'training image')}, {count(result.num_preservation, 'preservation image')}:"
            f" {len(result.shared):,} of these show{'s' * (len(result.shared) == 1)} what is trained",
            *(
                [f"{count(result.num_moved, 'image')} {_moved(dry_run, preservation, result.num_moved)}"]
                if move and result.shared
                else []
            ),
            *(
                ["--move sets them aside (they would keep the model from learning)"]
                if result.shared and not move
                else []
            ),
            *_left(result.broken, result.skipped),
            *_wrote(result.page),
        )
        _show(result.page, open_it)
    if result.shared:
        raise typer.Exit(console.FOUND)


@app.command(rich_help_panel=PANEL, epilog="Example: edkit compress photos --max-mp 1.5 --quality 95 --format webp")
def compress(
    root: Dir,
    max_mp: Annotated[
        float, typer.Option("--max-mp", metavar="MP", help="Megapixels an image keeps at most; 0: any.")
    ] = 1.5,
    quality: Annotated[int, typer.Option("--quality", help="1 to 100, of JPEG and WebP.")] = 95,
    format: Annotated[str, typer.Option("--format", help="webp, jpeg, png, or keep: each its own.")] = "webp",
    bake: Annotated[
        bool, typer.Option("--bake", help="Rewrite small images too that are stored turned or not in sRGB.")
    ] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes (one a core).")] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Scale large images down, bake rotation and colours in, keep captions; the originals go to the trash."""
    from collections import Counter

    from edkit.clean.compress import compress as verb
    from edkit.clean.files import shown

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            max_mp=max_mp or None,
            quality=quality,
            format=format,
            bake=bake,
            workers=workers,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _some(
            ui,
            ["compressed" if not dry_run else "would be compressed", "into", "from", "to", "pixels"],
            [
                (
                    shown(one.path, root),
                    one.to.name,
                    console.size(one.num_bytes),
                    console.size(one.new_bytes),
                    f"{one.size[0]}x{one.size[1]} to {one.new_size[0]}x{one.new_size[1]}",
                )
                for one in result.smaller
            ],
        )
        small = "small enough already"
        reasons = Counter(why for _, why in result.left)
        ui.done(
            result,
            f"{count(result.num_images, 'image')}: {len(result.smaller):,}"
            f" {'would be' if dry_run else 'were'} compressed,"
            f" {console.size(result.num_bytes)} into {console.size(result.new_bytes)};"
            f" originals {_moved(dry_run, root, len(result.smaller))}",
            *([f"{count(reasons[small], 'image')} left: {small}"] if reasons[small] else []),
            *_first(f"left: {path}: {why}" for path, why in result.left if why != small),
            *map(str, result.broken),
        )


@app.command(rich_help_panel=PANEL, epilog='Example: edkit filter photos --rule "sharpness >= 0.1 and width >= 512"')
def filter(
    root: Dir,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", "--keep", metavar="RULE", help="What an image must satisfy to stay; may be repeated."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="RULE", help="What sets an image aside; may be repeated."),
    ] = None,
    top: Annotated[
        str | None, typer.Option("--top", metavar="N|N%", help="Of the rest keep so many, the best by --by.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="FACT", help="What decides --top and --limit.")] = None,
    lowest: Annotated[bool, typer.Option("--lowest", help="The lowest values of --by are best.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Keep at most so many: by --by, else drawn by --seed.")
    ] = None,
    seed: console.Seed = 555,
    missing: Annotated[
        str, typer.Option("--missing", help="keep or drop what a rule can't judge, as a value is not known.")
    ] = "keep",
    clip: Annotated[
        str | None, typer.Option("--clip", help="open_clip model, of rules over aesthetic or caption_similarity.")
    ] = None,
    pretrained: Pretrained = None,
    head: Annotated[str, typer.Option("--head", help="Aesthetic head: v1, v2, a path, hf://...")] = "v2",
    family: Annotated[str, typer.Option("--for", help="Whose tokens num_tokens counts.")] = "sd1",
    workers: Workers = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Move images to the trash by rules over facts, licence, host, caption, ... (names: docs/clean.md)."""
    from collections import Counter

    from edkit.clean.files import shown
    from edkit.clean.filter import count_or_share
    from edkit.clean.filter import filter as verb
    from edkit.measure.models import Models

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            rule or (),
            drop=drop or (),
            top=None if top is None else count_or_share(top),
            by=by,
            lowest=lowest,
            limit=limit,
            seed=seed,
            missing=missing,  # type: ignore[arg-type]
            models=Models(clip=clip, pretrained=pretrained, head=head, family=family),
            workers=workers,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        ui.table(
            ["fact", "side", "images", "lowest", "median", "highest"],
            [
                (span.fact, span.side, span.num_images, span.lowest, span.median, span.highest)
                for span in sorted(result.spans, key=lambda span: span.fact)
            ],
        )
        _some(
            ui,
            ["dropped" if not dry_run else "would be dropped", "why"],
            [(shown(one.path, root), one.reason) for one in result.dropped],
        )
        unknown = Counter(" and ".join(one.missing) for one in result.undecided)
        fate = "dropped" if missing == "drop" else "they stay; --missing drop drops them"
        ui.done(
            result,
            *([f"seed {result.seed}"] if seed == -1 else []),
            *(
                f"{tally.rule}: {count(tally.num_fail, 'image')} fail{'s' * (tally.num_fail == 1)}"
                if not tally.rule.startswith("drop ")
                else f"{tally.rule}: {count(tally.num_fail, 'image')}"
                for tally in result.tallies
            ),
            *(f"{count(n, 'image')} can't be judged, {names} not known ({fate})" for names, n in unknown.items()),
            f"{count(result.num_images, 'image')}: {result.num_kept:,} kept,"
            f" {len(result.dropped):,} {_moved(dry_run, root, len(result.dropped))}",
            *_left(result.broken, result.skipped),
        )


@app.command(
    rich_help_panel=PANEL, epilog="Example: edkit frames holiday.mp4 --out photos/me --every 2 --caption person"
)
def frames(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos, or folders that hold some.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the stills go.")],
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="One still of every so many seconds.")
    ] = 1.0,
    scenes: Annotated[bool, typer.Option("--scenes", help="One still of every scene instead.")] = False,
    caption: Annotated[
        str | None, typer.Option("--caption", help="What the stills show; default: the video's name.")
    ] = None,
    radius: Annotated[
        int, typer.Option("--radius", help="Bits stills of a video must differ in; nearer ones are left out.")
    ] = 8,
    min_sharpness: Annotated[
        float, typer.Option("--min-sharpness", help="Leave out what is less sharp (0..1; 0.1: blurred).")
    ] = 0.0,
    start: Annotated[float, typer.Option("--start", metavar="SECONDS", help="Begin here.")] = 0.0,
    end: Annotated[float | None, typer.Option("--end", metavar="SECONDS", help="Stop here.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many of each video.")] = None,
    quality: Annotated[int, typer.Option("--quality", help="1 to 100, of the JPEGs.")] = 95,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Videos at a time (one a core).")] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Take sharp stills out of videos, near-duplicates left out (needs the extra video)."""
    from edkit.clean.frames import frames as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            videos,
            out,
            every=every,
            scenes=scenes,
            caption=caption,
            radius=radius,
            min_sharpness=min_sharpness,
            start=start,
            end=end,
            limit=limit,
            quality=quality,
            workers=workers,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _some(
            ui,
            ["still" if not dry_run else "would be taken", "of", "at (s)", "sharpness"],
            [(one.path.name, one.video.name, f"{one.time:.2f}", f"{one.sharpness:.3f}") for one in result.frames],
        )
        ui.done(
            result,
            f"{count(result.num_videos, 'video')}, {count(result.num_decoded, 'frame')} decoded:"
            f" {count(len(result.frames), 'still')} {'would be taken' if dry_run else f'taken into {out}'}"
            + (f" (undo: edkit undo {out})" if result.operation is not None else ""),
            *([f"{count(result.num_duplicates, 'near-duplicate')} left out"] if result.num_duplicates else []),
            *([f"{count(result.num_known, 'still')} there already"] if result.num_known else []),
            *map(str, result.broken),
        )
    if result.broken and not result.frames and not result.num_known:
        raise typer.Exit(1)


@app.command("aesthetic-filter", rich_help_panel=PANEL, epilog="Example: edkit aesthetic-filter photos --top 50%")
def aesthetic_filter(
    root: Dir,
    least: Annotated[float | None, typer.Option("--min", help="Least score that stays (about 1 to 10).")] = None,
    top: Annotated[str | None, typer.Option("--top", help="Share that stays, such as 50%.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Number of images that stay.")] = None,
    head: Annotated[
        str, typer.Option("--head", help="v1, v2, the path of a head, or hf://owner/repository/file.")
    ] = "v2",
    clip: Clip = "ViT-L-14-quickgelu",
    pretrained: Pretrained = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images the model sees at once.")] = 32,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; default: the GPU if any.")] = None,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Score images by CLIP and an aesthetic head; move what scores low (default: below 5) to the trash."""
    from edkit.clean.aesthetic_filter import aesthetic_filter as verb
    from edkit.clean.aesthetic_filter import share
    from edkit.clean.files import shown

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            root,
            min_score=least,
            top=None if top is None else share(top),
            limit=limit,
            head=head,
            clip=clip,
            pretrained=pretrained,
            batch_size=batch_size,
            device=device,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        ends = [*result.scores[:3], *result.scores[max(3, len(result.scores) - 3) :]]
        ui.table(
            ["best and worst", "score", ""],
            [(shown(one.path, root), one.score, "kept" if one.kept else "dropped") for one in ends],
        )
        dropped = result.num_images - result.num_kept
        ui.done(
            result,
            *(
                [f"scores {result.lowest:.2f} to {result.highest:.2f}, median {result.median:.2f}"]
                if result.lowest is not None
                else []
            ),
            f"{count(result.num_images, 'image')}: {result.num_kept:,} kept ({result.rule}),"
            f" {dropped:,} {_moved(dry_run, root, dropped)}",
            *_left(result.broken, result.skipped),
        )


def _page_of(root: Path, name: str) -> Path:
    """Where a page goes that is only to be looked at: among the temporary files."""
    import tempfile

    return Path(tempfile.gettempdir(), f"edkit-{name}-{root.resolve().name or 'root'}.html")


def _told(finding: Finding) -> list[str]:
    """One kind of finding in a few lines: its title, where, and the command that mends it."""
    from textwrap import wrap

    from edkit.data.errors import one_line

    wheres = [one_line(where) for where in finding.first]
    if finding.count > len(wheres):
        names = ", ".join(where.split(": ")[0] for where in wheres)
        wheres = [f"{names} and {finding.count - len(wheres):,} more"]
    wide = console.stdout().width - 4
    lines = [where if len(where) <= wide else f"{where[: wide - 3]}..." for where in wheres]
    lines += [f"> {finding.mend}"] if finding.mend else wrap(finding.by_hand, wide)
    return [f"{finding.level}: {finding.title}", *(f"    {line}" for line in lines)]


def _mends(fixed: Fixed, root: Path, dry_run: bool) -> list[str]:
    files = count(len(fixed.mended), "file")
    undo = f" (undo: edkit undo {root})" if fixed.operation is not None else ""
    left = [f"left: {shown_path}: {why}" for shown_path, why in fixed.left]
    return [f"{files} would be mended" if dry_run else f"{files} mended{undo}", *left]


def _some(ui: console.Session, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    """A table of the first rows, and how many more there are."""
    most = 40
    ui.table(columns, rows[:most])
    if len(rows) > most and not ui.as_json and not ui.quiet:
        typer.echo(f"... and {len(rows) - most:,} more (--json lists all)")


def _first(lines: Iterable[str], most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    told = list(lines)
    more = len(told) - most
    return told if more <= 0 else [*told[:most], f"... and {more:,} more (--json lists all)"]


def _page(report: Path | None, open_it: bool, root: Path, name: str) -> Path | None:
    """Where a page goes: where it was said, else (--open) where such pages lie."""
    return _page_of(root, name) if open_it and report is None else report


def _wrote(page: Path | None) -> list[str]:
    return [] if page is None else [f"page: {page}"]


def _show(page: Path | None, open_it: bool) -> None:
    if page is not None and open_it:
        console.open_page(page)


def _moved(dry_run: bool, root: Path, number: int) -> str:
    if dry_run:
        return "would be moved to the trash"
    return "moved to the trash" + (f" (undo: edkit undo {root})" if number else "")


def _left(broken: Iterable[Problem], skipped: Iterable[tuple[Path, str]]) -> list[str]:
    """One line for each file that was left where it is, and why."""
    return [*map(str, broken), *(f"left: {path}: {why}" for path, why in skipped)]
