"""Registers this package with transformers: its Auto classes and `pipeline("decodner-ner")`.

In: nothing. Out: entries in transformers' registries.
Knows nothing of how models or pipelines work.
"""

import logging

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .core.configuration import DecodNERConfig
from .core.hub import TASK
from .core.modeling import DecodNERForSpanClassification
from .core.pipeline import DecodNERPipeline
from .default_model import FOLDER


def register() -> None:
    """Registers configuration, model and pipeline; may be called any number of times."""
    AutoConfig.register(DecodNERConfig.model_type, DecodNERConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification):
        auto_class.register(DecodNERConfig, DecodNERForSpanClassification, exist_ok=True)
    logging.getLogger("transformers.pipelines").addFilter(_is_worth_saying)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=DecodNERPipeline,
            pt_model=DecodNERForSpanClassification,  # and no Auto class: it loads and checks plain decoders, too
            default={"model": (str(FOLDER), "main")},
            type="text",
        )


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Returns False for transformers' warning that no model was named: ours is bundled, and made for this use."""
    message = record.getMessage()
    return not ("No model was supplied" in message and str(FOLDER) in message)
