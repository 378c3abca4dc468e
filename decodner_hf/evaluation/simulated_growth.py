"""Simulates growing spans on the scores of all of them: which candidates would exist at which threshold.

In: prompts and candidates of one exhaustive pass that reads the answers to the continuation question, too. Out:
`GrowthAnswers`. The rule is `existing_spans`, that of growing itself.
Knows nothing of labels, gold spans or F1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.arrays import BoolArray, FloatArray, FloatingArray, IntArray
from ..core.growth import existing_spans, goes_on_probability
from ..core.pipeline_io import PreparedDocument
from ..core.prompting import EncodedPrompt

ANSWERS = 2  # of the question: "goes on" and "ends"


@dataclass(frozen=True)
class GrowthAnswers:
    """What growing would know of S candidates.

    Attributes:
        place: int64 [S], a number for the word at which each starts.
        width: int64 [S], its number of words.
        goes_on: float64 [S], the probability that a longer entity begins with it.
    """

    place: IntArray
    width: IntArray
    goes_on: FloatArray

    def exist(self, threshold: float) -> BoolArray:
        """Returns bool [S]: which candidates exist if spans go on from this probability."""
        return existing_spans(self.place, self.width, self.goes_on >= threshold)

    def select(self, chosen: BoolArray | IntArray) -> "GrowthAnswers":
        """Returns those of the candidates that a mask [S] or indices choose."""
        return GrowthAnswers(self.place[chosen], self.width[chosen], self.goes_on[chosen])


def asking(prepared: PreparedDocument) -> PreparedDocument:
    """Returns the document with prompts that read the answers after the labels, as if they were labels."""
    prompts = tuple(
        replace(prompt, symbol_token_ids=np.append(prompt.symbol_token_ids, prompt.question_token_ids))
        for prompt in prepared.prompts
    )
    return replace(prepared, prompts=prompts)


def split_answers(logits: FloatingArray, prompts: Sequence[EncodedPrompt]) -> tuple[FloatingArray, FloatArray]:
    """Takes apart what a document with prompts from `asking` was scored with.

    Args:
        logits: [S, C], merged over the prompts: the none label's, then of each prompt its labels' and its answers'.
        prompts: those from `asking`.

    Returns:
        The label logits [S, L + 1], and float64 [S], the probability that each span goes on, by any prompt.
    """
    ends = 1 + np.cumsum([len(prompt.symbol_token_ids) - 1 for prompt in prompts])
    is_label = np.ones(logits.shape[1], bool)
    for end in ends:
        is_label[end - ANSWERS : end] = False
    odds = np.max([logits[:, end - 2].astype(np.float64) - logits[:, end - 1] for end in ends], axis=0)
    return logits[:, is_label], goes_on_probability(odds)
