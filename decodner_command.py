"""The command `decodner`, also as `python -m decodner_command`.

In: the process's arguments. Out: an exit code.
A module beside the package, and not inside: importing the package imports torch and transformers, unless this module
was imported before. So help and messages about wrong arguments come at once.
"""

import atexit
import os
import sys


def command() -> int:
    """Runs the command line as a process of its own, which then ends at once: torch takes a second to be torn down.

    Returns the exit code as `main` does. Threads and all that libraries do at exit come first: what is registered
    first is called last.
    """
    codes: list[int] = []
    atexit.register(_end, codes)
    codes.append(main())
    return codes[0]


def _end(codes: list[int]) -> None:
    """Ends the process, unless there is something to report: an exception, or output that cannot be written."""
    if not codes:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # Python says so by itself, and chooses the exit code
        return
    os._exit(codes[0])


def main() -> int:
    """Runs the command line of `decodner_cli.main`."""
    from decodner_cli.main import main as run

    return run()


if __name__ == "__main__":
    import decodner_command  # by its name, by which the package knows

    sys.exit(decodner_command.command())
