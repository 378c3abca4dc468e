import json
import re

import accelerate
import pytest
import torch
from architectures import tiny_config, tiny_model
from packaging.version import Version
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, pipeline

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, SpanPaths, UniversalDecoder, build_forest
from decodner_hf.core.checkpoints import UnusableModelError

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
    assert values["auto_map"]["AutoModel"] == "decodner_package.DecodNERForSpanClassification"
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
    assert isinstance(model, DecodNERForSpanClassification)
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
    wrong = {name.replace("base_model.model.", "base_model.model.other."): tensor for name, tensor in weights.items()}
    save_file(wrong, path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit this decoder"):
        DecodNERForSpanClassification.from_pretrained(path / "adapter")


@pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.15"), reason="accelerate before 1.15 puts no whole model on disk"
)
def test_embeddings_may_lie_on_disk_and_the_guard_still_runs(own_directory, tmp_path):
    own_directory, expected = own_directory
    offloaded = DecodNERForSpanClassification.from_pretrained(
        own_directory, device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(scores(offloaded), expected, **CLOSE)


# ---------------------------------------------------------------- checkpoints that cannot be used


def save_whole(path):
    tiny_model(tiny_config("llama")).save_pretrained(path)


def save_sharded(path):
    tiny_model(tiny_config("llama")).save_pretrained(path, **SHARDS)


def save_own(path):
    DecodNERForSpanClassification.from_backbone(tiny_model(tiny_config("llama"))).save_pretrained(path)


def change_weights(path, change):
    """Lets `change` give each tensor another name or value, or None to leave it out."""
    index = path / "model.safetensors.index.json"
    places = {}
    for shard in sorted(path.glob("*.safetensors")):
        changed = [change(name, tensor) for name, tensor in load_file(shard).items()]
        kept = dict(item for item in changed if item is not None)
        places |= dict.fromkeys(kept, shard.name)
        save_file(kept, shard, metadata={"format": "pt"})
    if index.exists():
        index.write_text(json.dumps(json.loads(index.read_text()) | {"weight_map": places}))


def rename(name, tensor):
    return name.replace("model.layers", "model.blocks"), tensor


def without_queries(name, tensor):
    return None if "q_proj" in name else (name, tensor)


def spoil(name, tensor):
    return name, tensor * float("nan") if name == "model.layers.1.mlp.up_proj.weight" else tensor


def erase(name, tensor):
    return name, tensor * 0


def change_config(path, **values):
    file = path / "config.json"
    config = json.loads(file.read_text())
    config.get("text_config", config).update(values)
    file.write_text(json.dumps(config))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


UNUSABLE = {
    "renamed tensors": (
        lambda path: change_weights(path, rename),
        r"lacks weights of LlamaForCausalLM.*model\.layers\.0\.input_layernorm\.weight.* and 24 more.*"
        r"model\.blocks\.0.*were they renamed",
    ),
    "no queries": (
        lambda path: change_weights(path, without_queries),
        r"lacks weights .*: model\.layers\.0\.self_attn\.q_proj\.weight, .*layers\.2\.self_attn\.q_proj\.weight\. Use",
    ),
    "more layers than files": (
        lambda path: change_config(path, num_hidden_layers=4),
        r"lacks weights .*model\.layers\.3\.input_layernorm\.weight",
    ),
    "other heads": (
        lambda path: change_config(path, num_key_value_heads=1),
        r"other sizes than its config\.json says: model\.layers\.0\.self_attn\.k_proj\.weight.*\[16, 32\].*\[8, 32\]",
    ),
    "heads that divide nothing": (
        lambda path: change_config(path, num_attention_heads=5),
        r"config\.json of .* is not valid: The hidden size \(32\) is not a multiple",
    ),
    "a weight that is not a number": (
        lambda path: change_weights(path, spoil),
        r"weights of .* are not finite: model\.layers\.1\.mlp\.up_proj\.weight holds NaN",
    ),
    "zero weights": (lambda path: change_weights(path, erase), r"the logit 0: 30 of its 30 weights are zero"),
    "no heads": (
        lambda path: change_config(path, num_attention_heads=0, head_dim=None),
        r"config\.json of .* is not valid: a size or number of heads is 0",
    ),
    "a file cut short": (
        lambda path: cut(next(path.glob("*.safetensors"))),
        r"weights in .* cannot be read .*: a file is incomplete or damaged",
    ),
}


@pytest.mark.parametrize("save", [save_whole, save_sharded, save_own], ids=["plain", "sharded", "own"])
@pytest.mark.parametrize(("harm", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_checkpoint_that_cannot_be_used_is_one_error_that_says_why(tmp_path, save, harm, reason):
    save(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        DecodNERForSpanClassification.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("save", [save_whole, save_own], ids=["plain", "own"])
def test_the_pipeline_reports_it_as_it_is_and_takes_no_other_class(tmp_path, save):
    save(tmp_path)
    change_weights(tmp_path, without_queries)
    with pytest.raises(UnusableModelError, match=f"^{re.escape(str(tmp_path))} lacks weights"):
        pipeline("decodner-ner", model=str(tmp_path))


def test_finite_weights_whose_logits_overflow_are_not_blamed(tmp_path):
    native = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        native.lm_head.weight.mul_(1e5)
    native.save_pretrained(tmp_path)
    DecodNERForSpanClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        native.lm_head.weight.mul_(1e-2)
        native.model.norm.weight.fill_(1e4)
    native.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16, although its weights are: load it"):
        DecodNERForSpanClassification.from_pretrained(tmp_path, dtype=torch.float16)


def test_weights_that_the_decoder_does_not_have_are_a_warning(tmp_path, caplog):
    save_whole(tmp_path)
    change_config(tmp_path, num_hidden_layers=2)
    _, info = DecodNERForSpanClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["unexpected_keys"]) == 9
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "model.layers.2.input_layernorm.weight" in message
    assert "they are not used" in message


def test_sizes_may_differ_where_the_caller_says_so(tmp_path):
    save_whole(tmp_path)
    change_config(tmp_path, vocab_size=70)
    model = DecodNERForSpanClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert model.vocabulary_size == 70


# ---------------------------------------------------------------- several adapters


def lora(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)


def test_a_second_adapter_loads_beside_the_first(adapted, tmp_path):
    path, before, after = adapted
    other = DecodNERForSpanClassification.from_pretrained(path / "plain")
    other.add_adapter(lora(), "other")
    other.save_pretrained(tmp_path / "other")
    model = DecodNERForSpanClassification.from_pretrained(path / "adapter")
    model.load_adapter(str(tmp_path / "other"), "second")
    assert model.active_adapters() == ["second"]
    torch.testing.assert_close(scores(model), scores(other.eval()), **CLOSE)
    model.disable_adapters()
    torch.testing.assert_close(scores(model), before, **CLOSE)
    model.enable_adapters()
    model.set_adapter("default")
    assert model.active_adapters() == ["default"]
    torch.testing.assert_close(scores(model), after, **CLOSE)


def test_an_adapter_that_does_not_fit_leaves_the_others_as_they_were(adapted, tmp_path):
    path, _, after = adapted
    model = DecodNERForSpanClassification.from_pretrained(path / "adapter")
    model.save_pretrained(tmp_path / "wrong")
    file = tmp_path / "wrong" / "adapter_model.safetensors"
    save_file({name.replace("layers.0", "layers.9"): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="does not fit this decoder"):
        model.load_adapter(str(tmp_path / "wrong"), "second")
    assert model.active_adapters() == ["default"]
    torch.testing.assert_close(scores(model), after, **CLOSE)
    with pytest.raises(ValueError, match=r"no adapter \['second'\]; the adapters are \['default'\]"):
        model.set_adapter("second")


def test_one_active_adapter_is_saved_at_a_time(adapted, tmp_path):
    path, _, _ = adapted
    model = DecodNERForSpanClassification.from_pretrained(path / "adapter")
    with pytest.raises(ValueError, match="there is an adapter 'default' already"):
        model.add_adapter(lora())
    model.add_adapter(lora(), "second")
    model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\['default', 'second'\] are active: call set_adapter"):
        model.save_pretrained(tmp_path / "both")
    model.set_adapter("second")
    state = model.state_dict()
    model.save_pretrained(tmp_path / "second", state_dict=state)
    again = DecodNERForSpanClassification.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(scores(again), scores(model.eval()), **CLOSE)


def test_an_older_peft_is_named_with_what_it_must_be(own_directory, monkeypatch):
    path, _ = own_directory
    model = DecodNERForSpanClassification.from_pretrained(path)
    monkeypatch.setattr("decodner_hf.core.adapters.version", {"peft": "0.17.1", "transformers": "5.24.0"}.get)
    with pytest.raises(ImportError, match=r"PEFT 0\.19\.1 or newer with transformers 5\.24\.0, but PEFT 0\.17\.1"):
        model.add_adapter(lora())
