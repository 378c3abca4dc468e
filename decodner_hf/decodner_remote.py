"""The single entry file of checkpoints that carry their code; config.json names its classes."""

from .configuration_decodner import DecodNERConfig
from .modeling_decodner import DecodNERForSpanClassification
from .pipeline_decodner import DecodNERPipeline

__all__ = ["DecodNERConfig", "DecodNERForSpanClassification", "DecodNERPipeline"]
