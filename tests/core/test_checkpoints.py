import json

import pytest
import torch
from architectures import tiny_config, tiny_model
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, SpanPaths, UniversalDecoder, build_forest

PREFIX = [5, 9, 13, 7, 21]
SYMBOLS = [3, 4, 6]
CLOSE = {"rtol": 0, "atol": 5e-5}
SHARDS = {"max_shard_size": "20KB"}


def scores(model):
    forest = build_forest([[]], [SpanPaths.from_lists([[8], [8, 9], [10, 11]])], first_position=len(PREFIX))
    return model.score_forest(forest, SYMBOLS, model.encode_prefix(PREFIX))


KINDS = {
    "tied": ("llama", {"tie_word_embeddings": True}, {}),
    "untied": ("llama", {"tie_word_embeddings": False}, {}),
    "sharded": ("llama", {}, SHARDS),
    "experts": ("mixtral", {}, {}),
    "gpt-neox": ("gpt_neox", {}, {}),
    "gpt2": ("gpt2", {}, {}),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def saved(request, tmp_path):
    model_type, settings, options = request.param
    native = tiny_model(tiny_config(model_type, **settings))
    native.save_pretrained(tmp_path / "plain", **options)
    if options:
        assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 1
    return native, tmp_path, options


def test_plain_and_own_directories_load_and_the_native_class_reads_both(saved):
    native, path, options = saved
    expected = scores(DecodNERForSpanClassification.from_backbone(native))
    model, info = DecodNERForSpanClassification.from_pretrained(path / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(scores(model), expected, **CLOSE)
    model.config.entity_labels = ["Person"]
    model.save_pretrained(path / "own", **options)
    again = DecodNERForSpanClassification.from_pretrained(path / "own")
    assert again.config.labels == {"Person": None}
    assert not again.training
    assert torch.equal(scores(again), scores(model))
    values = json.loads((path / "own" / "config.json").read_text())
    assert (values["model_type"], values["text_config"]["model_type"]) == ("decodner", native.config.model_type)
    assert "auto_map" not in values
    assert "custom_pipelines" not in values
    kept = type(native).from_pretrained(path / "own", config=again.config.text_config)
    assert set(kept.state_dict()) == set(native.state_dict())
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, native.state_dict()[name]), name


@pytest.fixture
def own_directory(tmp_path):
    native = tiny_model(tiny_config("llama"))
    model = DecodNERForSpanClassification.from_backbone(native, DecodNERConfig(entity_labels=["A"], threshold=0.3))
    model.save_pretrained(tmp_path)
    return tmp_path, scores(model)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification])
def test_auto_classes_give_our_model(own_directory, auto):
    path, expected = own_directory
    model = auto.from_pretrained(path)
    assert type(model) is DecodNERForSpanClassification
    assert torch.equal(scores(model), expected)


def test_keywords_reach_the_decoder_and_settings_the_configuration(own_directory):
    path, _ = own_directory
    model = UniversalDecoder.from_hub(str(path), dtype=torch.bfloat16, threshold=0.8)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (model.dtype, model.config.threshold, model.config.labels) == (torch.bfloat16, 0.8, {"A": None})
    with pytest.raises((TypeError, ValueError), match="treshold"):
        DecodNERForSpanClassification.from_pretrained(path, treshold=0.8)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_maps_are_the_decoders_and_seen_on_the_model(own_directory, device_map):
    path, expected = own_directory
    model = DecodNERForSpanClassification.from_pretrained(path, device_map=device_map)
    assert getattr(model, "hf_device_map", None) == getattr(model.backbone, "hf_device_map", None)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    torch.testing.assert_close(scores(model), expected, **CLOSE)


def test_layers_may_lie_on_disk(own_directory):
    path, expected = own_directory
    placed = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    placed |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    model = DecodNERForSpanClassification.from_pretrained(path, device_map=placed, offload_folder=path / "offload")
    assert model.hf_device_map["model.layers.1"] == "disk"
    assert model.backbone.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    torch.testing.assert_close(scores(model), expected, **CLOSE)


@pytest.fixture
def adapted(tmp_path):
    native = tiny_model(tiny_config("llama"))
    native.save_pretrained(tmp_path / "plain")
    model = DecodNERForSpanClassification.from_pretrained(tmp_path / "plain")
    before = scores(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.eval()
    after = scores(model)
    assert float((after - before).abs().max()) > 0.1
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, before, after


def test_an_adapter_directory_loads_with_its_base(adapted):
    path, _, after = adapted
    assert (path / "adapter" / "adapter_config.json").exists()
    torch.testing.assert_close(scores(DecodNERForSpanClassification.from_pretrained(path / "adapter")), after, **CLOSE)


def test_an_adapter_loads_on_top_of_a_model(adapted):
    path, before, after = adapted
    model = DecodNERForSpanClassification.from_pretrained(path / "plain")
    torch.testing.assert_close(scores(model), before, **CLOSE)
    model.load_adapter(str(path / "adapter"))
    torch.testing.assert_close(scores(model), after, **CLOSE)


def test_weights_may_be_saved_from_a_state_that_is_handed_over(own_directory, tmp_path):
    path, expected = own_directory
    model = DecodNERForSpanClassification.from_pretrained(path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path / "again", state_dict=state)
    assert torch.equal(scores(DecodNERForSpanClassification.from_pretrained(tmp_path / "again")), expected)


def test_a_model_can_be_made_from_its_configuration_alone():
    config = DecodNERConfig(text_config=tiny_config("llama"))
    model = DecodNERForSpanClassification(config).eval()
    assert scores(model).shape == (3, 3)
    assert config.num_kv_heads == 2


def test_a_directory_without_a_decoder_is_refused(tmp_path):
    DecodNERConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no text_config: it names no decoder"):
        DecodNERForSpanClassification.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name its base model"):
        DecodNERForSpanClassification.from_pretrained(tmp_path)


def test_attributes_that_others_set_do_not_prevent_saving(own_directory, tmp_path):
    own_directory, _ = own_directory
    model = DecodNERForSpanClassification.from_pretrained(own_directory)
    model.config.use_cache = False
    model.config.somebodys_note = 1
    model.save_pretrained(tmp_path / "again")
    again = DecodNERForSpanClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(scores(again), scores(model), **CLOSE)
    changed = DecodNERForSpanClassification.from_pretrained(own_directory, config=model.config, threshold=0.4)
    assert changed.config.threshold == 0.4


def test_auto_classes_load_an_adapter_without_a_configuration_of_its_own(adapted):
    path, _, after = adapted
    DecodNERForSpanClassification.from_pretrained(path / "plain").save_pretrained(path / "own")
    (path / "adapter" / "config.json").unlink()
    values = json.loads((path / "adapter" / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = str(path / "own")
    (path / "adapter" / "adapter_config.json").write_text(json.dumps(values))
    torch.testing.assert_close(scores(AutoModel.from_pretrained(path / "adapter")), after, **CLOSE)


def test_an_adapter_of_something_else_is_an_error(adapted):
    path, _, _ = adapted
    weights = load_file(path / "adapter" / "adapter_model.safetensors")
    wrong = {
        name.replace("base_model.model.", "base_model.model.backbone."): tensor for name, tensor in weights.items()
    }
    save_file(wrong, path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit this decoder"):
        DecodNERForSpanClassification.from_pretrained(path / "adapter")


def test_embeddings_may_lie_on_disk_and_the_guard_still_runs(own_directory, tmp_path):
    own_directory, expected = own_directory
    offloaded = DecodNERForSpanClassification.from_pretrained(
        own_directory, device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(scores(offloaded), expected, **CLOSE)
