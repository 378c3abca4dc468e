"""The benchmarks of growth run on a CPU in a small setting, and their last lines hold what the documents promise."""

import json

import bench_growth
import bench_host
import bench_ladder
import pytest
from architectures import tiny_config, tiny_model
from growth_rate import counted_passes, growth_threshold, span_tokens
from transformers import AutoTokenizer

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.default_model import default_model


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_growth_is_measured_against_exhaustive_scoring_in_one_run(capsys):
    bench_growth.main(["--sentences", "40", "--long-documents", "1", "--widths", "4", "12", "--repeats", "1"])
    figures = last_line(capsys)
    assert {(line["corpus"], line["way"], line["width"]) for line in figures["lines"]} == {
        (corpus, way, width)
        for corpus in ("sentences", "long documents")
        for way in (bench_growth.EXHAUSTIVE, bench_growth.GROWN, bench_growth.ALONE)
        for width in (4, 12)
    }
    rates = {(rate["corpus"], rate["width"]): rate["rate"] for rate in figures["rates"]}
    assert rates["sentences", 12] == pytest.approx(1.03, rel=0.1)
    for line in figures["lines"]:
        assert line["passes"] > 0
        assert line["nodes"] > line["documents"]
        if line["way"] == bench_growth.EXHAUSTIVE:
            assert line["span_tokens"] > 1.5 * rates[line["corpus"], line["width"]]
    assert set(figures["grown"]["sentences, width 4"]) == {"speedup", "memory"}


def test_the_ladder_has_a_grown_rung(capsys):
    flags = ["--words", "12", "--prefix", "16", "--width", "6", "--repeats", "1", "--max-batches", "1"]
    bench_ladder.main(flags)
    rungs = {rung["name"]: rung for rung in last_line(capsys)["rungs"]}
    grown, forest = rungs["grown, all rounds"], rungs["forest"]
    assert 12 <= grown["rows_tokens"] < forest["rows_tokens"]
    assert grown["error"] < 1e-4


def test_host_stages_are_timed(capsys):
    bench_host.main(["--count", "30", "--repeats", "1", "--widths", "6"])
    lines = {line["name"]: line["microseconds"] for line in last_line(capsys)["lines"]}
    assert "encode, width 8, groups of 64, with the cache" in lines
    assert "rows of all rounds, width 6" in lines
    assert all(value > 0 for value in lines.values())


@pytest.fixture
def pipe():
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    native = tiny_model(tiny_config("llama", vocab_size=len(tokenizer), max_position_embeddings=512))
    config = DecodNERConfig(continuation=True, entity_labels=["person", "organization"])
    model = DecodNERForSpanClassification.from_backbone(native, config)
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner")


def test_passes_are_counted_and_the_model_is_left_as_it_was(pipe):
    text = "Steve Jobs founded Apple."
    settings = pipe.settings_for({"growth": False, "max_span_words": 1})
    prepared = pipe.preprocess(text, settings)
    pipe(text)
    with counted_passes(pipe) as passes:
        pipe(text, growth=False, max_span_words=1)
    assert passes.nodes == [prepared.document.max_nodes]  # its words are all different
    path_tokens = len(prepared.document.candidates.paths.token_ids)
    assert span_tokens(passes, [prepared], 2 * path_tokens) == 0.5
    assert "score_rows" not in vars(pipe.model)


def test_the_threshold_gives_the_rate_asked_for(pipe):
    texts = [f"Steve Jobs and Bill Gates met {name} in Cupertino last year." for name in ("Ann", "Bo", "Cy", "Di")] * 4
    threshold, rate = growth_threshold(pipe, texts, 1.8, max_span_words=6)
    assert 0 < threshold < 1
    assert rate == pytest.approx(1.8, rel=0.25)


def test_f1_is_drawn_against_span_tokens(pipe, tmp_path, capsys):
    plot_growth = pytest.importorskip("plot_growth", reason="drawing needs matplotlib")
    pipe.save_pretrained(tmp_path / "model")
    rows = [
        {"tokens": ["Steve", "Jobs", "founded", "Apple"], "entities": [[0, 2, "person"], [3, 4, "organization"]]},
        {"tokens": ["Ann", "left"], "entities": [[0, 1, "person"]]},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "others.json").write_text('[{"name": "causal", "span_tokens": 0.0, "f1": 0.5}]', encoding="utf-8")
    files = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl")]
    files += ["--out", str(tmp_path / "growth.svg"), "--points", str(tmp_path / "others.json")]
    plot_growth.main([*files, "--thresholds", "0.0", "1.0"])
    every, all_grown, least = last_line(capsys)["points"]
    assert every["name"] == "exhaustive"
    assert all_grown["span_tokens"] == pytest.approx(every["span_tokens"])
    assert all_grown["f1"] == pytest.approx(every["f1"])
    assert least["span_tokens"] < every["span_tokens"]
    assert (tmp_path / "growth.svg").read_text(encoding="utf-8").startswith("<?xml")
