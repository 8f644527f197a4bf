"""FLUX.2 klein: a transformer that says the velocity of a straight path from pictures to noise, and reads captions
as a language model (Qwen3) understands them.

What diffusers calls latents are the autoencoder's, two by two pixels laid into channels, brought to unit variance by
the statistics of its batch norm: (N, 128, H/16, W/16) as published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edkit.data.errors import BadInput, UsageError
from edkit.train.families.base import (
    DTYPES,
    Family,
    LoraKey,
    Text,
    unwrapped_state,
    whole_timesteps,
    write_json,
    write_safetensors,
)
from edkit.train.families.parts import (
    config_of,
    copy_missing,
    from_folder,
    hash_of,
    load_tokenizer,
    quiet,
    read_json,
    ready,
    text_hash_of,
)
from edkit.train.losses import Prediction
from edkit.train.noise import Name, perturbed

PIPELINES = ("Flux2KleinPipeline",)

_MAX_TOKENS = 512  # of the chat a caption is wrapped in, as the pipeline has it
_LAYERS = (9, 18, 27)  # of the language model, whose states the transformer reads beside each other

_ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("to_qkv_mlp_proj", "attn.to_out"),  # of the blocks with one stream, whose attention holds their MLP
)
_MORE = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")

# the published code's names of a block's layers: user interfaces load adapters by them
_DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", None),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_add_out": ("txt_attn.proj", None),
    "ff.linear_in": ("img_mlp.0", None),
    "ff.linear_out": ("img_mlp.2", None),
    "ff_context.linear_in": ("txt_mlp.0", None),
    "ff_context.linear_out": ("txt_mlp.2", None),
}
_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_ELSEWHERE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}


class Klein:
    """A FLUX.2 klein model; see `Family` for what each method promises.

    Timestep t of 0..999 is the noise level s = (t + 1) / 1000: the noisy latents are (1 - s) * latents + s * noise, the
    target is noise - latents. The text encoder is a language model that is never trained, and keeps the type of its
    file.
    """

    name = "klein"
    num_timesteps = 1000
    prediction_type: Prediction = "flow"
    refusals: Mapping[str, str] = {
        "zero_terminal_snr": "the last timestep of a flow is pure noise already",
        "train_text_encoder": "this model's text encoder is a language model that knows more than captions teach",
        "text_encoder_layers": "this model's text encoder does not learn",
        "clip_skip": "this model reads three fixed layers of its language model",
        "caption_chunks": f"this model reads {_MAX_TOKENS} tokens at once",
        "export_single_file": "this model has no layout that holds all its parts in one file",
    }

    def __init__(
        self,
        *,
        folder: Path,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Mapping[str, Any],
        is_distilled: bool,
    ) -> None:
        self.folder = folder
        self.transformer, self.vae = transformer, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.is_distilled = is_distilled  # made for a few steps without guidance
        self.clip_skip = self.caption_chunks = 1
        self.vae_factor = 2 * 2 ** (len(vae.config.block_out_channels) - 1)
        self.resolution = int(vae.config.sample_size)
        self.bucket_step = 64 if self.resolution >= 512 else self.vae_factor
        self.latent_channels = int(transformer.config.in_channels)
        if scheduler.get("_class_name", _FLOW["_class_name"]) != _FLOW["_class_name"]:
            raise BadInput(
                f"is a {scheduler['_class_name']}; this family's is {_FLOW['_class_name']}",
                where=str(folder / "scheduler"),
            )
        self._scheduler_config = dict(scheduler)

    # ---- what it is made of

    @cached_property
    def vae_hash(self) -> str:
        said = f"{hash_of(self.vae)} {self.vae.config.batch_norm_eps}"  # the batch norm's statistics are weights
        return hashlib.sha256(said.encode()).hexdigest()

    @cached_property
    def text_hash(self) -> str:
        return text_hash_of([self.text_encoder])

    def model_hash(self) -> str:
        parts = [hash_of(module) for module in (*self.parts().values(), self.vae)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def parts(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}

    def place(self, device: torch.device, names: Collection[str] | None = None) -> None:
        for name, module in {**self.parts(), "vae": self.vae}.items():
            if names is None or name in names:
                module.to(device)

    # ---- captions

    @property
    def max_tokens(self) -> int:
        return min(_MAX_TOKENS, int(self.tokenizer.model_max_length))

    def tokenize(self, captions: Sequence[str]) -> Text:
        said = self.tokenizer(
            self._chats(captions), padding="max_length", truncation=True, max_length=self.max_tokens,
            return_tensors="pt",
        )  # fmt: skip
        return {"input_ids": said.input_ids, "attention_mask": said.attention_mask}

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(self._chats(captions)).input_ids] if captions else []

    def encode_text(self, tokens: Text) -> Text:
        # the model without its head: nobody asks which word comes next
        said = self.text_encoder.model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True,
            use_cache=False,
        )  # fmt: skip
        return {"states": torch.cat([said.hidden_states[layer] for layer in _LAYERS], dim=-1)}  # (N, L, 3 * D)

    def perturb(self, text: Text, gamma: float, seed: int, names: Sequence[Name]) -> Text:
        return {**text, "states": perturbed(text["states"], gamma, seed, names)}

    def _chats(self, captions: Sequence[str]) -> list[str]:
        """Each caption as a user's message that an answer without thinking is to follow."""
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True,
                enable_thinking=False,
            )
            for caption in captions
        ]  # fmt: skip

    # ---- pictures

    def encode_images(self, pixels: Tensor) -> Tensor:
        latents = self.vae.encode(pixels).latent_dist.mode()  # (N, C, 2h, 2w)
        mean, deviation = self._statistics(latents)
        return (_patched(latents) - mean) / deviation

    def decode_latents(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        return cast(Tensor, self.vae.decode(_unpatched(latents * deviation + mean)).sample)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        deviation = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.view(1, -1, 1, 1).to(like), deviation.view(1, -1, 1, 1).to(like)

    # ---- noise

    def end_at_pure_noise(self) -> None:
        raise BadInput(self.refusals["zero_terminal_snr"], where=str(self.folder))

    def timesteps(self, draws: Tensor, start: int, end: int) -> Tensor:
        return whole_timesteps(draws, start, end)

    def noise_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        level = self._levels(timesteps).to(latents).view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise, noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        level = self._levels(timesteps.cpu())
        return ((1 - level) / level).square()

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor) -> Tensor:
        return self._velocity(noisy, self._levels(timesteps).float(), text)

    def denoise(self, noise: Tensor, text: Text, negative: Text, *, steps: int, guidance: float) -> Tensor:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler_config)
        mu = compute_empirical_mu(image_seq_len=noise.shape[-2] * noise.shape[-1], num_steps=steps)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        guided = guidance > 1 and not self.is_distilled
        said_to_it = {name: torch.cat([negative[name], rows]) if guided else rows for name, rows in text.items()}
        latents = noise
        for timestep in scheduler.timesteps:
            doubled = torch.cat([latents, latents]) if guided else latents
            levels = (timestep / self.num_timesteps).to(latents).expand(len(doubled))
            said = self._velocity(doubled, levels, said_to_it).float()
            if guided:
                without, with_text = said.chunk(2)
                said = without + guidance * (with_text - without)
            latents = scheduler.step(said, timestep, latents, return_dict=False)[0]
        return latents

    def _levels(self, timesteps: Tensor) -> Tensor:
        return (timesteps.double() + 1) / self.num_timesteps

    def _velocity(self, noisy: Tensor, levels: Tensor, text: Text) -> Tensor:
        """(N, C, h, w) and noise levels (N,) in 0..1 -> (N, C, h, w)."""
        height, width = noisy.shape[-2:]
        said = self.transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2),  # (N, h * w, C)
            encoder_hidden_states=text["states"].to(noisy),
            timestep=levels,
            img_ids=_places(height, width, 1, noisy.device),
            txt_ids=_places(1, 1, text["states"].shape[1], noisy.device),
            guidance=None,
            return_dict=False,
        )[0]
        return cast(Tensor, said.transpose(1, 2).reshape(noisy.shape))

    # ---- adapters

    def lora_targets(self, part: str, choice: str) -> tuple[str, ...]:
        return _ATTENTION if choice == "attention" else (*_ATTENTION, *_MORE)

    def lora_keys(self, part: str, layer: str) -> Sequence[LoraKey]:
        kinds, _, rest = layer.partition(".")
        number, _, within = rest.partition(".")
        piece: int | None = None
        if kinds == "transformer_blocks" and within in _DOUBLE:
            theirs, piece = _DOUBLE[within]
            theirs = f"double_blocks.{number}.{theirs}"
        elif kinds == "single_transformer_blocks" and within in _SINGLE:
            theirs = f"single_blocks.{number}.{_SINGLE[within]}"
        else:
            theirs = _ELSEWHERE.get(layer, layer)
        shared = (0, 1) if piece is None else (piece, 3)
        return (
            LoraKey(f"lora_unet_{theirs.replace('.', '_')}", *shared),
            LoraKey(f"{part}.{layer}"),
            LoraKey(f"diffusion_model.{theirs}", *shared),
            LoraKey(f"base_model.model.{theirs}", *shared),
            LoraKey(f"diffusion_model.{layer}"),
            LoraKey(f"lora_{part}_{layer.replace('.', '_')}"),
        )

    def lora_metadata(self) -> dict[str, str]:
        return {"ss_base_model_version": "flux2_klein", "modelspec.architecture": "flux-2-klein/lora"}

    # ---- writing

    def save(self, folder: Path, *, precision: str, metadata: Mapping[str, str]) -> None:
        import diffusers

        own = next(self.text_encoder.parameters()).dtype  # nothing of it was learned
        written = {"transformer": DTYPES[precision], "vae": DTYPES[precision], "text_encoder": own}
        for name, module in {**self.parts(), "vae": self.vae}.items():
            (folder / name).mkdir(parents=True)
            file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
            write_safetensors(folder / name / file, unwrapped_state(module, written[name]), metadata)
            kind = next(key for key, dtype in DTYPES.items() if dtype == written[name])
            write_json(folder / name / "config.json", config_of(module, kind))
        self.tokenizer.save_pretrained(folder / "tokenizer")
        if (self.folder / "tokenizer").is_dir():
            copy_missing(self.folder / "tokenizer", folder / "tokenizer")
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", {**_CLASS_OF_SCHEDULER, **self._scheduler_config})
        index = {
            "_class_name": PIPELINES[0],
            "_diffusers_version": diffusers.__version__,
            "is_distilled": self.is_distilled,
            "scheduler": ["diffusers", _FLOW["_class_name"]],
            "text_encoder": ["transformers", type(self.text_encoder).__name__],
            "tokenizer": ["transformers", "Qwen2TokenizerFast"],
            "transformer": ["diffusers", "Flux2Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLFlux2"],
        }
        write_json(folder / "model_index.json", index)


def load(folder: Path) -> Family:
    """Load a FLUX.2 klein folder from safetensors only, in fp32 but for the text encoder; all in evaluation mode."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    quiet()
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    return Klein(
        folder=folder,
        transformer=ready(from_folder(Flux2Transformer2DModel, folder / "transformer", **options)),
        vae=ready(from_folder(AutoencoderKLFlux2, folder / "vae", **options)),
        text_encoder=ready(from_folder(Qwen3ForCausalLM, folder / "text_encoder", dtype="auto")),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        is_distilled=bool(read_json(folder / "model_index.json").get("is_distilled", False)),
    )


def build(name: str, size: str, *, prediction: str | None, folder: Path) -> Family:
    """A model of this family with random weights. Its tokenizer spells bytes: Qwen's vocabulary does not ship."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if prediction is not None:
        raise UsageError(f"{prediction}: {name} predicts the velocity of its flow, and nothing else")
    sizes = SIZES[size]
    tokenizer = _bytes_tokenizer(max_length=sizes["max_tokens"])
    levels = len(sizes["vae"]["block_out_channels"])
    coders = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = {"tie_word_embeddings": True, "vocab_size": len(tokenizer), **ends, **sizes["text"]}
    return Klein(
        folder=folder,
        transformer=Flux2Transformer2DModel(guidance_embeds=False, **sizes["transformer"]),
        vae=AutoencoderKLFlux2(**coders, **sizes["vae"]),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**text)),
        tokenizer=tokenizer,
        scheduler=_FLOW,
        is_distilled=False,
    )


_CLASS_OF_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
_FLOW: dict[str, Any] = {
    **_CLASS_OF_SCHEDULER,
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

SIZES: dict[str, dict[str, Any]] = {
    "real": {
        "transformer": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 3 * 2560,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "latent_channels": 32, "sample_size": 1024},
        "text": {
            "vocab_size": 151_936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        "max_tokens": 512,
    },
    "tiny": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 3 * 16,
            "in_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
            "timestep_guidance_channels": 32,
        },
        "vae": {
            "block_out_channels": (8, 16, 24, 24),
            "latent_channels": 8,
            "sample_size": 128,
            "norm_num_groups": 4,
            "layers_per_block": 1,
        },
        "text": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 28,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 512,
        },
        "max_tokens": 96,
    },
}
"""The 4B as published, and a small one of the same architecture."""


# ---- latents, places, and a tokenizer


def _patched(latents: Tensor) -> Tensor:
    """(N, C, 2h, 2w) -> (N, 4C, h, w): each square of four into the channels, row by row."""
    return torch.nn.functional.pixel_unshuffle(latents, 2)


def _unpatched(latents: Tensor) -> Tensor:
    return torch.nn.functional.pixel_shuffle(latents, 2)


def _places(height: int, width: int, length: int, device: torch.device) -> Tensor:
    """(height * width * length, 4) of time, row, column and place in the text."""
    axes = [torch.arange(n, device=device) for n in (1, height, width, length)]
    return torch.cartesian_prod(*axes)


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The chats of Qwen3 that this family makes of captions."""


def _bytes_tokenizer(*, max_length: int) -> Any:
    """A tokenizer of Qwen's kind whose words are their bytes, but for those that stand in every chat."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    vocab = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges = []
    for word in ("user", "assistant", "ĊĊ"):
        for end in range(1, len(word)):
            pair, whole = (word[:end], word[end]), word[: end + 1]
            if whole not in vocab:
                vocab[whole] = len(vocab)
                merges.append(pair)
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer = Qwen2TokenizerFast(
        vocab=vocab | {marker: len(vocab) + i for i, marker in enumerate(markers)},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=max_length,
        chat_template=_CHAT,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    return tokenizer
