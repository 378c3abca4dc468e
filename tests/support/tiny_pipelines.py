"""A tiny random model with a real tokenizer, for tests of everything above the model."""

import torch
from architectures import tiny_config, tiny_model
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf import DecodNERPipeline

LABELS = {"Person": "a named human being", "Company": None}
TEXT = "Apple was founded by Steve Jobs in Cupertino (Apple), U.S. 東京 🙂."


def tiny_native(**overrides):
    """Returns a native Llama whose vocabulary is the test tokenizer's."""
    tokenizer = byte_level_single_digits()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "hidden_size": 64}
    return tiny_model(tiny_config("llama", **(sizes | overrides)))


def tiny_float64(**overrides):
    """`tiny_native` in float64 throughout: transformers' Llama norm casts to float32, whose rounding can jump."""
    model = tiny_native(**overrides).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def tiny_pipeline(tokenizer=None, model=None, **kwargs):
    """Returns a pipeline around `tiny_native()` on the CPU."""
    tokenizer = tokenizer or byte_level_single_digits()
    model = model if model is not None else tiny_native(vocab_size=len(tokenizer))
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner", **kwargs)


def alike(one, other, tolerance=1e-5):
    """Returns whether two results are equal but for the rounding of their scores."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= tolerance
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(alike(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(*pair, tolerance) for pair in zip(one, other, strict=True))
    return one == other
