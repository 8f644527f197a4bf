"""A caption's states are made once, and only for what they were made from."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from edkit.data.errors import BadInput
from edkit.train.families import load_family
from edkit.train.store import Store
from edkit.train.texts import TextStates

CPU = torch.device("cpu")
CAPTIONS = [f"paint {i}" for i in range(11)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_states_are_the_made_ones_to_the_bit_whoever_stood_beside_them(
    model: Path, tmp_path: Path, precision: str
) -> None:
    family = load_family(model)
    alone = TextStates(family, CPU, precision=precision).states(family.tokenize(CAPTIONS[7:8]))["states"][0]
    for encoded in (11, 0):
        with closing(Store(tmp_path / "tensors.db", limit_bytes=1 << 30)) as store:
            texts = TextStates(family, CPU, precision=precision, store=store)
            texts.warm([*CAPTIONS, CAPTIONS[0]])
            states = texts.states(family.tokenize(CAPTIONS))["states"]
            assert texts.num_encoded == encoded
        assert states.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        assert torch.equal(states[7], alone)


def test_encoder_layer_and_precision_are_part_of_the_key(model: Path, tmp_path: Path) -> None:
    def encoded(*, precision: str = "fp32", clip_skip: int = 1, changed: bool = False) -> int:
        family = load_family(model)
        family.clip_skip = clip_skip
        if changed:
            with torch.no_grad():
                next(family.parts()["text_encoder"].parameters()).add_(1.0)
        with closing(Store(tmp_path / "tensors.db", limit_bytes=1 << 30)) as store:
            texts = TextStates(family, CPU, precision=precision, store=store)
            texts.warm(CAPTIONS)
        return texts.num_encoded

    assert [encoded(), encoded()] == [11, 0]
    assert [encoded(precision="bf16"), encoded(clip_skip=2), encoded(changed=True)] == [11, 11, 11]
    assert encoded() == 0


def test_states_that_the_type_can_not_hold_are_told(model: Path) -> None:
    family = load_family(model)
    with torch.no_grad():
        for parameter in family.parts()["text_encoder"].parameters():
            parameter.mul_(1e30)
    texts = TextStates(family, CPU, precision="fp32")
    with pytest.raises(BadInput, match="the text encoder gave numbers that fp32 can't hold"):
        texts.states(family.tokenize(["paint"]))
