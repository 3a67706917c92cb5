"""What this machine can run, and what to do about what is missing: ``harness doctor``.

A job reports what only the libraries know. Versions, launchers and disks are read here, so that a broken library is
reported too.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from packaging.requirements import Requirement

from harness import env, terminal
from harness.config_folders import group_files
from harness.errors import UserError
from harness.sweep import runner
from harness.terminal.streams import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_MODEL = "smollm2_135m"
CACHE_BYTES = 600e6  # of the default model, dequantised
PACKAGES = (env.OWN_PACKAGE, *env.PACKAGES, "nvidia-ml-py")
LAUNCHERS = {
    "joblib": "cells side by side on this machine",
    "submitit": "cells as jobs of a Slurm cluster",
    "ray": "cells on a Ray cluster",
}
# hydra-ray-launcher requires cloudpickle below 3, joblib from 1.6 on requires 3: an older joblib fits both.
REMEDIES = {"cloudpickle": 'pip install "joblib<1.6" "cloudpickle<3"'}
MOVE = {"results": "results_dir=", "embedded": "HARNESS_CACHE", "hub": "HF_HOME"}

Row = tuple[str, ...]


def examine(results_dir: Path, data_root: str | None) -> dict[str, Any]:
    """All facts about this machine. "job" is the report of a job; if none can start, it is null and "broken" says why.

    Raises UserError if `data_root` is not a folder.
    """
    if data_root is not None and not Path(data_root).expanduser().is_dir():
        raise UserError(f"--data-root must be a folder that holds data sets such as openai/gsm8k, got {data_root}.")
    job, broken, folders = None, None, {"results": results_dir.expanduser()}
    try:
        job = runner.doctor(_settings("model"), _settings("data"), data_root)
        folders |= {name: Path(folder) for name, folder in job["caches"].items()}
    except UserError as error:
        broken = str(error).splitlines()[-1]
    launchers = {name: f"hydra-{name}-launcher" for name in LAUNCHERS}
    here = env.describe()
    return {
        "cpu": here["cpu"],
        "versions": {"python": here["versions"]["python"]} | {p: env.version_of(p) for p in PACKAGES},
        "unmet": unmet([*PACKAGES, "joblib", *launchers.values()]),
        "nvidia": shutil.which("nvidia-smi") is not None,
        "launchers": {name: env.version_of(package) for name, package in launchers.items()},
        "disk": {name: (str(folder), _free_bytes(folder)) for name, folder in folders.items()},
        "job": job,
        "broken": broken,
    }


def unmet(
    packages: Iterable[str],
    requires: Callable[[str], list[str]] | None = None,
    version: Callable[[str], str | None] = env.version_of,
) -> list[tuple[str, Requirement, str | None]]:
    """The unmet requirements of `packages`: the package, the requirement, and the installed version.

    `requires` and `version` default to importlib.metadata's.
    """
    requirements = []
    for package in packages:
        for line in (requires or _requires)(package):
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            here = version(requirement.name)
            if here is None or not requirement.specifier.contains(here, prereleases=True):
                requirements.append((package, requirement, here))
    return requirements


def obstacle(facts: dict[str, Any]) -> str | None:
    """Why the embedded default model can't run on this machine; null if it can."""
    if facts["job"] is None:
        return facts["broken"]
    state, how = facts["job"]["models"][DEFAULT_MODEL]
    if state != "ready":
        return how
    folder, free = facts["disk"]["embedded"]
    if "cached" not in how and free < CACHE_BYTES:
        lacks = f"needs {_gib(CACHE_BYTES)} GiB; make room or" if free else f"{folder} can't be written;"
        return f"Its cache {lacks} set HARNESS_CACHE to another folder."
    return None


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts by section as plain lines, with a remedy for each thing that is missing."""
    rows = [line for title, rows in _sections(facts).items() for line in _section(title, rows)]
    return [*rows, "", _verdict(facts)]


def view(facts: dict[str, Any]) -> list[RenderableType]:
    """The same for a terminal, with sections whose texts wrap within their column."""
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for title, rows in _sections(facts).items():
        count = max(map(len, rows), default=0)
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=9, style="bold")
        for _ in range(count):
            grid.add_column(overflow="fold")
        for i, row in enumerate(rows):
            texts = [printable(cell) for cell in row] + [""] * (count - len(row))
            grid.add_row(title if i == 0 else "", *(Text(t, style=terminal.STYLES.get(t, "")) for t in texts))
        parts += [grid, Text("")]
    return [*parts, Text(_verdict(facts), style="bold")]


def _verdict(facts: dict[str, Any]) -> str:
    why = obstacle(facts)
    return f"model={DEFAULT_MODEL} data=wordmath can" + (" run here." if why is None else f"'t run here: {why}")


def _sections(facts: dict[str, Any]) -> dict[str, list[Row]]:
    job = facts["job"]
    sections = {"device": _device(facts), "versions": _versions(facts["versions"]), "conflicts": _conflicts(facts)}
    if job is not None:
        sections |= {
            "models": [(name, *standing) for name, standing in job["models"].items()],
            "data": [(name, *standing) for name, standing in job["data"].items()],
            "hub": _hub(job["hub"]),
        }
    sections |= {
        "launchers": [
            ("basic", "ready", "one cell at a time"),
            ("local_parallel", "ready", "one cell per GPU of this machine"),
            *_launchers(facts["launchers"]),
        ],
        "disk": [_disk(name, folder, free) for name, (folder, free) in facts["disk"].items()],
    }
    return sections


def _section(title: str, rows: list[Row]) -> list[str]:
    """`rows` in aligned columns, with the title before the first."""
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    texts = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
    return [f"{title if i == 0 else '':11}{text}".rstrip() for i, text in enumerate(texts)]


def _device(facts: dict[str, Any]) -> list[Row]:
    cpu, job = facts["cpu"], facts["job"]
    memory = "" if cpu["memory_bytes"] is None else f", {_gib(cpu['memory_bytes'])} GiB"
    about = f"{cpu['name']}, {cpu['cores']} cores{memory}"
    if job is None:
        return [("CPU", about), ("unknown", "the libraries can't be loaded")]
    compute = job["compute"]
    formats = ", ".join(name if how == "yes" else f"{name} ({how})" for name, how in compute["formats"].items())
    return [
        ("CPU", f"{about}, {compute['threads']} threads, {compute['simd']}"),
        ("GPU", _gpu(compute, facts["nvidia"], facts["versions"]["torch"])),
        ("formats", formats),
    ]


def _gpu(compute: dict[str, Any], nvidia: bool, torch: str | None) -> str:
    device = compute["device"]
    if device["type"] == "cuda":
        return (
            f"{device['name']}, {_gib(device['free_bytes'])} of {_gib(device['memory_bytes'])} GiB free, "
            f"capability {device['capability']}, driver {device['driver'] or 'unknown'}, CUDA {device['cuda']}"
        )
    if nvidia and compute["torch_cuda"] is None:
        return f"nvidia-smi is installed, but torch {torch} is built for CPU; install a CUDA build (pytorch.org)"
    if nvidia:
        return f"torch {torch} can't use the NVIDIA device; check its driver and CUDA_VISIBLE_DEVICES"
    if device["type"] == "cpu":
        return "none"
    return f"{device['type']}: cells on it were never tried, nor is memory measured"


def _versions(versions: dict[str, str | None], columns: int = 4) -> list[Row]:
    """`columns` versions a row, so that all fit on the screen."""
    texts = [f"{name} {version or '-'}" for name, version in versions.items()]
    return [tuple(texts[i : i + columns]) for i in range(0, len(texts), columns)]


def _conflicts(facts: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for package, requirement, here in facts["unmet"]:
        needed = str(requirement).partition(";")[0].strip()
        remedy = REMEDIES.get(requirement.name, f'pip install "{needed}"')
        rows.append((f"{package} needs {needed}, {here or 'none'} is here:", remedy))
    if facts["versions"][env.OWN_PACKAGE] is None:
        rows.append((f"{env.OWN_PACKAGE} is not installed:", "pip install -e . (in its folder)"))
    return rows or [("none",)]


def _hub(hub: dict[str, Any]) -> list[Row]:
    folders = "or name folders by model.path=, data_root="
    reached = {
        "reachable": f"yes, {hub['endpoint']}",
        "offline": f"no: HF_HUB_OFFLINE is set; unset it, {folders}",
        "out of reach": f"no: check the connection, {folders}",
    }[hub["state"]]
    return [("reached", reached), ("token", "yes" if hub["token"] else "none: gated models require HF_TOKEN")]


def _launchers(versions: dict[str, str | None]) -> list[Row]:
    return [
        (name, "ready", f"{purpose} ({versions[name]})")
        if versions[name]
        else (name, "missing", f"{purpose}: pip install hydra-{name}-launcher")
        for name, purpose in LAUNCHERS.items()
    ]


def _disk(name: str, folder: str, free: int) -> Row:
    remedy = f"{'make room, or ' if free else ''}move it by {MOVE[name]}" if free < 2e9 else ""
    return (
        name,
        f"{_gib(free)} GiB free" if free else "can't be written",
        folder.replace(str(Path.home()), "~", 1),
        remedy,
    )


def _settings(group: str) -> dict[str, Any]:
    """The files of a config group by choice, unresolved, each over those of its group that it begins with."""
    files = group_files(group)

    def whole(choice: str) -> Any:
        own: Any = OmegaConf.load(files[choice])
        return OmegaConf.merge(*(whole(base) for base in own.pop("defaults", []) if base in files), own)

    return {choice: OmegaConf.to_container(whole(choice)) for choice in files}


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` lies on, or would lie on; 0 if it can't be written."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free if place.is_dir() and os.access(place, os.W_OK) else 0


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
