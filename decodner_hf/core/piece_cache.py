"""Tokenizes pieces of text as they stand after a space, and keeps the tokens of those met before.

In: words and short runs of words. Out: their token ids, the same as `continuation_ids` gives them. Texts repeat their
words, and most spans begin with one, so that the tokenizer reads few pieces twice. Threads may share a cache.
Knows nothing of documents, spans or labels.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import IntArray, ramp_of
from .tokenization import continuation_ids

MOST_KEPT = 2**16  # pieces; beyond them the cache starts anew
LONGEST_KEPT = 24  # characters; longer pieces hardly repeat


class PieceCache:
    """Token ids of pieces, each tokenized by itself after a space; at most `MOST_KEPT` short ones are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes a fast tokenizer, which must not change while the cache is used."""
        self.tokenizer = tokenizer
        self._lock = Lock()
        self._numbers: dict[str, int] = {}
        self._token_ids: IntArray = np.empty(0, np.int64)
        self._bounds: IntArray = np.zeros(1, np.int64)

    def __reduce__(self) -> tuple[type[Self], tuple[PreTrainedTokenizerBase]]:
        """Copies and pickles without what is kept."""
        return type(self), (self.tokenizer,)

    def __len__(self) -> int:
        """Number of pieces that are kept."""
        return len(self._numbers)

    def tokens_of(self, pieces: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Returns the tokens of n pieces.

        Returns:
            Token ids, int64 [T], one piece after the other, and the number of tokens of each piece, int64 [n].

        Raises:
            ValueError: as `continuation_ids`.
        """
        with self._lock:
            unknown = [piece for piece in dict.fromkeys(pieces) if piece not in self._numbers]
            unknown.sort(key=lambda piece: len(piece) > LONGEST_KEPT)  # those to be kept first
            encoded = continuation_ids(self.tokenizer, [f" {piece}" for piece in unknown]) if unknown else []
            token_ids = np.concatenate([self._token_ids, *encoded])
            ends = np.cumsum([len(ids) for ids in encoded], dtype=np.int64)
            bounds = np.append(self._bounds, self._bounds[-1] + ends)
            passing = {piece: len(self._numbers) + index for index, piece in enumerate(unknown)}
            known = self._numbers
            rows = np.fromiter((known[p] if p in known else passing[p] for p in pieces), np.int64, len(pieces))
            self._keep(token_ids, bounds, {piece: row for piece, row in passing.items() if len(piece) <= LONGEST_KEPT})
        lengths = np.diff(bounds)[rows]
        return token_ids[np.repeat(bounds[rows], lengths) + ramp_of(lengths)], lengths

    def _keep(self, token_ids: IntArray, bounds: IntArray, added: dict[str, int]) -> None:
        """Keeps the first rows of a table of tokens: those kept so far and those `added`."""
        self._numbers |= added
        if len(self._numbers) > MOST_KEPT:
            self._numbers = {}
        self._bounds = bounds[: len(self._numbers) + 1]
        self._token_ids = token_ids[: self._bounds[-1]]
