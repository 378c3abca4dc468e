import numpy as np
import pytest
import torch
from tiny_pipelines import LABELS, tiny_pipeline

from decodner_hf import streaming_decodner
from decodner_hf.transfers_decodner import Download, upload

TEXTS = [f"Steve Jobs founded Apple number {index} in Cupertino." for index in range(12)]


@pytest.fixture
def pipe():
    return tiny_pipeline(token_budget=150, candidate_labels=LABELS, threshold=0.0)


def test_the_next_pass_is_launched_before_the_last_one_is_read_and_decoded(pipe, monkeypatch):
    expected = [pipe(text) for text in TEXTS]
    steps = []
    for name in ("launch", "collect"):
        method = getattr(pipe, name)
        monkeypatch.setattr(pipe, name, lambda *given, m=method, n=name: steps.append(n) or m(*given))
    assert pipe(TEXTS) == expected
    passes = steps.count("launch")
    assert passes > 2
    assert steps == ["launch", *["launch", "collect"] * (passes - 1), "collect"]


def test_results_before_a_failing_pass_are_not_lost(pipe, monkeypatch):
    launch, count = pipe.launch, iter(range(100))

    def failing(run):
        if next(count) == 2:
            raise ValueError("no such pass")
        return launch(run)

    monkeypatch.setattr(pipe, "launch", failing)
    stream, found = iter(pipe(text for text in TEXTS)), []
    with pytest.raises(ValueError, match="no such pass"):
        found.extend(stream)
    monkeypatch.undo()
    assert len(found) >= 2
    assert found == pipe(TEXTS)[: len(found)]


def test_results_do_not_wait_for_a_slow_source(pipe, monkeypatch):
    monkeypatch.setattr(streaming_decodner, "DOCUMENTS_AT_ONCE", 1)
    wait = streaming_decodner.ThreadPoolExecutor(1)
    given = []

    def source():
        for text in TEXTS[:3]:
            while len(found) < len(given) - 1:  # at most one document is read beyond the last result
                wait.submit(lambda: None).result()
            given.append(text)
            yield text

    found = []
    for entities in pipe(source()):
        found.append(entities)
    assert len(found) == 3


def test_uploads_keep_values_and_shapes():
    given = [torch.arange(6, dtype=torch.int32).reshape(2, 3), torch.tensor([7]), torch.empty(0, dtype=torch.int64)]
    sent = upload(given, torch.device("cpu"))
    assert [tensor.dtype for tensor in sent] == [torch.int64] * 3
    assert [tensor.tolist() for tensor in sent] == [tensor.tolist() for tensor in given]


def test_downloads_are_float32():
    found = Download(torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)).array()
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, -2.0]]


def test_compiling_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="needs a GPU"):
        tiny_pipeline(compile=True)
