"""Named entity recognition with causal decoders: every candidate span scored in one pass over a shared prefix.

Registers with transformers. The command `decodner` alone puts that off until its arguments are known to be right: its
help must not wait for torch.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "decodner_command" not in sys.modules:
    from .cache_decodner import DualBufferCache
    from .configuration_decodner import DecodNERConfig
    from .decoding_decodner import Entity, get_entity_scores
    from .forest_decodner import SpanPaths, TokenForest, build_forest
    from .modeling_decodner import DecodNERForSpanClassification, SpanClassifierOutput, UniversalDecoder
    from .pipeline_decodner import DecodNERPipeline
    from .prompting_decodner import PromptTemplate, get_label_token_ids
    from .registration import register
    from .tokenization_decodner import tokenize_spans

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
