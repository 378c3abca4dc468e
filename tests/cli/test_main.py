import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "numpy", "pyarrow", "decodner_hf"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["tag", "--help"],
        ["annotate", "--help"],
        ["evaluate", "--help"],
        ["train", "--help"],
        ["doctor", "--help"],
        ["serve", "--help"],
        ["demo", "--help"],
        ["serve", "--port", "x"],
        ["text", "--threshold", "7"],
        ["annotate", "in.txt"],
        ["annotate", "in.txt", "--out", "out.conll", "--overlap", "nested"],
        ["train"],
        ["evaluate", "data", "--save"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "decodner_cli", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}
    assert run.returncode == (0 if "--help" in arguments else 2), run.stderr
    assert "decodner_cli" in imported
    assert not HEAVY & imported


ENDING = """
import atexit, sys, threading, time
from decodner_cli import main, tag

def run(_):
    BODY

tag.run = run
sys.exit(main.main(["text"]))
"""


def run_ending(body, **streams):
    """The command as a process, with `body` in place of what it does."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = ENDING.replace("BODY", body)
    return subprocess.run([sys.executable, "-c", program], text=True, check=False, env=buffered, **streams)


def test_the_process_ends_with_its_code_once_output_threads_and_exit_handlers_are_done():
    later = "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    ended = run_ending(f"print('text'); {later}; atexit.register(print, 'handler'); return 3")
    assert (ended.returncode, ended.stdout) == (3, "text\nthread\nhandler\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_at_the_end_is_reported():
    with open("/dev/full", "w") as full:
        ended = run_ending("print('text'); return 0", stdout=full)
    assert ended.returncode == 120
    assert "No space left on device" in ended.stderr
