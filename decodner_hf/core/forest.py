"""Packs documents and their candidate spans into one row of tokens whose attention mask is one integer per token.

In: token ids of documents and of span paths. Out: `TokenForest`.
The nodes are in depth-first pre-order and `subtree_end[j]` is the index of node j's last descendant, inclusive, so
that node i sees node j iff `j <= i <= subtree_end[j]`. Spans that share their first tokens share nodes.
Attention over a tree of tokens: SpecInfer (Miao et al., arXiv:2305.09781), Medusa (Cai et al., arXiv:2401.10774).
Knows nothing of tokenizers, labels or attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .arrays import BoolArray, IntArray, bounds_of, ramp_of

MAX_TOKEN_ID = 2**31 - 2


@dataclass(frozen=True)
class SpanPaths:
    """The candidate spans of one document as token paths; a span is the first `span_length` tokens of its path.

    Spans that start at the same word share one path (the longest), so that S spans need about S / W paths.

    Attributes:
        token_ids: int64 [T], the paths' tokens, one path after the other.
        cu_seqlens: int64 [R + 1], where each path starts in `token_ids`; the last entry is T.
        span_path: int64 [S], each span's path.
        span_length: int64 [S], each span's number of tokens, from 1 to the length of its path.
    """

    token_ids: IntArray
    cu_seqlens: IntArray
    span_path: IntArray
    span_length: IntArray

    @classmethod
    def from_lists(cls, spans: Sequence[Sequence[int]]) -> "SpanPaths":
        """Makes one path of each span's token ids."""
        lengths = np.fromiter((len(span) for span in spans), np.int64, len(spans))
        token_ids = np.fromiter((token for span in spans for token in span), np.int64, int(lengths.sum()))
        return cls(token_ids, bounds_of(lengths), np.arange(len(spans)), lengths)


@dataclass(frozen=True)
class FoundSpans:
    """K candidate spans found at n places (words of documents), as token paths; a span is the start of its path.

    Attributes:
        place: int64 [K], at which of the n places each starts, ascending.
        width: int64 [K], its number of words.
        token_ids: int64 [T], the tokens of R paths, one path after the other.
        cu_seqlens: int64 [R + 1], where each path starts in `token_ids`.
        path_place: int64 [R], the place at which each path starts.
        of_place: bool [R], whether the path is the one that spans from its place share, and not a single span's own.
        span_path: int64 [K], each span's path.
        span_length: int64 [K], its number of tokens, at least 1.
    """

    place: IntArray
    width: IntArray
    token_ids: IntArray
    cu_seqlens: IntArray
    path_place: IntArray
    of_place: BoolArray
    span_path: IntArray
    span_length: IntArray


@dataclass(frozen=True)
class TokenForest:
    """N packed tokens with tree-shaped causal visibility.

    Attributes:
        token_ids: int64 [N].
        position_ids: int64 [N], prefix length + depth.
        subtree_end: int32 [N], index of the last descendant, inclusive (the node itself where it is a leaf).
        span_nodes: int64 [S], the node at which each span is scored, in the order the spans were given.
        cu_nodes: int64 [B + 1], where each document's nodes start.
        cu_spans: int64 [B + 1], where each document's spans start.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    span_nodes: torch.Tensor
    cu_nodes: torch.Tensor
    cu_spans: torch.Tensor

    @property
    def num_nodes(self) -> int:
        """Number of nodes (N)."""
        return self.token_ids.shape[0]

    @property
    def num_spans(self) -> int:
        """Number of spans (S)."""
        return self.span_nodes.shape[0]

    def to(self, device: torch.device | str) -> "TokenForest":
        """Returns this forest with its tensors on `device`."""
        return TokenForest(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def below(self, chain: Sequence[int] | IntArray) -> "TokenForest":
        """Returns this forest hung below the last of the tokens `chain`, which every node then sees.

        The chain counts as nodes of the first document.
        """
        chain_ids = torch.as_tensor(np.asarray(chain, np.int64))
        length = chain_ids.shape[0]
        first = int(self.position_ids[0]) if self.num_nodes else 0
        cu_nodes = self.cu_nodes + length
        cu_nodes[0] = 0
        return TokenForest(
            token_ids=torch.cat([chain_ids, self.token_ids]),
            position_ids=torch.cat([torch.arange(first, first + length), self.position_ids + length]),
            subtree_end=torch.cat([torch.full((length,), length + self.num_nodes - 1), self.subtree_end + length]).to(
                torch.int32
            ),
            span_nodes=self.span_nodes + length,
            cu_nodes=cu_nodes,
            cu_spans=self.cu_spans,
        )


def build_forest(
    chains: Sequence[Sequence[int] | IntArray],
    paths: Sequence[SpanPaths] | None = None,
    *,
    first_position: int = 0,
    cue_token_ids: Sequence[int] = (),
) -> TokenForest:
    """Builds the forest of B documents: each a chain of tokens with the tree of its spans below its last token.

    Vectorised: the paths are sorted, and a path's new nodes are what it does not share with the path before it.

    Args:
        chains: per document its token ids; may be empty, the spans then hang directly below the shared prefix.
        paths: per document its spans; None where no document has any (a chain to be kept as a prefix).
        first_position: position of the first node, which is the length of the shared prefix.
        cue_token_ids: tokens that follow every span; the span is then scored at the last of them.

    Raises:
        ValueError: counts that differ, an empty span, a span longer than its path, or a token id outside int32.
    """
    if paths is not None and len(paths) != len(chains):
        raise ValueError(
            f"{len(chains)} chains but {len(paths)} lists of spans were given: one list a chain is needed."
        )
    spans = list(paths) if paths is not None else [SpanPaths.from_lists([])] * len(chains)
    chain_lengths = np.fromiter((len(chain) for chain in chains), np.int64, len(chains))
    span_counts = np.fromiter((len(document.span_path) for document in spans), np.int64, len(spans))
    table = PathTable.of(spans, span_counts, np.asarray(cue_token_ids, np.int64))
    tree_sizes = np.bincount(table.tree, weights=table.new_nodes, minlength=len(chains)).astype(np.int64)
    cu_nodes = bounds_of(chain_lengths + tree_sizes)
    first_nodes = table.place(cu_nodes[:-1] + chain_lengths)

    token_ids = np.empty(cu_nodes[-1], np.int64)
    position_ids = np.empty(cu_nodes[-1], np.int64)
    subtree_end = np.empty(cu_nodes[-1], np.int32)
    chain_nodes = np.repeat(cu_nodes[:-1], chain_lengths) + ramp_of(chain_lengths)
    token_ids[chain_nodes] = np.concatenate(
        [np.asarray(chain, np.int64) for chain in chains] or [np.empty(0, np.int64)]
    )
    position_ids[chain_nodes] = first_position + ramp_of(chain_lengths)
    subtree_end[chain_nodes] = np.repeat(cu_nodes[1:] - 1, chain_lengths)

    row, depth = table.created()
    nodes = first_nodes[row] + depth - table.shared[row]
    token_ids[nodes] = table.token_ids[row, depth]
    position_ids[nodes] = first_position + chain_lengths[table.tree[row]] + depth
    subtree_end[nodes] = table.subtree_ends(first_nodes, cu_nodes[1:])[row, depth]
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() <= MAX_TOKEN_ID:
        raise ValueError(
            f"token ids must lie in 0..{MAX_TOKEN_ID}, but {token_ids.min()}..{token_ids.max()} were given."
        )
    return TokenForest(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.from_numpy(position_ids),
        subtree_end=torch.from_numpy(subtree_end),
        span_nodes=torch.from_numpy(table.span_nodes(first_nodes)),
        cu_nodes=torch.from_numpy(cu_nodes),
        cu_spans=torch.from_numpy(bounds_of(span_counts)),
    )


def rows_forest(token_ids: torch.Tensor, first_position: int) -> TokenForest:
    """Returns a padded batch [B, L] as a forest in which each row, padding included, is a chain of its own."""
    batch, length = token_ids.shape
    ends = torch.arange(1, batch + 1) * length - 1
    return TokenForest(
        token_ids=token_ids.reshape(-1).to(torch.int64),
        position_ids=torch.arange(first_position, first_position + length).repeat(batch),
        subtree_end=ends.repeat_interleave(length).to(torch.int32),
        span_nodes=torch.arange(batch * length),
        cu_nodes=torch.arange(batch + 1) * length,
        cu_spans=torch.arange(batch + 1) * length,
    )


@dataclass(frozen=True)
class PathTable:
    """Paths of tokens in lexicographic order, R rows of width W, tree after tree.

    `shared[r]` is how many leading tokens row r has in common with row r - 1 of the same tree: those nodes exist
    already, the other `new_nodes[r]` are created by row r, one below the other.
    """

    token_ids: IntArray  # [R, W], rows sorted; meaningless after a row's end
    lengths: IntArray  # [R]
    tree: IntArray  # [R]
    shared: IntArray  # [R]
    span_row: IntArray  # [S], row of each span, spans in the order given
    span_depth: IntArray  # [S], depth of each span's last token
    rank: IntArray  # [R], where each row that was given stands now

    @property
    def new_nodes(self) -> IntArray:
        """[R]: nodes that each row creates."""
        return self.lengths - self.shared

    @classmethod
    def of(cls, spans: Sequence[SpanPaths], span_counts: IntArray, cue: IntArray) -> "PathTable":
        """The paths of B documents, each document a tree; with a cue, each span on a path of its own."""
        empty = [np.empty(0, np.int64)]
        flat = np.concatenate([document.token_ids for document in spans] or empty)
        path_counts = np.fromiter((len(document.cu_seqlens) - 1 for document in spans), np.int64, len(spans))
        ends = np.cumsum(path_counts + 1) - 1  # in the documents' bounds, one after the other
        lengths = np.delete(np.diff(np.concatenate([document.cu_seqlens for document in spans] or empty)), ends[:-1])
        span_length = np.concatenate([document.span_length for document in spans] or empty)
        local_path = np.concatenate([document.span_path for document in spans] or empty)
        _check_spans(local_path, span_length, np.repeat(path_counts, span_counts))
        span_path = local_path + np.repeat(bounds_of(path_counts)[:-1], span_counts)
        if (span_length > lengths[span_path]).any():
            longest = int((span_length - lengths[span_path]).argmax())
            raise ValueError(
                f"span {longest} has {span_length[longest]} tokens, its path only {lengths[span_path[longest]]}."
            )
        document = np.repeat(np.arange(len(spans)), path_counts)
        if len(cue):  # every span end gets its own path: the span's tokens, then the cue
            starts = bounds_of(lengths)[:-1][span_path]
            document, lengths = document[span_path], span_length + len(cue)
            source = np.repeat(starts, lengths) + ramp_of(lengths)
            ramp, limit = ramp_of(lengths), np.repeat(span_length, lengths)
            in_cue = ramp >= limit
            tokens = flat[np.where(in_cue, 0, source)]
            tokens[in_cue] = cue[(ramp - limit)[in_cue]]
            flat, span_path, span_length = tokens, np.arange(len(lengths)), lengths
        return cls.from_rows(flat, lengths, document, span_path, span_length)

    @classmethod
    def from_rows(
        cls, token_ids: IntArray, lengths: IntArray, tree: IntArray, span_row: IntArray, span_length: IntArray
    ) -> "PathTable":
        """Sorts rows of tokens.

        Args:
            token_ids: int64, the rows' tokens, one row after the other.
            lengths: int64 [R], tokens of each row.
            tree: int64 [R], the tree that each row hangs in; rows of different trees share nothing.
            span_row: int64 [S], each span's row.
            span_length: int64 [S], its number of tokens.
        """
        width = int(lengths.max(initial=0))
        table = np.full((len(lengths), width), -1, np.int64)
        table[np.arange(width) < lengths[:, None]] = token_ids
        order = _lexicographic_order(tree, table)
        table, lengths, tree = table[order], lengths[order], tree[order]
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(
            table, lengths, tree, _shared_with_previous(table, lengths, tree), rank[span_row], span_length - 1, rank
        )

    def place(self, tree_starts: IntArray) -> IntArray:
        """First node [R] that each row creates, given where each document's tree starts [B]."""
        before = np.cumsum(self.new_nodes) - self.new_nodes
        first_row = np.searchsorted(self.tree, self.tree, side="left")
        first_nodes: IntArray = tree_starts[self.tree] + before - before[first_row]
        return first_nodes

    def created(self) -> tuple[IntArray, IntArray]:
        """Row and depth of every created node, in node order."""
        counts = self.new_nodes
        return np.repeat(np.arange(len(counts)), counts), np.repeat(self.shared, counts) + ramp_of(counts)

    def subtree_ends(self, first_nodes: IntArray, document_ends: IntArray) -> IntArray:
        """[R, W]: the last descendant of the node that row r creates at depth d.

        It ends before the first later row that shares at most d tokens with the row above it, or with the document.
        """
        rows, width = self.token_ids.shape
        starts = np.append(self.tree[1:] != self.tree[:-1], True)[:rows]  # the next row begins a document
        following = np.where(starts, document_ends[self.tree], np.append(first_nodes[1:], 0)[:rows])
        shared_next = np.where(starts, 0, np.append(self.shared[1:], 0)[:rows])
        far = np.iinfo(np.int64).max
        branches = np.where(shared_next[:, None] <= np.arange(width), following[:, None], far)
        np.minimum.accumulate(branches[::-1], axis=0, out=branches[::-1])
        return branches - 1

    def span_nodes(self, first_nodes: IntArray) -> IntArray:
        """[S]: the node of each span's last token, which its own row created or the last row before it that did."""
        depth = np.arange(self.token_ids.shape[1])
        own = (first_nodes - self.shared)[:, None] + depth
        nodes = np.where(depth >= self.shared[:, None], own, -1)
        nodes = np.where(depth < self.lengths[:, None], nodes, -1)
        return np.maximum.accumulate(nodes, axis=0)[self.span_row, self.span_depth]


def _check_spans(span_path: IntArray, span_length: IntArray, path_counts: IntArray) -> None:
    if (span_length < 1).any():
        raise ValueError(f"span {int(span_length.argmin())} is empty: every span needs at least one token.")
    if ((span_path < 0) | (span_path >= path_counts)).any():
        raise ValueError("span_path names a path that its document does not have.")


def _lexicographic_order(document: IntArray, table: IntArray) -> IntArray:
    """Row order by (document, tokens); three tokens fill one 63-bit sort key where the token ids are small enough."""
    largest = int(max(table.max(initial=0), document.max(initial=0))) + 1
    bits = max(largest.bit_length(), 1)
    columns = np.concatenate([document[:, None], table + 1], axis=1)
    keys = []
    for start in range(0, columns.shape[1], 63 // bits):
        group = columns[:, start : start + 63 // bits]
        key = group[:, 0].copy()
        for column in range(1, group.shape[1]):
            key = (key << bits) | group[:, column]
        keys.append(key)
    return np.lexsort(keys[::-1])


def _shared_with_previous(table: IntArray, lengths: IntArray, document: IntArray) -> IntArray:
    rows, width = table.shape
    shared = np.zeros(rows, np.int64)
    if rows > 1 and width:
        equal = (table[1:] == table[:-1]) & (document[1:] == document[:-1])[:, None]
        run = np.where(equal.all(axis=1), width, np.argmin(equal, axis=1))
        shared[1:] = np.minimum(run, np.minimum(lengths[1:], lengths[:-1]))
    return shared
