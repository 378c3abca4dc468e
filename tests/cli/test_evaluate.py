import json

import pytest
from tiny_pipelines import tiny_pipeline

from decodner_cli import evaluate
from decodner_cli import main as cli
from decodner_cli.loading import load_pipeline
from decodner_hf.data.examples import load_examples
from decodner_hf.evaluation.measuring import measure

ROWS = [
    {"tokens": ["Apple", "and", "Ann"], "entities": [[0, 1, "A"], [2, 3, "B"]], "doc": "1"},
    {"tokens": ["Bob", "left"], "entities": [[0, 1, "B"]], "doc": "1"},
    {"tokens": ["Rome"], "entities": [], "doc": "2"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    pipe = tiny_pipeline(candidate_labels=["A", "B"])
    pipe.model.config.entity_labels = {"A": None, "B": None}
    pipe.save_pretrained(folder / "model")
    pipe.model.backbone.save_pretrained(folder / "plain")
    pipe.tokenizer.save_pretrained(folder / "plain")
    (folder / "data").mkdir()
    for split in ("test", "dev"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder


@pytest.fixture(autouse=True)
def real_models(load):
    load(load_pipeline)


def call(folder, *arguments, data="data"):
    common = [str(folder / data), "--model", str(folder / "model"), "--device", "cpu"]
    return cli.main(["evaluate", *common, *map(str, arguments)])


def test_a_folder_is_measured_as_the_package_measures(folder, capsys):
    out = folder / "out.json"
    assert call(folder, "--threshold", "0.2", "--resamples", "20", "--seed", "3", "--out", out) == 0
    result = json.loads(out.read_text())
    pipe = tiny_pipeline(model=load_pipeline_of(folder).model)
    examples = load_examples(folder / "data", "test")
    expected = measure(pipe, examples, name="data", resamples=20, seed=3, choices={"threshold": 0.2})
    assert result["scores"] == json.loads(json.dumps(expected["scores"]))
    assert (result["dataset"], result["split"], result["num_examples"]) == ("data", "test", 3)
    assert f"{100 * result['scores']['f1']:6.2f}" in capsys.readouterr().out


def load_pipeline_of(folder):
    parser = cli.command_parser()
    options = parser.parse_args(["evaluate", "x", "--model", str(folder / "model"), "--device", "cpu"])
    options.check(options, parser.error)
    return load_pipeline(options)


def test_json_is_printed_where_it_is_asked_for(folder, capsys):
    assert call(folder, "--format", "json", "--context", "document", data="data") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["context"] == "document"
    assert result["calibration"] is None


def test_calibration_is_fitted_used_and_saved(folder, capsys):
    before = json.loads((folder / "model" / "config.json").read_text())
    assert call(folder, "--calibrate-on", "dev", "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "model" / "config.json").read_text()) == before
    assert result["settings"]["temperature"] == result["calibration"]["temperature"] != before.get("temperature", 1.0)
    assert call(folder, "--calibrate-on", "dev", "--save") == 0
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["temperature"] == result["calibration"]["temperature"]
    capsys.readouterr()
    assert call(folder, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["scores"] == result["scores"]
    (folder / "model" / "config.json").write_text(json.dumps(before))


def test_labels_come_from_a_map_or_from_the_data(folder, capsys):
    (folder / "map.json").write_text('{"A": {"label": "company", "description": "a business"}, "B": null}')
    assert call(folder, "--label-map", folder / "map.json", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["settings"]["labels"] == ["company"]
    plain = ["--model", folder / "plain", "--labels-from-data", "--format", "json"]
    assert call(folder, *plain) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["labels"] == ["A", "B"]


WRONG = {
    "save alone": ["--save"],
    "two sources of labels": ["--labels", "A", "--labels-from-data"],
    "threshold fitted and given": ["--calibrate-on", "dev", "--threshold", "0.5"],
    "selection fitted and given": ["--calibrate-on", "dev", "--selection", "exact"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_usage_is_refused(folder, arguments):
    assert call(folder, *arguments) == 2


REFUSED = {
    "test split": (["--calibrate-on", "test"], "tune on the data that is evaluated"),
    "its own split by another name": (["--split", "dev", "--calibrate-on", "valid"], "tune on the data"),
    "plain decoder": (["--model", "{folder}/plain", "--labels-from-data", "--calibrate-on", "dev", "--save"], "plain"),
    "no folder for the output": (["--out", "{folder}/nowhere/out.json"], "there is no folder"),
    "no such split": (["--split", "train"], "there is no split 'train'"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_measured_is_one_line(folder, capsys, arguments, message):
    assert call(folder, *(argument.replace("{folder}", str(folder)) for argument in arguments)) == 1
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_labelled_data_is_named(folder, capsys):
    (folder / "odd.csv").write_text("text\nRome\n")
    assert call(folder, data="odd.csv") == 1
    assert "cannot read 'odd.csv'" in capsys.readouterr().err
    assert call(folder, data="missing.jsonl") == 1
    assert "there is no file or folder" in capsys.readouterr().err


def test_formats_are_those_of_the_package():
    from decodner_hf.core.configuration import FLAT_SELECTIONS

    assert tuple(FLAT_SELECTIONS) == evaluate.SELECTIONS
