"""Reads requests: parses them, holds them against the limits, and asks the pipeline whether their arguments are valid.

In: the bytes of a body. Out: one `Ask` per document, or a `RequestError` with the reason.
Knows nothing of HTTP, nor of how documents are annotated.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .batcher import Ask, Result
from .limits import Limits, RequestError
from .schema import Document, ExtractRequest, parse_request

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

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
        own_labels = pipe.settings_for(arguments).candidate_labels
    except ValueError as error:
        raise RequestError(422, str(error)) from error
    if request.candidate_labels is None:
        request.candidate_labels = own_labels
    asks = []
    for index, document in enumerate(request.documents):
        try:
            asks.append(_ask(document, request, arguments, pipe, limits))
        except ValueError as error:
            raise RequestError(422, f"documents.{index}: {error}") from error
        except RequestError as error:
            raise RequestError(error.status, f"documents.{index}: {error.reason}") from error
    return request, asks


def _ask(
    document: Document,
    request: ExtractRequest,
    arguments: Mapping[str, Any],
    pipe: "DecodNERPipeline",
    limits: Limits,
) -> Ask:
    if (document.text is None) == (document.words is None):
        raise ValueError('a document is a string, or has either "text" or "words".')
    labels = document.candidate_labels if document.candidate_labels is not None else request.candidate_labels
    threshold = document.threshold if document.threshold is not None else request.threshold
    content = {"text": document.text} if document.text is not None else {"words": document.words}
    of_call = dict(arguments) if threshold is None else {**arguments, "threshold": threshold}
    named = pipe.labels_for(labels)
    pipe.thresholds_for([name for name, _ in named], pipe.settings_for(of_call))
    ask = Ask({**content, "candidate_labels": dict(named), **_spans(document.spans)}, of_call)
    if ask.characters > limits.document_characters:
        raise RequestError(
            413, f"{ask.characters} characters: at most {limits.document_characters} are allowed; divide the document."
        )
    if len(named) > limits.labels:
        raise RequestError(413, f"{len(named)} labels: at most {limits.labels} are allowed.")
    return ask


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
