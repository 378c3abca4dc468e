import time

import numpy as np
import pytest
import torch
from tiny_pipelines import LABELS, tiny_pipeline

from decodner_hf.core import streaming
from decodner_hf.core.transfers import HostCopy, copy_to_device

TEXTS = [f"Steve Jobs founded Apple number {index} in Cupertino." for index in range(12)]


@pytest.fixture
def pipe():
    return tiny_pipeline(token_budget=150, candidate_labels=LABELS, threshold=0.0)


def test_the_next_passes_are_launched_before_one_is_read_and_decoded(pipe, monkeypatch):
    expected = [pipe(text) for text in TEXTS]
    steps = []
    for name in ("launch", "collect"):
        method = getattr(pipe, name)
        monkeypatch.setattr(pipe, name, lambda *given, m=method, n=name: steps.append(n) or m(*given))
    assert pipe(TEXTS) == expected
    passes, ahead = steps.count("launch"), streaming.PASSES_AHEAD
    assert passes > ahead + 1
    assert steps == ["launch"] * ahead + ["launch", "collect"] * (passes - ahead) + ["collect"] * ahead


def test_what_a_group_leaves_over_shares_a_pass_with_the_next_group(pipe, monkeypatch):
    settings = pipe.settings_for({})
    groups = [pipe.preprocess(TEXTS[start : start + 4], settings, start) for start in range(0, 12, 4)]
    pipe.scorer.token_budget = 3 * max(prepared.num_nodes for group in groups for prepared in group)
    runs, launch = [], pipe.launch
    monkeypatch.setattr(pipe, "launch", lambda run: runs.append(run) or launch(run))
    passes = streaming._Passes(pipe, settings)
    found = [entities for group in groups for entities in passes.add(group)]
    assert passes.pending
    found += passes.finish()
    assert not passes.pending
    for entities, expected in zip(found, [pipe(text) for text in TEXTS], strict=True):
        assert [entity["word"] for entity in entities] == [entity["word"] for entity in expected]
        assert [entity["score"] for entity in entities] == pytest.approx(
            [entity["score"] for entity in expected], rel=1e-4
        )
    runs = runs[: -len(TEXTS)]
    alone = [run for group in groups for run in streaming.cut(pipe.scorer, group)]
    assert len(runs) < len(alone)
    assert [document for run in runs for document in run] == [document for group in groups for document in group]


def test_with_an_idle_device_a_pass_does_not_wait_to_be_filled(pipe):
    passes = streaming._Passes(pipe, pipe.settings_for({}))
    assert list(passes.add(pipe.preprocess(TEXTS[:1], pipe.settings_for({})))) == []
    assert len(passes.launched) == 1
    assert list(passes.advance()) == [pipe(TEXTS[0])]


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
    monkeypatch.setattr(streaming, "DOCUMENTS_AT_ONCE", 1)
    wait = streaming.ThreadPoolExecutor(1)
    given, end = [], time.monotonic() + 20

    def source():
        for text in TEXTS[:3]:
            while len(found) < len(given) - 1:  # at most one document is read beyond the last result
                assert time.monotonic() < end, "results wait for documents that have not come"
                wait.submit(lambda: None).result()
            given.append(text)
            yield text

    found = []
    for entities in pipe(source()):
        found.append(entities)
    assert len(found) == 3


def test_copies_to_the_device_keep_values_and_shapes():
    given = [torch.arange(6, dtype=torch.int32).reshape(2, 3), torch.tensor([7]), torch.empty(0, dtype=torch.int64)]
    sent = copy_to_device(given, torch.device("cpu"))
    assert [tensor.dtype for tensor in sent] == [torch.int64] * 3
    assert [tensor.tolist() for tensor in sent] == [tensor.tolist() for tensor in given]


def test_copies_to_the_host_are_float32():
    found = HostCopy(torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)).array()
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, -2.0]]


def test_compiling_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="needs a GPU"):
        tiny_pipeline(compile=True)
