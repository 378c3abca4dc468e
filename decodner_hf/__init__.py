"""Named entity recognition with causal decoders: every candidate span scored in one pass over a shared prefix."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .cache_decodner import DualBufferCache
from .configuration_decodner import DecodNERConfig
from .decoding_decodner import Entity, get_entity_scores
from .forest_decodner import SpanPaths, TokenForest, build_forest
from .modeling_decodner import DecodNERForSpanClassification, SpanClassifierOutput, UniversalDecoder
from .pipeline_decodner import DecodNERPipeline
from .prompting_decodner import PromptTemplate, get_label_token_ids
from .publishing_decodner import TASK
from .tokenization_decodner import tokenize_spans

AutoConfig.register(DecodNERConfig.model_type, DecodNERConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification):
    _auto_class.register(DecodNERConfig, DecodNERForSpanClassification, exist_ok=True)
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=DecodNERPipeline, pt_model=AutoModelForCausalLM, type="text"
    )

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
