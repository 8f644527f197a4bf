"""Who judges pictures: nano's reader, a CLIP model, or nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edkit.data.errors import BadInput
from edkit.data.progress import Progress
from edkit.prove.intervals import kernel_distance, mean_difference
from edkit.prove.result import Pair, Score, Side
from edkit.prove.verdict import BLED_CLIP, BLED_READER, Verdict, bled

if TYPE_CHECKING:
    from edkit.train.generate import Request

Judged = tuple[tuple[Pair, ...], tuple[Score, ...], tuple[float, float] | None, Verdict | None]
_Asked = Mapping[Side, Sequence["Request"]]
_Drawn = Mapping[Side, Sequence[Path]]


class Judge(Protocol):
    """Scores pairs of pictures, before and after."""

    name: str

    def judge(self, asked: _Asked, before: _Drawn, after: _Drawn, seed: int) -> Judged:
        """The pairs with their scores, the scores' means, the distance of the pictures of ground truth's captions, and
        whether the class became the subject; None where it can't tell.
        """


class Nobody:
    """Pictures are shown, and not scored."""

    name = ""

    def judge(self, asked: _Asked, before: _Drawn, after: _Drawn, seed: int) -> Judged:
        return _pairs(asked, before, after, {}), (), None, None


class ByReader:
    """Nano's reader says whether a picture shows its prompt."""

    name = "reader"

    def judge(self, asked: _Asked, before: _Drawn, after: _Drawn, seed: int) -> Judged:
        from edkit.prove import reading

        marks: dict[Side, list[tuple[float, float]]] = {}
        for side, some in asked.items():
            marks[side] = []
            for request, *paths in zip(some, before[side], after[side], strict=True):
                read = [reading.read(path) for path in paths]
                right = [one.subject if side == "class" else reading.shows(one, request.prompt) for one in read]
                marks[side].append((float(right[0]), float(right[1])))
        scores = _scores(marks, seed)
        change = next((one.change for one in scores if one.side == "class"), None)
        what = "pictures of the class that show the subject"
        verdict = None if change is None else bled(change, limit=BLED_READER, what=what)
        return _pairs(asked, before, after, marks), scores, None, verdict


class ByClip:
    """A CLIP model says how near pictures are to their prompts, to each other, and to the training images."""

    def __init__(
        self, clip: str, pretrained: str | None, *, training: Sequence[Path], files: Path, progress: Progress
    ) -> None:
        """`training`: the images that were to be learned; `files`: a folder for what is known of all pictures."""
        from edkit.measure.embed import Encoder, resolve

        weights = resolve(clip, pretrained, progress=progress)
        self._encoder, self._files, self._progress = Encoder(weights, progress=progress), files, progress
        self._training = training
        self.name = weights.label

    def judge(self, asked: _Asked, before: _Drawn, after: _Drawn, seed: int) -> Judged:
        marks: dict[Side, list[tuple[float, float]]] = {}
        vectors: dict[Side, tuple[Any, Any]] = {}
        for side, some in asked.items():
            if not some:
                marks[side] = []
                continue
            old, new = vectors[side] = (self._vectors(before[side]), self._vectors(after[side]))
            texts = self._encoder.text([request.prompt for request in some])
            marks[side] = list(zip((old * texts).sum(1).tolist(), (new * texts).sum(1).tolist(), strict=True))
        scores = _scores(marks, seed)
        distance = None
        if "preservation" in vectors and len(vectors["preservation"][0]) >= 3:
            distance = kernel_distance(*vectors["preservation"])
        verdict = None
        if "class" in vectors and "training" in vectors:
            images = self._vectors(self._training)
            # the whole way: from the class's pictures as they were to the subject's as they are
            old, new = ((rows @ images.T).mean(1) for rows in vectors["class"])
            way = float((vectors["training"][1] @ images.T).mean() - old.mean())
            if way > 0:
                change = mean_difference((old / way).tolist(), (new / way).tolist(), seed=seed)
                what = "how far pictures of the class moved towards the training images"
                verdict = bled(change, limit=BLED_CLIP, what=what)
        return _pairs(asked, before, after, marks), scores, distance, verdict

    def _vectors(self, paths: Sequence[Path]) -> Any:
        import numpy as np

        from edkit.data.catalog import Catalog
        from edkit.data.errors import Problem

        with Catalog.open(self._files, state_dir=self._files / ".edkit", command="evaluate") as catalog:
            found = self._encoder.embeddings(catalog, paths, progress=self._progress)
        rows = [found[path] for path in paths]
        bad = next((row for row in rows if isinstance(row, Problem)), None)
        if bad is not None:
            raise BadInput(bad.what, where=bad.where)
        return np.stack([np.asarray(row) for row in rows])


def _pairs(
    asked: _Asked, before: _Drawn, after: _Drawn, marks: Mapping[Side, Sequence[tuple[float, float]]]
) -> tuple[Pair, ...]:
    return tuple(
        Pair(
            side=side,
            prompt=request.prompt,
            before=before[side][i],
            after=after[side][i],
            scores=marks[side][i] if side in marks else None,
        )
        for side, some in asked.items()
        for i, request in enumerate(some)
    )


def _scores(marks: Mapping[Side, Sequence[tuple[float, float]]], seed: int) -> tuple[Score, ...]:
    scores = []
    for side, pairs in marks.items():
        if pairs:
            old, new = [a for a, _ in pairs], [b for _, b in pairs]
            change = mean_difference(old, new, seed=seed)
            scores.append(Score(side=side, before=sum(old) / len(old), after=sum(new) / len(new), change=change))
    return tuple(scores)
