"""Defines the configuration of a model: which decoder scores the spans, and how text becomes entities.

In: keyword arguments or a saved config.json. Out: a validated `DecodNERConfig`.
Knows nothing of tokenizers, tensors or weights.
"""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

from transformers import AutoConfig, PreTrainedConfig

from .transformers_private import CONFIG_KEYS, CONFIG_PATH
from .validation import check_number, is_count

OVERLAPS = ("flat", "nested", "all")
FLAT_SELECTIONS = ("greedy", "exact")
PROMPT_DEFAULTS = {
    "instruction": "Classify the named entity span.",
    "types_header": "Entity types:",
    "text_header": "Text:",
    "span_header": "Span:",
    "answer_cue": "",
    "none_label": "None",
    "chat_template": False,
}
TAG = re.compile(r"[BIESLU]-(?P<type>.+)")  # of a word, in the schemes IOB, IOBES and BILOU


def normalize_labels(labels: Mapping[str, str | None] | Sequence[str]) -> dict[str, str | None]:
    """Returns `labels` as an ordered mapping from label to description (None where there is none).

    Args:
        labels: label names in prompt order, or a mapping from name to description.

    Raises:
        ValueError: no label, a duplicate, an empty name, one with a line break, a name or description that is not
            text, or the tags of a tagging scheme (O, B-PER, I-PER) in place of the types.
    """
    if isinstance(labels, str | bytes) or not isinstance(labels, Mapping | Sequence):
        raise ValueError(
            f"labels must be a list of names or a mapping from name to description, not {type(labels).__name__}: "
            "for a single label pass a list that holds it."
        )
    for name in labels:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a label must be a non-empty string, not {name!r}.")
        if name.splitlines() != [name]:
            raise ValueError(
                f"a label must not hold a line break, as {name!r} does: the prompt lists labels on one line."
            )
    named = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels)
    if not named:
        raise ValueError('no labels were given: name at least one entity type, for example ["Person", "Company"].')
    if len(named) != len(labels):
        repeated = sorted({str(name) for name in labels if list(labels).count(name) > 1})
        raise ValueError(f"duplicate labels {repeated}: each label may be named once.")
    _refuse_tags(named)
    for name, description in named.items():
        if description is not None and not isinstance(description, str):
            raise ValueError(f"the description of label {name!r} must be a string or None, not {description!r}.")
    return named


class SpanLabels(dict[int, str]):
    """`id2label` of a model that labels spans: what takes a token's logits for labels gets one sentence to help it.

    `pipeline("ner", model=...)` does, which asks for the label of the most probable next token.
    """

    def __missing__(self, index: int) -> str:
        """Raises a ValueError."""
        raise ValueError(
            f"there is no label {index}: this model scores spans and labels no tokens: use "
            'pipeline("decodner-ner", model=...) in place of pipeline("ner") and pipeline("token-classification").'
        )


def _refuse_tags(labels: Collection[str]) -> None:
    """Raises a ValueError for tags of words in place of entity types: O beside B-PER, or B-PER beside I-PER."""
    tags = [TAG.fullmatch(label) for label in labels]
    types = [tag["type"] for tag in tags if tag]
    if types and ("O" in labels or len(set(types)) < len(types)):
        meant = list(dict.fromkeys(tag["type"] if tag else label for label, tag in zip(labels, tags, strict=True)))
        raise ValueError(
            f"the labels {list(labels)} are tags of single words, but whole spans are scored here: name the entity "
            f"types, {[label for label in meant if label != 'O']}."
        )


def check_threshold(value: object, name: str) -> float:
    """Returns `value` as a float in [0, 1], or raises a ValueError that calls it `name`."""
    check_number(name, value, 0.0, 1.0)
    assert isinstance(value, SupportsFloat)
    return float(value)


class DecodNERConfig(PreTrainedConfig):
    """Configuration of `DecodNERForSpanClassification`.

    Args:
        text_config: the decoder's own configuration (an object, or its dict with a `model_type`).
        entity_labels: label names in prompt order (or a mapping from name to description); None where the caller
            names the labels at inference.
        label_descriptions: label name -> description, for labels that have one.
        prompt: parts of the prompt that differ from `PROMPT_DEFAULTS`; saved whole.
        max_span_words: longest candidate span, in words.
        threshold: lowest score, in [0, 1], at which a span is reported.
        label_thresholds: per label, a threshold that replaces `threshold`.
        temperature: label logits are divided by this before the softmax, > 0.
        overlap: "flat" (no two entities overlap), "nested" (none cross) or "all".
        flat_selection: "greedy" (best score first) or "exact" (the best non-overlapping set).
        continuation: whether the model was trained to say, at the end of a span, if a longer entity begins with it.
        growth_threshold: with `continuation`, the probability from which on a span goes on, in [0, 1].

    Raises:
        ValueError: a value outside its range, or a keyword that neither this class nor transformers knows.
    """

    model_type: ClassVar[str] = "decodner"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    text_config: Any = None
    entity_labels: Any = None
    label_descriptions: Any = None
    prompt: Any = None
    max_span_words: int = 8
    threshold: float = 0.5
    label_thresholds: Any = None
    temperature: float = 1.0
    overlap: str = "flat"
    flat_selection: str = "greedy"
    continuation: bool = False
    growth_threshold: float = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        """Completes nested parts and validates every value; see the class docstring."""
        self._set_text_config()
        self._set_labels()
        self._set_prompt()
        if not is_count(self.max_span_words):
            raise ValueError(f"max_span_words must be at least 1, not {self.max_span_words!r}.")
        self.threshold = check_threshold(self.threshold, "threshold")
        self.label_thresholds = {
            str(label): check_threshold(value, f"the threshold of {label!r}")
            for label, value in dict(self.label_thresholds or {}).items()
        }
        check_number("growth_threshold", self.growth_threshold, 0.0, 1.0)
        if not isinstance(self.continuation, bool):
            raise ValueError(f"continuation must be True or False, not {self.continuation!r}.")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be greater than 0, not {self.temperature!r}.")
        if self.overlap not in OVERLAPS:
            raise ValueError(f"overlap must be one of {OVERLAPS}, not {self.overlap!r}.")
        if self.flat_selection not in FLAT_SELECTIONS:
            raise ValueError(f"flat_selection must be one of {FLAT_SELECTIONS}, not {self.flat_selection!r}.")
        unknown = sorted(set(kwargs) - self._known_keys())
        if unknown:
            own = sorted(set(DecodNERConfig.__annotations__) - {"model_type", "sub_configs"})
            raise ValueError(f"DecodNERConfig does not know {unknown}; its own settings are {own}.")
        super().__post_init__(**kwargs)
        self.id2label = SpanLabels(vars(self).get("id2label") or {})

    def _known_keys(self) -> set[str]:
        own = {name for cls in type(self).__mro__ for name in getattr(cls, "__annotations__", {})}
        return set(vars(PreTrainedConfig())) | own | CONFIG_KEYS

    def to_dict(self) -> dict[str, Any]:
        """Returns all values, without the path that the decoder was loaded from: it means nothing elsewhere."""
        values: dict[str, Any] = super().to_dict()
        if isinstance(values.get("text_config"), dict):
            values["text_config"].pop(CONFIG_PATH, None)
        return values

    def settings(self) -> dict[str, Any]:
        """Returns the values of `to_dict`, without attributes that others have set and this class does not know."""
        known = self._known_keys()
        return {name: value for name, value in self.to_dict().items() if name in known}

    def _set_text_config(self) -> None:
        if isinstance(self.text_config, Mapping):
            if "model_type" not in self.text_config:
                raise ValueError("text_config must name its model_type, for example 'llama'.")
            values = copy.deepcopy(dict(self.text_config))
            self.text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        if isinstance(self.text_config, DecodNERConfig):
            raise ValueError("text_config must be a decoder's configuration, not a DecodNER configuration itself.")
        if self.text_config is not None and not isinstance(self.text_config, PreTrainedConfig):
            raise ValueError(
                f"text_config must be a transformers configuration or its dict, not {type(self.text_config).__name__}."
            )

    def _set_labels(self) -> None:
        descriptions = dict(self.label_descriptions or {})
        if self.entity_labels is not None:
            labels = normalize_labels(self.entity_labels)
            descriptions |= {name: text for name, text in labels.items() if text is not None}
            self.entity_labels = list(labels)
        unknown = sorted(set(descriptions) - set(self.entity_labels or ()))
        if unknown:
            raise ValueError(f"label_descriptions names {unknown}, which are not in entity_labels.")
        self.label_descriptions = descriptions

    @property
    def labels(self) -> dict[str, str | None]:
        """Returns the model's own labels in prompt order, each with its description or None; empty without labels."""
        return {name: self.label_descriptions.get(name) for name in self.entity_labels or ()}

    def _set_prompt(self) -> None:
        given = dict(self.prompt or {})
        unknown = sorted(set(given) - set(PROMPT_DEFAULTS))
        if unknown:
            raise ValueError(f"the prompt has no part {unknown}; its parts are {sorted(PROMPT_DEFAULTS)}.")
        for part, value in given.items():
            if type(value) is not type(PROMPT_DEFAULTS[part]):
                expected = type(PROMPT_DEFAULTS[part]).__name__
                raise ValueError(f"the prompt's part {part!r} must be a {expected}, not {value!r}.")
        self.prompt = PROMPT_DEFAULTS | given
        none_label = self.prompt["none_label"]
        if not none_label.strip():
            raise ValueError("the prompt's none_label must not be empty: the model answers with it.")
        if self.entity_labels is not None:
            if none_label in self.entity_labels:
                raise ValueError(f"{none_label!r} is the none label: no entity type may have its name.")
            names = [none_label, *self.entity_labels]
            self.id2label = SpanLabels(enumerate(names))
            self.label2id = {name: index for index, name in enumerate(names)}

    @property
    def _decoder(self) -> Any:
        return self.text_config.get_text_config(decoder=True)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self._decoder.num_hidden_layers)

    @property
    def num_kv_heads(self) -> int:
        """Number of key/value heads per layer (Hkv); equals the query heads where the model has no GQA."""
        if getattr(self._decoder, "multi_query", False):
            return 1
        return int(getattr(self._decoder, "num_key_value_heads", None) or self._decoder.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Size of one key head (D)."""
        latent = getattr(self._decoder, "qk_nope_head_dim", None)
        if latent is not None:
            return int(latent + self._decoder.qk_rope_head_dim)
        explicit = getattr(self._decoder, "head_dim", None)
        return int(explicit or self._decoder.hidden_size // self._decoder.num_attention_heads)
