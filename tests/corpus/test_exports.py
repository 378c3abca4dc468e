import pytest

from decodner_hf.corpus import to_displacy, to_label_studio

TEXT = "\U0001f642 New York's Ann <b>."


def entity(label, start, end, score=0.5):
    return {"entity_group": label, "score": score, "word": TEXT[start:end], "start": start, "end": end}


FLAT = [entity("person", 13, 16, 0.25), entity("place", 2, 10, 0.75)]
NESTED = [entity("place", 2, 10), entity("city", 6, 10)]


def test_displacy_gets_entities_in_order():
    assert to_displacy(TEXT, FLAT, title="a") == {
        "text": TEXT,
        "title": "a",
        "ents": [{"start": 2, "end": 10, "label": "place"}, {"start": 13, "end": 16, "label": "person"}],
    }


def test_displacy_shows_overlaps_by_words_only():
    with pytest.raises(ValueError, match=r"overlap.*style='span'"):
        to_displacy(TEXT, NESTED)
    document = to_displacy(TEXT, NESTED, style="span")
    words = [document["tokens"][s["start_token"] : s["end_token"]] for s in document["spans"]]
    assert words == [["New", "York"], ["York"]]
    with pytest.raises(ValueError, match="must be 'ent' or 'span'"):
        to_displacy(TEXT, NESTED, style="dep")


def test_displacy_renders_both_styles():
    displacy = pytest.importorskip("spacy").displacy
    flat = displacy.render(to_displacy(TEXT, FLAT), style="ent", manual=True, jupyter=False)
    nested = displacy.render(to_displacy(TEXT, NESTED, style="span"), style="span", manual=True, jupyter=False)
    assert "New York" in flat
    assert "person" in flat
    assert "&lt;b&gt;" in flat
    assert "city" in nested


def test_label_studio_gets_a_task_with_a_prediction():
    task = to_label_studio(TEXT, FLAT, model_version="m", data={"id": 7})
    assert task["data"] == {"text": TEXT, "id": 7}
    prediction = task["predictions"][0]
    assert (prediction["model_version"], prediction["score"]) == ("m", 0.25)
    first, second = prediction["result"]
    assert first["value"] == {"start": 2, "end": 10, "text": "New York", "labels": ["place"]}
    assert (first["from_name"], first["to_name"], first["type"], first["score"]) == ("label", "text", "labels", 0.75)
    assert first["id"] != second["id"]
    assert to_label_studio(TEXT, [])["predictions"][0]["result"] == []


def test_what_is_no_list_of_entities_is_refused():
    rows = [{"entity": "B-person", "word": "Ann", "start": 11, "end": 14, "score": 0.5, "index": 1}]
    for function in (to_displacy, to_label_studio):
        with pytest.raises(ValueError, match="aggregation_strategy='simple'"):
            function(TEXT, rows)
    with pytest.raises(ValueError, match="'text'"):
        to_label_studio(TEXT, [], data={"text": "other"})
