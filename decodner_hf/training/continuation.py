"""Gold answers of the continuation question: does a longer name of a type that is asked for begin like this span?

In: a document's candidates and its gold spans. Out: `Continued`, from which the answers for any asked types follow.
A span goes on if a gold span of an asked type has the same first word and is longer by whole words; the gold span need
not be a candidate itself. Where only a part of the entities is labelled, other spans are known not to go on only
inside gold spans: of one name, one reading is right. Knows nothing of tokens, prompts or models.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import BoolArray, IntArray, ramp_of
from ..core.label_head import UNLABELLED
from ..core.spans import CandidateSpans

STOPS, GOES_ON = 0, 1


@dataclass(frozen=True)
class Continued:
    """The K pairs of one of S candidates and a gold span that continues it.

    Attributes:
        span: int64 [K], index of the candidate.
        type: int64 [K], number of the gold span's type.
        inside: bool [S], whether the candidate's first word is one of a gold span.
    """

    span: IntArray
    type: IntArray
    inside: BoolArray

    @classmethod
    def of(cls, candidates: CandidateSpans, gold: IntArray, types: IntArray) -> "Continued":
        """Finds the pairs.

        Args:
            candidates: S candidates.
            gold: int64 [G, 2], gold spans in words of the document, half-open; empty ones continue nothing.
            types: int64 [G], their types.
        """
        order = np.argsort(gold[:, 0], kind="stable")
        starts = gold[order, 0]
        first = np.searchsorted(starts, candidates.start_word, side="left")
        counts = np.searchsorted(starts, candidates.start_word, side="right") - first
        span = np.repeat(np.arange(candidates.num_spans), counts)
        longer = order[np.repeat(first, counts) + ramp_of(counts)]
        kept = gold[longer, 1] > candidates.end_word[span]
        depth = np.zeros(max(int(gold.max(initial=0)), int(candidates.start_word.max(initial=0))) + 2, np.int64)
        np.add.at(depth, gold[:, 0], 1)
        np.add.at(depth, gold[:, 1], -1)
        return cls(span[kept], types[longer[kept]], np.cumsum(depth)[candidates.start_word] > 0)

    def answers(self, is_asked: BoolArray, partial: bool) -> NDArray[np.int8]:
        """Returns int8 [S]: 1 where a candidate goes on, 0 where it does not, -100 where nobody knows.

        Args:
            is_asked: bool [T], whether each type is asked for, by its own name or by a more general one.
            partial: whether the document is labelled in part, so that nothing is known of what begins outside its
                gold spans.
        """
        answers = np.full(len(self.inside), STOPS, np.int8)
        if partial:
            answers[~self.inside] = UNLABELLED
        answers[self.span[is_asked[self.type]]] = GOES_ON
        return answers
