import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "decodner_hf"
FILES = sorted(PACKAGE.glob("*.py"))
SHIPPED = [file for file in FILES if file.stem.endswith("_decodner") or "_decodner_" in file.stem]
TEXT = ("prompting", "tokenization", "spans", "words", "candidates", "pages", "decoding", "selection")
ABOVE = ("scoring", "requests", "results", "streaming", "pipeline")
# Everything else at and below modeling must not know strings.
ENGINE = {file.stem.split("_decodner")[0] for file in SHIPPED} - {*TEXT, *ABOVE, "configuration"}
ORDER = (
    *("configuration", "cache", "forest", "plans", "attention", "guard", "head", "checkpoints", "modeling", "scoring"),
    *("streaming", "pipeline"),
)


def imports(file):
    """Names of the package's own modules that `file` imports, and how many dots the import has."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("decodner_hf")):
            found.append((node.level, node.module))
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names if alias.name.startswith("decodner_hf")]
    return found


def stage(module):
    return module.split("_decodner")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_file_keeps_ambient_state(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_import_flat_neighbours_only(file):
    for level, module in imports(file):
        assert level == 1, f"{file.name}: absolute import of {module}"
        assert module in {shipped.stem for shipped in SHIPPED}, f"{file.name} imports {module}, which is not shipped"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_engine_knows_no_text_and_text_stages_no_model(file):
    known = {stage(module) for _, module in imports(file)}
    if stage(file.stem) in ENGINE:
        assert not known & {*TEXT, *ABOVE}
    if stage(file.stem) in TEXT:
        assert not known & ({*ENGINE, *ABOVE} - {"forest"})


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_down(name):
    above = {f"{other}_decodner" for other in ORDER[ORDER.index(name) + 1 :]}
    known = {module for _, module in imports(PACKAGE / f"{name}_decodner.py")}
    assert not known & above


def test_the_map_names_every_file_and_no_other():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+\.py)`", cell)]
    assert sorted(named) == [file.name for file in FILES]


def test_stages_do_not_import_in_circles():
    graph = {file.stem: {module for _, module in imports(file)} for file in SHIPPED}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, needed in graph.items() if name not in done and needed <= done}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready
