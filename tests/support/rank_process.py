"""One process of several that train together, started by a server that has imported everything."""

import os
import sys

import decodner_hf.training.run  # noqa: F401 (what takes the time)
from decodner_cli.main import main


def run_rank(arguments, environment, output, errors):
    """Runs the command line in this process, and ends it with the exit code; prints into the two files."""
    os.environ |= environment
    for descriptor, path in ((1, output), (2, errors)):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.exit(main(arguments))
