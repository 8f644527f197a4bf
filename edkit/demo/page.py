"""The demo's page: what was given, removed, balanced, trained, learned and kept, in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edkit.data.progress import Progress
from edkit.demo.place import Place
from edkit.demo.verbs import (
    BATCH_SIZE,
    MAX_UNSAFE,
    MAX_WATERMARK,
    MIN_SIZE,
    RADIUS,
    RULE,
    SEARCH,
    SHARE,
    prompts,
    score,
    survived,
)

if TYPE_CHECKING:
    from edkit.page.html import Html
    from edkit.page.pictures import Pair, Picture

_T = TypeVar("_T")


def write_page(place: Place, progress: Progress) -> dict[str, Any]:
    """Write `demo.html` from the record and the folders alone."""
    from edkit import __version__
    from edkit.nano import world
    from edkit.page import layout

    sections = (_key_figures, _subject, _gathered, _set_aside, _balanced, _trained, _learned, _kept, _again)
    page = layout.render(
        f"How a small model met a {world.SUBJECT_NAME}",
        *(section(place) for section in sections),
        lead=(
            f"{place.wish.num_subject} pictures of something the model had never seen, and the world it knew "
            "beside them: gathered, cleaned, balanced and trained by edkit on this machine."
        ),
        footer=f"Made by edkit {__version__} with seed {place.wish.seed}. All of it is in this one file.",
    )
    layout.write(place.page, page)
    return {}


def _key_figures(place: Place) -> Html:
    from edkit.page.layout import Figure, duration, key_figures

    drawn = place.found("generate")
    learned, before = score(drawn["subject-after"]), score(drawn["subject-before"])
    removed = place.found("dedupe")["removed"] + place.found("filter")["removed"]
    return key_figures(
        [
            Figure(
                value=f"{learned.share:.0%}",
                note=f"was {before.share:.0%}",
                label="of the pictures asked for show the new subject",
            ),
            Figure(
                value=f"{survived(drawn).share:.0%}",
                label="of the old world's pictures that were right before still are",
            ),
            Figure(value=f"{removed}", label="pictures set aside before training"),
            Figure(value=duration(place.seconds()), label="from nothing to this page"),
        ]
    )


def _subject(place: Place) -> Html:
    from edkit.nano import world
    from edkit.page import layout, pictures

    return layout.section(
        "The new subject",
        pictures.grid(_pictures_of(place.subject), page_dir=place.out, box=112, at_first=10),
        note=(
            f"A {world.SUBJECT_NAME}: a {world.SUBJECT_CLASS} of two colours, with eyes. The pictures came "
            "as a camera names them, captions beside them; rename-captions made the captions their names."
        ),
    )


def _gathered(place: Place) -> Html:
    from edkit.gather.candidate import outcome
    from edkit.page import charts, layout, pictures

    found, truth = place.found("scrape"), _pictures_of(place.ground_truth)
    funnel = [
        ("rows of the table", found["rows"]),
        ("match the search", found["matched"]),
        ("fetched", found["kept"]),
        ("after dedupe", found["kept"] - place.found("dedupe")["removed"]),
        ("left to train on", len(truth)),
    ]
    stayed_out = [
        [why.replace(",", ", "), n, "told by the table; never asked for"] for why, n in found["dropped"].items()
    ]
    stayed_out += [[outcome(code).what, n, "asked for; noted in the ledger"] for code, n in found["outcomes"].items()]
    return layout.section(
        "The ground truth",
        charts.bars("From the table to the training set", funnel, unit="pictures", accent=[funnel[-1][0]]),
        layout.table(["what stayed out", "rows", "how it was known"], stayed_out),
        layout.group(
            "Some of what came in",
            pictures.grid(_spread(truth, 24), page_dir=place.out, box=112, at_first=16),
        ),
        note=(
            "Pictures of the world the model knows already, found through a table of addresses like LAION's "
            "and fetched over HTTP, each under the caption it came with. They are there so that nothing is "
            "forgotten."
        ),
    )


def _set_aside(place: Place) -> Html:
    from edkit.page import layout, pictures
    from edkit.page.pictures import Pair, Picture

    twins = [
        Pair(
            before=Picture(source=gone.file, linked=False),
            after=Picture(source=place.data / str(gone.facts["kept"])),
            label=gone.reason,
        )
        for gone in place.removed("dedupe")
    ]
    blurred = [
        Picture(source=gone.file, caption=gone.was.name, note=gone.reason, linked=False)
        for gone in place.removed("filter")
    ]
    return layout.section(
        "What was set aside, and why",
        layout.group(
            f"{len(twins)} near-duplicates",
            pictures.pairs(twins, page_dir=place.out, box=128, at_first=6, before="set aside", after="kept instead"),
            note="Found by a perceptual hash and confirmed by colour; of each group the best stays.",
        ),
        layout.group(
            f"{len(blurred)} blurred pictures",
            pictures.grid(blurred, page_dir=place.out, box=144, at_first=6),
            note=f"They fail the rule {RULE}.",
        ),
        note="Nothing was deleted. It lies in the trash with its reason, and edkit undo brings it back.",
    )


def _balanced(place: Place) -> Html:
    from edkit.page import charts, layout

    parts = place.found("balance")["parts"]
    shares = [("as it lies", [p["images"] for p in parts]), ("as it trains", [p["picks"] for p in parts])]
    return layout.section(
        "The balance",
        charts.shares("Share of an epoch", shares, [p["folder"] for p in parts]),
        layout.table(
            ["folder", "pictures", "picks an epoch", "multiply.txt"],
            [[p["folder"], p["images"], round(p["picks"]), p["multiply"]] for p in parts],
        ),
        *(layout.prose(f"{p['said']}.") for p in parts),
        note=(
            "A multiply.txt says how often its folder trains. Here ground truth is to be "
            f"{SHARE:.0%} of every epoch, other pictures of it each time."
        ),
    )


def _trained(place: Place) -> Html:
    from edkit.page import charts, layout
    from edkit.page.charts import Series
    from edkit.train.watch import read_metrics

    found = place.found("train")
    points = [(row["step"], row["loss"]) for row in read_metrics(place.run)]
    mean = Series(name="mean of 25 steps", points=charts.smoothed(points, 25))
    return layout.section(
        "The training",
        charts.lines(
            "Loss",
            [Series(name="each step", points=points, faint=True), mean],
            across="step",
            up="mean squared error of the predicted noise",
            from_zero=True,
        ),
        layout.prose(
            f"{found['steps']:,} steps of {BATCH_SIZE} pictures, {found['images']:,} in all, in "
            f"{layout.duration(place.found('train')['seconds'])}."
        ),
        note="Most of this loss is noise no model can foretell. What it learned, the pictures tell.",
    )


def _learned(place: Place) -> Html:
    from edkit.nano import world
    from edkit.page import layout, pictures

    drawn = place.found("generate")
    return layout.section(
        "What it learned",
        pictures.pairs(_before_after(place, "subject", "found", "not found"), page_dir=place.out, box=128, at_first=12),
        note=(
            f"Asked for a {world.SUBJECT_NAME}, from the same noise before and after. The reader, plain "
            "image analysis that asks no model, finds it in "
            f"{score(drawn['subject-before'])} pictures before, in {score(drawn['subject-after'])} after."
        ),
    )


def _kept(place: Place) -> Html:
    from edkit.page import charts, layout, pictures

    drawn = place.found("generate")
    fates = Counter(zip(drawn["world-before"]["right"], drawn["world-after"]["right"], strict=True))
    named = {
        "right before and after": fates[True, True],
        "right before, wrong after": fates[True, False],
        "wrong before, right after": fates[False, True],
        "wrong before and after": fates[False, False],
    }
    rows = _before_after(place, "world", "right", "wrong")
    changed = [row for row in rows if row.before.good != row.after.good]
    same = [row for row in rows if row.before.good == row.after.good]
    return layout.section(
        "What it kept",
        charts.shares("The old world's pictures", [("prompts", list(named.values()))], list(named)),
        layout.group("Where the verdict changed", pictures.pairs(changed, page_dir=place.out, box=128))
        if changed
        else "",
        layout.group("Where it stayed", pictures.pairs(same, page_dir=place.out, box=128, at_first=9)),
        note=(
            "Asked for colours, shapes and grounds in combinations it was never trained on: "
            f"{score(drawn['world-before'])} are right before, {score(drawn['world-after'])} after. "
            f"Of those right before, {survived(drawn)} still are."
        ),
    )


def _before_after(place: Place, what: str, good: str, bad: str) -> list[Pair]:
    from edkit.nano import world
    from edkit.page.pictures import Pair, Picture

    drawn = place.found("generate")

    def picture(when: str, i: int) -> Picture:
        one = drawn[f"{what}-{when}"]
        right = bool(one["right"][i])
        path = place.pictures / f"{what}-{when}" / one["files"][i]
        return Picture(source=path, badge=good if right else bad, good=right)

    return [
        Pair(before=picture("before", i), after=picture("after", i), label=world.caption(scene))
        for i, scene in enumerate(prompts(place.wish.num_samples)[what])
    ]


def _again(place: Place) -> Html:
    from edkit.page import layout

    data, run, truth = place.data.name, place.run.name, place.ground_truth.name
    commands = (
        f'edkit scrape TABLE --any "{",".join(SEARCH)}" --min-size {MIN_SIZE} --max-unsafe {MAX_UNSAFE:g} '
        f"--max-watermark {MAX_WATERMARK:g} --out {data}/{truth}",
        f"edkit rename-captions {data}",
        f"edkit dedupe {data} --radius {RADIUS} --protect {data}/{place.subject.name}",
        f'edkit filter {data} --rule "{RULE}"',
        f"edkit balance {data} --share {truth}={SHARE:g}",
        f"edkit plan {data}",
        f"edkit train --data-root {data} --model MODEL --out {run} --max-steps {place.wish.max_steps}",
        f'edkit generate {run}/export --prompt "{_a_prompt()}" --out DIR',
    )
    rows = [[name, round(float(stage["seconds"]), 1)] for name, stage in place.stages.items()]
    return layout.section(
        "The same with your own pictures",
        layout.code("\n".join(commands)),
        layout.fold("How long each stage took here", layout.table(["stage", "seconds"], rows)),
        note="This page is made of these commands. In the folder beside it lies all they made.",
    )


def _a_prompt() -> str:
    from edkit.nano import world

    return world.caption(prompts(1)["subject"][0])


def _spread(items: Sequence[_T], num: int) -> list[_T]:
    """`num` of the items, evenly over all."""
    return [items[i * len(items) // num] for i in range(num)] if num < len(items) else list(items)


def _pictures_of(folder: Path) -> list[Picture]:
    """The pictures of a folder under the captions their names say."""
    from edkit.data.image import is_image
    from edkit.data.names import caption_of_stem
    from edkit.page.pictures import Picture

    paths = sorted(path for path in folder.iterdir() if is_image(path))
    return [Picture(source=path, caption=caption_of_stem(path.stem)) for path in paths]
