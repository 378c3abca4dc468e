"""The result of scoring: a document and its candidates' label logits.

Knows nothing of how they were scored, nor of labels, thresholds or entities.
"""

from dataclasses import dataclass

from .arrays import FloatingArray
from .pipeline_io import PreparedDocument


@dataclass(frozen=True)
class ScoredDocument:
    """A document with its results.

    Attributes:
        prepared: the document; where its spans were grown, with the candidates that exist alone, without their tokens.
        label_logits: [S, L + 1], the none label's first; S candidate spans of all its windows, one after the other.
            float32, or float64 where the model or several prompts make it so.
    """

    prepared: PreparedDocument
    label_logits: FloatingArray
