"""The import direction of the folders, and what travels with a checkpoint."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "decodner_hf"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CORE = sorted(file for file in (PACKAGE / "core").glob("*.py") if file.name != "__init__.py")
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "decodner_cli").rglob("*.py")])
BELOW = {  # what each folder may import besides itself
    "core": set(),
    "default_model": set(),
    "data": {"core"},
    "evaluation": {"core", "data"},
    "training": {"core", "data", "evaluation"},
    "corpus": {"core"},
    "serving": {"core", "corpus"},
}
TEXT = {"prompting", "tokenization", "spans", "words", "span_tokens", "decoding", "selection"}
TEXT |= {"document_windows", "document_encoder", "piece_cache", "pipeline_io", "wider_spans"}
ABOVE = {
    "scoring",
    "scored_document",
    "round_scoring",
    "grown_scoring",
    "one_pass_growth",
    "pass_queues",
    "streaming",
    "pipeline",
    "low_level",
    "remote",
    "handler",
}
# Everything else of core must not know strings.
ENGINE = {file.stem for file in CORE} - TEXT - ABOVE - {"configuration", "arrays", "validation"}


def imported(file):
    """Dotted names of the project's modules that `file` imports."""
    package = ".".join(file.relative_to(ROOT).parent.parts).split(".")
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.append(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] in ("decodner_hf", "decodner_cli")]


def name_of(file):
    return "/".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_file_keeps_ambient_state(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_what_lies_below_them_only(folder):
    for file in (PACKAGE / folder).glob("*.py"):
        for module in imported(file):
            top, *rest = module.split(".")
            assert top == "decodner_hf", f"{name_of(file)} imports {module}"
            assert rest, f"{name_of(file)} imports the whole package"
            assert rest[0] in BELOW[folder] | {folder}, f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_core_is_flat_and_imports_relative_neighbours_only(file):
    """transformers finds the files of a checkpoint's code by a regular expression over lines of this form."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert (node.level, node.module in {other.stem for other in CORE}) == (1, True), ast.unparse(node)
    assert not re.findall(r"^\s*(?:import|from) decodner_", source, flags=re.MULTILINE)


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.stem)
def test_the_engine_knows_no_text_and_text_stages_no_model(file):
    known = {module.split(".")[-1] for module in imported(file)}
    if file.stem in ENGINE:
        assert not known & (TEXT | ABOVE)
    if file.stem in TEXT:
        assert not known & ((ENGINE | ABOVE) - {"forest", "arrays", "validation"})


def test_stages_do_not_import_in_circles():
    graph = {file.stem: {module.split(".")[-1] for module in imported(file)} for file in CORE}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, needed in graph.items() if name not in done and needed <= done}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready


def test_contributing_says_what_each_folder_may_import():
    rows = re.findall(r"^\| `decodner_hf/(\w+)/` \|[^|]*\| ([^|]*) \|$", CONTRIBUTING, flags=re.MULTILINE)
    stated = {folder: set(re.findall(r"`(\w+)`", below)) for folder, below in rows}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert stated.keys() == folders
    assert stated == {folder: BELOW[folder] for folder in folders}


def test_files_that_contributing_names_exist():
    named = re.findall(r"`((?:decodner_hf|decodner_cli|eval|scripts|tests)/[\w/.]*)`", CONTRIBUTING)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_two_test_files_have_one_name():
    """pytest imports test files by their bare names, and refuses the second of one name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []
