import pytest
from transformers import AutoConfig, LlamaConfig

from decodner_hf import DecodNERConfig
from decodner_hf.core.configuration import PROMPT_DEFAULTS, check_threshold, normalize_labels

LLAMA = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def test_a_saved_configuration_comes_back_equal(tmp_path):
    config = DecodNERConfig(
        text_config=LlamaConfig(**LLAMA),
        entity_labels={"Person": "a named human being", "Company": None},
        prompt={"answer_cue": " ->"},
        max_span_words=5,
        threshold=0.4,
        label_thresholds={"Person": 0.7},
        temperature=1.5,
        overlap="nested",
        flat_selection="exact",
    )
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is DecodNERConfig
    assert type(read.text_config) is LlamaConfig
    before, after = config.to_dict(), read.to_dict()
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        "architectures",
        "_name_or_path",
    }


def test_labels_keep_their_order_and_descriptions():
    config = DecodNERConfig(entity_labels={"B": None, "A": "first letter"})
    assert list(config.labels.items()) == [("B", None), ("A", "first letter")]
    assert config.id2label == {0: "None", 1: "B", 2: "A"}
    assert DecodNERConfig().labels == {}


def test_the_decoders_sizes_are_read_off_its_configuration():
    config = DecodNERConfig(text_config={"model_type": "llama", **LLAMA})
    assert (config.num_layers, config.num_kv_heads, config.head_dim) == (3, 2, 8)
    gpt2 = DecodNERConfig(text_config={"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2})
    assert (gpt2.num_layers, gpt2.num_kv_heads, gpt2.head_dim) == (2, 4, 8)


def test_prompt_parts_that_are_not_given_have_their_defaults():
    assert DecodNERConfig(prompt={"text_header": "Document:"}).prompt == PROMPT_DEFAULTS | {"text_header": "Document:"}


def test_a_dict_that_was_given_is_left_alone():
    given = {"model_type": "llama", **LLAMA}
    DecodNERConfig(text_config=given)
    assert given == {"model_type": "llama", **LLAMA}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"max_span_words": 0}, "max_span_words must be at least 1, not 0", id="width"),
        pytest.param({"max_span_words": True}, "max_span_words must be", id="width as truth value"),
        pytest.param({"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5", id="threshold"),
        pytest.param(
            {"label_thresholds": {"A": -1}},
            "the threshold of 'A' must be a number from 0 to 1, not -1",
            id="label threshold",
        ),
        pytest.param({"temperature": 0.0}, "temperature must be greater than 0", id="temperature"),
        pytest.param({"overlap": "some"}, "overlap must be one of .*not 'some'", id="overlap"),
        pytest.param({"flat_selection": "best"}, "flat_selection must be one of", id="selection"),
        pytest.param({"treshold": 0.3}, r"does not know \['treshold'\]; its own settings are .*threshold", id="typo"),
        pytest.param({"text_config": {"hidden_size": 8}}, "must name its model_type", id="nameless decoder"),
        pytest.param({"text_config": 3}, "not int", id="decoder of another type"),
        pytest.param({"entity_labels": []}, "no labels were given", id="no labels"),
        pytest.param({"entity_labels": ["A", "A"]}, r"duplicate labels \['A'\]", id="duplicate label"),
        pytest.param({"entity_labels": "Person"}, "not str: for a single label pass a list", id="one string"),
        pytest.param({"entity_labels": [" "]}, "non-empty string", id="blank label"),
        pytest.param({"entity_labels": {"A": 3}}, "description of label 'A'", id="description"),
        pytest.param({"entity_labels": ["None"]}, "'None' is the none label", id="none label"),
        pytest.param({"entity_labels": ["A"], "label_descriptions": {"B": "b"}}, r"names \['B'\]", id="stranger"),
        pytest.param({"prompt": {"header": "x"}}, r"no part \['header'\]", id="prompt part"),
        pytest.param({"prompt": {"text_header": 1}}, "must be a str, not 1", id="prompt type"),
        pytest.param({"prompt": {"none_label": " "}}, "none_label must not be empty", id="blank none"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecodNERConfig(**settings)


def test_labels_and_thresholds_are_normalised():
    assert normalize_labels(("A", "B")) == {"A": None, "B": None}
    assert check_threshold(1, "threshold") == 1.0
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1, not True"):
        check_threshold(True, "threshold")


def test_a_saved_configuration_says_nothing_of_where_the_decoder_lay(tmp_path):
    decoder = LlamaConfig(**LLAMA)
    decoder._name_or_path = "/some/where"
    DecodNERConfig(text_config=decoder).save_pretrained(tmp_path)
    assert "/some/where" not in (tmp_path / "config.json").read_text()
