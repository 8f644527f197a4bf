"""What a run draws while it runs: from the settings, or from a file that is read again whenever it is drawn from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edkit.data.errors import BadInput
from edkit.data.plan import buckets, nearest
from edkit.data.random import integer
from edkit.train.everydream import read_json, read_text
from edkit.train.generate import Request

_SHEET_KEYS = {"batch_size", "seed", "cfgs", "scheduler", "num_inference_steps", "samples"}
# of EveryDream's whole run, which its train.json or edkit's settings say
_RUN_KEYS = {"show_progress_bars", "generate_samples_every_n_steps", "generate_pretrain_samples"}
_SAMPLE_KEYS = {"prompt", "negative_prompt", "seed", "size", "aspect_ratio", "random_caption"}


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """One row of pictures."""

    prompt: str | None  # None: the caption of a training image, drawn by the seed
    negative: str = ""
    seed: int = 555  # -1: another one at every sampling, drawn by the run's seed and the step
    size: tuple[int, int] | None = None  # width, height in pixels; None: by the aspect
    aspect: float = 1.0  # width over height, at the run's resolution


@dataclass(frozen=True, kw_only=True)
class SampleSheet:
    """What one sampling draws: a row for each prompt, a column for each guidance."""

    prompts: tuple[SamplePrompt, ...]
    guidance: tuple[float, ...] = (5.0,)
    steps: int = 25
    batch_size: int | None = None
    notes: tuple[str, ...] = ()  # what of the file has no place here

    def rows(
        self, *, step: int, captions: Sequence[str], resolution: int, bucket_step: int
    ) -> list[tuple[Request, tuple[int, int]]]:
        """Each prompt as what `draw` takes, and its (width, height); `captions` are those of the training images."""
        counts: dict[str, int] = {}
        rows = []
        for i, one in enumerate(self.prompts):
            seed = integer(1 << 31, 0, "sample seed", i, step) if one.seed == -1 else one.seed
            prompt = one.prompt
            if prompt is None:
                prompt = captions[integer(len(captions), seed, "random caption", i)] if captions else ""
            request = Request(prompt=prompt, negative=one.negative, seed=seed, occurrence=counts.get(prompt, 0))
            counts[prompt] = request.occurrence + 1
            rows.append((request, _size(one, resolution, bucket_step)))
        return rows


class Prompts:
    """The sample prompts of a run as they stand at the moment."""

    def __init__(
        self, source: Sequence[str] | Path, defaults: SampleSheet, *, num_timesteps: int, say: Callable[[str], None]
    ) -> None:
        """`source`: the prompts, or a `.txt` or `.json` file of them; `defaults` holds where that is silent;
        `num_timesteps`: the model's, of which pictures are drawn in fewer steps.

        Raises BadInput where the file is wrong: later on, what it said last is used.
        """
        self._source, self._defaults, self._say = source, defaults, say
        self._num_timesteps = num_timesteps
        self._told = ""
        self._sheet = self._read()
        for note in self._sheet.notes:
            say(note)

    def now(self) -> SampleSheet:
        """The sheet to draw; a file is read anew."""
        try:
            sheet = self._read()
        except BadInput as error:
            if str(error) != self._told:
                self._say(f"{error}; drawing what it said before")
            self._told = str(error)
            return self._sheet
        if sheet != self._sheet:
            self._say(f"{self._source}: changed; drawing {len(sheet.prompts)} prompts")
            for note in sheet.notes:
                self._say(note)
        self._sheet, self._told = sheet, ""
        return sheet

    def _read(self) -> SampleSheet:
        sheet = read_sheet(self._source, self._defaults)
        if sheet.steps >= self._num_timesteps:
            what = f"num_inference_steps = {sheet.steps}, but the model has {self._num_timesteps} timesteps"
            raise BadInput(what, where=str(self._source))
        return sheet


def read_sheet(source: Sequence[str] | Path, defaults: SampleSheet) -> SampleSheet:
    """A list of prompts, a `.txt` (one a line; those that begin with # are none) or EveryDream 2's `.json`."""
    first = defaults.prompts[0]
    if not isinstance(source, Path):
        return replace(defaults, prompts=tuple(replace(first, prompt=prompt) for prompt in source))
    if source.suffix.lower() == ".json":
        return _read_json(source, defaults, first)
    if source.suffix.lower() != ".txt" and not source.exists():
        mend = f'prompts themselves are a list: sample_prompts = ["{source.name}"]'
        raise BadInput("no such file of sample prompts", where=str(source), mend=mend)
    lines = [line.strip() for line in read_text(source).splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    return replace(defaults, prompts=tuple(replace(first, prompt=prompt) for prompt in prompts))


def _read_json(path: Path, defaults: SampleSheet, first: SamplePrompt) -> SampleSheet:
    said = read_json(path)
    _known(said, _SHEET_KEYS | _RUN_KEYS, path)
    if said.get("seed") is not None:
        first = replace(first, seed=_whole(said["seed"], "seed", path, least=-1))
    scales = said.get("cfgs")
    if scales is not None and not (isinstance(scales, list) and scales and all(map(_is_number, scales))):
        raise BadInput(f"cfgs = {scales!r}: a list of numbers is wanted", where=str(path))
    samples = said.get("samples") or []
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise BadInput("samples: a list of objects is wanted", where=str(path))
    notes = []
    if said.get("scheduler") not in (None, "ddim"):
        notes.append(
            f"{path.name}: scheduler {said['scheduler']}: edkit draws with its own (DDIM, or the flow's Euler)"
        )
    batch_size, steps = said.get("batch_size"), said.get("num_inference_steps")
    return SampleSheet(
        prompts=tuple(_sample(sample, first, f"{path}: sample {i}") for i, sample in enumerate(samples, start=1)),
        guidance=tuple(float(scale) for scale in scales) if scales else defaults.guidance,
        steps=_whole(steps, "num_inference_steps", path) if steps is not None else defaults.steps,
        batch_size=_whole(batch_size, "batch_size", path) if batch_size is not None else defaults.batch_size,
        notes=tuple(notes),
    )


def _sample(said: Mapping[str, Any], first: SamplePrompt, where: str) -> SamplePrompt:
    _known(said, _SAMPLE_KEYS, where)
    random = bool(said.get("random_caption"))
    prompt, negative = said.get("prompt"), said.get("negative_prompt")
    if not random and not isinstance(prompt, str):
        raise BadInput("has neither a prompt nor random_caption", where=where)
    size, aspect = said.get("size"), said.get("aspect_ratio")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise BadInput(f"size = {size!r}: [width, height] is wanted", where=where)
        size = (size[0], size[1])
    if aspect is not None and not (_is_number(aspect) and 0.1 <= aspect <= 10):
        raise BadInput(f"aspect_ratio = {aspect!r}: width over height is wanted", where=where)
    return replace(
        first,
        prompt=None if random else prompt,
        negative=first.negative if negative is None else str(negative),
        seed=first.seed if said.get("seed") is None else _whole(said["seed"], "seed", where, least=-1),
        size=size,
        aspect=first.aspect if aspect is None else float(aspect),
    )


def _size(one: SamplePrompt, resolution: int, step: int) -> tuple[int, int]:
    """Width and height in the model's steps: the size asked for, cut down to them, else the aspect's bucket."""
    if one.size is not None:
        return max(step, one.size[0] // step * step), max(step, one.size[1] // step * step)
    if one.aspect == 1:
        side = max(step, resolution // step * step)
        return side, side
    among = buckets(resolution, step, max(4.0, one.aspect, 1 / one.aspect))
    return among[nearest(round(1000 * math.sqrt(one.aspect)), round(1000 / math.sqrt(one.aspect)), among)]


def _known(said: Mapping[str, Any], known: set[str], where: Path | str) -> None:
    for key in said:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise BadInput(
                f"{key!r} is no key of sample prompts",
                where=str(where),
                mend=f"did you mean {near[0]!r}?" if near else "take it out",
            )


def _whole(value: Any, key: str, where: Path | str, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInput(f"{key} = {value!r}: a whole number of at least {least} is wanted", where=str(where))
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
