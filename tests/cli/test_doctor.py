import builtins
import importlib
import sys
from importlib import metadata

import psutil
import pytest
import torch

from decodner_cli import main as cli
from decodner_hf import diagnosis
from decodner_hf.core import attention_torch
from decodner_hf.diagnosis import KNOWN_ENTITIES, Pair, attention_error, compare_with_known, diagnose

CHECKS = ["versions", "requirements", "pairs", "device", "attention", "memory", "model", "growth"]


def found(check, **arguments):
    return next(finding for finding in diagnose(device="cpu", **arguments) if finding.check == check)


def test_one_line_a_check_and_no_complaint_on_a_right_installation(capsys):
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == CHECKS
    assert not [line for line in lines if line.startswith("wrong")]
    assert "the default model finds what it should" in lines[-2]


def test_a_missing_gpu_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["doctor", "--device", "cuda"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("wrong  device")
    assert "sees no GPU" in last


def test_attention_that_is_wrong_is_found(monkeypatch):
    right = attention_torch.forest_attention
    monkeypatch.setattr(attention_torch, "forest_attention", lambda *rest: right(*rest) * 1.001)
    finding = found("attention")
    assert finding.state == "wrong"
    assert "differs from the reference" in finding.message


def test_a_kernel_is_compared_with_the_reference():
    device = torch.device("cpu")
    error, allowed = attention_error(device, torch.float32, attention_torch.forest_attention)
    assert error <= allowed
    error, allowed = attention_error(device, torch.float32, lambda *rest: attention_torch.forest_attention(*rest) + 1)
    assert error > allowed


WRONG_ANSWERS = {
    "nothing": [],
    "another label": [("person", *KNOWN_ENTITIES[0][1:]), *KNOWN_ENTITIES[1:]],
    "another score": [(*KNOWN_ENTITIES[0][:3], 0.5), *KNOWN_ENTITIES[1:]],
    "no number": [(*KNOWN_ENTITIES[0][:3], float("nan")), *KNOWN_ENTITIES[1:]],
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_another_answer_of_the_default_model_is_wrong(answer):
    assert compare_with_known(answer)[0] == "wrong"
    assert compare_with_known(KNOWN_ENTITIES)[0] == "ok"


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    finding = found("model", model=str(tmp_path))
    assert finding.state == "wrong"
    assert "\n" not in finding.message
    assert str(tmp_path) in finding.message


def test_too_little_memory_is_wrong(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
    assert found("memory").state == "wrong"


def test_requirements_that_are_not_met_are_named(monkeypatch):
    required = {"transformers": ["tokenizers<0.1", 'nothing; extra == "x"', 'other; sys_platform == "nowhere"']}
    monkeypatch.setattr(metadata, "requires", lambda package: required.get(package, []))
    finding = found("requirements")
    assert finding.state == "wrong"
    assert f"transformers needs tokenizers<0.1, which is {metadata.version('tokenizers')}" in finding.message


def test_pairs_that_do_not_go_together_are_named():
    always = Pair("torch>=1", "numpy>=1", "a reason")
    assert diagnosis._pairs([always])[0] == "note"
    assert "a reason" in diagnosis._pairs([always])[1]
    assert diagnosis._pairs([Pair("torch>=1", "numpy<1", "a reason")])[0] == "ok"
    assert diagnosis._pairs([Pair("torch>=1", "no-such-package-here", "a reason")])[0] == "ok"


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    own = builtins.__import__

    def broken(name, *rest):
        if name == "psutil":
            raise ImportError("psutil is broken")
        return own(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    finding = found("memory")
    assert (finding.state, finding.message) == ("wrong", "ImportError: psutil is broken")


def test_without_triton_a_gpu_gets_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "decodner_hf.core.attention_triton", None)
    assert diagnosis._kernel() is None
    monkeypatch.setattr(diagnosis, "_torch_device", lambda _: torch.device("cuda"))
    assert diagnosis._attention(None)[0] == "note"


@pytest.mark.gpu
def test_the_kernel_equals_the_reference_on_this_gpu():
    importlib.import_module("triton")
    findings = {finding.check: finding for finding in diagnose(device="cuda")}
    assert "fused kernel equals the reference" in findings["attention"].message
    assert findings["model"].state == "ok"
