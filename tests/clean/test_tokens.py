"""Captions are counted in the family's own tokens."""

from __future__ import annotations

import pytest

from edkit.clean.tokens import FAMILIES, family, unread
from edkit.data.errors import UsageError


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean sd1"):
        family("sd11")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_the_family_does_not_read_is_the_end(name: str) -> None:
    pytest.importorskip("open_clip")
    measure = unread(name)
    assert measure("a dog on a beach") == (5, "")
    assert measure("a " * 75) == (75, "")
    assert measure("a " * 75 + "lost dog") == (77, "lost dog")
    assert measure("") == (0, "")
