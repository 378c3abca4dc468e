"""What users of token classification give a pipeline, and documents that are refused among others."""

import copy
import logging

import pytest
import torch
from architectures import tiny_config
from tiny_pipelines import LABELS, TEXT, alike, tiny_native, tiny_pipeline
from tokenizers import processors
from tokenizers_for_tests import byte_level_single_digits
from transformers import LlamaForTokenClassification, TokenClassificationPipeline, pipeline
from transformers.pipelines.token_classification import AggregationStrategy

import decodner_hf
from decodner_hf import DocumentError
from decodner_hf.core.configuration import normalize_labels

EVERYTHING = {"threshold": 0.0, "overlap": "all", "return_all_scores": True}
WORDS = ["Tim", "Cook", "runs", "(Apple)", "."]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(candidate_labels=LABELS)


# ---------------------------------------------------------------- arguments of token classification


@pytest.mark.parametrize("strategy", ["first", "average", "max", AggregationStrategy.MAX])
def test_ways_to_settle_tokens_give_whole_spans_and_say_so_once(strategy, caplog):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    with caplog.at_level(logging.WARNING):
        found = [pipe(TEXT, aggregation_strategy=strategy, threshold=0.2) for _ in range(2)]
    assert found == [pipe(TEXT, aggregation_strategy="simple", threshold=0.2)] * 2
    assert caplog.text.count('gives what "simple" gives') == 1


def test_ignored_labels_are_left_out_after_they_competed(pipe):
    every = pipe(TEXT, threshold=0.2)
    labels = {row["entity_group"] for row in every}
    for label in labels:
        left = [row for row in every if row["entity_group"] != label]
        assert pipe(TEXT, threshold=0.2, ignore_labels=["O", label]) == left
    rows = pipe(TEXT, threshold=0.2, aggregation_strategy="none")
    tag = rows[0]["entity"]
    left = [row for row in rows if row["entity"] != tag]
    assert pipe(TEXT, threshold=0.2, aggregation_strategy="none", ignore_labels=[tag]) == left
    with pytest.raises(ValueError, match=r"ignore_labels=\[\] asks for the words that are in no entity"):
        pipe(TEXT, ignore_labels=[])
    with pytest.raises(ValueError, match="must be a list of labels, not 'Person'"):
        pipe(TEXT, ignore_labels="Person")


@pytest.mark.parametrize("opening", [True, False], ids=["with a beginning token", "without"])
@pytest.mark.parametrize("content", [TEXT, WORDS], ids=["text", "words"])
def test_index_is_the_number_that_transformers_gives_the_first_token_of_the_word(content, opening):
    tokenizer = copy.deepcopy(byte_level_single_digits())
    if opening:
        name = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, tokenizer.eos_token_id)]
        )
    split = {"is_split_into_words": True} if content is WORDS else {}
    config = tiny_config("llama", vocab_size=len(tokenizer), max_position_embeddings=1024, num_labels=2)
    theirs = TokenClassificationPipeline(model=LlamaForTokenClassification(config), tokenizer=tokenizer, device="cpu")
    expected = theirs(content, ignore_labels=[], **split)
    expected = expected[0] if isinstance(expected[0], list) else expected
    numbers = {}
    for row in reversed(expected):
        numbers |= dict.fromkeys(range(row["start"], row["end"]), row["index"])
    rows = tiny_pipeline(tokenizer, candidate_labels=LABELS)(
        content, threshold=0.2, aggregation_strategy="none", **split
    )
    assert rows
    assert [row["index"] for row in rows] == [numbers[row["start"]] for row in rows]
    assert min(row["index"] for row in rows) >= opening
    if split:
        assert all(WORDS[row["start_word"]] == row["word"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset_mapping": [(0, 1)]}, "offset_mapping has no use here: offsets are exact; leave it out"),
        ({"token_budget": 64}, r"token_budget is chosen at construction: pipeline\(\.\.\., token_budget=\.\.\.\)"),
        ({"device": "cpu"}, "device is chosen at construction"),
        ({"candidate_label": ["Person"]}, "no argument 'candidate_label'. Did you mean 'candidate_labels'?"),
        ({"treshold": 0.5}, "Did you mean 'threshold'?"),
        ({"overlap": "flatt"}, "not 'flatt'. Did you mean 'flat'?"),
        ({"threshold": {"Persn": 0.5}}, "Did you mean 'Person'?"),
        ({"threshold": 7}, "^threshold must be a number from 0 to 1, not 7"),
        ({"delimiter": 3}, "delimiter must be a string, not 3"),
        ({"stride": -1}, "stride must be an integer of at least 0"),
        ({"stride": 8, "long_documents": "error"}, 'stride is of windows: it needs long_documents="window"'),
        ({"on_error": "ignore"}, r"on_error must be one of \['raise', 'skip'\]"),
        ({"candidate_labels": ["a\nb"]}, "must not hold a line break"),
        ({"candidate_labels": ["a\u2028"]}, "must not hold a line break"),
        ({"candidate_labels": ["O", "B-PER", "I-PER", "B-LOC"]}, r"name the entity types, \['PER', 'LOC'\]"),
        ({"candidate_labels": ["S-PER", "E-PER"]}, r"name the entity types, \['PER'\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_near_misses_and_what_has_no_meaning_are_named(pipe, arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        pipe(TEXT, **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("labels", [["A", "B", "AB", "O"], ["B-cell", "T-cell"], ["B-cell"], ["E-mail", "B-2 bomber"]])
def test_labels_that_only_look_like_tags_are_labels(labels):
    assert list(normalize_labels(labels)) == labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 7}, "^threshold must be a number from 0 to 1, not 7"),
        ({"device": "gpu"}, '^device must be "cpu", "cuda", "cuda:1", "mps" or the like, not \'gpu\''),
        ({"dtype": "float8x"}, "^dtype must be .*not 'float8x'"),
    ],
    ids=["threshold", "device", "dtype"],
)
def test_what_is_wrong_at_construction_is_said_in_one_line(arguments, message):
    loaded = {"model": tiny_native(), "tokenizer": byte_level_single_digits()}
    with pytest.raises(ValueError, match=message) as refused:
        pipeline("decodner-ner", **({"device": "cpu"} | loaded | arguments))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match='device="cuda:0": this machine has no GPU'):
        pipeline("decodner-ner", model=tiny_native(), tokenizer=byte_level_single_digits(), device="cuda:0")


def test_windows_repeat_what_the_stride_says():
    small = tiny_pipeline(model=tiny_native(max_position_embeddings=256), candidate_labels=["Person"])
    text = "Tim Cook met Steve Jobs near Apple. " * 30
    few, many = (small(text, stride=stride, return_report=True, **EVERYTHING) for stride in (0, 80))
    assert many["report"]["windows"] > few["report"]["windows"] > 1
    assert [row["start"] for row in many["entities"]] == [row["start"] for row in few["entities"]]
    with pytest.raises(ValueError, match=r"stride=9999 leaves nothing new for a window of \d+ tokens"):
        small(text, stride=9999)


# ---------------------------------------------------------------- words


def test_a_list_with_the_flag_is_one_document_unless_all_of_it_are_documents(pipe):
    asked = {"is_split_into_words": True, "threshold": 0.2}
    one = pipe(WORDS, **asked)
    assert pipe(tuple(WORDS), **asked) == one
    assert alike(pipe([WORDS, tuple(WORDS), {"words": WORDS}, {"tokens": WORDS}], **asked), [one] * 4)
    with pytest.raises(DocumentError, match="word 1 is list and not a string"):
        pipe(["Tim", ["Cook"]], **asked)


def test_a_list_of_words_without_the_flag_is_a_list_of_documents_and_that_is_said_once(caplog):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    with caplog.at_level(logging.WARNING):
        assert alike(pipe(["Tim runs", "Apple", "now"]), [pipe("Tim runs"), pipe("Apple"), pipe("now")])
        assert "is_split_into_words" not in caplog.text
        found = [pipe(WORDS, **EVERYTHING) for _ in range(2)]
    assert [[row["scores"] for row in rows] for rows in found[0]] == [
        [pytest.approx(row["scores"], abs=1e-5) for row in pipe(word, **EVERYTHING)] for word in WORDS
    ]
    assert caplog.text.count("pass is_split_into_words=True") == 1


@pytest.mark.parametrize("delimiter", ["", " ", "\n", " / "])
def test_words_are_joined_by_the_delimiter(pipe, delimiter):
    text = delimiter.join(WORDS)
    rows = pipe(WORDS, is_split_into_words=True, delimiter=delimiter, **EVERYTHING)
    assert rows
    for row in rows:
        assert text[row["start"] : row["end"]] == row["word"]
        assert delimiter.join(WORDS[row["start_word"] : row["end_word"]]) == row["word"]
    own = [(row["start"], row["end"]) for row in rows]
    alone = {(row["start"], row["end"]): row["scores"] for row in pipe(text, spans=own, **EVERYTHING)}
    for row in rows:
        assert row["scores"] == pytest.approx(alone[row["start"], row["end"]], abs=1e-5)


# ---------------------------------------------------------------- documents as dicts


def test_further_keys_come_back_with_the_result_or_are_ignored(pipe):
    documents = [{"text": TEXT, "id": 7, "gold": None}, TEXT, {"tokens": WORDS, "id": "x"}]
    plain = [pipe(TEXT), pipe(TEXT), pipe({"words": WORDS})]
    first, second, third = pipe(documents)
    assert alike(first, {"id": 7, "gold": None, "entities": plain[0]})
    assert alike(second, plain[1])
    assert alike(third, {"id": "x", "entities": plain[2]})
    assert alike(pipe(documents, extra_keys="ignore"), plain)
    report = pipe(documents[0], return_report=True)
    assert list(report) == ["id", "gold", "entities", "report"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"candidate_label": ["x"]}, "the key 'candidate_label': did you mean 'candidate_labels'?"),
        ({"spans_": []}, "did you mean 'spans'?"),
        ({"entities": []}, "the key 'entities': the result has one of its own"),
        ({"words": ["x"]}, "has one of 'text', 'words' and 'tokens'"),
    ],
)
def test_keys_that_are_misspelled_or_taken_are_refused(pipe, extra, message):
    with pytest.raises(DocumentError, match=message):
        pipe({"text": TEXT, **extra})
    if "words" not in extra:
        assert pipe({"text": TEXT, **extra}, extra_keys="ignore") == pipe(TEXT)


def test_documents_bring_their_own_thresholds(pipe):
    thresholds = [0.0, None, 0.45, {"Person": 1.0, "Company": 0.0}, 0.45]
    documents = [{"text": TEXT, "threshold": threshold} for threshold in thresholds]
    expected = [pipe(TEXT, threshold=threshold, overlap="all") for threshold in thresholds]
    assert alike(pipe(documents, overlap="all"), expected)
    assert len({len(rows) for rows in expected}) > 2
    own = pipe({"text": TEXT, "threshold": {"Person": 0.0}}, threshold=1.0, overlap="all")
    assert alike(own, pipe(TEXT, threshold={"Person": 0.0, "Company": 1.0}, overlap="all"))
    with pytest.raises(DocumentError, match=r"^document 1: threshold must be a number from 0 to 1, not 2"):
        pipe([TEXT, {"text": TEXT, "threshold": 2}])
    with pytest.raises(DocumentError, match=r"^document 0: threshold names \['Persons'\]"):
        pipe([{"text": TEXT, "threshold": {"Persons": 0.1}}])


def test_a_key_without_a_value_is_as_none_given(pipe):
    given = {"text": TEXT, "candidate_labels": None, "spans": None, "threshold": None}
    assert pipe(given, candidate_labels=["City"]) == pipe(TEXT, candidate_labels=["City"])


# ---------------------------------------------------------------- documents that are refused


REFUSED = {
    "type": None,
    "surrogate": "\ud800",
    "labels": {"text": "x", "candidate_labels": ["None"]},
    "spans": {"text": "Tim", "spans": [(0, 99)]},
    "empty word": {"words": ["Tim", ""]},
}


@pytest.mark.parametrize("stream", [False, True], ids=["list", "stream"])
@pytest.mark.parametrize("size", [1, 5, 300])
def test_refused_documents_stand_in_the_place_of_their_results(pipe, stream, size):
    bad = list(REFUSED.values())
    documents = [bad[number // 3 % len(bad)] if number % 3 == 0 else f"Tim {number}" for number in range(size)]
    documents += [None, "Apple", "\ud800"]
    found = pipe(iter(documents) if stream else documents, on_error="skip", threshold=0.2)
    assert isinstance(found, list) is not stream
    found = list(found)
    good = [number for number, text in enumerate(documents) if str(text).startswith(("Tim ", "Apple"))]
    assert len(found) == len(documents)
    assert [number for number, result in enumerate(found) if isinstance(result, list)] == good
    for number, result in enumerate(found):
        if number in good:
            continue
        assert isinstance(result, DocumentError)
        assert result.number == number
        assert str(result).startswith(f"document {number}: ")
    expected = pipe([documents[number] for number in good], threshold=0.2)
    for number, rows in zip(good, expected, strict=True):
        assert [(row["start"], row["end"]) for row in found[number]] == [(row["start"], row["end"]) for row in rows]


def test_only_documents_are_skipped_and_only_among_others(pipe):
    def documents():
        yield from ["Tim", None]
        raise OSError("the disk is gone")

    stream = iter(pipe(documents(), on_error="skip"))
    assert isinstance(next(stream), list)
    assert isinstance(next(stream), DocumentError)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    with pytest.raises(DocumentError):
        pipe({"text": 3}, on_error="skip")


@pytest.mark.parametrize("arguments", [{"candidate_labels": ["None"]}, {"threshold": {"City": 0.5}}, {"overlap": "x"}])
def test_what_is_wrong_with_a_call_is_no_error_of_a_document(pipe, arguments):
    with pytest.raises(ValueError, match=r"^(?!document)") as refused:
        list(pipe(["Tim", "Apple"], on_error="skip", **arguments))
    assert not isinstance(refused.value, DocumentError)


def test_a_long_run_of_refused_documents_is_given_out_as_it_is_read(pipe):
    read = []

    def documents():
        for number in range(5000):
            read.append(number)
            yield None

    assert isinstance(next(iter(pipe(documents(), on_error="skip"))), DocumentError)
    assert len(read) < 2000


@pytest.mark.parametrize("stage", ["score_forest", "decode"])
def test_documents_that_a_later_stage_refuses_are_skipped_too(monkeypatch, stage):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    bad = torch.from_numpy(pipe.preprocess("Zürich").document.chain_token_ids)
    score = pipe.model.score_forest

    def broken(forest, *args):
        logits = score(forest, *args)
        for document, first in enumerate(forest.cu_nodes.tolist()[:-1]):
            if torch.equal(forest.token_ids[first : first + len(bad)], bad):
                if stage == "score_forest":
                    raise ValueError("not this one")
                logits[slice(*forest.cu_spans[document : document + 2].tolist())] = float("nan")
        return logits

    monkeypatch.setattr(pipe.model, "score_forest", broken)
    found = pipe(["Tim", "Zürich", "Apple"], on_error="skip")
    assert [type(result).__name__ for result in found] == ["list", "DocumentError", "list"]
    assert found[1].number == 1
    with pytest.raises(DocumentError, match=r"^document 1: "):
        pipe(["Tim", "Zürich", "Apple"])


# ---------------------------------------------------------------- saving


def test_a_saved_pipeline_keeps_its_own_labels_and_thresholds(tmp_path):
    pipe = tiny_pipeline(candidate_labels=LABELS, threshold={"Person": 0.1}, overlap="all", max_span_words=2)
    before = pipe.model.config.settings() | {"text_config": None}
    pipe.save_pretrained(tmp_path)
    again = pipeline("decodner-ner", model=str(tmp_path), device="cpu")
    assert again.model.config.labels == LABELS
    assert again.model.config.label_thresholds == {"Person": 0.1}
    assert (again.model.config.overlap, again.model.config.max_span_words) == ("all", 2)
    assert again.model.config.id2label == {0: "None", 1: "Person", 2: "Company"}
    assert again(TEXT) == pipe(TEXT)
    assert "- Person: a named human being" in (tmp_path / "README.md").read_text()
    assert pipe.model.config.settings() | {"text_config": None} == before


def test_a_saved_pipeline_drops_the_thresholds_of_labels_that_it_replaces(tmp_path):
    config = decodner_hf.DecodNERConfig(
        entity_labels=["City", "Person"], label_thresholds={"City": 0.3, "Person": 0.2}
    )
    model = decodner_hf.DecodNERForSpanClassification.from_backbone(tiny_native(), config)
    tiny_pipeline(model=model, candidate_labels=["Person", "Company"]).save_pretrained(tmp_path / "labels")
    saved = decodner_hf.DecodNERConfig.from_pretrained(tmp_path / "labels")
    assert (saved.entity_labels, saved.label_thresholds) == (["Person", "Company"], {"Person": 0.2})
    tiny_pipeline(model=model, threshold=0.7).save_pretrained(tmp_path / "threshold")
    saved = decodner_hf.DecodNERConfig.from_pretrained(tmp_path / "threshold")
    assert (saved.entity_labels, saved.threshold, saved.label_thresholds) == (["City", "Person"], 0.7, {})
