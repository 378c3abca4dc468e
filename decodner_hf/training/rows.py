"""Packs encoded examples and their prompts into rows of one length, which is all that training sees.

In: encoded sources, and a prompt or what draws prompts. Out: `PackedRows`, a map-style data set of every row of every
epoch: row r is a function of the seed and r alone, so that training can continue anywhere, in any worker.
Positions, structure and symbols stay numpy arrays: they are needed on the host, and loaders then leave them there.
Knows nothing of models or devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..core.arrays import IndexArray, IntArray, ramp_of
from ..core.forest import TokenForest, build_forest
from ..core.label_head import UNLABELLED
from ..core.prompting import EncodedPrompt
from ..core.validation import check_count
from .documents import EncodedSources, TrainingDocument
from .prompts import AskedTypes, OpenPrompter

SPANS_MULTIPLE = 1024  # spans of a row are padded to a multiple of this

Row: TypeAlias = dict[str, torch.Tensor | IndexArray]
HOST_ARRAYS = ("position_ids", "subtree_end", "symbol_token_ids")  # numpy arrays, see above


@dataclass(frozen=True)
class RowLayout:
    """Says which examples share a row.

    Attributes:
        order: int64 [E], document numbers, epoch after epoch.
        cu_rows: int64 [R + 1], where each row's examples start in `order`.
        rows_per_epoch: rows of an epoch, rounded up.
        left_out: documents that are larger than a row.
    """

    order: IntArray
    cu_rows: IntArray
    rows_per_epoch: int
    left_out: int


class PackedRows(Dataset[Row]):
    """All rows of a training run, in order.

    A row: `input_ids` int64 [1, N], `span_nodes`, `span_prompts` and `labels` int64 [1, S] as tensors, and as numpy
    arrays `position_ids` int64 [1, N], `subtree_end` int32 [1, N] and `symbol_token_ids` int64 [Q, L]. With the
    continuation question also `span_continues`, a tensor int8 [1, S]: 1 where a longer name of a type that the span's
    prompt asks for begins like the span, 0 where none does, -100 where it is not known and for padding.
    """

    def __init__(
        self,
        encoded: EncodedSources,
        prompt: EncodedPrompt | OpenPrompter,
        *,
        row_tokens: int,
        epochs: int,
        seed: int = 0,
        pad_token_id: int = 0,
        token_noise: float = 0.0,
    ) -> None:
        """Draws and packs all epochs.

        Args:
            encoded: what to train on.
            prompt: one prompt for all, whose symbols are those of the types in their order, or one that draws them.
            row_tokens: nodes of a row (N), a multiple of 128 for FlexAttention.
            epochs: passes over the sources.
            seed: of every random choice.
            pad_token_id: token of the padding, whose nodes are roots of their own and carry no span.
            token_noise: part of the nodes after the prompts whose token is masked by the padding token, drawn anew
                for every row, so that names cannot be learned by heart; from 0 to below 1.

        Raises:
            ValueError: no epoch, noise out of its range, epochs without a document, or rows that none fits into.
        """
        check_count("epochs", epochs)
        if not 0.0 <= token_noise < 1.0:
            raise ValueError(f"token_noise must be from 0 to below 1, not {token_noise!r}.")
        self.encoded, self.prompt, self.row_tokens = encoded, prompt, row_tokens
        self.seed, self.pad_token_id, self.token_noise = seed, pad_token_id, token_noise
        orders = [_epoch_order(encoded, np.random.default_rng([seed, epoch])) for epoch in range(epochs)]
        order = np.concatenate(orders)
        if not len(order):
            raise ValueError(f"repeats of {encoded.repeats} show not one document in an epoch: use greater ones.")
        sizes = np.fromiter((encoded.documents[index].num_nodes for index in order), np.int64, len(order))
        room = row_tokens
        self.asked: AskedTypes | None = None
        if isinstance(prompt, OpenPrompter):
            documents = [encoded.documents[index] for index in order]
            self.asked = prompt.draw(documents, np.random.default_rng([seed, epochs, 1]))
            sizes = sizes + self.asked.sizes
        else:
            room -= len(prompt.prefix_token_ids)
        fitting = sizes <= room
        if not fitting.any():
            raise ValueError(
                f"a row of {row_tokens} nodes has room for {max(room, 0)} besides the prompt, but the smallest "
                f"document takes {sizes.min()}: use longer rows."
            )
        self._slots = np.flatnonzero(fitting)
        left_out = len(np.unique(order[~fitting]))
        cu_rows = _fill(sizes[fitting], room)
        self.layout = RowLayout(order, cu_rows, -(-(len(cu_rows) - 1) // epochs), left_out)

    def __len__(self) -> int:
        """Rows of all epochs (R)."""
        return len(self.layout.cu_rows) - 1

    def __getitem__(self, index: int) -> Row:
        """Makes a row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        slots = self._slots[self.layout.cu_rows[index] : self.layout.cu_rows[index + 1]]
        documents = [self.encoded.documents[number] for number in self.layout.order[slots]]
        if isinstance(self.prompt, OpenPrompter):
            return self._open_row(index, self.prompt, slots, documents)
        prompt = self.prompt
        forest = build_forest(
            [document.chain_token_ids for document in documents],
            [document.paths for document in documents],
            cue_token_ids=prompt.cue_token_ids.tolist(),
        ).below(prompt.prefix_token_ids)
        every = np.ones(len(self.encoded.types), np.bool_)
        masked = self._masked(index, forest, np.zeros(1, np.int64), np.array([len(prompt.prefix_token_ids)]))
        return self._padded(
            forest,
            masked,
            np.append(prompt.symbol_token_ids, prompt.question_token_ids)[None],
            labels=np.concatenate([document.gold for document in documents]),
            prompts=np.zeros(forest.num_spans, np.int64),
            continues=[document.continues(every) for document in documents],
        )

    def _open_row(
        self, index: int, prompter: OpenPrompter, slots: IntArray, documents: Sequence[TrainingDocument]
    ) -> Row:
        """Makes a row in which every example has a prompt of its own above it."""
        assert self.asked is not None
        symbols = np.full((len(slots), prompter.max_types + 1), -1, np.int64)
        chains, labels, continues, prompt_lengths = [], [], [], []
        for number, (slot, document) in enumerate(zip(slots.tolist(), documents, strict=True)):
            types = self.asked.types[self.asked.cu_types[slot] : self.asked.cu_types[slot + 1]]
            prompt = prompter.encode(types, np.random.default_rng([self.seed, 2, slot]))
            chains.append(np.concatenate([prompt.prefix_token_ids, document.chain_token_ids]))
            prompt_lengths.append(len(prompt.prefix_token_ids))
            symbols[number, : len(types) + 1] = prompt.symbol_token_ids
            columns = np.zeros(len(self.encoded.types) + 1, np.int64)  # by gold code
            columns[document.types + 1] = prompter.columns(types, document.types)
            labels.append(np.where(document.gold == UNLABELLED, UNLABELLED, columns[np.maximum(document.gold, 0)]))
            continues.append(document.continues(columns[1:] > 0))
        forest = build_forest(
            chains, [document.paths for document in documents], cue_token_ids=prompter.cue_token_ids.tolist()
        )
        masked = self._masked(index, forest, forest.cu_nodes.numpy()[:-1], np.array(prompt_lengths))
        prompts = np.repeat(np.arange(len(documents)), [len(document.gold) for document in documents])
        symbols = np.concatenate([symbols, np.tile(prompter.question, (len(slots), 1))], axis=1)
        return self._padded(
            forest, masked, symbols, labels=np.concatenate(labels), prompts=prompts, continues=continues
        )

    def _masked(self, index: int, forest: TokenForest, starts: IntArray, lengths: IntArray) -> IntArray:
        """Draws the nodes whose token is masked; none is in the prompts, which begin at `starts`."""
        if not self.token_noise:
            return np.empty(0, np.int64)
        masked = np.random.default_rng([self.seed, 3, index]).random(forest.num_nodes) < self.token_noise
        masked[np.repeat(starts, lengths) + ramp_of(lengths)] = False
        return np.flatnonzero(masked)

    def _padded(
        self,
        forest: TokenForest,
        masked: IntArray,
        symbols: IntArray,
        *,
        labels: IntArray,
        prompts: IntArray,
        continues: Sequence[NDArray[np.int8]],
    ) -> Row:
        """Pads the row's arrays to its length; a row that came out longer gets the next multiple of it.

        `labels` [S] and `prompts` [S] are of all spans, `continues` of each document's.
        """
        nodes = -(-max(forest.num_nodes, self.row_tokens) // self.row_tokens) * self.row_tokens
        spans = -(-forest.num_spans // SPANS_MULTIPLE) * SPANS_MULTIPLE
        ids = np.full(nodes, self.pad_token_id, np.int64)
        positions, ends = np.zeros(nodes, np.int64), np.arange(nodes, dtype=np.int32)
        ids[: forest.num_nodes] = forest.token_ids.numpy()
        ids[masked] = self.pad_token_id
        positions[: forest.num_nodes] = forest.position_ids.numpy()
        ends[: forest.num_nodes] = forest.subtree_end.numpy()
        by_span = np.zeros((3, spans), np.int64)
        by_span[2] = UNLABELLED
        by_span[:, : forest.num_spans] = forest.span_nodes.numpy(), prompts, labels
        span_nodes, span_prompts, targets = (torch.from_numpy(row)[None] for row in by_span)
        row: Row = {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": positions[None],
            "subtree_end": ends[None],
            "span_nodes": span_nodes,
            "symbol_token_ids": symbols,
            "span_prompts": span_prompts,
            "labels": targets,
        }
        if self.encoded.continuation:
            answers = np.full(spans, UNLABELLED, np.int8)
            answers[: forest.num_spans] = np.concatenate(continues)
            row["span_continues"] = torch.from_numpy(answers)[None]
        return row


def collate_row(rows: list[Row]) -> Row:
    """Returns the one row of a batch, into which everything is packed already."""
    if len(rows) != 1:
        raise ValueError(f"a batch is one packed row, not {len(rows)}: set its size by row_tokens, batch size 1.")
    return rows[0]


def _epoch_order(encoded: EncodedSources, generator: np.random.Generator) -> IntArray:
    """Returns the document numbers of one epoch: every source as often as it is to be shown, shuffled together."""
    source = np.fromiter((document.source for document in encoded.documents), np.int64, len(encoded.documents))
    shown = []
    for number, repeat in enumerate(encoded.repeats):
        own = np.flatnonzero(source == number)
        whole, part = divmod(repeat, 1)
        shown += [own] * int(whole)
        shown.append(generator.permutation(own)[: round(part * len(own))])
    return generator.permutation(np.concatenate(shown))


def _fill(sizes: IntArray, room: int) -> IntArray:
    """Returns int64 [R + 1]: consecutive items, each row as many as fit."""
    total = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        before = total[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(int(np.searchsorted(total, before + room, side="right")))
    return np.array(bounds, np.int64)
