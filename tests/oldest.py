"""The lowest versions that pyproject.toml admits, as constraints for pip; `make test-oldest` installs those.

torch is left out: its builds go by machine and Python, and the package index's own takes gigabytes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
BOUND = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?>=(?P<version>[\w.]+)")


def constraints() -> list[str]:
    """A line for each library that has a lower bound, of all extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    bounds = [found for one in asked if (found := BOUND.match(one))]
    return [f"{found['name']}=={found['version']}" for found in bounds if found["name"] != "torch"]


if __name__ == "__main__":
    print("\n".join(constraints()))
