"""Models that say what a picture shows: any image-to-text or image-text-to-text model of transformers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edkit.data.catalog import Catalog, Unreadable
from edkit.data.errors import BadInput, MissingExtra, NoSpace, UsageError
from edkit.data.image import open_image
from edkit.data.options import one_line_text
from edkit.data.progress import SILENT, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

_VERSION = 1
_SIDE = 1024  # pixels: no captioner looks at more, so a large JPEG is decoded at a half, a quarter, an eighth
CHAT_PROMPT = (
    "Describe this picture in one plain sentence: what it shows, where, and how it looks. "
    "Begin with the subject. Do not write 'the image shows'."
)
_PROMPTS = {"florence2": "<CAPTION>", "paligemma": "caption en"}
_NO_PROMPT = ("vision-encoder-decoder",)
_KINDS_OF_FILE = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class Captioner(Protocol):
    """Captions batches of pictures."""

    label: str  # the model as people call it
    batch_size: int

    def describe(self) -> Mapping[str, object]:
        """What besides the model decides its words: prompt, length, thresholds."""

    def fact(self, catalog: Catalog) -> str:
        """The catalog's name for its captions: model, weights and all of `describe`."""

    def prepare(self, path: Path) -> Any:
        """A picture as the model takes it (called from threads); BadInput where it can't be decoded."""

    def captions(self, prepared: Sequence[Any]) -> list[str]:
        """What the model says to each picture; "" where it says nothing."""


# ---------------------------------------------------------------------- which model


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model edkit proposes where none is named: free to use, and small enough for the machine."""

    name: str
    licence: str
    needs_gb: float  # of GPU memory or, without a GPU, of RAM
    gpu: bool


CHOICES = (
    Choice(name="Qwen/Qwen2.5-VL-7B-Instruct", licence="Apache-2.0", needs_gb=22, gpu=True),
    Choice(name="Qwen/Qwen2-VL-2B-Instruct", licence="Apache-2.0", needs_gb=10, gpu=True),
    Choice(name="florence-community/Florence-2-large", licence="MIT", needs_gb=4, gpu=True),
    Choice(name="florence-community/Florence-2-base", licence="MIT", needs_gb=0, gpu=False),
)
"""Prose models, the most capable first; the last one runs anywhere."""

TAGGER = Choice(name="SmilingWolf/wd-vit-tagger-v3", licence="Apache-2.0", needs_gb=0, gpu=False)


def default_model(*, gpu_gb: float) -> Choice:
    """The most capable of the proposed prose models that a machine holds."""
    return next(choice for choice in CHOICES if not choice.gpu or gpu_gb >= choice.needs_gb)


def gpu_memory_gb() -> float:
    """Memory of the GPU that PyTorch would use; 0 without one."""
    torch = _torch()
    return float(torch.cuda.get_device_properties(0).total_memory) / 1e9 if torch.cuda.is_available() else 0.0


def find_model(
    model: str, *, wanted: Sequence[str], also: Sequence[str] = (), progress: Progress = SILENT
) -> tuple[Path, str]:
    """The folder of a model (a path, or a hub id, fetched where needed) and its revision ("" of a path).

    `wanted` are the patterns of the files that are fetched, all of the topmost folder. Raises BadInput where
    the model can't be had, with the way out.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute(), ""
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or folder.is_file():
        what = "a model is a folder, not a file" if folder.is_file() else "no such model folder"
        raise UsageError(what, where=model, mend="a folder, or a hub id such as florence-community/Florence-2-base")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtra("caption", "huggingface_hub") from error
    patterns = [*wanted, *also]

    def fetched(*, offline: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=offline
            )
        )

    try:
        found = fetched(offline=True)
        if any(list(found.glob(pattern)) for pattern in wanted if "json" not in pattern and "csv" not in pattern):
            return found, found.name
    except (errors.LocalEntryNotFoundError, OSError):
        pass  # not here yet
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise BadInput(
            "it is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
            where=model,
            mend="go online once, or give a folder: --model PATH",
        )
    progress.say(f"fetching {model} from the hub")
    try:
        found = fetched(offline=False)
    except errors.GatedRepoError as error:
        raise BadInput(
            "its authors ask you to accept their terms first",
            where=model,
            mend=f"do so at huggingface.co/{model}, then `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput("no such model on the hub (or a private one)", where=model, mend="mend its name") from error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"it is not on this machine and can't be fetched: {first}",
            where=model,
            mend="go online once, or give a folder: --model PATH",
        ) from error
    return found, found.name


def fingerprint(catalog: Catalog, folder: Path, revision: str, patterns: Sequence[str]) -> str:
    """What tells a model's files from any others': the hub's revision, or the files' own hashes."""
    if revision:
        return revision
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    ids = catalog.content_ids(files)
    for path, id in ids.items():
        if isinstance(id, Unreadable):
            raise BadInput(f"can't be read: {id}", where=str(path))
    text = "\n".join(f"{path.name} {ids[path]}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


def fact_name(label: str, print_: str, described: Mapping[str, object]) -> str:
    """The catalog's name for captions of one model under given settings."""
    settings = json.dumps([print_, dict(described)], sort_keys=True, ensure_ascii=True)
    return f"caption:{label}:{hashlib.sha256(settings.encode()).hexdigest()[:16]}/{_VERSION}"


# ---------------------------------------------------------------------- prose


class ProseModel:
    """A vision-language model of transformers, loaded when the first picture needs it."""

    def __init__(
        self,
        model: str,
        *,
        prompt: str | None = None,
        max_tokens: int = 75,
        batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        _transformers()  # told before anything is fetched
        code = ("*.py",) if trust_remote_code else ()
        self.folder, self._revision = find_model(model, wanted=_KINDS_OF_FILE, also=code, progress=progress)
        self.label = model if self._revision else self.folder.name
        self.max_tokens, self.trust_remote_code, self.progress = max_tokens, trust_remote_code, progress
        self.config = _config(self.folder)
        self.model_type = str(self.config.get("model_type", ""))
        self.prompt = self._default_prompt() if prompt is None else prompt
        if self.prompt and self.model_type in _NO_PROMPT:
            raise UsageError(f"{self.label} takes no prompt", where="--prompt", mend="leave it out")
        if not list(self.folder.glob("*.safetensors")):
            raise BadInput(
                "its weights are not safetensors, and pickles are not loaded",
                where=str(self.folder) if not self._revision else self.label,
                mend="convert it, or choose another model",
            )
        self._device = device
        self.batch_size = batch_size or (8 if self.device == "cuda" else 4)

    def _default_prompt(self) -> str:
        return _PROMPTS.get(self.model_type, CHAT_PROMPT if self._chats else "")

    @cached_property
    def _chats(self) -> bool:
        if any((self.folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
            return True
        return any(
            "chat_template" in _json(self.folder / name) for name in ("processor_config.json", "tokenizer_config.json")
        )

    def describe(self) -> Mapping[str, object]:
        return {"prompt": self.prompt, "max_tokens": self.max_tokens}

    def fact(self, catalog: Catalog) -> str:
        found = fingerprint(catalog, self.folder, self._revision, _KINDS_OF_FILE)
        return fact_name(self.label, found, self.describe())

    def prepare(self, path: Path) -> Image:
        image = open_image(path, at_least=(_SIDE, _SIDE))
        if max(image.size) > 2 * _SIDE:
            image.thumbnail((2 * _SIDE, 2 * _SIDE))
        return image

    def captions(self, prepared: Sequence[Image]) -> list[str]:
        torch = _torch()
        try:
            return self._say(prepared)
        except torch.OutOfMemoryError as error:
            if len(prepared) == 1:
                raise NoSpace(f"the GPU's memory is too small for {self.label}", mend="a smaller --model") from error
            torch.cuda.empty_cache()
            self.batch_size = max(1, len(prepared) // 2)
            self.progress.say(f"the GPU's memory is full: batches of {self.batch_size} from here on")
            half = len(prepared) // 2
            return [*self.captions(prepared[:half]), *self.captions(prepared[half:])]

    def _say(self, images: Sequence[Image]) -> list[str]:
        torch = _torch()
        model, processor, tokenizer = self._loaded
        with torch.inference_mode():
            inputs = self._inputs(processor, list(images)).to(self.device, self._dtype)
            ids = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_tokens)  # (B, L)
        given = inputs.get("input_ids")
        if given is not None and ids.shape[1] > given.shape[1] and torch.equal(ids[:, : given.shape[1]], given):
            ids = ids[:, given.shape[1] :]  # decoder-only models say the question again
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id} - {None}
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [_clean(text, cut=row[-1] not in ends) for text, row in zip(texts, ids.tolist(), strict=True)]

    def _inputs(self, processor: Any, images: list[Image]) -> Any:
        if self.model_type in _NO_PROMPT:
            return processor(images=images, return_tensors="pt")
        text: list[str] | None = None
        if self._chats:
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.prompt}]}
            text = [processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)] * len(images)
        elif self.prompt:
            text = [("<image>" if self.model_type == "paligemma" else "") + self.prompt] * len(images)
        words = {"text": text, "padding": True} if text else {}
        try:
            return processor(images=images, return_tensors="pt", **words)
        except (ValueError, TypeError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"does not take this prompt: {first}", where=self.label, mend="another --prompt") from error

    @cached_property
    def device(self) -> str:
        """Where the model runs: the GPU where there is one."""
        torch = _torch()
        if self._device is not None:
            return self._device
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    @property
    def _dtype(self) -> Any:
        torch = _torch()
        if not self.device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """(model in eval mode, what prepares its inputs, its tokenizer)."""
        transformers = _transformers()
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        trust = {"trust_remote_code": self.trust_remote_code}
        self.progress.say(f"loading {self.label} ({self.device})")
        try:
            if self.model_type in _NO_PROMPT:
                processor = transformers.AutoImageProcessor.from_pretrained(self.folder, **trust)
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, **trust)
            else:
                processor = transformers.AutoProcessor.from_pretrained(self.folder, **trust)
                tokenizer = getattr(processor, "tokenizer", None)
                if tokenizer is None:
                    raise ValueError("it has no processor that takes both pictures and words")
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                self.folder, dtype=self._dtype, use_safetensors=True, **trust
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, TypeError) as error:
            raise self._cant_load(error) from error
        if not model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"  # the answer begins at the right end of every row
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.to(self.device).eval(), processor, tokenizer

    def _cant_load(self, error: Exception) -> BadInput:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = lines[0] if lines else type(error).__name__
        if "trust_remote_code" in str(error):
            what, mend = "it runs code of its own", "read that code, then say --trust-remote-code"
            return BadInput(what, where=self.label, mend=mend)
        if "Unrecognized" in first or "not recognize this architecture" in str(error):
            return BadInput(
                f"{self.model_type or 'its kind'} is no captioning model that this transformers knows",
                where=self.label,
                mend="a model for image-text-to-text, or a newer transformers",
            )
        return BadInput(f"can't be loaded: {first}", where=self.label)


def _clean(text: str, *, cut: bool) -> str:
    """A model's words as a caption: one line, no quotes around it; cut short, it ends at a sentence."""
    text = one_line_text(text.replace("<s>", "").replace("</s>", "").replace("<pad>", ""))
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if cut:
        end = max(text.rfind(sign) for sign in (". ", "! ", "? ", "。"))
        text = text[: end + 1] if end > 0 else text
    return text.lstrip("\ufeff").strip()


def _config(folder: Path) -> Mapping[str, Any]:
    config = _json(folder / "config.json")
    if not config:
        raise BadInput("no model of transformers: it has no config.json", where=str(folder))
    return config


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from error
    return found if isinstance(found, dict) else {}


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("caption", "torch") from error
    return torch


def _transformers() -> Any:
    _torch()
    if "transformers" not in sys.modules:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("caption", "transformers") from error
    return transformers
