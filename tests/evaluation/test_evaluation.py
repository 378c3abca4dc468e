import json
import sys
from itertools import pairwise
from pathlib import Path

import evaluate
import numpy as np
import pytest
import run_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import tiny_pipeline

from decodner_hf.data.document_context import Context, passages_of
from decodner_hf.data.examples import Example, load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.evaluation.labelled_scoring import Decoder, score_examples
from decodner_hf.evaluation.labelled_scoring import evaluate as evaluate_examples
from decodner_hf.evaluation.other_scorers import nervaluate_scores, seqeval_scores
from decodner_hf.evaluation.span_metrics import SpanTable, bootstrap_interval, confusion, found, span_scores

EVAL = Path(__file__).parents[2] / "eval"
LABELS = ["A", "B", "C"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


# ---------------------------------------------------------------- figures

GOLD = [[(0, 2, "A"), (3, 4, "B")], [(0, 1, "A")], []]
FOUND = [[(0, 2, "A"), (3, 4, "A"), (5, 6, "B")], [], [(0, 1, "B"), (0, 1, "B")]]


def test_figures_equal_those_computed_by_hand():
    gold, predicted = SpanTable.from_lists(GOLD, LABELS), SpanTable.from_lists(FOUND, LABELS)
    scores = span_scores(gold, predicted, LABELS)
    assert (scores["correct"], scores["predicted"], scores["gold"]) == (1, 4, 3)
    assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 4, 1 / 3, 2 / 7])
    assert list(scores["per_label"]) == ["A", "B"]
    row = scores["per_label"]["A"]
    assert [row[name] for name in ("precision", "recall", "f1", "gold")] == pytest.approx([1 / 2, 1 / 2, 1 / 2, 2])
    assert scores["per_label"]["B"]["f1"] == 0.0
    assert [scores[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 4, 1 / 4, 1 / 4])
    assert confusion(gold, predicted, 3).tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert "f1_interval" not in scores


def test_nothing_at_all_is_not_an_error():
    nothing = SpanTable.from_lists([[], []], LABELS)
    scores = span_scores(nothing, nothing, LABELS, resamples=10)
    assert (scores["f1"], scores["macro_f1"], scores["per_label"]) == (0.0, 0.0, {})
    assert scores["f1_interval"] == [0.0, 0.0]
    assert confusion(nothing, nothing, 3).sum() == 0


def test_unknown_labels_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"\['X'\]"):
        SpanTable.from_lists([[(0, 1, "X")]], LABELS)
    with pytest.raises(ValueError, match="2 references but 1"):
        span_scores(SpanTable.from_lists([[], []], LABELS), SpanTable.from_lists([[]], LABELS), LABELS)


SPAN = st.tuples(st.integers(0, 5), st.integers(1, 4), st.sampled_from(LABELS)).map(
    lambda s: (s[0], s[0] + s[1], s[2])
)
CORPUS = st.lists(st.tuples(st.lists(SPAN, max_size=6), st.lists(SPAN, max_size=6)), min_size=1, max_size=4)


def tables(corpus):
    gold, predicted = zip(*corpus, strict=True)
    return SpanTable.from_lists(gold, LABELS), SpanTable.from_lists(predicted, LABELS)


@given(CORPUS)
def test_figures_equal_set_arithmetic(corpus):
    gold, predicted = tables(corpus)
    scores = span_scores(gold, predicted, LABELS)
    sides = [{(i, *s) for i, example in enumerate(corpus) for s in example[side]} for side in (0, 1)]
    counts = [len(sides[0] & sides[1]), len(sides[1]), len(sides[0])]
    assert [scores["correct"], scores["predicted"], scores["gold"]] == counts
    assert scores["f1"] == pytest.approx(2 * counts[0] / max(1, counts[1] + counts[2]))
    for label in LABELS:
        own = [{span for span in side if span[3] == label} for side in sides]
        row = scores["per_label"].get(label, {"correct": 0, "predicted": 0, "gold": 0})
        assert [row["correct"], row["predicted"], row["gold"]] == [len(own[0] & own[1]), len(own[1]), len(own[0])]
    table = confusion(gold, predicted, 3)
    assert table[:3].sum() == len(sides[0])
    assert table[:, :3].sum() == len(sides[1])
    assert np.trace(table) == counts[0]


@given(CORPUS)
def test_a_table_is_flat_iff_no_two_spans_overlap(corpus):
    table, _ = tables(corpus)
    rows = [tuple(row) for row in table.rows.tolist()]
    overlaps = any(a != b and a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in rows for b in rows)
    assert table.is_flat == (not overlaps)


@given(st.lists(st.tuples(*[st.integers(0, 2**40)] * 3), max_size=6), st.lists(st.integers(0, 5), max_size=4))
def test_large_numbers_are_found_too(rows, picks):
    table = np.array(rows, np.int64).reshape(-1, 3)
    among = table[[pick for pick in picks if pick < len(rows)]]
    assert found(table, among).tolist() == [row in among.tolist() for row in table.tolist()]


def test_no_two_rows_share_a_number_by_overflow():
    rows = np.array([[4, 5], [0, 5], [8, 2**62 - 1]])
    assert found(rows[:1], rows[1:]).tolist() == [False]
    assert found(rows, rows).all()


def test_bootstrap_is_seeded_holds_the_estimate_and_draws_whole_units():
    generator = np.random.default_rng(0)
    tallies = np.stack([generator.binomial(4, 0.6, 400), np.full(400, 4), np.full(400, 4)])
    low, high = bootstrap_interval(tallies, None, 1000, 1)
    assert [low, high] == bootstrap_interval(tallies, None, 1000, 1) != bootstrap_interval(tallies, None, 1000, 2)
    share = tallies[0].sum() / 1600
    error = 1.96 * np.sqrt(np.var(tallies[0] / 4) / 400)
    assert [low, high] == pytest.approx([share - error, share + error], abs=0.005)
    one_unit = bootstrap_interval(tallies, np.zeros(400, np.int64), 50, 1)
    assert one_unit == pytest.approx([share, share])
    halves = np.stack([np.repeat([4, 0], 200), np.full(400, 4), np.full(400, 4)])
    assert bootstrap_interval(halves, np.repeat([0, 1], 200), 200, 1) == pytest.approx([0.0, 1.0])


# ---------------------------------------------------------------- other people's scorers


@st.composite
def flat_spans(draw):
    bounds = sorted(draw(st.sets(st.integers(0, 9), max_size=7)))
    picked = [draw(st.sampled_from([*LABELS, None])) for _ in bounds[1:]]
    return [(*pair, label) for pair, label in zip(pairwise(bounds), picked, strict=True) if label]


@given(st.lists(st.tuples(flat_spans(), flat_spans()), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_seqeval_agrees_where_spans_are_flat(corpus):
    gold, predicted = tables(corpus)
    scores = span_scores(gold, predicted, LABELS)
    theirs = seqeval_scores(gold, predicted)
    assert theirs == pytest.approx({name: scores[name] for name in ("precision", "recall", "f1")})


def test_seqeval_is_not_asked_where_spans_overlap():
    nested = SpanTable.from_lists([[(0, 3, "A"), (1, 2, "A")]], LABELS)
    assert seqeval_scores(nested, nested) is None


def test_partial_matches_by_hand():
    pytest.importorskip("nervaluate")
    gold = SpanTable.from_lists([[(0, 4, "A"), (6, 8, "B")], [(0, 4, "A")]], LABELS)
    predicted = SpanTable.from_lists([[(0, 3, "A"), (6, 8, "C"), (8, 9, "A")], [(4, 6, "A")]], LABELS)
    scores = nervaluate_scores(gold, predicted, LABELS)
    assert scores["strict"]["correct"] == 0
    assert scores["exact"]["correct"] == 1
    partial = scores["partial"]
    assert (partial["correct"], partial["partial"], partial["spurious"], partial["missed"]) == (1, 1, 2, 1)
    assert partial["f1"] == pytest.approx(2 * 1.5 / 7)


def test_metric_module_loads_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path))
    metric = evaluate.load(str(EVAL / "span_f1"), cache_dir=str(tmp_path))
    sides = [
        [[{"start": start, "end": end, "label": label} for start, end, label in example] for example in side]
        for side in (FOUND, GOLD)
    ]
    scores = metric.compute(predictions=sides[0], references=sides[1], resamples=20)
    assert scores["f1"] == pytest.approx(2 / 7)
    assert scores["per_label"]["A"]["gold"] == 2
    assert len(scores["f1_interval"]) == 2


# ---------------------------------------------------------------- scoring examples

EXAMPLES = [
    Example(["Tim", "Cook", "runs", "Apple"], ((0, 2, "A"), (3, 4, "B")), "1"),
    Example(["He", "likes", "Apple", "pie"], ((2, 3, "B"),), "1"),
    Example(["x"], ()),
    Example(["In", "Rome", "."], ((1, 2, "C"),), "2"),
]
CHOICES = {"candidate_labels": LABELS, "max_span_words": 3}


@pytest.mark.parametrize("overlap", ["flat", "nested", "all"])
@pytest.mark.parametrize("selection", ["greedy", "exact"])
def test_predictions_are_the_pipelines(pipe, overlap, selection):
    examples = [*EXAMPLES, Example("Apple's Tim Cook (CEO)", ((0, 5, "B"),))]
    choices = {**CHOICES, "threshold": 0.3, "overlap": overlap, "flat_selection": selection}
    scored = score_examples(pipe, examples, **choices)
    predicted = Decoder.of(pipe, scored.labels, **choices).decode(scored)
    inputs = [{"text" if isinstance(e.content, str) else "words": e.content} for e in examples]
    expected = [
        (index, entity["start"], entity["end"], LABELS.index(entity["entity_group"]))
        for index, entities in enumerate(pipe(inputs, **choices))
        for entity in entities
    ]
    assert len(expected) > 5
    assert [tuple(row) for row in predicted.rows.tolist()] == sorted(expected)


def test_document_context_scores_the_sentences_spans_in_the_whole_passage(pipe):
    scored = score_examples(pipe, EXAMPLES, context=Context("document", 50), **CHOICES)
    alone = score_examples(pipe, EXAMPLES, **CHOICES)
    for one, other in ((scored.start, alone.start), (scored.end, alone.end), (scored.cu_spans, alone.cu_spans)):
        assert one.tolist() == other.tolist()
    assert scored.coverage == alone.coverage
    assert scored.gold.rows.tolist() == alone.gold.rows.tolist()
    passage = passages_of(EXAMPLES, Context("document", 50))[0]
    spans = [
        (a, b) for low, high in ((0, 4), (4, 8)) for a in range(low, high) for b in range(a + 1, min(a + 3, high) + 1)
    ]
    everything = {"threshold": 0.0, "overlap": "all", "return_all_scores": True, "candidate_labels": LABELS}
    document = {"words": passage.example.content, "spans": spans}
    expected = [list(entity["scores"].values()) for entity in pipe(document, **everything)]
    scores = Decoder((0.0,) * 3).scores(scored)[: len(spans), 1:]
    ordered = np.lexsort((-scored.end[: len(spans)], scored.start[: len(spans)], scored.example[: len(spans)]))
    np.testing.assert_allclose(scores[ordered], expected, atol=1e-5)
    assert np.abs(scored.label_logits - alone.label_logits)[len(spans) :].max() < 1e-4
    assert np.abs(scored.label_logits - alone.label_logits)[: len(spans)].max() > 1e-3


def test_preceding_context_scores_a_sentences_spans_after_the_words_before_it(pipe):
    examples = [Example(["Tim", "Cook", "left"], ((0, 2, "A"),), "d"), Example(["Apple", "grew"], ((0, 1, "B"),), "d")]
    scored = score_examples(pipe, examples, context=Context("preceding", 2), **CHOICES)
    alone = score_examples(pipe, examples, **CHOICES)
    for one, other in ((scored.start, alone.start), (scored.end, alone.end), (scored.cu_spans, alone.cu_spans)):
        assert one.tolist() == other.tolist()
    assert scored.coverage == alone.coverage
    first = int(alone.cu_spans[1])
    np.testing.assert_allclose(scored.label_logits[:first], alone.label_logits[:first], atol=1e-5)
    document = {"words": ["Cook", "left", "Apple", "grew"], "spans": [(2, 3), (2, 4), (3, 4)]}
    everything = {"threshold": 0.0, "overlap": "all", "return_all_scores": True, "candidate_labels": LABELS}
    expected = {(e["start"], e["end"]): list(e["scores"].values()) for e in pipe(document, **everything)}
    scores = Decoder((0.0,) * 3).scores(scored)[first:, 1:]
    shift = len("Cook left ")
    for start, end, row in zip(scored.start[first:] + shift, scored.end[first:] + shift, scores, strict=True):
        np.testing.assert_allclose(row, expected[int(start), int(end)], atol=1e-5)


def test_coverage_counts_what_no_candidate_reaches(pipe):
    text = "one two three four five Applesauce"
    golds = ((0, 3, "A"), (0, 18, "A"), (24, 29, "B"), (20, 34, "B"), (8, 23, "C"))
    scored = score_examples(pipe, [Example(text, golds)], **CHOICES)
    left_out = {"wider_than_limit": 1, "off_word_bounds": 2, "without_token": 0, "not_grown": 0}
    assert scored.coverage == {"candidate": 2} | left_out
    assert int(scored.is_gold().sum()) == 2
    assert len(scored.gold) == 5
    scores = evaluate_examples(pipe, [Example(text, golds)], threshold=0.0, overlap="all", **CHOICES)
    assert scores["gold"] == 5
    assert scores["coverage"] == scored.coverage


def test_gold_labels_stand_at_their_candidates(pipe):
    example = Example("Rome Rome", ((5, 9, "C"), (5, 9, "B"), (0, 4, "A")))
    scored = score_examples(pipe, [Example("x", ()), example], **CHOICES)
    found_labels = {
        (start, end): label
        for start, end, label in zip(
            scored.start.tolist(), scored.end.tolist(), scored.gold_label().tolist(), strict=True
        )
    }
    assert found_labels == {(0, 1): 0, (0, 4): 1, (5, 9): 2, (0, 9): 0}
    assert scored.is_gold().sum() == 3
    kept = scored.select(scored.start > 0)
    assert (kept.cu_spans.tolist(), kept.start.tolist()) == ([0, 0, 1], [5])


def test_examples_that_cannot_be_scored_are_refused(pipe):
    with pytest.raises(ValueError, match="no examples"):
        score_examples(pipe, [])
    with pytest.raises(ValueError, match="labelled only in part"):
        score_examples(pipe, [Example("x", (), partial=True)])
    with pytest.raises(ValueError, match=r"have labels \['C'\], but \['A', 'B'\] are asked for"):
        score_examples(pipe, EXAMPLES, candidate_labels=["A", "B"])
    assert score_examples(pipe, EXAMPLES[:1]).labels == ("A", "B")


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory, pipe):
    folder = tmp_path_factory.mktemp("eval")
    pipe.save_pretrained(folder / "model")
    rows = [
        json.dumps({"tokens": e.content, "entities": [list(entity) for entity in e.entities], "doc": e.document})
        for e in EXAMPLES
    ]
    (folder / "data").mkdir()
    for split in ("test", "dev"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


def call(files, *arguments):
    common = ["--dataset", str(files / "data"), "--model", str(files / "model"), "--device", "cpu"]
    return run_eval.main([*common, *map(str, arguments)])


def test_one_command_evaluates_and_reports(files, capsys):
    out, plots = files / "out" / "results.json", files / "plots"
    arguments = ["--out", out, "--plots", plots, "--card", files / "model", "--dataset-id", "someone/set"]
    for _ in range(2):  # the second run replaces the card's first entry
        assert call(files, "--threshold", "0.2", "--context", "document", *arguments) == 0
    result = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert f"{100 * result['scores']['f1']:6.2f}" in printed
    assert "4 of 4 gold spans are candidates" in printed
    assert result["seqeval"]["agrees"] is True
    assert result["num_examples"] == 4
    assert result["settings"]["thresholds"] == {"A": 0.2, "B": 0.2, "C": 0.2}
    assert result["scores"]["f1_interval"][0] <= result["scores"]["f1"] <= result["scores"]["f1_interval"][1]
    assert {path.name for path in plots.iterdir()} == {"confusion.png", "reliability.png"}
    card = (files / "model" / "README.md").read_text()
    assert card.count("type: f1") == 1
    written = list((files / "model" / ".eval_results").iterdir())
    assert [path.name for path in written] == ["someone_set_test_document.yaml"]
    assert f"value: {round(result['scores']['f1'], 4)}" in written[0].read_text()


def test_the_interval_is_over_documents(files, pipe):
    out = files / "interval.json"
    assert call(files, "--threshold", "0.2", "--resamples", "50", "--seed", "3", "--out", out) == 0
    scored = score_examples(pipe, EXAMPLES)
    assert scored.documents.tolist() == [0, 0, 1, 2]
    predicted = Decoder.of(pipe, scored.labels, threshold=0.2).decode(scored)
    expected = [
        span_scores(scored.gold, predicted, scored.labels, units=units, resamples=50, seed=3)["f1_interval"]
        for units in (scored.documents, None)
    ]
    assert json.loads(out.read_text())["scores"]["f1_interval"] == pytest.approx(expected[0]) != expected[1]


def test_calibration_is_fitted_to_dev_saved_and_used(files):
    out = files / "calibrated.json"
    assert call(files, "--calibrate", "dev", "--save-calibration", "--labels-from-data", "--out", out) == 0
    result = json.loads(out.read_text())
    config = json.loads((files / "model" / "config.json").read_text())
    assert config["temperature"] == result["settings"]["temperature"] == result["calibration"]["temperature"] != 1.0
    assert config["threshold"] == result["calibration"]["threshold"]
    assert result["scores"]["f1"] == pytest.approx(result["calibration"]["f1"])  # dev is test here
    again = files / "again.json"
    assert call(files, "--thresholds-from-config", "--out", again) == 0
    assert json.loads(again.read_text())["scores"] == result["scores"]


def test_a_plain_decoder_that_cannot_keep_a_calibration_is_named_before_the_work(files, pipe, capsys, monkeypatch):
    pipe.model.backbone.save_pretrained(files / "plain")
    pipe.tokenizer.save_pretrained(files / "plain")
    monkeypatch.setattr(run_eval, "calibrate", lambda *_, **__: pytest.fail("scored"))
    arguments = ["--model", files / "plain", "--labels-from-data", "--calibrate", "dev", "--save-calibration"]
    assert call(files, *arguments) == 1
    assert "plain is a plain decoder" in capsys.readouterr().err


REFUSED = {
    "calibrate on test": ["--calibrate", "test"],
    "calibrate on test file": ["--calibrate", "some/test.jsonl"],
    "calibrate and threshold": ["--calibrate", "dev", "--threshold", "0.5"],
    "calibrate and selection": ["--calibrate", "dev", "--selection", "exact"],
    "calibrate on what is evaluated": ["--calibrate", "dev", "--split", "dev"],
    "calibrate on what is evaluated by its other name": ["--calibrate", "valid", "--split", "dev"],
    "calibrate on the file that is evaluated": ["--calibrate", "{data}/dev.jsonl", "--split", "dev"],
    "calibrate on the one file": ["--calibrate", "{data}/dev.jsonl", "--dataset", "{data}/dev.jsonl"],
    "zero-shot too": ["--zero-shot"],
    "save what": ["--save-calibration"],
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED.keys())
def test_wrong_usage_is_refused(files, arguments):
    with pytest.raises(SystemExit) as stop:
        call(files, *(argument.replace("{data}", str(files / "data")) for argument in arguments))
    assert stop.value.code == 2


def test_results_are_kept_where_pictures_or_the_card_cannot_be_written(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (files / "bare").mkdir()
    for index, (option, said) in enumerate((("--plots", "pictures need matplotlib"), ("--card", "has no README.md"))):
        out = files / f"{index}.json"
        assert call(files, "--out", out, option, files / "bare") == 1
        assert said in capsys.readouterr().err
        assert json.loads(out.read_text())["scores"]["gold"] > 0


def test_help_says_where_thresholds_come_from(capsys):
    with pytest.raises(SystemExit):
        run_eval.main(["--help"])
    assert "must never be chosen on test data" in capsys.readouterr().out


def test_bad_data_ends_with_a_message(files, capsys):
    (files / "map.json").write_text('{"A": "a"}')
    (files / "flat.conll").write_text("Rome B-A\n")
    assert call(files, "--labels-from-map", files / "map.json") == 1
    assert "misses 'B'" in capsys.readouterr().err
    arguments = ["--dataset", str(files / "flat.conll"), "--model", str(files / "model"), "--context", "document"]
    assert run_eval.main(arguments) == 1
    assert "which document" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_a_message(files, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(files, "--model", "./nowhere") == 1
    assert "there is no folder ./nowhere" in capsys.readouterr().err
    assert call(files, "--device", "cuda:0") == 1
    assert "no CUDA GPU" in capsys.readouterr().err


def test_zero_shot_asks_for_phrases_and_leaves_misc_out(files, capsys):
    gold = dict.fromkeys(run_eval.SETS, "misc") | {
        "mit_restaurant": "Restaurant_Name",
        "crossner_ai": "programlang",
    }
    for name, label in gold.items():
        (files / name).mkdir()
        (files / name / "test.jsonl").write_text(
            json.dumps({"tokens": ["a", "b"], "entities": [[0, 1, label], [1, 2, "country"]]})
        )
    out = files / "zero.json"
    common = ["--zero-shot", "--data", str(files), "--model", str(files / "model"), "--out", str(out)]
    assert run_eval.main(common) == 0
    results = json.loads(out.read_text())
    labels = {name: result["settings"]["labels"] for name, result in results["sets"].items()}
    assert labels["crossner_ai"] == ["country", "program language"]
    assert labels["crossner_music"] == ["country"]
    assert labels["mit_restaurant"] == ["restaurant name", "country"]
    assert labels["mit_movie_eng"] == ["country", "misc"]
    average = np.mean([result["scores"]["f1"] for result in results["sets"].values()])
    assert results["average_f1"] == pytest.approx(average)
    assert f"{'average':38} {100 * average:6.2f}\n" in capsys.readouterr().out


def test_zero_shot_names_the_sets_that_are_missing(tmp_path, capsys):
    (tmp_path / "crossner_ai").mkdir()
    with pytest.raises(SystemExit):
        run_eval.main(["--zero-shot", "--data", str(tmp_path), "--model", "any"])
    assert "these are missing: ['crossner_literature'" in capsys.readouterr().err


def test_label_maps_that_ship_are_readable(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Rome B-LOC\n")
    for label_map in (EVAL / "label_maps").iterdir():
        names = list(LabelMap.read(label_map).labels)
        assert names
        assert not [name for name in names if "_" in name], label_map.name
        if label_map.name.startswith("conll2003"):
            assert load_examples(path, label_map=label_map)[0].entities == ((0, 1, "location"),)
