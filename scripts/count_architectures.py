"""Counts the decoder architectures of the installed transformers for which span scoring is exact.

In: nothing, or model types to try. Out: a line for each causal language model type and, last, one JSON line.
Each is made tiny and random; the load-time checks then accept or refuse it, and an accepted one is compared with the
native model run on every prompt alone, in float32.
"""

import argparse
import json
import logging
import warnings

import torch
import transformers
from architectures import Exactness, measure_exactness, tiny_config, tiny_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decodner_hf.core.compatibility import native_class

MOST_PARAMETERS = 40_000_000  # what is larger in its smallest known shape is not run
TOLERANCE = 2e-5  # of the largest logit, at least 1
LEAST_CONTROL = 1e-2


def try_architecture(model_type: str) -> tuple[str, str]:
    """Returns ("qualifies", "refused", "differs" or "not tried", why) for one model type."""
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception as error:  # a configuration without defaults: its own reason is reported
        return "not tried", f"no default configuration: {_first_line(error)}"
    try:
        native_class(config)
    except ValueError as error:
        return "refused", _first_line(error)
    try:
        config = tiny_config(model_type)
        with torch.device("meta"):
            native = native_class(config)._from_config(config)
        size = sum(parameter.numel() for parameter in native.parameters())
        if size > MOST_PARAMETERS:
            return "not tried", f"{size / 1e6:.0f} M parameters in its tiny shape"
        native = tiny_model(config)
        native(input_ids=torch.arange(3, 9)[None], use_cache=False)
    except Exception as error:  # of transformers, from a shape it cannot take: its own reason is reported
        return "not tried", f"no tiny shape: {type(error).__name__}: {_first_line(error)}"
    try:
        return judge(measure_exactness(native))
    except ValueError as error:
        return "refused", _first_line(error)
    except Exception as error:
        return "differs", f"{type(error).__name__}: {_first_line(error)}"


def judge(errors: Exactness) -> tuple[str, str]:
    """Tells whether the differences are rounding."""
    figures = f"error {errors.worst:.1e} at |logit| {errors.largest_logit:.2g}, wrong mask {errors.control:.2g}"
    if errors.worst > TOLERANCE * max(1.0, errors.largest_logit):
        return "differs", figures
    return ("qualifies" if errors.control > LEAST_CONTROL else "not tried"), figures


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:110] if lines else type(error).__name__


def main() -> None:
    """Tries every model type and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="all causal language models if none is named")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found: dict[str, list[str]] = {"qualifies": [], "refused": [], "differs": [], "not tried": []}
    for model_type in options.model_types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        verdict, why = try_architecture(model_type)
        found[verdict].append(model_type)
        print(f"{model_type:28s}{verdict:11s}{why}", flush=True)
    counts = {verdict: len(names) for verdict, names in found.items()}
    print(json.dumps({"transformers": transformers.__version__, **counts, "names": found}))


if __name__ == "__main__":
    main()
