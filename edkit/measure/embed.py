"""Image embeddings by a CLIP model's image tower, kept as facts of the content and of the model's weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, MissingExtra, Problem, UsageError
from edkit.data.image import open_image
from edkit.data.progress import SILENT, Progress
from edkit.measure.facts import BROKEN, Value, nearest

if TYPE_CHECKING:
    import torch

DEFAULT_CLIP = "ViT-L-14-quickgelu"
DEFAULT_PRETRAINED = "openai"
_VERSION = 1
_KEEP_EVERY = 512  # images between two commits: what a kill costs

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Which model makes the embeddings: an open_clip architecture, and the file its weights stand in."""

    name: str  # as open_clip's factory takes it
    pretrained: str | None  # tag or path; None: the folder or hub repository `name` points to has them
    path: Path
    label: str  # for people and for the facts' name
    config: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.config["embed_dim"])


def resolve(clip: str = DEFAULT_CLIP, pretrained: str | None = None, *, progress: Progress = SILENT) -> Weights:
    """Find a CLIP model and its weights (fetched from the hub where needed) without loading them.

    `clip`: an open_clip name, the path of an open_clip model config (.json), or a folder with
    `open_clip_config.json` and weights. `pretrained`: an open_clip tag (default: "openai") or the path of a
    checkpoint. Raises UsageError for unknown names, BadInput where the weights can't be had, MissingExtra
    without open_clip. Says so in one line where a plain architecture meets OpenAI's weights, which were
    trained with QuickGELU.
    """
    open_clip = _open_clip()
    folder = Path(clip)
    if folder.is_dir():
        return _from_folder(folder, pretrained)
    name = clip.replace("/", "-")
    if clip.endswith(".json"):
        name = _register(open_clip, folder)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UsageError(f"no CLIP model is called {clip!r}", mend=nearest(name, open_clip.list_models()))
    if pretrained is None:
        if clip.endswith(".json"):
            raise UsageError("a model config needs its weights too", where=clip, mend="--pretrained PATH")
        pretrained = DEFAULT_PRETRAINED
    path = _weights_file(open_clip, name, pretrained)
    if not config.get("quick_gelu", False) and _are_openai(pretrained, path):
        better = f"{name}-quickgelu"
        known = better in open_clip.list_models()
        progress.say(
            f"{name} with OpenAI's weights gives wrong embeddings: they were trained with QuickGELU"
            f" ({f'use --clip {better}' if known else 'set quick_gelu in the config'})"
        )
    return Weights(name=name, pretrained=pretrained, path=path, label=name, config=config)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("clip", "open_clip_torch") from error
    return open_clip


def _register(open_clip: Any, path: Path) -> str:
    if not path.is_file():
        raise UsageError("no such model config", where=str(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from error
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise BadInput("no open_clip model config: it needs embed_dim, vision_cfg, text_cfg", where=str(path))
    open_clip.add_model_config(path)
    return path.stem


def _from_folder(folder: Path, pretrained: str | None) -> Weights:
    if pretrained is not None:
        raise UsageError("a model folder brings its own weights", where=str(folder), mend="leave out --pretrained")
    file = folder / "open_clip_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        embed_dim = int(config["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no open_clip model folder: {error}", where=str(file)) from error
    names = (
        "open_clip_model.safetensors",
        "model.safetensors",
        "open_clip_pytorch_model.bin",
        "pytorch_model.bin",
    )
    for path in (folder / name for name in names):
        if path.is_file():
            return Weights(
                name=f"local-dir:{folder}",
                pretrained=None,
                path=path,
                label=folder.name,
                config={**config, "embed_dim": embed_dim},
            )
    raise BadInput(f"no weights ({', '.join(names)})", where=str(folder))


def _weights_file(open_clip: Any, name: str, pretrained: str) -> Path:
    file = Path(pretrained)
    if file.is_file():
        if _is_torchscript(file):
            raise BadInput(
                "a TorchScript archive can't be loaded safely",
                where=pretrained,
                mend="use the tag openai, or the same weights as .safetensors",
            )
        return file
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = pretrained.lower().replace("-", "_")
    if tag not in tags:
        if file.suffix or os.sep in pretrained or "/" in pretrained:
            raise UsageError("no such weights file", where=pretrained)
        raise UsageError(f"{name} has no weights called {pretrained!r}", mend=nearest(tag, tags))
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        return Path(download_pretrained(get_pretrained_cfg(name, tag)))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"the weights of {name} ({pretrained}) can't be fetched: {first}",
            mend="go online once, or give a checkpoint's path: --pretrained PATH",
        ) from error


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _are_openai(pretrained: str, path: Path) -> bool:
    return "openai" in f"{pretrained} {path}".lower()


class Encoder:
    """One CLIP image tower: loaded when the first image needs it, never where all embeddings are known."""

    def __init__(
        self,
        weights: Weights,
        *,
        batch_size: int = 32,
        device: str | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.weights, self.batch_size, self.progress = weights, batch_size, progress
        self._device = device

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.weights.dim

    def fact(self, catalog: Catalog) -> str:
        """The catalog's name for these embeddings: model, architecture, weights, version."""
        sha = catalog.content_ids([self.weights.path])[self.weights.path]
        if isinstance(sha, Unreadable):
            raise BadInput(f"can't be read: {sha}", where=str(self.weights.path))
        shape = hashlib.sha256(json.dumps(self.weights.config, sort_keys=True, default=str).encode()).hexdigest()
        return f"embedding:{self.weights.label}:{shape[:8]}:{sha[:16]}/{_VERSION}"

    def embeddings(
        self, catalog: Catalog, paths: Iterable[Path], *, progress: Progress = SILENT
    ) -> dict[Path, Vector | Problem]:
        """The embedding (dim,) of length 1 of every file, or the Problem why there is none.

        Known ones come from the catalog (float16), the others are computed, kept, and survive an
        interruption.
        """
        files = list(paths)
        ids = catalog.content_ids(files, progress=progress)
        fact = self.fact(catalog)
        stored = catalog.facts((id for id in ids.values() if not isinstance(id, Unreadable)), (fact, BROKEN))
        jobs: dict[str, Path] = {}
        failed: dict[str, str] = {}
        for path in files:
            id = ids[path]
            if not isinstance(id, Unreadable) and not stored.get(id):
                jobs.setdefault(id, path)
        fresh: list[tuple[str, str, Value]] = []
        try:
            for id, value in self._computed(jobs, progress):
                if isinstance(value, bytes):
                    stored.setdefault(id, {})[fact] = value
                    fresh.append((id, fact, value))
                else:
                    failed[id] = value
                if len(fresh) >= _KEEP_EVERY:
                    catalog.put_facts(fresh)
                    fresh.clear()
        finally:
            catalog.put_facts(fresh)
        result: dict[Path, Vector | Problem] = {}
        for path in files:
            id = ids[path]
            known = {} if isinstance(id, Unreadable) else stored.get(id, {})
            vector = known.get(fact)
            if isinstance(vector, bytes):
                result[path] = _vector(vector)
            else:
                why = str(id) if isinstance(id, Unreadable) else failed.get(id) or str(known.get(BROKEN))
                result[path] = Problem(
                    level="error",
                    code="unreadable-image",
                    where=os.fspath(path),
                    what=why,
                    mend="fetch or export it again, or remove it",
                )
        return result

    def _computed(self, jobs: Mapping[str, Path], progress: Progress) -> Iterator[tuple[str, bytes | str]]:
        """(content id, float16 bytes or why not) of every job; images are decoded while the model works."""
        if not jobs:
            return
        items = list(jobs.items())
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        _ = self._model  # a model that can't be loaded is told before the first image is read
        with (
            progress.task("embedding", total=len(items)) as advance,
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        ):
            ahead: list[list[Future[torch.Tensor | str]]] = []
            try:
                for number, batch in enumerate(batches):
                    for following in batches[number + len(ahead) : number + 2]:
                        ahead.append([pool.submit(self._prepared, path) for _, path in following])  # noqa: PERF401
                    prepared = [future.result() for future in ahead.pop(0)]
                    good = [(id, x) for (id, _), x in zip(batch, prepared, strict=True) if not isinstance(x, str)]
                    yield from ((id, x) for (id, _), x in zip(batch, prepared, strict=True) if isinstance(x, str))
                    if good:
                        vectors = self._encode([x for _, x in good])
                        yield from ((id, row.tobytes()) for (id, _), row in zip(good, vectors, strict=True))
                    advance(len(batch))
            finally:
                pool.shutdown(cancel_futures=True)

    def _prepared(self, path: Path) -> torch.Tensor | str:
        """The model's input (3, S, S), or why the file can't be decoded."""
        model, transform = self._model
        try:
            side = 2 * max(_sides(model.visual.image_size))
            x: torch.Tensor = transform(open_image(path, at_least=(side, side)))
        except BadInput as error:
            return error.what
        return x

    def _encode(self, inputs: Sequence[torch.Tensor]) -> NDArray[np.float16]:
        import torch

        model, _ = self._model
        with torch.inference_mode():
            x = torch.stack(list(inputs)).to(self.device)
            y = torch.nn.functional.normalize(model.encode_image(x).float(), dim=-1)  # (B, dim)
        return np.asarray(y.cpu().numpy(), dtype=np.float16)

    @property
    def device(self) -> str:
        """Where the model runs: the GPU where there is one."""
        import torch

        return self._device or ("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """(model in eval mode, the transform of its input)."""
        import logging
        import warnings

        open_clip = _open_clip()
        weights = self.weights
        self.progress.say(f"loading {weights.label} from {weights.path.name}")
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # QuickGELU: said by `resolve`
                model, _, transform = open_clip.create_model_and_transforms(
                    weights.name, pretrained=weights.pretrained, device=self.device
                )
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"can't be loaded as {weights.label}: {first}", where=str(weights.path)) from error
        finally:
            quiet.setLevel(level)
        return model.eval(), transform


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _vector(data: bytes) -> Vector:
    values = np.frombuffer(data, dtype=np.float16).astype(np.float32)
    return values / max(float(np.linalg.norm(values)), 1e-12)
