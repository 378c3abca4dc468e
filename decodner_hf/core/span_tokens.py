"""Tokenizes a batch of documents once, and cuts the tokens of their spans out of it.

In: texts, their words and a fast tokenizer; then the characters at which spans start and end. Out: token paths.
Characters, tokens and words are counted over the whole batch, the documents' chains one after the other, so that no
step loops over documents or spans.
Knows nothing of which spans are wanted, of labels or of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import BoolArray, IntArray, bounds_of, ramp_of
from .piece_cache import PieceCache
from .tokenization import encode_texts


@dataclass(frozen=True)
class TokenizedBatch:
    """The tokenized chains (document head, text, document tail) of B documents: C characters, T tokens, W words.

    Attributes:
        text: the C characters.
        is_space: bool [C], whether a character is a space that something in its chain follows.
        text_starts: int64 [B], where each text starts, after the document head.
        text_lengths: int64 [B].
        token_ids: int64 [T].
        cu_tokens: int64 [B + 1], where each chain's tokens start.
        token_starts: int64 [T + 1], first character of each token; then the batch's length.
        ends_before: int64 [T + 1], the largest end among the first t tokens (-1 for none).
        starts_from: int64 [T], the smallest start among tokens t and later.
        word_starts: int64 [W], first character of each word.
        word_ends: int64 [W], one past the last character of each word.
        cu_words: int64 [B + 1], where each document's words start.
    """

    text: str
    is_space: BoolArray
    text_starts: IntArray
    text_lengths: IntArray
    token_ids: IntArray
    cu_tokens: IntArray
    token_starts: IntArray
    ends_before: IntArray
    starts_from: IntArray
    word_starts: IntArray
    word_ends: IntArray
    cu_words: IntArray

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        words: tuple[IntArray, IntArray, IntArray],
        tokenizer: PreTrainedTokenizerBase,
        head: str,
        tail: str,
    ) -> "TokenizedBatch":
        """Tokenizes `texts`, each between `head` and `tail`; `words` are as `split_texts` gives them."""
        chains = [f"{head}{text}{tail}" for text in texts]
        token_ids, token_starts, token_ends, token_counts = encode_texts(tokenizer, chains)
        word_starts, word_ends, word_counts = words
        cu_chars = bounds_of(_lengths(chains))
        joined = "".join(chains)
        is_space = np.frombuffer(joined.encode("utf-32-le"), np.uint32) == ord(" ")
        is_space[cu_chars[1:] - 1] = False  # a chain's last character stands before nothing of the next chain
        token_shift = np.repeat(cu_chars[:-1], token_counts)
        token_starts, token_ends = token_starts + token_shift, token_ends + token_shift
        text_starts = cu_chars[:-1] + len(head)
        word_shift = np.repeat(text_starts, word_counts)
        return cls(
            text=joined,
            is_space=is_space,
            text_starts=text_starts,
            text_lengths=_lengths(texts),
            token_ids=token_ids,
            token_starts=np.append(token_starts, len(joined)),
            cu_tokens=bounds_of(token_counts),
            ends_before=np.maximum.accumulate(np.append(-1, token_ends)),
            starts_from=np.minimum.accumulate(token_starts[::-1])[::-1],
            word_starts=word_starts + word_shift,
            word_ends=word_ends + word_shift,
            cu_words=bounds_of(word_counts),
        )

    def words_of(self, document: int) -> tuple[IntArray, IntArray]:
        """Starts and ends of a document's words, counted within its text."""
        chosen, shift = slice(*self.cu_words[document : document + 2]), self.text_starts[document]
        return self.word_starts[chosen] - shift, self.word_ends[chosen] - shift

    def cuts(self, positions: IntArray) -> tuple[BoolArray, IntArray, IntArray]:
        """Per character position: whether tokens end there, and the first and last token that may come next."""
        first = np.searchsorted(self.starts_from, positions, side="left")
        last = np.searchsorted(self.ends_before[1:], positions, side="right")
        return first <= last, first, last

    def after_space(self, positions: IntArray) -> tuple[BoolArray, IntArray]:
        """Per character position: whether a token starts there with exactly the one space before it, and which.

        The space may be the token's own, or a token of its own, or one that the tokenizer's offsets leave out.
        """
        before = positions - 1
        is_cut, _, token = self.cuts(before)
        starts = self.token_starts[token]
        is_left_out = (starts == positions) & (self.ends_before[token] == before)
        return self.is_space[before] & is_cut & ((starts == before) | is_left_out), token

    def most_tokens(self, positions: IntArray, ends: IntArray) -> IntArray:
        """Per character position and end: no fewer tokens than the batch has between them."""
        first = np.searchsorted(self.ends_before[1:], positions - 1, side="right")
        return np.searchsorted(self.starts_from, ends, side="left") - first + 1

    @cached_property
    def _cut_ends(self) -> tuple[IntArray, IntArray]:
        """The word ends at which a token ends, and the token there."""
        is_cut, token, _ = self.cuts(self.word_ends)
        return self.word_ends[is_cut], token[is_cut]

    def next_piece(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Per character position: the next word end at which a token ends, or past the batch; and the token there."""
        ends, tokens = self._cut_ends
        following = np.searchsorted(ends, positions, side="right")
        return np.append(ends, len(self.text) + 1)[following], np.append(tokens, 0)[following]


@dataclass(frozen=True)
class BatchPaths:
    """The token paths of S spans on R paths, document after document.

    Attributes:
        token_ids: int64, the paths' tokens, one path after the other.
        cu_seqlens: int64 [R + 1], where each path starts in `token_ids`.
        document: int64 [R], ascending.
        of_place: bool [R], whether the path is the one that spans from a place share, and not a single span's own.
        span_path: int64 [S], each span's path, counted over the batch.
        span_length: int64 [S], each span's number of tokens; 0 where the tokenizer has none for it.
    """

    token_ids: IntArray
    cu_seqlens: IntArray
    document: IntArray
    of_place: BoolArray
    span_path: IntArray
    span_length: IntArray


def span_paths(
    batch: TokenizedBatch, document: IntArray, start: IntArray, end: IntArray, pieces: PieceCache
) -> BatchPaths:
    """Finds the tokens of S spans: slices of the batch's tokens wherever the spans' bounds allow it.

    Spans that start at one character share a path, which holds the longest of them. Where a token starts there after
    a single space, the path is a slice. Elsewhere its first piece, up to the next word end at which a token ends, is
    tokenized again after a space, and a slice follows. A span that ends inside a token, or inside that first piece,
    or that has a space at its edge, is tokenized by itself and has its own path.

    Args:
        batch: the documents.
        document: int64 [S], each span's document.
        start: int64 [S], first character, counted over the batch.
        end: int64 [S], one past its last character.
        pieces: tokenizes what is no slice, with the tokenizer that the batch was made with.
    """
    heads, first_span, group = np.unique(start, return_index=True, return_inverse=True)  # G places where spans start
    in_place, own_token = batch.after_space(heads)
    piece_end, piece_token = batch.next_piece(heads)
    first_token = np.where(in_place, own_token, piece_token)  # [G], where the slice starts
    ends_token, end_token, _ = batch.cuts(end)
    reaches = np.where(in_place[group], end_token > first_token[group], end >= piece_end[group])
    is_bare = ~(batch.is_space[start] | batch.is_space[end - 1])  # offsets may leave out a space at a span's edge
    is_slice = ends_token & reaches & is_bare  # [S]
    last_token = np.zeros_like(heads)
    np.maximum.at(last_token, group[is_slice], end_token[is_slice])

    sliced = np.flatnonzero(np.bincount(group[is_slice], minlength=len(heads)))
    headed = sliced[~in_place[sliced]]  # paths with a first piece of their own
    alone = np.flatnonzero(~is_slice)
    made_start, made_end = np.append(heads[headed], start[alone]), np.append(piece_end[headed], end[alone])
    made_bounds = zip(made_start.tolist(), made_end.tolist(), strict=True)
    made_ids, lengths = pieces.tokens_of([batch.text[first:last] for first, last in made_bounds])
    starts = bounds_of(lengths)[:-1]
    made_start, made_length = np.zeros_like(heads), np.zeros_like(heads)
    made_start[headed], made_length[headed] = starts[: len(headed)], lengths[: len(headed)]

    nothing = np.zeros_like(alone)
    rows = _Rows(
        num_shared=len(sliced),
        document=np.append(document[first_span[sliced]], document[alone]),
        made_start=np.append(made_start[sliced], starts[len(headed) :]),
        made_length=np.append(made_length[sliced], lengths[len(headed) :]),
        slice_start=np.append(first_token[sliced], nothing),
        slice_length=np.append((last_token - first_token)[sliced], nothing),
    )
    span_row = np.empty_like(group)
    span_row[is_slice] = np.searchsorted(sliced, group[is_slice])
    span_row[alone] = len(sliced) + np.arange(len(alone))
    span_length = made_length[group] + end_token - first_token[group]
    span_length[alone] = lengths[len(headed) :]
    return rows.paths(batch.token_ids, made_ids, span_row, span_length)


@dataclass(frozen=True)
class _Rows:
    """R paths to be made: of a piece tokenized by itself, a slice of the batch's tokens, or one after the other.

    The first `num_shared` are those of places, the others a single span's own.
    """

    num_shared: int
    document: IntArray
    made_start: IntArray
    made_length: IntArray
    slice_start: IntArray
    slice_length: IntArray

    def paths(self, batch_ids: IntArray, made_ids: IntArray, span_row: IntArray, span_length: IntArray) -> BatchPaths:
        """Sorts the rows by document and gathers their tokens; rows without tokens are left out."""
        lengths = self.made_length + self.slice_length
        order = np.argsort(self.document, kind="stable")
        order = order[lengths[order] > 0]
        rank = np.zeros_like(self.document)
        rank[order] = np.arange(len(order))
        lengths, made_length = lengths[order], np.repeat(self.made_length[order], lengths[order])
        depth = ramp_of(lengths)
        in_made = len(batch_ids) + np.repeat(self.made_start[order], lengths) + depth
        in_batch = np.repeat(self.slice_start[order], lengths) + depth - made_length
        token_ids = np.append(batch_ids, made_ids)[np.where(depth < made_length, in_made, in_batch)]
        of_place = order < self.num_shared
        return BatchPaths(token_ids, bounds_of(lengths), self.document[order], of_place, rank[span_row], span_length)


def _lengths(rows: Sequence[Sequence[object] | IntArray]) -> IntArray:
    return np.fromiter((len(row) for row in rows), np.int64, len(rows))
