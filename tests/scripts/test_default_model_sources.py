"""The sources of a training run: how each is read, and those of the default model."""

import json
from pathlib import Path

import demonyms
import four_types
import pytest
import silver_mentions
import type_notes
from silver.taxonomy import TAXONOMY, Taxonomy
from templates.grammar import Grammar
from tiny_training import parsed
from tokenizers_for_tests import byte_level_single_digits

from decodner_cli.train import training_options
from decodner_hf import PromptTemplate
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.training import TrainingSource
from decodner_hf.training.documents import encode_sources
from decodner_hf.training.options import SOURCE_KEYS
from decodner_hf.training.sources import read_training_data

RECIPE = Path(silver_mentions.__file__).parent  # scripts/default_model
MADE_HERE = (
    "silver",
    "silver_passages",
    "newswire",
    "queries",
    "science",
    "docred",
    "btc",
    "gum_names",
    "multiconer2",
)


def sentences(count):
    return [Example(["Ana", "saw", "Oslo", "."], ((0, 1, "PER"), (2, 3, "LOC")), document="d") for _ in range(count)]


@pytest.mark.parametrize(
    ("context", "documents"),
    [(None, 6), (Context("document", 8), 3), (Context("document", 100), 1), (Context("preceding", 8), 6)],
)
def test_a_source_says_in_which_context_its_sentences_are_read(context, documents):
    source = TrainingSource("tiny", sentences(6), context=context)
    found = encode_sources([source], byte_level_single_digits(), PromptTemplate(), max_span_words=3)
    assert len(found.documents) == documents
    assert sum(int((document.gold > 0).sum()) for document in found.documents) == 12
    assert found.coverage[0].examples == 6


def data_of(folder, entries, *more):
    (folder / "sources.json").write_text(json.dumps(entries))
    rows = [{"tokens": e.content, "entities": e.entities, "doc": e.document} for e in sentences(3)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", "m", "--output", "o", "--open-types", "--sources", str(folder / "sources.json")]
    return read_training_data(training_options(parsed([*command, *more])), print)


def test_the_command_reads_one_set_alone_and_in_passages(tmp_path):
    path = str(tmp_path / "data.jsonl")
    passages = {"path": path, "name": "passages", "context": "document", "context_words": 60, "repeat": 0.5}
    entries = [{"path": path}, passages, {"path": path, "name": "alone", "context": "sentence"}]
    found = [(s.name, s.context, s.repeat) for s in data_of(tmp_path, entries).sources]
    assert found == [("data.jsonl", None, 1.0), ("passages", Context("document", 60), 0.5), ("alone", None, 1.0)]
    found = [source.context for source in data_of(tmp_path, entries, "--context", "preceding").sources]
    assert found == [Context("preceding", 400), Context("document", 60), None]


def test_keys_that_say_nothing_are_errors(tmp_path):
    path = str(tmp_path / "data.jsonl")
    with pytest.raises(ValueError, match=r"no \['contexts'\], only .*'context_words'"):
        data_of(tmp_path, [{"path": path, "contexts": 60}])
    with pytest.raises(ValueError, match="needs a context: document or preceding"):
        data_of(tmp_path, [{"path": path, "context_words": 60}])
    with pytest.raises(ValueError, match="one of document, preceding, not 'page'"):
        data_of(tmp_path, [{"path": path, "context": "page"}])


def test_examples_dropped_of_sources_of_one_name_are_added_up(tmp_path):
    held = {"text": " ".join(map(str, range(12))), "entities": []}
    (tmp_path / "held.jsonl").write_text(json.dumps(held) + "\n")
    entries = []
    for number in range(1, 3):
        (tmp_path / f"{number}").mkdir()
        kept = {"text": "Ana", "entities": [[0, 3, "PER"]]}
        rows = [held] * number + [kept]
        (tmp_path / f"{number}" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append({"path": str(tmp_path / f"{number}" / "train.jsonl")})
    assert data_of(tmp_path, entries, "--decontaminate", str(tmp_path / "held.jsonl")).dropped == {"train.jsonl": 3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Ana", "entities": []}, "no dev example has an entity"),
        ({"text": "Ana", "entities": [[0, 3, "PER"]], "partial": True}, "1 of 1 dev examples are labelled only in"),
    ],
    ids=["empty", "partial"],
)
def test_dev_examples_that_cannot_be_scored_are_refused_before_training(tmp_path, row, message):
    (tmp_path / "dev.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        data_of(tmp_path, [{"path": str(tmp_path / "data.jsonl")}], "--dev", str(tmp_path / "dev.jsonl"))


# ------------------------------------------------------------------ the default model's


def test_demonyms_are_renamed_or_dropped_and_nothing_else(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    rows = [
        {"tokens": ["A", "German", "in", "Rome"], "entities": [[1, 2, "LOC"], [3, 4, "LOC"]], "doc": 4},
        {"tokens": ["He", "speaks", "German", "\u2028"], "entities": [[2, 3, "MISC"]]},
        {"text": "KURDISH Post", "entities": [[0, 7, "LOC"], [0, 12, "ORG"]]},
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "set" / "train.jsonl").write_text(lines, encoding="utf-8")
    command = ["--set", str(tmp_path / "set"), "--output", str(tmp_path / "out.jsonl")]
    assert demonyms.main([*command, "--rename", "LOC=nationality", "MISC="]) == 0
    with (tmp_path / "out.jsonl").open(encoding="utf-8") as out:
        made = [json.loads(line) for line in out]
    assert [row["entities"] for row in made] == [
        [[1, 2, "nationality"], [3, 4, "LOC"]],
        [],
        [[0, 7, "nationality"], [0, 12, "ORG"]],
    ]
    assert made[0]["doc"] == 4
    assert "LOC -2, nationality +2, MISC -1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "place"),
    [
        ("guitarist", "person"),
        ("football club", "organization"),
        ("newspaper", "organization"),
        ("country", "location"),
        ("nationality", "other name"),
        ("sports event", "other name"),
        ("date", None),
        ("cheese", None),
        ("sports score", None),
    ],
)
def test_four_types_hold_every_name(label, place):
    notes = type_notes.join({}, Taxonomy.read(TAXONOMY), [])
    assert four_types.mapped(label, notes) == place


def test_the_map_to_four_types_knows_every_label(tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps({"poet": {"parents": ["person"]}}))
    row = {"text": "Bo 1", "entities": [[0, 2, "poet"], [3, 4, "count"]]}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    command = ["--notes", str(tmp_path / "notes.json"), "--sets", str(tmp_path / "set.jsonl")]
    assert four_types.main([*command, "--output", str(tmp_path / "four.json")]) == 0
    assert json.loads((tmp_path / "four.json").read_text()) == {"poet": "person", "count": None}


def test_the_default_model_s_sources_name_no_set_that_it_is_measured_on():
    entries = json.loads((RECIPE / "sources.json").read_text(encoding="utf-8"))
    assert all(set(entry) <= set(SOURCE_KEYS) and entry["licence"] for entry in entries)
    names = [entry.get("name", Path(entry["path"]).name) for entry in entries]
    assert len(set(names)) == len(names)
    for entry in entries:
        path = Path(entry["path"])
        assert not path.name.startswith(("conll", "wikigold", "crossner", "mit_", "gmb"))
        assert entry.get("split", "train") == "train"
        assert path.parts[0] == "ner" or path.name.removesuffix(".jsonl") in (*MADE_HERE, "wnut17")


@pytest.mark.parametrize("sets", ["sources", "dev_sets"])
def test_the_default_model_s_label_maps_can_be_read(sets):
    entries = json.loads((RECIPE / f"{sets}.json").read_text(encoding="utf-8"))
    maps = [entry["label_map"] for entry in entries if entry.get("label_map", "four_types.json") != "four_types.json"]
    assert maps
    assert all(LabelMap.read(RECIPE.parents[1] / path).labels for path in maps)


def test_every_type_of_the_templates_has_its_parents_among_the_types():
    taxonomy = Taxonomy.read(TAXONOMY)
    notes = json.loads((RECIPE / "types.json").read_text(encoding="utf-8"))
    notes = type_notes.join(notes, taxonomy, [])
    for path in (RECIPE / "templates").glob("*.txt"):
        for kind in Grammar.read(path).kinds.values():
            label = kind.arguments.partition("<")[0].strip()
            assert all(
                parent in notes or parent in taxonomy.types for parent in notes.get(label, {}).get("parents", ())
            )
    assert notes["football club"]["parents"] == ["sports team", "organization"]
