"""Checks an installation: versions, device, attention, the default model's scores, memory, growth.

In: a device and a model, or the defaults. Out: a `Finding` for each check, which says in one line what is so and,
where something is wrong, what to do. No check raises: what fails is a finding.
Knows nothing of the command line.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from .core.pipeline import DecodNERPipeline

State = Literal["ok", "note", "wrong"]
DISTRIBUTION = "decodner-hf"
SHOWN = ("torch", "transformers", "peft", "accelerate", "triton", "numpy")
REQUIRING = (DISTRIBUTION, "torch", "transformers", "peft", "accelerate", "tokenizers", "triton", "bitsandbytes")
KNOWN_SENTENCE = "Apple was founded by Steve Jobs in Cupertino."
KNOWN_ENTITIES = (("organization", 0, 5, 0.9454), ("person", 21, 31, 0.9862), ("location", 35, 44, 0.9695))
SCORE_TOLERANCE = 0.01  # float32 on any device; a wrong kernel or tokenizer differs by far more
NEEDED_BYTES = 1 << 30  # free, for the default model and torch's own working memory
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        state: "ok", "note" (works, but something could be better) or "wrong".
        message: one line.
    """

    check: str
    state: State
    message: str


@dataclass(frozen=True)
class Pair:
    """Two packages that are known not to go together, although their metadata allows it.

    Attributes:
        first: a package and the versions that it is about, as a requirement: "transformers>=5.24".
        second: the same of the other package.
        message: what does not work, and what does.
    """

    first: str
    second: str
    message: str


KNOWN_PAIRS = (
    Pair(
        "transformers>=5.24",
        "peft<0.22",
        "transformers' own add_adapter and load_adapter ask for peft 0.22; those of this package work",
    ),
)


def diagnose(model: str | None = None, device: str | None = None) -> Iterator[Finding]:
    """Yields a finding for each check, as soon as it is made.

    Args:
        model: a folder or a Hub id to check instead of the default model, whose scores are known.
        device: as torch names it; an accelerator by default, where there is one.
    """
    yield _guarded("versions", _versions)
    yield _guarded("requirements", _requirements)
    yield _guarded("pairs", _pairs)
    chosen = _guarded("device", lambda: _device(device))
    yield chosen
    if chosen.state == "wrong":
        return
    yield _guarded("attention", lambda: _attention(device))
    yield _guarded("memory", lambda: _memory(device))
    loaded: list[DecodNERPipeline] = []
    yield _guarded("model", lambda: _model(model, device, loaded))
    if loaded:
        yield _guarded("growth", lambda: _growth(loaded[0]))


def _guarded(check: str, made: Callable[[], tuple[State, str]]) -> Finding:
    try:
        state, message = made()
    except Exception as error:  # whatever a broken installation raises is what was to be found
        kind = "" if isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: "
        state, message = "wrong", f"{kind}{error}"
    return Finding(check, state, " ".join(message.split()))


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> tuple[State, str]:
    own = _installed(DISTRIBUTION)
    found = [f"{name} {version}" for name in SHOWN if (version := _installed(name)) is not None]
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return "ok", ", ".join([f"{DISTRIBUTION} {own or '(run from its source)'}", *found, system])


def _requirements() -> tuple[State, str]:
    """Compares what the packages around the model require of one another with what is installed."""
    from packaging.requirements import Requirement

    broken = []
    for package in REQUIRING:
        if _installed(package) is None:
            continue
        for line in metadata.requires(package) or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _installed(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                has = "is not installed" if version is None else f"is {version}"
                broken.append(f"{package} needs {requirement.name}{requirement.specifier}, which {has}")
    if broken:
        return "wrong", f"{'; '.join(broken)}: install the package again in a fresh environment"
    if _installed(DISTRIBUTION) is None:
        return "note", "run from its source: its own requirements are not checked; pip install -e ."
    return "ok", "all are met"


def _pairs(pairs: Sequence[Pair] = KNOWN_PAIRS) -> tuple[State, str]:
    """Looks for versions that are known not to go together."""
    from packaging.requirements import Requirement

    said = []
    for pair in pairs:
        requirements = [Requirement(line) for line in (pair.first, pair.second)]
        versions = [_installed(requirement.name) for requirement in requirements]
        if all(
            version is not None and requirement.specifier.contains(version, prereleases=True)
            for version, requirement in zip(versions, requirements, strict=True)
        ):
            names = [f"{item.name} {version}" for item, version in zip(requirements, versions, strict=True)]
            said.append(f"{' with '.join(names)}: {pair.message}")
    return ("note", "; ".join(said)) if said else ("ok", "no versions that are known not to go together")


def _torch_device(device: str | None) -> "torch.device":
    import torch

    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(device: str | None) -> tuple[State, str]:
    import torch

    chosen = _torch_device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            return "wrong", f"--device {device}: torch {torch.__version__} sees no GPU; install torch's CUDA build"
        major, minor = torch.cuda.get_device_capability(chosen)
        bfloat16 = "" if torch.cuda.is_bf16_supported() else ", without bfloat16"
        return "ok", f"{torch.cuda.get_device_name(chosen)}, capability {major}.{minor}{bfloat16}"
    said = f"{chosen.type}, {torch.get_num_threads()} threads"
    if chosen.type == "mps":
        return "note", f"{said}: not tested by this project; compare with --device cpu"
    if device is None and (Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()):
        return "wrong", f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it: install its CUDA build"
    return "ok", said


def _attention(device: str | None) -> tuple[State, str]:
    """Compares the attention that packed passes use on this device with the plain reference in float64."""
    import torch

    chosen = _torch_device(device)
    kernel = _kernel() if chosen.type == "cuda" else None
    if chosen.type == "cuda" and kernel is None:
        return "note", "Triton is not installed, torch attention is used: pip install 'decodner-hf[gpu]' is faster"
    worst = 0.0
    types = (torch.float32,) if chosen.type == "cpu" else (torch.float32, torch.bfloat16)
    for dtype in types:
        error, allowed = attention_error(chosen, dtype, kernel)
        if not error <= allowed:
            what = "the fused kernel" if kernel is not None else "torch attention"
            return "wrong", f"{what} in {dtype} differs from the reference by {error:.1e}, allowed are {allowed:.1e}"
        worst = max(worst, error)
    what = "fused kernel" if kernel is not None else "torch attention (no fused kernel on this device)"
    return "ok", f"{what} equals the reference, largest difference {worst:.1e}"


def _kernel() -> "Callable[..., torch.Tensor] | None":
    try:
        from .core.attention_triton import forest_attention_triton
    except ImportError:
        return None
    return forest_attention_triton


def attention_error(
    device: "torch.device", dtype: "torch.dtype", kernel: "Callable[..., torch.Tensor] | None"
) -> tuple[float, float]:
    """Returns (error, allowed error) of a layer of attention over a small forest, largest absolute differences.

    Args:
        device: where it is computed.
        dtype: of query, key and value.
        kernel: the fused kernel, or None for torch attention. Allowed is twice the error of torch attention in the
            same dtype, whose own error may be that of rounding.
    """
    import torch

    from .core.attention_metadata import AttentionMetadata
    from .core.attention_torch import forest_attention, forest_attention_reference
    from .core.forest import SpanPaths, build_forest
    from .core.layer_window import LayerWindow

    chain = list(range(40))
    spans = [chain[start : start + width] for start in range(40) for width in (1, 2, 3) if start + width <= 40]
    prefix, heads, kv_heads, size = 70, 4, 2, 64
    forest = build_forest([chain], [SpanPaths.from_lists(spans)], first_position=prefix)
    structure = AttentionMetadata(forest.position_ids, forest.subtree_end, prefix_length=prefix)
    draw = torch.Generator().manual_seed(0)

    def normal(rows: int, of: int) -> "torch.Tensor":
        return torch.randn(1, of, rows, size, generator=draw).to(device, dtype)

    query, key, value = (normal(forest.num_nodes, of) for of in (heads, kv_heads, kv_heads))
    cached = normal(prefix, kv_heads), normal(prefix, kv_heads)
    window, scaling = LayerWindow(), size**-0.5
    exactly = [part.cpu().double() for part in (query, key, value, *cached)]
    exact = forest_attention_reference(
        exactly[0], exactly[1], exactly[2], (exactly[3], exactly[4]), structure, window, scaling
    )
    own = forest_attention(query, key, value, cached, structure, window, scaling)
    plain = float((own.cpu().double() - exact).abs().max())
    if kernel is None:
        return plain, 8 * torch.finfo(dtype).eps * float(exact.abs().max())
    fused = kernel(query, key, value, cached, structure, window, scaling)
    error = float((fused.cpu().double() - exact).abs().max())
    return error, 2 * plain + 1e-6


def _memory(device: str | None) -> tuple[State, str]:
    import psutil  # comes with accelerate
    import torch

    free = {"host": psutil.virtual_memory().available}
    chosen = _torch_device(device)
    if chosen.type == "cuda":
        free["GPU"] = torch.cuda.mem_get_info(chosen)[0]
    said = ", ".join(f"{place} {size / GIB:.1f} GiB free" for place, size in free.items())
    if min(free.values()) < NEEDED_BYTES:
        return "wrong", f"{said}: at least {NEEDED_BYTES / GIB:.0f} GiB is needed; end other programs"
    return "ok", said


def _model(model: str | None, device: str | None, loaded: "list[DecodNERPipeline]") -> tuple[State, str]:
    """Loads the model and lets it answer; the default model's answer is known."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from .core.modeling import DecodNERForSpanClassification
    from .core.pipeline import DecodNERPipeline
    from .default_model import default_model

    logging.disable_progress_bar()
    named = model or str(default_model())
    weights = DecodNERForSpanClassification.from_pretrained(named)
    tokenizer = AutoTokenizer.from_pretrained(weights.config.name_or_path or named)
    pipe = DecodNERPipeline(model=weights, tokenizer=tokenizer, task="decodner-ner", device=_torch_device(device))
    loaded.append(pipe)
    labels = None if weights.config.entity_labels else ["person", "organization"]
    entities = pipe(KNOWN_SENTENCE, candidate_labels=labels)
    if model is not None:
        return "ok", f"{model} loads and answers ({weights.dtype}, {len(entities)} entities in a test sentence)"
    return compare_with_known([(e["entity_group"], e["start"], e["end"], float(e["score"])) for e in entities])


def compare_with_known(found: Sequence[tuple[str, int, int, float]]) -> tuple[State, str]:
    """Compares (label, start, end, score) of the entities of `KNOWN_SENTENCE` with what the default model finds."""
    if [entity[:3] for entity in found] != [entity[:3] for entity in KNOWN_ENTITIES]:
        return "wrong", f"the default model found {list(found)} instead of {list(KNOWN_ENTITIES)}"
    difference = max(abs(one[3] - other[3]) for one, other in zip(found, KNOWN_ENTITIES, strict=True))
    if not difference <= SCORE_TOLERANCE:
        return "wrong", f"the default model's scores differ by {difference:.4f} from those that are known"
    return "ok", f"the default model finds what it should, scores within {difference:.4f}"


def _growth(pipe: "DecodNERPipeline") -> tuple[State, str]:
    settings = pipe.settings_for({})
    if settings.growth:
        return "ok", f"on: longer spans are scored where shorter ones go on (threshold {settings.growth_threshold:g})"
    width = settings.max_span_words
    return "ok", f"off: all spans of up to {width} words are scored; the model was trained without --continuation"


def is_right(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.state != "wrong" for finding in findings)
