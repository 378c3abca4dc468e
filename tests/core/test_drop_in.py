"""What a transformers user does to any model, done to ours."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from architectures import spans_of, tiny_config, tiny_model
from hidden_packages import hide_packages
from peft import LoraConfig, PeftModel, get_peft_model
from row_dataset import Rows
from tiny_pipelines import LABELS, TEXT, tiny_pipeline
from transformers import AutoModelForTokenClassification, Trainer, TrainingArguments, pipeline
from transformers.trainer_pt_utils import LabelSmoother

import decodner_hf
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, SpanPaths, build_forest

ASKED = {"candidate_labels": LABELS, "threshold": 0.0, "overlap": "all", "return_all_scores": True}
CLOSE = {"rtol": 0, "atol": 1e-5}
PREFIX = [5, 9, 13, 7]
SYMBOLS = torch.tensor([3, 4, 6])


def tiny_wrapped(model_type="llama", **settings):
    return DecodNERForSpanClassification.from_backbone(tiny_model(tiny_config(model_type, **settings)))


def forest(chain=PREFIX, first_position=0):
    return build_forest([list(chain)], [SpanPaths.from_lists(spans_of([14, 15, 16]))], first_position=first_position)


def packed(**options):
    tree = forest()
    rows = {name: getattr(tree, name)[None] for name in ("position_ids", "subtree_end", "span_nodes")}
    return {"input_ids": tree.token_ids[None], "symbol_token_ids": SYMBOLS, **rows, **options}


def scores(model):
    return model.eval().score_forest(forest(), SYMBOLS)


@pytest.fixture
def folder(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_vocabulary_can_be_resized(model_type, tied, tmp_path):
    model = tiny_wrapped(model_type, tie_word_embeddings=tied)
    before = scores(model)
    cache = model.encode_prefix(PREFIX)
    resized = model.resize_token_embeddings(80)
    assert resized is model.get_input_embeddings()
    assert (model.vocabulary_size, model.vocab_size, model.config.get_text_config().vocab_size) == (80, 80, 80)
    assert (model.get_output_embeddings().weight is resized.weight) is tied
    torch.testing.assert_close(scores(model), before, **CLOSE)
    own = model.score_forest(forest([], len(PREFIX)), torch.tensor([3, 79]), cache)
    native = model.backbone(input_ids=torch.tensor([[*PREFIX, 14]])).logits[0, -1, [3, 79]]
    torch.testing.assert_close(own[0], native, rtol=0, atol=5e-5)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(scores(DecodNERForSpanClassification.from_pretrained(tmp_path)), before, **CLOSE)


def test_embeddings_that_are_set_are_the_decoders():
    model = tiny_wrapped()
    embedding, head = torch.nn.Embedding(70, 32), torch.nn.Linear(32, 70)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    assert model.backbone.get_input_embeddings() is embedding
    assert model.backbone.lm_head is head
    expected = model.backbone(input_ids=torch.tensor([[*PREFIX, 14]])).logits[0, -1, SYMBOLS]
    torch.testing.assert_close(scores(model)[0], expected, rtol=0, atol=5e-5)


def test_a_pipeline_follows_a_resized_vocabulary():
    pipe = tiny_pipeline()
    expected = pipe(TEXT, **ASKED)
    pipe.model.resize_token_embeddings(pipe.model.vocabulary_size + 8)
    assert pipe(TEXT, **ASKED) == expected


def test_weights_are_initialised_by_the_decoders_own_rules():
    config = DecodNERConfig(text_config=tiny_config("llama"))
    with torch.device("meta"):
        model = DecodNERForSpanClassification(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    model.init_weights()
    assert all(bool(tensor.isfinite().all()) for tensor in (*model.parameters(), *model.buffers()))
    assert 0.01 < model.get_input_embeddings().weight.std().item() < 0.03
    assert torch.equal(model.backbone.model.norm.weight, torch.ones(32))
    model.check()
    assert model.row_head


def test_wrapping_a_model_leaves_its_weights_as_they_are():
    native = tiny_model(tiny_config("llama"))
    for module in native.modules():  # as some loaders leave them
        vars(module).pop("_is_hf_initialized", None)
    before = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    model = DecodNERForSpanClassification.from_backbone(native)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---------------------------------------------------------------- generation and other pipelines


def test_it_generates_as_its_decoder(folder):
    model = tiny_wrapped()
    assert model.can_generate()
    prompt, options = torch.tensor([PREFIX]), {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, **options), model.backbone.generate(prompt, **options))
    model.generation_config.max_new_tokens = 3
    assert model.generate(prompt, do_sample=False, eos_token_id=None).shape == (1, len(PREFIX) + 3)
    written = pipeline("text-generation", model=folder, device="cpu")("Hello there", max_new_tokens=5)
    assert written[0]["generated_text"].startswith("Hello there")


@pytest.mark.parametrize("task", ["ner", "token-classification"])
def test_transformers_own_pipeline_says_which_one_to_use(folder, task):
    pipe = pipeline(task, model=folder, device="cpu")
    with pytest.raises(ValueError, match=r'labels no tokens: use pipeline\("decodner-ner", model=\.\.\.\)'):
        pipe("Steve Jobs was here.")


def test_the_token_classification_class_still_scores_spans(folder):
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert isinstance(model, DecodNERForSpanClassification)
    assert tiny_pipeline(model=model)(TEXT, **ASKED) == tiny_pipeline()(TEXT, **ASKED)


# ---------------------------------------------------------------- what a packed pass returns


@pytest.mark.parametrize("row_head", [True, False], ids=["row head", "native head"])
def test_hidden_states_of_a_packed_pass_are_the_decoders(row_head):
    model = tiny_wrapped()
    model.row_head = row_head
    output = model(**packed(output_hidden_states=True))
    alone = model(input_ids=torch.tensor([[*PREFIX, 14]]), output_hidden_states=True).hidden_states
    assert len(output.hidden_states) == len(alone) == 4
    for own, expected in zip(output.hidden_states, alone, strict=True):
        torch.testing.assert_close(own[0, : len(PREFIX) + 1], expected[0], rtol=1e-4, atol=5e-5)
    assert model(**packed()).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**packed()).hidden_states) == 4


def test_a_packed_pass_returns_a_tuple_where_it_is_asked_to():
    model = tiny_wrapped()
    gold = torch.arange(forest().num_spans)[None] % 3
    output = model(**packed(labels=gold))
    for one in (
        model(**packed(labels=gold, return_dict=False)),
        _with(model, return_dict=False)(**packed(labels=gold)),
    ):
        assert isinstance(one, tuple)
        torch.testing.assert_close(one, (output.loss, output.logits))


def _with(model, **settings):
    changed = copy.deepcopy(model)
    changed.config.update(settings)
    return changed


def test_attention_matrices_of_a_packed_pass_are_refused():
    with pytest.raises(ValueError, match="output_attentions cannot be served: leave it out"):
        tiny_wrapped()(**packed(output_attentions=True))


def test_logits_have_the_shape_of_the_spans():
    model = tiny_wrapped()
    row = model(**packed()).logits
    assert row.shape == (1, forest().num_spans, 3)
    assert torch.equal(model(**packed(span_nodes=forest().span_nodes)).logits, row[0])


# ---------------------------------------------------------------- adapters


def lora(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)


def test_adapters_are_seen_on_the_outer_model():
    model = tiny_wrapped()
    before = scores(model)
    assert not hasattr(model, "peft_config")
    assert not model._hf_peft_config_loaded
    model.add_adapter(lora())
    model.add_adapter(lora(), "second")
    assert list(model.peft_config) == ["default", "second"]
    assert model.peft_config is model.backbone.peft_config
    assert model._hf_peft_config_loaded
    state = model.get_adapter_state_dict("second")
    weight = model.backbone.model.layers[0].self_attn.q_proj.lora_A["second"].weight
    assert torch.equal(state["model.layers.0.self_attn.q_proj.lora_A.weight"], weight)
    second = scores(model)
    model.delete_adapter("default")
    assert list(model.peft_config) == ["second"]
    torch.testing.assert_close(scores(model), second)
    model.delete_adapter("second")
    assert not hasattr(model, "peft_config")
    assert not model._hf_peft_config_loaded
    torch.testing.assert_close(scores(model), before)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "TOKEN_CLS"])
def test_peft_wraps_the_model(tmp_path, task_type):
    tiny_wrapped().save_pretrained(tmp_path / "base")
    load = DecodNERForSpanClassification.from_pretrained
    model = load(tmp_path / "base")
    before = scores(model)
    wrapped = get_peft_model(model, lora(task_type=task_type))
    first = scores(model)
    assert float((first - before).abs().max()) > 0.1
    assert model.active_adapters() == ["default"]
    wrapped.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(
        scores(PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter").get_base_model()), first
    )
    torch.testing.assert_close(scores(load(tmp_path / "adapter")), first)
    wrapped.add_adapter("second", lora(task_type=task_type))
    wrapped.set_adapter("second")
    assert float((scores(model) - first).abs().max()) > 0.1
    wrapped.set_adapter("default")
    wrapped.delete_adapter("second")
    torch.testing.assert_close(scores(model), first)
    with wrapped.disable_adapter():
        torch.testing.assert_close(scores(model), before)
    merged = wrapped.merge_and_unload()
    assert merged is model
    assert not hasattr(model, "peft_config")
    torch.testing.assert_close(scores(merged), first, rtol=0, atol=5e-4)


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("prefixed", [True, False], ids=["our keys", "the decoder's keys"])
def test_a_model_is_made_of_a_configuration_and_weights(prefixed):
    model = tiny_wrapped()
    state = (model if prefixed else model.backbone).state_dict()
    made = DecodNERForSpanClassification.from_pretrained(None, config=model.config, state_dict=state)
    torch.testing.assert_close(scores(made), scores(model))
    made = DecodNERForSpanClassification.from_pretrained(None, config=model.config.text_config, state_dict=state)
    torch.testing.assert_close(scores(made), scores(model))
    lacking = dict(list(state.items())[1:])
    with pytest.raises(ValueError, match="the state_dict lacks weights of LlamaForCausalLM"):
        DecodNERForSpanClassification.from_pretrained(None, config=model.config, state_dict=lacking)


@pytest.mark.parametrize("given", [{}, {"config": True}, {"state_dict": {}}], ids=["nothing", "config", "weights"])
def test_without_a_path_both_are_needed(given):
    if "config" in given:
        given = {"config": DecodNERConfig(text_config=tiny_config("llama"))}
    with pytest.raises(ValueError, match="needs both config and state_dict"):
        DecodNERForSpanClassification.from_pretrained(None, **given)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}], ids=["auto", "cpu"])
def test_accelerate_fills_the_decoder_of_an_empty_model(folder, device_map):
    with init_empty_weights():
        model = DecodNERForSpanClassification(DecodNERConfig.from_pretrained(folder))
    load_checkpoint_and_dispatch(model.backbone, folder, device_map=device_map)
    model.check()
    assert model.row_head
    assert tiny_pipeline(model=model)(TEXT, **ASKED) == tiny_pipeline()(TEXT, **ASKED)
    with init_empty_weights():
        outer = DecodNERForSpanClassification(DecodNERConfig.from_pretrained(folder))
    with pytest.raises(NotImplementedError, match=r"load_checkpoint_and_dispatch fill model\.backbone"):
        load_checkpoint_and_dispatch(outer, folder, device_map=device_map)


SCRIPT = """
import sys
from transformers import AutoModel
try:
    model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "trusted")
except (ImportError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
model.save_pretrained(sys.argv[1] + "-again")
print(type(model).__module__)
"""


def load_elsewhere(folder, tmp_path, *, trusted, installed):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(decodner_hf.__file__).parents[1])
    script = SCRIPT if installed else hide_packages("decodner_hf") + SCRIPT
    command = [sys.executable, "-c", script, folder, "trusted" if trusted else "not trusted"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_a_saved_folder_asks_for_the_package_where_it_is_not_installed(folder, tmp_path):
    run = load_elsewhere(folder, tmp_path, trusted=False, installed=False)
    assert run.returncode == 1
    assert "trust_remote_code" in run.stderr
    run = load_elsewhere(folder, tmp_path, trusted=True, installed=False)
    assert any(line.startswith("ImportError: ") for line in run.stderr.splitlines())
    assert "decodner_hf. Run `pip install decodner_hf`" in run.stderr


def test_a_saved_folder_imports_the_package_where_it_is_installed(folder, tmp_path):
    run = load_elsewhere(folder, tmp_path, trusted=True, installed=True)
    assert run.stdout.split() == ["decodner_hf.core.modeling"], run.stderr
    written = {path.name for path in Path(f"{folder}-again").glob("*.py")}
    assert written == {"decodner_package.py"}
    values = DecodNERConfig.from_pretrained(f"{folder}-again").auto_map
    assert values["AutoConfig"] == "decodner_package.DecodNERConfig"


# ---------------------------------------------------------------- a plain Trainer


def plain_trainer(model, rows, tmp_path, **settings):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, max_steps=2, logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", remove_unused_columns=False, disable_tqdm=True, **settings,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Rows(rows), data_collator=lambda rows: dict(rows[0]))


def test_a_plain_trainer_smooths_the_labels_of_packed_rows(tmp_path):
    model = tiny_wrapped()
    gold = torch.arange(forest().num_spans)[None] % 3
    row = packed(labels=gold)
    expected = LabelSmoother(epsilon=0.1)({"logits": model(**packed()).logits[0]}, gold[0])
    trainer = plain_trainer(model, [row] * 2, tmp_path, label_smoothing_factor=0.1, learning_rate=0.0)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([float(expected)] * 2, rel=1e-3)


def test_a_plain_trainer_does_not_smooth_ordinary_language_modelling_in_silence(tmp_path):
    row = {"input_ids": torch.tensor([PREFIX]), "labels": torch.tensor([PREFIX])}
    trainer = plain_trainer(tiny_wrapped(), [row] * 2, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"num_items_in_batch was given without labels: .*train model\.backbone"):
        trainer.train()
    plain_trainer(tiny_wrapped(), [row] * 2, tmp_path).train()


# ---------------------------------------------------------------- copies of the pipeline


def annotate(pipe):
    return pipe(TEXT, **ASKED)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_pipeline_is_copied_with_what_it_needs(duplicate):
    pipe = tiny_pipeline(token_budget=100)
    expected = annotate(pipe)
    other = duplicate(pipe)
    assert annotate(other) == expected
    assert other.model is not pipe.model
    assert other.scorer.model is other.model
    assert other.scorer.token_budget == 100
    with torch.no_grad():
        other.model.backbone.lm_head.weight.mul_(0.0)
    assert annotate(other) != expected
    assert annotate(pipe) == expected


def test_a_new_process_takes_the_pipeline_as_argument():
    pipe = tiny_pipeline()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(annotate, pipe).result() == annotate(pipe)
