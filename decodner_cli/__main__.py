"""Runs the command line by `python -m decodner_cli`."""

import sys

from .main import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
