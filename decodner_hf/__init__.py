"""Named entity recognition with causal decoders: every candidate span scored in one pass over a shared prefix.

Registers with transformers. The command `decodner` alone puts that off until its arguments are known to be right: its
help must not wait for torch.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "decodner_command" not in sys.modules:
    from .core.cache import DualBufferCache
    from .core.configuration import DecodNERConfig
    from .core.decoding import Entity
    from .core.forest import SpanPaths, TokenForest, build_forest
    from .core.low_level import UniversalDecoder, get_entity_scores, get_label_token_ids, tokenize_spans
    from .core.modeling import DecodNERForSpanClassification, SpanClassifierOutput
    from .core.pipeline import DecodNERPipeline
    from .core.prompting import PromptTemplate
    from .registration import register

    register()

__all__ = [
    "DecodNERConfig",
    "DecodNERForSpanClassification",
    "DecodNERPipeline",
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
