import argparse
import copy
import json

import pytest
import torch
import torch.nn.functional as F
from tiny_pipelines import tiny_native
from tiny_training import LABELS, SENTENCES, fixed_rows, inputs_of, parsed
from tokenizers_for_tests import byte_level_single_digits
from transformers import BitsAndBytesConfig, pipeline

from decodner_cli import train as command
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification
from decodner_hf.core import attention
from decodner_hf.core.adapters import MINIMUM_PEFT
from decodner_hf.training.model import add_lora, check_gradients, recompute_layers

DEVICE = "cuda"
LAYERS = 3
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": LAYERS, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}


# ------------------------------------------------------------------ gradients of FlexAttention


def with_all_weights():
    native = tiny_native(**SIZES)
    with torch.no_grad():
        for parameter in native.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    config = DecodNERConfig(entity_labels=list(LABELS), max_span_words=3)
    return DecodNERForSpanClassification.from_backbone(native, config)


def with_adapters():
    pytest.importorskip("peft", minversion=MINIMUM_PEFT)
    model = with_all_weights().bfloat16()  # as `decodner train --lora-rank` loads it
    add_lora(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model


def gradients(model, device, half):
    """The gradients of a step on one row, by name, as float64 on the CPU."""
    model = model.to(device).train()
    row = fixed_rows(row_tokens=1024)[0]
    inputs = inputs_of(row) | {name: row[name].to(device) for name in ("input_ids", "span_nodes", "span_prompts")}
    with torch.autocast(device, torch.bfloat16, enabled=half):
        logits = model(**inputs).logits
    labels = row["labels"][0].to(device)
    F.cross_entropy(logits.double(), labels, ignore_index=-100, reduction="sum").backward()
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.requires_grad}


def error(found, exact):
    """The relative error of a weight's gradient: root mean square over the weights."""
    errors = [(found[name] - exact[name]).norm() / exact[name].norm() for name in exact]
    return float(torch.stack(errors).square().mean().sqrt())


@pytest.mark.gpu
@pytest.mark.parametrize("saving", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("made", [with_all_weights, with_adapters], ids=["all weights", "adapters"])
def test_gradients_through_flex_attention_are_as_good_as_those_of_torch_attention(made, half, saving, monkeypatch):
    calls, flex = [], attention.forest_attention_flex
    monkeypatch.setattr(attention, "forest_attention_flex", lambda *given: calls.append(1) or flex(*given))
    model = made() if half else made().float()
    exact = gradients(copy.deepcopy(model).double(), "cpu", False)
    plain = copy.deepcopy(model)
    if saving:
        recompute_layers(model)
    own = gradients(model, DEVICE, half)
    assert len(calls) == LAYERS * (1 + saving)

    monkeypatch.setattr(attention, "flex_supports", lambda *_: False)
    blocks = gradients(plain, DEVICE, half)
    assert len(calls) == LAYERS * (1 + saving)
    assert error(own, exact) <= 2 * error(blocks, exact) + 1e-6


# ------------------------------------------------------------------ the command on a GPU, and in 4 bits


@pytest.fixture
def files(tmp_path):
    tiny_native(**SIZES).save_pretrained(tmp_path / "base")
    byte_level_single_digits().save_pretrained(tmp_path / "base")
    examples = [example for example in SENTENCES if not isinstance(example.content, str)] * 8
    rows = [{"tokens": e.content, "entities": [list(entity) for entity in e.entities]} for e in examples]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def losses(files, *arguments):
    """Runs `decodner train`; the loss of every step."""
    paths = ["--model", files / "base", "--output", files / "out", "--train", files / "data.jsonl"]
    recipe = ["--workers", "0", "--row-tokens", "512", "--epochs", "8", "--max-span-words", "3", "--log-steps", "1"]
    recipe += ["--learning-rate", "1e-2", "--labels", *LABELS]
    assert command.run(parsed([*paths, *recipe, *arguments])) == 0
    (state,) = (files / "out").glob("checkpoint-*/trainer_state.json")
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def check_learnt(steps, files):
    assert len(steps) > 5
    assert max(steps[-3:]) < 0.5 * steps[0]
    pipe = pipeline("decodner-ner", model=str(files / "out"), device="cpu")
    assert list(pipe.model.config.labels) == list(LABELS)
    assert isinstance(pipe("Apple in Cupertino"), list)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [[], ["--lora-rank", "8"], ["--lora-rank", "8", "--load-in-4bit"]],
    ids=["all weights", "adapters", "4 bits"],
)
@pytest.mark.parametrize("saving", [[], ["--gradient-checkpointing"]], ids=["plain", "checkpointed"])
def test_the_command_learns_on_a_gpu(files, options, saving):
    if options:
        pytest.importorskip("peft", minversion=MINIMUM_PEFT)
    if "--load-in-4bit" in options:
        pytest.importorskip("bitsandbytes")
    check_learnt(losses(files, *options, *saving), files)


@pytest.fixture
def four_bits(monkeypatch):
    """bitsandbytes without its CPU kernels that pass no gradient on, where the CPU has them."""
    modules = pytest.importorskip("bitsandbytes").nn.modules
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False, raising=False)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def test_adapters_of_a_decoder_in_4_bits_learn_and_load_on_the_whole_decoder_and_on_one_in_4_bits(files, four_bits):
    check_learnt(losses(files, "--cpu", "--lora-rank", "8", "--load-in-4bit"), files)
    for settings, quantized in (({}, False), ({"quantization_config": four_bits}, True)):
        model = DecodNERForSpanClassification.from_pretrained(str(files / "out"), **settings)
        assert getattr(model.backbone, "is_quantized", False) == quantized
        assert any("lora_" in name for name in model.state_dict())


def test_4_bits_without_a_gradient_are_refused():
    layer = torch.nn.Linear(2, 2)
    check_gradients(torch.nn.Sequential(layer))
    layer.weight.quant_state = argparse.Namespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match="without their gradient on this CPU"):
        check_gradients(torch.nn.Sequential(layer))
