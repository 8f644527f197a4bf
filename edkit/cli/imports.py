"""The command line of edkit: import, one command for each kind of set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edkit.cli import console
from edkit.cli.gather import (
    PANEL,
    AllowPrivate,
    Captions,
    CaptionsAs,
    Concurrency,
    Limit,
    PerHost,
    Retries,
    Timeout,
    UserAgent,
    kept_lines,
    short,
)

if TYPE_CHECKING:
    from edkit.cli.console import Session
    from edkit.gather.local import Imported

app = typer.Typer()
import_app = typer.Typer(no_args_is_help=True, help="Bring an existing set into a folder edkit and trainers read.")
app.add_typer(import_app, name="import", rich_help_panel=PANEL)

_FAILED_SHOWN = 10

# the same options wherever something is imported
Out = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
Link = Annotated[bool, typer.Option("--link/--copy", help="Hard links instead of copies, where they can be made.")]
Caption = Annotated[str | None, typer.Option("--caption", help="Caption of images that have none.")]
Licence = Annotated[
    str, typer.Option("--license", "--licence", help="Licence of images whose source doesn't say, for the ledger.")
]
Author = Annotated[str, typer.Option("--author", help="Author of images whose source doesn't say, for the ledger.")]
Images = Annotated[Path | None, typer.Option("--images", help="Folder that holds the image files.")]
CaptionKey = Annotated[str, typer.Option("--caption-key", help="Field of the JSON that holds the caption.")]


class CaptionChoice(StrEnum):
    """Which of an image's captions is used."""

    first = "first"
    random = "random"


class FfhqSize(StrEnum):
    """FFHQ's three sizes."""

    s1024 = "1024"
    s128 = "128"
    wild = "wild"


class CheckHash(StrEnum):
    """What a checksum of the source means for a file that differs."""

    off = "off"
    strict = "strict"


@import_app.command("folder", epilog="Example: edkit import folder holiday-photos --out set/holiday --link")
def folder(
    source: Annotated[Path, typer.Argument(help="Folder of images; its subfolders stay folders.")],
    out: Out,
    caption: Caption = None,
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import any tree of images, with its captions, subfolders and option files; run again, it goes on."""
    from edkit.gather.folder import import_folder as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            source,
            out=out,
            caption=caption,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "images in the folder")


@import_app.command(
    "coco",
    epilog="Example: edkit import coco --annotations captions_train2017.json --images train2017 --out pool "
    "--instances instances_train2017.json --category person",
)
def coco(
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO's captions JSON.")],
    out: Out,
    images: Images = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the images from COCO's server.")] = False,
    instances: Annotated[Path | None, typer.Option("--instances", help="COCO's instances JSON.")] = None,
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only images that show one of these: person,dog")
    ] = None,
    exclude_category: Annotated[
        list[str] | None, typer.Option("--exclude-category", help="No images that show one of these.")
    ] = None,
    min_area: Annotated[
        float, typer.Option("--min-area", help="Least share of the image that one such object fills: 0.1")
    ] = 0.0,
    no_crowds: Annotated[bool, typer.Option("--no-crowds", help="Objects marked as crowds don't count.")] = False,
    caption_choice: Annotated[
        CaptionChoice,
        typer.Option("--caption-choice", help="The first of an image's captions, or one by seed."),
    ] = CaptionChoice.first,
    seed: console.Seed = 555,
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    concurrency: Concurrency = 64,
    per_host: PerHost = 8,
    timeout: Timeout = 30.0,
    retries: Retries = 2,
    user_agent: UserAgent = "",
    allow_private_hosts: AllowPrivate = False,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import COCO photos with their captions, licences and sources; run again, it goes on."""
    from edkit.gather.coco import import_coco as verb
    from edkit.gather.fetch import USER_AGENT

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            annotations=annotations,
            out=out,
            images=images,
            download=download,
            instances=instances,
            categories=category or [],
            exclude_categories=exclude_category or [],
            min_area=min_area,
            crowds=not no_crowds,
            caption_choice=caption_choice.value,
            seed=seed,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            concurrency=concurrency,
            per_host=per_host,
            timeout=timeout,
            retries=retries,
            user_agent=user_agent or USER_AGENT,
            allow_private_hosts=allow_private_hosts,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "images in the annotations")


@import_app.command(
    "ffhq",
    epilog="Example: edkit import ffhq --metadata ffhq-dataset-v2.json --images images1024x1024 --out faces",
)
def ffhq(
    metadata: Annotated[Path, typer.Option("--metadata", help="ffhq-dataset-v2.json.")],
    out: Out,
    images: Images = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the images; broken files go on.")] = False,
    base_url: Annotated[
        list[str] | None, typer.Option("--base-url", help="A mirror of FFHQ's tree; several are tried in turn.")
    ] = None,
    size: Annotated[
        FfhqSize, typer.Option("--size", help="Aligned at 1024 or 128 pixels, or as photographed.")
    ] = FfhqSize.s1024,
    caption: Annotated[str, typer.Option("--caption", help="The caption of every image.")] = "person",
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    concurrency: Concurrency = 8,
    timeout: Timeout = 30.0,
    retries: Retries = 4,
    user_agent: UserAgent = "",
    allow_private_hosts: AllowPrivate = False,
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import FFHQ's faces with author, licence and page of each, sizes and MD5 checked; run again, it goes on."""
    from edkit.gather.fetch import USER_AGENT
    from edkit.gather.ffhq import import_ffhq as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            metadata=metadata,
            out=out,
            images=images,
            download=download,
            base_urls=base_url or [],
            size=size.value,
            caption=caption,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            user_agent=user_agent or USER_AGENT,
            allow_private_hosts=allow_private_hosts,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "images in the metadata")


@import_app.command("img2dataset", epilog="Example: edkit import img2dataset laion-out --out pool --limit 1000")
def img2dataset(
    source: Annotated[Path, typer.Argument(help="img2dataset's output folder: 00000/ or 00000.tar, ...")],
    out: Out,
    caption_key: CaptionKey = "",
    caption: Caption = None,
    check_hash: Annotated[
        CheckHash, typer.Option("--check-hash", help="Refuse files that differ from img2dataset's checksum.")
    ] = CheckHash.off,
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import what img2dataset downloaded, files or tar shards, with captions and URLs; run again, it goes on."""
    from edkit.gather.img2dataset import import_img2dataset as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            source,
            out=out,
            caption_key=caption_key,
            caption=caption,
            check_hash=check_hash.value,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "rows in the shards")


@import_app.command("webdataset", epilog="Example: edkit import webdataset 'shards/{000..099}.tar' --out pool")
def webdataset(
    shards: Annotated[list[str], typer.Argument(help="Tar shards: files, folders, patterns, or - for stdin.")],
    out: Out,
    caption_key: CaptionKey = "",
    caption: Caption = None,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import tar shards of images with .txt, .caption or .json beside; run again, it goes on."""
    from edkit.gather.webdataset import import_webdataset as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            shards,
            out=out,
            caption_key=caption_key,
            caption=caption,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "samples in the shards")


@import_app.command("kohya", epilog="Example: edkit import kohya lora-project --out set --link")
def kohya(
    source: Annotated[Path, typer.Argument(help="Folder with '10_subject name' folders, a project, or dataset.toml.")],
    out: Out,
    reg: Annotated[Path | None, typer.Option("--reg", help="The regularization folder (reg_data_dir).")] = None,
    caption_extension: Annotated[
        str, typer.Option("--caption-extension", help="Ending of the caption files (else .caption, then .txt).")
    ] = "",
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", help="Keys of a dataset.toml to pass over: color_aug,...")
    ] = None,
    caption: Caption = None,
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import kohya's training folders: repeats become multiply.txt; run again, it goes on."""
    from edkit.gather.kohya import import_kohya as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            source,
            out=out,
            reg=reg,
            caption_extension=caption_extension,
            ignore=ignore or [],
            caption=caption,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "images in the folders")


@import_app.command("hf", epilog="Example: edkit import hf my-imagefolder --out set --split train")
def hf(
    source: Annotated[str, typer.Argument(help="Folder with metadata, Parquet file(s), or hf://datasets/OWNER/NAME.")],
    out: Out,
    caption_column: Annotated[str, typer.Option("--caption-column", help="Column that holds the caption.")] = "",
    image_column: Annotated[str, typer.Option("--image-column", help="Column that holds the image's bytes.")] = "",
    split: Annotated[str, typer.Option("--split", help="Only this split: train, validation, ...")] = "",
    caption: Caption = None,
    link: Link = False,
    limit: Limit = None,
    captions: Captions = CaptionsAs.filename,
    licence: Licence = "",
    author: Author = "",
    dry_run: console.DryRun = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Import a Hugging Face ImageFolder, or Parquet files that hold images; run again, it goes on."""
    from edkit.gather.hf import import_hf as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        result = verb(
            source,
            out=out,
            caption_column=caption_column,
            image_column=image_column,
            split=split,
            caption=caption,
            link=link,
            limit=limit,
            captions=captions.value,
            licence=licence,
            author=author,
            dry_run=dry_run,
            state_dir=state_dir,
            progress=ui.progress,
        )
        _show(ui, result, "rows in the set")


# ---- what is shown


def _show(ui: Session, result: Imported, what: str) -> None:
    from edkit.gather.local import outcome

    if result.dropped:
        dropped = [(f"  {why}", -n) for why, n in result.dropped.items()]
        ui.table(["images", ""], [(what, result.rows_read), *dropped, ("left", result.matched)])
    ended = sorted(result.outcomes.items(), key=lambda entry: -entry[1])
    rows: list[tuple[str, int, str]] = [(outcome(code).what, n, outcome(code).hint) for code, n in ended]
    rows += [(why, n, "") for why, n in result.skipped.items()]
    if any(hint for _, _, hint in rows):
        ui.table(["outcome", "images", "what you can do"], rows)
    elif not result.dry_run or rows:
        ui.table(["outcome", "images"], [row[:2] for row in rows])
    shown = result.failed[:_FAILED_SHOWN]
    num_failed = sum(n for code, n in result.outcomes.items() if code not in ("ok", "duplicate", "surplus"))
    ui.table(["not taken", "why"], shown)
    more = []
    if num_failed > len(shown) and shown:
        more.append(f"... and {num_failed - len(shown):,} more (--json lists up to 1,000; the ledger has all)")
    ui.table(
        ["folder", "images", "multiply", "as"],
        [(made.folder, made.images, made.multiply, made.what) for made in result.folders],
    )
    if result.dry_run:
        ui.table(["image", "caption"], result.planned[:_FAILED_SHOWN])
        left = max(0, result.matched - num_failed - sum(result.skipped.values()))
        would = left if result.limit is None else min(left, max(0, result.limit - result.total))
        ui.done(result, *more, *result.notes, f"{would:,} images would be tried for {short(result.out)}; none was")
        return
    ui.done(result, *more, *kept_lines(result), *result.notes)
