"""The single entry file of checkpoints that carry their code; config.json names its classes."""

from .configuration import DecodNERConfig
from .low_level import UniversalDecoder
from .modeling import DecodNERForSpanClassification, DecodNERForTokenClassification
from .pipeline import DecodNERPipeline

__all__ = [
    "DecodNERConfig",
    "DecodNERForSpanClassification",
    "DecodNERForTokenClassification",
    "DecodNERPipeline",
    "UniversalDecoder",
]
