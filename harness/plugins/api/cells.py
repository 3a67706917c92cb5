"""Which cells are of a model behind an API, and who checks and runs them: harness/cell_runner.py asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness import record
from harness.cell_runner import Cost, Extra
from harness.plugins.api import costs as api_costs
from harness.plugins.api.requests import ApiAccess
from harness.protocol import LocalPaths, Report, RunCell
from harness.record import Cell, Record
from harness.settings import HELD_OUT, DataSettings, MethodSettings, ModelSettings, Settings


class ApiCells:
    """The cells with model.base_url."""

    def runs(self, settings: Settings) -> bool:
        return settings.behind_api

    def composed(self, resolved: Mapping[str, Any]) -> Settings | None:
        """Those settings of a model behind an API that decide its answers."""
        from harness.sweep.cells import OF_API, evaluation, part, relative

        if resolved["model"]["base_url"] is None:
            return None
        model = {name: resolved["model"][name] for name in OF_API}
        model["base_url"] = model["base_url"].rstrip("/")
        if model["tokenizer"] is not None:
            model["tokenizer"] = relative(model["tokenizer"])
        group = {name: value for name, value in resolved["eval"].items() if name not in ("batch_size", "engine")}
        data = resolved["data"] if HELD_OUT in group["tasks"] else {"name": resolved["data"]["name"]}
        data = {name: value for name, value in data.items() if name not in ("limit", "noise")}  # of training
        return Settings(
            method=part(MethodSettings, resolved["method"]),
            model=part(ModelSettings, model),
            data=part(DataSettings, data),
            eval=evaluation(group),
        )

    def extra(self, config: DictConfig, answers: Path) -> Extra:
        """The fields of ApiAccess."""
        price, api = config.model.price, config.api
        access = ApiAccess(
            concurrency=api.concurrency,
            per_minute=api.per_minute,
            timeout=api.timeout,
            retries=api.retries,
            backoff=api.backoff,
            key_env=config.model.key_env,
            price_read=price.read,
            price_written=price.written,
            answers=str(answers.absolute()),
        )
        return dict(record.encode(access))

    def admit(self, requests: Sequence[RunCell], costs: Mapping[str, Cost], dollars: float | None) -> None:
        api_costs.check([api_costs.estimate(request, costs[request.cell.id]) for request in requests], dollars)

    def check(self, cell: Cell, extra: Extra, data_root: str | None, local: LocalPaths) -> Cost:
        from harness.plugins.api.job import run_api_cell

        return run_api_cell.estimate(cell, ApiAccess.from_extra(extra), data_root, local.include_path)

    def run(self, request: RunCell, report: Report) -> Record:
        from harness.plugins.api.job import run_api_cell

        return run_api_cell.run_api_cell(request, report)
