"""The facts that a model gives: which models answer for them, and their answers for many files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import Problem, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import FACTS, Facts, Value

if TYPE_CHECKING:
    from edkit.measure.embed import Encoder

_Answers = dict[Path, dict[str, Value] | Problem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Which models answer; a model is loaded only where an answer is not known."""

    clip: str | None = None  # open_clip name, config, or folder; None: ViT-L-14-quickgelu
    pretrained: str | None = None
    head: str = "v2"  # aesthetic head: v1, v2, a path, hf://...
    family: str = "sd1"  # whose tokens are counted
    device: str | None = None  # None: the GPU where there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 32


def answered(
    catalog: Catalog,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    models: Models,
    captions: Mapping[Path, str] | None = None,
    progress: Progress = SILENT,
) -> dict[Path, Facts | Problem]:
    """The named facts of every file from the models that give them, or the Problem why there is none."""
    needed = [name for name in names if FACTS[name].by_caption]
    if needed and captions is None:
        raise UsageError(f"{needed[0]} is a fact of captions, and none are known here")
    parts: list[_Answers] = []
    if "nsfw" in names:
        from edkit.measure.nsfw import nsfw

        parts.append(_as_facts("nsfw", nsfw(catalog, paths, batch_size=models.batch_size, progress=progress)))
    if {"num_faces", "largest_face", "faces"} & set(names):
        from edkit.measure.faces import face_facts

        parts.append(face_facts(catalog, paths, progress=progress))
    if {"embedding", "aesthetic", "caption_similarity"} & set(names):
        parts += _by_clip(catalog, paths, names, models, captions or {}, progress)
    if "num_tokens" in names:
        parts.append(_tokens(catalog, paths, models.family, captions or {}))
    found: dict[Path, Facts | Problem] = {}
    for path in paths:
        own: dict[str, Value] = {}
        for part in parts:
            one = part[path]
            if isinstance(one, Problem):
                found[path] = one
                break
            own |= one
        else:
            found[path] = {name: own[name] for name in names}
    return found


def _as_facts(name: str, values: Mapping[Path, Value | Problem]) -> _Answers:
    return {path: one if isinstance(one, Problem) else {name: one} for path, one in values.items()}


def _by_clip(
    catalog: Catalog,
    paths: Sequence[Path],
    names: Sequence[str],
    models: Models,
    captions: Mapping[Path, str],
    progress: Progress,
) -> list[_Answers]:
    import numpy as np

    from edkit.measure.aesthetic import load_head
    from edkit.measure.embed import DEFAULT_CLIP, Encoder, resolve

    weights = resolve(models.clip or DEFAULT_CLIP, models.pretrained, progress=progress)
    scorer = load_head(models.head, dim=weights.dim, clip=weights.label) if "aesthetic" in names else None
    encoder = Encoder(
        weights,
        batch_size=models.batch_size,
        device=models.device,
        precision=models.precision,
        progress=progress,
    )
    vectors = encoder.embeddings(catalog, paths, progress=progress)
    good = [path for path, one in vectors.items() if not isinstance(one, Problem)]
    stacked = np.stack([np.asarray(vectors[path]) for path in good]) if good else None
    own: dict[Path, dict[str, Value]] = {path: {} for path in good}
    if "embedding" in names:
        for path in good:
            own[path]["embedding"] = np.asarray(vectors[path], dtype=np.float16).tobytes()
    if scorer is not None and stacked is not None:
        for path, score in zip(good, scorer.score(stacked).tolist(), strict=True):
            own[path]["aesthetic"] = score
    if "caption_similarity" in names:
        for path, value in _similarities(catalog, encoder, vectors, good, captions).items():
            own[path]["caption_similarity"] = value
    return [{path: one if isinstance(one, Problem) else own[path] for path, one in vectors.items()}]


def _similarities(
    catalog: Catalog,
    encoder: Encoder,
    vectors: Mapping[Path, object],
    paths: Sequence[Path],
    captions: Mapping[Path, str],
) -> dict[Path, float]:
    """Cosine of each picture's and its caption's embeddings, kept by content, caption and model."""
    import numpy as np

    fact = f"caption_similarity:{encoder.fact(catalog)}"
    keys = _caption_keys(catalog, paths, captions)
    known = catalog.facts(keys.values(), (fact,))
    missing = [path for path in paths if keys[path] not in known]
    texts = list(dict.fromkeys(captions.get(path, "") for path in missing))
    if texts:
        rows = dict(zip(texts, encoder.text(texts), strict=True))
        fresh = []
        for path in missing:
            value = float(np.asarray(vectors[path]) @ rows[captions.get(path, "")])
            fresh.append((keys[path], fact, value))
            known[keys[path]] = {fact: value}
        catalog.put_facts(fresh)
    return {path: float(known[keys[path]][fact] or 0.0) for path in paths}


def _tokens(catalog: Catalog, paths: Sequence[Path], name: str, captions: Mapping[Path, str]) -> _Answers:
    """Length of each caption in the family's tokens, kept by caption and tokenizer."""
    from edkit.measure.families import family, unread

    of = family(name)
    which = of.name
    if of.tokenizer is not None:
        which = str(catalog.content_ids([of.tokenizer])[of.tokenizer])[:16]
    fact = f"num_tokens:{which}/1"
    ids = {path: _caption_key(captions.get(path, "")) for path in paths}
    known = catalog.facts(ids.values(), (fact,))
    missing = {ids[path]: captions.get(path, "") for path in paths if ids[path] not in known}
    if missing:
        count = unread(of)
        fresh = [(id, fact, count(caption)[0]) for id, caption in missing.items()]
        catalog.put_facts(fresh)
        known |= {id: {fact: value} for id, _, value in fresh}
    return {path: {"num_tokens": known[ids[path]][fact]} for path in paths}


def _caption_keys(catalog: Catalog, paths: Sequence[Path], captions: Mapping[Path, str]) -> dict[Path, str]:
    """What a fact of picture and caption is kept under."""
    ids = catalog.content_ids(paths)
    return {
        path: f"{id} {_caption_key(captions.get(path, ''))}"
        for path, id in ids.items()
        if not isinstance(id, Unreadable)
    }


def _caption_key(caption: str) -> str:
    return f"caption {hashlib.sha256(caption.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
