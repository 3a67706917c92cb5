"""The command that runs a record's cell again, in Hydra's override grammar."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from harness.record import Record
from harness.settings import plain

# Settings of which null is a choice, where configurations may have another default; the last two are of training alone.
NULLS = ("model.revision", "eval.limit", "eval.num_fewshot", "train.max_grad_norm", "train.validate_every")


def run_command(record: Record) -> str | None:
    """The command that reruns the record's cell with its resolved settings; None for an imported record.

    data_root is not in a record, nor are local changes to the files of the method and the data set.
    """
    words = run_words(record)
    return None if words is None else " ".join(["harness run", *words])


def run_words(record: Record) -> list[str] | None:
    """The overrides of `run_command`, quoted for a shell; their order means nothing."""
    if record.source:
        return None
    cell, settings = record.cell, record.cell.settings
    data = settings.data
    overrides: dict[str, Any] = {"method": cell.method, "data": data.name or cell.data, "model.name": cell.model}
    overrides |= {axis: getattr(cell, axis) for axis in ("rank", "alpha", "lr", "seed")}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    overrides |= {f"method.knobs.{name}": value for name, value in cell.knobs.items()}
    data_settings = ("path", "limit", "noise", "answers")
    overrides |= {f"data.{name}": value for name, value in plain(data).items() if name in data_settings}
    if data.task is not None:
        overrides |= {"data": "reasoning_gym", "data.task": data.task, "++data.options": data.options}
    # An argument that its file leaves to the function is new to the file, and `++` takes either.
    overrides |= {f"++data.load.{name}": value for name, value in data.load.items() if isinstance(value, (int, float))}
    if data.own or str(data.load.get("_target_")).endswith("from_hub"):  # whose files may hold out a share
        overrides["data.test_share"] = data.test_share
    if data.columns:
        overrides |= {f"++data.columns.{field}": column for field, column in data.columns.items()}
        overrides["data.prompt"] = data.prompt
    overrides |= dict.fromkeys(NULLS if settings.method.tuned else NULLS[:3])
    overrides |= {"eval.tasks": [], "infer.repeats": 0}
    for part in ("model", "train", "eval", "infer"):
        overrides |= {f"{part}.{name}": value for name, value in plain(getattr(settings, part)).items()}
    if settings.speedups is not None:
        overrides["speedups"] = settings.speedups
    overrides["study"] = record.study
    return [shlex.quote(f"{name}={_hydra(value)}") for name, value in overrides.items()]


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar: quoted unless it is a plain word or number."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_hydra(part)}' for name, part in value.items())}}}"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z][\w./:-]*", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
