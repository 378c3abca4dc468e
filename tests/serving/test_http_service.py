"""The HTTP application, without a socket: `create_app` around a tiny model or a pipeline that can be held up."""

import asyncio
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient
from gated_pipe import GatedPipe
from tiny_pipelines import LABELS, TEXT, tiny_pipeline

from decodner_hf.serving.app import create_app
from decodner_hf.serving.limits import Limits

EASY = {"threshold": 0.0, "overlap": "all"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(candidate_labels=LABELS)


@pytest.fixture(scope="module")
def client(pipe):
    with TestClient(create_app(pipe, name="tiny")) as client:
        yield client


class HeldPipe(GatedPipe):
    """A gated pipe that checks arguments as a tiny pipeline does."""

    def __init__(self, pipe):
        super().__init__()
        self.settings_for, self.labels_for, self.thresholds_for = (
            pipe.settings_for,
            pipe.labels_for,
            pipe.thresholds_for,
        )
        self.scorer = pipe.scorer


@pytest.fixture
def held(pipe):
    held = HeldPipe(pipe)
    yield held
    held.gate.set()


def extract(client, request, **kwargs):
    return client.post("/extract", json=request, **kwargs)


def test_answers_are_the_pipelines_own(pipe, client):
    documents = [
        TEXT,
        {"text": TEXT, "candidate_labels": ["City"]},
        {"words": ["Anna", "lives", "in", "Kyoto"], "candidate_labels": {"City": "a town", "Person": None}},
        {"text": TEXT, "threshold": {"Person": 0.9}},  # for the other label the request's
        {"text": TEXT, "spans": [[0, 5], [21, 31]]},
        "",
    ]
    answered = extract(client, {"documents": documents, **EASY, "return_all_scores": True})
    assert answered.status_code == 200, answered.text
    results = answered.json()["results"]
    assert len(results) == len(documents)
    for document, result in zip(documents, results, strict=True):
        asked = dict(document) if isinstance(document, dict) else {"text": document}
        expected = pipe(asked, threshold=0.0, overlap="all", return_all_scores=True)
        assert [(e["start"], e["end"], e["entity_group"]) for e in result["entities"]] == [
            (e["start"], e["end"], e["entity_group"]) for e in expected
        ]
        assert [e["score"] for e in result["entities"]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        assert "report" not in result


def test_reports_come_where_they_are_asked_for_and_words_left_out_always(client):
    long_word = "x" * 5000
    request = {"documents": [f"Rome {long_word}"], **EASY}
    (result,) = extract(client, request).json()["results"]
    assert result["words_left_out"] == [[5, 5005]]
    assert "report" not in result
    (result,) = extract(client, request | {"return_report": True}).json()["results"]
    assert result["report"]["windows"] == 1


BAD = {
    "no JSON": (b'{"documents": [', 400, "not JSON"),
    "no UTF-8": (b'{"documents": ["\xff"]}', 400, "not JSON"),
    "lone surrogate": (b'{"documents": ["\\ud800"]}', 400, "not JSON"),
    "nested deeply": (b'{"documents": ' + b"[" * 100_000, 400, "not JSON"),
    "empty": (b"", 400, "not JSON"),
    "no object": ([], 422, '{"documents": ["a text"]}'),
    "no documents": ({}, 422, "documents: Field required"),
    "documents of another type": ({"documents": "Rome"}, 422, "documents: "),
    "a number for a document": ({"documents": ["Rome", 5]}, 422, "documents.1: "),
    "unknown key": ({"documents": ["Rome"], "labels": ["City"]}, 422, "labels: there is no such key"),
    "unknown key of a document": ({"documents": [{"txt": "Rome"}]}, 422, "documents.0.txt: there is no such key"),
    "text and words": ({"documents": [{"text": "a", "words": ["a"]}]}, 422, "documents.0: a document is a string, or"),
    "neither": ({"documents": [{"candidate_labels": ["a"]}]}, 422, 'either "text" or "words"'),
    "label twice": ({"documents": ["a"], "candidate_labels": ["x", "x"]}, 422, "documents.0: duplicate labels ['x']"),
    "label None": ({"documents": ["a"], "candidate_labels": ["None"]}, 422, "is the none label"),
    "no labels": ({"documents": ["a"], "candidate_labels": []}, 422, "no labels were given"),
    "threshold": ({"documents": ["a"], "threshold": 7}, 422, "from 0 to 1, not 7"),
    "threshold of another label": ({"documents": ["a"], "threshold": {"x": 0.1}}, 422, "threshold names ['x']"),
    "overlap": ({"documents": ["a"], "overlap": "some"}, 422, "overlap: "),
    "arguments together": ({"documents": ["a"], "multi_label": True}, 422, 'needs overlap="all"'),
    "growth": ({"documents": ["a"], "growth": True}, 422, "continuation"),
    "spans": ({"documents": [{"text": "a", "spans": [[0, "1"]]}]}, 422, "pairs of whole numbers"),
    "spans outside": ({"documents": ["b", {"text": "a", "spans": [[0, 9]]}]}, 422, "documents.1: "),
    "long label": ({"documents": ["a"], "candidate_labels": ["x" * 9000]}, 422, "documents.0: "),
}


@pytest.mark.parametrize(("body", "status", "reason"), BAD.values(), ids=BAD)
def test_bad_requests_get_a_reason_of_one_line(client, body, status, reason):
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answered = client.post("/extract", **sent)
    assert answered.status_code == status, answered.text
    detail = answered.json()["detail"]
    assert reason in detail
    assert "\n" not in detail
    assert extract(client, {"documents": ["Rome"]}).status_code == 200


LARGE = {
    "body": ({"documents": ["x" * 3000]}, "larger than 2000 bytes"),
    "documents": ({"documents": ["a"] * 4}, "4 documents in one request: at most 3"),
    "characters": ({"documents": ["a", "x" * 101]}, "documents.1: 101 characters: at most 100"),
    "words": ({"documents": [{"words": ["x" * 50, "y" * 50]}]}, "101 characters: at most 100"),
    "labels": ({"documents": ["a"], "candidate_labels": ["a", "b", "c"]}, "3 labels: at most 2"),
    "width": ({"documents": ["a"], "max_span_words": 9}, "max_span_words is 9: at most 8"),
}


@pytest.mark.parametrize(("request_", "reason"), LARGE.values(), ids=LARGE)
def test_large_requests_are_refused(pipe, request_, reason):
    limits = Limits(body_bytes=2000, documents=3, document_characters=100, labels=2, span_words=8)
    with TestClient(create_app(pipe, limits=limits)) as client:
        answered = extract(client, request_)
        assert (answered.status_code, reason in answered.json()["detail"]) == (413, True), answered.text
        assert extract(client, {"documents": ["x" * 100] * 3}).status_code == 200


def test_a_large_body_of_unknown_length_is_not_read_to_its_end(pipe):
    read = []

    def chunks():
        for number in range(1000):
            read.append(number)
            yield b"x" * 1000

    with TestClient(create_app(pipe, limits=Limits(body_bytes=2000))) as client:
        answered = client.post("/extract", content=chunks())
    assert answered.status_code == 413


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="labels must be an integer of at least 1, not 0"):
        Limits(labels=0)


def test_when_too_much_waits_clients_are_told_to_come_later(held):
    limits = Limits(waiting_documents=2)
    with TestClient(create_app(held, limits=limits)) as client, ThreadPoolExecutor() as threads:
        held.hold()
        first = threads.submit(extract, client, {"documents": ["a"]})
        assert held.entered.wait(30)
        second = threads.submit(extract, client, {"documents": ["b", "c"]})
        while client.get("/health").json()["waiting_documents"] < 2:
            pass
        refused = extract(client, {"documents": ["d"]})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "2 documents" in refused.json()["detail"]
        held.gate.set()
        assert [future.result(30).status_code for future in (first, second)] == [200, 200]


def test_a_key_is_asked_for_where_the_service_has_one(pipe):
    request = {"documents": ["Rome"]}
    with TestClient(create_app(pipe, api_key="s3cret")) as client:
        missing = extract(client, request)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert "asks for an API key" in missing.json()["detail"]
        for wrong in ("Bearer other", "Bearer s3cret2", "Bearer ", "Basic s3cret", "s3cret", "Bearer s3cré"):
            answered = extract(client, request, headers={"Authorization": wrong.encode()})
            assert answered.status_code == 401, wrong
            assert "not valid" in answered.json()["detail"]
        assert client.post("/extract", content=b"{").status_code == 401  # before the body is looked at
        assert extract(client, request, headers={"Authorization": "bearer s3cret"}).status_code == 200
        assert [client.get(path).status_code for path in ("/health", "/metrics", "/docs")] == [200] * 3
        assert client.get("/openapi.json").json()["paths"]["/extract"]["post"]["security"] == [{"key": []}]


@pytest.mark.parametrize("key", ["", "two words", "ü", "a\n"], ids=ascii)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(pipe, key):
    with pytest.raises(ValueError, match="must be printable ASCII") as refused:
        create_app(pipe, api_key=key)
    assert key.strip() == "" or key not in str(refused.value)


def test_health_says_what_is_wrong(held):
    with TestClient(create_app(held, name="tiny")) as client:
        assert client.get("/health").json() == {"status": "ok", "model": "tiny", "waiting_documents": 0}
        for _ in range(3):
            answered = extract(client, {"documents": ["BUG"]})
            assert (answered.status_code, answered.json()) == (500, {"detail": "the model failed: RuntimeError."})
        unwell = client.get("/health")
        assert unwell.status_code == 503
        assert "failed 3 times" in unwell.json()["status"]
        assert extract(client, {"documents": ["a"]}).status_code == 200
        assert client.get("/health").status_code == 200


def test_nothing_is_answered_before_the_start():
    client = TestClient(create_app(tiny_pipeline(candidate_labels=LABELS)))  # no `with`: its lifespan does not run
    assert client.get("/health").status_code == 503


def figures(client):
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_requests_documents_and_entities(pipe):
    with TestClient(create_app(pipe)) as client:
        found = extract(client, {"documents": ["Rome", "in Kyoto"], **EASY}).json()["results"]
        client.post("/extract", content=b"{")
        client.get("/some/secret")
        shown = figures(client)
    assert shown['decodner_requests_total{path="/extract",status="200"}'] == 1
    assert shown['decodner_requests_total{path="/extract",status="400"}'] == 1
    assert shown['decodner_requests_total{path="other",status="404"}'] == 1
    assert shown["decodner_documents_total"] == 2
    assert shown["decodner_characters_total"] == len("Rome") + len("in Kyoto")
    assert shown["decodner_entities_total"] == sum(len(result["entities"]) for result in found)
    assert shown["decodner_request_seconds_count"] == 1
    assert shown["decodner_waiting_documents"] == 0
    assert not [name for name in shown if "secret" in name]


def test_no_text_and_no_label_reaches_the_log(held, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    secret = "Mallory-4711"
    requests = [
        {"documents": [secret], "candidate_labels": [secret]},
        {"documents": [f"BAD {secret}"]},
        {"documents": [f"BUG {secret}"]},
        {"documents": [5, secret]},
        {"documents": ["a"], "candidate_labels": [secret, secret]},
    ]
    with TestClient(create_app(held), raise_server_exceptions=False) as client:
        statuses = [extract(client, request).status_code for request in requests]
        client.get(f"/{secret}")
        monkeypatch.setattr("decodner_hf.serving.app.answer", lambda *_: {}[secret])
        broken = extract(client, {"documents": ["a"]})
    assert statuses == [200, 422, 500, 422, 422]
    assert (broken.status_code, broken.json()) == (500, {"detail": "the service failed: KeyError."})
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("decodner"))
    assert "/extract 200: 1 documents" in own
    assert "KeyError" in own
    assert secret not in own
    assert not [record for record in caplog.records if record.exc_info]


def test_the_page_loads_nothing_from_elsewhere_and_the_description_is_whole(client):
    page = client.get("/docs").text
    assert not re.findall(r"(?:src|href)=\"?(?:https?:)?//", page)
    assert "POST /extract" in page
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert {"ExtractRequest", "Document", "ExtractAnswer", "Refusal"} <= set(references) <= schemas.keys()
    assert schemas["ExtractRequest"]["properties"]["documents"]["items"]["anyOf"][0] == {"type": "string"}


def test_the_example_of_the_page_is_answered(client):
    from decodner_hf.serving.docs_page import EXAMPLE

    answered = extract(client, EXAMPLE)
    assert answered.status_code == 200, answered.text
    assert len(answered.json()["results"]) == len(EXAMPLE["documents"])


async def call(app, method, path, body=b"", gone=None):
    """Calls the application as a server does; returns status and body. `gone` is set when the client goes away."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    answered = []

    async def receive():
        if messages:
            return messages.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        answered.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    await app(scope, receive, send)
    return answered[0]["status"], b"".join(message.get("body", b"") for message in answered[1:])


def test_what_a_client_waited_for_is_not_scored_when_it_goes_away(held):
    app = create_app(held)

    async def waiting():
        return json.loads((await call(app, "GET", "/health"))[1])["waiting_documents"]

    async def clients():
        async with app.router.lifespan_context(app):
            held.hold()
            first = asyncio.create_task(call(app, "POST", "/extract", b'{"documents": ["first"]}'))
            assert await asyncio.to_thread(held.entered.wait, 30)
            gone = asyncio.Event()
            second = asyncio.create_task(call(app, "POST", "/extract", b'{"documents": ["a", "b"]}', gone))
            while await waiting() < 2:
                await asyncio.sleep(0)
            gone.set()
            status, _ = await second
            held.gate.set()
            return status, (await first)[0]

    assert asyncio.run(clients()) == (499, 200)
    assert [texts for texts, _ in held.calls] == [["first"]]


def test_a_body_that_does_not_come_is_not_waited_for(pipe, monkeypatch):
    app = create_app(pipe)
    timeout, asked = asyncio.timeout, []
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: asked.append(seconds) or timeout(0))

    async def slow():
        async def receive():
            await asyncio.Event().wait()

        answered = []

        async def send(message):
            answered.append(message)

        async with app.router.lifespan_context(app):
            scope = {"type": "http", "method": "POST", "path": "/extract", "headers": [], "query_string": b""}
            await app(scope, receive, send)
        return answered

    start, body = asyncio.run(slow())[:2]
    assert (start["status"], asked) == (408, [Limits().read_seconds])
    assert b"did not arrive within 30 seconds" in body["body"]
