import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import LABELS, SENTENCES, fixed_rows, inputs_of, open_rows, tiny_classifier, trainer
from transformers import pipeline

from decodner_hf.core.label_head import UNLABELLED, span_loss
from decodner_hf.training.model import add_lora
from decodner_hf.training.rows import PackedRows


def one_span_at_a_time(model, row):
    """The loss of a row with every span after its own copy of the prompt, by the decoder's ordinary forward."""
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


def test_rows_are_trained_in_order(tmp_path, monkeypatch):
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
        assert (3 * third[name] - gradient).norm() <= 1e-5 * gradient.norm(), name  # single ones may cancel to 0


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


def test_adapters_are_trained_saved_alone_and_resumed_exactly(tmp_path, peft):  # noqa: ARG001
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
