"""The command `decodner`, also as `python -m decodner_command`.

In: the process's arguments. Out: an exit code.
A module beside the package, and not inside: importing the package imports torch and transformers, unless this module
was imported before. So help and messages about wrong arguments come at once.
"""

import sys


def main() -> int:
    """Runs the command line of `decodner_hf.cli`."""
    from decodner_hf.cli import main as run

    return run()


if __name__ == "__main__":
    import decodner_command  # by its name, by which the package knows

    sys.exit(decodner_command.main())
