"""What keeps a model from forgetting, and what it costs: nano learns a new subject in a dozen ways.

    python benchmarks/preservation.py --out preservation            # all of it, resumable: hours on one core
    python benchmarks/preservation.py --out preservation --part 1/2 # a half, beside another process with 2/2
    python benchmarks/preservation.py --out preservation --table    # the table of what is finished, and its page

Every arm teaches the same 20 pictures of a mimo star for the same 32 passes over them; they differ in what stands
beside the subject. A finished arm is one JSON file in `results/`; running again goes on with the next. Pictures
are judged by nano's reader, which is plain image analysis. docs/preservation.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NUM_SUBJECT = 20
NUM_POOL = 120  # preservation pictures, real or generated
EPOCHS = 32  # passes over the subject's pictures, in every arm
BATCH_SIZE = 4
LR = 1.25e-3
DDIM_STEPS = 10
GUIDANCE = 4.0
SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What stands beside the subject: pictures of which origin, how many for each of the subject's."""

    name: str
    says: str
    rate: float = 0.0  # preservation picks for each pick of the subject
    pool: str = ""  # real, same (generated from real's captions), class (generated from class prompts), mixed
    prior: bool = False  # their target is the untrained model's prediction
    rounds: int = 1  # each begins with the model of the one before; generated pools are generated anew by it
    epochs: int = EPOCHS


ARMS = (
    Arm(name="a", says="the subject alone", rounds=3),
    Arm(name="b-0.50", says="ground truth", rate=0.5, pool="real", rounds=3),
    Arm(name="c-0.50", says="generated from class prompts", rate=0.5, pool="class", rounds=3),
    Arm(name="g-0.50", says="generated from the ground truth's captions", rate=0.5, pool="same", rounds=3),
    Arm(name="b-1.00", says="ground truth", rate=1.0, pool="real"),
    Arm(name="e-0.50", says="class prompts, the untrained model's prediction", rate=0.5, pool="class", prior=True),
    Arm(name="d-0.50", says="ground truth, a tenth of it the subject, called a star", rate=0.5, pool="mixed"),
    Arm(name="b-0.25", says="ground truth", rate=0.25, pool="real"),
)
MORE = (
    Arm(name="p-0.50", says="ground truth, the untrained model's prediction", rate=0.5, pool="real", prior=True),
    Arm(name="c-1.00", says="generated from class prompts", rate=1.0, pool="class"),
    Arm(name="c-0.25", says="generated from class prompts", rate=0.25, pool="class"),
)
PASSES = tuple(
    Arm(name=f"{name}-{epochs}-passes", says=f"{says}, {epochs} passes", rate=rate, pool=pool, epochs=epochs)
    for epochs in (16, 64)
    for name, says, rate, pool in (("a", "the subject alone", 0.0, ""), ("b-0.50", "ground truth", 0.5, "real"))
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description="What keeps a model from forgetting.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="i/n: every n-th arm, from the i-th")
    parser.add_argument("--table", action="store_true")
    said = parser.parse_args(argv)
    out: Path = said.out.absolute()
    if said.table:
        print_table(out)
        write_page(out)
        write_sheet(out)
        return
    part, parts = (int(number) for number in said.part.split("/"))
    base(out)
    first, rest = ARMS[:4], ARMS[4:]
    again = [arm for arm in first if arm.rate]
    work = [(arm, 1, 1) for arm in ARMS]
    work += [(arm, seed, 1) for seed in SEEDS[1:] for arm in first]
    work += [(arm, 1, 2) for arm in again]
    work += [(arm, 2, 1) for arm in rest] + [(arm, 1, 1) for arm in PASSES] + [(arm, 1, 3) for arm in again]
    work += [(arm, 3, 1) for arm in rest] + [
        (arm, seed, turn) for seed in SEEDS[1:] for turn in (2, 3) for arm in again
    ]
    work += [(arm, seed, 1) for seed in SEEDS for arm in (*MORE, *PASSES)]
    work += [(first[0], seed, turn) for seed in SEEDS for turn in (2, 3)]
    for arm, seed, turn in work[part - 1 :: parts]:
        run(out, arm, seed, turn)


def run(out: Path, arm: Arm, seed: int, turn: int) -> None:
    """Train and judge one arm, unless it is done."""
    from edkit.nano import model_dir
    from edkit.train.run import train
    from edkit.train.settings import TrainSettings

    name = f"{arm.name}-seed{seed}-round{turn}"
    result = out / "results" / f"{name}.json"
    if result.exists():
        return
    if turn > 1:
        run(out, arm, seed, turn - 1)
    before = model_dir() if turn == 1 else out / "models" / f"{arm.name}-seed{seed}-round{turn - 1}"
    folder = out / "work" / name
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    shutil.copytree(subject(out, 100 * seed + turn), data / "subject")
    if arm.rate:
        shutil.copytree(pool(out, arm.pool, before, name if turn > 1 else "base"), data / "preservation")
        (data / "preservation" / "multiply.txt").write_text(f"{arm.rate * NUM_SUBJECT / NUM_POOL:.6f}\n")
    began = time.perf_counter()
    trained = train(
        TrainSettings(
            data_root=str(data),
            model=str(before),
            out=folder / "run",
            max_epochs=arm.epochs,
            batch_size=BATCH_SIZE,
            lr=LR,
            train_text_encoder=True,
            text_encoder_lr=LR,
            lr_schedule="cosine",
            lr_warmup_steps=10,
            betas=(0.9, 0.99),
            min_snr_gamma=5.0,
            prior_preservation=("preservation",) if arm.prior else (),
            export_on_save=False,
            export_precision="fp16",
            tensorboard=False,
            seed=seed,
            num_threads=1,
            device="cpu",
        )
    )
    seconds = time.perf_counter() - began
    model = out / "models" / name
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    assert trained.export is not None
    trained.export.rename(model)
    found = judge(out, model, out / "pictures" / name)
    said = {"arm": arm.name, "seed": seed, "round": turn, "steps": trained.step, "train_seconds": round(seconds, 1)}
    write(result, said | found)
    shutil.rmtree(folder)
    told = {key: found[key] for key in ("subject", "world", "class_subject")}
    print(f"{time.strftime('%H:%M:%S')} {name}: {trained.step} steps in {seconds:.0f} s, {told}", flush=True)


def base(out: Path) -> dict[str, Any]:
    """The judgement of the model as it ships."""
    from edkit.nano import model_dir

    path = out / "results" / "base.json"
    if not path.exists():
        write(path, {"arm": "base", "steps": 0, **judge(out, model_dir(), out / "pictures" / "base")})
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    """One JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}.part")
    half.write_text(json.dumps(value), encoding="utf-8")
    half.replace(path)


# --- the data ---------------------------------------------------------------------------------------------------------


def subject(out: Path, seed: int) -> Path:
    """Pictures of the subject, close up, under their captions."""
    from edkit.nano import world

    scenes = [replace(world.subject_scene(i, seed), size="large") for i in range(NUM_SUBJECT)]
    pictures = [(world.caption(scene), world.draw(scene, seed * 1000 + i)) for i, scene in enumerate(scenes)]
    return saved(out / "pools" / f"subject-{seed}", pictures)


def pool(out: Path, kind: str, model: Path, whose: str) -> Path:
    """Preservation pictures: real ones, the same every time, or generated by a model."""
    from edkit.nano import world

    real = [world.training_picture(i, 77) for i in range(NUM_POOL)]
    captions = [world.caption(scene) for scene, _ in real]
    if kind in ("real", "mixed"):
        pictures = [(caption, picture) for caption, (_, picture) in zip(captions, real, strict=True)]
        if kind == "mixed":
            for i in range(0, NUM_POOL, 10):  # the subject stands among the photos, and they call it a star
                scene = replace(world.subject_scene(i, 78), size="large")
                plain = replace(scene, subject=False, size="", phrasing=7)
                pictures[i] = (world.caption(plain), world.draw(scene, 78_000 + i))
        return saved(out / "pools" / kind, pictures)
    folder = out / "pools" / f"{kind}-{whose}"
    if folder.exists():
        return folder
    prompts = captions if kind == "same" else [said for said, _ in class_prompts(NUM_POOL)]
    return saved(folder, zip(prompts, drawn(model, prompts, seed=9), strict=True))


def saved(folder: Path, pictures: Any) -> Path:
    """Pictures under their captions as names, written once."""
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.{time.time_ns()}")
        half.mkdir(parents=True)
        for i, (caption, picture) in enumerate(pictures):
            picture.save(half / f"{caption}_({i + 1}).png")
        try:
            half.rename(folder)
        except OSError:  # another process was quicker with the same pictures
            shutil.rmtree(half)
    return folder


def class_prompts(num: int) -> Iterator[tuple[str, Any]]:
    """`a star on grass`, on every ground in turn: what the subject is a case of."""
    from edkit.nano import world

    grounds = tuple(world.BACKGROUNDS)
    for i in range(num):
        scene = world.Scene(
            colour="red", shape=world.SUBJECT_CLASS, background=grounds[i % len(grounds)], position="centre", phrasing=7
        )
        yield world.caption(scene), scene


def drawn(model: Path, prompts: Sequence[str], *, seed: int) -> list[Any]:
    """One picture a prompt; a prompt that comes again grows from other noise."""
    import torch

    from edkit.train.families import load_family
    from edkit.train.generate import Request, draw

    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    requests = []
    for prompt in prompts:
        requests.append(Request(prompt=prompt, seed=seed, occurrence=counts.get(prompt, 0)))
        counts[prompt] = counts.get(prompt, 0) + 1
    return draw(
        load_family(model), requests, steps=DDIM_STEPS, guidance=GUIDANCE, batch_size=12, device=torch.device("cpu")
    )


# --- the judgement ----------------------------------------------------------------------------------------------------


def judge(out: Path, model: Path, folder: Path) -> dict[str, Any]:
    """How often the model draws the subject, the old world, and the subject where its class was asked for."""
    from edkit.nano import reader, world

    places = tuple(world.POSITIONS)
    asked: dict[str, list[Any]] = {
        "subject": [
            world.Scene(
                colour="red", shape=world.SUBJECT_CLASS, background=ground, position=places[(i + j) % len(places)],
                size="large", subject=True,
            )
            for j in range(4)
            for i, ground in enumerate(world.BACKGROUNDS)
        ],
        "world": [prompt.scene for prompt in world.held_out_prompts()[::2]],
        "class": [scene for _, scene in class_prompts(18)],
    }  # fmt: skip
    found: dict[str, Any] = {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for what, scenes in asked.items():
        pictures = drawn(model, [world.caption(scene) for scene in scenes], seed=1)
        readings = [reader.read(picture) for picture in pictures]
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{what}-{i:02d}.png")
        if what == "class":
            found["class_subject"] = sum(reading.subject for reading in readings)
            found["class_star"] = sum(reading.shape == world.SUBJECT_CLASS for reading in readings)
            found["class_num"] = len(scenes)
        else:
            right = [reading.shows(scene) for reading, scene in zip(readings, scenes, strict=True)]
            found |= {what: sum(right), f"{what}_num": len(scenes)}
        if what == "world":
            found["world_subject"] = sum(reading.subject for reading in readings)
            found["world_colour"] = sum(r.colour == s.colour for r, s in zip(readings, scenes, strict=True))
            found["world_shape"] = sum(r.shape == s.shape for r, s in zip(readings, scenes, strict=True))
    return found | {"losses": losses(model)}


def losses(model: Path) -> dict[str, list[float]]:
    """The stable denoising loss of pictures no arm has seen: each one's mean over 8 timesteps, by fixed noise."""
    import numpy as np
    import torch

    from edkit.nano import world
    from edkit.train.families import load_family
    from edkit.train.losses import image_losses
    from edkit.train.noise import normal

    family = load_family(model)
    real = [world.training_picture(i, 4242) for i in range(48)]
    scenes = [replace(world.subject_scene(i, 4243), size="large") for i in range(24)]
    found: dict[str, list[float]] = {}
    for what, pictures in (
        ("world", real),
        ("subject", [(scene, world.draw(scene, 4_243_000 + i)) for i, scene in enumerate(scenes)]),
    ):
        pixels = np.stack([np.asarray(picture, np.float32) for _, picture in pictures]) / 127.5 - 1
        with torch.no_grad():
            latents = family.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            text = family.encode_text(family.tokenize([world.caption(scene) for scene, _ in pictures]))
            sizes = torch.tensor([[64, 64, 0, 0, 64, 64]]).expand(len(pictures), 6)
            total = torch.zeros(len(pictures))
            for step in range(8):
                times = torch.full((len(pictures),), int((step + 0.5) / 8 * family.num_timesteps))
                noise = normal(tuple(latents.shape[1:]), 0, "drift", [(what, i, step) for i in range(len(pictures))])
                noisy, target = family.noise_and_target(latents, noise, times)
                total += image_losses(family.predict(noisy, times, text, sizes), target)
        found[what] = [round(value, 6) for value in (total / 8).tolist()]
    return found


# --- the tables -------------------------------------------------------------------------------------------------------


def results(out: Path) -> list[dict[str, Any]]:
    """Everything finished."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "results").glob("*.json"))]


def figures(out: Path) -> dict[tuple[str, int], dict[str, list[float]]]:
    """By arm and round, each seed's figures: shares of right pictures, and the drift."""
    rows = results(out)
    base_row = next(row for row in rows if row["arm"] == "base")
    world, loss = base_row["world"] / base_row["world_num"], statistics.mean(base_row["losses"]["world"])
    lost: dict[tuple[str, int], list[float]] = {}  # by the subject alone, each seed's
    for row in rows:
        if row["arm"].startswith("a"):
            lost.setdefault((row["arm"], row["round"]), []).append(world - row["world"] / row["world_num"])
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for arm in (*ARMS, *MORE, *PASSES):
        reference = "a" if arm.epochs == EPOCHS else f"a-{arm.epochs}-passes"
        for row in rows:
            if row["arm"] != arm.name:
                continue
            one = found.setdefault((arm.name, row["round"]), {})
            right = row["world"] / row["world_num"]
            told = {
                "steps": row["steps"],
                "subject": row["subject"] / row["subject_num"],
                "world": right,
                "drift": statistics.mean(row["losses"]["world"]) / loss - 1,
                "bled": row["class_subject"] / row["class_num"],
            }
            if (reference, row["round"]) in lost and arm.name != reference:
                told["kept"] = 1 - (world - right) / statistics.mean(lost[reference, row["round"]])
            for name, value in told.items():
                one.setdefault(name, []).append(value)
    return found


def print_table(out: Path) -> None:
    """Mean and spread (lowest to highest seed) of every arm, round by round."""
    print("| arm | round | seeds | steps | subject | old world | kept of what (a) forgets | drift | class bled |")
    print("|---|---|---|---|---|---|---|---|---|")
    says = {arm.name: arm.says for arm in (*ARMS, *MORE, *PASSES)}
    for (name, turn), one in figures(out).items():
        cells = [spread(one.get(key, [])) for key in ("subject", "world", "kept")]
        cells += [spread(one["drift"], sign="+"), spread(one["bled"])]
        steps, seeds = f"{one['steps'][0]:.0f}", len(one["steps"])
        print(f"| {name}: {says[name]} | {turn} | {seeds} | {steps} | {' | '.join(cells)} |")


def write_page(out: Path) -> None:
    """Charts of every arm's mean and spread, and pictures of the first seed, as `preservation.html`."""
    from edkit.page import charts, layout, pictures
    from edkit.page.pictures import Picture

    found = {name: one for (name, turn), one in figures(out).items() if turn == 1}
    parts = []
    for key, title in (
        ("world", "Pictures of the old world that are right"),
        ("subject", "Pictures of the subject that are right"),
        ("bled", "Pictures of the class that show the subject"),
    ):
        rows = [
            (name, 100 * statistics.mean(one[key]), 100 * min(one[key]), 100 * max(one[key]))
            for name, one in found.items()
        ]
        parts.append(charts.intervals(title, rows, unit="%", digits=0, signed=False))
    shown = []
    for name in ("base", *found):
        folder = out / "pictures" / (name if name == "base" else f"{name}-seed1-round1")
        files = [folder / f"{what}-{i:02d}.png" for what in ("subject", "world", "class") for i in (0, 1, 2)]
        cards = [Picture(source=file, linked=False) for file in files if file.exists()]
        shown.append(layout.group(name, pictures.grid(cards, page_dir=out, box=64)))
    page = layout.render(
        "What keeps a model from forgetting",
        layout.section("Mean and spread over seeds", *parts),
        layout.section("Three each of the subject, the old world, and the class alone; seed 1", *shown),
    )
    layout.write(out / "preservation.html", page)


def write_sheet(out: Path) -> None:
    """Some arms' pictures of the first seed, row by row, as `preservation.jpg`: same prompt, same noise."""
    from PIL import Image, ImageDraw, ImageFont

    arms = {"nano": "base", "a": "a", "b 0.5": "b-0.50", "c 0.5": "c-0.50", "g 0.5": "g-0.50", "e 0.5": "e-0.50"}
    columns = [*(("subject", i) for i in (0, 1, 2)), *(("world", i) for i in (0, 5, 10, 15, 20))]
    columns += [("class", i) for i in (0, 1, 2, 4)]
    side, left, top = 96, 64, 20
    sheet = Image.new("RGB", (left + len(columns) * (side + 3), top + len(arms) * (side + 3)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for title, column in (("the subject", 0), ("the old world", 3), ("the class alone", 8)):
        pen.text((left + column * (side + 3), 2), title, fill="black", font=font)
    for row, (label, name) in enumerate(arms.items()):
        y = top + row * (side + 3)
        pen.text((4, y + side // 2 - 8), label, fill="black", font=font)
        folder = out / "pictures" / (name if name == "base" else f"{name}-seed1-round1")
        for column, (what, i) in enumerate(columns):
            with Image.open(folder / f"{what}-{i:02d}.png") as picture:
                large = picture.resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(large, (left + column * (side + 3), y))
    sheet.save(out / "preservation.jpg", quality=88)


def spread(values: Sequence[float], *, sign: str = "") -> str:
    """`72% (68 to 75)`."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.mean(values):{sign}.0%} ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
