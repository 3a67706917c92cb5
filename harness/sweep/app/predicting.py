"""`plan`: what the points of a grid would take, printed or shown otherwise; nothing is launched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from harness import record, terminal, units
from harness.errors import UserError
from harness.record import Cell
from harness.sweep import plan_view, planner
from harness.sweep.app import inputs
from harness.sweep.app.checking import check
from harness.sweep.app.planning import Planning
from harness.sweep.app.point import Point, architectures, point_of
from harness.sweep.app.session import Options, Outcome
from harness.sweep.estimates.times import Times

Compose = Callable[[list[str]], tuple[DictConfig, list[str]]]  # the configuration of a point, and which overrides hold


def predict(requested: Sequence[list[str]], compose: Compose, options: Options) -> list[Outcome]:
    """Print what the points would take; an impossible point is a line with its reason, and one of the outcomes."""
    planned: dict[str, tuple[str, Cell | str]] = {}
    local: list[Point] = []
    remote: dict[str, Point] = {}
    with Planning(len(requested)) as planning:
        for overrides in requested:
            planning.advance()
            composed, applicable = compose(overrides)
            try:
                point = point_of(composed, applicable)
            except UserError as error:
                planned.setdefault(str(error), (" ".join(overrides), str(error)))
                continue
            if point.is_local:
                local.append(point)
                planned.setdefault(point.cell.id, (point.cell.name, point.cell))
            else:
                remote[point.cell.id] = point
    if remote:
        check(list(remote.values()), options)
    inputs.require_data(local)
    if not planned:
        return []
    if options.dollars is not None and options.price is None and (options.card is None or options.card.price is None):
        raise UserError(
            f"A budget of {options.dollars:g}USD requires the option price, dollars for an hour of one device."
        )
    of, root = architectures(local), composed.data_root
    plan = planner.make(
        list(planned.values()),
        of,
        root,
        options.memory,
        options.device,
        options.card,
        calibrations=record.calibrations(results_of(composed)),
    )
    times = times_of(plan, composed, options)
    (options.show or _print)(plan, times)
    if options.dollars is not None:
        _require_within(options.dollars, plan, times)
    return [Outcome("impossible", None) for point in plan.points if isinstance(point, planner.Impossible)]


def _require_within(budget: float, plan: planner.Plan, times: Times) -> None:
    """Say what training the cells of `plan` costs. Raises UserError if it is above `budget` dollars, or unknown."""
    trained = [point for point in plan.predicted if point.prediction["trainable"]]
    costs = [cost for point in trained if (cost := times.dollars(point)) is not None]
    if lacking := len(trained) - len(costs):
        raise UserError(
            f"A budget of {budget:g}USD requires known times, which {units.plural(lacking, 'cell')} of {len(trained)} "
            f"lack{'s' * (lacking == 1)}: `harness calibrate` times this device's kernels, the option throughput sets "
            "a rate."
        )
    sentence = f"Training {units.plural(len(trained), 'cell')} costs about {units.dollars(sum(costs))}"
    if sum(costs) > budget:
        raise UserError(f"{sentence}, above the budget of {budget:g}USD.")
    print(
        f"{sentence}, within the budget of {budget:g}USD. Loading, validation and scoring come on top.", file=sys.stderr
    )


def _print(plan: planner.Plan, times: Times) -> None:
    console = terminal.console()
    if console.is_terminal:
        terminal.show(console, plan_view.view(plan, times, console.width))
    else:
        print("\n".join(plan_view.lines(plan, times)))


def times_of(plan: planner.Plan, config: DictConfig, options: Options) -> Times:
    return Times(results_of(config), plan.environment, plan.kernels, plan.card, options.throughput, options.price)


def results_of(config: DictConfig) -> Path:
    return Path(config.results_dir).expanduser()
