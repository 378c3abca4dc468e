"""Named entity recognition with causal decoders: every candidate span scored in one pass over a shared prefix."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from .cache_decodner import DualBufferCache
from .configuration_decodner import DecodNERConfig
from .forest_decodner import SpanPaths, TokenForest, build_forest
from .modeling_decodner import DecodNERForSpanClassification, SpanClassifierOutput, UniversalDecoder

AutoConfig.register(DecodNERConfig.model_type, DecodNERConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification):
    _auto_class.register(DecodNERConfig, DecodNERForSpanClassification, exist_ok=True)

__all__ = [
    "DecodNERConfig",
    "DecodNERForSpanClassification",
    "DualBufferCache",
    "SpanClassifierOutput",
    "SpanPaths",
    "TokenForest",
    "UniversalDecoder",
    "build_forest",
]
