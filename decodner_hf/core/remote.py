"""The single entry file of checkpoints that carry their code; config.json names its classes."""

from .configuration import DecodNERConfig
from .handler import EndpointHandler  # not loaded by name, but it must travel on: saving copies this folder
from .low_level import UniversalDecoder
from .modeling import DecodNERForSpanClassification, DecodNERForTokenClassification
from .pipeline import DecodNERPipeline

__all__ = [
    "DecodNERConfig",
    "DecodNERForSpanClassification",
    "DecodNERForTokenClassification",
    "DecodNERPipeline",
    "EndpointHandler",
    "UniversalDecoder",
]
