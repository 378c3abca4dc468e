"""Averages the weights of models that were fine-tuned from the same start: better than each, at the cost of one.

In: folders of trained models with the same decoder, tokenizer, prompt and labels, such as the seeds of one recipe.
Out: a folder that loads as the first does, not calibrated. Models that started from different weights do not average.
Source: Wortsman et al., "Model soups", 2022 (arXiv:2203.05482), the uniform soup.

python scripts/average_weights.py --models seed-0 seed-1 seed-2 --output averaged
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from decodner_cli.pipeline_arguments import check_model_folder
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, PromptTemplate
from decodner_hf.core.tokenization import check_tokenizer
from decodner_hf.core.weights import adapted_layers
from decodner_hf.evaluation.calibration import uncalibrated

OK, FAILED = 0, 1
SHARED = ("entity_labels", "label_descriptions", "prompt")
ORIGIN = ("_name_or_path", "dtype", "transformers_version")  # of a decoder's configuration: not what it computes
READING = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")  # parts of a tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Averages and saves; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("average_weights.py", description=__doc__, formatter_class=raw)
    parser.add_argument("--models", nargs="+", required=True, metavar="DIR", help="at least two")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--max-shard-size", default="5GB", help="of the result's files (default: 5GB)")
    options = parser.parse_args(argv)
    if len(options.models) < 2:
        parser.error("--models takes at least two folders")
    if options.output.exists():
        parser.error(f"{options.output} is there already: name another --output")
    try:
        average(options.models).save_pretrained(options.output, max_shard_size=options.max_shard_size)
        AutoTokenizer.from_pretrained(options.models[0]).save_pretrained(options.output)
    except (OSError, ValueError) as error:
        print(f"average_weights: error: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps({"output": str(options.output), "models": len(options.models)}))
    return OK


def average(folders: Sequence[str]) -> DecodNERForSpanClassification:
    """Returns the first folder's model with the mean of all weights, taken in float32, and without calibration.

    Raises:
        ValueError: an adapter, a quantized or broken model, or one of another decoder, tokenizer, prompt or labels.
    """
    model = _load(folders[0])
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    mean = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    own, reading = _question(model.config), _reading(folders[0], model.config)
    for number, folder in enumerate(folders[1:], 2):
        other = _load(folder)
        theirs = _question(other.config)
        differing = [name for name in own | theirs if own.get(name) != theirs.get(name)]
        if differing:
            values = "; ".join(f"{name} {theirs.get(name)!r}, not {own.get(name)!r}" for name in differing)
            raise ValueError(
                f"{folder} differs from {folders[0]} ({values}): only models that answer the same question average."
            )
        read = _reading(folder, other.config)
        unlike = [part for part in reading if read[part] != reading[part]]
        if unlike:
            raise ValueError(
                f"{folder} has another tokenizer than {folders[0]} (in {', '.join(unlike)}): only models that read "
                "the same tokens average."
            )
        others = other.state_dict()
        for name, tensor in mean.items():
            tensor += (others[name].float() - tensor) / number
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(mean[name])
    return model


def _load(folder: str) -> DecodNERForSpanClassification:
    check_model_folder(folder)
    try:
        model = DecodNERForSpanClassification.from_pretrained(folder, **uncalibrated())
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded, its files are broken: {error}") from error
    if adapted_layers(model.backbone) or getattr(model, "is_quantized", False):
        raise ValueError(f"{folder} has adapters or quantized weights, whose average is not that of the models.")
    return model


def _question(config: DecodNERConfig) -> dict[str, Any]:
    """Returns what models must have in common for their weights to mean the same."""
    decoder = {name: value for name, value in config.text_config.to_dict().items() if name not in ORIGIN}
    return decoder | {name: getattr(config, name) for name in SHARED}


def _reading(folder: str, config: DecodNERConfig) -> dict[str, Any]:
    """Returns what decides which tokens the model of a folder reads; how they become text again does not."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        check_tokenizer(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no tokenizer that can be used: {error}") from error
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    template = tokenizer.chat_template if PromptTemplate.from_config(config).chat_template else None
    return {part: parts[part] for part in READING} | {"chat_template": template}


if __name__ == "__main__":
    sys.exit(main())
