"""What all models with a U-Net over a KL autoencoder's latents share: Stable Diffusion 1, 2 and XL, of any size.

Noise is added by the scheduler's alphas; the U-Net says the noise, or the velocity v. A family adds its text encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edkit.data.errors import BadInput
from edkit.train.families.base import (
    DTYPES,
    LoraKey,
    Text,
    unwrapped_state,
    whole_timesteps,
    write_json,
    write_safetensors,
)
from edkit.train.families.original import How, unet_place
from edkit.train.families.parts import (
    config_of,
    copy_missing,
    from_folder,
    hash_of,
    quiet,
    read_json,
    ready,
    text_hash_of,
    write_clip_files,
)
from edkit.train.losses import Prediction
from edkit.train.noise import Name, perturbed

_UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET_MORE = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_UNET_CONVS = ("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_NOISE_AT_THE_END = "this model predicts the noise, and at zero terminal SNR its input is nothing else"
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


class UNetModel:
    """The shared half of a family; see `Family` for what each method promises."""

    name: str
    pipeline: str  # diffusers' class
    published_as: tuple[str, str]  # what kohya's trainers and the modelspec standard call its base model

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
        self.prediction_type: Prediction = prediction
        self.refusals: Mapping[str, str] = {"zero_terminal_snr": _NOISE_AT_THE_END} if prediction == "epsilon" else {}
        self._schedule_noise()

    @cached_property
    def vae_hash(self) -> str:
        return hash_of(self.vae)

    @cached_property
    def text_hash(self) -> str:
        return text_hash_of(self.text_encoders.values(), self.index())

    @cached_property
    def _original_name(self) -> Callable[[str], tuple[str, How]]:
        return unet_place(self.unet)

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
            raise BadInput(self.refusals["zero_terminal_snr"], where=str(self.folder))
        # a sampler that never starts from the last timestep would not use what was learned there
        self._scheduler_config |= _ZERO_SNR
        self._schedule_noise()

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, **self.text_encoders}

    def place(self, device: torch.device, names: Collection[str] | None = None) -> None:
        for name, module in {**self.parts(), "vae": self.vae}.items():
            if names is None or name in names:
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
        return whole_timesteps(draws, start, end)

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

    def lora_targets(self, part: str, choice: str) -> tuple[str, ...]:
        if part == "unet":
            more = {"attention": (), "transformer": _UNET_MORE, "all": (*_UNET_MORE, *_UNET_CONVS)}
            return (*_UNET_ATTENTION, *more[choice])
        return _TEXT_ATTENTION if choice == "attention" else (*_TEXT_ATTENTION, "fc1", "fc2")

    def lora_keys(self, part: str, layer: str) -> Sequence[LoraKey]:
        if part == "unet":
            original = self._original_name(f"{layer}.weight")[0].removesuffix(".weight")
            joined = [f"lora_unet_{name.replace('.', '_')}" for name in (layer, original)]
            return [LoraKey(name) for name in (joined[0], f"unet.{layer}", joined[1], f"diffusion_model.{original}")]
        # transformers 5 drops the `text_model.` that every other tool has before CLIP's layers
        short = layer.removeprefix("text_model.")
        full = short if short.startswith("text_projection") else f"text_model.{short}"
        number = part.removeprefix("text_encoder").lstrip("_") or ("1" if len(self.text_encoders) > 1 else "")
        joined = [f"lora_te{number}_{name.replace('.', '_')}" for name in (full, short)]
        return [LoraKey(name) for name in (joined[0], f"{part}.{full}", joined[1], f"{part}.{short}")]

    def lora_metadata(self) -> dict[str, str]:
        base, architecture = self.published_as
        return {
            "ss_base_model_version": base,
            "ss_v2": str(self.name == "sd2"),
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.prediction_type": "v" if self.prediction_type == "v_prediction" else "epsilon",
        }

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
            write_json(part / "config.json", config_of(module, precision))
        for name, tokenizer in self.tokenizers.items():
            tokenizer.save_pretrained(folder / name)
            write_clip_files(tokenizer, folder / name)
            if (self.folder / name).is_dir():
                copy_missing(self.folder / name, folder / name)
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
            "unet": config_of(self.unet, "fp32"),
            "vae": config_of(self.vae, "fp32"),
            "text_encoders": {name: config_of(encoder, "fp32") for name, encoder in self.text_encoders.items()},
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
