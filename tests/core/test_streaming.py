"""The composition of the stages: what is launched, waited for and delivered when."""

import threading
import time

import numpy as np
import pytest
import torch
from tiny_pipelines import LABELS, tiny_pipeline

from decodner_hf.core import pass_queues, streaming
from decodner_hf.core.arrays import packed_runs
from decodner_hf.core.pass_queues import PassQueue, documents_by_pass
from decodner_hf.core.streaming import in_parts_on_failure, scored_passes
from decodner_hf.core.transfers import HostCopy, copy_to_device

TEXTS = [f"Steve Jobs founded Apple number {index} in Cupertino." for index in range(12)]


@pytest.fixture
def pipe():
    return tiny_pipeline(token_budget=150, candidate_labels=LABELS, threshold=0.0)


class RecordingScorer:
    """A scorer that notes each launch and each wait, and may fail."""

    def __init__(self, scorer, fails=None):
        self.scorer, self.fails, self.token_budget = scorer, fails, scorer.token_budget
        self.steps, self.launched = [], []

    def launch(self, documents):
        if self.fails is not None and self.fails(documents):
            raise ValueError("no such pass")
        self.steps.append("launch")
        self.launched.append(list(documents))
        return Waiting(self.scorer.launch(documents), self.steps)


class Waiting:
    def __init__(self, pending, steps):
        self.pending, self.steps = pending, steps

    def wait(self):
        self.steps.append("wait")
        return self.pending.wait()


def assert_same_scores(scored, pipe, texts=TEXTS):
    expected = [pipe.scorer.score([pipe.preprocess(text)])[0] for text in texts]
    assert [document.prepared.document.text for document in scored] == list(texts)
    for one, other in zip(scored, expected, strict=True):
        np.testing.assert_allclose(one.label_logits, other.label_logits, rtol=1e-4, atol=1e-5)


def test_the_next_passes_are_launched_before_one_is_read(pipe):
    groups = iter([[pipe.preprocess(text) for text in TEXTS]])
    scorer = RecordingScorer(pipe.scorer)
    assert_same_scores([document for run in scored_passes(groups, scorer) for document in run], pipe)
    passes, ahead = len(scorer.launched), pass_queues.PASSES_AHEAD
    assert passes > ahead + 1
    assert scorer.steps == ["launch"] * ahead + ["launch", "wait"] * (passes - ahead) + ["wait"] * ahead


def test_what_a_group_leaves_over_shares_a_pass_with_the_next_group(pipe):
    groups = [[pipe.preprocess(text) for text in TEXTS[start : start + 4]] for start in range(0, 12, 4)]
    pipe.scorer.token_budget = 3 * max(document.budget_nodes for group in groups for document in group)
    scorer = RecordingScorer(pipe.scorer)
    passes = PassQueue(scorer)
    found = [run for group in groups for run in passes.add(group)]
    assert passes.pending
    found += passes.finish()
    assert not passes.pending
    assert_same_scores([document for run in found for document in run], pipe)
    alone = [run for group in groups for run in documents_by_pass(group, pipe.scorer.token_budget)]
    assert len(scorer.launched) < len(alone)
    assert [document for run in scorer.launched for document in run] == [
        document for group in groups for document in group
    ]


def test_with_an_idle_device_a_pass_does_not_wait_to_be_filled(pipe):
    scorer = RecordingScorer(pipe.scorer)
    passes = PassQueue(scorer)
    assert list(passes.add([pipe.preprocess(TEXTS[0])])) == []
    assert len(scorer.launched) == 1
    assert_same_scores([document for run in passes.advance() for document in run], pipe, TEXTS[:1])


def test_results_before_a_document_that_cannot_be_scored_are_not_lost(pipe):
    groups = iter([[pipe.preprocess(text) for text in TEXTS]])
    bad = TEXTS[7]
    scorer = RecordingScorer(pipe.scorer, lambda run: any(document.document.text == bad for document in run))
    found = []
    with pytest.raises(ValueError, match="no such pass"):
        found.extend(document for run in scored_passes(groups, scorer) for document in run)
    assert_same_scores(found, pipe, TEXTS[:7])


def test_a_stage_that_fails_runs_item_by_item_up_to_the_one_that_fails():
    def stage(items):
        if 5 in items:
            raise ValueError("five")
        return [item * 2 for item in items]

    assert list(in_parts_on_failure(stage, [1, 2])) == [([1, 2], [2, 4])]
    found = []
    with pytest.raises(ValueError, match="five"):
        found.extend(in_parts_on_failure(stage, [3, 4, 5, 6]))
    assert found == [([3], [6]), ([4], [8])]


def test_runs_are_consecutive_and_fit_the_budget_but_for_single_items():
    assert list(packed_runs([3, 4, 9, 1, 1, 5], 7)) == [range(0, 2), range(2, 3), range(3, 6)]
    assert list(packed_runs([], 7)) == []


def test_results_do_not_wait_for_a_slow_source(pipe, monkeypatch):
    monkeypatch.setattr(streaming, "DOCUMENTS_AT_ONCE", 1)
    progress = threading.Condition()
    given, found, end = [], [], time.monotonic() + 20

    def source():
        for text in TEXTS[:3]:
            with progress:  # at most one document is read beyond the last result
                in_time = progress.wait_for(lambda: len(found) >= len(given) - 1, timeout=end - time.monotonic())
            assert in_time, "results wait for documents that have not come"
            given.append(text)
            yield text

    for entities in pipe(source()):
        with progress:
            found.append(entities)
            progress.notify_all()
    assert len(found) == 3


def test_an_interruption_does_not_wait_for_an_encoding_that_never_ends(pipe, monkeypatch):
    started, never = threading.Event(), threading.Event()

    def groups():
        started.set()
        never.wait()
        yield []

    class Interrupted(PassQueue):
        @property
        def pending(self):
            started.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "PassQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(scored_passes(groups(), pipe.scorer))
    never.set()


def test_a_stream_that_is_closed_reads_no_further(pipe):
    threads = threading.active_count()
    stream = iter(pipe(text for text in TEXTS * 100))
    next(stream)
    assert threading.active_count() > threads
    stream.close()
    assert threading.active_count() == threads


def test_copies_to_the_device_keep_values_and_shapes():
    given = [torch.arange(6, dtype=torch.int32).reshape(2, 3), torch.tensor([7]), torch.empty(0, dtype=torch.int64)]
    sent = copy_to_device(given, torch.device("cpu"))
    assert [tensor.dtype for tensor in sent] == [torch.int64] * 3
    assert [tensor.tolist() for tensor in sent] == [tensor.tolist() for tensor in given]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, np.float32), (torch.float32, np.float32), (torch.float64, np.float64)],
    ids=str,
)
def test_copies_to_the_host_are_float32_or_float64(given, expected):
    found = HostCopy(torch.tensor([[0.5, -2.0]], dtype=given)).array()
    assert found.dtype == expected
    assert found.tolist() == [[0.5, -2.0]]


def test_compiling_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="needs a GPU"):
        tiny_pipeline(compile=True)
