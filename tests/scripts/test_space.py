"""The folder of the Space: its program answers, and its files name what exists."""

import os
import re
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from tiny_pipelines import tiny_pipeline

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "scripts" / "space"
ATTEMPTS = 3000


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_program_of_the_space_serves_the_page(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    port = free_port()
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "DECODNER_MODEL": str(tmp_path / "model"),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen([sys.executable, str(SPACE / "app.py")], env=environment, cwd=tmp_path)
    try:
        page = None
        for _ in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120) as answered:  # once it is loaded
                    page = answered.read().decode()
                break
            except OSError:
                assert process.poll() is None
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
        assert "decodner" in page
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_its_files_name_an_extra_and_a_version_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (SPACE / "requirements.txt").read_text() == "decodner-hf[demo]\n"
    assert "demo" in extras
    card = (SPACE / "README.md").read_text()
    pinned = re.search(r"^gradio==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert re.search(r"^sdk_version: (\S+)$", card, flags=re.MULTILINE)[1] == pinned[1]
    assert (SPACE / re.search(r"^app_file: (\S+)$", card, flags=re.MULTILINE)[1]).exists()
