"""Models with random weights: the published architecture, its vocabulary, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edkit.data.errors import BadInput, UsageError
from edkit.train.families import load_family
from edkit.train.families.fresh import clip_tokenizer
from edkit.train.families.registry import module_of
from edkit.train.initial import init_model


def test_the_tokenizer_is_clips() -> None:
    open_clip = pytest.importorskip("open_clip")
    theirs, ours = open_clip.SimpleTokenizer(), clip_tokenizer()
    assert len(ours) == 49408
    for text in ("a photo of a cat, 12 dogs' éèü!!", "日本語 a  b\n c", 'person\'s <tag> & "q"', ""):
        assert ours(text).input_ids == [49406, *theirs.encode(text), 49407]


def test_tiny_is_written_draws_128_pixels_and_is_reproducible(tmp_path: Path) -> None:
    made = init_model("sd1", size="tiny", out=tmp_path / "a")
    family, again = load_family(made.out), load_family(init_model("sd1", size="tiny", out=tmp_path / "b").out)
    assert (family.resolution, family.bucket_step, family.max_tokens, family.vae_factor) == (128, 64, 77, 8)
    assert family.model_hash() == again.model_hash()
    assert family.model_hash() != load_family(init_model("sd1", out=tmp_path / "c", seed=1).out).model_hash()


@pytest.mark.parametrize(
    ("family", "denoiser", "texts", "vae"),
    [
        ("sd1", 859_520_964, [123_060_480], 83_653_863),
        ("sd2", 865_910_724, [340_387_840], 83_653_863),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840], 83_653_863),
        ("klein", 3_875_544_576, [4_022_468_096], 84_046_115),
    ],
)
def test_real_has_the_published_number_of_parameters(
    family: str, denoiser: int, texts: list[int], vae: int, tmp_path: Path
) -> None:
    from accelerate import init_empty_weights

    with init_empty_weights():
        made = module_of(family).build(family, "real", prediction=None, folder=tmp_path)
    for encoder in list(made.parts().values())[1:]:
        encoder.tie_weights()
    counts = [sum(p.numel() for p in module.parameters()) for module in (*made.parts().values(), made.vae)]
    assert counts == [denoiser, *texts, vae]


def test_nothing_is_overwritten_and_unknown_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="is not empty"):
        init_model("sd1", out=tmp_path)
    with pytest.raises(UsageError, match="init-model knows sd1"):
        init_model("sd9", out=tmp_path / "x")
    with pytest.raises(UsageError, match="tiny and real"):
        init_model("sd1", size="huge", out=tmp_path / "x")
