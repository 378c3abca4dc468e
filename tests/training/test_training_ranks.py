import json
import multiprocessing
import os
import socket
import sys

import numpy as np
import pytest
from rank_process import run_rank
from safetensors.torch import load_file
from tiny_training import run_command
from transformers import TrainerCallback

from decodner_hf.training import run as training

RECIPE = ("--cpu", "--workers", "0", "--row-tokens", "256", "--epochs", "30", "--max-span-words", "3")
STEPS = 10  # of many more: the first step at which ranks ask one another about the time


class StopThere(TrainerCallback):
    def __init__(self, end):
        pass

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        control.should_save = control.should_training_stop = state.global_step == STEPS


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    """Where the server that starts the ranks finds what it imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def run_two_ranks(folder, *arguments, code=3, **by_rank):
    """Runs `decodner train` in two processes, with what torchrun tells them; returns what each printed, and where."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    paths = ["--model", folder / "base", "--train", folder / "data.jsonl", "--output", folder / "two"]
    command = ["train", *map(str, paths), *RECIPE, *arguments]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rank_process"])  # imports torch and transformers once for all ranks
    outputs = [[folder / f"rank_{rank}.{stream}" for stream in ("out", "err")] for rank in range(2)]
    ranks = []
    for rank, output in enumerate(outputs):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = [*command, *by_rank.get(f"rank_{rank}", [])]
        ranks.append(server.Process(target=run_rank, args=(given, own, *output)))
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
    finally:
        for rank in ranks:
            rank.kill()
    said = [[path.read_text() for path in output] for output in outputs]
    assert [rank.exitcode for rank in ranks] == [code, code], said
    return said


def logged(folder, name):
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


def test_two_ranks_stop_together_and_train_as_one_process_that_takes_both_rows(files, monkeypatch):
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


def test_a_dev_document_that_one_rank_cannot_score_ends_both_once_the_model_is_saved(files):
    rows = [{"tokens": [word], "entities": [[0, 1, "PER"]]} for word in ("Ana", "\ud800")]
    (files / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (_, first), (_, second) = run_two_ranks(
        files, "--max-steps", "1", "--evaluate-epochs", "0", "--dev", str(files / "dev.jsonl"), code=1
    )
    assert "1 other process(es)" in first
    assert "surrogate" in second
    assert (files / "two" / "model.safetensors").is_file()
