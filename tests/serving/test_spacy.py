"""The spaCy component: entities of the pipeline on spaCy's tokens, none lost, saved with `nlp`."""

import importlib
import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from tiny_pipelines import tiny_pipeline

spacy = pytest.importorskip("spacy", reason="needs the extra spacy")
from spacy.tokens import Doc, DocBin  # noqa: E402

from decodner_hf.serving import spacy_component  # noqa: E402

ROOT = Path(__file__).parents[2]
LABELS = {"Person": "a named human being", "Company": None}
TEXTS = ["Tim Cook met Steve Jobs.", "", "Apple was founded in Cupertino.", "Nobody here", "Zoë saw Lima"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model; every document has entities."""
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


def make(folder, **config):
    nlp = spacy.blank("en")
    nlp.add_pipe("decodner", config={"model": str(folder), "labels": LABELS, "threshold": 0.34, **config})
    return nlp


def bounds(doc):
    return [(entity["start"], entity["end"], entity["entity_group"]) for entity in doc._.decodner]


class Canned:
    """Stands for a pipeline: each text's entities as given."""

    def __init__(self, *spans):
        self.entities = [
            {"entity_group": label, "score": score, "word": "", "start": start, "end": end}
            for start, end, label, score in spans
        ]

    def __call__(self, texts):
        if isinstance(texts, str):
            if "BAD" in texts:
                raise ValueError("BAD is refused.")
            return self.entities
        return (self(text) for text in texts)


def canned(*spans, **config):
    nlp = spacy.blank("en")
    nlp.add_pipe("decodner", config=config)._pipeline = Canned(*spans)
    return nlp


def test_documents_alone_and_in_batches_have_the_pipelines_entities(folder):
    nlp = make(folder)
    pipe = tiny_pipeline(candidate_labels=LABELS, threshold=0.34)
    docs = list(nlp.pipe(TEXTS, batch_size=4))
    assert [doc.text for doc in docs] == TEXTS
    for doc, alone, entities in zip(docs, map(nlp, TEXTS), pipe(TEXTS), strict=True):
        found = [(entity["start"], entity["end"], entity["entity_group"]) for entity in entities]
        assert bounds(doc) == bounds(alone) == found
        assert [entity["score"] for entity in doc._.decodner] == pytest.approx(
            [e["score"] for e in entities], abs=1e-5
        )
        assert [(span.start_char, span.end_char, span.label_) for span in doc.ents] == [
            item for item, entity in zip(found, doc._.decodner, strict=True) if entity["written"]
        ]
        assert all(span._.decodner_score > 0.34 for span in doc.ents)
    assert sum(len(doc.ents) for doc in docs) > 10


def test_an_entity_inside_a_token_is_widened_and_keeps_its_characters():
    doc = canned((1, 6, "Company", 0.9))(" AppleGoogle")
    (span,) = doc.ents
    assert (span.text, span.label_, span._.decodner_score) == ("AppleGoogle", "Company", 0.9)
    (entity,) = doc._.decodner
    assert (entity["start"], entity["end"], entity["start_token"], entity["end_token"]) == (1, 6, 1, 2)


def test_entities_that_share_a_token_are_reported_and_none_is_lost():
    nlp = canned((0, 5, "Company", 0.8), (5, 11, "Company", 0.9), (12, 16, "Place", 0.7))
    with pytest.warns(UserWarning, match=r"no room for .* \(Company\); doc\._\.decodner has them"):
        doc = nlp("AppleGoogle Lima")
    assert [span.text for span in doc.ents] == ["AppleGoogle", "Lima"]
    assert [entity["written"] for entity in doc._.decodner] == [False, True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doc = canned((0, 5, "Company", 0.8), (5, 11, "Company", 0.9), spans_key="all")("AppleGoogle Lima")
    assert [span.text for span in doc.spans["all"]] == ["AppleGoogle"] * 2
    assert doc.spans["all"].attrs["scores"] == [0.8, 0.9]
    assert doc.ents == ()


@pytest.mark.parametrize("overlap", ["nested", "all"])
def test_overlapping_entities_go_to_a_span_group(folder, overlap):
    doc = make(folder, overlap=overlap)("Tim Cook met Steve Jobs.")
    pipe = tiny_pipeline(candidate_labels=LABELS, threshold=0.34, overlap=overlap)
    spans = [(span.start_char, span.end_char, span.label_) for span in doc.spans["decodner"]]
    assert spans == [(e["start"], e["end"], e["entity_group"]) for e in pipe("Tim Cook met Steve Jobs.")]
    assert len(spans) > len(doc.ents) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_entities_of_other_components_stay_unless_they_are_to_be_replaced(overwrite):
    nlp = canned((0, 9, "Person", 0.9), (14, 18, "Place", 0.8), overwrite_ents=overwrite)
    ruler = nlp.add_pipe("entity_ruler", first=True)
    ruler.add_patterns([{"label": "NAME", "pattern": "Ada"}, {"label": "VERB", "pattern": "saw"}])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        doc = nlp("Ada Jones saw Lima")
    found = [(span.text, span.label_) for span in doc.ents]
    kept = [("Ada Jones", "Person")] if overwrite else [("Ada", "NAME")]
    assert found == [*kept, ("saw", "VERB"), ("Lima", "Place")]
    assert len([item for item in said if "no room" in str(item.message)]) == (0 if overwrite else 1)
    assert doc.ents[1]._.decodner_score is None


def test_a_refused_document_is_an_error_or_for_the_error_handler():
    nlp = canned((0, 1, "Person", 0.9))
    with pytest.raises(ValueError, match="BAD is refused"):
        list(nlp.pipe(["a", "BAD", "b"]))
    nlp.set_error_handler(lambda *_: None)
    assert [doc.text for doc in nlp.pipe(["a", "BAD", "b"])] == ["a", "b"]


@pytest.mark.parametrize("way", ["disk", "bytes", "bytes of the component"])
def test_it_is_saved_with_the_pipeline_and_needs_the_first_folder_no_more(folder, tmp_path, way):
    config = {"threshold": {"Person": 0.34, "Company": 0.36}, "options": {"max_span_words": 2}}
    gone = tmp_path / "gone"
    os.rename(make_copy(folder, tmp_path), gone)
    nlp = make(gone, **config)
    before = [bounds(doc) for doc in nlp.pipe(TEXTS)]
    data = nlp.to_bytes() if way == "bytes" else nlp.get_pipe("decodner").to_bytes()
    nlp.to_disk(tmp_path / "saved")
    for path in gone.iterdir():
        path.unlink()
    if way == "disk":
        again = spacy.load(tmp_path / "saved")
    else:
        again = spacy.blank("en").from_config(nlp.config)
        (again if way == "bytes" else again.get_pipe("decodner")).from_bytes(data)
    assert [bounds(doc) for doc in again.pipe(TEXTS)] == before
    assert any(before)


def make_copy(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_without_the_model_only_its_name_is_saved(folder, tmp_path):
    component = make(folder).get_pipe("decodner")
    component.to_disk(tmp_path / "nothing", exclude=["model"])
    assert not (tmp_path / "nothing").exists()
    assert component.from_disk(tmp_path / "nothing") is component


def test_documents_keep_their_scores_when_they_are_saved():
    nlp = canned((0, 8, "Person", 0.75))
    doc = nlp("Ada Ross")
    box = DocBin(store_user_data=True, docs=[doc])
    (again,) = DocBin().from_bytes(box.to_bytes()).get_docs(nlp.vocab)
    assert list(again._.decodner) == doc._.decodner
    assert again.ents[0]._.decodner_score == 0.75
    assert Doc(nlp.vocab, ["x"])._.decodner == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"overlap": "some"}, "overlap must be one of"),
        ({"options": {"spans": []}}, "options must not name spans"),
        ({"options": {"nothing": 1}}, "there is no argument .nothing."),
        ({"model": "./missing"}, "missing"),
        ({"labels": []}, "label"),
        ({"overwrite_ents": "maybe"}, "overwrite_ents"),
    ],
)
def test_bad_configuration_is_an_error_that_names_it(folder, config, message):
    with pytest.raises((ValueError, OSError), match=message):
        make(folder, **config)("Rome")


def test_spacy_finds_it_by_its_name_without_an_import(tmp_path):
    """The entry point that the package declares, in a process that imports spaCy alone."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["spacy_factories"]
    info = tmp_path / "installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n")
    lines = [f"{name} = {target}" for name, target in declared.items()]
    (info / "entry_points.txt").write_text("\n".join(["[spacy_factories]", *lines]))
    code = "import spacy; nlp = spacy.blank('en'); nlp.add_pipe('decodner'); doc = nlp('Steve Jobs founded Apple.')\n"
    code += "print([(span.text, span.label_) for span in doc.ents])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[('Steve Jobs', 'person'), ('Apple', 'organization')]", done.stderr
    assert spacy_component.NAME in declared


def test_without_spacy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.delitem(sys.modules, spacy_component.__name__)
    with pytest.raises(ImportError, match=r"pip install 'decodner-hf\[spacy\]'"):
        importlib.import_module(spacy_component.__name__)
