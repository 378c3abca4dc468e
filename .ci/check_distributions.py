"""Checks the built wheel and sdist, and the command of an environment in which the wheel is installed.

In: the folder of the distributions, the command `decodner` of that environment. Out: nothing, or the first problem.
The wheel must hold every tracked file of the packages and no others; its command must print the README's entities.
"""

import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("decodner_hf", "decodner_cli")
LICENCES = "Apache-2.0 AND CC-BY-SA-4.0"  # of the code and of the bundled model
FIRST = re.compile(r"```bash\n.*&& decodner (?P<arguments>.*)\n```\s*```text\n(?P<shown>[^`]*)```")
SCORE = re.compile(r"\d\.\d+")


def check_contents(folder: Path) -> None:
    """Compares what the distributions hold with the tracked files."""
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = set(tracked.stdout.splitlines())
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert names == expected, f"{wheel.name} lacks {expected - names} and has {names - expected} too much"
    assert f"\nLicense-Expression: {LICENCES}\n" in metadata, "the wheel's metadata lack the licences"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = expected | {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "constraints.txt"}
    assert needed <= names, f"{sdist.name} lacks {needed - names}"


def check_command(command: str) -> None:
    """Runs the README's first example outside of the checkout; scores may differ in their digits."""
    example = FIRST.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert example is not None, "README.md must begin with an installation and a decodner command"
    with tempfile.TemporaryDirectory() as elsewhere:
        arguments = [command, *shlex.split(example["arguments"])]
        run = subprocess.run(arguments, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert SCORE.sub("#", run.stdout).strip() == SCORE.sub("#", example["shown"]).strip(), run.stdout
    print(run.stdout, end="")


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]))
    check_command(sys.argv[2])
