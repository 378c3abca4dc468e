import json
import re
import shutil
from pathlib import Path

import pytest
import quality
import robustness
import run_eval
import zero_shot
from tiny_pipelines import tiny_pipeline

from decodner_hf.data.examples import Example, load_examples
from decodner_hf.data.label_maps import LabelMap

EVAL = Path(__file__).parents[2] / "eval"
WORDS = ["Apple", "was", "founded", "by", "Steve", "Jobs", "in", "Cupertino", "."]
SPANS = ((0, 1), (4, 6), (7, 8))
FOUR_TYPES = ["PER", "ORG", "LOC", "MISC"]


def write_set(folder, splits, labels, documents=False, broken=()):
    folder.mkdir(parents=True)
    for split in splits:
        rows = [
            {
                "tokens": WORDS,
                "entities": [[*span, labels[(number + at) % len(labels)]] for at, span in enumerate(SPANS)],
            }
            | ({"doc": number // 2} if documents else {})
            for number in range(4)
        ]
        text = "\n".join(map(json.dumps, rows))
        (folder / f"{split}.jsonl").write_text("broken" if split in broken else text)


@pytest.fixture
def data(tmp_path):
    def make(broken):
        for name, splits in (("conll2003", ("valid", "test")), ("wikigold", ("test",))):
            write_set(tmp_path / name, splits, FOUR_TYPES, True, broken)
        for name in zero_shot.CROSSNER:
            write_set(tmp_path / name, ("dev", "test"), ["programlang", "person", "misc"], broken=broken)
        for name in zero_shot.MIT:
            write_set(tmp_path / name, ("test",), ["RATINGS_AVERAGE", "YEAR"], broken=broken)
        for name, split in quality.SEEN.items():
            labels = list(LabelMap.read(EVAL / "label_maps" / f"{name}.json").names)[:3]
            write_set(tmp_path / name, {"dev", split}, labels, broken=broken if split == "test" else ())
        return tmp_path

    return make


@pytest.fixture
def pipe(monkeypatch):
    pipe = tiny_pipeline()
    pipe.model.config.threshold = 0.05
    loaded = []
    monkeypatch.setattr(quality, "load_pipeline", lambda options: loaded.append(options) or pipe)
    yield pipe
    assert len(loaded) == 1


def run(data, *extra):
    out = data / "out" / "quality.json"
    assert quality.main(["--model", "M", "--data", str(data), "--out", str(out), *extra]) == 0
    return json.loads(out.read_text())


def test_test_splits_are_measured_as_published_and_dev_splits_are_not_read(data, pipe):
    folder = data(broken=("dev", "valid"))
    rows = run(folder, "--only", "unseen", "seen")["rows"]
    unseen = [row for row in rows if row["table"] == "unseen"]
    assert [(row["name"], row["read"], len(row["labels"])) for row in unseen[:4]] == [
        ("conll2003 test", "sentences", 3),
        ("conll2003 test", "documents", 3),
        ("conll2003 test", "sentences after their context", 3),
        ("conll2003 test with MISC", "sentences", 4),
    ]
    assert [row["name"] for row in unseen if row.get("zero_shot")] == [f"{name} test" for name in zero_shot.SETS]
    assert unseen[0]["labels"] == ["person", "organization", "location"]
    assert unseen[8]["labels"] == ["person", "program language"]
    assert unseen[-1]["labels"] == ["ratings average", "year"]
    assert unseen[0]["scores"]["gold"] == 9
    assert unseen[3]["scores"]["gold"] == 12
    assert unseen[0]["scores"]["predicted"] > 0
    assert unseen[0]["scores"] != unseen[1]["scores"]  # what was read differs
    seen = {row["name"]: row for row in rows if row["table"] == "seen"}
    assert list(seen) == ["wnut17 test", "bc5cdr test", "ncbi_disease test", "multiconer2 dev", "stackoverflow test"]
    assert len(seen["multiconer2 dev"]["labels"]) == 33
    options = run_eval.parse_arguments(["--zero-shot", "--data", str(folder), "--model", "M"])
    benchmark = run_eval.evaluate_set(pipe, *reference(folder, "mit_restaurant", options), "x", "test")
    assert unseen[-1]["scores"] == benchmark["scores"]


def reference(folder, name, options):
    label_map = LabelMap.read(zero_shot.label_phrases(name, ["RATINGS_AVERAGE", "YEAR"]))
    return load_examples(folder / name, "test", label_map=label_map), options, label_map.labels


def test_dev_reads_no_test_split(data, pipe):  # noqa: ARG001
    measured = run(data(broken=("test",)), "--dev")
    names = [row["name"] for row in measured["rows"] if row["table"] != "robustness"]
    assert {name.split()[1] for name in names} == {"dev", "valid"}
    assert sum(bool(row.get("zero_shot")) for row in measured["rows"]) == 5
    kinds = [row["kind"] for row in measured["rows"] if row["table"] == "robustness"]
    assert kinds == ["base", *["name"] * 7, *["order"] * 3, "descriptions", "case", "case", "length"]
    base, *others = [row for row in measured["rows"] if row["table"] == "robustness"]
    assert all(row["scores"]["gold"] == base["scores"]["gold"] == 9 for row in others)
    assert others[-1]["examples"] == 1


def test_sets_that_name_no_documents_are_not_joined_to_some(data, pipe, capsys):  # noqa: ARG001
    folder = data(broken=())
    for name in quality.FOUR_TYPE_SETS:
        shutil.rmtree(folder / name)
        write_set(folder / name, ("valid", "test"), FOUR_TYPES)
    rows = run(folder, "--only", "unseen", "robustness")["rows"]
    assert {row["read"] for row in rows} == {"sentences"}
    assert "length" not in {row.get("kind") for row in rows}
    said = capsys.readouterr().err
    for consequence in ("conll2003 test .* sentences alone", "wikigold test .* sentences alone", "documents are left"):
        assert re.search(consequence, said)


def test_the_models_own_thresholds_decide(data, pipe):
    pipe.model.config.threshold = 1.0
    pipe.model.config.label_thresholds = {"person": 0.0}
    measured = run(data(broken=()), "--only", "unseen", "--dev")
    scores = measured["rows"][0]["scores"]["per_label"]
    assert scores["person"]["predicted"] > 0
    assert scores["location"]["predicted"] == scores["organization"]["predicted"] == 0
    assert measured["settings"]["label_thresholds"] == {"person": 0.0}


# ---------------------------------------------------------------- examples


def named(number, document=None):
    return Example([f"w{number}", "x"], ((0, 1, "person"),), document)


def test_samples_are_whole_documents_evenly_spaced():
    loose = [named(number) for number in range(100)]
    assert [example.content[0] for example in quality.sampled(loose, 3)] == ["w0", "w50", "w99"]
    assert quality.sampled(loose, 1000) == loose
    grouped = [named(number, str(number // 10)) for number in range(100)]
    assert [example.content[0] for example in quality.sampled(grouped, 20)] == [
        f"w{number}" for number in (*range(10), *range(90, 100))
    ]
    assert len(quality.sampled(grouped, 1)) == 10


def test_variants_change_one_thing_and_keep_the_gold_spans():
    example = Example(["Ann", "saw", "Rome"], ((0, 1, "person"), (2, 3, "location")), "1")
    variants = {variant.name: variant for variant in robustness.variants([example])}
    assert len(variants) == 14
    renamed = variants["location → place"]
    assert renamed.labels == {"person": None, "organization": None, "place": None}
    assert renamed.examples[0].entities == ((0, 1, "person"), (2, 3, "place"))
    assert variants["UPPER CASE"].examples[0].content == ["ANN", "SAW", "ROME"]
    assert variants["lower case"].examples[0].content == ["ann", "saw", "rome"]
    assert variants["with descriptions"].labels["person"] == "a named human being"
    orders = [list(variant.labels) for variant in variants.values() if variant.kind == "order"]
    assert len({tuple(order) for order in orders}) == 3
    assert ["person", "organization", "location"] not in orders
    assert all(sorted(order) == ["location", "organization", "person"] for order in orders)
    with pytest.raises(ValueError, match="lists of words"):
        list(robustness.variants([Example("Ann", ())]))


def test_long_documents_hold_whole_documents_and_every_entity():
    examples = [named(number, str(number // 3)) for number in range(20)]  # 6 words a document, the last 4
    long = robustness.long_documents(examples, 10)
    assert [len(example.content) for example in long] == [12, 12, 16]
    assert [example.content[start] for example in long for start, _, _ in example.entities] == [
        f"w{number}" for number in range(20)
    ]
    assert [len(example.content) for example in robustness.long_documents(examples, 1000)] == [40]
    loose = [*examples[:6], *(named(number) for number in range(6, 18))]  # 12 words of documents, 24 of none
    assert [len(example.content) for example in robustness.long_documents(loose, 10)] == [12, 10, 14]


# ---------------------------------------------------------------- tables


def row(table, name, f1, **more):
    scores = {"precision": 0.5, "recall": 0.6, "f1": f1, "f1_interval": [0.1, 0.9],
              "per_label": {"miscellaneous": {"f1": 0.25}}}  # fmt: skip
    return {"table": table, "name": name, "read": "sentences", "labels": ["person"], "scores": scores,
            "coverage": {"candidate": 9, "wider_than_limit": 1}, **more}  # fmt: skip


def test_tables_give_the_plain_average_and_differences(tmp_path, capsys):
    rows = [
        row("unseen", "wikigold test with MISC", 0.7, labels=["person", "miscellaneous"]),
        row("unseen", "crossner_ai test", 0.3, zero_shot=True),
        row("unseen", "mit_restaurant test", 0.4, zero_shot=True),
        row("robustness", "conll2003 test", 0.72, kind="base"),
        row("robustness", "lower case", 0.6, kind="case"),
    ]
    (tmp_path / "q.json").write_text(json.dumps({"settings": {"sample": 5}, "rows": rows}))
    assert quality.main(["--out", str(tmp_path / "q.json"), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "About 5 examples of each set: a quick look, not a result.",
        "| wikigold test with MISC (MISC alone: 25.0) | sentences | 2 | 50.0 | 60.0 | 70.0 | 10.0 to 90.0 | 90.0 |",
        "| **average of the zero-shot sets** (2) |  |  |  |  | **35.0** |  |  |",
        "| base | conll2003 test | 72.0 | +0.0 |",
        "| case | lower case | 60.0 | -12.0 |",
    ):
        assert line in lines
    assert not any("train split" in line for line in lines)


def test_bad_calls_say_what_to_do(tmp_path, capsys, pipe):  # noqa: ARG001
    out = str(tmp_path / "q.json")
    for extra, said in (
        ([], "name a --model"),
        (["--model", "M"], "--data must name"),
        (["--model", "M", "--data", str(tmp_path), "--sample", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            quality.main(["--out", out, *extra])
        assert said in capsys.readouterr().err
    assert quality.main(["--model", "M", "--data", str(tmp_path), "--out", out]) == 1
    assert "quality: error: " in capsys.readouterr().err


def test_label_maps_keep_labels_apart():
    for name in quality.SEEN:
        label_map = LabelMap.read(EVAL / "label_maps" / f"{name}.json")
        assert len(label_map.labels) == len(label_map.names)
