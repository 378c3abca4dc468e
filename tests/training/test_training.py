import argparse
import json

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny_native
from tokenizers_for_tests import byte_level_single_digits
from torch.nn.attention.flex_attention import flex_attention
from transformers import TrainingArguments, pipeline
from window_rule import visible

from decodner_cli import main as command
from decodner_cli.training_arguments import add_train_arguments
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, PromptTemplate
from decodner_hf.core.attention_flex import BLOCK, flex_block_mask, flex_supports, forest_attention_flex
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import forest_attention_reference
from decodner_hf.core.label_head import UNLABELLED, span_loss
from decodner_hf.core.layer_window import LayerWindow
from decodner_hf.data.decontamination import drop_overlaps
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example
from decodner_hf.training.documents import TrainingSource, encode_sources
from decodner_hf.training.model import add_lora, recompute_layers
from decodner_hf.training.prompts import OpenPrompter, OpenTypes, fixed_prompt
from decodner_hf.training.rows import PackedRows
from decodner_hf.training.train import run_train
from decodner_hf.training.trainer import SpanTrainer

LABELS = ("PER", "ORG", "LOC")
SENTENCES = [
    Example(["Steve", "Jobs", "founded", "Apple", "Inc."], ((0, 2, "PER"), (3, 5, "ORG"))),
    Example(["Apple", "in", "Cupertino"], ((0, 1, "ORG"), (2, 3, "LOC"))),
    Example(["the", "company", "in", "California"], ((3, 4, "LOC"),)),
    Example("Mr. O'Neil paid Yahoo!", ((4, 10, "PER"), (16, 22, "ORG"))),
    Example(["nothing", "here"], ()),
]


def encoded(examples=None, context=None, repeat=1.0, **kwargs):
    source = TrainingSource("tiny", examples or SENTENCES * 2, LABELS, repeat, context=context)
    settings = {"max_span_words": 3} | kwargs
    return encode_sources([source], byte_level_single_digits(), PromptTemplate(), **settings)


def fixed_rows(row_tokens=256, epochs=1, examples=None, repeat=1.0):
    prompt = fixed_prompt(dict.fromkeys(LABELS), byte_level_single_digits(), PromptTemplate())
    return PackedRows(encoded(examples, repeat=repeat), prompt, row_tokens=row_tokens, epochs=epochs, seed=3)


def open_rows(seed=3, epochs=1, **settings):
    tokenizer, sources = byte_level_single_digits(), encoded()
    prompter = OpenPrompter(OpenTypes(**settings), sources, tokenizer, PromptTemplate())
    return PackedRows(sources, prompter, row_tokens=256, epochs=epochs, seed=seed)


def tiny_classifier(model_type="llama"):
    if model_type == "llama":
        native = tiny_native(hidden_size=32)
    else:
        sizes = {"vocab_size": len(byte_level_single_digits()), "max_position_embeddings": 512}
        native = tiny_model(tiny_config(model_type, **sizes))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 if parameter.dim() > 1 else torch.ones_like(parameter))
    config = DecodNERConfig(entity_labels=list(LABELS), max_span_words=3, threshold=0.0)
    return DecodNERForSpanClassification.from_backbone(native, config)


def inputs_of(row):
    return {name: torch.as_tensor(value) for name, value in row.items() if name != "labels"}


def trainer(model, rows, folder, **arguments):
    given = {"num_train_epochs": 1, "learning_rate": 3e-3, "report_to": [], "logging_steps": 1, "save_strategy": "no"}
    given |= {"remove_unused_columns": False, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True}
    own = {name: arguments.pop(name) for name in ("none_weight", "dev", "loss_divisor") if name in arguments}
    if arguments.pop("recomputed", False):
        recompute_layers(model)
    args = TrainingArguments(output_dir=str(folder), **(given | arguments))
    return SpanTrainer(model, args, rows, byte_level_single_digits(), **own)


# ------------------------------------------------------------------ rows


def test_every_gold_span_is_labelled_once_and_the_rest_is_none():
    rows = fixed_rows(epochs=2)
    labels = np.concatenate([row["labels"][0].numpy() for row in rows])
    assert [(labels == column).sum() for column in (1, 2, 3)] == [2 * 4, 2 * 6, 2 * 4]
    candidates = sum(len(document.gold) for document in rows.encoded.documents)
    assert (labels != UNLABELLED).sum() == 2 * candidates


def test_rows_have_one_length_and_end_in_roots_without_spans():
    rows = fixed_rows()
    assert len(rows) > 1
    for row in rows:
        assert row["input_ids"].shape == row["position_ids"].shape == row["subtree_end"].shape == (1, 256)
        ends, used = row["subtree_end"][0], int(row["subtree_end"][0, 0]) + 1
        assert (ends[used:] == np.arange(used, 256)).all()
        assert int(row["span_nodes"][0][row["labels"][0] != UNLABELLED].max()) < used


def test_unmatched_gold_spans_are_counted():
    examples = [
        Example(["a", "b", "c", "d", "e"], ((0, 4, "PER"), (0, 1, "ORG"), (0, 1, "LOC"))),
        Example("Steven Jobs", ((0, 5, "PER"),)),
    ]
    coverage = encoded(examples).coverage[0]
    assert (coverage.examples, coverage.gold) == (2, 4)
    assert (coverage.wider, coverage.off_words, coverage.relabelled) == (1, 1, 1)
    assert "1 wider than the limit" in coverage.report()
    assert "50.00%" in coverage.report()


OVERLONG = Example(["Ms", "x" * 300], ((0, 1, "PER"), (1, 2, "ORG")), "d")


@pytest.mark.parametrize("workers", [0, 1])
def test_examples_that_no_window_holds_are_left_out_and_counted(workers):
    around = encoded(SENTENCES)
    found = encoded([*SENTENCES[:2], OVERLONG, OVERLONG, *SENTENCES[2:]], max_tokens=100, workers=workers)
    chains = [document.chain_token_ids.tolist() for document in found.documents]
    assert chains == [document.chain_token_ids.tolist() for document in around.documents]
    (coverage,), (without,) = found.coverage, around.coverage
    assert (coverage.examples, coverage.gold) == (without.examples + 2, without.gold + 4)
    assert (coverage.unheld, coverage.unheld_gold, coverage.wider, coverage.off_words) == (2, 4, 0, 0)
    report = coverage.report()
    assert "7 examples, 11 gold spans, 63.64% of them candidates; 2 examples with 4 gold spans left out" in report
    assert report.count("the example 'Ms x") == 1  # the first, with the reason
    assert "left out" not in without.report()


def test_a_passage_that_no_window_holds_counts_all_its_examples():
    beside = Example(["Ana"], ((0, 1, "PER"),), "d")
    coverage = encoded([OVERLONG, beside, *SENTENCES], Context("document", 10), max_tokens=100).coverage[0]
    assert (coverage.unheld, coverage.unheld_gold) == (2, 3)


def test_candidates_of_joined_sentences_stay_inside_their_sentence():
    examples = [Example([*"ab"], ((1, 2, "PER"),), "d"), Example([*"cd"], ((0, 2, "LOC"),), "d")]
    document = encoded(examples, Context("document", 10)).documents[0]
    alone = encoded(examples).documents
    assert len(document.gold) == sum(len(other.gold) for other in alone) == 6
    assert sorted(document.gold.tolist()) == [0, 0, 0, 0, 1, 3]
    behind = encoded(examples, Context("preceding", 10)).documents
    assert [one.gold.tolist() for one in behind] == [other.gold.tolist() for other in alone]
    chains = (alone[0].chain_token_ids, document.chain_token_ids)
    assert [one.chain_token_ids.tolist() for one in behind] == [chain.tolist() for chain in chains]


def test_partial_examples_carry_loss_at_gold_spans_and_their_neighbours_only():
    examples = [Example("Yesterday Steve Jobs flew from Paris", ((10, 20, "PER"),), partial=True)]
    gold = encoded(examples).documents[0].gold
    assert (gold == 1).sum() == 1
    # spans that overlap words 1 and 2, at most 3 words wide, without the gold span itself
    assert (gold == 0).sum() == 7
    assert (gold == UNLABELLED).sum() == len(gold) - 8


def test_a_label_that_is_not_asked_for_is_an_error():
    with pytest.raises(ValueError, match=r"labels \['PER'\] that are not asked for"):
        encoded(types=["ORG", "LOC"])


def test_rows_too_short_for_any_document_are_an_error_and_long_documents_are_counted():
    with pytest.raises(ValueError, match="use longer rows"):
        fixed_rows(row_tokens=40)
    long = Example(["word"] * 300, ())
    assert fixed_rows(examples=[*SENTENCES, long]).plan.left_out == 1


def test_sources_that_leave_nothing_to_train_on_are_an_error():
    with pytest.raises(ValueError, match=r"no example of the sources \['tiny'\] can be trained on: .* not blank"):
        encoded([Example("  ", ()), Example("a b", (), partial=True)])
    with pytest.raises(ValueError, match=r"repeats of \(0.4,\) show not one document"):
        fixed_rows(examples=SENTENCES[:1], repeat=0.4)


# ------------------------------------------------------------------ open prompts


def prompts_of(rows):
    tokenizer = byte_level_single_digits()
    found = []
    for row in rows:
        ids, ends, start = row["input_ids"][0].numpy(), row["subtree_end"][0], 0
        for symbols in row["symbol_token_ids"]:
            chain = [n for n in range(start, ends[start] + 1) if ends[n] == ends[start]]
            spans = (row["span_nodes"][0] >= start) & (row["span_nodes"][0] <= int(ends[start]))
            spans &= row["labels"][0] != UNLABELLED
            found.append((tokenizer.decode(ids[chain]), symbols, row["labels"][0][spans].tolist()))
            start = int(ends[start]) + 1
    return found


def test_open_prompts_name_each_asked_type_under_a_symbol_of_its_own():
    seen = set()
    for text, symbols, labels in prompts_of(open_rows(epochs=8, recased=0.0, keep=1.0)):
        words = text.split("Entity types: ")[1].split("\n")[0].split()
        items = list(zip([word.removesuffix(".") for word in words[::2]], words[1::2], strict=True))
        assert [name for _, name in items][-1] == "None"
        tokenizer = byte_level_single_digits()
        used = [int(symbol) for symbol in symbols if symbol >= 0]
        assert len(used) == len(set(used)) == len(items)
        assert tokenizer.convert_ids_to_tokens(used) == [items[-1][0], *(symbol for symbol, _ in items[:-1])]
        names = tuple(name for _, name in items[:-1])
        assert set(names) <= set(LABELS)
        assert max(labels, default=0) <= len(names)
        if "Steve Jobs founded" in text:
            assert {"PER", "ORG"} <= set(names)
            assert {names[label - 1] for label in labels if label} == {"PER", "ORG"}
        seen.add(names)
    assert len(seen) > 4


def test_types_that_are_not_asked_for_are_none():
    found = [labels for _, _, labels in prompts_of(open_rows(epochs=4, keep=0.0))]
    assert found
    assert all(max(labels) == 0 for labels in found if labels)


def test_a_span_answers_with_the_nearest_of_its_types_that_is_asked_for():
    parents = {"PER": ["being"], "ORG": ["group", "being"]}
    types = (*LABELS, "being", "group")
    sources, tokenizer = encoded(types=types), byte_level_single_digits()
    prompter = OpenPrompter(OpenTypes(parents=parents), sources, tokenizer, PromptTemplate())
    occurring = np.array([0, 1, 2])
    for asked, answers in (("being", [1, 1, 0]), ("being PER", [2, 1, 0]), ("LOC being group", [2, 3, 1])):
        numbers = np.array([types.index(name) for name in asked.split()])
        assert prompter.columns(numbers, occurring).tolist() == answers
    with pytest.raises(ValueError, match="'being' is a parent of the type 'PER', but no type itself"):
        OpenPrompter(OpenTypes(parents=parents), encoded(), tokenizer, PromptTemplate())


def test_types_are_sometimes_asked_for_by_a_more_general_one():
    parents = {"PER": ["being"], "ORG": ["group", "being"]}
    sources, tokenizer = encoded(types=(*LABELS, "being", "group")), byte_level_single_digits()
    for lifted, coarse, seen in ((0.0, 0.0, {0, 1, 2}), (1.0, 0.0, {2, 3, 4}), (0.0, 1.0, {2, 3})):
        settings = OpenTypes(parents=parents, lifted=lifted, coarse=coarse, keep=1.0, most=1)
        questions = OpenPrompter(settings, sources, tokenizer, PromptTemplate()).draw(
            sources.documents * 20, np.random.default_rng(0)
        )
        examples_with_types = [bool(len(document.types)) for document in sources.documents * 20]
        asked = questions.types[np.repeat(examples_with_types, np.diff(questions.cu_types))]
        assert set(asked.tolist()) == seen


def test_prompts_stay_within_their_tokens_and_ask_for_one_type_at_least():
    tokenizer, sources = byte_level_single_digits(), encoded(SENTENCES * 20)
    sizes = {}
    for limit in (1, 45, 512):
        prompter = OpenPrompter(OpenTypes(prompt_tokens=limit), sources, tokenizer, PromptTemplate())
        questions = prompter.draw(sources.documents, np.random.default_rng(0))
        asked = np.diff(questions.cu_types)
        assert asked.min() >= 1
        assert (questions.sizes[asked > 1] <= limit).all()
        sizes[limit] = asked.mean()
    assert sizes[1] == 1
    assert sizes[1] < sizes[512]


def test_every_prompt_asks_for_a_type_even_where_the_source_knows_one_only():
    source = TrainingSource("one", [Example(["Apple", "Inc."], ((0, 2, "ORG"),))] * 50, ("ORG",))
    sources = encode_sources([source], byte_level_single_digits(), PromptTemplate(), max_span_words=3)
    prompter = OpenPrompter(OpenTypes(keep=0.1), sources, byte_level_single_digits(), PromptTemplate())
    questions = prompter.draw(sources.documents, np.random.default_rng(0))
    assert (np.diff(questions.cu_types) == 1).all()


def test_noise_blanks_tokens_behind_the_prompts_only():
    tokenizer, sources = byte_level_single_digits(), encoded(SENTENCES * 20)
    prompter = OpenPrompter(OpenTypes(), sources, tokenizer, PromptTemplate())
    pad = tokenizer.vocab_size - 1
    for prompt in (fixed_prompt(dict.fromkeys(LABELS), tokenizer, PromptTemplate()), prompter):
        pads = []
        for noise in (0.0, 0.3):
            rows = PackedRows(sources, prompt, row_tokens=512, epochs=1, seed=3, pad_token_id=pad, token_noise=noise)
            pads.append([row["input_ids"][0].numpy() for row in (rows[0], rows[1])])
        changed = [before != after for before, after in zip(*pads, strict=True)]
        share = np.mean([np.mean(part) for part in changed])
        assert 0.05 < share < 0.3
        header = len(prompt.prefix_token_ids) if not isinstance(prompt, OpenPrompter) else 4
        assert not changed[0][:header].any()
        assert all((after[part] == pad).all() for part, after in zip(changed, pads[1], strict=True))


def test_open_rows_depend_on_the_seed_alone():
    first, again, other = open_rows(seed=1), open_rows(seed=1), open_rows(seed=2)
    assert len(first) == len(again)
    for index in reversed(range(len(first))):
        for name, value in first[index].items():
            assert np.array_equal(value, again[index][name]), name
    assert not np.array_equal(first[0]["input_ids"], other[0]["input_ids"])


# ------------------------------------------------------------------ the step


def one_span_at_a_time(model, row):
    """The loss of a row with every span behind its own copy of the prompt, by the decoder's ordinary forward."""
    ids, ends = row["input_ids"][0].numpy(), row["subtree_end"][0]
    losses = []
    by_span = (row[name][0].tolist() for name in ("span_nodes", "labels", "span_prompts"))
    for node, label, prompt in zip(*by_span, strict=True):
        if label == UNLABELLED:
            continue
        path = [n for n in range(node + 1) if ends[n] >= node]
        logits = model.backbone(input_ids=torch.from_numpy(ids[path])[None], use_cache=False).logits[0, -1]
        symbols = row["symbol_token_ids"][prompt]
        losses.append(-logits[torch.from_numpy(symbols[symbols >= 0])].log_softmax(0)[label])
    return torch.stack(losses).sum()


@pytest.mark.parametrize("rows", [fixed_rows, open_rows], ids=["fixed", "open"])
def test_gradient_of_a_packed_row_equals_that_of_one_span_at_a_time(rows):
    model = tiny_classifier().double()
    row = rows()[0]
    packed = span_loss(model(**inputs_of(row)).logits.double(), row["labels"][0], 1)
    alone = one_span_at_a_time(model, row)
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(packed, parameters), torch.autograd.grad(alone, parameters), strict=True)
    for own, oracle in gradients:
        assert (own - oracle).norm() <= 1e-5 * oracle.norm() + 1e-9


def test_loss_falls(tmp_path):
    run = trainer(tiny_classifier(), fixed_rows(epochs=10), tmp_path, max_steps=12, learning_rate=1e-2)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert 0 < run.wait_share < 1


def gradients_after_one_step(folder, monkeypatch, accumulation, row_tokens, **arguments):
    model = tiny_classifier()
    rows = fixed_rows(row_tokens=row_tokens)
    kept = {}
    run = trainer(model, rows, folder, gradient_accumulation_steps=accumulation, max_steps=1, **arguments)
    create = run.create_optimizer

    def spied(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(
            lambda *_: kept.update({name: p.grad.clone() for name, p in model.named_parameters()})
        )
        return optimizer

    monkeypatch.setattr(run, "create_optimizer", spied)
    run.train()
    return len(rows), kept


def test_accumulated_rows_have_the_gradient_of_one_long_row(tmp_path, monkeypatch):
    count, whole = gradients_after_one_step(tmp_path / "a", monkeypatch, 1, 1024, max_grad_norm=0.0)
    assert count == 1
    count, parts = gradients_after_one_step(tmp_path / "b", monkeypatch, 8, 256, max_grad_norm=0.0)
    assert 1 < count <= 8
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=1e-4, atol=1e-6), name


def test_rows_are_trained_in_the_order_of_their_plan(tmp_path, monkeypatch):
    rows, seen = fixed_rows(epochs=2), []
    made = PackedRows.__getitem__
    monkeypatch.setattr(PackedRows, "__getitem__", lambda self, index: seen.append(index) or made(self, index))
    trainer(tiny_classifier(), rows, tmp_path).train()
    assert seen == list(range(len(rows)))


def test_the_divisor_scales_the_gradient(tmp_path, monkeypatch):
    settings = {"max_grad_norm": 0.0}
    _, whole = gradients_after_one_step(tmp_path / "a", monkeypatch, 1, 1024, loss_divisor=1.0, **settings)
    _, third = gradients_after_one_step(tmp_path / "b", monkeypatch, 1, 1024, loss_divisor=3.0, **settings)
    for name, gradient in whole.items():
        assert torch.allclose(3 * third[name], gradient, rtol=1e-4, atol=1e-6), name


def test_none_weight_scales_the_loss_of_spans_that_are_no_entity():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, -100, 0])
    alone = [float(span_loss(logits[[i]], labels[[i]], 1)) for i in (0, 1, 3)]
    weighted = float(span_loss(logits, labels, 1, none_weight=0.25))
    assert weighted == pytest.approx(0.25 * (alone[0] + alone[2]) + alone[1])


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, model_type):
    whole = tiny_classifier(model_type)
    trainer(whole, fixed_rows(epochs=3), tmp_path / "whole", max_steps=5).train()

    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    broken = trainer(tiny_classifier(model_type), fixed_rows(epochs=3), tmp_path / "parts", **settings)
    broken.train()
    again = tiny_classifier(model_type)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    resumed = trainer(again, fixed_rows(epochs=3), tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    for (name, parameter), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer(tiny_classifier(), fixed_rows(), tmp_path, **settings).train()
    index = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(index)
    save_file({name: value for name, value in weights.items() if "layers.0.mlp" not in name}, index, {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold this model's weights.*layers\.0\.mlp"):
        trainer(tiny_classifier(), fixed_rows(), tmp_path, **settings).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_checkpoints_load_in_the_pipeline_and_evaluation_is_the_pipelines(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(tiny_classifier(), fixed_rows(), tmp_path, dev=SENTENCES, **settings)
    run.train()
    reported = [entry for entry in run.state.log_history if "eval_f1" in entry][-1]
    pipe = pipeline("decodner-ner", model=str(tmp_path / "checkpoint-2"))
    right = found = gold = 0
    for example in SENTENCES:
        split = not isinstance(example.content, str)
        entities = pipe(example.content, is_split_into_words=split)
        own = {(entity["start"], entity["end"], entity["entity_group"]) for entity in entities}
        right, found = right + len(own & set(example.character_entities)), found + len(own)
        gold += len(example.entities)
    assert found > 0
    assert reported["eval_f1"] == pytest.approx(2 * right / (found + gold))
    assert json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())["entity_labels"] == list(LABELS)


def test_recomputed_layers_have_the_same_gradient(tmp_path, monkeypatch):
    _, plain = gradients_after_one_step(tmp_path / "a", monkeypatch, 1, 1024)
    _, saved = gradients_after_one_step(tmp_path / "b", monkeypatch, 1, 1024, recomputed=True)
    for name, gradient in plain.items():
        assert torch.allclose(saved[name], gradient, rtol=1e-5, atol=1e-7), name


def test_arguments_that_do_not_fit_packed_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="packed rows need"):
        trainer(tiny_classifier(), fixed_rows(), tmp_path, per_device_train_batch_size=2)


def lora_classifier():
    model = tiny_classifier()
    add_lora(model, 4)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def adapter_of(model):
    return {name: value for name, value in model.state_dict().items() if "lora_" in name}


def test_adapters_are_trained_saved_alone_and_resumed_exactly(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = lora_classifier()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(whole, fixed_rows(epochs=2), tmp_path, **settings).train()
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(adapter_of(whole))
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()

    again = lora_classifier()
    with torch.no_grad():
        for value in adapter_of(again).values():
            value.zero_()
    resumed = trainer(again, fixed_rows(epochs=2), tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in adapter_of(whole).items():
        assert torch.equal(value, adapter_of(again)[name]), name


# ------------------------------------------------------------------ the command


@pytest.fixture
def files(tmp_path):
    tokenizer = byte_level_single_digits()
    tiny_native(hidden_size=32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"tokens": example.content, "entities": [list(entity) for entity in example.entities]}
        for example in SENTENCES
        if not isinstance(example.content, str)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    return tmp_path


ROW_TOKENS = 512


def run_command(files, *arguments):
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    common = ["--model", str(files / "base"), "--output", str(files / "out"), "--train", str(files / "data.jsonl")]
    common += ["--cpu", "--workers", "0", "--row-tokens", str(ROW_TOKENS), "--epochs", "2", "--max-span-words", "3"]
    return run_train(parser.parse_args([*common, *arguments]))


def test_the_command_trains_a_folder_for_the_pipeline(files, capsys):
    code = run_command(
        files, "--dev", str(files / "data.jsonl"), "--labels", "PER=a person", "ORG", "LOC", "--licence", "mit",
        "--save-dtype", "bfloat16", "--max-shard-size", "100KB",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "data.jsonl: 16 examples, 20 gold spans, 100.00% of them candidates" in said
    pipe = pipeline("decodner-ner", model=str(files / "out"))
    assert pipe.model.config.labels == {"PER": "a person", "ORG": None, "LOC": None}
    assert pipe.model.dtype == torch.bfloat16
    assert isinstance(pipe("Apple in Cupertino"), list)
    card = (files / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "| data.jsonl | 16 | 3 |" in card
    assert "- type: f1" in card
    assert len(list((files / "out").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [([], torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)],
    ids=["by default", "asked for"],
)
def test_the_cpu_computes_in_float32_or_as_asked_for(files, asked, dtype):
    seen = set()

    def see(module, _, output):
        if isinstance(module, torch.nn.Linear) and output.shape[1] == ROW_TOKENS:
            seen.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    with hook:
        assert run_command(files, "--max-steps", "1", *asked) == 0
    assert seen == {dtype}


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("asked", [[], ["--gradient-checkpointing"]], ids=["plain", "recomputed"])
def test_layers_are_computed_again_where_asked_for(files, asked):
    calls = []

    def see(module, _, output):
        if isinstance(module, torch.nn.Linear) and output.shape[1] == ROW_TOKENS:
            calls.append(module)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    with hook:
        assert run_command(files, "--max-steps", "1", *asked) == 0
    assert calls
    assert (len(calls) > len(set(calls))) == bool(asked)


def test_the_command_trains_adapters_that_the_pipeline_loads(files, capsys):
    assert run_command(files, "--lora-rank", "4", "--labels", *LABELS) == 0
    assert "100.00%" in capsys.readouterr().out
    assert not (files / "out" / "model.safetensors").exists()
    pipe = pipeline("decodner-ner", model=str(files / "out"))
    assert list(pipe.model.config.labels) == list(LABELS)
    assert any("lora_" in name for name in pipe.model.state_dict())


def test_the_command_trains_open_types_and_goes_on_where_it_stopped(files, capsys):
    (files / "notes.json").write_text(json.dumps({"PER": {"description": "a human", "aliases": ["person"]}}))
    opened = ["--open-types", "--type-notes", str(files / "notes.json")]
    assert run_command(files, *opened, "--max-seconds", "0.001") == 3
    *_, stopped, advice = capsys.readouterr().out.splitlines()
    assert "--resume" in advice
    stopped = json.loads(stopped)
    assert run_command(files, *opened, "--resume") == 0
    said = capsys.readouterr().out
    assert "going on from" in said
    assert "checkpoint-1\n" in said
    finished = json.loads(said.splitlines()[-1])
    assert stopped["steps"] == 1 < finished["steps"]


def test_the_command_writes_over_no_earlier_model(files):
    (files / "out").mkdir()
    assert run_command(files, "--max-steps", "1") == 0
    with pytest.raises(ValueError, match=r"out is there already, and not empty.*--resume"):
        run_command(files, "--max-steps", "1")


def test_the_command_drops_training_examples_that_overlap_evaluation(files, capsys):
    (files / "held.jsonl").write_text(json.dumps({"text": " ".join(map(str, range(12))), "entities": []}) + "\n")
    with open(files / "data.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps({"tokens": [str(number) for number in range(11)], "entities": [[0, 1, "PER"]]}) + "\n")
    assert run_command(files, "--keep-apart", str(files / "held.jsonl")) == 0
    said = capsys.readouterr().out
    assert "1 examples dropped" in said
    assert "data.jsonl: 16 examples" in said
    assert json.loads((files / "out" / "training.json").read_text())["dropped"] == {"data.jsonl": 1}


def test_the_command_trains_on_the_examples_that_windows_hold(files, capsys):
    with open(files / "data.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps({"tokens": ["x" * 2000], "entities": [[0, 1, "PER"]]}) + "\n")
    assert run_command(files, "--max-steps", "1") == 0
    assert "17 examples, 21 gold spans, 95.24% of them candidates; 1 examples with 1 gold" in capsys.readouterr().out


@pytest.mark.parametrize("every", ["0", "1"], ids=["behind_training", "while_training"])
def test_a_dev_document_that_no_window_holds_costs_the_metrics_and_not_the_model(files, every):
    (files / "dev.jsonl").write_text(json.dumps({"tokens": ["x" * 2000], "entities": [[0, 1, "PER"]]}) + "\n")
    with pytest.raises(ValueError, match="window"):
        run_command(files, "--max-steps", "1", "--evaluate-epochs", every, "--dev", str(files / "dev.jsonl"))
    pipeline("decodner-ner", model=str(files / "out"))("Ana")


def test_labels_of_dev_examples_that_are_not_asked_for_are_refused_before_training(files):
    (files / "dev.jsonl").write_text(json.dumps({"text": "Ana", "entities": [[0, 3, "person"]]}) + "\n")
    with pytest.raises(ValueError, match=r"--dev has labels \['person'\] that are not asked for; .*PER"):
        run_command(files, "--dev", str(files / "dev.jsonl"))


def test_a_calibrated_start_gives_its_weights_and_not_its_thresholds(files):
    config = DecodNERConfig(
        entity_labels=["person"], temperature=2.0, threshold=0.1, label_thresholds={"person": 0.9},
        flat_selection="exact",
    )  # fmt: skip
    native = tiny_native(hidden_size=32)
    DecodNERForSpanClassification.from_backbone(native, config).save_pretrained(files / "base")
    assert run_command(files, "--max-steps", "1") == 0
    own, new = DecodNERConfig.from_pretrained(files / "out"), DecodNERConfig()
    assert set(own.labels) == set(LABELS)
    for name in ("temperature", "threshold", "label_thresholds", "flat_selection"):
        assert getattr(own, name) == getattr(new, name) != getattr(config, name)


@pytest.mark.parametrize("again", [[], ["--lora-rank", "2"]], ids=["all weights", "adapters"])
def test_adapters_are_no_start(files, again):
    assert run_command(files, "--lora-rank", "4", "--max-steps", "1") == 0
    (files / "base").rename(files / "decoder")
    (files / "out").rename(files / "base")
    adapter = files / "base" / "adapter_config.json"
    values = json.loads(adapter.read_text()) | {"base_model_name_or_path": str(files / "decoder")}
    adapter.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"holds adapters on .*decoder: train that one"):
        run_command(files, "--max-steps", "1", *again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "PER"], r"labels \['LOC', 'ORG'\] that are not asked for"),
        (["--row-tokens", "100"], "a multiple of 128"),
        (["--load-in-4bit"], "needs --lora-rank"),
        (["--open-types", "--labels", "A"], "leave --labels out"),
        (["--keep-best"], "--keep-best needs --dev"),
        (["--sources", "x.json"], "either --train or --sources"),
        (["--max-steps", "0"], "--max-steps must be at least 1, not 0"),
        (["--max-seconds", "0"], "--max-seconds must be above 0"),
        (["--warmup", "2"], "--warmup is a part of the steps"),
    ],
    ids=["label", "row-tokens", "4bit", "open-labels", "keep-best", "two-sources", "steps", "seconds", "warmup"],
)
def test_wrong_options_are_named(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_command(files, *arguments)


def test_a_model_folder_that_is_not_there_is_named(files, capsys):
    arguments = ["train", "--model", "./nowhere", "--output", str(files / "out"), "--train", str(files / "data.jsonl")]
    assert command.main(arguments) == 1
    assert "there is no folder ./nowhere." in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_where_no_window_holds_any_example_the_first_is_named_without_a_workers_traceback(workers):
    example = Example("See " + "x" * 300, ((4, 304, "PER"),))
    with pytest.raises(ValueError, match=r"^the source 'tiny': the example 'See x{56}': words 0 to 1 take \d+ tokens"):
        encoded([example, OVERLONG], max_tokens=100, workers=workers)


# ------------------------------------------------------------------ FlexAttention's mask


@pytest.mark.parametrize(
    "window",
    [LayerWindow(), LayerWindow(sliding=20), LayerWindow(chunk=32)],
    ids=["full", "sliding", "chunked"],
)
def test_flex_mask_is_the_forest_rule(window):
    row = fixed_rows(row_tokens=1024)[0]
    positions, ends = torch.from_numpy(row["position_ids"][0]), torch.from_numpy(row["subtree_end"][0])
    mask = flex_block_mask(AttentionMetadata(positions, ends), window, torch.device("cpu"))
    nodes = torch.arange(len(ends))
    rule = (nodes[None] <= nodes[:, None]) & (nodes[:, None] <= ends[None]) & visible(window, positions, positions)
    assert torch.equal(mask.mask_mod(0, 0, nodes[:, None], nodes[None]), rule)
    tiles = rule.view(len(ends) // BLOCK, BLOCK, -1, BLOCK)
    listed = dense(mask.kv_num_blocks, mask.kv_indices)
    full = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (listed & full).any()
    assert (listed | full)[tiles.any(3).any(1)].all()
    assert tiles.all(3).all(1)[full].all()
    assert torch.equal(dense(mask.q_num_blocks, mask.q_indices), listed.T)
    assert torch.equal(dense(mask.full_q_num_blocks, mask.full_q_indices), full.T)


def dense(counts, indices):
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for line, count in enumerate(counts[0, 0].tolist()):
        found[line, indices[0, 0, line, :count].long()] = True
    return found


def test_flex_attention_equals_the_reference():
    row = open_rows()[0]
    positions, ends = torch.from_numpy(row["position_ids"][0]), torch.from_numpy(row["subtree_end"][0])
    window = LayerWindow(sliding=40)
    mask = flex_block_mask(AttentionMetadata(positions, ends), window, torch.device("cpu"))
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 4, len(ends), 16),
        torch.randn(1, 2, len(ends), 16),
        torch.randn(1, 2, len(ends), 16),
    )
    own = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    metadata = AttentionMetadata(positions, ends)
    expected = forest_attention_reference(query, key, value, None, metadata, window, 0.3)
    assert (own - expected).abs().max() < 1e-5


def test_flex_refuses_what_it_cannot_do():
    query = torch.zeros(1, 2, 256, 16)
    assert flex_supports(query, query, None, None)
    assert not flex_supports(query[:, :, :200], query, None, None)
    assert not flex_supports(query, query, None, torch.zeros(2))
    assert not flex_supports(query, query, (query, query), None)
    with pytest.raises(ValueError, match="use forest_attention"):
        forest_attention_flex(query, query, query, None, None, LayerWindow(), 1.0, None, torch.zeros(2))


# ------------------------------------------------------------------ overlaps


def test_examples_that_share_ten_words_in_a_row_are_dropped():
    words = [f"w{number}" for number in range(30)]
    held = [Example(words[:20], ()), Example("One two.", ())]
    train = [
        Example(["x", *words[3:13], "y"], ()),
        Example(["x", *words[3:12], "y"], ()),
        Example(" ".join(words[5:15]).upper().replace(" ", ", "), ()),
        Example(words[20:], ()),
        Example("One two.", ()),
    ]
    kept, dropped = drop_overlaps(train, [held])
    assert dropped == 2
    assert kept == [train[1], train[3], train[4]]
