"""Times `decodner serve` under load, against the plain pipeline with the same documents, on this machine only.

In: a model (by default the bundled one; `--preset tiny`: random weights), sentences, numbers of clients. Out: per
number of clients the documents a second, their ratio to the plain pipeline given one list of everything, and given as
many documents at once as the clients send; the same ratio of the processor's time, which other work on the machine
does not change; the median and the 99th percentile of a request's time; what was lost or differs from the plain
pipeline's answer (nothing may be); then the same while the service is killed and while it is stopped under load and
started again. The last line is JSON. Service and clients share the processor.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from bench_corpus import LABELS, make_pipeline, texts, train_tokenizer, word_list
from bench_cpu import SENTENCES, processor
from http_clients import Load, send
from served_process import ServedProcess
from transformers import pipeline

from decodner_hf.core.pipeline import DecodNERPipeline
from decodner_hf.data.examples import load_examples
from decodner_hf.default_model import default_model

RESTART_CLIENTS = 8
TOLERANCE = 1e-4  # of scores: packing differs


def make_documents(options: argparse.Namespace, folder: str) -> tuple[DecodNERPipeline, list[str], list[str]]:
    """Returns the plain pipeline, the documents, and the service's arguments for the same model."""
    if options.preset is None:
        sentences = [example.text for example in load_examples(options.sentences)]
        documents = [sentences[index % len(sentences)] for index in range(options.documents)]
        model = options.model or str(default_model())
        plain = pipeline("decodner-ner", model=model, device="cpu")
        return plain, documents, ["--model", model, "--device", "cpu"]
    generator = np.random.default_rng(0)
    words = word_list(generator, 2000)
    shape = argparse.Namespace(preset=options.preset, device="cpu", dtype="float32", token_budget=None, compile=False)
    plain = make_pipeline(shape, train_tokenizer(words))
    plain.save_pretrained(folder)
    arguments = ["--model", folder, "--device", "cpu", "--labels", *LABELS, "--threshold", "0.3"]
    return plain, texts(generator, words, options.documents, 20), arguments


def compare(load: Load, expected: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Counts documents without an answer, and with another answer than the plain pipeline's."""
    pairs = list(zip(load.answers, expected, strict=True))
    return {
        "lost": sum(answer is None for answer, _ in pairs),
        "different": sum(answer is not None and not alike(answer, wanted) for answer, wanted in pairs),
    }


def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Returns whether two lists hold the same entities, scores within the tolerance."""
    keys = ("entity_group", "start", "end")
    return len(one) == len(other) and all(
        all(a[key] == b[key] for key in keys) and abs(a["score"] - b["score"]) <= TOLERANCE
        for a, b in zip(one, other, strict=True)
    )


def measure_plain(plain: DecodNERPipeline, documents: list[str], at_once: int) -> tuple[float, float]:
    """Documents a second of the plain pipeline, given `at_once` of them per call, and processor seconds of each."""
    began, used = time.perf_counter(), time.process_time()
    for start in range(0, len(documents), at_once):
        plain(documents[start : start + at_once])
    return len(documents) / (time.perf_counter() - began), (time.process_time() - used) / len(documents)


def processor_seconds(served: ServedProcess) -> float:
    """Returns what the service has used of the processor, as its metrics say."""
    _, shown = served.open("/metrics")
    return float(re.search(r"^process_cpu_seconds_total (\S+)$", shown, flags=re.MULTILINE)[1])


def measure_load(
    served: ServedProcess, options: argparse.Namespace, clients: int, documents: list[str]
) -> tuple[Load, float]:
    """Sends the documents, after a few to warm up; returns also the processor seconds of each in the service."""
    send(served.address, documents[: 4 * options.per_request], 2, options.per_request)
    used = processor_seconds(served)
    load = send(served.address, documents, clients, options.per_request)
    return load, (processor_seconds(served) - used) / len(documents)


def measure_restart(arguments: list[str], options: argparse.Namespace, documents: list[str], how: int) -> Load:
    """Sends documents, ends the service by a signal when a third is answered, and starts it again on its port."""
    with ExitStack() as services:
        served = services.enter_context(ServedProcess(*arguments))
        port = int(served.address.rpartition(":")[2])
        ended: list[threading.Thread] = []

        def restart() -> None:
            served.process.send_signal(how)
            served.wait()
            services.enter_context(ServedProcess(*arguments, port=port))

        def watch(done: int) -> None:
            if not ended and done >= len(documents) // 3:
                ended.append(threading.Thread(target=restart))
                ended[0].start()

        load = send(served.address, documents, RESTART_CLIENTS, options.per_request, watch)
        for thread in ended:
            thread.join()
    return load


def figures_of_load(load: Load, expected: Sequence[Sequence[Any]], clients: int) -> dict[str, Any]:
    """Returns rates, times and losses of a load."""
    milliseconds = sorted(1000 * seconds for seconds in load.seconds)
    return {
        "clients": clients,
        "documents_per_second": len(load.answers) / load.elapsed,
        "ms_median": statistics.median(milliseconds),
        "ms_p99": milliseconds[min(len(milliseconds) - 1, int(0.99 * len(milliseconds)))],
        "repeated": load.repeated,
        **compare(load, expected),
    }


def show(setting: dict[str, Any], rows: list[dict[str, Any]], restarts: dict[str, dict[str, Any]]) -> None:
    """Prints configuration, table and JSON."""
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(
        f"{'clients':>8s}{'documents/s':>13s}{'one list':>10s}{'ratio':>7s}{'as many at once':>17s}{'ratio':>7s}"
        f"{'of processor':>14s}{'median ms':>11s}{'p99 ms':>9s}"
    )
    for row in rows:
        print(
            f"{row['clients']:8d}{row['documents_per_second']:13.1f}{row['list_documents_per_second']:10.1f}"
            f"{row['ratio_to_list']:7.2f}{row['at_once_documents_per_second']:17.1f}"
            f"{row['ratio_to_as_many_at_once']:7.2f}{row['ratio_of_processor_time']:14.2f}{row['ms_median']:11.1f}{row['ms_p99']:9.1f}"
        )
    for name, figures in restarts.items():
        lost, different, repeated = (figures[key] for key in ("lost", "different", "repeated"))
        print(f"{name} and started again: lost {lost}, different {different}, repeated {repeated}")
    print(json.dumps(setting | {"loads": rows, "restarts": restarts}))


def main() -> int:
    """Parses the flags, measures and prints; 1 where an answer is lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (default: the package's own)")
    parser.add_argument("--preset", choices=["tiny"], help="random weights of this shape instead of a model")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="labelled data (default: that of the tests)")
    parser.add_argument("--documents", type=int, default=256, help="of each load (default: %(default)s)")
    parser.add_argument("--per-request", type=int, default=1, help="documents of a request (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--no-restart", action="store_true", help="leave out killing and stopping under load")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the service
    rows, restarts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        plain, documents, arguments = make_documents(options, folder)
        expected = plain(documents)
        with ServedProcess(*arguments) as served:
            for clients in options.clients:
                together, _ = measure_plain(plain, documents, len(documents))  # again: the machine has other work
                at_once, plain_seconds = measure_plain(plain, documents, clients * options.per_request)
                load, seconds = measure_load(served, options, clients, documents)
                row = figures_of_load(load, expected, clients)
                rate = row["documents_per_second"]
                row |= {"list_documents_per_second": together, "at_once_documents_per_second": at_once}
                row |= {"processor_ms": 1000 * seconds, "plain_processor_ms": 1000 * plain_seconds}
                row |= {"ratio_to_list": rate / together, "ratio_to_as_many_at_once": rate / at_once}
                rows.append(row | {"ratio_of_processor_time": plain_seconds / seconds})
        if not options.no_restart:
            for name, how in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
                load = measure_restart(arguments, options, documents, how)
                restarts[name] = figures_of_load(load, expected, RESTART_CLIENTS)
    setting = {
        "model": options.model or options.preset or "default",
        "documents": options.documents,
        "per_request": options.per_request,
        "characters_mean": sum(map(len, documents)) / len(documents),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    show(setting, rows, restarts)
    wrong = sum(figures["lost"] + figures["different"] for figures in [*rows, *restarts.values()])
    if wrong:
        print(f"error: {wrong} answers are lost or differ from the plain pipeline's.", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
