import json
import shutil
from types import SimpleNamespace

import pytest
from fake_pipes import MODEL
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny_pipeline

from decodner_cli import main as cli
from decodner_cli.loading import load_pipeline


@pytest.fixture
def loaded(load, monkeypatch):
    """Loads as the command does, but the parts of the pipeline come from a function of the model's name."""

    def replace(from_pretrained, pipeline=None):
        load(load_pipeline)
        monkeypatch.setattr("decodner_hf.core.modeling.DecodNERForSpanClassification.from_pretrained", from_pretrained)
        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda _: None)
        if pipeline is not None:
            monkeypatch.setattr("decodner_hf.core.pipeline.DecodNERPipeline", pipeline)

    return replace


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("model"), "cannot load tiny: KeyError: 'model'"),
        (Exception("header\ntoo small"), "cannot load tiny: Exception: header too small"),
        (ValueError("the weights\n  are not finite"), "cannot load tiny: the weights are not finite"),
        (OSError("tiny is no folder\nand no id"), "tiny is no folder and no id"),
    ],
    ids=["key", "any", "value", "names the model"],
)
def test_a_model_that_cannot_be_read_is_one_line(loaded, capsys, error, message):
    def broken(*_, **__):
        raise error

    loaded(broken)
    assert cli.main(["text", *MODEL]) == 1
    assert capsys.readouterr().err == f"decodner: error: {message}\n"


def test_options_reach_the_pipeline(loaded, pipe):
    given = {}
    config = SimpleNamespace(entity_labels=["A"], name_or_path="m")
    pipe.model = SimpleNamespace(config=config)
    loaded(
        lambda model, dtype: given.update(name=model, dtype=dtype) or pipe.model,
        lambda **options: given.update(options) or pipe,
    )

    def asked(*arguments):
        given.clear()
        assert cli.main(["text", "--model", "m", *arguments]) == 0
        return {name: given.get(name) for name in ("name", "candidate_labels", "threshold", "overlap", "dtype")}

    plain = {"name": "m", "candidate_labels": None, "threshold": None, "overlap": None, "dtype": "auto"}
    assert asked() == plain
    assert asked("--threshold", "0", "--overlap", "all") == plain | {"threshold": 0.0, "overlap": "all"}
    assert asked("--label-threshold", "A=b=0.3", "--dtype", "float16") == plain | {
        "threshold": {"A=b": 0.3},
        "dtype": "float16",
    }
    labels = ("--labels", "A", "B=a = thing", "--threshold", "0.2", "--label-threshold", "B=0.7")
    assert asked(*labels) == plain | {
        "candidate_labels": {"A": None, "B": "a = thing"},
        "threshold": {"A": 0.2, "B": 0.7},
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder, include_code=True)
    return folder


def test_a_saved_model_answers_and_nothing_else_is_printed(load, saved, capfd):
    load(load_pipeline)
    arguments = ["Rome", "--model", str(saved), "--labels", "City", "--threshold", "0", "--format", "jsonl"]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr()
    assert [entity["word"] for entity in json.loads(printed.out)["entities"]] == ["Rome"]
    assert printed.err == ""


def test_a_model_of_another_kind_is_refused_in_one_line(load, capsys, tmp_path):
    load(load_pipeline)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert cli.main(["Rome", "--model", str(tmp_path), "--labels", "City"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("decodner: error: ")
    assert str(tmp_path) in error


def test_a_model_without_some_of_its_weights_is_refused_in_one_line(load, saved, capsys, tmp_path):
    load(load_pipeline)
    shutil.copytree(saved, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "q_proj" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    assert cli.main(["Rome", "--model", str(tmp_path / "model"), "--labels", "City"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"decodner: error: {tmp_path / 'model'} lacks weights of LlamaForCausalLM")
    assert "model.layers.0.self_attn.q_proj.weight" in error


def test_what_is_no_model_and_no_device_is_refused_in_one_line(load, saved, capsys, tmp_path):
    load(load_pipeline)
    (tmp_path / "model.txt").write_text("no model")
    cases = {
        ("--model", str(tmp_path / "model.txt")): f"--model {tmp_path / 'model.txt'} is a file: name a folder",
        ("--model", "nobody/nothing-like-it"): "cannot load nobody/nothing-like-it: ",
        ("--model", str(saved), "--device", "gpu"): 'device must be "cpu", "cuda", "cuda:1", "mps" or the like',
    }
    for arguments, message in cases.items():
        assert cli.main(["Rome", *arguments, "--labels", "City"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("decodner: error: ")
        assert message in error
