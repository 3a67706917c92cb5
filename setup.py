"""What pyproject.toml alone can't say of a wheel: its version, and that conf/ and sweeps/ are inside the package.

The version is that of the last tag `v1.2.3`; after it, of a development version of the next one. A clone without tags
and an archive without history have FALLBACK. A source distribution has the version that it was made with.
"""

import re
import subprocess
from email.parser import HeaderParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
FALLBACK = "0.1.0"


def version(folder: Path = HERE) -> str:
    own = folder / "PKG-INFO"
    if own.is_file():
        return HeaderParser().parsestr(own.read_text(encoding="utf-8"))["Version"]
    return described(folder) or FALLBACK


def described(folder: Path) -> str | None:
    """By the history of the checkout `folder`; None without one, or without a tag."""
    git = ["git", "-C", str(folder), "describe", "--tags", "--long", "--match", "v[0-9]*.[0-9]*.[0-9]*"]
    if not (folder / ".git").exists():  # a copy inside another checkout
        return None
    try:
        text = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    tag = re.fullmatch(r"v(\d+\.\d+\.)(\d+)-(\d+)-g[0-9a-f]+\s*", text)
    if tag is None:
        return None
    minor, patch, commits = tag[1], int(tag[2]), int(tag[3])
    return f"{minor}{patch + 1}.dev{commits}" if commits else f"{minor}{patch}"


if __name__ == "__main__":
    packages = [*find_namespace_packages(include=["harness*"]), "harness.shipped.conf", "harness.shipped.sweeps"]
    setup(version=version(), packages=packages)
