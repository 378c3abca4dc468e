"""Chooses passages of silver sentences of one article, to train on texts longer than a sentence.

In: completely annotated sentences with the article of each. Out: numbers of the sentences of each chosen passage.
Knows nothing of files.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from .matching import Sentence

SHORTEST, LONGEST = 60, 450  # words of a passage
MENTIONS_AT_LEAST = 4


def choose_passages(pool: Sequence[tuple[str, Sentence]], count: int, seed: int) -> list[range]:
    """Returns up to `count` runs of the pool's sentences, rare types preferred. The pool holds articles as wholes."""
    frequency = Counter(label for _, sentence in pool for _, _, label in sentence.mentions)
    generator = random.Random(seed)
    keys = []
    for run in _runs(pool, generator):
        labels = [{label for _, _, label in pool[number][1].mentions} for number in run]
        if sum(map(len, labels)) >= MENTIONS_AT_LEAST:
            weight = sum(frequency[label] ** -0.5 for found in labels for label in found) / len(run)
            keys.append((-math.log(1.0 - generator.random()) / weight, run.start, run.stop))
    return sorted((range(start, stop) for _, start, stop in sorted(keys)[:count]), key=lambda run: run.start)


def _runs(pool: Sequence[tuple[str, Sentence]], generator: random.Random) -> Iterator[range]:
    """Yields each article in runs of random length, any order of magnitude as likely as another."""
    for _, group in groupby(range(len(pool)), lambda number: pool[number][0]):
        start, words, goal = -1, 0, _goal(generator)
        for number in group:
            start = number if start < 0 else start
            words += pool[number][1].text.count(" ") + 1
            if words >= goal:
                yield range(start, number + 1)
                start, words, goal = -1, 0, _goal(generator)
        if start >= 0 and words >= SHORTEST:
            yield range(start, number + 1)


def _goal(generator: random.Random) -> float:
    return math.exp(generator.uniform(math.log(SHORTEST), math.log(LONGEST)))
