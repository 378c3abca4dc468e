"""Tokens of pieces that were met before are the tokenizer's, whatever is kept of them."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf.core import piece_cache
from decodner_hf.core.piece_cache import PieceCache
from decodner_hf.core.tokenization import continuation_ids

TOKENIZER = byte_level_single_digits()
PIECES = ["Apple", "'s", "東京", "a" * 40, "U.S.", "12", "of the", "(", "", "🙂"]


def found(cache, pieces):
    token_ids, lengths = cache.tokens_of(pieces)
    return [part.tolist() for part in np.split(token_ids, np.cumsum(lengths)[:-1])] if pieces else []


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6), max_size=8), st.integers(0, 6))
def test_tokens_are_the_tokenizers_whatever_is_kept(batches, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piece_cache, "MOST_KEPT", most)
        cache = PieceCache(TOKENIZER)
        for pieces in batches:
            expected = [ids.tolist() for ids in continuation_ids(TOKENIZER, [f" {piece}" for piece in pieces])]
            assert found(cache, pieces) == expected
            assert len(cache) <= most


def test_what_was_met_before_is_not_tokenized_again(monkeypatch):
    cache, read = PieceCache(TOKENIZER), []

    def reading(tokenizer, texts):
        read.extend(texts)
        return continuation_ids(tokenizer, texts)

    monkeypatch.setattr(piece_cache, "continuation_ids", reading)
    cache.tokens_of(["Apple", "a" * 40])
    cache.tokens_of(["a" * 40, "Apple", "Jobs", "Apple"])
    assert read == [" Apple", " " + "a" * 40, " Jobs", " " + "a" * 40]  # long pieces are not kept
    assert len(copy.deepcopy(cache)) == 0


def test_threads_share_a_cache(monkeypatch):
    monkeypatch.setattr(piece_cache, "MOST_KEPT", 20)
    cache = PieceCache(TOKENIZER)
    batches = [[f"word{number % 37}" for number in range(start, start + 9)] for start in range(60)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda pieces: found(cache, pieces), batches))
    for pieces, result in zip(batches, results, strict=True):
        assert result == [ids.tolist() for ids in continuation_ids(TOKENIZER, [f" {piece}" for piece in pieces])]
