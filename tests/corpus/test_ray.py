"""A Ray cluster of two workers: the same results as one process, whatever ends meanwhile, and clear errors."""

import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_pipes import entities_of
from pipelines_in_processes import load_fake, load_tiny

from decodner_hf.corpus import annotate
from decodner_hf.corpus.chunks import ChunkSize
from decodner_hf.corpus.job import plan_job
from decodner_hf.corpus.progress import Progress
from decodner_hf.corpus.ray_cluster import connect, room
from decodner_hf.corpus.ray_run import run_on_ray
from decodner_hf.corpus.readers import Layout

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("ray.data", reason="needs the extra ray")

SMALL = ChunkSize(documents=10, characters=10_000)
TEXTS = [f"City{number} and {number}" for number in range(200)]


def environment(home):
    """What a process needs to reach the cluster: our modules, and the token in its home folder."""
    path = os.pathsep.join(sys.path)
    return {"PYTHONPATH": path, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with a token, as ray writes it for local clusters."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a1b2c3d4e5f60718293a4b5c6d7e8f90")
    return folder


@pytest.fixture(scope="module")
def cluster(home):
    """A head without processors and two workers on this machine."""
    from ray._private.authentication_test_utils import reset_auth_token_state
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home).items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        reset_auth_token_state()
        detection = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        common = {"object_store_memory": 80 << 20}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": detection}
        cluster = Cluster(initialize_head=True, head_node_args=head | common)
        connect(cluster.address)  # to the head, which is there alone: this process ends with the node that it is on
        for _ in range(2):
            cluster.add_node(num_cpus=2, **common)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    reset_auth_token_state()


def plan(source, folder, **options):
    return plan_job([source], f"{folder}/", layout=Layout(), output_format="parquet", warn=print, **options)


def run(job, load=load_fake, **options):
    return run_on_ray(job, load, device="cpu", workers=2, size=SMALL, warn=print, **options)


def rows_in(folder):
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def expected(texts):
    return [{"text": text, "entities": entities_of(text)} for text in texts]


# ------------------------------------------------------------------ before there is a cluster


def test_a_cluster_that_cannot_be_reached_is_an_error_within_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
            connect(address)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["somewhere", "127.0.0.1", ":6379", "127.0.0.1:port"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(ValueError, match="host:port, auto or local"):
        connect(address)


def call(home, source, folder, *arguments):
    """Runs `decodner annotate --engine ray` in a process of its own."""
    command = [sys.executable, "-m", "decodner_cli", "annotate", str(source), "--out", str(folder), "--engine", "ray"]
    command += ["--device", "cpu", "--ray-workers", "1", *arguments]
    own = os.environ | environment(home)
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=240, check=False)


def check_answer(done, folder):
    assert done.returncode == 0, done.stderr
    assert "complete: 3 documents annotated" in done.stderr
    assert [[entity["word"] for entity in row["entities"]] for row in rows_in(folder)] == [["Steve Jobs", "Apple"]] * 3


def test_without_an_address_a_protected_cluster_is_started_for_the_run(tmp_path):
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("Steve Jobs founded Apple.\n" * 3)
    check_answer(call(tmp_path, source, folder), folder)
    assert (tmp_path / ".ray" / "auth_token").is_file()


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl"])
def test_an_output_that_is_no_folder_of_parquet_files_is_refused(tmp_path, output):
    (tmp_path / "in.txt").write_text("Rome\n")
    job = plan_job([tmp_path / "in.txt"], tmp_path / output, layout=Layout(), warn=print)
    with pytest.raises(ValueError, match=f"a folder of parquet files, not {output}"):
        run(job)


class FakeCluster:
    def __init__(self, **has):
        self.has = has

    def cluster_resources(self):
        return self.has


def test_a_gpu_each_where_there_are_some_else_a_processor():
    assert room(FakeCluster(GPU=4.0, CPU=64.0), None, None).actors == 4
    assert room(FakeCluster(GPU=4.0, CPU=64.0), "cuda", 2).resources == {"num_gpus": 1.0}
    assert room(FakeCluster(CPU=8.0), None, None).actors == 7
    assert room(FakeCluster(GPU=4.0, CPU=8.0), "cpu", 8).device == "cpu"
    for device, workers, message in [
        ("cuda", None, "no GPU"), ("cpu", 9, "room for 8"), ("cuda:1", None, "Ray chooses")
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            room(FakeCluster(CPU=8.0), device, workers)


# ------------------------------------------------------------------ on a cluster


def test_the_results_are_those_of_one_process(cluster, tmp_path):  # noqa: ARG001
    texts = [f"Tim Cook met number {number} of Apple." if number % 5 else "日本 \u2028" for number in range(60)]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"text": text, "n": number}) for number, text in enumerate(texts)))
    report = run(plan(source, tmp_path / "out"), load_tiny)
    alone = annotate(source, tmp_path / "one.parquet", load_tiny("cpu"))
    one, several = pq.read_table(tmp_path / "one.parquet").to_pylist(), rows_in(tmp_path / "out")
    for row in several:
        for entity in row["entities"]:
            entity["score"] = pytest.approx(entity["score"], abs=1e-5)
    assert several == one
    assert report == alone
    assert sum(report.entities.values()) > 60


class Interrupted(Progress):
    def __init__(self, after):
        self.after = after

    def advance(self):
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_with_what_is_missing(cluster, tmp_path, monkeypatch):  # noqa: ARG001
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("\n".join(TEXTS))
    monkeypatch.chdir(tmp_path)
    job = plan(Path("in.txt"), Path("out"))
    with pytest.raises(KeyboardInterrupt):
        run(job, progress=Interrupted(after=35))
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert len(before) >= 4
    with pytest.raises(FileExistsError, match="parts of an interrupted run: go on with --resume"):
        run(job)
    with pytest.raises(ValueError, match="another model"):
        run(job, partial(load_fake, differ=True), resume=True)
    report = run(job, resume=True)
    assert rows_in(folder) == expected(TEXTS)
    assert report.documents == len(TEXTS)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert run(job, resume=True).was_complete
    with pytest.raises(FileExistsError, match="holds 20 parts already"):
        run(job)


def test_a_refused_document_or_model_is_the_error_of_the_run(cluster, tmp_path):  # noqa: ARG001
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    texts = [*TEXTS[:25], "BAD", *TEXTS[25:50]]
    source.write_text("\n".join(texts))
    with pytest.raises(OSError, match="no such model"):
        run(plan(source, folder), partial(load_fake, error=OSError("no such model")))
    with pytest.raises(ValueError, match=r"in\.txt, line 26: BAD is refused"):
        run(plan(source, folder))
    report = run(plan(source, folder, skip_errors=True), resume=True)
    assert rows_in(folder) == expected([text for text in texts if text != "BAD"])
    assert [item["document"] for item in report.skipped] == ["in.txt, line 26"]


def test_a_process_without_the_token_is_told_so_and_one_with_it_gets_the_results(cluster, home, tmp_path):
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("Steve Jobs founded Apple.\n" * 3)
    (tmp_path / "empty").mkdir()
    refused = call(tmp_path / "empty", source, folder, "--ray-address", cluster.address)
    assert refused.returncode == 1, refused.stderr
    assert "RAY_AUTH_TOKEN" in refused.stderr.splitlines()[-1]
    check_answer(call(home, source, folder, "--ray-address", cluster.address), folder)


def test_no_document_is_lost_or_doubled_where_a_process_and_then_a_machine_ends(cluster, tmp_path):
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    texts = [*TEXTS[:30], f"process once: {tmp_path / 'first'}", *TEXTS[30:150], f"parent once: {tmp_path / 'second'}"]
    texts += TEXTS[150:]
    source.write_text("\n".join(texts))
    report = run(plan(source, folder))
    assert (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()
    assert rows_in(folder) == expected(texts)
    assert report.documents == len(texts)
    assert [path.name for path in folder.iterdir() if "unfinished" in path.name] == []
    assert sum(node["Alive"] for node in ray.nodes()) == len(cluster.list_all_nodes()) - 1
