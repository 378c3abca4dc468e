import io
import sys

from decodner_hf.corpus.inputs import Meter
from decodner_hf.corpus.progress import ShownProgress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(total, size, documents, seconds, before=0):
    said, clock, meter = [], Clock(), Meter()
    progress = ShownProgress(said.append, clock)
    with progress.over(total, before, meter, size):
        for number in range(documents):
            clock.now += seconds
            meter.before = number + 1
            progress.advance()
    return said


def test_a_log_gets_a_line_every_half_minute():
    assert lines_of(120, 999, 100, 1.0) == [
        "30 of 120 documents, 1.0 a second, 0:01:30 left",
        "60 of 120 documents, 1.0 a second, 0:01:00 left",
        "90 of 120 documents, 1.0 a second, 0:00:30 left",
    ]


def test_what_an_earlier_run_did_does_not_count_as_speed():
    assert lines_of(1000, 999, 31, 1.0, before=500) == ["530 of 1,000 documents, 1.0 a second, 0:07:50 left"]


def test_an_unknown_total_is_estimated_from_the_bytes_read():
    assert lines_of(None, 7200, 40, 1.0) == ["30 of about 7,200 documents, 1.0 a second, 1:59:30 left"]


def test_standard_input_has_no_end_that_is_known():
    assert lines_of(None, None, 40, 1.0) == ["30 documents, 1.0 a second"]


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert lines_of(100, 999, 100, 1.0) == []
    assert "100/100" in terminal.getvalue()
