"""Builds the HTTP service: `POST /extract`, `GET /health`, `GET /metrics`, `GET /docs` and `GET /openapi.json`.

In: a pipeline, limits, an API key. Out: an ASGI application, which any ASGI server can run.
Logs paths, status codes, counts and times; never a text, a label or a message that could quote one.
Knows nothing of sockets, signals or how batches are formed.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .batcher import Batcher, Result, without_message
from .docs_page import docs_page
from .limits import Limits, RequestError
from .metrics import Metrics
from .reading import answer, read_request
from .schema import ExtractAnswer, ExtractRequest, Refusal

try:
    from fastapi import FastAPI, Request
    from fastapi.openapi.utils import get_openapi
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from pydantic.json_schema import models_json_schema
except ImportError as error:
    raise ImportError('serving needs FastAPI: pip install "decodner-hf[serve]".') from error

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

REFERENCE = "#/components/schemas/{model}"
PATHS = ("/extract", "/health", "/metrics", "/docs", "/openapi.json")
CLIENT_GONE = 499  # nobody reads the answer; for the log
DESCRIPTION = """\
Finds named entities of any types that you name, by span scoring.
A request holds one or more documents, each with its own labels if it wishes; the answer has their results, in order.
Offsets count characters (Unicode code points), half-open: text[start:end] is the entity.
"""


class Service:
    """What the routes share: the pipeline, its batcher, the limits, the key and the figures."""

    def __init__(self, pipe: "DecodNERPipeline", limits: Limits, api_key: str | None, name: str) -> None:
        """Starts nothing."""
        self.pipe, self.limits, self.name = pipe, limits, name
        self.key = None if api_key is None else checked_key(api_key).encode()
        self.metrics = Metrics()
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Starts the batcher; at the end answers what it has taken."""
        batcher = Batcher(self.pipe, self.pipe.scorer.token_budget, self.limits, self.metrics.count_batch)
        self.batcher = batcher
        self.metrics.watch_waiting(lambda: batcher.waiting_documents)
        yield
        await asyncio.to_thread(batcher.close)

    # ------------------------------------------------------------------ the routes

    async def extract(self, request: Request) -> Response:
        """Finds the entities of one or more documents."""
        began = perf_counter()
        self.check_key(request.headers.get("authorization"))
        body = await read_body(request, self.limits)
        asked, asks = read_request(body, self.pipe, self.limits)
        results = await self.results(self.running().submit(asks), request)
        if results is None:
            return Response(status_code=CLIENT_GONE)
        answered = answer(asked, results)
        seconds = perf_counter() - began
        self.metrics.count_answer(seconds, sum(len(result["entities"]) for result in results))
        logger.info("/extract 200: %d documents, %d bytes, %.1f ms", len(asks), len(body), 1000 * seconds)
        content = json.dumps(answered, ensure_ascii=False, separators=(",", ":"))
        return Response(content.encode(), media_type="application/json")

    async def health(self) -> Response:
        """Whether requests are answered: 200 or 503."""
        problem = self.running().problem
        state = {"status": "ok" if problem is None else problem, "model": self.name}
        return JSONResponse(
            state | {"waiting_documents": self.running().waiting_documents}, 200 if problem is None else 503
        )

    async def figures(self) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # ------------------------------------------------------------------ their parts

    def running(self) -> Batcher:
        """Returns the batcher, which runs between the application's start and its end."""
        if self.batcher is None:
            raise RequestError(503, "the service is starting.")
        return self.batcher

    def check_key(self, authorization: str | None) -> None:
        """Raises a `RequestError` with status 401 unless the request has the service's key, if there is one."""
        if self.key is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        # compare_digest takes as long for any key of the same length
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key):
            return
        reason = "this API key is not valid" if authorization else "this service asks for an API key"
        raise RequestError(
            401, f"{reason}: send the header Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
        )

    async def results(self, future: "Future[list[Result]]", request: Request) -> list[Result] | None:
        """Waits for the results; None, and what is not scored yet is dropped, if the client goes away meanwhile."""
        found, gone = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {found, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return await found if found.done() else None
        finally:
            gone.cancel()
            found.cancel()


def create_app(
    pipe: "DecodNERPipeline", *, limits: Limits | None = None, api_key: str | None = None, name: str = ""
) -> FastAPI:
    """Returns the application.

    Args:
        pipe: the pipeline; its labels, thresholds and other arguments are those of requests that name none.
        limits: what is accepted.
        api_key: what clients of /extract must send as `Authorization: Bearer KEY`; None lets everyone in.
        name: of the model, for /health.

    Raises:
        ValueError: an API key that is empty or holds other characters than printable ASCII without spaces.
    """
    service = Service(pipe, limits or Limits(), api_key, name)
    app = FastAPI(
        title="decodner", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=service.lifespan
    )  # FastAPI's own pages load scripts from a CDN
    app.add_api_route(
        "/extract",
        service.extract,
        methods=["POST"],
        response_model=ExtractAnswer,
        responses={status: {"model": Refusal, "description": text} for status, text in REFUSALS.items()},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}},
    )
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.figures, methods=["GET"], response_class=Response)
    app.add_exception_handler(RequestError, _refuse)
    app.add_middleware(Guard, metrics=service.metrics)
    described = _openapi(app, with_key=api_key is not None)
    app.openapi = lambda: described
    page = docs_page(described)
    app.add_api_route("/docs", lambda: HTMLResponse(page), methods=["GET"], include_in_schema=False)
    return app


_BODY = {"$ref": REFERENCE.format(model=ExtractRequest.__name__)}
REFUSALS = {
    400: "The body is not JSON.",
    401: "The API key is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The request, a document or its list of labels is too large.",
    422: "The request is not as described, or the pipeline refuses it.",
    429: "Too much waits already: try again later.",
    500: "The model failed.",
    503: "The service is starting or shutting down.",
}


class Guard:
    """ASGI middleware: counts and logs requests, and answers 500 for errors, whose messages it does not log."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], metrics: Metrics) -> None:
        """Wraps an application."""
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: list[int] = []

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            logger.error("a request failed: %s", without_message(error))
            if not status:
                answered = JSONResponse({"detail": f"the service failed: {type(error).__name__}."}, 500)
                await answered(scope, receive, watched)
        path = scope["path"] if scope["path"] in PATHS else "other"  # a path can be any text
        self.metrics.count_request(path, status[0] if status else 500)
        if status and status[0] >= 400:
            logger.info("%s %d", path, status[0])


async def read_body(request: Request, limits: Limits) -> bytes:
    """Reads a request's body, no further than the limit.

    Raises:
        RequestError: a body that is too large (413) or does not arrive in time (408).
    """
    too_large = RequestError(413, f"the body is larger than {limits.body_bytes} bytes: send fewer documents at once.")
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {limits.read_seconds} seconds.") from error
    return bytes(body)


def checked_key(key: str) -> str:
    """Returns an API key that a header can carry, or raises a ValueError that does not quote it."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key must be printable ASCII without spaces, and at least one character long.")
    return key


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(_: Request, error: RequestError) -> JSONResponse:
    return JSONResponse({"detail": error.reason}, error.status, headers=error.headers)


def _openapi(app: FastAPI, with_key: bool) -> dict[str, Any]:
    """Returns the description of the routes, with the body that `extract` reads and parses itself."""
    described: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, definitions = models_json_schema([(ExtractRequest, "validation")], ref_template=REFERENCE)
    components: Mapping[str, Any] = described.setdefault("components", {})
    components["schemas"].update(definitions["$defs"])
    if with_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["paths"]["/extract"]["post"]["security"] = [{"key": []}]
    return described
