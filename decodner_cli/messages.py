"""Writes messages to standard error, under the command's name.

In: a message. Out: a line on standard error.
Knows nothing of commands or files.
"""

import sys


def say(message: str) -> None:
    """Writes a line that begins with the command's name."""
    print(f"decodner: {message}", file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Writes a warning, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"decodner: warning: {message}", file=sys.stderr)
