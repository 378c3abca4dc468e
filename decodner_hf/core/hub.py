"""Writes what goes with a saved model: its code, its tokenizer, its card; and uploads it to the Hub.

In: a model's configuration or a tokenizer, and a directory. Out: files in it.
Knows nothing of weights, tensors or text to annotate.
"""

import copy
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCardData
from transformers import PreTrainedTokenizerBase

from .configuration import DecodNERConfig

CODE_FOLDER = "decodner"  # one sub-folder, flat inside, is what transformers' loader can follow
ENTRY_MODULE = f"{CODE_FOLDER}/remote"  # one entry file: two would load every module twice
HANDLER = "handler.py"  # where Inference Endpoints look for it
TASK = "decodner-ner"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # what a model card may call a base model; never a local path
PACKAGE_MODULE = "decodner_package"
PACKAGE = "decodner_hf"
PACKAGE_CODE = "\n".join(  # no line of this file may begin as an import of the package does
    [
        '"""Takes the classes of this checkpoint from the package that wrote it: pip install decodner-hf."""\n',
        f"from {PACKAGE} import DecodNERConfig, DecodNERForSpanClassification",
        f"from {PACKAGE}.core.modeling import DecodNERForTokenClassification\n",
        '__all__ = ["DecodNERConfig", "DecodNERForSpanClassification", "DecodNERForTokenClassification"]\n',
    ]
)


def write_code(config: DecodNERConfig, directory: str, whole: bool) -> None:
    """Writes the code that a checkpoint loads with, and lets `config` name its classes.

    Args:
        config: changed in place.
        directory: must exist.
        whole: all of the code, for processes without this package; else a file that imports the package, so that
            transformers asks for it where it is not installed instead of for a newer transformers.
    """
    name_classes(config, ENTRY_MODULE if whole else PACKAGE_MODULE)
    if whole:
        copy_code(directory)
        name_pipeline(config)
        return
    (Path(directory) / f"{PACKAGE_MODULE}.py").write_text(PACKAGE_CODE, encoding="utf-8")
    if hasattr(config, "custom_pipelines"):
        del config.custom_pipelines


def name_classes(config: DecodNERConfig, module: str) -> None:
    """Lets `config` name the classes in the file `module` beside it."""
    config.auto_map = {
        "AutoConfig": f"{module}.DecodNERConfig",
        "AutoModel": f"{module}.DecodNERForSpanClassification",
        "AutoModelForCausalLM": f"{module}.DecodNERForSpanClassification",
        "AutoModelForTokenClassification": f"{module}.DecodNERForTokenClassification",
    }


def name_pipeline(config: DecodNERConfig) -> None:
    """Lets `config` name the pipeline of the code that `copy_code` puts beside it."""
    pipeline = {"impl": f"{ENTRY_MODULE}.DecodNERPipeline", "pt": ["AutoModelForCausalLM"], "type": "text"}
    config.custom_pipelines = {TASK: pipeline}


def copy_code(directory: str) -> None:
    """Copies `core`, which imports nothing outside itself, into the code folder, and the handler to the root."""
    target = Path(directory) / CODE_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.name != "__init__.py":
            shutil.copyfile(source, target / source.name)
    shutil.copyfile(Path(__file__).with_name(HANDLER), Path(directory) / HANDLER)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str) -> None:
    """Saves the tokenizer, with its end token as pad token where it has none; the one passed is not changed."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)


def write_model_card(config: DecodNERConfig, directory: str) -> None:
    """Writes README.md with the Hub's metadata and how to use the model, unless there is one already."""
    path = Path(directory) / "README.md"
    if path.exists():
        return
    base = config.name_or_path if HUB_ID.fullmatch(config.name_or_path or "") else None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="token-classification",
        base_model=base,
        tags=["decodner", "named-entity-recognition", "span-scoring"],
    )
    labels = config.labels
    asked = "" if labels else ', candidate_labels=["person", "company"]'
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n",
        "# Named entity recognition by span scoring\n",
        f"A {config.text_config.model_type} decoder that reads a prompt and a document once and then scores every "
        f"span of up to {config.max_span_words} words.\n",
        "```python",
        "import decodner_hf",
        "from transformers import pipeline\n",
        f'ner = pipeline("{TASK}", model="<this repository>"{asked})',
        'print(ner("Apple was founded by Steve Jobs in Cupertino."))',
        "```\n",
        "The package is `pip install decodner-hf`. Where it is not installed, a repository that carries its "
        "code (a folder `decodner`) loads with `trust_remote_code=True`; without either, transformers does not know "
        "the model type `decodner`, whatever its version.\n",
        f'It is no token classifier: use `pipeline("{TASK}")` in place of `pipeline("ner")`.\n',
    ]
    if labels:
        lines += ["## Labels\n", *(f"- {name}{f': {text}' if text else ''}" for name, text in labels.items()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def upload(
    save: Callable[[str], object],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
) -> CommitInfo:
    """Lets `save` fill a directory and uploads it to the repository `repo_id`, made if need be; returns the commit."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as directory:
        save(directory)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
        )
