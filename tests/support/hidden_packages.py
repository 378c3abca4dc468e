"""Source code that makes installed packages look absent to a fresh Python process."""


def hide_packages(*names: str) -> str:
    """Returns lines of Python after which importing any of `names` fails as if it were not installed."""
    return f"""
import importlib.abc
import sys


class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Hidden())
"""
