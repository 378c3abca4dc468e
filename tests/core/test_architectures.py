import pytest
import torch
from architectures import measure_exactness, score_alone, tiny_config, tiny_model
from transformers import AutoConfig, GPTJForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decodner_hf import DecodNERForSpanClassification, SpanPaths, UniversalDecoder, build_forest
from decodner_hf.core.transformers_private import takes_registered_attention


def rope(rope_type, **values):
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **values}}


# name: (model type, configuration, tolerance in float64)
CASES = {
    "llama": ("llama", {}, 1e-9),
    "llama-linear": ("llama", rope("linear", factor=2.0), 1e-9),
    "llama-dynamic-ntk": ("llama", rope("dynamic", factor=2.0), 1e-9),
    "llama-llama3": (
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        1e-9,
    ),
    "llama-yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=64), 1e-9),
    "mistral-window": ("mistral", {}, 1e-9),
    "mixtral": ("mixtral", {}, 1e-9),
    "qwen2": ("qwen2", {}, 1e-9),
    "qwen2-mixed-window": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        1e-9,
    ),
    "qwen3": ("qwen3", {}, 1e-9),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0}, 1e-9),
    "gemma3-text": ("gemma3_text", {}, 1e-9),
    "phi3-window": ("phi3", {}, 1e-9),
    "olmo2": ("olmo2", {}, 1e-9),
    "smollm3": ("smollm3", {}, 1e-9),
    "gpt-neox": ("gpt_neox", {}, 1e-9),
    "gpt2": ("gpt2", {}, 1e-9),
    "gpt-j": ("gptj", {"rotary_dim": 4}, 1e-5),
    "gpt-oss": ("gpt_oss", {}, 1e-9),
    "granite": ("granite", {}, 1e-9),
    "cohere": ("cohere", {}, 1e-9),
    "cohere2": ("cohere2", {}, 1e-9),
    "deepseek-v3": ("deepseek_v3", {}, 1e-6),
    "diffllama": ("diffllama", {}, 1e-9),
    "exaone4": ("exaone4", {}, 1e-9),
    "gemma": ("gemma", {}, 1e-9),
    "glm4": ("glm4", {}, 1e-9),
    "granite-swa": ("granite_swa", {}, 1e-4),
    "granitemoe": ("granitemoe", {}, 1e-9),
    "jetmoe": ("jetmoe", {}, 1e-9),
    "llama4-chunks": ("llama4_text", {}, 1e-6),
    "modernbert-decoder": ("modernbert-decoder", {}, 1e-9),
    "olmo3": ("olmo3", {}, 1e-9),
    "opt": ("opt", {}, 1e-9),
    "phi": ("phi", {}, 1e-9),
    "phimoe-window": ("phimoe", {}, 1e-9),
    "qwen2-moe-window": ("qwen2_moe", {}, 1e-9),
    "qwen3-moe": ("qwen3_moe", {}, 1e-9),
    "starcoder2": ("starcoder2", {}, 1e-9),
}
NATIVE_HEAD = {"modernbert-decoder"}  # a dense layer and a norm stand between its decoder and its head
LEAST_CONTROL = 0.1  # what a wrong mask must change at least


@pytest.mark.usefixtures("float64_softmax")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("model_type", "settings", "tolerance"), CASES.values(), ids=CASES.keys())
def test_packed_scores_equal_each_prompt_alone(model_type, settings, tolerance, dtype):
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"this version of transformers has no {model_type}")
    if model_type == "gptj" and not takes_registered_attention(GPTJForCausalLM):
        pytest.skip("this version of transformers keeps GPT-J's attention out of its registry")
    errors = measure_exactness(tiny_model(tiny_config(model_type, **settings), dtype=dtype))
    allowed = tolerance if dtype == torch.float64 else 5e-6 * max(1.0, errors.largest_logit)
    assert errors.worst <= allowed, errors
    assert errors.control > LEAST_CONTROL, errors
    assert errors.row_head == (model_type not in NATIVE_HEAD), "which head served"


REFUSED_BY_CONFIG = {
    "mamba": ("mamba", {}, r"layers of type \['linear_attention'\]"),
    "jamba": ("jamba", {}, "only attention layers can be shared between spans"),
    "qwen3-next": ("qwen3_next", {}, r"layers of type \['linear_attention'\]"),
    "lfm2-convolution": (
        "lfm2",
        {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
        r"layers of type \['conv'\]",
    ),
    "minimax": ("minimax", {}, r"layers of type \['linear_attention'\]"),
    "falcon": ("falcon", {}, "FalconForCausalLM does not take its attention from transformers' registry"),
    "bloom-alibi": ("bloom", {}, "ALiBi"),
    "mpt-alibi": ("mpt", {}, "ALiBi"),
    "gpt-neo": ("gpt_neo", {}, "does not take its attention from transformers' registry"),
    "rwkv": ("rwkv", {}, "does not take its attention from transformers' registry"),
    "bert": ("bert", {}, "is an encoder"),
    "roberta": ("roberta", {}, "is an encoder"),
    "t5": ("t5", {}, "is an encoder-decoder model"),
    "bart": ("bart", {}, "is an encoder-decoder model"),
    "whisper": ("whisper", {}, "is an encoder-decoder model"),
    "vit": ("vit", {}, "has no causal language model"),
}
REFUSED_BY_PROBE = {
    "stablelm": ("stablelm", "attention was called with a forest in 0 of 3 layers.*drops keyword arguments"),
    "nemotron": ("nemotron", "attention was called with a forest in 0 of 3 layers.*drops keyword arguments"),
    "doge": ("doge", "logits of a packed forest differ from the model's own"),
}


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"), REFUSED_BY_CONFIG.values(), ids=REFUSED_BY_CONFIG.keys()
)
def test_what_cannot_be_exact_is_refused_before_its_weights_are_read(tmp_path, model_type, settings, reason):
    AutoConfig.for_model(model_type, **settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        DecodNERForSpanClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(("model_type", "reason"), REFUSED_BY_PROBE.values(), ids=REFUSED_BY_PROBE.keys())
def test_what_only_a_run_shows_is_refused_when_loaded(tmp_path, model_type, reason):
    native = tiny_model(tiny_config(model_type))
    native.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        DecodNERForSpanClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        DecodNERForSpanClassification.from_backbone(native)


def test_code_from_a_checkpoint_is_no_decoder_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "somebody_elses"}')
    with pytest.raises(ValueError, match="model type 'somebody_elses', which this version of transformers does not"):
        DecodNERForSpanClassification.from_pretrained(tmp_path)


LONGROPE = rope(
    "longrope", short_factor=[1.0] * 4, long_factor=[1.0, 4.0, 8.0, 16.0], original_max_position_embeddings=32
)
POSITION_LIMITS = {
    "longrope": ("phi3", {**LONGROPE, "original_max_position_embeddings": 32}, "longrope"),
    "dynamic NTK": (
        "llama",
        {**rope("dynamic", factor=2.0), "max_position_embeddings": 32},
        "max_position_embeddings",
    ),
    "plain": ("llama", {"max_position_embeddings": 32}, "max_position_embeddings=32"),
    "query scaling": ("llama4_text", {"floor_scale": 33}, "scales its queries by position from 32"),
}


@pytest.mark.parametrize(("model_type", "settings", "reason"), POSITION_LIMITS.values(), ids=POSITION_LIMITS.keys())
def test_positions_are_exact_up_to_their_limit_and_refused_beyond(model_type, settings, reason):
    native = tiny_model(tiny_config(model_type, **settings))
    model = UniversalDecoder.from_backbone(native)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, 64, (33,), generator=generator).tolist()
    cache = model.encode_prefix(prompt[:30])
    spans = SpanPaths.from_lists([prompt[30:31], prompt[30:32]])
    symbols = torch.arange(3, 9)
    logits = model.score_forest(build_forest([[]], [spans], first_position=30), symbols, cache)
    torch.testing.assert_close(logits, score_alone(native, [prompt[:31], prompt[:32]])[:, symbols], rtol=0, atol=5e-5)
    model.node_limit = None
    too_long = build_forest([[]], [SpanPaths.from_lists([prompt[30:33]])], first_position=30)
    for refused in (
        lambda: model.score_forest(too_long, symbols, cache),
        lambda: model.encode_prefix(prompt),
        lambda: model.forward_spans(torch.tensor([prompt[30:33]]), None, cache),
    ):
        with pytest.raises(ValueError, match=f"(?s)only positions below 32 can be used.*{reason}"):
            refused()


def test_a_model_that_counts_tokens_in_the_row_is_refused_too_many_of_them():
    native = tiny_model(tiny_config("llama4_text", floor_scale=17))
    model = DecodNERForSpanClassification.from_backbone(native)
    prompts = [[token, token + 1] for token in range(3, 12)]
    rows = [SpanPaths.from_lists([prompt]) for prompt in prompts]
    symbols = torch.arange(3, 9)
    logits = model.score_forest(build_forest([[]] * 8, rows[:8]), symbols)
    torch.testing.assert_close(logits, score_alone(native, prompts[:8])[:, symbols], rtol=0, atol=5e-5)
    with pytest.raises(ValueError, match="at most 16 nodes a pass"):
        model.score_forest(build_forest([[]] * 9, rows), symbols)
