import json

import pytest
from tiny_pipelines import tiny_native
from tiny_training import SENTENCES
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf.core.adapters import MINIMUM_PEFT


@pytest.fixture
def peft():
    """PEFT, in a version that adapters work with."""
    return pytest.importorskip("peft", minversion=MINIMUM_PEFT)


@pytest.fixture
def files(tmp_path):
    """A folder with a tiny decoder in `base`, and sentences in `data.jsonl`."""
    tiny_native(hidden_size=32).save_pretrained(tmp_path / "base")
    byte_level_single_digits().save_pretrained(tmp_path / "base")
    rows = [
        {"tokens": example.content, "entities": [list(entity) for entity in example.entities]}
        for example in SENTENCES
        if not isinstance(example.content, str)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    return tmp_path
