"""Decontaminates training data: drops examples that share a run of words with an evaluation set.

In: training examples and evaluation examples. Out: the examples that are left, and how many were dropped.
Words are compared without case and punctuation. Knows nothing of labels, tokenizers or models.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray
from .examples import Example

WORDS_IN_A_ROW = 10
WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it vanishes modulo 2 ** 64


def drop_overlaps(
    train: Sequence[Example],
    evaluation_sets: Sequence[Sequence[Example]],
    *,
    words_in_a_row: int = WORDS_IN_A_ROW,
) -> tuple[list[Example], int]:
    """Drops training examples that share `words_in_a_row` words in a row with an example of an evaluation set.

    Returns:
        The examples that are left, in order, and the number of those dropped.
    """
    numbers: dict[str, int] = {}
    evaluated = [
        _runs([example.text for example in examples], numbers, words_in_a_row)[0] for examples in evaluation_sets
    ]
    runs, owners = _runs([example.text for example in train], numbers, words_in_a_row)
    shared = np.isin(runs, np.concatenate([np.empty(0, np.uint64), *evaluated]))
    dropped = np.zeros(len(train), bool)
    dropped[owners[shared]] = True
    kept = [example for example, gone in zip(train, dropped.tolist(), strict=True) if not gone]
    return kept, int(dropped.sum())


def _runs(texts: Sequence[str], numbers: dict[str, int], length: int) -> tuple[NDArray[np.uint64], IntArray]:
    """Returns a 64-bit hash of every run of `length` words, and the number of the text that it is in.

    `numbers` gives every word its number; new words are added to it.
    """
    words = [[numbers.setdefault(word, len(numbers)) for word in WORD.findall(text.casefold())] for text in texts]
    counts = np.fromiter((len(row) for row in words), np.int64, len(words))
    flat = np.fromiter((number for row in words for number in row), np.uint64, int(counts.sum()))
    owner = np.repeat(np.arange(len(words)), counts)
    if len(flat) < length:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes = np.zeros(len(flat) - length + 1, np.uint64)
    for offset in range(length):
        hashes = hashes * FACTOR + _scattered(flat[offset : len(flat) - length + 1 + offset])
    whole = owner[: len(hashes)] == owner[length - 1 :]
    return hashes[whole], owner[: len(hashes)][whole]


def _scattered(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads small numbers over all 64 bits (a Weyl step and two xor-multiplications)."""
    spread = (numbers + np.uint64(1)) * FACTOR
    spread = (spread ^ (spread >> np.uint64(32))) * FACTOR
    mixed: NDArray[np.uint64] = spread ^ (spread >> np.uint64(29))
    return mixed
