"""Reads requests: parses them, holds them against the limits, and asks the pipeline whether their arguments are valid.

In: the bytes of a body. Out: one `Ask` per document, or a `RequestError` with the reason.
Knows nothing of HTTP, nor of how documents are annotated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .batcher import Ask, Result, size_of
from .limits import Limits, RequestError
from .schema import Document, ExtractRequest, parse_request

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline
    from ..core.pipeline_io import Settings

OF_DOCUMENTS = ("documents", "candidate_labels", "threshold", "return_report")  # the rest goes into the call


def read_request(body: bytes, pipe: "DecodNERPipeline", limits: Limits) -> tuple[ExtractRequest, list[Ask]]:
    """Returns the request and its documents.

    Raises:
        RequestError: 400 for what is no JSON, 413 for what is too large, 422 for what the pipeline refuses.
    """
    request = parse_request(body)
    if len(request.documents) > limits.documents:
        raise RequestError(
            413, f"{len(request.documents)} documents in one request: at most {limits.documents} are allowed."
        )
    if request.max_span_words is not None and request.max_span_words > limits.span_words:
        raise RequestError(
            413, f"max_span_words is {request.max_span_words}: at most {limits.span_words} are allowed."
        )
    given = request.model_dump(exclude_none=True)
    arguments = {name: value for name, value in given.items() if name not in OF_DOCUMENTS}
    try:
        settings = pipe.settings_for(arguments)
    except ValueError as error:
        raise RequestError(422, str(error)) from error
    asks = []
    for index, document in enumerate(request.documents):
        try:
            asks.append(Ask(_document(document, request, settings, pipe, limits), arguments))
        except ValueError as error:
            raise RequestError(422, f"documents.{index}: {error}") from error
        except RequestError as error:
            raise RequestError(error.status, f"documents.{index}: {error.reason}") from error
    return request, asks


def _document(
    document: Document, request: ExtractRequest, settings: "Settings", pipe: "DecodNERPipeline", limits: Limits
) -> dict[str, Any]:
    """Returns a document as the pipeline takes it, with all that the request says of it: so many may share a call."""
    if (document.text is None) == (document.words is None):
        raise ValueError('a document is a string, or has either "text" or "words".')
    content = {"text": document.text} if document.text is not None else {"words": document.words}
    characters = size_of(content)
    if characters > limits.document_characters:
        raise RequestError(
            413, f"{characters} characters: at most {limits.document_characters} are allowed; divide the document."
        )
    labels = dict(
        pipe.labels_for(_first(document.candidate_labels, request.candidate_labels, settings.candidate_labels))
    )
    if len(labels) > limits.labels:
        raise RequestError(413, f"{len(labels)} labels: at most {limits.labels} are allowed.")
    threshold = _threshold(document.threshold, request.threshold, list(labels))
    if threshold is not None:
        pipe.thresholds_for(list(labels), replace(settings, threshold=threshold))
        content["threshold"] = threshold
    return {**content, "candidate_labels": labels, **_spans(document.spans)}


def _threshold(own: Any, of_request: Any, labels: Sequence[str]) -> Any:
    """Returns a document's threshold: its own, and the request's for labels that its own does not name."""
    if not isinstance(own, Mapping) or of_request is None:
        return _first(own, of_request)
    return {**(of_request if isinstance(of_request, Mapping) else dict.fromkeys(labels, of_request)), **own}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _spans(given: object) -> dict[str, list[tuple[int, int]]]:
    if given is None:
        return {}
    spans = []
    for pair in given if isinstance(given, list) else [given]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(bound) is int for bound in pair):
            raise ValueError("spans must be a list of pairs of whole numbers, [[0, 5]] for example.")
        spans.append((pair[0], pair[1]))
    return {"spans": spans}


def answer(request: ExtractRequest, results: list[Result]) -> dict[str, Any]:
    """Returns the answer: the results, with what was not read of a document, and its report where it was asked for."""
    return {"results": [_answered(result, request.return_report is True) for result in results]}


def _answered(result: Result, with_report: bool) -> dict[str, Any]:
    left_out = result["report"]["words_left_out"]
    answered = {"entities": result["entities"]}
    if left_out:
        answered["words_left_out"] = left_out
    if with_report:
        answered["report"] = result["report"]
    return answered
