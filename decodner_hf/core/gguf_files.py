"""Finds and checks GGUF files, llama.cpp's checkpoints: weights, configuration and tokenizer in one file.

In: a path or Hub id. Out: where the file is and what it is called there, or one clear error; its tokenizer.
transformers reads them (with the package gguf) and unpacks their weights. Knows nothing of models or adapters.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .transformers_private import cached_path, gguf_problem

SUFFIX = ".gguf"
HUB_ID_PARTS = 2  # OWNER/NAME, then the file


def split_gguf(path: str) -> tuple[str, str | None]:
    """Returns the folder or Hub id of a GGUF file and its name there; another path comes back with None.

    Args:
        path: folder/FILE.gguf, OWNER/NAME/FILE.gguf on the Hub, or any other path or Hub id.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.lower().endswith(SUFFIX):
        return path, None
    file, parts = Path(path), path.split("/")
    if file.is_file():
        return str(file.parent), file.name
    if len(parts) <= HUB_ID_PARTS or path.startswith((".", "/", "~")) or file.parent.is_dir():
        raise FileNotFoundError(f"there is no file {path}.")
    return "/".join(parts[:HUB_ID_PARTS]), "/".join(parts[HUB_ID_PARTS:])


def gguf_path(folder: str, file: str) -> str:
    """Returns the one path that `split_gguf` takes apart into a folder or Hub id and a file in it."""
    return f"{folder.rstrip('/')}/{file}"


def check_gguf(folder: str, file: str, hub: Mapping[str, Any]) -> None:
    """Checks that a GGUF file can be read, as far as it goes without its weights.

    Args:
        folder: folder or Hub id.
        file: the file's name there.
        hub: keywords of `from_pretrained` that say where on the Hub it is.

    Raises:
        ImportError: the package gguf is not installed.
        FileNotFoundError: no such file.
        ValueError: a file of another kind, or one that is incomplete.
    """
    path = gguf_path(folder, file)
    try:
        import_module("gguf")  # not by a statement, or checkpoints' code would be refused where it is absent
    except ImportError:
        needed = 'to read it, pip install "decodner-hf[gguf]", or pip install gguf.'
        raise ImportError(f"{path} is a GGUF file: {needed}") from None
    found = cached_path(folder, file, dict(hub))
    if found is None:
        raise FileNotFoundError(f"there is no file {file} in {folder}.")
    problem = gguf_problem(found)
    if problem is not None:
        raise ValueError(f"{path} cannot be read: {problem}")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint: a folder, a Hub id or a GGUF file.

    Raises:
        ValueError: a GGUF file that is incomplete.
        OSError: no tokenizer there.
        ImportError: a package is needed and not installed.
    """
    folder, file = split_gguf(path)
    keywords = {}
    if file is not None:
        check_gguf(folder, file, {})
        keywords["gguf_file"] = file
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **keywords)
    return tokenizer
