"""Random forests cut into rounds: each round's rows in any order, no row before its ancestors."""

from dataclasses import dataclass

import numpy as np
import torch

from decodner_hf import SpanPaths, build_forest
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.kept_rows import KeptRows


@dataclass(frozen=True)
class Rounds:
    """A forest, the rounds in which its nodes are run, and the length of the prefix.

    `rows` are the nodes of each round, in the order of their rows; numbers are node indices plus `offset`.
    """

    forest: object
    rows: list
    prefix_length: int
    offset: int = 0

    def whole(self, **options):
        """The metadata of all nodes in one pass."""
        return AttentionMetadata(
            self.forest.position_ids, self.forest.subtree_end, prefix_length=self.prefix_length, **options
        )

    def metadata(self, nodes, kept_rows, **options):
        """The metadata of a later round's pass over `nodes`."""
        return AttentionMetadata(
            self.forest.position_ids[nodes],
            self.forest.subtree_end[nodes] + self.offset,
            prefix_length=self.prefix_length,
            numbers=(nodes + self.offset).to(torch.int32),
            kept_rows=kept_rows,
            **options,
        )


def random_rounds(seed, prefix_length, documents=3, rounds=3, offset=0, vocabulary=9):
    """Documents of up to 30 tokens with spans, a cue after each span in half of the cases, in 1 to `rounds` rounds."""
    random = np.random.default_rng(seed)
    chains = [random.integers(0, vocabulary, random.integers(0, 30)).tolist() for _ in range(documents)]
    paths = [
        SpanPaths.from_lists([random.integers(0, 3, random.integers(1, 7)).tolist() for _ in range(12)])
        for _ in chains
    ]
    cue = [vocabulary - 1, vocabulary - 2] if seed % 2 else []
    forest = build_forest(chains, paths, first_position=prefix_length, cue_token_ids=cue)
    turn, open_nodes = np.zeros(forest.num_nodes, int), []
    for node, end in enumerate(forest.subtree_end.tolist()):
        while open_nodes and open_nodes[-1][1] < node:
            open_nodes.pop()
        parent = turn[open_nodes[-1][0]] if open_nodes else 0
        turn[node] = min(parent + (random.random() < 0.1), rounds - 1)
        open_nodes.append((node, end))
    used = [np.flatnonzero(turn == number) for number in range(rounds)]
    return Rounds(
        forest, [torch.from_numpy(random.permutation(nodes)) for nodes in used if len(nodes)], prefix_length, offset
    )


def attend_in_rounds(rounds, attend, query, key, value, *rest):
    """Runs `attend` round by round; [1, N, H, Dv], as of one pass."""
    kept, found = KeptRows(key.shape[2]), None
    for nodes in rounds.rows:
        metadata = rounds.metadata(nodes, kept)
        kept.write(0, 0, key[:, :, nodes], value[:, :, nodes])
        keys, values = kept.read(0, 0, len(nodes))
        attended = attend(query[:, :, nodes], keys, values, metadata, *rest)
        found = attended.new_full((1, query.shape[2], *attended.shape[2:]), float("nan")) if found is None else found
        found[:, nodes] = attended
        kept.commit(metadata.own_rows())
    return found
