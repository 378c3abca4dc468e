"""Sends documents to a service from many clients at once, a request after the other each, and keeps every answer.

In: an address of this machine, documents. Out: an answer and its time per document; what had to be sent again.
Plain sockets: a client library would take more of the processor than the service does.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

RETRY_SECONDS = 0.05
MOST_RETRIES = 4000  # of one request: longer than a service takes to start


@dataclass
class Load:
    """What came of a load.

    Attributes:
        answers: per document its entities, None where there is no answer.
        seconds: of each answered request.
        repeated: requests that were sent again, by reason.
        elapsed: seconds from the first request to the last answer.
    """

    answers: list[Any]
    seconds: list[float] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    elapsed: float = 0.0


class Connection:
    """A connection that is kept open between requests."""

    def __init__(self, address: str) -> None:
        """Connects at the first request."""
        parts = urlsplit(address)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Sends a request; returns status and body. A connection that breaks raises an OSError."""
        try:
            reader, writer = self.streams or await asyncio.open_connection(self.host, self.port)
            self.streams = reader, writer
            head = f"POST /extract HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(headers["content-length"]))
            if headers.get("connection") == "close":
                self.close()
            return int(lines[0].split()[1]), content
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionResetError("closed before the answer") from error
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection, if it is open."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def send(
    address: str,
    documents: Sequence[str],
    clients: int,
    per_request: int,
    answered: Callable[[int], None] = lambda _: None,
) -> Load:
    """Sends every document once, `per_request` at a time, from `clients` clients.

    Args:
        address: of the service.
        documents: texts.
        clients: that send at the same time, each the next request when it has its answer.
        per_request: documents of a request.
        answered: is told the number of documents that have an answer, after each request.

    Raises:
        RuntimeError: a request that is refused for another reason than load, or that is in vain too often.
    """
    load = Load([None] * len(documents))
    starts = iter(range(0, len(documents), per_request))
    done = 0

    async def client() -> None:
        nonlocal done
        connection = Connection(address)
        for start in starts:
            texts = documents[start : start + per_request]
            results, seconds = await _answer(connection, json.dumps({"documents": texts}).encode(), load)
            load.answers[start : start + per_request] = [result["entities"] for result in results]
            load.seconds.append(seconds)
            done += len(texts)
            answered(done)
        connection.close()

    async def everyone() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    began = time.perf_counter()
    asyncio.run(everyone())
    load.elapsed = time.perf_counter() - began
    return load


async def _answer(connection: Connection, body: bytes, load: Load) -> tuple[list[Any], float]:
    """Sends a request until it is answered; returns its results and the seconds of the last try."""
    for _ in range(MOST_RETRIES):
        began = time.perf_counter()
        try:
            status, content = await connection.post(body)
        except OSError as error:
            reason = type(error).__name__
        else:
            if status == 200:
                return json.loads(content)["results"], time.perf_counter() - began
            if status not in (429, 503):
                raise RuntimeError(f"the service answered {status}: {content[:500]!r}")
            reason = str(status)
        load.repeated[reason] = load.repeated.get(reason, 0) + 1
        await asyncio.sleep(RETRY_SECONDS)
    raise RuntimeError(f"a request was in vain {MOST_RETRIES} times.")
