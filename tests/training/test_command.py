import json

import pytest
import torch
from tiny_pipelines import tiny_native
from tiny_training import LABELS, ROW_TOKENS, run_command
from transformers import pipeline

from decodner_cli import train
from decodner_cli.main import main
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification
from decodner_hf.default_model import default_model


def test_the_command_trains_a_folder_for_the_pipeline(files, capsys):
    code = run_command(
        files, "--dev", str(files / "data.jsonl"), "--labels", "PER=a person", "ORG", "LOC", "--licence", "mit",
        "--save-dtype", "bfloat16", "--max-shard-size", "100KB",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "data.jsonl: 16 examples, 20 gold spans, 100.00% of them candidates" in said
    pipe = pipeline("decodner-ner", model=str(files / "out"))
    assert pipe.model.config.labels == {"PER": "a person", "ORG": None, "LOC": None}
    assert pipe.model.dtype == torch.bfloat16
    assert isinstance(pipe("Apple in Cupertino"), list)
    card = (files / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "| data.jsonl | 16 | 3 |" in card
    assert "- type: f1" in card
    assert len(list((files / "out").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [([], torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)],
    ids=["by default", "asked for"],
)
def test_the_cpu_computes_in_float32_or_as_asked_for(files, asked, dtype):
    seen = set()

    def see(module, _, output):
        if isinstance(module, torch.nn.Linear) and output.shape[1] == ROW_TOKENS:
            seen.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    with hook:
        assert run_command(files, "--max-steps", "1", *asked) == 0
    assert seen == {dtype}


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("asked", [[], ["--gradient-checkpointing"]], ids=["plain", "recomputed"])
def test_layers_are_computed_again_where_asked_for(files, asked):
    calls = []

    def see(module, _, output):
        if isinstance(module, torch.nn.Linear) and output.shape[1] == ROW_TOKENS:
            calls.append(module)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    with hook:
        assert run_command(files, "--max-steps", "1", *asked) == 0
    assert calls
    assert (len(calls) > len(set(calls))) == bool(asked)


def test_the_command_trains_adapters_that_the_pipeline_loads(files, capsys, peft):  # noqa: ARG001
    assert run_command(files, "--lora-rank", "4", "--labels", *LABELS) == 0
    assert "100.00%" in capsys.readouterr().out
    assert not (files / "out" / "model.safetensors").exists()
    pipe = pipeline("decodner-ner", model=str(files / "out"))
    assert list(pipe.model.config.labels) == list(LABELS)
    assert any("lora_" in name for name in pipe.model.state_dict())


def test_the_command_trains_open_types_and_continues_where_it_stopped(files, capsys):
    (files / "notes.json").write_text(json.dumps({"PER": {"description": "a human", "aliases": ["person"]}}))
    opened = ["--open-types", "--type-notes", str(files / "notes.json")]
    assert run_command(files, *opened, "--max-seconds", "0.001") == 3
    *_, stopped, advice = capsys.readouterr().out.splitlines()
    assert "--resume" in advice
    stopped = json.loads(stopped)
    assert run_command(files, *opened, "--resume") == 0
    said = capsys.readouterr().out
    assert "continuing from" in said
    assert "checkpoint-1\n" in said
    finished = json.loads(said.splitlines()[-1])
    assert stopped["steps"] == 1 < finished["steps"]


def test_the_command_trains_with_long_candidates_and_the_continuation_question(files, capsys):
    with open(files / "data.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps({"tokens": ["x"] * 14, "entities": [[1, 13, "PER"]]}) + "\n")
    long = ("--max-span-words", "32", "--continuation", "--max-steps", "1")
    assert run_command(files, *long) == 0
    assert "17 examples, 21 gold spans, 100.00% of them candidates" in capsys.readouterr().out


def test_the_command_writes_over_no_earlier_model(files):
    (files / "out").mkdir()
    assert run_command(files, "--max-steps", "1") == 0
    with pytest.raises(ValueError, match=r"--output .*out exists and is not empty.*--resume"):
        run_command(files, "--max-steps", "1")


def test_the_command_drops_training_examples_that_overlap_evaluation(files, capsys):
    (files / "held.jsonl").write_text(json.dumps({"text": " ".join(map(str, range(12))), "entities": []}) + "\n")
    with open(files / "data.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps({"tokens": [str(number) for number in range(11)], "entities": [[0, 1, "PER"]]}) + "\n")
    assert run_command(files, "--decontaminate", str(files / "held.jsonl")) == 0
    said = capsys.readouterr().out
    assert "1 examples dropped" in said
    assert "data.jsonl: 16 examples" in said
    assert json.loads((files / "out" / "training.json").read_text())["dropped"] == {"data.jsonl": 1}


def test_the_command_trains_on_the_examples_that_windows_hold(files, capsys):
    with open(files / "data.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps({"tokens": ["x" * 2000], "entities": [[0, 1, "PER"]]}) + "\n")
    assert run_command(files, "--max-steps", "1") == 0
    assert "17 examples, 21 gold spans, 95.24% of them candidates; 1 examples with 1 gold" in capsys.readouterr().out


@pytest.mark.parametrize("every", ["0", "1"], ids=["after_training", "while_training"])
def test_a_dev_document_that_cannot_be_scored_costs_the_metrics_and_not_the_model(files, every):
    (files / "dev.jsonl").write_text(json.dumps({"tokens": ["\ud800"], "entities": [[0, 1, "PER"]]}) + "\n")
    with pytest.raises(ValueError, match=r"the dev examples: document 0.*surrogate"):
        run_command(files, "--max-steps", "1", "--evaluate-epochs", every, "--dev", str(files / "dev.jsonl"))
    pipeline("decodner-ner", model=str(files / "out"))("Ana")


def test_labels_of_dev_examples_that_are_not_asked_for_are_refused_before_training(files):
    (files / "dev.jsonl").write_text(json.dumps({"text": "Ana", "entities": [[0, 3, "person"]]}) + "\n")
    with pytest.raises(ValueError, match=r"the dev examples have labels \['person'\] that are not asked for; .*PER"):
        run_command(files, "--dev", str(files / "dev.jsonl"))


def test_a_calibrated_start_gives_its_weights_and_not_its_thresholds(files):
    config = DecodNERConfig(
        entity_labels=["person"], temperature=2.0, threshold=0.1, label_thresholds={"person": 0.9},
        flat_selection="exact",
    )  # fmt: skip
    native = tiny_native(hidden_size=32)
    DecodNERForSpanClassification.from_backbone(native, config).save_pretrained(files / "base")
    assert run_command(files, "--max-steps", "1") == 0
    own, new = DecodNERConfig.from_pretrained(files / "out"), DecodNERConfig()
    assert set(own.labels) == set(LABELS)
    for name in ("temperature", "threshold", "label_thresholds", "flat_selection"):
        assert getattr(own, name) == getattr(new, name) != getattr(config, name)


@pytest.mark.parametrize("again", [[], ["--lora-rank", "2"]], ids=["all weights", "adapters"])
def test_adapters_are_no_start(files, again, peft):  # noqa: ARG001
    assert run_command(files, "--lora-rank", "4", "--max-steps", "1") == 0
    (files / "base").rename(files / "decoder")
    (files / "out").rename(files / "base")
    adapter = files / "base" / "adapter_config.json"
    values = json.loads(adapter.read_text()) | {"base_model_name_or_path": str(files / "decoder")}
    adapter.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"holds adapters on .*decoder: train that one"):
        run_command(files, "--max-steps", "1", *again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "PER"], r"labels \['LOC', 'ORG'\] that are not asked for"),
        (["--row-tokens", "100"], "a multiple of 128"),
        (["--load-in-4bit"], "--load-in-4bit needs --lora-rank"),
        (["--open-types", "--labels", "A"], "--labels are for fixed labels: leave them out with --open-types"),
        (["--keep-best"], "--keep-best needs --dev"),
        (["--sources", "x.json"], "--train or else --sources"),
        (["--max-steps", "0"], "--max-steps must be an integer of at least 1, not 0"),
        (["--max-seconds", "0"], "--max-seconds must be above 0"),
        (["--warmup", "2"], "--warmup must be a number from 0 to 1, not 2.0"),
    ],
    ids=["label", "row-tokens", "4bit", "open-labels", "keep-best", "two-sources", "steps", "seconds", "warmup"],
)
def test_wrong_options_are_named(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_command(files, *arguments)


def test_a_model_folder_that_is_not_there_is_named(files, capsys):
    arguments = ["train", "--model", "./nowhere", "--output", str(files / "out"), "--train", str(files / "data.jsonl")]
    assert main(arguments) == 1
    assert "there is no folder ./nowhere." in capsys.readouterr().err


def test_without_a_model_training_starts_from_the_packages_own(monkeypatch, tmp_path):
    started = []

    def stop(options):
        started.append(options.model)
        raise ValueError("seen enough")

    monkeypatch.delenv("DECODNER_MODEL", raising=False)
    monkeypatch.setattr(train, "training_options", stop)
    assert main(["train", "--train", "any", "--output", str(tmp_path / "out")]) == 1
    assert started == [str(default_model())]
