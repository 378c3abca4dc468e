"""A saved folder with its code loads in a process that has neither the package nor Triton nor a network."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hidden_packages import hide_packages
from tiny_pipelines import LABELS, TEXT, tiny_pipeline
from transformers import AutoModel, AutoModelForTokenClassification, pipeline

from decodner_hf import DecodNERForSpanClassification, DecodNERPipeline

SCRIPT = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, pipeline

folder, labels, text, again = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
models = [c.from_pretrained(folder, trust_remote_code=True)
          for c in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification)]
assert type(models[0]) is type(models[1]) and isinstance(models[2], type(models[0])), models
asked = {"candidate_labels": labels, "threshold": 0.0, "overlap": "all", "return_all_scores": True}
named = pipeline("decodner-ner", model=folder, trust_remote_code=True, device="cpu")
found = pipeline(model=folder, trust_remote_code=True, device="cpu")
assert type(named) is type(found)
assert type(named.model) is type(models[0])
named.save_pretrained(again, include_code=True)
twice = pipeline("decodner-ner", model=again, trust_remote_code=True, device="cpu")
assert not [name for name in sys.modules if name.split(".")[0] == "decodner_hf"]
assert "transformers_modules" in type(named).__module__
print(json.dumps([pipe(text, **asked) for pipe in (named, found, twice)]))
"""
ENDPOINT = """
import importlib.util, json, sys

folder, labels, text = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
asked = {"candidate_labels": labels, "threshold": 0.0, "overlap": "all", "return_all_scores": True}
one = endpoint({"inputs": text, "parameters": asked})
several = endpoint({"inputs": [text, {"text": text}], "parameters": asked})
refused = []
for data in ({}, {"inputs": text, "options": {}}, {"inputs": 5}, {"inputs": text, "parameters": {"treshold": 0.1}}):
    try:
        endpoint(data)
    except ValueError as error:
        refused.append(str(error))
assert not [name for name in sys.modules if name.split(".")[0] == "decodner_hf"]
print(json.dumps([[one, *several], refused]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "with-code"
    tiny_pipeline().save_pretrained(directory, include_code=True)
    return directory


def run_clean(name, tmp_path, script=SCRIPT):
    """Runs a script on a folder, or on a Hub id that the cache below `tmp_path` holds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(variable, None)
    arguments = [str(name), json.dumps(LABELS), TEXT, str(tmp_path / "again")]
    return subprocess.run(
        [sys.executable, "-c", hide_packages("decodner_hf", "triton") + script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def put_into_hub_cache(folder, home):
    """Lays a folder out as a download of the repository me/ner; returns its id."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / "models--me--ner"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return "me/ner"


def flatten_code(folder, target):
    """Copies a folder with its code files beside config.json and not in a folder of their own, as they once were."""
    shutil.copytree(folder, target)
    for file in (target / "decodner").glob("*.py"):
        file.rename(target / ("decodner_remote.py" if file.stem == "remote" else file.name))
    shutil.rmtree(target / "decodner")
    config = target / "config.json"
    config.write_text(config.read_text().replace("decodner/remote.", "decodner_remote."))
    return target


@pytest.mark.parametrize("place", ["folder", "hub cache"])
def test_a_model_with_code_gives_the_same_entities_without_the_package(folder, tmp_path, place):
    name = put_into_hub_cache(folder, tmp_path / "hf") if place == "hub cache" else folder
    expected = tiny_pipeline()(TEXT, candidate_labels=LABELS, threshold=0.0, overlap="all", return_all_scores=True)
    finished = run_clean(name, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for entities in json.loads(finished.stdout.splitlines()[-1]):
        assert len(entities) == len(expected)
        for remote, local in zip(entities, expected, strict=True):
            assert (remote["start"], remote["end"]) == (local["start"], local["end"])
            assert remote["scores"] == pytest.approx(local["scores"], abs=1e-5)
    assert (tmp_path / "again" / "decodner" / "remote.py").is_file()
    assert (tmp_path / "again" / "handler.py").read_text() == (folder / "handler.py").read_text()


def test_an_endpoint_answers_with_the_handler_of_the_folder_alone(folder, tmp_path):
    expected = tiny_pipeline()(TEXT, candidate_labels=LABELS, threshold=0.0, overlap="all", return_all_scores=True)
    finished = run_clean(folder, tmp_path, ENDPOINT)
    assert finished.returncode == 0, finished.stderr[-3000:]
    answered, refused = json.loads(finished.stdout.splitlines()[-1])
    assert len(answered) == 3
    for entities in answered:
        assert [(found["start"], found["end"]) for found in entities] == [(e["start"], e["end"]) for e in expected]
        assert entities[0]["scores"] == pytest.approx(expected[0]["scores"], abs=1e-5)
    for message, part in zip(refused, ["not []", "'options'", "given: int", "treshold"], strict=True):
        assert part in message


def test_a_folder_without_code_has_no_handler(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    assert not (tmp_path / "handler.py").exists()


@pytest.mark.parametrize("flat", [False, True], ids=["own folder", "flat"])
def test_code_in_a_checkpoint_is_not_needed_where_the_package_is_imported(folder, tmp_path, flat):
    path = str(flatten_code(folder, tmp_path / "flat") if flat else folder)
    for loader in (DecodNERForSpanClassification, AutoModel, AutoModelForTokenClassification):
        assert isinstance(loader.from_pretrained(path), DecodNERForSpanClassification)
    with pytest.raises(ValueError, match="trust_remote_code"):  # transformers asks for it, whatever is registered
        pipeline("decodner-ner", model=path)
    named = pipeline("decodner-ner", model=path, pipeline_class=DecodNERPipeline, device="cpu")
    assert type(named) is DecodNERPipeline
    asked = {"candidate_labels": LABELS, "threshold": 0.0, "overlap": "all"}
    assert named(TEXT, **asked) == tiny_pipeline()(TEXT, **asked)


def test_folder_without_its_code_fails_in_a_clean_process(folder, tmp_path):
    (folder / "decodner" / "forest.py").rename(tmp_path / "elsewhere.py")
    try:
        finished = run_clean(folder, tmp_path)
    finally:
        (tmp_path / "elsewhere.py").rename(folder / "decodner" / "forest.py")
    assert finished.returncode != 0
    assert "forest" in finished.stderr
