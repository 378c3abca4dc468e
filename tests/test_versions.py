"""The versions that the project names: ranges in pyproject.toml, pins in constraints.txt, the README's commands."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
REQUIREMENTS = sorted(line for line in set(LINES) if not line.startswith("decodner-hf["))
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in (
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
}


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_every_requirement_is_pinned_within_its_range(line):
    requirement = Requirement(line)
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_without_build_tags():
    assert [name for name, version in PINS.items() if version.local] == []


def test_both_commands_of_the_readme_use_the_pins():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pip install .*&&.*$", readme, flags=re.MULTILINE)
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)


def test_the_oldest_versions_are_the_lower_bounds():
    printed = subprocess.run(
        [sys.executable, ROOT / ".ci" / "floors.py"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    floors = dict(line.split("==") for line in printed)
    assert floors["transformers"] == "5.17"
    assert floors.keys() >= {Requirement(line).name for line in PROJECT["dependencies"]} - {"torch"}
