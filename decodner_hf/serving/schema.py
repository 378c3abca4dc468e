"""Defines the JSON of `POST /extract`: what a request and its answer look like.

In: the bytes of a body. Out: an `ExtractRequest`, or a `RequestError` that names the place and what is allowed there.
Values that the pipeline checks itself (labels, thresholds, spans) are only described here.
Knows nothing of HTTP or the pipeline.
"""

from typing import Annotated, Literal

from .limits import RequestError

try:
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema
except ImportError as error:
    raise ImportError('serving needs FastAPI: pip install "decodner-hf[serve]".') from error

LABELS = {
    "anyOf": [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    ]
}
THRESHOLD = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
    ]
}
SPANS = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}}

Labels = Annotated[JsonValue, WithJsonSchema(LABELS)]
Threshold = Annotated[JsonValue, WithJsonSchema(THRESHOLD)]
Spans = Annotated[JsonValue, WithJsonSchema(SPANS)]
SHOWN_ERRORS = 3


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Document(_Model):
    """A document with what belongs to it: `text` or `words`, and its own labels, threshold and spans if it has any."""

    text: str | None = Field(None, description="the document")
    words: list[str] | None = Field(
        None, description="or its words; they are joined by single spaces, to which the offsets of entities refer"
    )
    candidate_labels: Labels = Field(None, description="names, or an object from name to description or null")
    threshold: Threshold = Field(None, description="lowest score reported, or an object from label to threshold")
    spans: Spans = Field(
        None, description="own candidates: half-open pairs of characters, or of words where `words` are given"
    )


def _as_document(given: object) -> object:
    return {"text": given} if isinstance(given, str) else given


class ExtractRequest(_Model):
    """Documents, and the arguments that hold for all of them; those left out are the service's."""

    documents: list[Annotated[Document, BeforeValidator(_as_document, json_schema_input_type=str | Document)]] = Field(
        description="texts, or objects", examples=[["Apple was founded by Steve Jobs in Cupertino."]]
    )
    candidate_labels: Labels = Field(
        None,
        description="of documents without their own: names, or an object from name to description or null",
        examples=[{"person": "a named human being", "company": None}],
    )
    threshold: Threshold = Field(None, description="of documents without their own: 0 to 1, or one per label")
    overlap: Literal["flat", "nested", "all"] | None = None
    flat_selection: Literal["greedy", "exact"] | None = None
    multi_label: bool | None = Field(None, description='every label that a span reaches; with overlap "all"')
    aggregation_strategy: Literal["simple", "none"] | None = Field(
        None, description='"simple": an object per entity; "none": one per word of it'
    )
    return_all_scores: bool | None = Field(None, description="adds the score of every label to each entity")
    max_span_words: int | None = Field(None, description="longest candidate span")
    long_documents: Literal["window", "error", "truncate"] | None = None
    growth: bool | None = None
    growth_threshold: float | None = None
    return_report: bool | None = Field(None, description="adds how each document was read")


class Entity(BaseModel):
    """An entity: `text[start:end] == word`, in characters. With words given it has `start_word` and `end_word` too."""

    model_config = ConfigDict(extra="allow")
    entity_group: str
    score: float
    word: str
    start: int
    end: int


class DocumentResult(BaseModel):
    """What was found in a document. Nothing is left out silently: words that are not read are named."""

    entities: list[Entity]
    words_left_out: list[tuple[int, int]] | None = Field(
        None, description="overlong words that were not read, as half-open pairs of characters; only where there are"
    )
    report: dict[str, JsonValue] | None = Field(None, description="with return_report")


class ExtractAnswer(BaseModel):
    """The results, in the order of the documents."""

    results: list[DocumentResult]


class Refusal(BaseModel):
    """Why a request was not answered, in one line."""

    detail: str


def parse_request(body: bytes) -> ExtractRequest:
    """Reads a body.

    Raises:
        RequestError: with status 400 for what is no JSON, and 422 for JSON of another form.
    """
    try:
        request: ExtractRequest = ExtractRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        if problems[0]["type"] == "json_invalid":
            reason = str(problems[0]["ctx"]["error"])
            raise RequestError(400, f"the body is not JSON in UTF-8: {reason}.") from None
        shown = "; ".join(map(_described, problems[:SHOWN_ERRORS]))
        more = f"; and {len(problems) - SHOWN_ERRORS} more" if len(problems) > SHOWN_ERRORS else ""
        raise RequestError(422, f"{shown}{more}.") from None
    return request


def _described(problem: dict[str, object]) -> str:
    place = [str(part) for part in problem["loc"]]  # type: ignore[attr-defined]  # a tuple
    message = str(problem["msg"])
    if problem["type"] == "extra_forbidden":
        model = Document if place[:1] == ["documents"] else ExtractRequest
        message = f"there is no such key; its neighbours are {', '.join(model.model_fields)}"
    elif not place:
        message = 'the body must be an object such as {"documents": ["a text"]}'
    return f"{'.'.join(place)}: {message}" if place else message
