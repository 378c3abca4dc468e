"""Named entity recognition with causal decoders: every candidate span scored in one pass over a shared prefix.

Importing it registers the model and `pipeline("decodner-ner")` with transformers.
"""

from .core.cache import DualBufferCache
from .core.configuration import DecodNERConfig
from .core.decoding import Entity
from .core.forest import SpanPaths, TokenForest, build_forest
from .core.label_head import SpanClassifierOutput
from .core.low_level import UniversalDecoder, get_entity_scores, get_label_token_ids, tokenize_spans
from .core.modeling import DecodNERForSpanClassification
from .core.pipeline import DecodNERPipeline
from .core.prompting import PromptTemplate
from .core.spans import DocumentError
from .registration import register

register()

__all__ = [
    "DecodNERConfig",
    "DecodNERForSpanClassification",
    "DecodNERPipeline",
    "DocumentError",
    "DualBufferCache",
    "Entity",
    "PromptTemplate",
    "SpanClassifierOutput",
    "SpanPaths",
    "TokenForest",
    "UniversalDecoder",
    "build_forest",
    "get_entity_scores",
    "get_label_token_ids",
    "tokenize_spans",
]
