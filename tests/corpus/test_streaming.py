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
