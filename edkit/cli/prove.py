"""The command line of edkit: the proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edkit.cli import console

app = typer.Typer()
PANEL = "Prove"


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: edkit evaluate models/sd15 runs/dog/export --train data/dog --preservation data/ground_truth "
    '--class-prompt "a dog" --out dog.html',
)
def evaluate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before: a folder, a file, a hub id, or nano.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model after: an export, a file, or a LoRA.")],
    train: Annotated[Path, typer.Option("--train", help="What was to be learned: a folder of images.")],
    preservation: Annotated[Path, typer.Option("--preservation", help="What was to be kept: ground truth.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write (.html); its figures go beside it.")],
    class_prompt: Annotated[
        list[str] | None,
        typer.Option("--class-prompt", help='The class without the subject, "a dog"; shows bleeding (repeatable).'),
    ] = None,
    max_drift: Annotated[
        float | None,
        typer.Option(
            "--max-drift", min=0, help="Exit with 3 where the loss on ground truth rose by more (0.05 is 5%)."
        ),
    ] = None,
    strength: Annotated[float, typer.Option("--strength", help="Of a LoRA.")] = 1.0,
    num_images: Annotated[int, typer.Option("--num-images", help="Images of each side.")] = 100,
    num_pictures: Annotated[int, typer.Option("--num-pictures", help="Pictures of each side; 0 draws none.")] = 12,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps of a picture.")] = 25,
    guidance: Annotated[float, typer.Option("--guidance", help="How closely pictures follow prompts.")] = 5.0,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="Pixels; none: the run's, or the model's.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="A CLIP model that judges the pictures (open_clip name or folder).")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="Weights of --clip: a tag, or a checkpoint's path.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16 where the machine has it.")] = "fp32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    seed: console.Seed = 555,
    open_page: console.Open = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Say what a tuned model learned, what it kept, and whether its class became the subject."""
    from edkit.prove.evaluate import evaluate as verb
    from edkit.prove.verdict import MAX_DRIFT

    with console.session(as_json=as_json, quiet=quiet) as ui:
        found = verb(
            base,
            tuned,
            train=train,
            preservation=preservation,
            out=out,
            class_prompts=class_prompt or [],
            strength=strength,
            max_drift=MAX_DRIFT if max_drift is None else max_drift,
            num_images=num_images,
            num_pictures=num_pictures,
            steps=steps,
            guidance=guidance,
            resolution=resolution,
            clip=clip,
            pretrained=pretrained,
            precision=precision,
            device=device,
            seed=seed,
            progress=ui.progress,
        )
        drawn = [f"seed {found.seed}"] if seed == -1 else []
        ui.done(found, *drawn, *(f"{one.word}: {one.says}" for one in found.verdicts), f"page: {found.page}")
    if open_page:
        console.open_page(found.page)
    if max_drift is not None and found.drift.value > max_drift:
        raise typer.Exit(console.FOUND)


@app.command(rich_help_panel=PANEL, epilog="Example: edkit choose runs/dog --preservation data/ground_truth --open")
def choose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    preservation: Annotated[
        Path | None, typer.Option("--preservation", help="What was to be kept; none: the run's preservation_data.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option("--train", help="What was to be learned; none: the run's data root.")
    ] = None,
    class_prompt: Annotated[
        list[str] | None, typer.Option("--class-prompt", help='The class without the subject, "a dog" (repeatable).')
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="Of a LoRA (repeatable); none: 0.6, 0.8 and 1.")
    ] = None,
    max_drift: Annotated[
        float | None, typer.Option("--max-drift", min=0, help="The rise of the loss on ground truth that is allowed.")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", help="Images of each side.")] = 50,
    num_pictures: Annotated[
        int, typer.Option("--num-pictures", help="Pictures of each side that --clip or nano's reader judges.")
    ] = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps of a picture.")] = 25,
    guidance: Annotated[float, typer.Option("--guidance", help="How closely pictures follow prompts.")] = 5.0,
    clip: Annotated[str | None, typer.Option("--clip", help="A CLIP model that judges the pictures.")] = None,
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="Weights of --clip.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    seed: console.Seed = 555,
    open_page: console.Open = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Say which of a run's models to use, and why."""
    from edkit.prove.choose import choose as verb
    from edkit.prove.verdict import MAX_DRIFT

    with console.session(as_json=as_json, quiet=quiet) as ui:
        found = verb(
            run,
            preservation=preservation,
            train=train,
            class_prompts=class_prompt or [],
            strengths=strength or [],
            max_drift=MAX_DRIFT if max_drift is None else max_drift,
            num_images=num_images,
            num_pictures=num_pictures,
            steps=steps,
            guidance=guidance,
            clip=clip,
            pretrained=pretrained,
            device=device,
            seed=seed,
            progress=ui.progress,
        )
        ui.table(
            ["Model", "learned", "drift", "kept", "bled"],
            [
                [
                    one.name,
                    _percent(one.learned, one.learned_range),
                    _percent(one.drift, one.drift_range),
                    "yes" if one.kept else "no",
                    {None: "", True: "yes", False: "no"}[one.bled],
                ]
                for one in found.candidates
            ],
        )
        drawn = [f"seed {found.seed}"] if seed == -1 else []
        ui.done(found, *drawn, found.says, *found.tried_on, f"the model: {found.best.model}", f"page: {found.page}")
    if open_page:
        console.open_page(found.page)


def _percent(value: float, ends: tuple[float, float]) -> str:
    """`+3.0% (+1.2 to +4.6)`."""
    return f"{value:+.1%} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
