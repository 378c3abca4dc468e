"""What PEFT, accelerate, datasets and transformers' own pipelines and Trainer do to a model, done to ours."""

import copy

import datasets
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from architectures import spans_of, tiny_config, tiny_model
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from row_dataset import Rows
from tiny_pipelines import LABELS, TEXT, alike, tiny_pipeline
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, pipeline
from transformers.trainer_pt_utils import LabelSmoother

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, SpanPaths, build_forest

CLOSE = {"rtol": 0, "atol": 1e-5}
PREFIX = [5, 9, 13, 7]
SYMBOLS = torch.tensor([3, 4, 6])


def tiny_wrapped():
    return DecodNERForSpanClassification.from_backbone(tiny_model(tiny_config("llama")))


def forest():
    return build_forest([PREFIX], [SpanPaths.from_lists(spans_of([14, 15, 16]))])


def packed(**options):
    tree = forest()
    rows = {name: getattr(tree, name)[None] for name in ("position_ids", "subtree_end", "span_nodes")}
    return {"input_ids": tree.token_ids[None], "symbol_token_ids": SYMBOLS, **rows, **options}


def scores(model):
    return model.eval().score_forest(forest(), SYMBOLS)


# ---------------------------------------------------------------- transformers' own pipelines and attention


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_the_ner_pipeline_around_a_model_object_names_ours(strategy):
    ours = tiny_pipeline()
    pipe = pipeline("ner", model=ours.model, tokenizer=ours.tokenizer, device="cpu", aggregation_strategy=strategy)
    with pytest.raises(ValueError, match=r'labels no tokens: use pipeline\("decodner-ner", model=\.\.\.\)') as refused:
        pipe("Steve Jobs was here.")
    assert "\n" not in str(refused.value)
    labels = copy.deepcopy(ours.model.config).id2label
    assert (labels[1], labels.get(7), 7 in labels) == ("LABEL_1", None, False)


def test_a_new_model_may_have_a_decoder_with_eager_attention():
    config = DecodNERConfig(text_config=tiny_config("llama"))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.tensor([PREFIX])
    output = model(input_ids=ids, output_attentions=True)
    assert output.attentions[0].shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match="attention was set to 'eager', which knows no forests"):
        scores(model)
    model.backbone.set_attn_implementation("decodner")
    again = model(input_ids=torch.tensor([[*PREFIX, 14]])).logits[0, -1, SYMBOLS]
    torch.testing.assert_close(scores(model)[0], again, rtol=0, atol=5e-5)
    assert DecodNERForSpanClassification(config).backbone.config._attn_implementation == "eager"
    plain = DecodNERConfig(text_config=tiny_config("llama"))
    assert AutoModelForCausalLM.from_config(plain).backbone.config._attn_implementation == "decodner"


# ---------------------------------------------------------------- PEFT


PROMPTS = [
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
]


@pytest.mark.parametrize("config", PROMPTS, ids=lambda config: config.peft_type.value)
def test_learned_prompts_are_refused_where_spans_are_scored(config):
    ours = tiny_pipeline()
    with pytest.raises(ValueError, match=rf"the adapter 'default' \({config.peft_type.value}\) learns a prompt"):
        ours.model.add_adapter(copy.deepcopy(config))
    wrapped = get_peft_model(ours.model, copy.deepcopy(config))
    with pytest.raises(ValueError, match=rf"the adapter 'default' \({config.peft_type.value}\) learns a prompt"):
        tiny_pipeline(model=wrapped)
    with pytest.raises(
        ValueError, match=r"a packed pass cannot take (inputs_embeds|past_key_values|cache): .*use LoRA"
    ):
        wrapped(**packed())


def test_a_pipeline_takes_a_model_with_adapters_of_which_some_are_merged():
    ours = tiny_pipeline()
    asked = {"candidate_labels": LABELS, "threshold": 0.0, "overlap": "all", "return_all_scores": True}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(ours.model), lora)
    wrapped.add_adapter("second", lora)
    around = tiny_pipeline(model=wrapped)
    found = {}
    for name in ("default", "second"):
        wrapped.set_adapter(name)
        found[name] = [row["score"] for row in around(TEXT, **asked)]
    plain = [row["score"] for row in ours(TEXT, **asked)]
    assert plain != pytest.approx(found["default"], abs=1e-3)
    assert found["second"] != pytest.approx(found["default"], abs=1e-3)
    merged = wrapped.merge_and_unload(adapter_names=["second"])
    assert [row["score"] for row in tiny_pipeline(model=merged)(TEXT, **asked)] == pytest.approx(
        found["second"], abs=1e-4
    )


# ---------------------------------------------------------------- accelerate


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload], ids=["to the CPU", "to the disk"])
def test_an_offloaded_model_scores_as_before_and_is_not_called_empty(offload, tmp_path):
    model = tiny_wrapped()
    before = scores(model)
    where = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **where)
    assert model.device.type == "cpu"
    torch.testing.assert_close(scores(model), before, **CLOSE)
    with pytest.raises(NotImplementedError, match="weights are offloaded, and accelerate moves them"):
        model.to("cpu", torch.float64)
    if offload is cpu_offload:
        remove_hook_from_submodules(model)
        torch.testing.assert_close(scores(model.to("cpu")), before, **CLOSE)


def test_a_pipeline_runs_an_offloaded_model():
    ours = tiny_pipeline(candidate_labels=LABELS, threshold=0.2)
    expected = ours(TEXT)
    model = cpu_offload(copy.deepcopy(ours.model), execution_device=torch.device("cpu"))
    assert alike(tiny_pipeline(model=model, candidate_labels=LABELS, threshold=0.2)(TEXT), expected)


def test_a_dispatched_model_scores_as_before():
    model = tiny_wrapped()
    before = scores(model)
    dispatched = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    torch.testing.assert_close(scores(dispatched), before, **CLOSE)


# ---------------------------------------------------------------- datasets


def test_a_dataset_is_annotated_by_several_processes():
    ours = tiny_pipeline(candidate_labels=LABELS, threshold=0.2)
    rows = datasets.Dataset.from_dict({"text": [f"{TEXT} {number}" for number in range(6)]})

    def annotate(batch):
        return {"found": [[row["word"] for row in found] for found in ours(batch["text"])]}

    mapped = rows.map(annotate, batched=True, batch_size=2, num_proc=2)
    assert mapped["found"][:] == [[row["word"] for row in found] for found in ours(rows["text"][:])]


# ---------------------------------------------------------------- a plain Trainer


def smoothing_trainer(row, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, max_steps=1, logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", remove_unused_columns=False, disable_tqdm=True, label_smoothing_factor=0.1,
        learning_rate=0.0,
    )  # fmt: skip
    return Trainer(tiny_wrapped(), arguments, train_dataset=Rows([row]), data_collator=lambda rows: dict(rows[0]))


def test_spans_that_are_left_out_are_not_smoothed(tmp_path):
    gold = torch.arange(forest().num_spans)[None] % 3
    gold[0, ::2] = -100
    expected = LabelSmoother(epsilon=0.1)({"logits": tiny_wrapped()(**packed()).logits[0]}, gold[0].clone())
    trainer = smoothing_trainer(packed(labels=gold), tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-3)


def test_smoothing_over_padded_symbols_is_refused_instead_of_being_infinite(tmp_path):
    spans = forest().num_spans
    two = torch.tensor([[3, 4, 6], [3, 4, -1]])
    row = packed(symbol_token_ids=two, span_prompts=torch.zeros(spans, dtype=torch.long)[None])
    assert tiny_wrapped()(**row, labels=torch.zeros(1, spans, dtype=torch.long)).loss.isfinite()
    trainer = smoothing_trainer(row | {"labels": torch.zeros(1, spans, dtype=torch.long)}, tmp_path)
    with pytest.raises(ValueError, match="label_smoothing_factor would get an infinite loss"):
        trainer.train()


# ---------------------------------------------------------------- loading


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    load = DecodNERForSpanClassification.from_pretrained
    (tmp_path / "model.txt").write_text("no model")
    tiny_pipeline().save_pretrained(tmp_path / "saved")
    cases = [
        (tmp_path / "model.txt", {}, ValueError, "model.txt is a file: a model is a folder"),
        (tmp_path / "saved", {"dtype": "float8x"}, ValueError, "not 'float8x'"),
        ("nobody/nothing-like-it", {}, OSError, "cannot load nobody/nothing-like-it: "),
    ]
    for path, keywords, kind, message in cases:
        with pytest.raises(kind, match=message) as refused:
            load(path, **keywords)
        assert "\n" not in str(refused.value)
    assert load(tmp_path / "saved", dtype="bfloat16").dtype == torch.bfloat16
