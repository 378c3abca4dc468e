"""The command `decodner serve`: as a process with a tiny model, and its errors before there is one."""

import argparse
import asyncio
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from served_process import ServedProcess
from tiny_pipelines import TEXT, tiny_pipeline

from decodner_cli import main as cli
from decodner_cli import serve
from decodner_hf.serving.limits import Limits
from decodner_hf.serving.server import listen

LABELS = ["--labels", "Person", "City=a town"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    monkeypatch.delenv("DECODNER_MODEL", raising=False)


def test_it_answers_what_is_under_way_when_it_is_told_to_stop(folder, monkeypatch):
    monkeypatch.setenv(serve.KEY_VARIABLE, "")
    with pytest.raises(RuntimeError, match=f"{serve.KEY_VARIABLE}: the API key must be"):
        ServedProcess("--model", folder, *LABELS)
    monkeypatch.delenv(serve.KEY_VARIABLE)
    documents = [f"{TEXT} {number}" for number in range(300)]
    with ServedProcess("--model", folder, *LABELS, "--log-requests") as served, ThreadPoolExecutor() as threads:
        assert served.post({"documents": [TEXT]})[0] == 200
        large = threads.submit(served.post, {"documents": documents, "threshold": 0.0})
        while not served.open("/health")[1]["waiting_documents"]:
            assert not large.done()
        served.process.send_signal(signal.SIGTERM)
        status, answered = large.result()
        code, messages = served.wait()
    assert status == 200
    assert len(answered["results"]) == len(documents)
    assert all(result["entities"] for result in answered["results"])
    assert (code, messages.splitlines()[-1]) == (0, "decodner: stopped.")
    assert re.search(r"/extract 200: 300 documents, \d+ bytes", messages)
    assert "Apple" not in messages


def test_ctrl_c_ends_it_with_success(folder):
    with ServedProcess("--model", folder, *LABELS) as served:
        served.process.send_signal(signal.SIGINT)
        code, messages = served.wait()
    assert (code, messages.splitlines()[-1]) == (0, "decodner: stopped.")


def test_answers_are_not_held_back_by_the_system():
    """A connection without TCP_NODELAY waits for the client's delayed acknowledgement between head and body."""

    async def connected(listener):
        delayed = asyncio.get_running_loop().create_future()

        def accepted(_, writer):
            delayed.set_result(not writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert not await delayed
            writer.close()

    with listen("127.0.0.1", 0) as listener:
        asyncio.run(connected(listener))


def error_of(capsys, *arguments):
    assert cli.main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_port_in_use_is_said_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = error_of(capsys, "--port", str(port), "--model", "/no/such/folder")
    assert error.startswith(f"decodner: error: port {port} of 127.0.0.1 is in use: end the program that uses it")


def test_a_host_of_another_machine_is_refused(capsys, monkeypatch):
    assert "there is no host 'a..b'" in error_of(capsys, "--host", "a..b")
    assert "cannot listen on port 8000 of 192.0.2.1" in error_of(capsys, "--host", "192.0.2.1")

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "there is no host 'elsewhere': Name or service not known." in error_of(capsys, "--host", "elsewhere")


@pytest.mark.parametrize("package", ["fastapi", "prometheus_client", "uvicorn"])
def test_a_missing_extra_is_named(capsys, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("decodner_hf.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert 'pip install "decodner-hf[serve]"' in error_of(capsys)


@pytest.mark.parametrize("wrong", [["--port", "70000"], ["--port", "x"], ["--max-documents", "0"]], ids=" ".join)
def test_wrong_usage_is_refused(capsys, wrong):
    assert cli.main(["serve", *wrong]) == 2
    assert repr(wrong[1]) in capsys.readouterr().err


def test_flags_have_the_defaults_of_the_limits():
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    parsed = vars(parser.parse_args([]))
    assert Limits(**{name: parsed[f"limit_{name}"] for name in serve.LIMITS}) == Limits()
    assert serve.LIMITS.keys() == Limits.__dataclass_fields__.keys()


def test_a_model_that_is_missing_is_one_line(capsys):
    assert "there is no folder /no/such/folder" in error_of(capsys, "--port", "0", "--model", "/no/such/folder")


def test_everyone_in_the_network_is_a_warning(capsys, monkeypatch):
    def stop(_):
        raise ValueError("far enough")

    monkeypatch.setattr(serve, "load_pipeline", stop)
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "warning: everyone who reaches" in capsys.readouterr().err
    monkeypatch.setenv(serve.KEY_VARIABLE, "key")
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "warning" not in capsys.readouterr().err
