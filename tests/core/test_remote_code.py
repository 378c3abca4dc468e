"""A saved folder with its code loads in a process that has neither the package nor Triton nor a network."""

import json
import os
import subprocess
import sys

import pytest
from tiny_pipelines import LABELS, TEXT, tiny_pipeline

SCRIPT = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("decodner_hf", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, pipeline

folder, labels, text, again = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
models = [c.from_pretrained(folder, trust_remote_code=True)
          for c in (AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification)]
assert len({type(model) for model in models}) == 1, models
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "with-code"
    tiny_pipeline().save_pretrained(directory, include_code=True)
    return directory


def run_clean(folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    arguments = [str(folder), json.dumps(LABELS), TEXT, str(tmp_path / "again")]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )


def test_folder_with_code_gives_the_same_entities_without_the_package(folder, tmp_path):
    expected = tiny_pipeline()(TEXT, candidate_labels=LABELS, threshold=0.0, overlap="all", return_all_scores=True)
    finished = run_clean(folder, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for entities in json.loads(finished.stdout.splitlines()[-1]):
        assert len(entities) == len(expected)
        for remote, local in zip(entities, expected, strict=True):
            assert (remote["start"], remote["end"]) == (local["start"], local["end"])
            assert remote["scores"] == pytest.approx(local["scores"], abs=1e-5)


def test_folder_without_its_code_fails_in_a_clean_process(folder, tmp_path):
    (folder / "decodner" / "forest.py").rename(tmp_path / "elsewhere.py")
    try:
        finished = run_clean(folder, tmp_path)
    finally:
        (tmp_path / "elsewhere.py").rename(folder / "decodner" / "forest.py")
    assert finished.returncode != 0
    assert "forest" in finished.stderr
