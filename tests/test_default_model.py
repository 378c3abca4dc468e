"""The model that comes with the package: what it finds, how well, and that its files are fit to ship."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import pipeline

import decodner_hf
from decodner_cli import main as cli
from decodner_hf import DecodNERForSpanClassification
from decodner_hf import default_model as default
from decodner_hf.data.examples import labels_of, load_examples
from decodner_hf.evaluation.labelled_scoring import evaluate

SENTENCES = Path(__file__).parent / "support" / "default_sentences.jsonl"
SHOWN = "Apple was founded by Steve Jobs in Cupertino."
GOLDEN = [("organization", "Apple", 0, 5), ("person", "Steve Jobs", 21, 31), ("location", "Cupertino", 35, 44)]
DEFAULT_LABELS = {"person", "organization", "location", "date", "nationality"}  # and others
LOWEST_F1 = 0.88  # micro, on the 40 sentences
LARGEST_SHARD = 15_000_000  # bytes
LARGEST_FOLDER = 60_000_000
MOST_PARAMETERS = 30_000_000


@pytest.fixture(scope="module")
def ner():
    return pipeline("decodner-ner")


@pytest.fixture(scope="module")
def folder():
    return default.default_model()


def found(entities):
    return [(entity["entity_group"], entity["word"], entity["start"], entity["end"]) for entity in entities]


def test_a_pipeline_without_arguments_finds_the_entities_that_the_readme_shows(ner):
    assert found(ner(SHOWN)) == GOLDEN


def test_the_command_finds_the_same_without_a_model_a_cache_or_a_network(tmp_path):
    others = ("DECODNER_MODEL", "HF_HUB_CACHE", "TRANSFORMERS_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    root = str(Path(decodner_hf.__file__).parents[1])
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    run = subprocess.run(
        [sys.executable, "-m", "decodner_cli", SHOWN, "--format", "jsonl", "--device", "cpu"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert found(json.loads(run.stdout)["entities"]) == GOLDEN


def test_a_pipeline_without_arguments_prints_nothing_of_its_own(tmp_path):
    code = f"from transformers import pipeline; import decodner_hf; pipeline('decodner-ner')({SHOWN!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(decodner_hf.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_its_own_labels_are_asked_for_unless_others_are_named(ner):
    assert set(ner.model.config.labels) >= DEFAULT_LABELS
    assert found(ner(SHOWN, candidate_labels=["human being"], threshold=0.0)[:1])[0][0] == "human being"


def test_it_reaches_its_f1_on_sentences_of_many_kinds(ner):
    examples = load_examples(SENTENCES)
    assert len(examples) == 40
    result = evaluate(ner, examples, candidate_labels=sorted(labels_of(examples)))
    assert result["f1"] >= LOWEST_F1, result["per_label"]


def test_shards_are_small_and_hold_bfloat16(folder):
    shards = sorted(folder.glob("*.safetensors"))
    assert shards
    assert max(shard.stat().st_size for shard in shards) <= LARGEST_SHARD
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST_FOLDER
    parameters = 0
    for shard in shards:
        with safe_open(shard, "pt") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 - not a dict
        assert {tensor.get_dtype() for tensor in slices} == {"BF16"}, shard.name
        parameters += sum(prod(tensor.get_shape()) for tensor in slices)
    assert parameters <= MOST_PARAMETERS


def test_it_loads_in_float32_unless_another_dtype_is_asked_for(ner, folder):
    assert ner.model.dtype == torch.float32
    half = DecodNERForSpanClassification.from_pretrained(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_the_card_says_what_the_hub_and_the_law_want_to_know(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-sa-4.0"
    assert card.data.language in ("en", ["en"])
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "token-classification"
    assert {"decodner", "named-entity-recognition"} <= set(card.data.tags)
    assert (folder / "LICENSE").read_text(encoding="utf-8").strip()
    assert (folder / "ATTRIBUTION.md").read_text(encoding="utf-8").strip()


def test_the_folder_holds_what_is_needed_and_nothing_of_the_machine_it_was_made_on(folder):
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    for name in names:
        if name.endswith((".json", ".md")) and name != "tokenizer.json":
            text = (folder / name).read_text(encoding="utf-8")
            assert not [part for part in ("/tmp/", "/work/", "/home/", "/root/") if part in text], name


def test_an_installation_without_it_says_so_when_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(default, "FOLDER", Path("nowhere"))
    with pytest.raises(FileNotFoundError, match="this installation has no default model"):
        default.default_model()
    monkeypatch.delenv("DECODNER_MODEL", raising=False)
    assert cli.main([SHOWN]) == 1
    assert "this installation has no default model" in capsys.readouterr().err
