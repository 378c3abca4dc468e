"""Loads the model that training starts from: its labels, adapters and precision.

In: `TrainingOptions` and the labels. Out: a `DecodNERForSpanClassification` that can be trained.
Knows nothing of examples or rows.
"""

from collections.abc import Mapping
from importlib.util import find_spec

import torch

from ..core.adapters import has_adapters
from ..core.label_head import decoder_layers
from ..core.modeling import DecodNERForSpanClassification
from ..evaluation.calibration import uncalibrated
from .options import TrainingOptions

GROWN_SPAN_WORDS = 32  # longest candidate of a model that grows spans, unless the options say otherwise


def load_model(options: TrainingOptions, labels: Mapping[str, str | None] | None) -> DecodNERForSpanClassification:
    """Loads the decoder with the run's labels, and puts adapters on it where asked for.

    Args:
        options: of the run.
        labels: fixed labels with their descriptions; None for open types.

    Raises:
        ValueError: a model that holds adapters already, or one whose 4-bit layers pass no gradient on.
        ImportError: PEFT is needed and not installed.
    """
    adapted = options.lora_rank is not None
    settings: dict[str, object] = {"dtype": torch.bfloat16 if adapted else torch.float32}
    settings |= uncalibrated()  # the calibration was fitted to the old weights
    settings["continuation"] = options.continuation
    if options.max_span_words is not None:
        settings["max_span_words"] = options.max_span_words
    elif options.continuation:
        settings["max_span_words"] = GROWN_SPAN_WORDS
    if labels is not None:
        settings |= {"entity_labels": list(labels)}
        settings["label_descriptions"] = {name: text for name, text in labels.items() if text is not None}
    if options.answer_cue is not None:
        settings["prompt"] = {"answer_cue": options.answer_cue}
    if options.load_in_4bit:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    model: DecodNERForSpanClassification = DecodNERForSpanClassification.from_pretrained(options.model, **settings)
    if has_adapters(model.backbone):
        raise ValueError(
            f"{options.model} holds adapters on {model.backbone.name_or_path}: train that one, or a copy of it into "
            "which PEFT has merged them."
        )
    check_gradients(model)
    if options.lora_rank is not None:
        add_lora(model, options.lora_rank)
    if options.gradient_checkpointing:
        recompute_layers(model)
    if options.compile:
        compile_all_but_attention(model)
    return model


def check_gradients(model: torch.nn.Module) -> None:
    """Refuses 4-bit layers in the layout of bitsandbytes' CPU kernels, which silently pass no gradient on.

    Raises:
        ValueError: there are such layers.
    """
    for module in model.modules():
        quantized = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(quantized, "packing_format_for_cpu", False):
            raise ValueError(
                "bitsandbytes computes 4-bit layers without their gradient on this CPU: train on a GPU, or without "
                "load_in_4bit."
            )


def recompute_layers(model: DecodNERForSpanClassification) -> None:
    """Keeps only the inputs of decoder layers and recomputes the layers in the backward pass."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its name in older transformers
        model.gradient_checkpointing_enable()


def compile_all_but_attention(model: DecodNERForSpanClassification) -> None:
    """Compiles norms and MLPs of every decoder layer, one graph for all sizes."""
    for layer in decoder_layers(model.backbone):
        for part in layer.children():
            if not hasattr(part, "layer_idx"):  # attention finds its own compiled kernel
                part.compile(dynamic=True)


def add_lora(model: DecodNERForSpanClassification, rank: int) -> None:
    """Puts LoRA adapters on all linear layers of the decoder; only they are trained, in float32.

    Raises:
        ImportError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise ImportError('lora_rank needs PEFT: pip install "decodner-hf[peft]", or pip install peft.')
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
