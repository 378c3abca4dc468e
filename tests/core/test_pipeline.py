import copy
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_pipelines import LABELS, TEXT, tiny_native, tiny_pipeline
from tokenizers_for_tests import byte_level_single_digits, sentencepiece_legacy
from tqdm.auto import tqdm
from transformers import PretrainedConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import decodner_hf
from decodner_hf.core import scoring
from decodner_hf.core.prompting import choose_symbols
from decodner_hf.core.scoring import default_budget

EVERYTHING = {"threshold": 0.0, "overlap": "all", "return_all_scores": True}
DOCUMENTS = ["Tim Cook runs Apple.", TEXT, "", "Steve Jobs " * 40, "   ", "x"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(candidate_labels=LABELS)


def assert_same(one, other, tolerance=1e-5):
    assert [(e["start"], e["end"], e["entity_group"]) for e in one] == [
        (e["start"], e["end"], e["entity_group"]) for e in other
    ]
    for left, right in zip(one, other, strict=True):
        assert left["scores"] == pytest.approx(right["scores"], abs=tolerance)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("cue", ["", " Answer:"])
def test_scores_equal_reencoding_the_whole_prompt_for_each_span(cue):
    tokenizer, native = byte_level_single_digits(), tiny_native()
    config = decodner_hf.DecodNERConfig(prompt={"answer_cue": cue})
    model = decodner_hf.DecodNERForSpanClassification.from_backbone(native, config)
    entities = tiny_pipeline(tokenizer, model)("Tim Cook runs Apple", candidate_labels=LABELS, **EVERYTHING)
    prompt = (
        "Classify the named entity span.\nEntity types: 1. Person (a named human being) 2. Company 0. None\n\n"
        "Text: Tim Cook runs Apple\nSpan:"
    )
    symbols = choose_symbols(tokenizer, 2).token_ids
    assert len(entities) == 10
    for entity in entities:
        parts = [prompt[: prompt.index("Text:")], prompt[prompt.index("Text:") :], " " + entity["word"], cue]
        ids = [token for part in parts for token in tokenizer(part, add_special_tokens=False).input_ids]
        with torch.no_grad():
            scores = native(torch.tensor([ids])).logits[0, -1, symbols].softmax(0)
        assert entity["scores"] == pytest.approx({"Person": scores[1].item(), "Company": scores[2].item()}, abs=1e-5)


def test_chat_template_puts_the_prompt_into_the_user_turn():
    tokenizer = copy.deepcopy(byte_level_single_digits())
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}<a>"
    native = tiny_native()
    config = decodner_hf.DecodNERConfig(prompt={"chat_template": True})
    model = decodner_hf.DecodNERForSpanClassification.from_backbone(native, config)
    entity = tiny_pipeline(tokenizer, model)({"text": "Tim", "candidate_labels": ["Person"]}, **EVERYTHING)[0]
    parts = [
        "<u>Classify the named entity span.\nEntity types: 1. Person 0. None\n\n",
        "Text: Tim\nSpan:",
        " Tim",
        "</u><a>",
    ]
    ids = [token for part in parts for token in tokenizer(part, add_special_tokens=False).input_ids]
    with torch.no_grad():
        scores = native(torch.tensor([ids])).logits[0, -1, choose_symbols(tokenizer, 1).token_ids].softmax(0)
    assert entity["scores"]["Person"] == pytest.approx(scores[1].item(), abs=1e-5)


def test_results_do_not_depend_on_the_packing(pipe):
    together = pipe(DOCUMENTS, **EVERYTHING)
    small = tiny_pipeline(candidate_labels=LABELS, token_budget=40)(DOCUMENTS, **EVERYTHING)
    for document, one, other in zip(DOCUMENTS, together, small, strict=True):
        assert_same(one, pipe(document, **EVERYTHING))
        assert_same(one, other)
    assert together[2] == together[4] == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40).filter(lambda text: text.isprintable()), max_size=4), st.integers(64, 400))
def test_random_unicode_has_exact_offsets_and_any_packing_agrees(pipe, documents, budget):
    pipe.scorer.token_budget = 4096
    whole = pipe(documents, **EVERYTHING)
    pipe.scorer.token_budget = budget
    packed = pipe(documents, **EVERYTHING)
    for document, one, other in zip(documents, whole, packed, strict=True):
        assert all(document[entity["start"] : entity["end"]] == entity["word"] for entity in one)
        assert_same(one, other)
    pipe.scorer.token_budget = 4096


@pytest.mark.parametrize(
    ("hidden", "inner", "dtype", "nodes"),
    [
        (896, 4864, torch.bfloat16, 34816),  # 0.5 B
        (896, 4864, torch.float32, 17408),
        (2048, 8192, torch.bfloat16, 19456),  # 1 B: a document of 1,400 words, up to 19,087 nodes, takes one pass
        (2048, [4096, 8192], torch.bfloat16, 19456),
        (2048, None, torch.bfloat16, 19456),
        (4096, 14336, torch.bfloat16, 10752),  # 8 B
        (64, 256, torch.bfloat16, 65536),
        (16384, 65536, torch.bfloat16, 4096),
    ],
)
def test_a_pass_on_a_gpu_has_nodes_by_what_they_hold_there(hidden, inner, dtype, nodes):
    backbone = SimpleNamespace(config=PretrainedConfig(intermediate_size=inner))
    model = SimpleNamespace(
        device=torch.device("cuda"),
        dtype=dtype,
        backbone=backbone,
        get_input_embeddings=lambda: torch.nn.Embedding(1, hidden),
    )
    assert default_budget(model) == nodes


def test_a_pass_on_a_cpu_has_4096_nodes(pipe):
    assert tiny_pipeline().scorer.token_budget == default_budget(pipe.model) == 4096


def test_more_labels_than_symbols_are_scored_in_shards_against_their_own_none():
    tokenizer = byte_level_single_digits()
    pipe = tiny_pipeline(tokenizer)
    names = [f"type{index}" for index in range(300)]
    entity = pipe("Tim", candidate_labels=names, **EVERYTHING)[0]
    prompts = pipe.prompts(tuple((name, None) for name in names))
    assert len(prompts) > 1
    assert sum(len(prompt.symbol_token_ids) - 1 for prompt in prompts) == 300
    odds = []
    for start in np.cumsum([0, *(len(prompt.symbol_token_ids) - 1 for prompt in prompts)])[:-1]:
        size = len(prompts[len(odds)].symbol_token_ids) - 1
        scores = pipe("Tim", candidate_labels=names[start : start + size], **EVERYTHING)[0]["scores"]
        none = 1 - sum(scores.values())
        odds.append({name: score / none for name, score in scores.items()})
    total = 1 + sum(value for shard in odds for value in shard.values())
    for shard in odds:
        for name, value in shard.items():
            assert entity["scores"][name] == pytest.approx(value / total, rel=1e-3)


# ---------------------------------------------------------------- formats and settings


def test_simple_rows_are_plain_json_with_exact_offsets(pipe):
    entities = pipe(TEXT, threshold=0.2)
    assert entities
    assert json.loads(json.dumps(entities)) == entities
    for entity in entities:
        assert list(entity) == ["entity_group", "score", "word", "start", "end"]
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]
        assert type(entity["score"]) is float
        assert type(entity["start"]) is int
    ends = [entity["end"] for entity in entities]
    assert all(end <= following["start"] for end, following in zip(ends, entities[1:], strict=False))


def test_word_rows_mark_beginning_and_inside(pipe):
    entities = pipe(TEXT, threshold=0.2)
    rows = pipe(TEXT, threshold=0.2, aggregation_strategy="none")
    assert all(list(row) == ["entity", "score", "index", "word", "start", "end"] for row in rows)
    assert all(TEXT[row["start"] : row["end"]] == row["word"] for row in rows)
    begins = [row for row in rows if row["entity"].startswith("B-")]
    assert [(row["entity"][2:], row["start"]) for row in begins] == [(e["entity_group"], e["start"]) for e in entities]
    assert any(row["entity"].startswith("I-") for row in rows)


def test_words_come_back_with_word_indices(pipe):
    words = ["Tim", "Cook", "runs", "(Apple)", "."]
    entities = pipe(words, is_split_into_words=True, threshold=0.2)
    assert entities
    for entity in entities:
        assert " ".join(words[entity["start_word"] : entity["end_word"]]) == entity["word"]
        assert " ".join(words)[entity["start"] : entity["end"]] == entity["word"]
    twice = pipe([words, words], is_split_into_words=True, threshold=0.2)
    assert [[(e["start"], e["end"]) for e in found] for found in twice] == [
        [(e["start"], e["end"]) for e in entities]
    ] * 2


def test_documents_may_bring_their_own_labels_and_spans(pipe):
    documents = [
        {"text": "Tim Cook", "candidate_labels": ["City"], "spans": [(4, 8)]},
        "Apple",
        {"words": ["Tim", "Cook"], "candidate_labels": ["City"]},
    ]
    first, second, third = pipe(documents, **EVERYTHING)
    assert [(e["word"], list(e["scores"])) for e in first] == [("Cook", ["City"])]
    assert list(second[0]["scores"]) == ["Person", "Company"]
    assert [e["word"] for e in third] == ["Tim Cook", "Tim", "Cook"]
    assert third[0]["start_word"] == 0
    assert third[0]["end_word"] == 2


def test_own_spans_are_all_that_is_scored(pipe):
    entities = pipe("Tim Cook runs Apple", spans=[(4, 19), (0, 3)], **EVERYTHING)
    assert [(e["start"], e["end"]) for e in entities] == [(0, 3), (4, 19)]


def test_a_label_with_a_low_threshold_is_reported_and_a_high_one_is_not(pipe):
    everything = pipe(TEXT, **EVERYTHING)
    low = pipe(TEXT, threshold={"Person": 0.0, "Company": 1.0}, overlap="all")
    assert {e["entity_group"] for e in low} == {"Person"}
    assert len(low) == len(everything)


def test_multi_label_reports_each_label_that_a_span_reaches(pipe):
    entities = pipe("Tim", threshold=0.0, overlap="all", multi_label=True)
    assert sorted(e["entity_group"] for e in entities) == ["Company", "Person"]


def test_the_models_own_labels_and_thresholds_are_the_defaults():
    config = decodner_hf.DecodNERConfig(entity_labels=LABELS, label_thresholds={"Person": 0.0, "Company": 1.0})
    model = decodner_hf.DecodNERForSpanClassification.from_backbone(tiny_native(), config)
    entities = tiny_pipeline(model=model)(TEXT)
    assert entities
    assert {e["entity_group"] for e in entities} == {"Person"}


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize(
    "make",
    [
        lambda texts: (text for text in texts),
        lambda texts: KeyDataset([{"text": text} for text in texts], "text"),
        lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
        lambda texts: iter(texts),
    ],
    ids=["generator", "KeyDataset", "datasets column", "iterator"],
)
def test_streams_are_lazy_and_in_input_order(pipe, make):
    texts = [f"{text} {index}" for index in range(3) for text in DOCUMENTS]
    stream = pipe(make(texts), threshold=0.2)
    assert not isinstance(stream, list)
    assert list(stream) == pipe(texts, threshold=0.2)


def test_length_and_progress_count_documents(pipe):
    stream = pipe(KeyDataset([{"text": text} for text in DOCUMENTS], "text"))
    assert len(stream) == len(DOCUMENTS)
    bar = tqdm(stream, disable=None, mininterval=0)
    assert bar.total == len(DOCUMENTS)
    assert len(list(bar)) == len(DOCUMENTS)
    with pytest.raises(TypeError):
        len(pipe(text for text in DOCUMENTS))


def test_a_stream_reads_only_a_little_ahead(pipe):
    read = []

    def documents():
        for index in range(3000):
            read.append(index)
            yield "x"

    stream = iter(pipe(documents()))
    next(stream)
    assert len(read) <= 3 * 256  # scored, launched and encoded
    stream.close()


# ---------------------------------------------------------------- long documents, memory


def test_windows_report_every_candidate_once_with_global_offsets():
    limit = 256
    native = tiny_native(max_position_embeddings=limit)
    pipe = tiny_pipeline(model=native, candidate_labels=["Person"])
    text = "Tim Cook met Steve Jobs near Apple. " * 30
    entities = pipe(text, **EVERYTHING)
    free = tiny_pipeline(model=tiny_native(), candidate_labels=["Person"])
    document = free.preprocess(text).document
    assert [(e["start"], e["end"]) for e in entities] == sorted(
        zip(document.candidates.start.tolist(), document.candidates.end.tolist(), strict=True),
        key=lambda bounds: (bounds[0], -bounds[1]),
    )
    assert all(text[e["start"] : e["end"]] == e["word"] for e in entities)


def test_error_and_truncation_are_explicit(caplog):
    pipe = tiny_pipeline(model=tiny_native(max_position_embeddings=256), candidate_labels=["Person"])
    text = "Tim Cook met Steve Jobs near Apple. " * 30
    with pytest.raises(ValueError, match=r"max_position_embeddings=256.*window"):
        pipe(text, long_documents="error")
    with caplog.at_level(logging.WARNING):
        entities = pipe(text, long_documents="truncate", threshold=0.0)
    kept = {entity["truncated_at"] for entity in entities}
    assert len(kept) == 1
    assert max(entity["end"] for entity in entities) <= kept.pop() < len(text)
    assert "truncated" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for ..."),
    ],
    ids=["for_a_tensor", "of_the_driver"],
)
def test_out_of_memory_halves_the_budget_and_loses_nothing(error, monkeypatch, caplog):
    pipe = tiny_pipeline(candidate_labels=LABELS, token_budget=2048)
    documents = [*DOCUMENTS, "Steve Jobs met Tim Cook at Apple " * 30]
    expected = tiny_pipeline(candidate_labels=LABELS)(documents, **EVERYTHING)
    score, sizes = pipe.model.score_forest, []

    def scarce(forest, *args):
        sizes.append(forest.num_nodes)
        if forest.num_nodes > 150:
            raise error
        return score(forest, *args)

    monkeypatch.setattr(pipe.model, "score_forest", scarce)
    with caplog.at_level(logging.WARNING):
        found = pipe(documents, **EVERYTHING)
    assert max(sizes) > 150
    assert pipe.scorer.token_budget < 2048
    assert "repeating the pass" in caplog.text
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


def test_memory_that_never_suffices_is_an_error(monkeypatch):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    monkeypatch.setattr(pipe.model, "score_forest", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        pipe(TEXT)


def test_the_labels_prefix_is_encoded_once(monkeypatch):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    encode, calls = pipe.model.encode_prefix, []
    monkeypatch.setattr(pipe.model, "encode_prefix", lambda *args: calls.append(args) or encode(*args))
    pipe(DOCUMENTS)
    pipe(TEXT)
    assert len(calls) == 1


# ---------------------------------------------------------------- models and saving


def test_a_plain_decoder_is_wrapped_and_left_as_it_was():
    native = tiny_native()
    pipe = pipeline("decodner-ner", model=native, tokenizer=byte_level_single_digits(), device="cpu")
    assert isinstance(pipe, decodner_hf.DecodNERPipeline)
    assert native.config._attn_implementation == "eager"
    assert pipe.model.backbone.lm_head.weight is native.lm_head.weight


@pytest.mark.parametrize("tokenizer", [byte_level_single_digits, sentencepiece_legacy])
def test_saved_pipeline_loads_without_a_trust_flag(tmp_path, tokenizer):
    without_padding = copy.deepcopy(tokenizer())
    without_padding.pad_token = None
    pipe = tiny_pipeline(without_padding)
    pipe.save_pretrained(tmp_path)
    assert pipe.tokenizer.pad_token is None
    again = pipeline("decodner-ner", model=str(tmp_path), device="cpu")
    assert type(again.model) is decodner_hf.DecodNERForSpanClassification
    assert again.tokenizer.pad_token == without_padding.eos_token
    asked = {"candidate_labels": LABELS, **EVERYTHING}
    assert_same(pipe(TEXT, **asked), again(TEXT, **asked))
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "library_name: transformers" in card
    assert [path.name for path in tmp_path.glob("*.py")] == ["decodner_package.py"]  # which asks for the package


def test_a_plain_saved_decoder_loads_from_its_folder(tmp_path):
    native = tiny_native()
    native.save_pretrained(tmp_path)
    byte_level_single_digits().save_pretrained(tmp_path)
    pipe = pipeline("decodner-ner", model=str(tmp_path), device="cpu", candidate_labels=LABELS)
    assert_same(pipe(TEXT, **EVERYTHING), tiny_pipeline(model=native, candidate_labels=LABELS)(TEXT, **EVERYTHING))


@pytest.mark.parametrize("what", ["pipeline", "model"])
def test_push_to_hub_uploads_code_weights_and_card(monkeypatch, what):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, **_):
            from pathlib import Path

            uploaded[repo_id] = {path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*")}

    monkeypatch.setattr("decodner_hf.core.hub.HfApi", Api)
    pipe = tiny_pipeline()
    (pipe if what == "pipeline" else pipe.model).push_to_hub("ner")
    names = uploaded["me/ner"]
    assert {"config.json", "model.safetensors", "README.md", "decodner/remote.py", "decodner/forest.py"} <= names
    assert ("tokenizer.json" in names) == (what == "pipeline")
    assert [name for name in names if name.endswith(".py") and not name.startswith("decodner/")] == ["handler.py"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("nothing", ["", [], (), "  \n"])
def test_nothing_gives_nothing(pipe, nothing):
    assert pipe(nothing) == []


@pytest.mark.parametrize("document", [None, 3, b"bytes", 2.5])
def test_other_inputs_are_refused(pipe, document):
    with pytest.raises(ValueError, match=type(document).__name__):
        pipe(document)
    with pytest.raises(ValueError, match=type(document).__name__):
        pipe(["fine", document])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_labels": []}, "no labels"),
        ({"candidate_labels": ["a", "a"]}, "duplicate labels"),
        ({"candidate_labels": "Person"}, "must be a list"),
        ({"candidate_labels": ["None"]}, "none label"),
        ({"candidate_labels": [3]}, "non-empty string"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"threshold": {"City": 0.5}}, "City"),
        ({"treshold": 0.5}, "treshold"),
        ({"aggregation_strategy": "some"}, r"simple.*none"),
        ({"overlap": "some"}, "flat"),
        ({"multi_label": True}, 'overlap="all"'),
        ({"max_span_words": 0}, "at least 1"),
        ({"long_documents": "cut"}, "window"),
        ({"spans": [(0, 99999)]}, "out of range"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_refused_with_what_is_allowed(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(TEXT, **arguments)


def test_a_model_without_labels_asks_for_them():
    with pytest.raises(ValueError, match="candidate_labels="):
        tiny_pipeline()(TEXT)


def test_a_pipeline_without_tokenizer_says_what_to_pass():
    with pytest.raises(ValueError, match="AutoTokenizer"):
        decodner_hf.DecodNERPipeline(model=tiny_native())


def test_batch_size_changes_nothing_and_says_so(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        assert pipe([TEXT], batch_size=4) == pipe([TEXT])
    assert "token_budget" in caplog.text


def test_threads_may_share_a_pipeline(pipe):
    long = [f"Steve Jobs met Tim Cook at Apple in {place}. " * 6 for place in ("Cupertino", "東京", "Lima")]
    small = tiny_pipeline(candidate_labels=LABELS, token_budget=64)
    expected = [pipe(text, **EVERYTHING) for text in long]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda text: small(text, **EVERYTHING), long * 3))
    for one, other in zip(expected * 3, found, strict=True):
        assert_same(one, other)


def scale_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def replace_values(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def cast(model):
    replace_values(model)
    model.double()


@pytest.mark.parametrize("change", [scale_in_place, replace_values, cast], ids=lambda change: change.__name__)
def test_kept_prefixes_are_forgotten_when_weights_change(change):
    native = tiny_native()
    pipe = tiny_pipeline(model=native, candidate_labels=LABELS)
    before = pipe(TEXT, **EVERYTHING)
    change(pipe.model)
    after = pipe(TEXT, **EVERYTHING)
    assert_same(after, tiny_pipeline(model=native, candidate_labels=LABELS)(TEXT, **EVERYTHING))
    assert before[0]["score"] != pytest.approx(after[0]["score"], abs=1e-4)


def test_prefixes_kept_in_inference_mode_serve_outside_of_it():
    pipe = tiny_pipeline(candidate_labels=LABELS, token_budget=64)  # the document's prefix takes several passes
    with torch.inference_mode():
        expected = pipe(TEXT * 4, **EVERYTHING)
    assert_same(pipe(TEXT * 4, **EVERYTHING), expected)


def test_a_source_that_fails_gives_what_came_before_it(pipe):
    def documents():
        yield from DOCUMENTS
        raise OSError("the disk is gone")

    stream = iter(pipe(documents()))
    assert [len(next(stream)) > 0 for _ in DOCUMENTS] == [bool(document.strip()) for document in DOCUMENTS]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


BAD_DOCUMENTS = {
    "None": None,
    "surrogate": "\ud800",
    "list": ["words"],
    "labels": {"text": "x", "candidate_labels": ["None"]},
    "keys": {"text": "x", "candidate_label": ["y"]},
    "spans": {"text": "Tim", "spans": [(0, 99)]},
    "empty word": {"words": ["Tim", ""]},
    "bytes in words": {"words": ["Tim", b"Cook"]},
}


@pytest.mark.parametrize("bad", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
@pytest.mark.parametrize("before", [3, 40, 300])
def test_a_refused_document_is_named_and_what_comes_before_it_is_delivered(pipe, bad, before):
    documents = ["Tim", {"words": ["Tim", "Cook"]}, ""] * (before // 3 + 1)
    documents = [*documents[:before], bad, "x", None]
    found = []
    with pytest.raises(ValueError, match=f"^document {before}: ") as refused:
        found.extend(pipe((document for document in documents), **EVERYTHING))
    assert refused.value.number == before
    for one, other in zip(found, pipe(documents[:before], **EVERYTHING), strict=True):
        assert_same(one, other)
    with pytest.raises(ValueError, match=f"^document {before}: "):
        pipe(documents)


def test_an_only_document_that_is_refused_has_no_number(pipe):
    for bad in ("\ud800", {"text": "Tim", "spans": [(0, 99)]}, {"text": "x", "candidate_labels": []}):
        with pytest.raises(ValueError, match=r"^(?!document \d)"):
            pipe(bad)


def test_logits_that_are_not_finite_are_an_error_of_their_document(monkeypatch):
    pipe = tiny_pipeline(candidate_labels=LABELS)
    score, bad = pipe.model.score_forest, torch.from_numpy(pipe.preprocess("Zürich").document.chain_token_ids)

    def broken(forest, *args):
        logits = score(forest, *args)
        for document, nodes in enumerate(pairwise(forest.cu_nodes.tolist())):
            if torch.equal(forest.token_ids[slice(*nodes)][: len(bad)], bad):
                logits[slice(*forest.cu_spans[document : document + 2].tolist())] = float("nan")
        return logits

    documents = ["Tim Cook", "Apple", "Zürich", "x"]
    expected = pipe(documents[:2], **EVERYTHING)
    monkeypatch.setattr(pipe.model, "score_forest", broken)
    found = []
    with pytest.raises(ValueError, match=r"^document 2: .*must be finite"):
        found.extend(pipe((document for document in documents), **EVERYTHING))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("text", ["", "   ", "Ann met Bob"])
@pytest.mark.parametrize(
    ("positions", "labels"),
    [(1024, {"person": "x " * 1600}), (10, ["person"])],
    ids=["long description", "10 positions"],
)
def test_a_prompt_that_leaves_no_room_is_refused(text, positions, labels):
    pipe = tiny_pipeline(model=tiny_native(max_position_embeddings=positions))
    with pytest.raises(
        ValueError, match=rf"the prompt of 1 label\(s\) takes \d+ tokens .* {positions} positions: shorten"
    ):
        pipe(text, candidate_labels=labels)


def test_prefixes_of_many_prompts_are_encoded_once(monkeypatch):
    pipe = tiny_pipeline()
    labels = [f"type{number}" for number in range(1200)]
    encode, calls = pipe.model.encode_prefix, []
    monkeypatch.setattr(pipe.model, "encode_prefix", lambda *args: calls.append(args) or encode(*args))
    first = pipe("Tim", candidate_labels=labels, **EVERYTHING)
    prompts = len(pipe.prompts(tuple((label, None) for label in labels)))
    assert len(calls) == prompts > 8
    assert pipe("Tim", candidate_labels=labels, **EVERYTHING) == first
    assert len(calls) == prompts


def test_prefixes_beyond_the_memory_for_them_leave_those_of_other_prompts_alone(monkeypatch):
    monkeypatch.setattr(scoring, "KEPT_PREFIX_BYTES", 0)
    pipe = tiny_pipeline()
    labels = [f"type{number}" for number in range(1200)]
    encode, calls = pipe.model.encode_prefix, []
    monkeypatch.setattr(pipe.model, "encode_prefix", lambda *args: calls.append(args) or encode(*args))
    pipe("Tim", candidate_labels=labels)
    prompts = len(calls)
    pipe("Tim", candidate_labels=labels)
    assert len(pipe.scorer.kept_prefixes()) == scoring.KEPT_PREFIXES
    assert len(calls) == 2 * prompts - scoring.KEPT_PREFIXES


@pytest.mark.parametrize("arguments", [{"threshold": 7}, {"overlap": "some"}, {"token_budget": 1.5}])
def test_arguments_are_checked_when_the_pipeline_is_made(arguments):
    with pytest.raises(ValueError, match=r"7|some|1\.5"):
        tiny_pipeline(**arguments)
