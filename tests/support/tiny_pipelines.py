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


def tiny_pipeline(tokenizer=None, model=None, **kwargs):
    """Returns a pipeline around `tiny_native()` on the CPU."""
    tokenizer = tokenizer or byte_level_single_digits()
    model = model if model is not None else tiny_native(vocab_size=len(tokenizer))
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner", **kwargs)
