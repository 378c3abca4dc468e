import io
import sys

import pytest
from fake_pipes import FakePipe, describe_fakes

from decodner_cli import annotate, evaluate, tag


@pytest.fixture
def load(monkeypatch):
    """Replaces the loading of pipelines by a function of the options."""

    def replace(load_pipeline):
        for command in (tag, annotate, evaluate):
            monkeypatch.setattr(command, "load_pipeline", load_pipeline)

    return replace


@pytest.fixture(autouse=True)
def pipe(monkeypatch, load):
    fake = FakePipe()
    monkeypatch.delenv("DECODNER_MODEL", raising=False)
    describe_fakes(monkeypatch)
    load(lambda _: fake)
    return fake


@pytest.fixture
def stdin(monkeypatch):
    def feed(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return feed
