"""What other systems need, tested without them: encodings, no fork, no modules or locks that only POSIX has."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_pipes import FakePipe, describe_fakes

from decodner_hf.corpus import annotate

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "decodner_hf").rglob("*.py"), *(ROOT / "decodner_cli").rglob("*.py")])
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "posix", "pty", "tty"}
TEXT = "Zoë lives in Łódź, 東京 🙂."


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def opens_text(call):
    """Whether a call opens a file as text: `open` without "b" in the mode, `read_text`, `write_text`."""
    if name_of(call) in ("read_text", "write_text"):
        return True
    if name_of(call) != "open" or not (isinstance(call.func, ast.Name) or isinstance(call.func.value, ast.Attribute)):
        return False
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = [value for value in [*call.args, *named] if isinstance(value, ast.Constant)]
    return not any("b" in str(mode.value) for mode in modes)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_text_files_name_their_encoding_and_nothing_forks(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for call in calls(tree):
        if opens_text(call) and not any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            positional = name_of(call) == "read_text" and call.args
            second = name_of(call) == "write_text" and len(call.args) > 1
            assert positional or second, f"{file.name}:{call.lineno} opens text in the system's encoding"
        assert name_of(call) not in ("fork", "forkpty"), f"{file.name}:{call.lineno} forks"
        given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        assert not (name_of(call) in ("get_context", "set_start_method") and "fork" in given), file.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_importing_needs_no_module_that_only_posix_has(file):
    top = ast.parse(file.read_text(encoding="utf-8")).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    assert not names & POSIX_ONLY


def test_files_are_annotated_where_the_system_has_no_locks(monkeypatch, tmp_path):
    describe_fakes(monkeypatch)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / "in.txt").write_bytes(f"{TEXT}\r\nRome\r\n".encode())
    report = annotate(tmp_path / "in.txt", tmp_path / "out.jsonl", FakePipe())
    assert report.documents == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [TEXT, "Rome"]
    assert not (tmp_path / "out.jsonl.lock").exists()


def test_any_text_passes_where_the_locale_is_not_utf_8(tmp_path):
    (tmp_path / "in.txt").write_text(TEXT + "\n", encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONIOENCODING": "cp1252"}
    command = [
        sys.executable,
        "-X",
        "utf8=0",
        "-m",
        "decodner_cli",
        "annotate",
        "in.txt",
        "--out",
        "-",
        "--device",
        "cpu",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    assert json.loads(run.stdout.decode("utf-8"))["text"] == TEXT
