"""Predictions of a job, kept on disk: a second plan of the same cells needs no job, and so no library of models.

A prediction follows from the cell, the request, the code (of this package, and of what is installed), the machine, and
the files on it of the model and of the hub's data set. The name of its file is a hash of all that; what changes makes
another name. What follows from more than that is not kept: predictions of a file of the user's own (of data, or a model
as GGUF), of a folder of data sets, of the user's own code, and of the memory of a device that is here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import env
from harness.boot import PACKAGE
from harness.protocol import PlanCells, PlannedCell, encode
from harness.record import Cell
from harness.settings import plain

KEPT = 4000  # files, of about a kilobyte each
VARIABLES = re.compile(
    r"PYTHONPATH|(ACCELERATE|BNB|CUDA|HARNESS|HF|HIP|MKL|NVIDIA|OMP|PYTORCH|ROCR|TORCH|TRANSFORMERS)_(?!.*TOKEN).+"
)
"""Of the environment, what libraries of models read."""
ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/accel")


class PredictionCache:
    """The predictions that are kept of `request`, whose own cells don't count.

    head: the answer's first part, which is of no cell; None if it is not kept.
    """

    def __init__(self, request: PlanCells):
        self._folder = env.cache_folder() / "predictions"
        own_device = request.budget is None and any(map(os.path.exists, ACCELERATORS))
        self._readable = request.data_root is None and not own_device
        self._request = replace(request, cells=[])
        self._state = _state() if self._readable else ""

    @property
    def head(self) -> dict[str, Any] | None:
        head = self._read(self._path(None))
        return head and head | {"environment": head["environment"] | env.describe()}

    def prediction(self, planned: PlannedCell) -> dict[str, Any] | None:
        return self._read(self._path(planned)) if self._keeps(planned.cell) else None

    def keep(self, head: dict[str, Any], predictions: list[tuple[PlannedCell, dict[str, Any]]]) -> None:
        """Keep an answer: of the cells, what has figures. A folder that can't be written is left as it is."""
        own_device = self._request.budget is None and head["environment"]["device"]["type"] != "cpu"
        if not self._readable or own_device:
            return
        files = {self._path(None): head}
        files |= {
            self._path(cell): answer for cell, answer in predictions if "peak" in answer and self._keeps(cell.cell)
        }
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path, content in files.items():
                _write(path, content)
            _prune(self._folder)

    def _keeps(self, cell: Cell) -> bool:
        model, data = cell.settings.model, cell.settings.data
        own_code = model.trust_remote_code or not all(map(_is_installed, _targets(plain(cell.settings))))
        own_file = data.own or model.is_gguf
        return self._readable and not own_file and not own_code

    def _path(self, planned: PlannedCell | None) -> Path:
        parts: list[Any] = [self._state, encode(replace(self._request, cells=[] if planned is None else [planned]))]
        if planned is not None:
            settings = planned.cell.settings
            parts += [_files_of(settings.model.path), _files_of_data(settings.data.load.get("path"))]
        return self._folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not self._readable:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def _write(path: Path, content: dict[str, Any]) -> None:
    """Under another name first, so that no process reads half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(file.name, path)


def _prune(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-KEPT]:
        path.unlink(missing_ok=True)


def _state() -> str:
    """A hash of what all predictions follow from: the code, what is installed, the machine and its devices."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(f"\0{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    driver = Path("/proc/driver/nvidia")
    drivers = [*driver.glob("version"), *sorted(driver.glob("gpus/*/information"))]
    facts = [
        sys.version,
        sorted(path.name for folder in sys.path for path in Path(folder).glob("*-info")),
        platform.platform(),
        env.processor(),
        sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None,
        [path.read_text(errors="replace") for path in drivers],
        [path for path in ACCELERATORS if os.path.exists(path)],
        sorted((name, value) for name, value in os.environ.items() if VARIABLES.fullmatch(name)),
    ]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _targets(settings: Any) -> Iterator[str]:
    """What Hydra calls for a cell: all values under ``_target_``, at any depth."""
    if isinstance(settings, dict):
        if isinstance(target := settings.get("_target_"), str):
            yield target
        settings = list(settings.values())
    if isinstance(settings, list):
        for part in settings:
            yield from _targets(part)


def _is_installed(target: str) -> bool:
    """Whether the code of `target` is this package's or that of an installed distribution, whose version is known."""
    name = target.partition(".")[0]
    if name == PACKAGE.name:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and "site-packages" in Path(spec.origin).parts


def _files_of(model: str | None) -> list[list[Any]]:
    """Names, sizes and times of the model's files on this machine: in a folder, or in the hub's cache."""
    if model is None or model.startswith("embedded:"):
        return []
    folder = Path(model).expanduser()
    return _files_in(folder if folder.is_dir() else _hub_cache() / f"models--{model.replace('/', '--')}")


def _files_of_data(name: str | None) -> list[list[Any]]:
    """Likewise of the data set `name` of the hub: as downloaded, and as the library datasets prepared it."""
    if name is None:
        return []
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", _hub_home() / "datasets")).expanduser()
    downloaded = _hub_cache() / f"datasets--{name.replace('/', '--')}"
    return _files_in(downloaded) + _files_in(prepared / name.replace("/", "___"))


def _files_in(folder: Path) -> list[list[Any]]:
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in files]


def _hub_cache() -> Path:
    cache = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", _hub_home() / "hub"))
    return Path(cache).expanduser()


def _hub_home() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", home)).expanduser()
