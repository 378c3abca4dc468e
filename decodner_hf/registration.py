"""Makes transformers know this package: its Auto classes and `pipeline("decodner-ner")`.

In: nothing. Out: entries in transformers' registries.
Knows nothing of how models or pipelines work.
"""

from collections.abc import Iterator, Mapping

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .core.configuration import DecodNERConfig
from .core.hub import TASK
from .core.modeling import DecodNERForSpanClassification
from .core.pipeline import DecodNERPipeline
from .default_model import default_model


class PackagedModel(Mapping[str, tuple[str, str]]):
    """What transformers asks for a task's model when none is named: {"model": (folder, revision)}.

    The folder is looked for when it is asked for, so that an installation without it is an error only then.
    """

    def __getitem__(self, name: str) -> tuple[str, str]:
        """Returns folder and revision; FileNotFoundError as `default_model`."""
        if name not in self:
            raise KeyError(name)
        return str(default_model()), "main"

    def __contains__(self, name: object) -> bool:
        """Whether `name` is "model"."""
        return name == "model"

    def __iter__(self) -> Iterator[str]:
        """Yields the one key."""
        return iter(("model",))

    def __len__(self) -> int:
        """One."""
        return 1


def register() -> None:
    """Registers configuration, model and pipeline; may be called any number of times."""
    AutoConfig.register(DecodNERConfig.model_type, DecodNERConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification):
        auto_class.register(DecodNERConfig, DecodNERForSpanClassification, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=DecodNERPipeline,
            pt_model=AutoModelForCausalLM,
            default=PackagedModel(),
            type="text",
        )
