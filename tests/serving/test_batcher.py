import pytest
from gated_pipe import GatedPipe

from decodner_hf.serving.batcher import Ask, Batcher
from decodner_hf.serving.limits import Limits, RequestError

PATIENCE = 30  # seconds


@pytest.fixture
def pipe():
    return GatedPipe()


@pytest.fixture
def start(pipe):
    """Starts a batcher; ends it after the test."""
    started = []

    def start(token_budget=4096, watch=lambda _: None, **limits):
        started.append(Batcher(pipe, token_budget, Limits(**limits), watch))
        return started[-1]

    yield start
    pipe.gate.set()
    for batcher in started:
        batcher.close()


def asks(*texts, labels=("Person",), **arguments):
    return [Ask({"text": text, "candidate_labels": dict.fromkeys(labels)}, arguments) for text in texts]


def words(future):
    return [entity["word"] for result in future.result(PATIENCE) for entity in result["entities"]]


def occupy(pipe, batcher):
    """Lets the thread hang in a call; what is submitted next waits."""
    pipe.hold()
    first = batcher.submit(asks("first"))
    assert pipe.entered.wait(PATIENCE)
    return first


def test_requests_that_wait_together_are_scored_together_in_order_of_labels(pipe, start):
    batcher = start()
    first = occupy(pipe, batcher)
    futures = [
        batcher.submit(asks("a", "b")),
        batcher.submit(asks("c", labels=("City",))),
        batcher.submit(asks("d")),
        batcher.submit(asks("e", overlap="all")),
    ]
    assert (batcher.waiting_documents, batcher.waiting_characters) == (5, 5)
    pipe.gate.set()
    assert [words(future) for future in [first, *futures]] == [["first"], ["a", "b"], ["c"], ["d"], ["e"]]
    (texts, _), *others = pipe.calls[1:]
    assert sorted([texts, *(texts for texts, _ in others)]) == [["c", "a", "d", "b"], ["e"]]
    assert (batcher.waiting_documents, batcher.waiting_characters) == (0, 0)


def test_a_large_request_does_not_hold_up_a_small_one(pipe, start):
    batcher = start(token_budget=50)  # a few documents a batch
    occupy(pipe, batcher)
    large = batcher.submit(asks(*(f"large {number}" for number in range(50))))
    small = batcher.submit(asks("small"))
    pipe.gate.set()
    assert words(small) == ["small"]
    assert words(large) == [f"large {number}" for number in range(50)]
    batches = [texts for texts, _ in pipe.calls[1:]]
    assert "small" in batches[0]
    assert len(batches) > 5


def test_a_refused_document_fails_its_own_request_only(pipe, start):
    batcher = start()
    occupy(pipe, batcher)
    good, bad, other = (batcher.submit(asks(*texts)) for texts in (["a", "b"], ["c", "BAD", "d"], ["e"]))
    pipe.gate.set()
    assert (words(good), words(other)) == (["a", "b"], ["e"])
    with pytest.raises(RequestError, match=r"documents\.1: BAD is refused") as refused:
        bad.result(PATIENCE)
    assert refused.value.status == 422


def test_a_failing_model_fails_the_request_that_it_fails_at(pipe, start, caplog):
    batcher = start()
    occupy(pipe, batcher)
    good, broken = batcher.submit(asks("a", "b")), batcher.submit(asks("BUG"))
    pipe.gate.set()
    assert words(good) == ["a", "b"]
    with pytest.raises(RequestError, match="the model failed: RuntimeError") as failed:
        broken.result(PATIENCE)
    assert failed.value.status == 500
    assert "RuntimeError" in caplog.text
    assert "BUG" not in caplog.text
    assert batcher.problem is None


def test_a_model_that_fails_again_and_again_is_a_problem_until_it_succeeds(start):
    batcher = start()
    for _ in range(3):
        with pytest.raises(RequestError):
            batcher.submit(asks("BUG")).result(PATIENCE)
    assert "3 times" in batcher.problem
    assert words(batcher.submit(asks("a"))) == ["a"]
    assert batcher.problem is None


def test_the_thread_survives_errors_of_its_own(start, monkeypatch):
    batcher = start()
    monkeypatch.setattr(batcher, "_annotate", lambda _: 1 / 0)
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        batcher.submit(asks("a")).result(PATIENCE)
    monkeypatch.undo()
    assert words(batcher.submit(asks("a"))) == ["a"]


@pytest.mark.parametrize("limits", [{"waiting_documents": 3}, {"waiting_characters": 3}], ids=["number", "size"])
def test_when_too_much_waits_requests_are_refused_until_there_is_room(pipe, start, limits):
    batcher = start(**limits)
    occupy(pipe, batcher)
    large = batcher.submit(asks("a", "b", "c", "d"))  # alone it may wait, whatever its size
    with pytest.raises(RequestError, match="4 documents of 4 characters wait already") as refused:
        batcher.submit(asks("e"))
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    pipe.gate.set()
    assert words(large) == ["a", "b", "c", "d"]
    assert words(batcher.submit(asks("e"))) == ["e"]


def test_what_nobody_waits_for_is_not_scored(pipe, start):
    batcher = start()
    occupy(pipe, batcher)
    gone, other = batcher.submit(asks("gone", "gone too")), batcher.submit(asks("a"))
    assert gone.cancel()
    pipe.gate.set()
    assert words(other) == ["a"]
    assert [texts for texts, _ in pipe.calls] == [["first"], ["a"]]
    assert (batcher.waiting_documents, batcher.waiting_characters) == (0, 0)


def test_closing_answers_what_was_taken_and_takes_no_more(pipe, start):
    batcher = start(token_budget=1)
    futures = [occupy(pipe, batcher), batcher.submit(asks("a", "b")), batcher.submit(asks("c"))]
    pipe.gate.set()
    batcher.close()
    assert [words(future) for future in futures] == [["first"], ["a", "b"], ["c"]]
    assert "shutting down" in batcher.problem
    with pytest.raises(RequestError, match="shutting down") as refused:
        batcher.submit(asks("d"))
    assert refused.value.status == 503


def test_batches_are_watched_and_empty_requests_answered(start):
    seen = []
    batcher = start(watch=seen.append)
    assert batcher.submit([]).result(0) == []
    assert words(batcher.submit(asks("abc", "d"))) == ["abc", "d"]
    batcher.close()
    assert [(batch.documents, batch.characters) for batch in seen] == [(2, 4)]


def test_the_size_of_words_counts_the_spaces_between_them():
    assert Ask({"words": ["ab", "c"]}, {}).characters == len("ab c")
    assert Ask({"words": []}, {}).characters == 0
