"""nano's own vocabulary: byte-level pairs as CLIP has them, learned from the world's captions and common words."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from edkit.nano import world

MAX_TOKENS = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

# Words that captions of photos are full of: so that a caption about something else isn't spelled letter by letter.
_COMMON = """
a an the of in on at with and or to from by for is are this that it its no not one two three four some many his
her photo picture image painting drawing illustration close up view side front back near next under over behind
between left right top bottom centre center middle small large big little tiny huge old new young man woman boy
girl child person people face head hand eye eyes hair dog cat bird horse cow animal fish bear tree trees flower
flowers plant leaf forest mountain hill river lake sea ocean beach sand sky cloud clouds sun moon night day
light dark snow ice rain grass field road street city town building house home room door window wall floor table
chair bed car bus train bicycle boat plane food fruit apple orange banana cake bread plate bowl cup bottle glass
book clock phone computer paper box bag ball shirt hat dress shoe black white grey gray brown gold silver bright
pale standing sitting lying holding wearing walking running looking playing eating made wooden metal stone brick
water cloth checkered colour color coloured red green blue yellow purple pink cyan circle square triangle star
heart ring shape toy
"""
COMMON_WORDS = tuple(_COMMON.split())


def _words() -> Counter[str]:
    """How often each word counts: the world's captions far more than the common words, so that they become whole."""
    counts = Counter(dict.fromkeys(COMMON_WORDS, 3))
    for scene in world.scenes(4000, seed=0):
        counts.update(world.caption(scene).replace(",", "").split())
    return counts


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, as byte-level pair encoding (GPT-2, CLIP) spells them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def learn_merges(num_merges: int) -> list[tuple[str, str]]:
    """Pairs in the order they are merged: always the most frequent next, ties by the alphabet."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in _words()}
    counts = _words()
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in words.items():
            merged: list[str] = []
            for piece in pieces:
                # "aaa" with the pair (a, a) becomes "aa a": a piece just merged is not merged again in this round
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            words[word] = merged
    return merges


def make_tokenizer(num_merges: int = 500) -> Any:
    """A transformers CLIPTokenizer of 514 + num_merges tokens: bytes, bytes at a word's end, pairs, two markers."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    merges = learn_merges(num_merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
