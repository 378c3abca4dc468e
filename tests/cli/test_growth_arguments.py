"""The command line's arguments of growth reach the pipeline."""

import pytest
from fake_pipes import MODEL

from decodner_cli import main as cli
from decodner_cli.loading import load_pipeline


@pytest.fixture
def given(load, pipe, monkeypatch):
    """What the pipeline was made with."""
    seen = {}

    class Config:
        entity_labels, name_or_path = ("A",), "m"

    class Model:
        config = Config

    pipe.model = Model
    load(load_pipeline)
    monkeypatch.setattr(
        "decodner_hf.core.modeling.DecodNERForSpanClassification.from_pretrained", lambda *_, **__: Model
    )
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda _: None)
    monkeypatch.setattr("decodner_hf.core.pipeline.DecodNERPipeline", lambda **options: seen.update(options) or pipe)
    return seen


ASKED = {
    "by default": ([], {}),
    "on": (["--growth"], {"growth": True}),
    "off": (["--no-growth"], {"growth": False}),
    "threshold and width": (
        ["--growth-threshold", "0.2", "--max-span-words", "40"],
        {"growth_threshold": 0.2, "max_span_words": 40},
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), ASKED.values(), ids=ASKED)
def test_tag_passes_them_on(given, arguments, expected):
    assert cli.main(["tag", "text", *MODEL, *arguments]) == 0
    names = ("growth", "growth_threshold", "max_span_words")
    assert {name: given[name] for name in names if name in given} == expected


def test_annotate_passes_them_on(given, tmp_path):
    (tmp_path / "in.txt").write_text("Ann\n")
    arguments = ["--out", str(tmp_path / "out.jsonl"), *MODEL, "--no-growth"]
    assert cli.main(["annotate", str(tmp_path / "in.txt"), *arguments]) == 0
    assert given["growth"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--growth-threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--growth-threshold", "0.5", "--no-growth"], "with --no-growth there is nothing"),
    ],
    ids=["no probability", "without growth"],
)
def test_wrong_arguments_are_named(given, capsys, arguments, message):
    assert cli.main(["tag", "text", *MODEL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not given
