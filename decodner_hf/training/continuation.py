"""Gold answers of the continuation question: does a longer name of a type that is asked for begin like this span?

In: a document's candidates and its gold spans. Out: `Continued`, from which the answers for any asked types follow.
A span goes on if a gold span of an asked type has the same first word and is longer by whole words; the gold span need
not be a candidate itself. Knows nothing of tokens, prompts or models.
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
    """The K pairs of a candidate and a gold span that continues it.

    Attributes:
        span: int64 [K], index of the candidate.
        type: int64 [K], number of the gold span's type.
    """

    span: IntArray
    type: IntArray

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
        return cls(span[kept], types[longer[kept]])

    def answers(self, num_spans: int, is_asked: BoolArray, partial: bool) -> NDArray[np.int8]:
        """Returns int8 [S]: 1 where a candidate goes on, 0 where it does not, -100 where nobody knows.

        Args:
            num_spans: S.
            is_asked: bool [T], whether each type is asked for, by its own name or by a more general one.
            partial: whether the document is labelled in part, so that what is not labelled is not known.
        """
        answers = np.full(num_spans, UNLABELLED if partial else STOPS, np.int8)
        answers[self.span[is_asked[self.type]]] = GOES_ON
        return answers
