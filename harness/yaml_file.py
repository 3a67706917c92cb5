"""Reads YAML files that come with the harness: what is written and not computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, first_line

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster


def read_yaml(path: Path) -> Any:
    """What the file holds. Raises UserError if it is not valid YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path.name}{place}, is not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {first_line(error)}.") from None
