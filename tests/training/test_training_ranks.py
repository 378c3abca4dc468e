import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from test_training import files, run_command  # noqa: F401 (a fixture)
from transformers import TrainerCallback

from decodner_hf.training import train as training

ROOT = Path(__file__).parents[2]
RECIPE = ("--cpu", "--workers", "0", "--row-tokens", "256", "--epochs", "30", "--max-span-words", "3")
STEPS = 10  # of many more: the first step at which ranks ask one another about the time


class StopThere(TrainerCallback):
    def __init__(self, end):
        pass

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        control.should_save = control.should_training_stop = state.global_step == STEPS


def run_two_ranks(folder, *arguments, code=3, **by_rank):
    """Runs `decodner train` in two processes, with what torchrun tells them; returns what each printed, and where."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    paths = ["--model", folder / "base", "--train", folder / "data.jsonl", "--output", folder / "two"]
    command = [sys.executable, "-m", "decodner_cli", "train", *map(str, paths), *RECIPE, *arguments]
    ranks = [
        subprocess.Popen(
            [*command, *by_rank.get(f"rank_{rank}", [])],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [code, code], said
    return said


def logged(folder, name):
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


def test_two_ranks_stop_together_and_train_as_one_process_that_takes_both_rows(files, monkeypatch):  # noqa: F811
    late = {"rank_0": ["--max-seconds", "100000"], "rank_1": ["--max-seconds", "0.001"]}
    (first, _), (second, _) = run_two_ranks(files, "--log-steps", "1", **late)
    assert json.loads(first.splitlines()[-2])["steps"] == STEPS
    assert '"output"' not in second

    monkeypatch.setattr(training, "TimeLimit", StopThere)
    assert run_command(files, *RECIPE, "--log-steps", "1", "--rows-per-step", "2", "--max-seconds", "1") == 3
    for name in ("loss", "grad_norm"):
        alone, together = (np.array(logged(files / folder, name)) for folder in ("out", "two"))
        assert len(alone) == STEPS
        assert np.abs(together / alone - 1).max() < 1e-3, name
    start, one, two = (load_file(files / name / "model.safetensors") for name in ("base", "out", "two"))
    for name, weights in two.items():
        moved = (one[name] - start[name]).norm()
        assert moved > 0
        assert (weights - one[name]).norm() < 1e-3 * moved, name


def test_a_dev_document_that_one_rank_cannot_score_ends_both_once_the_model_is_saved(files):  # noqa: F811
    rows = [{"tokens": ["x" * length], "entities": [[0, 1, "PER"]]} for length in (3, 2000)]
    (files / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (_, first), (_, second) = run_two_ranks(
        files, "--max-steps", "1", "--evaluate-epochs", "0", "--dev", str(files / "dev.jsonl"), code=1
    )
    assert "1 other process(es)" in first
    assert "a window has room for" in second
    assert (files / "two" / "model.safetensors").is_file()
