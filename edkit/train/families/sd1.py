"""Stable Diffusion 1: CLIP text encoder, KL autoencoder, cross-attention U-Net; of any size."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from edkit.data import atomic
from edkit.data.errors import BadInput
from edkit.train.families.base import (
    DTYPES,
    Family,
    Text,
    own_memory,
    unwrapped_state,
    write_json,
    write_safetensors,
)
from edkit.train.noise import Name, perturbed

PIPELINES = ("StableDiffusionPipeline",)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data")


class SD1:
    """A Stable Diffusion 1 model; see `Family` for what each method promises."""

    name = "sd1"

    def __init__(
        self,
        *,
        folder: Path,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        # every level of the U-Net but the last halves the latents
        self.bucket_step = self.vae_factor * 2 ** (len(unet.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.resolution = int(max(side) if isinstance(side, list | tuple) else side) * self.vae_factor
        self.latent_channels = int(vae.config.latent_channels)
        self.max_tokens = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        self.vae_hash = _hash_of(vae)
        self._scheduler_config = _scheduler_config(scheduler)
        prediction = self._scheduler_config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise BadInput(
                f"predicts {prediction!r}; edkit trains epsilon and v_prediction",
                where=str(folder / "scheduler"),
            )
        self.prediction_type: Literal["epsilon", "v_prediction"] = prediction
        self._schedule_noise()

    def _schedule_noise(self) -> None:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        ddim = DDIMScheduler(**self._scheduler_config)
        self.num_timesteps = int(ddim.config.num_train_timesteps)
        self.alphas_cumprod: Tensor = ddim.alphas_cumprod.to(torch.float64)  # (T,)
        self._root_alpha = self.alphas_cumprod.sqrt().float()
        self._root_sigma = (1 - self.alphas_cumprod).sqrt().float()

    def end_at_pure_noise(self) -> None:
        if self.prediction_type == "epsilon":
            raise BadInput(
                "predicts the noise, and at zero terminal SNR the picture is nothing else",
                where=str(self.folder),
                mend="zero_terminal_snr wants a v-prediction model",
            )
        # a sampler that never starts from the last timestep would not use what was learned there
        self._scheduler_config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self._schedule_noise()

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def place(self, device: torch.device) -> None:
        for module in (self.unet, self.vae, self.text_encoder):
            module.to(device)

    def tokenize(self, captions: Sequence[str]) -> Text:
        ids = self.tokenizer(
            list(captions),
            max_length=self.max_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return {"input_ids": ids}

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(captions)).input_ids] if captions else []

    def model_hash(self) -> str:
        parts = [_hash_of(module) for module in (self.unet, self.text_encoder, self.vae)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def encode_text(self, tokens: Text) -> Text:
        return {"states": self.text_encoder(input_ids=tokens["input_ids"]).last_hidden_state}  # (N, L, D)

    def perturb(self, text: Text, gamma: float, seed: int, names: Sequence[Name]) -> Text:
        return {**text, "states": perturbed(text["states"], gamma, seed, names)}

    def encode_images(self, pixels: Tensor) -> Tensor:
        latents = self.vae.encode(pixels).latent_dist.mode()
        return cast(Tensor, (latents - self._shift()) * self.vae.config.scaling_factor)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.vae.decode(latents / self.vae.config.scaling_factor + self._shift()).sample)

    def timesteps(self, draws: Tensor, start: int, end: int) -> Tensor:
        return (start + draws.double() * (end - start)).long().clamp_(start, end - 1)

    def noise_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self._at(self._root_alpha, timesteps, latents)  # (N, 1, 1, 1)
        sigma = self._at(self._root_sigma, timesteps, latents)
        noisy = alpha * latents + sigma * noise
        # v as in Salimans and Ho 2022, "Progressive distillation", section 4
        target = noise if self.prediction_type == "epsilon" else alpha * noise - sigma * latents
        return noisy, target

    def snr(self, timesteps: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[timesteps.cpu()]
        return alpha / (1 - alpha)

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return cast(Tensor, self.unet(noisy, timesteps, text["states"], return_dict=False)[0])

    def denoise(self, noise: Tensor, text: Text, negative: Text, *, steps: int, guidance: float) -> Tensor:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        ddim = DDIMScheduler(**self._scheduler_config)
        ddim.set_timesteps(steps)
        guided = guidance != 1
        states = torch.cat([negative["states"], text["states"]]) if guided else text["states"]
        latents = noise
        for timestep in ddim.timesteps:
            doubled = torch.cat([latents, latents]) if guided else latents
            times = timestep.to(latents.device).expand(len(doubled))
            said = self.predict(doubled, times, {"states": states}).float()
            if guided:
                without, with_text = said.chunk(2)
                said = without + guidance * (with_text - without)
            latents = ddim.step(said, timestep, latents, return_dict=False)[0]
        return latents

    def save(self, folder: Path, *, precision: str, metadata: Mapping[str, str]) -> None:
        dtype = DTYPES[precision]
        modules = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}
        files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
        for name, module in modules.items():
            part = folder / name
            part.mkdir(parents=True)
            state = unwrapped_state(module, dtype)
            if name == "text_encoder":
                state = with_text_model(state)
            write_safetensors(part / f"{files[name]}.safetensors", state, metadata)
            write_json(part / "config.json", _config_of(module, precision))
        self.tokenizer.save_pretrained(folder / "tokenizer")
        _write_clip_files(self.tokenizer, folder / "tokenizer")
        if (self.folder / "tokenizer").is_dir():
            _copy_missing(self.folder / "tokenizer", folder / "tokenizer")
        (folder / "scheduler").mkdir()
        source = self.folder / "scheduler" / "scheduler_config.json"
        scheduler = (
            _read_json(source) if source.is_file() else {"_class_name": "DDIMScheduler", **self._scheduler_config}
        )
        if self._scheduler_config.get("rescale_betas_zero_snr"):
            scheduler = scheduler | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        write_json(folder / "model_index.json", _index(scheduler, type(self.tokenizer).__name__))

    def _at(self, table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return table[timesteps.cpu()].to(like.device).view(-1, 1, 1, 1)

    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)


def load(folder: Path) -> Family:
    """Load a Stable Diffusion 1 folder in fp32, from safetensors only; every part in evaluation mode."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    _quiet()
    unet = _from_folder(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    vae = _from_folder(AutoencoderKL, folder / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    text_encoder = _from_folder(CLIPTextModel, folder / "text_encoder", torch_dtype=torch.float32)
    scheduler_path = folder / "scheduler" / "scheduler_config.json"
    if not scheduler_path.is_file():
        raise BadInput("has no scheduler_config.json", where=str(folder / "scheduler"))
    for module in (unet, vae, text_encoder):
        own_memory(module.requires_grad_(False).eval())
    return SD1(
        folder=folder,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(folder / "tokenizer"),
        scheduler=_read_json(scheduler_path),
    )


def with_text_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's text weights under the keys every tool knows: transformers 5 drops the `text_model.` before
    them.
    """
    return {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}


# ---- inside


def _from_folder(cls: Any, folder: Path, **options: Any) -> Any:
    if not (folder / "config.json").is_file():
        raise BadInput("has no config.json", where=str(folder), mend="the model folder is not whole")
    if not any(folder.glob("*.safetensors")):
        pickled = any(p.suffix in _PICKLES for p in folder.iterdir())
        what = "has only pickled weights, which can run code" if pickled else "has no weights"
        raise BadInput(what, where=str(folder), mend="save the model as .safetensors")
    try:
        return cls.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"does not load: {first}", where=str(folder)) from error


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, CLIPTokenizer

    if not folder.is_dir():
        raise BadInput("the model folder has no tokenizer", where=str(folder))
    config = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    named = str(config.get("tokenizer_class", "CLIPTokenizer")).removesuffix("Fast")
    cls = CLIPTokenizer if named == "CLIPTokenizer" else AutoTokenizer
    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"does not load: {str(error).splitlines()[0]}", where=str(folder)) from error


def _write_clip_files(tokenizer: Any, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json: transformers 4 and other tools read only those."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if backend.get("type") != "BPE":
        return
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["merges"]]
    atomic.write_text(folder / "vocab.json", json.dumps(backend["vocab"], ensure_ascii=False))
    atomic.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs]) + "\n")


def _copy_missing(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix not in _PICKLES and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def _scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of any scheduler's config, what defines the noise; latents are never clipped."""
    kept = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "set_alpha_to_one",
    )
    more = ("steps_offset", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
    return {key: config[key] for key in (*kept, *more) if config.get(key) is not None} | {"clip_sample": False}


def _config_of(module: Any, precision: str) -> dict[str, Any]:
    if hasattr(module.config, "to_diff_dict"):
        config = dict(module.config.to_dict())
        config["architectures"] = [type(module).__name__]
        config["torch_dtype"] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
        return {key: value for key, value in config.items() if key not in ("dtype", "_name_or_path")}
    config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)
    return cast(dict[str, Any], config)


def _index(scheduler: Mapping[str, Any], tokenizer_class: str) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler.get("_class_name", "DDIMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer_class],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _hash_of(module: nn.Module) -> str:
    """SHA-256 over a module's weights by name, as they stand in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    scaling = getattr(cast(Any, module).config, "scaling_factor", None)
    digest.update(f"scaling {scaling} shift {getattr(cast(Any, module).config, 'shift_factor', None)}".encode())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise BadInput("is no JSON object", where=str(path))
    return value


def _quiet() -> None:
    """No progress bars and load reports of the libraries between ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
