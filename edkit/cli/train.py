"""The command line of edkit: train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edkit.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edkit.train.run import Run
    from edkit.train.verify import Verified

app = typer.Typer()
PANEL = "Train"
_SHOWN = 10  # images of each kind that `verify` lists

Precision = Annotated[str | None, typer.Option("--precision", help="fp32, or bf16 or fp16 where the machine has it.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: edkit train --data-root photos --model models/sd15 --max-epochs 20 --out runs/dog",
)
def train(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="With --resume: the run to go on with.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file, or EveryDream 2's train.json; flags are stronger.")
    ] = None,
    data_root: Annotated[
        list[Path] | None, typer.Option("--data-root", help="Folder or manifest to train on (repeatable).")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A diffusers folder, a hub id, or nano (it ships).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with RUN_DIR (or --out, or the newest in runs/).")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although data or settings changed.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Settings for a size of memory: sdxl-lora-12gb, or none. Else by the machine."),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="full, or lora: small adapters.")] = None,
    lora_rank: Annotated[int | None, typer.Option("--lora-rank", help="Rank of the adapters (16).")] = None,
    resolution: Annotated[int | None, typer.Option("--resolution", help="Pixels; none: the model's.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images a step, exactly.")] = None,
    max_epochs: Annotated[int | None, typer.Option("--max-epochs", help="Epochs to train.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps to train.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    text_encoder_lr: Annotated[
        float | None, typer.Option("--text-encoder-lr", help="The text encoder's own learning rate.")
    ] = None,
    train_text_encoder: Annotated[
        bool | None,
        typer.Option("--train-text-encoder/--freeze-text-encoder", help="Train the text encoder, too."),
    ] = None,
    lr_schedule: Annotated[
        str | None, typer.Option("--lr-schedule", help="constant, linear, cosine or polynomial.")
    ] = None,
    lr_warmup_steps: Annotated[int | None, typer.Option("--lr-warmup-steps", help="Steps until the full rate.")] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adamw, adamw8bit, adafactor, lion or prodigy.")
    ] = None,
    precision: Precision = None,
    ema_decay: Annotated[
        float | None, typer.Option("--ema-decay", help="Average the weights; samples and exports use it.")
    ] = None,
    min_snr_gamma: Annotated[
        float | None, typer.Option("--min-snr-gamma", help="Weigh timesteps by min-SNR; 5 is usual.")
    ] = None,
    cond_dropout: Annotated[
        float | None, typer.Option("--cond-dropout", help="How often a caption is left empty (0.04).")
    ] = None,
    flip_p: Annotated[float | None, typer.Option("--flip-p", help="How often an image is mirrored (0).")] = None,
    caption_fallback: Annotated[
        str | None, typer.Option("--caption-fallback", help="Caption of images whose name is no caption.")
    ] = None,
    leave_out_broken: Annotated[
        bool | None, typer.Option("--leave-out-broken", help="Train without what has an error, and list it.")
    ] = None,
    save_every_steps: Annotated[
        int | None, typer.Option("--save-every-steps", help="Checkpoint and export so often.")
    ] = None,
    save_every_epochs: Annotated[
        int | None, typer.Option("--save-every-epochs", help="Checkpoint and export so often.")
    ] = None,
    save_every_minutes: Annotated[
        float | None, typer.Option("--save-every-minutes", help="Checkpoint and export so often.")
    ] = None,
    validate_share: Annotated[
        float | None, typer.Option("--validate-share", help="Hold so much of the images out, and measure them (0.15).")
    ] = None,
    sample_prompt: Annotated[
        list[str] | None, typer.Option("--sample-prompt", help="Draw this during the run (repeatable).")
    ] = None,
    sample_every_steps: Annotated[
        int | None, typer.Option("--sample-every-steps", help="Draw the sample prompts so often.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of every random choice (555; -1 draws one, recorded).")
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as key=value (repeatable).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and the plan; train nothing.")
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Fine-tune a model on a data root, whole or as LoRA adapters, with exact resume."""
    from edkit.train.ranks import is_first
    from edkit.train.run import find_run
    from edkit.train.run import train as verb
    from edkit.train.settings import flag_settings

    flags = flag_settings(
        assignments or [],
        data_root=[str(path) for path in data_root] if data_root else None,
        model=model,
        out=out,
        method=method,
        lora_rank=lora_rank,
        resolution=resolution,
        batch_size=batch_size,
        max_epochs=max_epochs,
        max_steps=max_steps,
        lr=lr,
        text_encoder_lr=text_encoder_lr,
        train_text_encoder=train_text_encoder,
        lr_schedule=lr_schedule,
        lr_warmup_steps=lr_warmup_steps,
        optimizer=optimizer,
        precision=precision,
        ema_decay=ema_decay,
        min_snr_gamma=min_snr_gamma,
        cond_dropout=cond_dropout,
        flip_p=flip_p,
        caption_fallback=caption_fallback,
        leave_out_broken=leave_out_broken,
        save_every_steps=save_every_steps,
        save_every_epochs=save_every_epochs,
        save_every_minutes=save_every_minutes,
        validate_share=validate_share,
        sample_prompts=sample_prompt,
        sample_every_steps=sample_every_steps,
        seed=seed,
        device=device,
        state_dir=state_dir,
    )
    # of several processes that train one model (accelerate launch) one speaks
    with console.session(as_json=as_json and is_first(), quiet=quiet or not is_first()) as ui:
        settings, going_on = find_run(
            config, flags, run_dir=run_dir, resume=resume, preset=preset, progress=ui.progress
        )
        run = verb(settings, resume=going_on, accept_changes=accept_changes, dry_run=dry_run, progress=ui.progress)
        if dry_run:
            _show_plan(ui, run)
        ui.done(run, *_summary(run))


def _show_plan(ui: console.Session, run: Run) -> None:
    from edkit.train.settings import to_toml

    rows = [line.split(" = ", 1) for line in to_toml(run.settings).splitlines()]
    ui.table(["setting", "value"], rows, title="Settings")
    plan = run.summary
    folders = [(str(f.path), f.num_images, f.picks) for f in plan.folders]
    ui.table(["folder", "images", "picks in epoch 1"], folders, title="Folders")
    ui.table(["bucket", "images"], list(plan.buckets.items()), title="Buckets")


def _summary(run: Run) -> list[str]:
    plan = run.summary
    lines = [
        f"{plan.num_images:,} images, {plan.picks_per_epoch:,} picks and {plan.steps_per_epoch:,} "
        f"steps in the first epoch; {run.total_steps:,} steps of {run.settings.batch_size} images in all; "
        f"latents take {console.size(plan.latent_bytes)}"
    ]
    if plan.num_cut_captions:
        lines.append(f"{plan.num_cut_captions:,} captions are longer than the model reads (edkit check names them)")
    if plan.num_warnings:
        lines.append(f"{plan.num_warnings:,} warnings (edkit check lists them)")
    if run.dry_run and run.settings.validate_share:
        lines.append(f"{run.settings.validate_share:.0%} of them will be held out")
    if run.held_out_loss is not None:
        first, last = run.held_out_loss
        lines.append(f"{plan.num_held_out:,} images held out: loss {first:.4f} -> {last:.4f}")
    if plan.left_out:
        lines.append(f"{len(plan.left_out):,} images left out")
    if run.dry_run:
        return [*lines, f"nothing was trained; the run would stand in {run.run_dir}"]
    resumed = f", resumed at {run.resumed_from:,}" if run.resumed_from is not None else ""
    return [
        *lines,
        f"trained to step {run.step:,}{resumed}: loss {run.first_loss:.4f} -> {run.last_loss:.4f}, "
        f"{run.images_per_second:.1f} images/s, {run.seconds:,.0f} s",
        f"model: {run.export}",
    ]


@app.command(
    rich_help_panel=PANEL,
    epilog='Example: edkit generate runs/dog/export --prompt "rex on a beach" --out pictures',
)
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A diffusers folder, a .safetensors file, a hub id, or nano.")
    ],
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to draw (repeatable).")],
    out: Annotated[Path, typer.Option("--out", help="Where the PNG files go.")],
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures of each prompt.")] = 1,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option("--guidance", help="How closely to follow the prompt.")] = 5.0,
    negative: Annotated[str, typer.Option("--negative", help="What the picture should not show.")] = "",
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels; none: the model's.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Pictures drawn at once.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The noise the pictures grow from.")] = 555,
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, or bf16 or fp16 where the machine has it.")
    ] = "fp32",
    lora: Annotated[
        list[str] | None, typer.Option("--lora", help="A LoRA file or export, FILE or FILE:STRENGTH (repeatable).")
    ] = None,
    clip_skip: Annotated[int, typer.Option("--clip-skip", min=1, help="2: the text encoder's layer before.")] = 1,
    caption_chunks: Annotated[
        int, typer.Option("--caption-chunks", min=1, help="Prompts of up to so many times 75 tokens.")
    ] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Draw pictures from prompts with any model edkit trains."""
    from edkit.train.generate import generate as verb
    from edkit.train.generate import parse_lora, parse_size

    with console.session(as_json=as_json, quiet=quiet) as ui:
        paths = verb(
            model,
            prompt,
            out,
            num_images=num_images,
            steps=steps,
            guidance=guidance,
            negative=negative,
            size=parse_size(size) if size else None,
            batch_size=batch_size,
            seed=seed,
            precision=precision,
            loras=[parse_lora(text) for text in lora or []],
            clip_skip=clip_skip,
            caption_chunks=caption_chunks,
            device=device,
            progress=ui.progress,
        )
        ui.done({"images": paths}, *(str(path) for path in paths))


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: edkit convert runs/dog/export --to single-file --out dog.safetensors --precision fp16",
)
def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A diffusers folder, a .safetensors file, or a hub id.")
    ],
    to: Annotated[str, typer.Option("--to", help="single-file (what user interfaces load) or diffusers (a folder).")],
    out: Annotated[Path, typer.Option("--out", help="The new file or folder.")],
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16 weights.")] = "fp32",
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Write a model as one file in the original layout, or as a diffusers folder."""
    from edkit.train.convert import convert as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        made = verb(model, to=to, out=out, precision=precision)
        ui.done(made, f"{made.out}: {made.family}, {console.size(made.num_bytes)}")


@app.command(rich_help_panel=PANEL, epilog="Example: edkit verify runs/dog/export photos")
def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An export, a LoRA or model file of one, or a run.")],
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The data root (all of them where it was several).")
    ],
    every: Annotated[bool, typer.Option("--all", help="List every image, not only the first ones.")] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
    state_dir: console.StateDir = None,
) -> None:
    """Say whether this is the data that a model was trained on, and what differs (exit status 3)."""
    from edkit.train.verify import verify as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        found = verb(model, folders, state_dir=state_dir, progress=ui.progress)
        ui.done(found, *_differences(found, every=every), _verdict(found))
    if not found.same:
        raise typer.Exit(console.FOUND)


def _differences(found: Verified, *, every: bool) -> Iterator[str]:
    """A line an image, the first few of each kind."""
    kinds: dict[str, list[str]] = {
        "added": list(found.added),
        "removed": list(found.removed),
        "renamed": [f"{one.was} -> {one.now}" for one in found.renamed],
        "other bytes": [one.key for one in found.contents],
        "other caption": [f"{one.key}: {one.was!r} -> {one.now!r}" for one in found.captions],
        "other options": [f"{one.key}: {one.was} -> {one.now}" for one in found.options],
    }
    for kind, lines in kinds.items():
        shown = len(lines) if every else _SHOWN
        yield from (f"{kind}: {line}" for line in lines[:shown])
        if len(lines) > shown:
            yield f"{kind}: ... and {len(lines) - shown:,} more (--all)"


def _verdict(found: Verified) -> str:
    of = f"{found.model}" + (f" (step {found.step:,})" if found.step is not None else "")
    if found.same:
        held = f"; {found.num_held_out:,} of them were held out" if found.num_held_out else ""
        return f"{of} was trained on this data: {found.num_images:,} images{held}"
    if not found.details:
        return f"{of} was trained on other data; what differs says the dataset.jsonl of its export, which is not here"
    counts = {
        "added": found.added,
        "removed": found.removed,
        "renamed": found.renamed,
        "with other bytes": found.contents,
        "with other captions": found.captions,
        "with other options": found.options,
    }
    said = ", ".join(f"{len(lines):,} {kind}" for kind, lines in counts.items() if lines)
    return f"{of} was trained on other data than these {found.num_images:,} images: {said}"


@app.command(
    "init-model",
    rich_help_panel=PANEL,
    epilog="Example: edkit init-model sd1 --size tiny --out models/tiny",
)
def init_model(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="sd1, sd2, sdxl or klein.")],
    out: Annotated[Path, typer.Option("--out", help="The model's folder.")],
    size: Annotated[str, typer.Option("--size", help="tiny, or real: as published.")] = "tiny",
    prediction: Annotated[
        str | None,
        typer.Option("--prediction", help="epsilon or v_prediction (no klein); none: the family's own."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.")] = 555,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Write a model of a family's real architecture with random weights, for tests and benchmarks."""
    from edkit.train.initial import init_model as verb

    with console.session(as_json=as_json, quiet=quiet) as ui:
        made = verb(family, size=size, out=out, prediction=prediction, seed=seed)
        counts = ", ".join(f"{name} {n / 1e6:,.1f} M" for name, n in made.num_parameters.items())
        ui.done(made, f"{made.out}: {made.family} {made.size}, parameters: {counts}")
