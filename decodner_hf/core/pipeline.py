"""Text in, entities out: `pipeline("decodner-ner")`.

In: strings, word lists or dicts. Out: lists of dicts as transformers' token classification gives them.
This file only makes the stages and joins them: read -> encode -> score -> decode -> write; each has a file of its own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from .adapters import refuse_prompt_learning
from .checkpoints import save_decoder
from .configuration import DecodNERConfig, check_threshold, normalize_labels
from .decoding import Entity, decode_entities
from .document_encoder import LISTED_WORDS, LISTED_WORDS_OF_GRAPHS, DocumentEncoder
from .hub import upload, write_model_card, write_tokenizer
from .modeling import DecodNERForSpanClassification
from .pipeline_io import (
    WHOLE_WORDS,
    Document,
    Inputs,
    LabelChoice,
    PreparedDocument,
    Result,
    Settings,
    ThresholdChoice,
    document_result,
    is_document,
    is_stream,
    looks_like_words,
    read_document,
)
from .prompting import LabelPrompts, Labels, PromptTemplate
from .scored_document import ScoredDocument
from .scoring import DocumentScorer
from .spans import DocumentError
from .streaming import EntityStream
from .tokenization import check_tokenizer, private_tokenizer, token_numbers
from .validation import check_count, check_device, check_dtype, did_you_mean

logger = logging.getLogger(__name__)

AT_CONSTRUCTION = ("token_budget", "compile", "device", "dtype", "model", "tokenizer", "task")
KEPT_SETTINGS = ("overlap", "flat_selection", "max_span_words", "growth_threshold")  # that a saved model has, too


class DecodNERPipeline(Pipeline):
    """Named entity recognition by span scoring.

    Takes a string, a list of words (with `is_split_into_words`), or a dict with "text", "words" or "tokens" and, if
    wished, its own "candidate_labels", "spans" and "threshold"; or many of them: a list gives a list, any other
    iterable (a generator, a `KeyDataset`, a `datasets` column) a lazy iterator in input order whose `len()` is that
    of the input. A list of strings is a list of documents, as in transformers, and one of words only if
    `is_split_into_words` says so.

    Keyword arguments, at construction or in a call:
        candidate_labels: label names, or a mapping from name to description; the model's own labels by default.
        threshold: lowest score reported, from 0 to 1, or a mapping from label to threshold; the model's by default.
        overlap: "flat" (default), "nested" (no two entities cross) or "all".
        flat_selection: "greedy" (best score first) or "exact" (best set).
        multi_label: report every label that a span reaches; with overlap "all" only.
        aggregation_strategy: "simple" gives one dict per entity: `entity_group, score, word, start, end`; "none" one
            dict per word of an entity: `entity` (B- or I- and the label), `score, index, word, start, end`, `index`
            being the number of the word's first token in `tokenizer(text)`, special tokens counted. "first",
            "average" and "max" mean "simple": whole spans are scored, so that no tokens of a word disagree.
        ignore_labels: labels that compete with the others but are not reported ("PER", or with "none" also "B-PER").
        return_all_scores: add `scores`, a dict with the score of every label.
        max_span_words: longest candidate span; the model's by default.
        spans: own candidates, half-open (start, end) pairs of characters (of words with `is_split_into_words`); with
            growth of no more than `max_span_words` words.
        is_split_into_words: inputs are lists of words; entities have `start_word` and `end_word` (half-open) too. A
            list is one document unless all of its items are lists (or dicts).
        delimiter: what words are joined by to a text, to which offsets refer; a space by default.
        extra_keys: "return" (default) gives a dict with further keys back, with `entities`; "ignore" leaves them out.
        on_error: "raise" (default), or "skip": in a list or stream the `DocumentError` of a document that is refused
            stands in place of its result.
        long_documents: what happens beyond the model's positions: "window" (overlapping windows), "error", or
            "truncate" (with a warning, and `truncated_at` in every entity). Words that no window can hold, such as
            encoded files, are not read, with a warning; all else is, in windows.
        stride: tokens that a window repeats of the one before, at least the longest span; a quarter by default.
        return_report: give a dict per document, of `entities` and `report`: `windows` (number), `truncated_at`
            (character or None), `words_left_out` (overlong words that are not read, as pairs of characters),
            `candidates` (scored), and `candidates_left_out`, by reason: `too_many_words` (above max_span_words),
            `no_tokens` (the tokenizer drops the span), `not_read` (truncated, or holds an overlong word, or is wider
            than 8 words and takes more than a quarter of a long document's window), with growth `not_grown` (a shorter
            prefix does not go on).
        growth: score a longer span only where each of its shorter word prefixes goes on, by the model's answer to
            the continuation question; True by default for models that were trained to answer it. False scores all.
        growth_threshold: probability from which on a span goes on, from 0 to 1; the model's by default.
        token_budget: forest nodes per pass; by default 4,096 on a CPU, and on a GPU as many as hold 1.125 GiB of
            activations. Halved by itself when memory runs out. At construction only.
        compile: compile the model's layers now, which takes a while, for faster passes; needs a GPU and Triton. At
            construction only.

    Raises:
        ValueError: inputs or arguments that are not as described; the message says what is allowed.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        token_budget: int | None = None,
        compile: bool = False,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Wraps `model` where it is a plain decoder; the model object that was passed is left as it is."""
        check_tokenizer(tokenizer)
        assert tokenizer is not None
        check_device(device)
        refuse_prompt_learning(model)
        asked = check_dtype(dtype)
        if asked is not None and asked != model.dtype:
            logger.warning("dtype=%s has no effect on a model that is loaded; cast it: model.to(%s).", asked, asked)
        if token_budget is not None:
            check_count("token_budget", token_budget)
        if getattr(model.config, "model_type", None) != DecodNERConfig.model_type:
            model = DecodNERForSpanClassification.from_backbone(model)
        super().__init__(model=model, tokenizer=tokenizer, device=device, **kwargs)
        self.model.eval()
        self.template = PromptTemplate.from_config(self.model.config)
        own_tokenizer, limit = private_tokenizer(tokenizer), self.model.position_limit
        positions, reason = (None, "") if limit is None else (limit.limit, limit.reason)
        self.prompts = LabelPrompts(own_tokenizer, self.template, positions, self.model.config.continuation)
        self.encoder = DocumentEncoder(own_tokenizer, self.template, self.prompts, positions, reason)
        self.scorer = DocumentScorer(self.model, token_budget)
        self._said: set[str] = set()
        if compile:
            self.model.compile_forest(cuda_graph_nodes=self.scorer.token_budget)
        settings = self.settings_for({})
        has_labels = self.model.config.labels or settings.candidate_labels is not None
        labels = self.labels_for(settings.candidate_labels) if has_labels else ()
        if labels or not isinstance(settings.threshold, Mapping):
            self.thresholds_for([name for name, _ in labels], settings)

    def __call__(self, inputs: object, *args: object, **kwargs: Any) -> Any:
        """Annotates one document, a list, or an iterable; see the class docstring.

        Raises:
            DocumentError: a document that is refused; the results of all documents before it come first where the
                input is no list.
            ValueError: arguments that are refused.
        """
        if args:
            raise ValueError(f"the pipeline takes one positional argument, the input; {len(args)} more were given.")
        settings = self.settings_for(kwargs)
        if settings.candidate_labels is not None:
            self.labels_for(settings.candidate_labels)  # an error of the call, and not of its first document
        if is_document(inputs, settings.is_split_into_words):
            return self._annotate(inputs, settings)
        if settings.spans is not None:
            raise ValueError(
                "spans belong to one document: with several, give each as a dict with its own, for example "
                '{"text": "...", "spans": [(0, 5)]}.'
            )
        if isinstance(inputs, list | tuple):
            if not settings.is_split_into_words and looks_like_words(inputs):
                self._say(
                    "each string of the list is read as a document of its own, and none holds a space: if they are "
                    "the words of one, pass is_split_into_words=True."
                )
            return list(self.stream(inputs, settings))
        if not is_stream(inputs):
            allowed = (
                "a string, a list of words with is_split_into_words=True, a dict with 'text', or several of these"
            )
            raise ValueError(f"the input must be {allowed}, not {type(inputs).__name__}.")
        return self.stream(inputs, settings)

    def _sanitize_parameters(self, **kwargs: object) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = Settings.__dataclass_fields__
        for name in ("batch_size", "num_workers"):
            if kwargs.pop(name, None) is not None:
                logger.warning("%s has no effect: documents are packed by token_budget, see the documentation.", name)
        for name in (name for name in kwargs if name not in known):
            if name in AT_CONSTRUCTION:
                raise ValueError(f"{name} is chosen at construction: pipeline(..., {name}=...), not in a call.")
            if name == "offset_mapping":
                raise ValueError("offset_mapping has no use here: offsets are exact; leave it out.")
            raise ValueError(
                f"there is no argument {name!r}.{did_you_mean(name, known)} The arguments are {list(known)}."
            )
        return {name: value for name, value in kwargs.items() if value is not None}, {}, {}

    def settings_for(self, call: Mapping[str, object]) -> Settings:
        """The model's defaults, the pipeline's arguments and the call's, each replacing the ones before.

        Raises:
            ValueError: an argument that does not exist or has a wrong value.
        """
        config = self.model.config
        own = {name: getattr(config, name) for name in KEPT_SETTINGS} | {"growth": config.continuation}
        settings = Settings(**(own | self._preprocess_params | self._sanitize_parameters(**call)[0]))
        if settings.growth and not config.continuation:
            raise ValueError(
                "growth=True needs a model that was trained with the continuation question (config.continuation), "
                "which this one was not: leave growth out, or train with continuation=True."
            )
        if settings.aggregation_strategy in WHOLE_WORDS:
            self._say(
                f'aggregation_strategy="{settings.aggregation_strategy}" gives what "simple" gives: spans are scored '
                "as wholes, so there are no disagreeing tokens to settle."
            )
        return settings

    def _say(self, message: str) -> None:
        """Logs a warning, once for this pipeline."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)

    def stream(self, inputs: Inputs, settings: Settings) -> EntityStream:
        """Returns the results of all stages over the inputs, lazily."""
        return EntityStream(
            inputs,
            read=self._reader(settings),
            encode=partial(self.encoder.encode, settings=settings, listed_words=LISTED_WORDS),
            scorer=self.scorer,
            decode=partial(self.decode, settings=settings),
            write=partial(self._write, settings=settings),
            skip_errors=settings.on_error == "skip",
        )

    def _annotate(self, given: object, settings: Settings) -> Result:
        """Takes a single input through the stages, without threads."""
        return self.postprocess(self._forward(self.preprocess(given, settings)), settings)

    def preprocess(self, input_: object, settings: Settings | None = None) -> PreparedDocument:
        """Reads and encodes one input."""
        settings = settings or self.settings_for({})
        listed = LISTED_WORDS if self.model.graphs is None else LISTED_WORDS_OF_GRAPHS
        return self.encoder.encode([self._reader(settings)(input_, None)], settings, listed)[0]

    def _forward(self, input_tensors: PreparedDocument, **_: object) -> ScoredDocument:
        """Scores one document."""
        return self.scorer.score([input_tensors])[0]

    def postprocess(self, model_outputs: ScoredDocument, settings: Settings | None = None) -> Result:
        """Decodes and writes the entities of one document."""
        settings = settings or self.settings_for({})
        (entities,) = self.decode([model_outputs], settings)
        return self._write(entities, model_outputs.prepared, settings)

    def _reader(self, settings: Settings) -> Callable[[object, int | None], Document]:
        own = cache(lambda: self.labels_for(settings.candidate_labels))  # most documents have the call's labels

        def labels_for(labels: LabelChoice | None) -> Labels:
            return own() if labels is settings.candidate_labels else self.labels_for(labels)

        def thresholds_for(labels: Labels, threshold: ThresholdChoice) -> list[float]:
            names = [name for name, _ in labels]
            of_call = self.thresholds_for(names, settings)
            own = self.thresholds_for(names, replace(settings, threshold=threshold))
            given = threshold if isinstance(threshold, Mapping) else names
            return [one if name in given else other for name, one, other in zip(names, own, of_call, strict=True)]

        return lambda given, number: read_document(given, settings, labels_for, thresholds_for, number)

    def decode(self, scored: Sequence[ScoredDocument], settings: Settings) -> list[list[Entity]]:
        """Decodes scored documents of one label set.

        Raises:
            DocumentError: logits of a document that are not finite, if it is the only one.
            ValueError: the same of several.
        """
        found: list[list[Entity]] = []
        for own, alike in groupby(scored, key=lambda document: document.prepared.source.thresholds):
            labels = [name for name, _ in scored[0].prepared.source.labels]
            found += self._decode(list(alike), labels, own or self.thresholds_for(labels, settings), settings)
        return found

    def _decode(
        self, scored: Sequence[ScoredDocument], labels: Sequence[str], thresholds: Sequence[float], settings: Settings
    ) -> list[list[Entity]]:
        """Decodes documents of one label set and the same thresholds."""
        windows = [window.candidates for document in scored for window in document.prepared.windows]
        start, end, start_word, end_word = (
            np.concatenate([getattr(candidates, name) for candidates in windows])
            for name in ("start", "end", "start_word", "end_word")
        )
        try:
            return decode_entities(
                start,
                end,
                start_word,
                end_word,
                np.concatenate([document.label_logits for document in scored]),
                labels,
                thresholds,
                temperature=self.model.config.temperature,
                overlap=settings.overlap,
                flat_selection=settings.flat_selection,
                multi_label=settings.multi_label,
                cu_spans=np.cumsum([0, *(len(document.label_logits) for document in scored)]),
                with_scores=settings.return_all_scores,
            )
        except ValueError as error:
            if len(scored) > 1:
                raise
            raise DocumentError(scored[0].prepared.source.number, str(error)) from error

    def _write(self, entities: Sequence[Entity], prepared: PreparedDocument, settings: Settings) -> Result:
        return document_result(entities, prepared, settings, partial(token_numbers, self.encoder.tokenizer))

    def labels_for(self, labels: LabelChoice | None) -> Labels:
        """Labels as a caller may give them, or the model's own for None, as (name, description) pairs in order.

        Raises:
            ValueError: labels of another form, or none at all.
        """
        if labels is None:
            labels = self.model.config.labels
            if not labels:
                raise ValueError(
                    "this model has no labels of its own: name the entity types to look for, for example "
                    'candidate_labels=["Person", "Company"].'
                )
        named = normalize_labels(labels)
        if self.template.none_label in named:
            raise ValueError(f"{self.template.none_label!r} is the none label: no entity type may have its name.")
        return tuple(named.items())

    def _labels_of_call(self, settings: Settings) -> Labels:
        return () if settings.candidate_labels is None else self.labels_for(settings.candidate_labels)

    def thresholds_for(self, labels: Sequence[str], settings: Settings) -> list[float]:
        """Each label's threshold: the call's, else the model's for it, else the model's for all.

        Raises:
            ValueError: thresholds outside 0 to 1, or of labels that are not asked for.
        """
        config, given = self.model.config, settings.threshold
        if isinstance(given, Mapping):
            asked = {*labels, *config.labels, *(name for name, _ in self._labels_of_call(settings))}
            unknown = [label for label in given if label not in asked]
            if unknown:
                raise ValueError(
                    f"threshold names {unknown}, which are not among the labels {list(labels)}."
                    f"{did_you_mean(unknown[0], asked)}"
                )
            own = {label: check_threshold(value, f"the threshold of {label!r}") for label, value in given.items()}
            return [own.get(label, config.label_thresholds.get(label, config.threshold)) for label in labels]
        if given is not None:
            return [check_threshold(given, "threshold")] * len(labels)
        return [config.label_thresholds.get(label, config.threshold) for label in labels]

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        include_code: bool = False,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes model, tokenizer and model card; the arguments are those of the model's method.

        What the pipeline was made with and the model's configuration has a place for is saved, too: labels,
        thresholds, overlap, flat_selection, max_span_words and growth_threshold. The model object stays as it is.
        Other arguments (`aggregation_strategy`, `long_documents`, ...) belong to this object, and are not saved.
        """
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", str(save_directory)), include_code=include_code, **kwargs)
            return
        config = self._own_config()
        save_decoder(config, self.model.backbone, str(save_directory), include_code=include_code, **kwargs)
        write_tokenizer(self.tokenizer, str(save_directory))
        write_model_card(config, str(save_directory))

    def _own_config(self) -> DecodNERConfig:
        """Returns the model's configuration with the pipeline's own labels, thresholds and settings."""
        config, settings = self.model.config, self.settings_for({})
        changed: dict[str, object] = {name: getattr(settings, name) for name in KEPT_SETTINGS}
        if settings.candidate_labels is not None:
            labels = dict(self.labels_for(settings.candidate_labels))
            thresholds = {name: value for name, value in config.label_thresholds.items() if name in labels}
            changed |= {"entity_labels": labels, "label_descriptions": None, "label_thresholds": thresholds}
            changed |= {"id2label": None, "label2id": None}
        if isinstance(settings.threshold, Mapping):
            changed["label_thresholds"] = config.label_thresholds | settings.threshold
        elif settings.threshold is not None:
            changed |= {"threshold": settings.threshold, "label_thresholds": {}}
        own: DecodNERConfig = DecodNERConfig.from_dict(config.settings() | changed)
        return own

    def push_to_hub(self, repo_id: str, *, include_code: bool = True, **kwargs: Any) -> Any:
        """Uploads what `save_pretrained` writes, by default with the code; `kwargs` as for the model's method."""
        return upload(lambda folder: self.save_pretrained(folder, include_code=include_code), repo_id, **kwargs)
