"""What all models with a U-Net over a KL autoencoder's latents share: Stable Diffusion 1, 2 and XL, of any size.

Noise is added by the scheduler's alphas; the U-Net says the noise, or the velocity v. A family adds its text encoders.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from edkit.data import atomic
from edkit.data.errors import BadInput
from edkit.train.families.base import (
    DTYPES,
    Text,
    own_memory,
    unwrapped_state,
    write_json,
    write_safetensors,
)
from edkit.train.noise import Name, perturbed

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data")
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


class UNetModel:
    """The shared half of a family; see `Family` for what each method promises."""

    name: str
    pipeline: str  # diffusers' class

    def __init__(
        self,
        *,
        folder: Path,
        unet: Any,
        vae: Any,
        text_encoders: Mapping[str, Any],  # by the name of their folder, in the pipeline's order
        tokenizers: Mapping[str, Any],
        scheduler: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.unet, self.vae = unet, vae
        self.text_encoders, self.tokenizers = dict(text_encoders), dict(tokenizers)
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.resolution = int(max(side) if isinstance(side, list | tuple) else side) * self.vae_factor
        # every level of the U-Net but the last halves the latents; people's buckets go in steps of 64
        halved = self.vae_factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self.bucket_step = max(64, halved) if self.resolution >= 512 else halved
        self.latent_channels = int(vae.config.latent_channels)
        self.clip_skip = self.caption_chunks = 1
        self._scheduler_config = _scheduler_config(scheduler)
        prediction = self._scheduler_config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise BadInput(
                f"predicts {prediction!r}; edkit trains epsilon and v_prediction",
                where=str(folder / "scheduler"),
            )
        self.prediction_type: Literal["epsilon", "v_prediction"] = prediction
        self._schedule_noise()

    @cached_property
    def vae_hash(self) -> str:
        return hash_of(self.vae)

    @property
    def max_tokens(self) -> int:
        return self._positions() * self.caption_chunks

    def _positions(self) -> int:
        """Tokens that one pass of every text encoder reads, the two markers counted."""
        return min(
            min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
            for tokenizer, encoder in zip(self.tokenizers.values(), self.text_encoders.values(), strict=True)
        )

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
        self._scheduler_config |= _ZERO_SNR
        self._schedule_noise()

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, **self.text_encoders}

    def place(self, device: torch.device) -> None:
        for module in (self.unet, self.vae, *self.text_encoders.values()):
            module.to(device)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        tokenizer = next(iter(self.tokenizers.values()))
        # each chunk has two markers of its own
        more = 2 * (self.caption_chunks - 1)
        return [len(ids) + more for ids in tokenizer(list(captions)).input_ids] if captions else []

    def model_hash(self) -> str:
        parts = [hash_of(module) for module in (self.unet, *self.text_encoders.values(), self.vae)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

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

    def perturb(self, text: Text, gamma: float, seed: int, names: Sequence[Name]) -> Text:
        return {**text, "states": perturbed(text["states"], gamma, seed, names)}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor) -> Tensor:
        more = self.conditions(text, sizes)
        return cast(Tensor, self.unet(noisy, timesteps, text["states"], return_dict=False, **more)[0])

    def conditions(self, text: Text, sizes: Tensor) -> dict[str, Any]:
        """What the U-Net is told besides noise, time and text states, as its call's arguments."""
        return {}

    def denoise(self, noise: Tensor, text: Text, negative: Text, *, steps: int, guidance: float) -> Tensor:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        ddim = DDIMScheduler(**self._scheduler_config)
        ddim.set_timesteps(steps)
        guided = guidance != 1
        said_to_it = {name: torch.cat([negative[name], rows]) if guided else rows for name, rows in text.items()}
        height, width = (side * self.vae_factor for side in noise.shape[-2:])
        whole = torch.tensor([[height, width, 0, 0, height, width]], device=noise.device)
        latents = noise
        for timestep in ddim.timesteps:
            doubled = torch.cat([latents, latents]) if guided else latents
            times = timestep.to(latents.device).expand(len(doubled))
            said = self.predict(doubled, times, said_to_it, whole.expand(len(doubled), 6)).float()
            if guided:
                without, with_text = said.chunk(2)
                said = without + guidance * (with_text - without)
            latents = ddim.step(said, timestep, latents, return_dict=False)[0]
        return latents

    def save(self, folder: Path, *, precision: str, metadata: Mapping[str, str]) -> None:
        dtype = DTYPES[precision]
        for name, module in {"unet": self.unet, "vae": self.vae, **self.text_encoders}.items():
            part = folder / name
            part.mkdir(parents=True)
            state = unwrapped_state(module, dtype)
            if name in self.text_encoders:
                write_safetensors(part / "model.safetensors", with_text_model(state), metadata)
            else:
                write_safetensors(part / "diffusion_pytorch_model.safetensors", state, metadata)
            write_json(part / "config.json", _config_of(module, precision))
        for name, tokenizer in self.tokenizers.items():
            tokenizer.save_pretrained(folder / name)
            _write_clip_files(tokenizer, folder / name)
            if (self.folder / name).is_dir():
                _copy_missing(self.folder / name, folder / name)
        (folder / "scheduler").mkdir()
        source = self.folder / "scheduler" / "scheduler_config.json"
        scheduler = (
            read_json(source) if source.is_file() else {"_class_name": "DDIMScheduler", **self._scheduler_config}
        )
        if self._scheduler_config.get("rescale_betas_zero_snr"):
            scheduler |= _ZERO_SNR
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        write_json(folder / "model_index.json", self._index(scheduler))

    def configs(self) -> dict[str, Any]:
        """What `initial.unfilled` needs to make an equal model without weights."""
        return {
            "unet": _config_of(self.unet, "fp32"),
            "vae": _config_of(self.vae, "fp32"),
            "text_encoders": {name: _config_of(encoder, "fp32") for name, encoder in self.text_encoders.items()},
            "pad_tokens": {name: tokenizer.pad_token for name, tokenizer in self.tokenizers.items()},
            "scheduler": dict(self._scheduler_config),
            "index": self.index(),
        }

    def index(self) -> dict[str, Any]:
        """What this family's `model_index.json` says besides the parts."""
        return {}

    def _index(self, scheduler: Mapping[str, Any]) -> dict[str, Any]:
        import diffusers

        parts: dict[str, Any] = {
            name: ["transformers", type(module).__name__]
            for name, module in {**self.text_encoders, **self.tokenizers}.items()
        }
        return {
            "_class_name": self.pipeline,
            "_diffusers_version": diffusers.__version__,
            **self.index(),
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", scheduler.get("_class_name", "DDIMScheduler")],
            **parts,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }

    def _at(self, table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return table[timesteps.cpu()].to(like.device).view(-1, 1, 1, 1)

    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)


# ---- CLIP's text side


def clip_tokens(tokenizer: Any, captions: Sequence[str], *, positions: int, chunks: int) -> Tensor:
    """Token ids (N, chunks * positions): every chunk between markers of its own, as samplers read long prompts;
    what is longer is cut, what is shorter is padded.
    """
    if chunks == 1:
        options = {"max_length": positions, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return cast(Tensor, tokenizer(list(captions), **options).input_ids)
    room = positions - 2
    rows = []
    for ids in tokenizer(list(captions), add_special_tokens=False).input_ids:
        row: list[int] = []
        for chunk in range(chunks):
            some = ids[chunk * room : (chunk + 1) * room]
            row += [tokenizer.bos_token_id, *some, tokenizer.eos_token_id]
            row += [tokenizer.pad_token_id] * (room - len(some))
        rows.append(row)
    return torch.tensor(rows)


def clip_states(encoder: Any, ids: Tensor, *, positions: int) -> Any:
    """What CLIP's text encoder says of chunks of `positions` ids: (N * chunks, positions, D), with hidden states."""
    return encoder(input_ids=ids.reshape(-1, positions), output_hidden_states=True)


def joined(states: Tensor, num_captions: int) -> Tensor:
    """(N * chunks, L, D) -> (N, chunks * L, D)."""
    return states.reshape(num_captions, -1, states.shape[-1])


def with_text_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's text weights under the keys every tool knows: transformers 5 drops the `text_model.` before them."""
    known = ("text_model.", "text_projection.")
    return {k if k.startswith(known) else f"text_model.{k}": v for k, v in state.items()}


# ---- loading


def load_unet_parts(folder: Path) -> dict[str, Any]:
    """U-Net, VAE and scheduler config of a diffusers folder, in fp32, from safetensors only."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    quiet()
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        raise BadInput("has no scheduler_config.json", where=str(folder / "scheduler"))
    return {
        "unet": ready(from_folder(UNet2DConditionModel, folder / "unet", **options)),
        "vae": ready(from_folder(AutoencoderKL, folder / "vae", **options)),
        "scheduler": read_json(scheduler),
    }


def load_text(cls: Any, folder: Path) -> Any:
    """A transformers text encoder in fp32."""
    return ready(from_folder(cls, folder, torch_dtype=torch.float32))


def ready(module: Any) -> Any:
    """Frozen, in evaluation mode, in memory of its own."""
    own_memory(module.requires_grad_(False).eval())
    return module


def from_folder(cls: Any, folder: Path, **options: Any) -> Any:
    """One part of a pipeline, from safetensors alone. BadInput where it is missing, pickled or does not load."""
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


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer, CLIPTokenizer

    if not folder.is_dir():
        raise BadInput("the model folder has no tokenizer", where=str(folder))
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
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


def hash_of(module: nn.Module) -> str:
    """SHA-256 over a module's weights by name, as they stand in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    scaling = getattr(cast(Any, module).config, "scaling_factor", None)
    digest.update(f"scaling {scaling} shift {getattr(cast(Any, module).config, 'shift_factor', None)}".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; BadInput for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't be read: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise BadInput("is no JSON object", where=str(path))
    return value


def quiet() -> None:
    """No progress bars and load reports of the libraries between ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
