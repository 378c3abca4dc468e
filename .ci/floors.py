"""Prints the lower bounds of pyproject.toml as constraints: "numpy>=1.26" becomes "numpy==1.26".

In: pyproject.toml. Out: one constraint per line, those of every extra included.
Left out: torch, whose CPU build is not offered for every version; what needs a GPU; the tools that only check code.
"""

import re
import tomllib
from pathlib import Path

LEFT_OUT = ("torch", "triton", "bitsandbytes", "mypy", "ruff", "types-regex")
project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in sorted({*project["dependencies"], *(line for lines in extras.values() for line in lines)}):
    found = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if found and found[1] not in LEFT_OUT:
        print(f"{found[1]}=={found[2]}")
