"""An interrupted run of a model that grows spans goes on to the very output of one that was not interrupted."""

import json

import pytest
from tiny_pipelines import tiny_native
from tokenizers_for_tests import byte_level_single_digits
from varied_documents import varied_text

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.corpus import annotate

TEXTS = [varied_text([(number * 7 % 1000, number * 13 % 1000)] * (1 + number % 7)) for number in range(24)]


@pytest.fixture(scope="module")
def model():
    tokenizer = byte_level_single_digits()
    native = tiny_native(vocab_size=len(tokenizer)).double()
    config = DecodNERConfig(continuation=True, entity_labels=["A", "B"], threshold=0.0, overlap="nested")
    return DecodNERForSpanClassification.from_backbone(native, config)


def pipe_of(model, **settings):
    chosen = {"growth_threshold": 0.3, "token_budget": 400} | settings
    return DecodNERPipeline(
        model=model, tokenizer=byte_level_single_digits(), device="cpu", task="decodner-ner", **chosen
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def interrupt(monkeypatch, model, source, target, passes):
    """Annotates until so many passes were launched."""
    score, count = model.score_rows, 0

    def scored(*args):
        nonlocal count
        count += 1
        if count > passes:
            raise KeyboardInterrupt
        return score(*args)

    with monkeypatch.context() as patch:
        patch.setattr(model, "score_rows", scored)
        with pytest.raises(KeyboardInterrupt):
            annotate(source, target, pipe_of(model))


@pytest.mark.parametrize("passes", [1, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(model, source, tmp_path, monkeypatch, passes):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    annotate(source, whole, pipe_of(model))
    assert '"entity_group"' in whole.read_text()
    interrupt(monkeypatch, model, source, parts, passes)
    annotate(source, parts, pipe_of(model), resume=True)
    rows = [[json.loads(line) for line in path.read_text("utf-8").split("\n") if line] for path in (whole, parts)]
    assert len(rows[0]) == len(TEXTS)
    for one, other in zip(*rows, strict=True):
        assert [(e["start"], e["end"]) for e in one["entities"]] == [(e["start"], e["end"]) for e in other["entities"]]
        assert [e["score"] for e in one["entities"]] == pytest.approx(
            [e["score"] for e in other["entities"]], abs=1e-9
        )


@pytest.mark.parametrize("changed", [{"growth_threshold": 0.4}, {"growth": False}, {"max_span_words": 5}], ids=str)
def test_a_run_does_not_go_on_with_other_growth(model, source, tmp_path, monkeypatch, changed):
    target = tmp_path / "out.jsonl"
    interrupt(monkeypatch, model, source, target, 5)
    with pytest.raises(ValueError, match="belongs to a run with another"):
        annotate(source, target, pipe_of(model, **changed), resume=True)
