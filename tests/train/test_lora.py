"""Adapters: they learn, resume, and mean the same in every tool that reads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edkit.data.errors import BadInput, UsageError
from edkit.train import checkpoint as ck
from edkit.train.families import load_family
from edkit.train.generate import generate, parse_lora
from edkit.train.lora import PEFT_FILE, UI_FILE, add_lora, merge_lora
from edkit.train.run import Run, train
from edkit.train.settings import TrainSettings

Settings = Callable[..., TrainSettings]
LORA: dict[str, Any] = {"method": "lora", "lora_rank": 4, "lora_alpha": 2.0, "train_text_encoder": True, "lr": 1e-2}


def trained(settings: Settings, model: Path, **changes: Any) -> Run:
    run = train(settings(model=str(model), max_steps=3, batch_size=2, cond_dropout=0.0, **(LORA | changes)))
    assert run.export is not None
    return run


def test_an_adapter_learns_while_the_model_stays(settings: Settings, model: Path) -> None:
    before = {k: v.clone() for k, v in load_family(model).parts()["unet"].state_dict().items()}
    run = train(settings(max_steps=60, batch_size=8, cond_dropout=0.0, **LORA))
    assert run.last_loss < 0.9 * run.first_loss and run.checkpoint is not None
    kept = ck.load_tensors(run.checkpoint, "weights")
    assert kept and all(".lora_A." in name or ".lora_B." in name for name in kept)
    assert all(torch.equal(v, before[k]) for k, v in load_family(model).parts()["unet"].state_dict().items())


def test_a_resumed_adapter_is_the_uninterrupted_one_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    more = LORA | {"max_steps": 8, "save_every_steps": 4, "keep_checkpoints": 9, "lora_dropout": 0.2, "ema_decay": 0.9}
    straight = train(settings(out=tmp_path / "straight", **more))
    shutil.copytree(straight.run_dir, tmp_path / "cut")
    shutil.rmtree(ck.checkpoints(tmp_path / "cut")[-1])
    resumed = train(resume=tmp_path / "cut")
    assert resumed.resumed_from == 4 and resumed.export is not None and straight.export is not None
    for file in (UI_FILE, PEFT_FILE):
        one, other = load_file(straight.export / file), load_file(resumed.export / file)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_both_files_draw_in_diffusers_what_they_draw_here(
    models: Any, name: str, settings: Settings, tmp_path: Path
) -> None:
    """The keys and scales are those that other tools read: diffusers' own loader is the judge."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    run = trained(settings, models(name))
    assert run.export is not None
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))

    def theirs(file: str | None) -> torch.Tensor:
        pipeline = DiffusionPipeline.from_pretrained(str(models(name)))
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
        if file:
            pipeline.load_lora_weights(str(run.export), weight_name=file)
        with torch.no_grad():
            found: torch.Tensor = pipeline(
                ["red paint"], latents=noise.clone(), height=128, width=128, num_inference_steps=2, guidance_scale=3.0,
                output_type="latent", eta=0.0,
            ).images  # fmt: skip
        return found

    def ours(file: str) -> torch.Tensor:
        family = load_family(models(name))
        assert run.export is not None and merge_lora(family, run.export / file) > 0
        text, empty = (family.encode_text(family.tokenize([words])) for words in ("red paint", ""))
        with torch.no_grad():
            return family.denoise(noise, text, empty, steps=2, guidance=3.0)

    plain = theirs(None)
    for file in (UI_FILE, PEFT_FILE):
        drawn = ours(file)
        torch.testing.assert_close(drawn, theirs(file), rtol=1e-3, atol=1e-3)
        assert float((drawn - plain).abs().max()) > 1e-2


def test_keys_and_metadata_are_those_user_interfaces_read(models: Any, settings: Settings, pictures: Path) -> None:
    run = trained(settings, models("sdxl"))
    assert run.export is not None
    with safe_open(run.export / UI_FILE, "pt") as file:
        keys, said = set(file.keys()), file.metadata()
    stems = {key.split(".", 1)[0] for key in keys}
    assert {key.split(".", 1)[1] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q" in stems
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in stems
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in stems
    assert "lora_te2_text_model_encoder_layers_1_self_attn_out_proj" in stems
    assert said["ss_network_dim"] == "4" and said["ss_network_alpha"] == "2"
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert json.loads(said["ss_tag_frequency"]) == {pictures.name: {"red paint": 4, "blue paint": 4}}
    assert said["edkit_step"] == "3"
    one = {
        key.split(".", 1)[0]
        for key in load_file(trained(settings, models("sd1"), out=run.run_dir / "x").export / UI_FILE)
    }  # type: ignore[operator]
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in one


MIDDLE = "mid_block.attentions.0.transformer_blocks.0"
ELSEWHERE = {
    # kohya's trainers: the original names for SDXL, with and without `text_model_`
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": ("unet", "{0}.attn1.to_q", "kohya"),
    "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0": ("unet", "{1}.attn2.to_out.0", "kohya"),
    "lora_te2_encoder_layers_1_self_attn_q_proj": ("text_encoder_2", "encoder.layers.1.self_attn.q_proj", "kohya"),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("text_encoder", "encoder.layers.0.mlp.fc1", "kohya"),
    "lora_unet_input_blocks_1_0_in_layers_2": ("unet", "down_blocks.0.resnets.0.conv1", "kohya"),
    # peft, and diffusers of several years
    "unet.mid_block.attentions.0.proj_in": ("unet", "mid_block.attentions.0.proj_in", "peft"),
    "text_encoder.encoder.layers.1.self_attn.v_proj": ("text_encoder", "encoder.layers.1.self_attn.v_proj", "peft"),
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc2": ("text_encoder_2", "encoder.layers.0.mlp.fc2", "peft"),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_k": ("unet", "{1}.attn1.to_k", "processor"),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out": (
        "unet",
        "{1}.attn1.to_out.0",
        "processor",
    ),
}
ENDS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "processor": ("_lora.down.weight", "_lora.up.weight"),
}


def test_adapters_made_elsewhere_change_the_layer_they_name(models: Any, tmp_path: Path) -> None:
    blocks = ("down_blocks.1.attentions.0.transformer_blocks.0", MIDDLE)
    family = load_family(models("sdxl"))
    generator = torch.Generator().manual_seed(5)
    for key, (part, layer, kind) in ELSEWHERE.items():
        before = {f"{n}.{k}": p.clone() for n, m in family.parts().items() for k, p in m.named_parameters()}
        ends = f"{layer.format(*blocks)}.weight"
        (name,) = (k for k in before if k.startswith(f"{part}.") and k.endswith(ends))  # `text_model.` or not
        weight = before[name]
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=generator)
        state = {key + ENDS[kind][0]: down, key + ENDS[kind][1]: up}
        said = {f"{part}.r": 2, f"{part}.lora_alpha": 1.0} if kind == "peft" else {}
        if kind == "kohya":
            state[f"{key}.alpha"] = torch.tensor(1.0)
        save_file(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(said)})
        assert merge_lora(family, tmp_path / "x.safetensors", strength=0.5) == 1
        scale = 0.5 * (1.0 if kind == "processor" else 0.5)
        change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        after = {f"{n}.{k}": p for n, m in family.parts().items() for k, p in m.named_parameters()}
        torch.testing.assert_close(after[name], weight + scale * change)
        assert [k for k in after if not torch.equal(after[k], before[k])] == [name], key


@pytest.mark.parametrize(("sign", "what"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("dora_scale", "DoRA")])
def test_other_kinds_of_adapters_are_told_by_name(models: Any, sign: str, what: str, tmp_path: Path) -> None:
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{layer}.{sign}": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=f"is a {what}, which edkit does not read"):
        merge_lora(load_family(models("sd1")), tmp_path / "x.safetensors")


# the layers of ComfyUI's key map (its unet_to_diffusers and LORA_CLIP_MAP)
_BLOCK = r"attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)"
_LAYER = r"resnets_\d_(conv1|conv2|time_emb_proj|conv_shortcut)|attentions_\d_"
_LAYER += rf"(proj_in|proj_out|transformer_blocks_\d+_({_BLOCK}))"
KNOWN = re.compile(
    rf"lora_unet_((down|up)_blocks_\d|mid_block)_({_LAYER}|(down|up)samplers_0_conv)"
    r"|lora_te[12]?_text_model_encoder_layers_\d+_(mlp_fc[12]|self_attn_(q|k|v|out)_proj)"
)


def test_strength_scales_the_change(models: Any, settings: Settings) -> None:
    run = trained(settings, models("sd1"), lora_targets="all")
    assert run.export is not None
    keys = {key.split(".", 1)[0] for key in load_file(run.export / UI_FILE)}
    assert all(KNOWN.fullmatch(key) for key in keys) and any("_resnets_0_conv1" in key for key in keys)
    weights = []
    for strength in (0.0, 0.5, 1.0):
        family = load_family(models("sd1"))
        merge_lora(family, run.export, strength=strength)
        weights.append(family.parts()["unet"].state_dict())
    changed = 0
    for key, plain in weights[0].items():
        torch.testing.assert_close(weights[2][key] - plain, 2 * (weights[1][key] - plain), rtol=1e-3, atol=1e-6)
        changed += not torch.equal(weights[2][key], plain)
        changed += plain.ndim == 4 and not torch.equal(weights[2][key], plain)  # convolutions too
    assert changed > 40


def test_a_strange_file_is_told_apart(models: Any, settings: Settings, tmp_path: Path) -> None:
    run = trained(settings, models("sdxl"))
    assert run.export is not None
    with pytest.raises(BadInput, match="none of this sd1 model's"):
        merge_lora(load_family(models("sd1")), run.export)
    save_file({"model.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="no LoRA"):
        merge_lora(load_family(models("sd1")), tmp_path / "x.safetensors")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(BadInput, match=r"no \.safetensors"):
        merge_lora(load_family(models("sd1")), tmp_path / "x.pt")


def test_pictures_are_drawn_with_an_adapter(models: Any, settings: Settings, tmp_path: Path) -> None:
    run = trained(settings, models("sd1"))
    assert run.export is not None
    options: dict[str, Any] = {"steps": 2, "device": "cpu"}
    (plain,) = generate(models("sd1"), ["red paint"], tmp_path / "plain", **options)
    (tuned,) = generate(models("sd1"), ["red paint"], tmp_path / "tuned", loras=[(run.export, 1.0)], **options)
    assert plain.read_bytes() != tuned.read_bytes()


def test_a_fresh_adapter_changes_nothing_and_hangs_on_its_seed(model: Path) -> None:
    def fresh(seed: int) -> dict[str, torch.Tensor]:
        unet = load_family(model).parts()["unet"]
        options: dict[str, Any] = {"rank": 4, "alpha": 4.0, "dropout": 0.0, "targets": ["to_q", "ff.net.2"]}
        return {k: v.detach() for k, v in add_lora(unet, "unet", seed=seed, **options).items()}

    one, same, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert all(not v.any() for k, v in one.items() if ".lora_B." in k)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(UsageError, match="has none of"):
        add_lora(torch.nn.Linear(2, 2), "unet", rank=1, alpha=1.0, dropout=0.0, targets=["to_q"], seed=1)


def test_only_the_last_layers_of_a_text_encoder_learn_where_asked(models: Any, settings: Settings) -> None:
    run = train(
        settings(model=str(models("sd1")), max_steps=1, batch_size=2, train_text_encoder=True, text_encoder_layers=1)
    )
    assert run.checkpoint is not None
    names = [n for n in ck.load_tensors(run.checkpoint, "weights") if n.startswith("text_encoder")]
    assert any(".layers.1." in n for n in names) and any("final_layer_norm" in n for n in names)
    assert not any(".layers.0." in n or "embedding" in n for n in names)


def test_a_strength_is_read_from_behind_the_last_colon() -> None:
    assert parse_lora("her.safetensors") == (Path("her.safetensors"), 1.0)
    assert parse_lora("runs/her:0.8") == (Path("runs/her"), 0.8)
    assert parse_lora("C:her.safetensors") == (Path("C:her.safetensors"), 1.0)
