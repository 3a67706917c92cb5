"""The command that would decide an open claim, for the model and the study whose records leave it open."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.config_folders import CONF, group_files
from harness.plugins.articles.claims import MOST_SEEDS, Claim, Judgement, enough_seeds, needs
from harness.record import Record
from harness.report.answer.next_run import with_seeds
from harness.report.items.answered import Items
from harness.yaml_file import read_yaml


def deciding_command(claim: Claim, judgement: Judgement, records: Sequence[Record], folder: Items | None) -> str:
    """How to decide `claim` where `records` of one place left it as in `judgement`.

    folder: of their study. If more seeds are enough, it is the study's own sweep with as many. Else it is the sweep
    that was made for the claim, on the model of the records; if that is too small, on another one.
    """
    seeds = enough_seeds(judgement)
    if seeds is not None and seeds <= MOST_SEEDS and isinstance(folder, Path):
        _, command = with_seeds(records, folder, int(seeds))
        if command.startswith("`"):
            return command.strip("`")
    too_small = judgement.why == needs(claim.least_model)
    return " ".join(["harness", claim.run, *(["model=MODEL"] if too_small else _of_model(records))])


def _of_model(records: Sequence[Record]) -> list[str]:
    """The overrides that choose the model of `records`; none for the default one."""
    model = next((record.cell.settings.model for record in records), None)
    if model is None or model.path is None:
        return []
    names, default = _shipped_models()
    if model.path not in names:
        return [shlex.quote(f"model.path={model.path}"), shlex.quote(f"model.dtype={model.dtype}")]
    return [] if names[model.path] == default else [f"model={names[model.path]}"]


@functools.cache
def _shipped_models() -> tuple[dict[str, str], str]:
    """The choices of ``model=`` by path, and the default one."""
    names = {read_yaml(path).get("path"): name for name, path in group_files("model").items()}
    defaults = read_yaml(CONF / "config.yaml")["defaults"]
    return names, next(part["model"] for part in defaults if isinstance(part, dict) and "model" in part)
