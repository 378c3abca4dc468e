"""The README's first command and its Python examples do what the README shows; scores may differ in their digits."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", README, flags=re.DOTALL)


def masked(text):
    """Scores replaced: their last digits depend on the processor."""
    return re.sub(r"\d\.\d{3,}", "<score>", text).strip()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout


def test_the_first_command_prints_what_the_readme_shows(quickstart):
    shown = next(text for kind, text in BLOCKS if kind == "text")
    assert masked(shown) in masked(quickstart[1])


def test_the_python_examples_print_what_the_readme_shows(quickstart, monkeypatch):
    monkeypatch.chdir(quickstart[0])
    names = {}
    compared = 0
    for index, (kind, code) in enumerate(BLOCKS):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, "README.md", "exec"), names)
            assert BLOCKS[index + 1][0] == "text", code
            assert masked(printed.getvalue()) == masked(BLOCKS[index + 1][1])
            compared += 1
    assert compared >= 6


def test_the_command_line_prints_what_the_readme_shows(quickstart):
    command = re.search(r"^decodner (.*quickstart-model)$", README, flags=re.MULTILINE).group(1)
    texts = re.findall(r'"([^"]*)"', command)
    finished = subprocess.run(
        [sys.executable, "-m", "decodner_hf.cli", *texts, "--model", "quickstart-model"],
        capture_output=True, text=True, cwd=quickstart[0],
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    shown = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("entity "))
    assert masked(finished.stdout) == masked(shown)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()
