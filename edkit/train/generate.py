"""Pictures from prompts: the same picture for the same prompt and seed, whatever stands beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkit.data import atomic
from edkit.data.errors import BadInput, UsageError
from edkit.data.names import safe_name
from edkit.data.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from edkit.train.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to draw; it grows from noise that is a function of (seed, prompt, occurrence) and size."""

    prompt: str
    negative: str | None = None  # None: as the call says
    seed: int = 555
    occurrence: int = 0  # which of several pictures of this prompt


def generate(
    model: str | Path,
    prompts: Sequence[str],
    out: Path | str,
    *,
    num_images: int = 1,
    steps: int = 25,
    guidance: float = 5.0,
    seed: int = 555,
    size: tuple[int, int] | None = None,
    negative: str = "",
    batch_size: int | None = None,
    precision: str = "fp32",
    loras: Sequence[tuple[Path, float]] = (),
    clip_skip: int = 1,
    caption_chunks: int = 1,
    device: str = "auto",
    progress: Progress = SILENT,
) -> list[Path]:
    """Draw `num_images` PNG files for each prompt into `out`; prompt, seed and settings stand in each file's
    text. `loras`: adapters to add to the model's weights, with their strengths; `clip_skip` and `caption_chunks` as in
    training.

    The n-th picture of a prompt is the same in every call with the same model, settings and `batch_size`
    (None: a number that the machine and the size decide). `size` is (width, height) in pixels. Raises
    BadInput for a model that does not load, UsageError for a size or a number of steps it can't draw.
    """
    from edkit.train.families import load_family
    from edkit.train.families.base import need_precision
    from edkit.train.lora import merge_lora

    out = Path(out)
    if not prompts:
        raise UsageError("no prompt was given", mend='--prompt "a photo of ..."')
    if steps < 1 or num_images < 1:
        raise UsageError("steps and the number of images must be at least 1")
    need_precision(precision)
    family = load_family(model, say=progress.say)
    read = {"clip_skip": clip_skip, "caption_chunks": caption_chunks}
    for name, value in read.items():
        if value < 1 or (value > 1 and name in family.refusals):
            raise UsageError(f"{name} {value}: {family.refusals.get(name, 'must be at least 1')}")
    family.clip_skip, family.caption_chunks = clip_skip, caption_chunks
    for path, strength in loras:
        merge_lora(family, path, strength=strength)
    place = pick_device(device)
    family.place(place)
    counts: dict[str, int] = {}
    requests = []
    for prompt in prompts:
        for _ in range(num_images):
            occurrence = counts.get(prompt, 0)
            counts[prompt] = occurrence + 1
            requests.append(Request(prompt=prompt, seed=seed, occurrence=occurrence))
    pictures = draw(
        family, requests, steps=steps, guidance=guidance, size=size, negative=negative, batch_size=batch_size,
        precision=precision, device=place, progress=progress,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    taken = {path.name.casefold() for path in out.iterdir()}
    for request, picture in zip(requests, pictures, strict=True):
        path = out / _free_name(request, taken)
        said: dict[str, Any] = {"negative": negative, "steps": steps, "guidance": guidance, "model": str(model)}
        said |= {name: value for name, value in read.items() if value > 1}
        if loras:
            said["loras"] = ", ".join(f"{path} x {strength:g}" for path, strength in loras)
        write_png(path, picture, {"prompt": request.prompt, "seed": seed, "occurrence": request.occurrence, **said})
        paths.append(path)
    return paths


def draw(
    family: Family,
    requests: Sequence[Request],
    *,
    steps: int,
    guidance: float,
    size: tuple[int, int] | None = None,
    negative: str = "",
    batch_size: int | None = None,
    precision: str = "fp32",
    device: torch.device,
    progress: Progress = SILENT,
) -> list[Image.Image]:
    """The pictures asked for, in order. Batches are padded to one size, so no picture depends on its
    neighbours.
    """
    import numpy as np
    import torch
    from PIL import Image

    from edkit.train.families.base import DTYPES, need_precision
    from edkit.train.noise import normal

    need_precision(precision)
    if steps >= family.num_timesteps:
        raise UsageError(f"{steps} steps: this model draws in fewer than its {family.num_timesteps} timesteps")
    width, height = size or (family.resolution, family.resolution)
    if width < 1 or height < 1 or width % family.bucket_step or height % family.bucket_step:
        step = family.bucket_step
        raise UsageError(f"{width} x {height}: this model draws widths and heights in steps of {step} pixels")
    shape = (family.latent_channels, height // family.vae_factor, width // family.vae_factor)
    rows = batch_size or (1 if device.type == "cpu" and shape[1] * shape[2] >= 32 * 32 else 8)
    pictures: list[Image.Image] = []
    autocast = torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32", cache_enabled=True)
    modes = {name: part.training for name, part in family.parts().items()}
    for part in family.parts().values():
        part.eval()
    try:
        with torch.no_grad(), progress.task("drawing", total=len(requests)) as advance:
            for start in range(0, len(requests), rows):
                some = list(requests[start : start + rows])
                padded = some + [some[-1]] * (rows - len(some))
                noise = torch.cat([normal(shape, r.seed, "generate", [(r.prompt, r.occurrence)]) for r in padded])
                with autocast:
                    text = family.encode_text(_on(family.tokenize([r.prompt for r in padded]), device))
                    empty = family.encode_text(
                        _on(family.tokenize([negative if r.negative is None else r.negative for r in padded]), device)
                    )
                    latents = family.denoise(noise.to(device), text, empty, steps=steps, guidance=guidance)
                pixels = family.decode_latents(latents.float())[: len(some)]
                values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
                pictures += [Image.fromarray(np.ascontiguousarray(v.numpy())) for v in values]
                advance(len(some))
    finally:
        for name, part in family.parts().items():
            part.train(modes[name])
    return pictures


def grid(rows: Sequence[Sequence[Image.Image]], prompts: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A sheet of pictures: a row for each prompt, which stands at its left, and a column for each of `columns`."""
    from PIL import Image, ImageDraw, ImageFont

    font, line, gap, margin = ImageFont.load_default(13), 17, 6, 176
    widths = [max(row[i].width for row in rows) for i in range(len(columns))]
    heights = [max(2 * line, *(picture.height for picture in row)) for row in rows]
    head = line + gap if any(columns) else gap
    size = (margin + sum(widths) + gap * (len(widths) + 1), head + sum(heights) + gap * len(heights))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    lefts = [margin + gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    for left, name in zip(lefts, columns, strict=True):
        pen.text((left, 3), name, fill="black", font=font)
    top = head
    for row, prompt, height in zip(rows, prompts, heights, strict=True):
        for n, text in enumerate(_lines(prompt, font, margin - gap, max(2, height // line))):
            pen.text((gap, top + n * line), text, fill="black", font=font)
        for left, picture in zip(lefts, row, strict=True):
            sheet.paste(picture, (left, top))
        top += height + gap
    return sheet


def write_png(path: Path, picture: Image.Image, text: dict[str, Any]) -> None:
    """One PNG, whole or not at all, with its text chunks."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    atomic.write_bytes(path, buffer.getvalue())


def pick_device(name: str) -> torch.device:
    """The device asked for; `auto` is CUDA, then Apple's, then the CPU. BadInput where torch has no such
    device.
    """
    import torch

    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(str(error).splitlines()[0], where=f"device {name}", mend="auto, cpu, cuda or mps") from None
    return device


def parse_size(text: str) -> tuple[int, int]:
    """`768x512` -> (768, 512); UsageError for anything else."""
    width, _, height = text.lower().replace("×", "x").partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise UsageError(f"{text!r} is no size (say 768x512)")
    return int(width), int(height)


def parse_lora(text: str) -> tuple[Path, float]:
    """`her.safetensors:0.8` -> (path, 0.8); without a number the strength is 1."""
    path, colon, number = text.rpartition(":")
    try:
        return (Path(path), float(number)) if colon and path else (Path(text), 1.0)
    except ValueError:  # a Windows drive, or a colon of the name
        return Path(text), 1.0


def _on(tokens: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: ids.to(device) for name, ids in tokens.items()}


def _free_name(request: Request, taken: set[str]) -> str:
    """`prompt_(n).png`, never the name of a file that is already there."""
    stem = safe_name(request.prompt[:80])
    n = request.occurrence + 1
    while f"{stem}_({n}).png".casefold() in taken:
        n += 1
    taken.add(f"{stem}_({n}).png".casefold())
    return f"{stem}_({n}).png"


def _lines(label: str, font: Any, width: int, most: int) -> list[str]:
    """The label broken into at most so many lines, at words where there are any."""
    lines: list[str] = []
    rest = " ".join(label.split())
    while rest and len(lines) < most:
        cut = len(rest)
        while cut > 1 and font.getlength(rest[:cut]) > width:
            cut -= 1
        if cut < len(rest) and " " in rest[:cut]:
            cut = rest[:cut].rindex(" ") + 1
        lines.append(rest[:cut].strip())
        rest = rest[cut:]
    if rest and lines:
        lines[-1] = lines[-1][:-1] + "…"
    return lines
