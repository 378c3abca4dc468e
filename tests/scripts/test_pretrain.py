import json
import lzma
from pathlib import Path

import numpy as np
import pretrain
import pretrain_data
import pytest
import torch
from architectures import tiny_config, tiny_model
from tokenizers_for_tests import byte_level_three_digits, word_piece
from transformers import AutoModelForCausalLM, AutoTokenizer

from decodner_hf.core.prompting import choose_symbols

WORDS = [f"{first}{second}" for first in ("al", "be", "co", "du") for second in ("ma", "no", "pi", "ra", "su")]
SMALL = {
    **{"--hidden": 32, "--layers": 2, "--heads": 2, "--mlp": 48, "--vocabulary": 320, "--row-tokens": 32},
    **{"--batch-tokens": 128, "--micro-rows": 2, "--tokens": 640, "--log-steps": 1, "--valid-documents": 5},
    **{"--dtype": "float32", "--save-dtype": "float32", "--learning-rate": 0.01},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    for name, opener in (("a.jsonl", open), ("b.jsonl.xz", lzma.open)):
        with opener(folder / name, "wt", encoding="utf-8") as out:
            for number in range(30):
                words = " ".join(generator.choice(WORDS, 40))
                out.write(json.dumps({"text": f"{words} in {1900 + number}."}) + "\n")
    return [str(folder / "a.jsonl"), str(folder / "b.jsonl.xz")]


def run(texts, output, *extra, **changed):
    values = SMALL | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    arguments = [str(part) for pair in values.items() for part in pair]
    return pretrain.main(["--text", *texts, "--output", str(output), *arguments, "--no-compile", *extra])


def test_pretraining_lowers_the_loss_and_saves_a_decoder_with_usable_symbols(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "model", tokens=3840, max_shard_size="60KB") == 0
    said = capsys.readouterr().out.splitlines()
    losses = [float(line.split("loss ")[1].split()[0]) for line in said if line.startswith("step")]
    assert len(losses) == 30
    assert losses[-1] < 0.75 * losses[0]
    assert all("tokens/s" in line for line in said if line.startswith("step"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("1976").input_ids[0] == tokenizer.bos_token_id
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 197612")
    assert [piece for piece, _ in pieces] == ["in", "Ġ", "19", "76", "12"]
    assert choose_symbols(tokenizer, 9).symbols == tuple("0123456789")
    record = json.loads(said[-1])
    assert record["valid_loss"] == pytest.approx(held_out_loss(model, tmp_path / "model.work"), abs=1e-3)


def held_out_loss(model, work):
    corpus = pretrain_data.Corpus(np.fromfile(work / "tokens.uint16", np.uint16), np.load(work / "documents.npy"))
    _, valid = corpus.split(5, 0)
    rows = torch.from_numpy(pretrain_data.cut_rows(corpus.stream(valid), 32).astype(np.int64))
    with torch.no_grad():
        logits = model(rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()


def test_a_stopped_run_goes_on_to_the_same_weights(texts, tmp_path):
    assert run(texts, tmp_path / "whole") == 0
    assert run(texts, tmp_path / "parts", max_seconds=0) == 3
    assert not (tmp_path / "parts").exists()
    stops = 1
    while run(texts, tmp_path / "parts", max_seconds=0) == 3:
        stops += 1
    assert stops == 4
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "parts").state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_states_are_saved_when_any_rank_finds_it_time(texts, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(pretrain.Pretrainer, "save_state", lambda trainer: saved.append(trainer.step))
    assert run(texts, tmp_path / "model", save_seconds=1000) == 0
    assert saved == [5]
    monkeypatch.setattr(pretrain.Accelerator, "reduce", lambda _, value, how: value + (how == "sum"))  # another's vote
    assert run(texts, tmp_path / "other", save_seconds=1000) == 0
    assert saved[1:] == [1, 2, 3, 4, 5, 5]


def test_a_state_of_another_run_is_refused(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "model", max_seconds=0) == 3
    assert run(texts, tmp_path / "model", seed=1) == 1
    assert "is of a run with {'seed': 0}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vocabulary": 330}, "{'vocabulary': 320}"),
        ({"tokenizer_characters": 900}, "{'tokenizer_characters': 60000000}"),
        ({"text_field": "body"}, "{'text_field': 'text'}"),
    ],
    ids=["vocabulary", "characters", "field"],
)
def test_a_tokenizer_of_other_options_is_refused_before_anything_is_tokenized(texts, tmp_path, capsys, changed, said):
    prepared = pretrain_data.prepare_tokenizer([Path(text) for text in texts], "text", 320, 60_000_000, tmp_path / "t")
    again = pretrain_data.prepare_tokenizer([Path(text) for text in texts], "text", 320, 60_000_000, tmp_path / "t")
    assert (prepared[1], again[1]) == (True, False)
    assert prepared[0].get_vocab() == again[0].get_vocab()
    (tmp_path / "model.work").mkdir()
    (tmp_path / "t").rename(tmp_path / "model.work" / "tokenizer")
    assert run(texts, tmp_path / "model", **changed) == 1
    assert f"{tmp_path / 'model.work' / 'tokenizer'} is of a run with {said}" in capsys.readouterr().err
    assert not (tmp_path / "model.work" / "tokens.uint16").exists()
    assert run(texts, tmp_path / "model") == 0


def test_other_texts_want_another_work_folder_whoever_made_the_tokenizer(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "first", tokens=128) == 0
    assert run(texts[:1], tmp_path / "first", tokens=128) == 1
    assert "'text': ['a.jsonl " in capsys.readouterr().err
    begin = ("--init", str(tmp_path / "first"))
    assert run(texts, tmp_path / "second", *begin, max_seconds=0) == 3
    assert run(texts[:1], tmp_path / "second", *begin) == 1
    assert "state.pt is of a run with {'text': ['a.jsonl " in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_both_optimizers_learn_and_muon_leaves_other_weights_to_adamw(optimizer, texts, tmp_path, capsys):
    assert run(texts, tmp_path / "model", tokens=1280, optimizer=optimizer) == 0
    losses = [float(x.split("loss ")[1].split()[0]) for x in capsys.readouterr().out.splitlines() if "loss " in x[:20]]
    assert losses[-1] < losses[0] - 0.2


def test_a_model_can_be_the_start_of_another_run(texts, tmp_path):
    assert run(texts, tmp_path / "first", tokens=1280) == 0
    begin = ("--init", str(tmp_path / "first"))
    assert run(texts, tmp_path / "second", *begin, tokens=128, learning_rate=1e-9, hidden=64, vocabulary=300) == 0
    record = json.loads((tmp_path / "second" / "pretraining.json").read_text())
    assert (record["hidden"], record["vocabulary"], record["max_positions"]) == (32, 320, 32)
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "first").state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "second").state_dict().items():
        assert torch.allclose(value, first[name], atol=1e-5), name


def test_every_epoch_shows_every_document_once_in_another_order():
    documents = [np.full(length, number, np.uint16) for number, length in enumerate([3, 5, 2, 6])]
    bounds = np.cumsum([0, *map(len, documents)])
    corpus = pretrain_data.Corpus(np.concatenate(documents), bounds)
    order = pretrain_data.RowOrder(corpus, np.arange(4), 5, seed=0)
    assert order.rows_per_epoch == 3
    epochs = [order.take(3 * epoch, 3) for epoch in range(6)]
    for rows in epochs:
        stream = np.concatenate([rows[:, :-1].ravel(), rows[-1, -1:]])
        assert np.bincount(stream, minlength=4).tolist() == [3, 5, 2, 6]
        assert (rows[1:, 0] == rows[:-1, -1]).all()
    assert len({rows.tobytes() for rows in epochs}) > 1
    assert np.array_equal(order.take(2, 5), np.concatenate(epochs)[2:7])


def test_lines_without_text_are_named(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    for text, said in (
        ('{"text": "a"}\n{"body": "b"}\n', "x.jsonl, line 2: no text in the field 'text'"),
        ('{"text": "a"}\n\n{"text":\n', "x.jsonl, line 3 is not JSON"),
        ("\n", "there is no text in"),
    ):
        path.write_text(text)
        assert run([str(path)], tmp_path / "model") == 1
        assert said in capsys.readouterr().err


def test_without_held_out_documents_there_is_no_loss_of_them(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "model", valid_documents=0) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith('"valid_loss": null}')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_tokens": 100}, "not a multiple of --row-tokens 32"),
        ({"valid_documents": 1, "row_tokens": 128}, "tokens of held-out documents do not fill a row of 128"),
        ({"valid_documents": 60}, "60 of 60 documents cannot be held out"),
    ],
    ids=["rows of a step", "too little held out", "all held out"],
)
def test_what_does_not_fit_together_is_a_message(texts, tmp_path, capsys, options, message):
    assert run(texts, tmp_path / "model", **options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init", "nowhere"], "--init: no such folder, or no model in it: nowhere"),
        (["--init", "."], "--init: no such folder, or no model in it: ."),
        (["--heads", "3"], "3 heads cannot share --hidden 32 evenly"),
        (["--log-steps", "0"], "argument --log-steps: 0 is less than 1"),
        (["--micro-rows", "x"], "argument --micro-rows: invalid"),
    ],
    ids=["no folder", "no model", "heads", "none", "no number"],
)
def test_wrong_usage_is_a_message(texts, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(texts, tmp_path / "model", *options)
    assert message in capsys.readouterr().err


def test_only_llamas_with_this_tokenizer_can_be_the_start(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "first", tokens=128) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    tiny_model(tiny_config("gpt2", vocab_size=len(tokenizer))).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    for name, other, message in (
        ("gpt2", None, "is a gpt2 model of 320 tokens"),
        ("first", byte_level_three_digits, "a llama model of 320 tokens, with a tokenizer of 1,"),
        ("first", word_piece, "the tokenizer must have the token <|end|>"),
    ):
        if other is not None:
            other().save_pretrained(tmp_path / name)
        assert run(texts, tmp_path / "second", "--init", str(tmp_path / name)) == 1
        assert message in capsys.readouterr().err
