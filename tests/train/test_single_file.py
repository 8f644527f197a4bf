"""One file for a whole model: it loads back equal, and other tools read what is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edkit.data.errors import BadInput, UsageError
from edkit.train.convert import convert
from edkit.train.families import load_family
from edkit.train.families.registry import module_of
from edkit.train.families.single_file import load_single_file, save_single_file

FAMILIES = ["sd1", "sd2", "sdxl"]


def saved(models: Any, name: str, path: Path) -> Path:
    save_single_file(load_family(models(name)), path, precision="fp32", metadata={"edkit_step": "7"})
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_comes_back_equal(models: Any, name: str, tmp_path: Path) -> None:
    before = load_family(models(name))
    after = load_family(saved(models, name, tmp_path / "model.safetensors"))
    assert after.name == name and after.model_hash() == before.model_hash()
    assert (after.resolution, after.bucket_step, after.prediction_type) == (
        before.resolution,
        before.bucket_step,
        before.prediction_type,
    )
    words = ["a photo of a red house, 12 dogs", ""]
    one, other = before.tokenize(words), after.tokenize(words)
    assert all(torch.equal(one[k], other[k]) for k in one)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pictures = [
            f.denoise(noise, f.encode_text(t), f.encode_text(t), steps=2, guidance=1.0)
            for f, t in ((before, one), (after, other))
        ]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_converter_reads_the_file_as_the_same_weights(models: Any, name: str, tmp_path: Path) -> None:
    """The keys are the original ones: diffusers' converters from that layout are the judge."""
    from diffusers.loaders import single_file_utils as theirs
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    state = load_file(saved(models, name, tmp_path / "model.safetensors"))
    folder = models(name)
    unet = UNet2DConditionModel.from_pretrained(str(folder / "unet"))
    config = {**unet.config, "layers_per_block": unet.config.layers_per_block}
    converted = theirs.convert_ldm_unet_checkpoint(dict(state), config)
    assert same(converted, unet.state_dict())
    vae = AutoencoderKL.from_pretrained(str(folder / "vae"))
    assert same(theirs.convert_ldm_vae_checkpoint(dict(state), dict(vae.config)), vae.state_dict())


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[k].reshape(v.shape), v) for k, v in wanted.items())


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_openclips_encoder_stands_under_openclips_names(models: Any, name: str, tmp_path: Path) -> None:
    """open_clip's own text tower, filled from the file, says what the model's encoder says."""
    open_clip = pytest.importorskip("open_clip")
    state = load_file(saved(models, name, tmp_path / "model.safetensors"))
    prefix = "cond_stage_model.model." if name == "sd2" else "conditioner.embedders.1.model."
    family = load_family(models(name))
    encoder = list(family.parts().values())[-1]
    c: Any = encoder.config
    tower = open_clip.transformer.TextTransformer(
        context_length=77, vocab_size=49408, width=c.hidden_size, heads=c.num_attention_heads,
        layers=c.num_hidden_layers, mlp_ratio=c.intermediate_size / c.hidden_size, output_dim=c.projection_dim,
    ).eval()  # fmt: skip
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    missing, unexpected = tower.load_state_dict(mine, strict=False)
    assert not unexpected and set(missing) <= {"attn_mask", "text_projection"}
    ids = family.tokenize(["a photo of a red house"])["input_ids_2" if name == "sdxl" else "input_ids"]
    with torch.no_grad():
        x = tower.token_embedding(ids) + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
        wanted = encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)
    if name == "sdxl":
        with torch.no_grad():
            torch.testing.assert_close(
                x[torch.arange(1), ids.argmax(-1)] @ tower.text_projection,
                encoder(input_ids=ids).text_embeds,
                rtol=1e-4,
                atol=1e-4,
            )


def test_the_file_says_what_it_is(models: Any, tmp_path: Path) -> None:
    with safe_open(saved(models, "sd2", tmp_path / "model.safetensors"), "pt") as file:
        said = file.metadata()
    assert said["modelspec.prediction_type"] == "v" and said["edkit_family"] == "sd2" and said["edkit_step"] == "7"


def test_other_files_are_told_apart(models: Any, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="no Stable Diffusion"):
        load_single_file(tmp_path / "x.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(BadInput, match=r"pickle can run code"):
        load_family(tmp_path / "x.ckpt")
    path = saved(models, "sd1", tmp_path / "model.safetensors")
    state = load_file(path)
    state.pop("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(state, tmp_path / "cut.safetensors", metadata)
    with pytest.raises(BadInput, match=r"lacks 1 of .*input_blocks\.1\.0\.in_layers\.2\.weight"):
        load_family(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_other_origin_is_read_past_what_it_holds_besides(
    models: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people have them: half precision, no configs, averages, buffers, another spelling of CLIP's layers."""
    module = module_of(name)
    sizes = module.SIZES.get(name, module.SIZES)
    monkeypatch.setitem(sizes, "real", sizes["tiny"])
    state = {key: t.half() for key, t in load_file(saved(models, name, tmp_path / "model.safetensors")).items()}
    first = "conditioner.embedders.0" if name == "sdxl" else "cond_stage_model"
    state |= {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
        "alphas_cumprod": torch.ones(1000),
        f"{first}.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        f"{first}.logit_scale": torch.tensor(1.0),
    }
    save_file(state, tmp_path / "theirs.safetensors")
    family = load_family(tmp_path / "theirs.safetensors")
    before = load_family(models(name))
    assert family.name == name and family.prediction_type == before.prediction_type
    for part, other in zip(family.parts().values(), before.parts().values(), strict=True):
        for (key, p), q in zip(part.named_parameters(), other.parameters(), strict=True):
            assert p.dtype == torch.float32 and torch.equal(p, q.half().float()), key
    old = {key.replace(".transformer.text_model.", ".transformer."): t for key, t in state.items()}
    save_file(old, tmp_path / "old.safetensors")
    assert load_family(tmp_path / "old.safetensors").model_hash() == family.model_hash()


def test_what_a_file_predicts_stands_in_its_marker_or_in_the_config_beside_it(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sd2", "sdxl"):
        sizes = module_of(name).SIZES.get(name, module_of(name).SIZES)
        monkeypatch.setitem(sizes, "real", sizes["tiny"])
    state = load_file(saved(models, "sdxl", tmp_path / "model.safetensors"))
    save_file(state | {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, tmp_path / "noob.safetensors")
    noob = load_family(tmp_path / "noob.safetensors")
    assert noob.prediction_type == "v_prediction" and noob.snr(torch.tensor([999])) < 1e-9
    save_file(load_file(saved(models, "sd2", tmp_path / "two.safetensors")), tmp_path / "base.safetensors")
    assert load_family(tmp_path / "base.safetensors").prediction_type == "v_prediction"
    (tmp_path / "base.yaml").write_text("model:\n  params:\n    timesteps: 1000\n", encoding="utf-8")
    assert load_family(tmp_path / "base.safetensors").prediction_type == "epsilon"
    (tmp_path / "base.yaml").write_text('model:\n  params:\n    parameterization: "v"\n', encoding="utf-8")
    assert load_family(tmp_path / "base.safetensors").prediction_type == "v_prediction"


def test_a_file_that_lacks_a_whole_part_says_which(models: Any, tmp_path: Path) -> None:
    state = load_file(saved(models, "sd1", tmp_path / "model.safetensors"))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    bare = {key: t for key, t in state.items() if not key.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors", metadata)
    with pytest.raises(BadInput, match=r"has no image encoder \(VAE\)"):
        load_family(tmp_path / "bare.safetensors")
    save_file({key: t for key, t in state.items() if key.startswith("model.diffusion")}, tmp_path / "unet.safetensors")
    with pytest.raises(BadInput, match="has no text encoder"):
        load_family(tmp_path / "unet.safetensors")


def test_a_vocabulary_of_its_own_keeps_to_the_folder(tmp_path: Path) -> None:
    from edkit.nano import model_dir

    with pytest.raises(BadInput, match="vocabulary of its own"):
        save_single_file(load_family(model_dir()), tmp_path / "x.safetensors", precision="fp32", metadata={})


@pytest.mark.parametrize("name", FAMILIES)
def test_convert_goes_there_and_back(models: Any, name: str, tmp_path: Path) -> None:
    file = convert(models(name), to="single-file", out=tmp_path / "one.safetensors")
    folder = convert(file.out, to="diffusers", out=tmp_path / "folder")
    assert load_family(folder.out).model_hash() == load_family(models(name)).model_hash()
    half = convert(models(name), to="single-file", out=tmp_path / "half.safetensors", precision="fp16")
    assert half.num_bytes < 0.55 * file.num_bytes
    with pytest.raises(UsageError, match="is there already"):
        convert(models(name), to="single-file", out=file.out)
