"""Tells models apart, so that no run goes on with another model than it began with.

In: a pipeline. Out: a short text, equal for equal models, and the settings that its results depend on. Read are the
configuration, the tokenizer, and of every weight its name, shape, dtype and 64 evenly spaced values: a model that was
trained further, or another one under the same path, differs; where its files lie does not matter.
Knows nothing of files or documents.
"""

import hashlib
import json
from dataclasses import asdict

import torch

from ..core.pipeline import DecodNERPipeline

SAMPLES = 64
NO_PART_OF_THE_MODEL = (  # differ between equal models: where they were saved, by which version, under which class
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map", "custom_pipelines"),
    "dtype",  # that of the weights is read from the weights
)


def fingerprint(pipe: DecodNERPipeline) -> str:
    """Returns a hash of the pipeline's configuration, tokenizer and sampled weights."""
    digest = hashlib.sha256()
    config = _without(pipe.model.config.to_dict(), NO_PART_OF_THE_MODEL)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    tokenizer = getattr(pipe.tokenizer, "backend_tokenizer", None)
    known = tokenizer.to_str() if tokenizer is not None else json.dumps(pipe.tokenizer.get_vocab(), sort_keys=True)
    digest.update(known.encode())
    samples = []
    for name, weight in sorted(pipe.model.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        samples.append(_sample(weight))
    if samples:
        digest.update(torch.cat([sample.cpu() for sample in samples]).numpy().tobytes())
    return digest.hexdigest()


def settings_of(pipe: DecodNERPipeline) -> dict[str, object]:
    """Returns the pipeline's settings as they are when a call names none, as plain values."""
    settings = asdict(pipe.settings_for({}))
    plain: dict[str, object] = json.loads(json.dumps(settings, default=str))
    return plain


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of at most `SAMPLES` evenly spaced values, [n], uint8."""
    flat = weight.detach().reshape(-1)
    places = torch.linspace(0, max(flat.numel() - 1, 0), min(SAMPLES, flat.numel()), dtype=torch.float64)
    return flat[places.long().to(flat.device)].contiguous().view(torch.uint8)


def _without(value: object, names: tuple[str, ...]) -> object:
    if not isinstance(value, dict):
        return value
    return {name: _without(part, names) for name, part in value.items() if name not in names}
