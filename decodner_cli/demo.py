"""The command `decodner demo`: a page to play with.

In: parsed arguments. Out: a running page; an exit code once it is stopped.
Knows nothing of the page or how entities are found.
"""

import argparse
from collections.abc import Callable
from typing import NoReturn

from .loading import load_pipeline
from .messages import say
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments
from .serve import LOCAL, port

SUMMARY = "a page to play with"
DESCRIPTION = """\
Serves a page on this machine: a text, labels with descriptions, a threshold; entities, scores, and the Python code.
The page loads nothing from the network. Ctrl-C ends it.
Needs the extra "demo": pip install "decodner-hf[demo]".
"""
OK = 0
SHUTDOWN_SECONDS = 2  # an open page keeps a connection


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    place = command.add_argument_group("page")
    place.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    place.add_argument("--port", type=port, default=7860, metavar="N", help="(default: %(default)s; 0: a free one)")
    add_pipeline_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)


def run(options: argparse.Namespace) -> int:
    """Serves the page until it is stopped; returns the exit code.

    Raises:
        ImportError: the extra is not installed.
        OSError: a port in use.
    """
    from decodner_hf.serving.demo import demo_app
    from decodner_hf.serving.server import listen, run_until_stopped

    with listen(options.host, options.port) as listener:
        address = f"http://{options.host}:{listener.getsockname()[1]}"
        if options.host not in LOCAL:
            say(f"warning: everyone who reaches {address} may use it.")
        app = demo_app(load_pipeline(options), options.model)
        message = f"the page is {address}; Ctrl-C stops it."
        run_until_stopped(app, listener, SHUTDOWN_SECONDS, lambda: say(message))
    say("stopped.")
    return OK
