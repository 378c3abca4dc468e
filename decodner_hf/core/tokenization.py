"""Turns text into token ids as they stand in the middle of a prompt, with exact character offsets.

In: a fast tokenizer and texts. Out: numpy arrays of token ids, with character starts and ends where asked for.
Every text is encoded after an anchor whose tokens are taken off again: a SentencePiece tokenizer would otherwise
put a space before it. Nothing is ever truncated or padded here, and the tokenizer's state is never switched.
Special tokens that are written out in a text count as such, as everywhere in transformers.
Knows nothing of labels, prompts or candidate spans.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from .arrays import IntArray

ANCHORS = ("\n", ":", "a", "0", ".\n\nA")


def check_tokenizer(tokenizer: Any) -> None:
    """Raises a ValueError unless `tokenizer` is a fast Hugging Face tokenizer, which alone knows character offsets."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and getattr(tokenizer, "backend_tokenizer", None) is not None:
        return
    if tokenizer is None:
        raise ValueError("no tokenizer was given: pass AutoTokenizer.from_pretrained(<the model's path or id>).")
    raise ValueError(
        f"{type(tokenizer).__name__} is not a fast Hugging Face tokenizer: it gives no character offsets, without "
        "which entities cannot be located. Load it with AutoTokenizer.from_pretrained(..., use_fast=True), or convert "
        "it to a PreTrainedTokenizerFast."
    )


def private_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copies a fast tokenizer, with truncation and padding off, for an object that encodes texts again and again.

    Calls of the original switch both on and off in the Rust tokenizer they share, also from other threads.

    Raises:
        ValueError: a tokenizer that is not fast.
    """
    check_tokenizer(tokenizer)
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.no_truncation()
    own.backend_tokenizer.no_padding()
    return own


def check_texts(texts: Sequence[str], what: str) -> None:
    """Raises a ValueError that names the first of `texts` that is not a string or has no UTF-8 form."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise ValueError(f"{what} must be a list of strings, not {type(texts).__name__}.")
    for index, text in enumerate(texts):
        if (problem := text_problem(text)) is not None:
            raise ValueError(f"{what}: number {index} {problem}")


def text_problem(text: object) -> str | None:
    """Returns why `text` cannot be tokenized, to be put after its name; None if it is a string with a UTF-8 form."""
    if isinstance(text, str) and text.isascii():
        return None
    if not isinstance(text, str):
        return f"is {type(text).__name__} and not a string: {text!r:.80}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"holds the lone surrogate {text[error.start]!r} at character {error.start}, which is not valid Unicode: "
            "decode the text with the right encoding, or with errors='replace'."
        )
    return None


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], anchors: Sequence[str] = ANCHORS
) -> list[IntArray]:
    """Returns the token ids of each text as it stands after other text, without special tokens.

    They are the tokens of anchor + text less those of the anchor; where the two merge, the next anchor is tried.

    Returns:
        Per text an int64 array [n].

    Raises:
        ValueError: a tokenizer that is not fast, a text that is not valid text, or one that merges with every anchor.
    """
    check_tokenizer(tokenizer)
    check_texts(texts, "the texts")
    found = _continuations(tokenizer, texts, anchors, with_offsets=False)
    return [np.array(own.ids, np.int64) for own in found]


def encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], anchors: Sequence[str] = ANCHORS
) -> list[tuple[IntArray, IntArray, IntArray]]:
    """Like `continuation_ids`, with the characters that each token covers.

    Returns:
        Per text (ids, starts, ends), each int64 [n]: token t covers text[starts[t]:ends[t]]. Byte tokens that share a
        character all cover it; whether a token covers the space before its word depends on the tokenizer.

    Raises:
        ValueError: as `continuation_ids`.
    """
    ids, starts, ends, counts = encode_texts(tokenizer, texts, anchors)
    bounds = np.cumsum(counts[:-1])
    return list(zip(*(np.split(part, bounds) for part in (ids, starts, ends)), strict=True)) if len(counts) else []


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], anchors: Sequence[str] = ANCHORS
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Like `encode_with_offsets`, the texts' tokens in one row.

    Returns:
        ids, starts and ends, int64 [T], and the number of tokens of each text, int64 [B].

    Raises:
        ValueError: as `continuation_ids`.
    """
    check_tokenizer(tokenizer)
    check_texts(texts, "the texts")
    found = _continuations(tokenizer, texts, anchors, with_offsets=True)
    counts = np.fromiter((len(own.ids) for own in found), np.int64, len(found))
    shift = np.repeat(np.fromiter((own.anchor_length for own in found), np.int64, len(found)), counts)
    limit = np.repeat(np.fromiter(map(len, texts), np.int64, len(found)), counts)
    ids = chain.from_iterable(own.ids for own in found)
    pairs = chain.from_iterable(own.encoding.offsets[-len(own.ids) :] for own in found if own.ids)
    starts, ends = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(shift)).reshape(-1, 2).T
    return (
        np.fromiter(ids, np.int64, len(shift)),
        np.clip(starts - shift, 0, limit),
        np.clip(ends - shift, 0, limit),
        counts,
    )


def opening_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = True) -> IntArray:
    """Returns the token ids, int64 [n], of a text that opens the model's input, with the special tokens before it.

    Special tokens that the tokenizer puts after a text (an end token, say) are left off: the prompt goes on.
    `special_tokens=False` adds none, for a text that has its own, such as a rendered chat template.
    """
    check_tokenizer(tokenizer)
    check_texts([text], "the prompt's texts")
    (encoding,) = _encode(tokenizer, [text], special_tokens=special_tokens)
    added = np.array(encoding.special_tokens_mask, bool)
    kept = int(np.flatnonzero(~added).max(initial=-1)) + 1
    return np.array(encoding.ids[: kept or None], np.int64)


def token_numbers(
    tokenizer: PreTrainedTokenizerBase, content: str | Sequence[str], places: Sequence[int]
) -> list[int]:
    """Returns the numbers of tokens as transformers' token classification counts them: in `tokenizer(content)`.

    Special tokens that the tokenizer adds are counted, too: after a beginning token the first word has number 1.

    Args:
        tokenizer: a fast tokenizer.
        content: a text, or its words, of which each is tokenized by itself.
        places: characters of the text, or indices of words.

    Returns:
        For each place the token that holds the character, or the first token of the word; where the tokenizer drops
        it, the next token.
    """
    backend = _without_limits(tokenizer.backend_tokenizer)
    if isinstance(content, str):
        encoding = backend.encode(content)
        covered = [end for _, end in encoding.offsets]
    else:
        encoding = backend.encode(list(content), is_pretokenized=True)
        covered = [0 if word is None else word + 1 for word in encoding.word_ids]
    found = np.searchsorted(np.maximum.accumulate(np.array(covered, np.int64)), places, side="right")
    numbers: list[int] = np.minimum(found, max(len(covered) - 1, 0)).tolist()
    return numbers


@dataclass(frozen=True)
class _Continuation:
    """A text's own tokens after an anchor of so many characters; the encoding is of both."""

    ids: list[int]
    encoding: Encoding
    anchor_length: int


def _continuations(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], anchors: Sequence[str], *, with_offsets: bool
) -> list[_Continuation]:
    """Encodes each text after the first anchor with which it does not merge."""
    found: dict[int, _Continuation] = {}
    vanished: dict[int, _Continuation] = {}  # nothing but the anchor's tokens, with each anchor tried so far
    pending: Sequence[int] = range(len(texts))
    for anchor in anchors:
        if not pending:
            break
        (alone,) = _encode(tokenizer, [anchor])
        before = alone.ids
        skipped = len(before)
        encodings = _encode(tokenizer, [anchor + texts[index] for index in pending], with_offsets=with_offsets)
        for index, encoding in zip(pending, encodings, strict=True):
            ids = encoding.ids  # copies them
            if ids[:skipped] == before:
                kind = vanished if texts[index] and len(ids) == skipped else found
                kind[index] = _Continuation(ids[skipped:], encoding, len(anchor))
        pending = [index for index in pending if index not in found]
    for index in pending:
        if index not in vanished:
            raise ValueError(
                f"the tokenizer merges the text {texts[index]!r} with each of the anchors {list(anchors)}, so that "
                "its own tokens cannot be told: pass an anchor after which the text stands by itself."
            )
    return [found.get(index) or vanished[index] for index in range(len(texts))]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    special_tokens: bool = False,
    with_offsets: bool = True,
) -> list[Encoding]:
    backend = _without_limits(tokenizer.backend_tokenizer)
    encode = backend.encode_batch if with_offsets else backend.encode_batch_fast
    encodings: list[Encoding] = encode(list(texts), add_special_tokens=special_tokens)
    return encodings


def _without_limits(backend: Tokenizer) -> Tokenizer:
    """The Rust tokenizer, or a copy if truncation or padding is on: other threads may be using the original."""
    if backend.truncation is None and backend.padding is None:
        return backend
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    return backend
