import pytest
from fake_pipes import FakePipe, entities_of

from decodner_hf.corpus.records import Record
from decodner_hf.corpus.streaming import annotate_records


def records(*texts):
    return iter([Record(str(index), text, {}) for index, text in enumerate(texts)])


@pytest.mark.parametrize("broken_pipe", [lambda _: iter([]), lambda texts: (next(texts) and [] for _ in range(1))])
def test_a_pipeline_that_loses_a_document_is_an_error(broken_pipe):
    with pytest.raises(RuntimeError, match="result for every document"):
        list(annotate_records(broken_pipe, records("a", "b")))


def test_a_failure_to_read_is_raised_after_what_was_read():
    def failing():
        yield from records("Rome", "BAD")
        raise OSError("disk")

    results = []
    with pytest.raises(OSError, match="disk"):
        results.extend(annotate_records(FakePipe(), failing()))
    seen = annotate_records(FakePipe(), failing())
    assert [next(seen)[1], type(next(seen)[1])] == [entities_of("Rome"), ValueError]


def test_a_failure_to_read_survives_a_refusal_that_comes_before_it():
    def failing():
        yield from records("Rome", "BAD", "Oslo")
        raise OSError("disk")

    seen = []
    with pytest.raises(OSError, match="disk"):
        seen.extend(record.text for record, _ in annotate_records(FakePipe(), failing()))
    assert seen == ["Rome", "BAD", "Oslo"]


def test_only_the_first_document_without_a_result_is_repeated_alone():
    alone = []

    class Counting(FakePipe):
        def __call__(self, inputs):
            if isinstance(inputs, str):
                alone.append(inputs)
            return super().__call__(inputs)

    texts = [*"ABCDEFGH", "BAD", *"IJKLMNOP", "BAD", "Q"]
    outcomes = list(annotate_records(Counting(), records(*texts)))
    assert [record.text for record, _ in outcomes] == texts
    assert [isinstance(outcome, ValueError) for _, outcome in outcomes] == ["BAD" in text for text in texts]
    assert len(alone) < 7
