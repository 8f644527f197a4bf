"""Time how ground truth is chosen out of a large pool, and how near it comes: python benchmarks/pick_like.py 100000

Draws a training set of 50 captions out of 300 words and a pool of captions out of 8,000 (both by Zipf's law), in 21
shapes, and picks 1,000 of it. Against a random draw of as many: how far the words and shapes are from the training
set's (Jensen-Shannon divergence, in bits). Seconds are the processor's own, as the machine may be busy.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import time

import numpy as np

from edkit.balance.mirror import Described, choose, distance, masses, shape_shares, word_shares

NUM_SHAPES = 21
LOG_ASPECTS = [(shape - 10) / 7.2 for shape in range(NUM_SHAPES)]


def described(num: int, num_words: int, middle: int, rng: random.Random) -> Described:
    """Captions of 3 to 14 words, the frequent ones first; shapes around the middle one."""
    words, often = [f"word{i}" for i in range(num_words)], [1 / (i + 2) for i in range(num_words)]
    near = [1 / (1 + abs(shape - middle)) for shape in range(NUM_SHAPES)]
    return Described(
        shapes=np.asarray(rng.choices(range(NUM_SHAPES), near, k=num), np.int64),
        captions=np.arange(num),
        words=[masses(rng.choices(words, often, k=rng.randint(3, 14))) for _ in range(num)],
        weights=np.ones(num),
    )


def part(of: Described, rows: list[int]) -> Described:
    """Some of the images."""
    return Described(shapes=of.shapes[rows], captions=of.captions[rows], words=of.words, weights=np.ones(len(rows)))


def far(train: Described, other: Described) -> str:
    """How far a set's words and shapes are from the training set's."""
    shapes = [
        {str(shape): share for shape, share in enumerate(shape_shares(one, NUM_SHAPES).tolist())}
        for one in (train, other)
    ]
    return f"{distance(word_shares(train), word_shares(other)):.3f} | {distance(*shapes):.3f}"


def main() -> None:
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores\n")
    print("| pool | picks | CPU, s | words, bits | shapes, bits |\n|---:|---:|---:|---:|---:|")
    rng = random.Random(1)
    train = described(50, 300, 6, rng)
    for num in [int(argument) for argument in sys.argv[1:]] or [10_000, 100_000]:
        pool = described(num, 8000, 12, rng)
        order = np.random.default_rng(0).permutation(num)
        for limit in (1000, 5000):
            start = time.process_time()
            found = choose(train, pool, log_aspects=LOG_ASPECTS, limit=limit, order=order)
            seconds = time.process_time() - start
            print(f"| {num:,} | {limit:,} | {seconds:.2f} | {far(train, part(pool, found))} |", flush=True)
        print(f"| {num:,} | 1,000 at random | | {far(train, part(pool, rng.sample(range(num), 1000)))} |", flush=True)


if __name__ == "__main__":
    main()
