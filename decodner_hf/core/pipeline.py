"""Text in, entities out: `pipeline("decodner-ner")`.

Documents are read lazily, encoded in batches by a worker thread while the model runs, packed into passes by a token
budget, scored, and decoded while the next pass is scored, in input order. This file only joins the stages; each has a
file of its own.
In: strings, word lists or dicts. Out: lists of dicts as transformers' token classification gives them.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from transformers import Pipeline

from .configuration import check_threshold, normalize_labels
from .decoding import decode_entities, merge_shards
from .hub import upload, write_model_card, write_tokenizer
from .modeling import DecodNERForSpanClassification
from .prompting import PromptTemplate, TooManyLabelsError, choose_symbols, shard_labels
from .requests import DOCUMENT_KEYS, Document, Labels, Settings, is_document
from .results import Prepared, entity_rows, word_rows
from .scoring import DocumentScorer, EncodedPrompt, ScoredRun, collect, num_nodes
from .spans import EncodedDocument, encode_documents, split_into_windows, truncate_document
from .streaming import EntityStream
from .tokenization import check_texts, check_tokenizer
from .validation import is_count

logger = logging.getLogger(__name__)

KEPT_LABEL_SETS = 64


class DecodNERPipeline(Pipeline):
    """Named entity recognition by span scoring.

    Takes a string, a list of words (with `is_split_into_words`), a dict with "text" or "words" and, if wished, its own
    "candidate_labels" and "spans", or many of them: a list gives a list, any other iterable (a generator, a
    `KeyDataset`, a `datasets` column) a lazy iterator in input order whose `len()` is that of the input.

    Keyword arguments, at construction or in a call:
        candidate_labels: label names, or a mapping from name to description; the model's own labels by default.
        threshold: lowest score reported, from 0 to 1, or a mapping from label to threshold; the model's by default.
        overlap: "flat" (default), "nested" (no two entities cross) or "all".
        flat_selection: "greedy" (best score first) or "exact" (best set).
        multi_label: report every label that a span reaches; with overlap "all" only.
        aggregation_strategy: "simple" gives one dict an entity: `entity_group, score, word, start, end`; "none" one
            dict a word of an entity: `entity` (B- or I- and the label), `score, index, word, start, end`.
        return_all_scores: add `scores`, a dict with the score of every label.
        max_span_words: longest candidate span; the model's by default.
        spans: own candidates, half-open (start, end) pairs of characters (of words with `is_split_into_words`).
        is_split_into_words: inputs are lists of words; they are joined by single spaces, to which the offsets refer,
            and entities have `start_word` and `end_word` (half-open) too.
        long_documents: what happens beyond the model's positions: "window" (overlapping windows, nothing is lost),
            "error", or "truncate" (with a warning, and `truncated_at` in every entity).
        token_budget: forest nodes a pass; by default 4,096 on a CPU, and on a GPU as many as hold 1.125 GiB of
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
        model: Any,
        tokenizer: Any = None,
        *,
        token_budget: int | None = None,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Wraps `model` where it is a plain decoder; the model object that was passed is left as it is."""
        check_tokenizer(tokenizer)
        if token_budget is not None and not is_count(token_budget):
            raise ValueError(f"token_budget must be a number of tokens of at least 1, not {token_budget!r}.")
        if getattr(model.config, "model_type", None) != "decodner":
            model = DecodNERForSpanClassification.from_backbone(model)
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        self.model.eval()
        self.template = PromptTemplate.from_config(self.model.config)
        self.scorer = DocumentScorer(self.model, token_budget)
        if compile:
            self.model.compile_forest(cuda_graph_nodes=self.scorer.token_budget)
        self._prompts: OrderedDict[Labels, list[EncodedPrompt]] = OrderedDict()
        settings = self.settings_for({})
        if self.model.config.labels or settings.candidate_labels is not None:
            self.thresholds_for([name for name, _ in self.labels_for(settings.candidate_labels)], settings)
        elif settings.threshold is not None and not isinstance(settings.threshold, Mapping):
            self.thresholds_for([], settings)

    # ------------------------------------------------------------------ the call

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Annotates one document, a list, or an iterable; see the class docstring."""
        if args:
            raise ValueError(f"the pipeline takes one positional argument, the input; {len(args)} more were given.")
        settings = self.settings_for(kwargs)
        if is_document(inputs, settings.is_split_into_words):
            return next(iter(EntityStream(self, [inputs], settings)))
        if settings.spans is not None:
            raise ValueError(
                "spans belong to one document: with several, give each as a dict with its own, for example "
                '{"text": "...", "spans": [(0, 5)]}.'
            )
        if isinstance(inputs, list | tuple):
            return list(EntityStream(self, inputs, settings))
        is_stream = isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))
        if not is_stream or isinstance(inputs, bytes | bytearray):
            raise ValueError(
                f"the input must be a string, a list of words with is_split_into_words=True, a dict with 'text', "
                f"or a list or iterable of these, not {type(inputs).__name__}."
            )
        return EntityStream(self, inputs, settings)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = Settings.__dataclass_fields__
        unknown = sorted(set(kwargs) - set(known) - {"batch_size", "num_workers"})
        if unknown:
            raise ValueError(f"unknown keyword arguments {unknown}; the pipeline takes {sorted(known)}.")
        for name in ("batch_size", "num_workers"):
            if kwargs.pop(name, None) is not None:
                logger.warning("%s has no effect: documents are packed by token_budget, see the documentation.", name)
        return {name: value for name, value in kwargs.items() if value is not None}, {}, {}

    def settings_for(self, call: dict[str, Any]) -> Settings:
        """The model's defaults, the pipeline's arguments and the call's, each replacing the ones before.

        Raises:
            ValueError: an argument that does not exist or has a wrong value.
        """
        config = self.model.config
        own = {
            "overlap": config.overlap,
            "flat_selection": config.flat_selection,
            "max_span_words": config.max_span_words,
        }
        return Settings(**(own | self._preprocess_params | self._sanitize_parameters(**call)[0]))

    # ------------------------------------------------------------------ the three stages, on groups of documents

    def preprocess(self, inputs: Sequence[Any], settings: Settings, first: int = 0) -> list[Prepared]:
        """Reads and encodes a group of documents, of which the first is number `first` of the call's."""
        documents = [self._read(document, settings, first + index) for index, document in enumerate(inputs)]
        encoded: dict[int, EncodedDocument] = {}
        for split in (False, True):
            chosen = [index for index, document in enumerate(documents) if isinstance(document.content, list) == split]
            contents: list[Any] = [documents[index].content for index in chosen]
            spans = [documents[index].spans for index in chosen]
            batch = encode_documents(
                contents,
                self.tokenizer,
                self.template,
                max_span_words=settings.max_span_words,
                is_split_into_words=split,
                spans=spans if any(own is not None for own in spans) else None,
            )
            encoded |= dict(zip(chosen, batch, strict=True))
        return [self._window(document, encoded[index], settings) for index, document in enumerate(documents)]

    def _forward(self, model_inputs: Sequence[Prepared], **_: Any) -> list[np.ndarray[Any, Any]]:
        """Scores a group of documents of one label set: per document the label logits [S, L + 1]."""
        return self.collect(model_inputs, self.launch(model_inputs))

    def launch(self, model_inputs: Sequence[Prepared]) -> list[list[ScoredRun]]:
        """Starts scoring a group of documents of one label set; `collect` waits for the results."""
        windows = [window for prepared in model_inputs for window in prepared.windows]
        with self.device_placement():
            return self.scorer.launch(self.encoded_prompts(model_inputs[0].labels), windows)

    def collect(self, model_inputs: Sequence[Prepared], launched: list[list[ScoredRun]]) -> list[np.ndarray[Any, Any]]:
        """What `_forward` returns, of a group that was launched."""
        shards = [collect(runs) for runs in launched]
        logits = [merge_shards(parts) if len(parts) > 1 else parts[0] for parts in zip(*shards, strict=True)]
        counts = iter(logits)
        return [np.concatenate(list(islice(counts, len(prepared.windows)))) for prepared in model_inputs]

    def postprocess(
        self, model_outputs: tuple[Sequence[Prepared], Sequence[Any]], settings: Settings
    ) -> list[list[dict[str, Any]]]:
        """Decodes a group of scored documents of one label set."""
        group, logits = model_outputs
        labels = [name for name, _ in group[0].labels]
        spans = [[window.candidates for window in prepared.windows] for prepared in group]
        flat = [candidates for document in spans for candidates in document]
        counts = [sum(candidates.num_spans for candidates in document) for document in spans]
        start, end, start_word, end_word = (
            np.concatenate([getattr(candidates, name) for candidates in flat])
            for name in ("start", "end", "start_word", "end_word")
        )
        decoded = decode_entities(
            start,
            end,
            start_word,
            end_word,
            np.concatenate(logits),
            labels,
            self.thresholds_for(labels, settings),
            temperature=self.model.config.temperature,
            overlap=settings.overlap,
            flat_selection=settings.flat_selection,
            multi_label=settings.multi_label,
            cu_spans=np.cumsum([0, *counts]),
            with_scores=settings.return_all_scores,
        )
        write = entity_rows if settings.aggregation_strategy == "simple" else word_rows
        return [
            [row for entity in entities for row in write(entity, prepared)]
            for entities, prepared in zip(decoded, group, strict=True)
        ]

    # ------------------------------------------------------------------ inside the stages

    def _read(self, document: Any, settings: Settings, number: int) -> Document:
        labels, spans = settings.candidate_labels, settings.spans
        content = document
        split = settings.is_split_into_words
        if isinstance(document, Mapping):
            strangers = [key for key in document if key not in DOCUMENT_KEYS]
            if strangers or ("text" in document) == ("words" in document):
                raise ValueError(
                    "a document given as a dict has 'text' or 'words', and may have 'candidate_labels' and 'spans'; "
                    f"document {number} has {sorted(map(str, document))}."
                )
            labels, spans = document.get("candidate_labels", labels), document.get("spans", spans)
            split = "words" in document
            content = document["words" if split else "text"]
        expected = Sequence if split else str
        if not isinstance(content, expected) or (split and isinstance(content, str)):
            allowed = "a list of words (is_split_into_words=True)" if split else "a string"
            raise ValueError(f"document {number} must be {allowed}, not {type(content).__name__}: {content!r:.80}")
        check_texts([content] if isinstance(content, str) else content, f"the texts of document {number}")
        return Document(content if isinstance(content, str) else list(content), self.labels_for(labels), spans)

    def labels_for(self, labels: Any) -> Labels:
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
            strangers = [label for label in given if label not in asked]
            if strangers:
                raise ValueError(f"threshold names {strangers}, which are not among the labels {list(labels)}.")
            own = {label: check_threshold(value, f"label {label!r}") for label, value in given.items()}
            return [own.get(label, config.label_thresholds.get(label, config.threshold)) for label in labels]
        if given is not None:
            return [check_threshold(given, "this call")] * len(labels)
        return [config.label_thresholds.get(label, config.threshold) for label in labels]

    def encoded_prompts(self, labels: Labels) -> list[EncodedPrompt]:
        """The prompts of a label set: one, or as many shards as symbols and positions make necessary."""
        if labels not in self._prompts:
            self._prompts[labels] = self._encode_prompts(dict(labels))
            if len(self._prompts) > KEPT_LABEL_SETS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(labels)
        return self._prompts[labels]

    def _encode_prompts(self, labels: dict[str, str | None]) -> list[EncodedPrompt]:
        limit = self.model.position_limit
        most = len(labels)  # in one prompt
        while True:
            try:
                prompts = [self._encode_prompt(shard) for shard in shard_labels(labels, most)]
            except TooManyLabelsError as error:
                if not 0 < error.available < most:
                    raise
                most = error.available
                continue
            longest = max(len(prompt.prefix_token_ids) for prompt in prompts)
            if limit is None or longest <= limit.limit // 2 or most == 1:
                return prompts
            most = -(-most // 2)

    def _encode_prompt(self, labels: dict[str, str | None]) -> EncodedPrompt:
        symbols = choose_symbols(self.tokenizer, len(labels))
        return EncodedPrompt(
            prefix_token_ids=self.template.encode_prefix(self.tokenizer, labels, symbols),
            symbol_token_ids=symbols.token_ids,
            cue_token_ids=self.template.encode_cue(self.tokenizer),
        )

    def _window(self, document: Document, encoded: EncodedDocument, settings: Settings) -> Prepared:
        limit = self.model.position_limit
        whole = Prepared(document.labels, isinstance(document.content, list), encoded, [encoded])
        if limit is None:
            return whole
        prompts = self.encoded_prompts(document.labels)
        room = limit.limit - max(len(prompt.prefix_token_ids) + len(prompt.cue_token_ids) for prompt in prompts)
        if num_nodes(encoded) <= room or (needed := len(encoded.chain_token_ids) + encoded.candidates.longest) <= room:
            return whole
        if settings.long_documents == "error":
            raise ValueError(
                f"a document needs {needed} tokens with its longest span, but only {room} positions are left "
                f'behind the prompt ({limit.reason}). Use long_documents="window" or "truncate", or split it.'
            )
        if settings.long_documents == "window":
            return replace(whole, windows=split_into_windows(encoded, room, self.tokenizer, self.template))
        beginning, kept = truncate_document(encoded, room, self.tokenizer, self.template)
        logger.warning("A document of %d characters is truncated after character %d.", len(encoded.text), kept)
        return replace(whole, windows=[beginning], truncated_at=kept)

    # ------------------------------------------------------------------ saving

    def save_pretrained(self, save_directory: Any, *, include_code: bool = False, **kwargs: Any) -> None:
        """Writes model, tokenizer and model card; with `include_code` also the code, see the model's method.

        Labels and thresholds are saved as `model.config` has them; arguments of this pipeline are not.
        """
        self.model.save_pretrained(save_directory, include_code=include_code, **kwargs)
        write_tokenizer(self.tokenizer, str(save_directory))
        write_model_card(self.model.config, str(save_directory))

    def push_to_hub(self, repo_id: str, *, include_code: bool = True, **kwargs: Any) -> Any:
        """Uploads what `save_pretrained` writes, by default with the code; `kwargs` as for the model's method."""
        return upload(lambda folder: self.save_pretrained(folder, include_code=include_code), repo_id, **kwargs)
