"""Defines what a service accepts: the size of a request, and how much may wait.

In: numbers. Out: `Limits`, checked; `RequestError`, the refusal of a request with its HTTP status.
Knows nothing of HTTP libraries, requests or the pipeline.
"""

from dataclasses import dataclass, fields

from ..core.validation import check_count


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        reason: one line for the client: what is wrong, and what is allowed.
        headers: HTTP headers of the answer.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        """Keeps all three."""
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


@dataclass(frozen=True)
class Limits:
    """What a service accepts. A larger request is refused with status 413; when too much waits, with 429.

    Attributes:
        body_bytes: largest body of a request.
        documents: most documents of a request.
        document_characters: longest document; of words, with the spaces between them.
        labels: most labels of a document.
        span_words: largest `max_span_words` that a request may ask for.
        waiting_documents: most documents that wait to be scored, over all requests.
        waiting_characters: most characters that wait.
        read_seconds: longest time in which a request's body must arrive.

    Raises:
        ValueError: a limit that is no whole number of at least 1.
    """

    body_bytes: int = 8 * 2**20
    documents: int = 1024
    document_characters: int = 100_000
    labels: int = 200
    span_words: int = 64
    waiting_documents: int = 4096
    waiting_characters: int = 8 * 2**20
    read_seconds: int = 30

    def __post_init__(self) -> None:
        """Checks every number."""
        for limit in fields(self):
            check_count(limit.name, getattr(self, limit.name))
