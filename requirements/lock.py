"""`make lock`: resolves pyproject.toml into linux-cuda.txt and linux-cpu.txt, with the SHA-256 of each file.

    python requirements/lock.py UV         # UV: the path of uv's program

Both have the version of torch that pip takes here. In linux-cuda.txt it is that of the package index, whose files for
Linux require CUDA's libraries. In linux-cpu.txt its hashes are those of builds for the CPU, and these libraries are
left out. Such builds come from an index or folder of the user's choice, which no lock names; `make lock` adds the one
that pip takes here to those that linux-cpu.txt already has of this version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from install import CPU, CUDA, MODEL, PROJECT, entries, offered, sha256

HEAD = """\
# Made by `make lock` from pyproject.toml; `make setup` installs it where pip takes one of its files of torch,
# {about}.
"""
HASH = re.compile("sha256:[0-9a-f]{64}")
LINUX_ONLY = re.compile(r" ; .*\bsys_platform == 'linux'")


def compiled(uv: str, given: str, *options: str) -> dict[str, str]:
    """The entries of what uv resolves the file `given` to, for each Python that the project admits."""
    command = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-header",
    ]
    command += ["--no-annotate", "--no-emit-index-url", *options, given]
    return entries(subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def locked(uv: str, torch: str, without: list[str]) -> dict[str, str]:
    """The entries of a lock that has this version of torch, and not the packages `without`."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, overrides, model = (
            Path(folder) / name for name in ("constraints.txt", "overrides.txt", "model.in")
        )
        constraints.write_text(f"torch=={torch}\n", encoding="utf-8")
        overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in without), encoding="utf-8")
        model.write_text(f"{MODEL}\n", encoding="utf-8")
        options = ("--constraints", str(constraints), "--overrides", str(overrides))
        return compiled(uv, "pyproject.toml", *options) | compiled(uv, str(model), "--no-deps")


def main(uv: str) -> None:
    file = offered("torch")
    if file is None:
        sys.exit("pip offers no torch here.")
    torch = file["metadata"]["version"].partition("+")[0]
    cuda = locked(uv, torch, [])
    name = f"torch=={torch}"
    index = set(HASH.findall(cuda[name]))
    before = entries(CPU.read_text(encoding="utf-8")).get(name, "") if CPU.exists() else ""
    builds = set(HASH.findall(before))
    if sha256(file) not in index and "nvidia" not in " ".join(file["metadata"]["requires_dist"]):
        builds.add(sha256(file))
    if not builds:
        sys.exit(f"{CPU.name} requires a build of {name} for the CPU, and pip takes none here.")
    cpu = locked(uv, torch, [entry.partition("==")[0] for entry, text in cuda.items() if LINUX_ONLY.search(text)])
    cpu[name] = " \\\n".join([name, *(f"    --hash={build}" for build in sorted(builds))]) + "\n"
    for path, about, packages in ((CUDA, "which bring CUDA's libraries", cuda), (CPU, "built for the CPU", cpu)):
        text = HEAD.format(about=about) + "".join(packages[entry] for entry in sorted(packages))
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
