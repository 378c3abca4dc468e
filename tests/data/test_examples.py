import json
import sys
from itertools import pairwise

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.data.tag_schemes import tags_to_entities

WORDS = ["Steve", "Jobs", "left", "Apple", "Rome"]
GOLD = ((0, 2, "PER"), (3, 4, "ORG"), (4, 5, "LOC"))


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- tags

SCHEMES = {
    "IOB2": "B-PER I-PER O B-ORG B-LOC",
    "IOB1": "I-PER I-PER O I-ORG I-LOC",
    "BIOES": "B-PER E-PER O S-ORG S-LOC",
    "BILOU": "B-PER L-PER O U-ORG U-LOC",
}


@pytest.mark.parametrize("tags", SCHEMES.values(), ids=SCHEMES.keys())
def test_every_scheme_marks_the_same_entities(tags):
    assert tags_to_entities(tags.split()) == list(GOLD)


def test_neighbours_of_one_label_are_kept_apart():
    assert tags_to_entities(["B-X", "B-X", "I-X"]) == [(0, 1, "X"), (1, 3, "X")]
    assert tags_to_entities(["I-X", "I-X", "B-X"]) == [(0, 2, "X"), (2, 3, "X")]  # IOB1
    assert tags_to_entities(["S-X", "I-X", "E-X", "I-X"]) == [(0, 1, "X"), (1, 3, "X"), (3, 4, "X")]
    assert tags_to_entities(["B-X", "I-X-Y", "O"]) == [(0, 1, "X"), (1, 2, "X-Y")]
    assert tags_to_entities([]) == []


@st.composite
def flat_entities(draw):
    bounds = sorted(draw(st.sets(st.integers(0, 12), max_size=8)))
    kept = [draw(st.sampled_from(["A", "B", None])) for _ in bounds[1:]]
    return [(*pair, label) for pair, label in zip(pairwise(bounds), kept, strict=True) if label]


@given(flat_entities(), st.sampled_from(["IOB2", "BIOES"]))
def test_entities_survive_being_written_as_tags(entities, scheme):
    tags = ["O"] * 12
    for start, end, label in entities:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        if scheme == "BIOES":
            tags[end - 1] = f"{'S' if end - start == 1 else 'E'}-{label}"
    assert tags_to_entities(tags) == entities


@pytest.mark.parametrize("tag", ["PER", "B-", "X-PER", "-PER", "", "BPER", "BI-PER", 3, None])
def test_tags_that_do_not_parse_are_refused(tag):
    with pytest.raises(ValueError, match="does not parse"):
        tags_to_entities(["O", tag])


# ---------------------------------------------------------------- sources


def conll(path):
    lines = [f"{word} X {tag}" for word, tag in zip(WORDS, SCHEMES["IOB2"].split(), strict=True)]
    path.write_text("\n".join(["-DOCSTART- -X- O", "", *lines, "", "", "Rome X B-LOC"]))
    return path


@pytest.fixture
def saved():
    names = ["O", "B-PER", "I-PER", "B-ORG", "B-LOC"]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    rows = [{"id": "0", "tokens": WORDS, "ner_tags": [1, 2, 0, 3, 4]}]
    return datasets.Dataset.from_list(rows, features)


def test_jsonl_of_words_and_of_texts(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"tokens": WORDS, "entities": [[0, 2, "PER"], [3, 4, "ORG"], [4, 5, "LOC"], [3, 4, "ORG"]], "doc": 7},
        {"text": "In Rome", "entities": [{"start": 3, "end": 7, "entity_group": "LOC"}], "partial": True},
    )
    assert load_examples(path) == [Example(WORDS, GOLD, "7"), Example("In Rome", ((3, 7, "LOC"),), partial=True)]
    assert load_examples(path, limit=1, partial=True) == [Example(WORDS, GOLD, "7", partial=True)]


def test_conll_files_number_their_documents(tmp_path):
    expected = [Example(WORDS, GOLD, "1"), Example(["Rome"], ((0, 1, "LOC"),), "1")]
    assert load_examples(conll(tmp_path / "a.conll")) == expected
    assert load_examples(conll(tmp_path / "a.txt")) == expected


def test_json_list(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"words": WORDS, "tags": SCHEMES["IOB1"].split()}]))
    assert load_examples(tmp_path / "a.json") == [Example(WORDS, GOLD)]


def test_class_numbers_are_read_by_their_names(tmp_path, saved):
    saved.to_parquet(tmp_path / "a.parquet")
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"validation": saved}).save_to_disk(tmp_path / "many")
    for source, split in (("a.parquet", None), ("one", None), ("many", "validation"), ("many", "dev")):
        assert load_examples(tmp_path / source, split) == [Example(WORDS, GOLD)]
    hidden = saved.map(lambda row: {"ner_tags": [-1] * len(row["tokens"])})
    hidden.save_to_disk(tmp_path / "hidden")
    with pytest.raises(ValueError, match="not labelled"):
        load_examples(tmp_path / "hidden")


def test_a_folder_has_a_file_a_split(tmp_path):
    write_jsonl(tmp_path / "valid.jsonl", {"text": "a", "entities": []})
    assert load_examples(tmp_path, "dev")[0].content == "a"
    for split in (None, "test", "train"):
        with pytest.raises(ValueError, match=r"\['valid'\]"):
            load_examples(tmp_path, split)


def test_hub_ids_go_to_datasets(monkeypatch, saved):
    asked = []
    answer = datasets.DatasetDict({"test": saved})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: asked.append((name, revision)) or answer)
    assert load_examples("someone/set", "test") == load_examples("conll2003", "test") == [Example(WORDS, GOLD)]
    assert asked[0] == ("someone/set", None)
    assert asked[1][1] == "refs/convert/parquet"


def test_columns_may_be_named(tmp_path):
    row = {"tokens": ["x"], "ner_tags": ["O"], "t": "In Rome", "w": WORDS, "g": SCHEMES["IOB2"].split(), "e": []}
    path = write_jsonl(tmp_path / "a.jsonl", row)
    assert load_examples(path, tokens_column="w", tags_column="g") == [Example(WORDS, GOLD)]
    assert load_examples(path, text_column="t", entities_column="e") == [Example("In Rome", ())]


ROWS = {
    "no content": ({"entities": []}, "no column tokens or words or text"),
    "no labels": ({"tokens": ["a"]}, "no column entities"),
    "numbers": ({"tokens": ["a"], "ner_tags": [3]}, "does not parse"),
    "tags of a text": ({"text": "a", "tags": ["O"]}, "tags need a list"),
    "too few tags": ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags"),
    "beyond the end": ({"text": "abc", "entities": [[0, 4, "X"]]}, "outside its example"),
    "empty span": ({"text": "abc", "entities": [[1, 1, "X"]]}, "is empty"),
    "no label": ({"text": "abc", "entities": [[0, 1, None]]}, "an entity must be"),
    "float": ({"text": "abc", "entities": [[0, 1.0, "X"]]}, "an entity must be"),
    "empty word": ({"tokens": ["a", ""], "entities": []}, "not empty"),
    "text as words": ({"tokens": "a b", "entities": []}, "list of words"),
    "no object": ([1], "must be an object"),
}


@pytest.mark.parametrize(("row", "message"), ROWS.values(), ids=ROWS.keys())
def test_broken_rows_are_refused_by_line(tmp_path, row, message):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "fine", "entities": []}, row)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2.*{message}"):
        load_examples(path)


def test_sources_that_cannot_be_read_are_refused(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", {"text": "a", "entities": []})
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.xml").write_text("")
    (tmp_path / "a.conll").write_text("word\n")
    cases = {
        (good, "test"): "one file",
        (tmp_path / "broken.jsonl", None): "line 1 is not JSON",
        (tmp_path / "empty.jsonl", None): "holds no example",
        (tmp_path / "a.xml", None): "must end in one of",
        (tmp_path / "a.conll", None): "line 1: a word and its tag",
    }
    for (source, split), message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_examples(source, split)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_examples(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="no column 'w'"):
        load_examples(good, tokens_column="w")
    with pytest.raises(ValueError, match="limit must be an integer of at least 1"):
        load_examples(good, limit=0)


def test_a_name_that_is_no_file_is_said_to_be_one_of_the_hub_before_datasets_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match="there is no file or folder data/nowhere; a set of that name on the Hub needs"
    ):
        load_examples("data/nowhere", "train")


# ---------------------------------------------------------------- label maps


def test_label_maps_rename_describe_and_leave_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"tokens": WORDS, "entities": [list(entity) for entity in GOLD]})
    given = {"PER": {"label": "person", "description": "a human"}, "ORG": None, "LOC": "place", "OTHER": "person"}
    (tmp_path / "map.json").write_text(json.dumps(given))
    for label_map in (given, tmp_path / "map.json", LabelMap.read(given)):
        example = load_examples(path, label_map=label_map)[0]
        assert example.entities == ((0, 2, "person"), (4, 5, "place"))
    assert LabelMap.read(given).labels == {"person": "a human", "place": None}
    with pytest.raises(ValueError, match="misses 'ORG'"):
        load_examples(path, label_map={"PER": "person", "LOC": "place"})


TWICE = {"A": {"label": "x", "description": "1"}, "B": {"label": "x", "description": "2"}}


@pytest.mark.parametrize(
    "label_map",
    [[], {"A": 1}, {"A": ""}, {"A": {"description": "x"}}, {"A": {"label": "x", "color": "y"}}, {"A": ["x"]}, TWICE],
)
def test_broken_label_maps_are_refused(tmp_path, label_map):
    (tmp_path / "map.json").write_text(json.dumps(label_map))
    with pytest.raises(ValueError, match="label map"):
        LabelMap.read(tmp_path / "map.json")


# ---------------------------------------------------------------- documents


def test_character_entities_lie_on_the_words():
    example = Example(WORDS, GOLD)
    found = [example.text[start:end] for start, end, _ in example.character_entities]
    assert found == ["Steve Jobs", "Apple", "Rome"]
    assert labels_of([example, Example("x", ((0, 1, "A"),))]) == ["A", "LOC", "ORG", "PER"]
