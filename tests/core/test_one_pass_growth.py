"""A short document that one CUDA graph scores as a whole is answered as by rounds."""

import pytest
from test_compile_graphs import captured_at_the_second_pass, graphed, graphs_on_cpu  # noqa: F401 - fixtures
from test_grown_scoring import REPEATED, between_two, every_score, questioned
from tiny_pipelines import tiny_native
from transformers import AutoTokenizer

from decodner_hf.default_model import default_model

TEXTS = ["Apple met Steve Jobs.", REPEATED[:90], "don't (Apple) re-open AT&T.", "東京 and New York", "One", ""]
ASKED = {"candidate_labels": ["a", "b"], "threshold": 0.0, "overlap": "all"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("cue", ["", " Type:"], ids=["no_cue", "cue"])
@pytest.mark.parametrize("labels", [2, 40], ids=["one_prompt", "shards"])
def test_one_graph_answers_as_rounds_do(tokenizer, cue, labels, monkeypatch):
    native = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=4096)
    plain, pipe = (questioned(tokenizer, native, prompt={"answer_cue": cue}) for _ in range(2))
    graphed(pipe.model)
    asked = ASKED | {"candidate_labels": [f"type{number}" for number in range(labels)], "max_span_words": 12}
    rounds = []
    score_rows = pipe.model.score_rows
    monkeypatch.setattr(pipe.model, "score_rows", lambda *given: rounds.append(1) or score_rows(*given))
    one_pass = 0
    for text in TEXTS:
        every = every_score(plain, text, candidate_labels=asked["candidate_labels"], max_span_words=12)
        for share in (0.02, 0.5, 0.98):
            threshold = between_two([probability for *_, probability in every], share)
            before = len(rounds)
            found = pipe(text, growth_threshold=threshold, **asked)
            expected = plain(text, growth_threshold=threshold, **asked)
            one_pass += len(rounds) == before
            places = [[(entity["start"], entity["end"]) for entity in entities] for entities in (found, expected)]
            assert places[0] == places[1]
            assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert pipe.model.graphs.captures > 0
    assert one_pass > 6
    assert len(rounds) > 0  # where the longest listed spans go on
