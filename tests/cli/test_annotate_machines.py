"""`decodner annotate` on several devices, and the arguments that choose where it runs."""

import json
import sys

import pytest

from decodner_cli import main as cli


@pytest.mark.parametrize("out", ["out.jsonl", "-"])
def test_two_processes_write_what_one_writes(tmp_path, capsysbinary, out):
    source = tmp_path / "in.txt"
    source.write_text("Steve Jobs founded Apple.\n\nNobody.\nAda Hopper met Alan Smith at Nokia.\n")
    target = str(tmp_path / out) if out != "-" else out
    arguments = ["annotate", str(source), "--out", target, "--labels", "person", "organization"]
    assert cli.main([*arguments, "--devices", "cpu, cpu"]) == 0
    written = (tmp_path / out).read_bytes() if out != "-" else capsysbinary.readouterr().out
    rows = [json.loads(line) for line in written.splitlines()]
    assert [[(entity["word"], entity["entity_group"]) for entity in row["entities"]] for row in rows] == [
        [("Steve Jobs", "person"), ("Apple", "organization")],
        [],
        [],
        [("Ada Hopper", "person"), ("Alan Smith", "person"), ("Nokia", "organization")],
    ]


WRONG_ARGUMENTS = {
    "both": (["--device", "cpu", "--devices", "cpu,cpu"], "--devices: not allowed with argument --device"),
    "an empty name": (["--devices", "cpu,"], "'cpu,' is not a list such as cuda:0,cuda:1"),
    "no devices": (["--devices", ""], "'' is not a list"),
    "an address alone": (["--ray-address", "auto"], "--ray-address: it needs --engine ray"),
    "workers alone": (["--ray-workers", "2"], "--ray-workers: it needs --engine ray"),
    "no workers": (["--engine", "ray", "--ray-workers", "0"], "'0' is not a whole number of at least 1"),
    "devices of a cluster": (["--engine", "ray", "--devices", "cpu"], "Ray chooses the GPUs"),
    "format of a cluster": (["--engine", "ray", "--format", "jsonl"], "--engine ray writes parquet, not jsonl"),
    "standard output of a cluster": (["--engine", "ray", "--out", "-"], "--engine ray writes a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_arguments_that_exclude_each_other_are_refused(tmp_path, capsys, arguments, message):
    (tmp_path / "in.txt").write_text("Rome\n")
    assert cli.main(["annotate", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_device_that_is_missing_is_named_before_anything_starts(tmp_path, capsys):
    (tmp_path / "in.txt").write_text("Rome\n")
    arguments = ["annotate", str(tmp_path / "in.txt"), "--out", str(tmp_path / "o.jsonl"), "--devices", "cpu,cuda:99"]
    assert cli.main(arguments) == 1
    assert "there is no device 'cuda:99' on this machine; it has cpu" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_cluster_that_cannot_be_reached_leaves_nothing_behind(tmp_path, capsys):
    pytest.importorskip("ray", reason="needs the extra ray")
    (tmp_path / "in.txt").write_text("Rome\n")
    arguments = ["annotate", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([*arguments, "--ray-address", "127.0.0.1:1"]) == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.txt").write_text("Rome\n")
    assert cli.main(["annotate", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 1
    assert "--engine ray needs Ray: pip install 'decodner-hf[ray]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
