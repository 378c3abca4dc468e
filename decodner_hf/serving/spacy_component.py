"""Finds entities in spaCy pipelines: `nlp.add_pipe("decodner")`.

In: spaCy documents. Out: the same documents with entities in `doc.ents` or `doc.spans`, their scores in extensions.
spaCy finds the component by an entry point of the package; nothing else imports this file.
Knows nothing of how entities are found.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import pipeline

from ..core.hub import TASK
from ..corpus.records import Record
from ..corpus.streaming import annotate_records

try:
    import srsly
    from spacy import util
    from spacy.language import Language
    from spacy.tokens import Doc, Span
except ImportError as error:
    raise ImportError("the spaCy component needs spaCy: pip install 'decodner-hf[spacy]'.") from error

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

NAME = "decodner"
DEFAULTS: dict[str, Any] = {
    "model": None,
    "device": None,
    "labels": None,
    "threshold": None,
    "overlap": "flat",
    "spans_key": None,
    "overwrite_ents": False,
    "options": {},
}


class DecodNERComponent:
    """A spaCy component around a pipeline, which is loaded when it is first needed.

    Every entity is written. One whose bounds lie inside spaCy's tokens is widened to whole tokens; `doc._.decodner`
    keeps its exact characters. One that shares a token with an entity already in `doc.ents`, which cannot hold both,
    is kept in `doc._.decodner` alone, with "written": False, and a warning names it.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | None,
        settings: Mapping[str, Any],
        spans_key: str | None,
        overwrite_ents: bool,
    ) -> None:
        """Takes what `make_decodner` describes; `settings` are keyword arguments of `DecodNERPipeline`."""
        self.name, self.spans_key, self.overwrite_ents = name, spans_key, overwrite_ents
        self._model, self._settings = model, dict(settings)
        self._pipeline: DecodNERPipeline | None = None

    @property
    def pipeline(self) -> "DecodNERPipeline":
        """The pipeline that finds the entities.

        Raises:
            ValueError, OSError: a model or settings that cannot be used.
        """
        if self._pipeline is None:
            self._pipeline = self._load(self._model)
        return self._pipeline

    def __call__(self, doc: Doc) -> Doc:
        """Writes the entities of one document."""
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 1000) -> Iterator[Doc]:
        """Yields the documents with their entities; those of a batch share packed passes.

        Raises:
            ValueError: a document that is refused, unless the error handler of `nlp` decides otherwise.
        """
        handle_error = self.get_error_handler()
        for docs in util.minibatch(stream, size=batch_size):
            records = (Record(f"document {number}", doc.text, {}) for number, doc in enumerate(docs))
            for doc, (_, outcome) in zip(docs, annotate_records(self.pipeline, records), strict=True):
                if isinstance(outcome, ValueError):
                    handle_error(self.name, self, [doc], outcome)
                else:
                    yield self._write(doc, outcome)

    def get_error_handler(self) -> Any:
        """Returns the function that `nlp` calls for documents that are refused; by default it raises."""
        return getattr(self, "error_handler", util.raise_error)

    def set_error_handler(self, error_handler: Any) -> None:
        """Sets that function; see spaCy's documentation."""
        self.error_handler = error_handler

    # ------------------------------------------------------------------ writing

    def _write(self, doc: Doc, entities: list[dict[str, Any]]) -> Doc:
        spans = [_widened(doc, entity) for entity in entities]
        if self.spans_key is not None:
            written = [True] * len(spans)
            doc.spans[self.spans_key] = spans
            doc.spans[self.spans_key].attrs["scores"] = [entity["score"] for entity in entities]
        else:
            written = self._set_ents(doc, entities, spans)
        doc._.decodner = [
            entity | {"start_token": span.start, "end_token": span.end, "written": is_written}
            for entity, span, is_written in zip(entities, spans, written, strict=True)
        ]
        return doc

    def _set_ents(self, doc: Doc, entities: list[dict[str, Any]], spans: list[Span]) -> list[bool]:
        """Adds spans to `doc.ents`, better ones first; returns which of them it took."""
        others = list(doc.ents)
        if self.overwrite_ents:
            taken = {token.i for span in spans for token in span}
            others = [span for span in others if not any(token.i in taken for token in span)]
        taken = {token.i for span in others for token in span}
        written = [False] * len(spans)
        for index in sorted(range(len(spans)), key=lambda index: -entities[index]["score"]):
            tokens = {token.i for token in spans[index]}
            if not tokens & taken:
                taken |= tokens
                written[index] = True
        doc.ents = [*others, *(span for span, is_written in zip(spans, written, strict=True) if is_written)]
        left = [entity for entity, is_written in zip(entities, written, strict=True) if not is_written]
        if left:
            named = ", ".join(f"{entity['word']!r} ({entity['entity_group']})" for entity in left)
            warnings.warn(
                f"doc.ents holds one entity per token and had no room for {named}; doc._.decodner has them. Write to "
                f"doc.spans (spans_key), or replace other components' entities (overwrite_ents).",
                stacklevel=2,
            )
        return written

    # ------------------------------------------------------------------ saving and loading

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Writes model and tokenizer into a folder, unless "model" is excluded."""
        if "model" not in exclude:
            self.pipeline.save_pretrained(path)

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "DecodNERComponent":
        """Loads what `to_disk` wrote; where that is nothing, the model that the configuration names is used."""
        if "model" not in exclude and Path(path, "config.json").is_file():
            self._pipeline = self._load(str(path))
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Returns what `to_disk` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.to_disk(folder, exclude=exclude)
            files = {path.name: path.read_bytes for path in sorted(Path(folder).iterdir())}
            return bytes(util.to_bytes(files, ()))

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> "DecodNERComponent":
        """Loads what `to_bytes` returned."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for name, content in srsly.msgpack_loads(data).items():
                Path(folder, Path(name).name).write_bytes(content)
            return self.from_disk(folder, exclude=exclude)

    def _load(self, model: str | None) -> "DecodNERPipeline":
        loaded: DecodNERPipeline = pipeline(TASK, model=model, **self._settings)
        return loaded


def make_decodner(
    nlp: Language,  # noqa: ARG001 - spaCy passes it
    name: str,
    model: str | None,
    device: str | None,
    labels: list[str] | dict[str, str | None] | None,
    threshold: float | dict[str, float] | None,
    overlap: str,
    spans_key: str | None,
    overwrite_ents: bool,
    options: dict[str, Any],
) -> DecodNERComponent:
    """Makes the component; spaCy calls it with the values of `config` in `nlp.add_pipe("decodner", config={...})`.

    Args:
        nlp: the pipeline that the component is part of.
        name: its name in there.
        model: a folder or a name on the Hub; the bundled model by default.
        device: "cpu", "cuda:0", ...; an accelerator where there is one by default.
        labels: entity types, or entity type -> description or None; the model's own by default.
        threshold: lowest score, or label -> lowest score; the model's own by default.
        overlap: "flat", "nested" or "all"; the two latter need a place in `doc.spans`.
        spans_key: write to `doc.spans[spans_key]`; by default to `doc.ents` if flat, else to `doc.spans["decodner"]`.
        overwrite_ents: replace entities of other components that share tokens with ours, instead of keeping them.
        options: further keyword arguments of `DecodNERPipeline`: max_span_words, long_documents, token_budget, ...

    Raises:
        ValueError: options that are named elsewhere or whose results have another form.
    """
    named = {"candidate_labels": labels, "device": device, "threshold": threshold, "overlap": overlap}
    refused = set(options) & {
        *named,
        "aggregation_strategy",
        "return_report",
        "is_split_into_words",
        "spans",
        "on_error",
    }
    if refused:
        raise ValueError(
            f"options must not name {', '.join(sorted(refused))}: model, device, labels, threshold and overlap have "
            "settings of their own, and the others would change what the component reads."
        )
    settings = {key: value for key, value in named.items() if value is not None} | options
    key = spans_key if spans_key is not None or overlap == "flat" else NAME
    return DecodNERComponent(name, model=model, settings=settings, spans_key=key, overwrite_ents=overwrite_ents)


def _widened(doc: Doc, entity: Mapping[str, Any]) -> Span:
    """Returns the whole tokens that hold an entity."""
    span = doc.char_span(entity["start"], entity["end"], label=entity["entity_group"], alignment_mode="expand")
    assert span is not None, f"{entity} lies outside the document"
    return span


def _score(span: Span) -> float | None:
    """Returns the score of the entity that a span stands for, None where it stands for none of ours."""
    bounds = (span.start, span.end, span.label_)
    found = [
        entity["score"]
        for entity in span.doc._.decodner
        if (entity["start_token"], entity["end_token"], entity["entity_group"]) == bounds
    ]
    return max(found, default=None)


def _register() -> None:
    """Makes the component and the extensions known to spaCy."""
    Language.factory(NAME, default_config=DEFAULTS, assigns=["doc.ents", "doc.spans"], func=make_decodner)
    if not Doc.has_extension(NAME):
        Doc.set_extension(NAME, default=[])
    if not Span.has_extension("decodner_score"):
        Span.set_extension("decodner_score", getter=_score)


_register()
