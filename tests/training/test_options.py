from dataclasses import MISSING, fields

import pytest
from tiny_training import LABELS, SENTENCES, parsed
from transformers import pipeline

from decodner_cli.training_arguments import flag_of
from decodner_hf.data.document_context import Context
from decodner_hf.training import OptionError, TrainingOptions, TrainingSource, train
from decodner_hf.training.options import CHOICES


def options(**given):
    return TrainingOptions(**({"model": "m", "output": "o", "train": "data"} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, not 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, not 1.5"),
        ({"lora_rank": True}, "lora_rank must be an integer of at least 1, not True"),
        ({"workers": -1}, "workers must be an integer of at least 0, not -1"),
        ({"row_tokens": 100}, "row_tokens must be a multiple of 128, not 100"),
        ({"warmup": 2}, "warmup must be a number from 0 to 1, not 2"),
        ({"learning_rate": -1.0}, "learning_rate must be a number of at least 0, not -1.0"),
        ({"learning_rate": "3e-4"}, "learning_rate must be a number of at least 0, not '3e-4'"),
        ({"token_noise": 1}, "token_noise must be below 1"),
        ({"loss_divisor": 0.0}, "loss_divisor must be above 0, not 0.0"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, not 'sgd'"),
        ({"context": "page"}, "context must be one of sentence, document, preceding, not 'page'"),
        ({"labels": "PER"}, "labels must be a list, not the string 'PER'"),
        ({"labels": ["A"], "open_types": True}, "leave them out with `open_types`"),
        ({"train": None}, "train or else `sources` must name"),
        ({"sources": "s.json"}, "and not both"),
        ({"keep_best": True}, "keep_best needs `dev`"),
        ({"load_in_4bit": True}, "load_in_4bit needs `lora_rank`"),
    ],
)
def test_options_that_cannot_be_used_are_refused_when_they_are_made(given, message):
    with pytest.raises(OptionError, match=message) as caught:
        options(**given)
    assert str(caught.value) == f"{caught.value.option} {caught.value.problem}"
    assert caught.value.option in TrainingOptions.__dataclass_fields__


REQUIRED = ["--model", "m", "--output", "o"]


def test_the_command_line_has_every_option_and_its_default():
    found = vars(parsed(REQUIRED))
    assert {field.name for field in fields(TrainingOptions) if field.default is MISSING} == {"model", "output"}
    assert found == {"model": "m", "output": "o"} | {
        field.name: field.default for field in fields(TrainingOptions) if field.default is not MISSING
    }


@pytest.mark.parametrize("name", CHOICES)
def test_the_command_line_takes_the_same_choices(name):
    for choice in CHOICES[name]:
        assert getattr(parsed([*REQUIRED, flag_of(name), choice]), name) == choice
    with pytest.raises(SystemExit):
        parsed([*REQUIRED, flag_of(name), "another"])


def test_labels_are_a_list_or_a_mapping_to_descriptions():
    assert options().label_descriptions == {}
    assert options(labels=["B", "A"]).label_descriptions == {"B": None, "A": None}
    assert options(labels={"B": "text"}).label_descriptions == {"B": "text"}


def test_training_takes_examples_and_tells_what_it_did(files):
    said = []
    source = TrainingSource("mine", SENTENCES * 4, LABELS, context=Context("preceding", 5))
    result = train(
        TrainingOptions(
            model=str(files / "base"), output=files / "out", sources=[source], dev=SENTENCES, cpu=True, workers=0,
            row_tokens=512, epochs=2, max_span_words=3, learning_rate=1e-2,
        ),
        report=said.append,
    )  # fmt: skip
    assert result.is_finished
    assert result.steps == result.max_steps > 1
    assert set(result.metrics) == {"precision", "recall", "f1"}
    assert said[0].startswith("mine: 20 examples, 28 gold spans")
    assert list(pipeline("decodner-ner", model=str(result.output)).model.config.labels) == list(LABELS)
