"""Counts what a service does, for Prometheus.

In: finished requests and batches. Out: the text of `GET /metrics`.
Knows nothing of texts, labels or entities but their numbers.
"""

from collections.abc import Callable

from .batcher import Batch

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
except ImportError as error:
    raise ImportError('serving needs prometheus-client: pip install "decodner-hf[serve]".') from error

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DOCUMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self._requests = Counter(
            "decodner_requests", "Requests, by path and status", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "decodner_request_seconds", "Time of answered extractions", buckets=SECONDS, registry=registry
        )
        self._documents = Counter("decodner_documents", "Documents annotated", registry=registry)
        self._characters = Counter("decodner_characters", "Characters annotated", registry=registry)
        self._entities = Counter("decodner_entities", "Entities found", registry=registry)
        self._batch_documents = Histogram(
            "decodner_batch_documents", "Documents of a batch", buckets=DOCUMENTS, registry=registry
        )
        self._batch_seconds = Histogram(
            "decodner_batch_seconds", "Time of a batch", buckets=SECONDS, registry=registry
        )
        self._waiting = Gauge("decodner_waiting_documents", "Documents that are in no batch yet", registry=registry)

    def watch_waiting(self, waiting: Callable[[], float]) -> None:
        """Takes the number of waiting documents from a function."""
        self._waiting.set_function(waiting)

    def count_request(self, path: str, status: int) -> None:
        """Counts an answered or refused request."""
        self._requests.labels(path, str(status)).inc()

    def count_answer(self, seconds: float, entities: int) -> None:
        """Counts an answered extraction."""
        self._seconds.observe(seconds)
        self._entities.inc(entities)

    def count_batch(self, batch: Batch) -> None:
        """Counts an annotated batch."""
        self._documents.inc(batch.documents)
        self._characters.inc(batch.characters)
        self._batch_documents.observe(batch.documents)
        self._batch_seconds.observe(batch.seconds)

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        written: bytes = generate_latest(self.registry)
        return written
