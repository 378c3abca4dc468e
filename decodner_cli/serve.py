"""The command `decodner serve`: the pipeline over HTTP.

In: parsed arguments, and the API key in the environment. Out: a running service; an exit code once it is stopped.
Knows nothing of requests or how entities are found.
"""

import argparse
import logging
import os
from collections.abc import Callable
from typing import NoReturn

from .loading import load_pipeline
from .messages import say
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments, count

SUMMARY = "find entities over HTTP"
DESCRIPTION = """\
Serves the pipeline over HTTP: POST /extract, GET /health, GET /metrics (Prometheus), GET /docs (how to use it).
Requests that arrive together are scored together. Ctrl-C or SIGTERM ends it, once what is under way is answered.
If DECODNER_API_KEY is set in the environment, clients must send it: Authorization: Bearer KEY.
Needs the extra "serve": pip install "decodner-hf[serve]".

examples:
  decodner serve
  curl http://127.0.0.1:8000/extract -d '{"documents": ["Steve Jobs founded Apple."]}'
"""
OK = 0
KEY_VARIABLE = "DECODNER_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")
LIMITS = {  # field of `Limits` -> flag, help, default
    "body_bytes": ("--max-body-bytes", "bytes of a request", 8 * 2**20),
    "documents": ("--max-documents", "documents of a request", 1024),
    "document_characters": ("--max-document-characters", "characters of a document", 100_000),
    "labels": ("--max-labels", "labels of a document", 200),
    "span_words": ("--max-request-span-words", "max_span_words of a request", 64),
    "waiting_documents": ("--max-waiting-documents", "documents that wait, over all requests", 4096),
    "waiting_characters": ("--max-waiting-characters", "characters that wait, over all requests", 8 * 2**20),
    "read_seconds": ("--max-read-seconds", "seconds in which a request must arrive", 30),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    place = command.add_argument_group("service")
    place.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    place.add_argument("--port", type=port, default=8000, metavar="N", help="(default: %(default)s; 0: a free one)")
    place.add_argument(
        "--shutdown-seconds", type=count, default=60, metavar="N",
        help="longest wait for what is under way when it is stopped (default: %(default)s)",
    )  # fmt: skip
    place.add_argument("--log-requests", action="store_true", help="a line per request: status, counts, times")
    limits = command.add_argument_group("limits", "larger requests get status 413; when too much waits, 429")
    for name, (flag, text, default) in LIMITS.items():
        limits.add_argument(
            flag, dest=f"limit_{name}", type=count, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    add_pipeline_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)


def port(text: str) -> int:
    """Parses a port."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Serves until it is stopped; returns the exit code.

    Raises:
        ImportError: the extra is not installed.
        OSError: a port in use.
        ValueError: an API key that no header can carry.
    """
    from decodner_hf.serving.app import checked_key, create_app
    from decodner_hf.serving.limits import Limits
    from decodner_hf.serving.server import listen, run_until_stopped

    key = os.environ.get(KEY_VARIABLE)
    if key is not None:
        try:
            checked_key(key)
        except ValueError as error:
            raise ValueError(f"{KEY_VARIABLE}: {error}") from error
    limits = Limits(**{name: getattr(options, f"limit_{name}") for name in LIMITS})
    listener = listen(options.host, options.port)  # before the model is loaded, which takes seconds
    with listener:
        address = f"http://{options.host}:{listener.getsockname()[1]}"
        if key is None and options.host not in LOCAL:
            say(f"warning: everyone who reaches {address} may use it; set {KEY_VARIABLE} to ask for a key.")
        if options.log_requests:
            logging.basicConfig(format="%(asctime)s %(message)s")
            logging.getLogger("decodner_hf.serving").setLevel(logging.INFO)
        name = options.model or "default"
        app = create_app(load_pipeline(options), limits=limits, api_key=key, name=name)
        message = f"serving the model {name} at {address}/docs; Ctrl-C stops it."
        run_until_stopped(app, listener, options.shutdown_seconds, lambda: say(message))
    say("stopped.")
    return OK
