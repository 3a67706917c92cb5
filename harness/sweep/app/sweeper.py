"""Hydra's sweeper of a grid: composes and checks every point, skips what is recorded, launches the rest."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness import record, units, validate
from harness.errors import UserError
from harness.record import Failure, Record
from harness.sweep import planner
from harness.sweep.app import advising, calibrating, checking, messages, predicting
from harness.sweep.app.composing import Composer
from harness.sweep.app.confirmation import fresh_points, methods_of_other_sweeps
from harness.sweep.app.grid import grid
from harness.sweep.app.noted_plan import confirming_seeds, note_plan
from harness.sweep.app.order import random_key, repeated, with_repeats
from harness.sweep.app.pending import lacks_weights, to_run, warn_of_missing_weights
from harness.sweep.app.planning import Planning
from harness.sweep.app.point import Point, Sharing, architectures, point_of
from harness.sweep.app.running import RunPoint
from harness.sweep.app.session import Outcome
from harness.sweep.changed_file import changed_since
from harness.sweep.launchers.base import Answer
from harness.sweep.launchers.lost_workers import Lost
from harness.sweep.launchers.places import require_gpus
from harness.sweep.launchers.through_hydra import cell_launcher
from harness.sweep.lease import Held
from harness.sweep.progress import SweepProgress, following
from harness.sweep.shared_name import other_study, shared_name
from harness.sweep.store import Study

NO_AXES = [setting.rule.label or key for key, setting in validate.SETTINGS.items() if not setting.rule.axis]
LEAVES_OUT = "`sweep --skip-impossible` leaves such cells out."


class GridSweeper(Sweeper):
    """Plans the product of all axes, then hands the points that still have to run to the launcher."""

    __module__ = "hydra_plugins.harness"  # Hydra instantiates no sweeper from elsewhere

    # `plan` replaces any other sweeper by this one, so it accepts their parameters.
    def __init__(self, params: dict[str, Any] | None, candidates: list[str] | None = None, **_: Any):
        self._params, self._candidates = params, candidates
        self._said: set[str] = set()
        self._points: dict[str, Point] = {}  # by the id of the cell
        self._shared = Sharing()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if not isinstance(task_function, RunPoint):
            raise TypeError(f"the sweeper runs grid points by RunPoint, got {task_function}")
        self._config_name = config.hydra.job.config_name
        self._loader = hydra_context.config_loader
        self._compose = Composer.of_sweep(self._loader, config)
        self._session = task_function.session
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._launcher = cell_launcher(launcher, config, task_function)
        self._launched = 0

    def sweep(self, arguments: list[str]) -> list[Outcome | UserError]:
        requested = grid(self._params, self._candidates, arguments, self._loader)
        options = self._session.options
        if options.calibrate:
            calibrating.calibrate(requested, self._composed)
            return []
        if options.advise:
            advising.advise(requested, self._composed, options, self._config_name)
            return []
        if options.plan:
            impossible = predicting.predict(requested, self._composed, options)
            self._session.outcomes.extend(impossible)
            return [*impossible]
        outcomes: list[Outcome | UserError] = []
        for overrides in self._grids(requested):
            study, pending, unfit = self._plan(overrides)
            self._session.study = study
            ended: list[Outcome | UserError] = []
            elsewhere: list[Point] = []  # by other sweeps
            while pending:
                points = [point.at(position) for position, point in enumerate(pending, self._launched + 1)]
                with self._shown(study, points):
                    answers = [*self._launcher.run(points)]
                self._launched += len(points)
                elsewhere += [point for point, answer in zip(points, answers, strict=True) if isinstance(answer, Held)]
                ended += [_outcome(p, a) for p, a in zip(points, answers, strict=True) if not isinstance(a, Held)]
                pending, elsewhere = _freed(study, elsewhere)
            self._done(study, ended, unfit)
            outcomes += ended
        return outcomes

    def _grids(self, requested: list[list[str]]) -> Iterator[list[list[str]]]:
        """The grid; then fresh seeds of each method's chosen setting, as --confirm asks for."""
        yield requested
        study, seeds, choose = self._session.study, self._session.options.confirm, self._session.options.choose
        if study is None or not seeds or choose is None:
            return
        records, _ = record.read_study(study.folder)
        overrides = {cell: point.overrides for cell, point in self._points.items()}
        fresh_seeds = confirming_seeds(record.read_plans(study.folder), records, list(self._points.values()), seeds)
        settings = choose(records)
        fresh = fresh_points(settings, overrides, fresh_seeds)
        if others := methods_of_other_sweeps(settings, overrides):
            print(f"Not confirmed: {units.listed(others)}; their best settings are of other sweeps.", file=sys.stderr)
        if not fresh:
            print("Nothing to confirm: no setting of this sweep was chosen.", file=sys.stderr)
            return
        print(f"Confirming: {units.plural(seeds, 'fresh seed')} of each chosen setting.", file=sys.stderr)
        yield fresh

    def _done(self, study: Study, outcomes: list[Outcome | UserError], unfit: int) -> None:
        """Say what became of a grid. unfit: how many of its points are left out."""
        if self._session.progress is not None:
            self._session.progress.close()
            self._session.progress = None
        self._session.outcomes.extend(outcomes)
        statuses = ["unfit"] * unfit
        statuses += ["refused" if isinstance(o, UserError) else o.status for o in outcomes]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
        sentence = f"Done: {counts}." if counts else "Nothing to run: all cells are recorded."
        print(f"{sentence} `{study.command('table')}` renders the table.", file=sys.stderr)

    def _plan(self, requested: list[list[str]]) -> tuple[Study, list[Point], int]:
        """The study, its points that still have to run, and how many of them are left out.

        Of equal points one runs, and none that is recorded. Raises UserError if a point can't work, unless the user
        asked to skip such ones.
        """
        for key in NO_AXES:
            if len({o for overrides in requested for o in overrides if o.startswith(f"{key}=")}) > 1:
                raise UserError(f"{key} is not an axis: a sweep is one study. Run one sweep for each {key}.")
        unique: dict[str, Point] = {}
        refused: dict[str, UserError] = {}
        left_out = 0
        with Planning(len(requested)) as planning:
            for overrides in requested:
                composed, applicable = self._composed(overrides)
                try:
                    point = self._shared(point_of(composed, applicable))
                except UserError as error:
                    refused.setdefault(str(error), error)
                    left_out += 1
                else:
                    unique.setdefault(point.cell.id, point)
                planning.advance()
        self._skip(refused, some_work=bool(unique))
        self._points |= unique
        study = next(iter(unique.values())).study
        pending = self._pending(study, list(unique.values()))
        _announce(study, len(requested), left_out, len(unique), len(pending))
        self._require_same_data(study, list(unique.values()), pending)
        impossible = self._checked(pending) if pending else {}
        if pending or self._session.options.confirm:
            note_plan(study, list(unique.values()), self._session.options)
        if not pending:
            return study, [], 0
        study.plan(point.cell for point in unique.values())
        if words := self._session.options.typed:
            record.note_command(study.folder, words)
        fitting = self._possible(pending, impossible, study)
        if self._session.options.fit and fitting:
            fitting = self._fitting(fitting, study)
        return study, self._ordered(list(unique.values()), fitting, study), len(pending) - len(fitting)

    def _pending(self, study: Study, points: list[Point]) -> list[Point]:
        """Those of `points` that still have to run; names recorded cells whose weights are asked for in vain."""
        pending = []
        without_weights: dict[str, list[Record]] = {}  # by the setting save
        for point in points:
            earlier = study.recorded(point.cell)
            if to_run(earlier, point):
                pending.append(point)
                self._session.recorded[point.cell.id] = earlier
            elif earlier is not None and earlier.status == "ok":
                # The job removes its checkpoints, unless it was killed at that moment.
                shutil.rmtree(study.checkpoints(point.cell), ignore_errors=True)
                if lacks_weights(earlier, study, point.request.save):
                    without_weights.setdefault(point.request.save, []).append(earlier)
        for save, records in without_weights.items():
            warn_of_missing_weights(records, study, save)
        return pending

    def _require_same_data(self, study: Study, points: list[Point], pending: list[Point]) -> None:
        """Raise UserError if recorded cells of the study saw other data than those of `pending` would; else say so.

        So if two files of data, or two models, would be taken as one. A study that was renamed is only told of.
        """
        replaced = {point.cell.id for point in pending if not point.repeat}
        cells, data_root = [point.cell for point in points], points[0].request.data_root
        records = record.read_study(study.folder)[0]
        if pending and (shared := shared_name(records, cells, data_root)) is not None:
            raise UserError(shared)
        if pending and (words := other_study(records, study.folder, study.name)) is not None:
            print(f"warning: {words}", file=sys.stderr)
        changed = changed_since(records, cells, replaced, data_root)
        if changed is None:
            return
        anew = f"study=NAME trains all cells on the new data; `{study.command('rm')}` removes what was recorded"
        if pending:
            raise UserError(f"{changed}, so that this study would mix two data sets; {anew}.")
        print(f"warning: {changed}; {anew}.", file=sys.stderr)

    def _checked(self, pending: list[Point]) -> dict[str, dict[str, Any]]:
        """Raise UserError if a cell of `pending` can't run. Returns those that are to be skipped, by id of the cell."""
        self._require(pending)
        options, elsewhere = self._session.options, not self._launcher.on_this_machine
        impossible = checking.impossible(pending, elsewhere) if options.skip_impossible else {}
        try:
            checking.check([point for point in pending if point.cell.id not in impossible], options, elsewhere)
        except UserError as error:
            if options.skip_impossible or len(pending) < 2 or not checking.leaves_others(pending, elsewhere, error):
                raise
            raise UserError(f"{error} {LEAVES_OUT}") from None
        return impossible

    def _require(self, pending: list[Point]) -> None:
        """Raise UserError if the launcher lacks what the cells of `pending` need."""
        options = self._session.options
        if self._launcher.on_this_machine:
            devices = [point.cell.settings.train.devices for point in pending]
            require_gpus(max(devices))
            if options.drift is not None and (cells := self._launcher.at_a_time(min(devices))) > 1:
                raise UserError(
                    f"--drift requires one cell at a time, got {cells}: a repeat on another GPU, or beside other "
                    "cells, shows no drift. Set hydra.launcher.cells=1."
                )
        elif options.fit and options.memory is None and options.card is None:
            raise UserError("--fit requires --device CARD or --budget SIZE for cells that run on other machines.")
        elif options.drift is not None:
            raise UserError("--drift shows the drift of one machine; this launcher sends cells to several.")
        self._launcher.require()
        self._launcher.require_nodes({point.cell.settings.train.nodes for point in pending})

    def _skip(self, refused: dict[str, UserError], some_work: bool) -> None:
        """Name the points that can't work, by sentence. Raises UserError unless they are to be skipped, or if none can.

        some_work: whether other points can work.
        """
        if not refused:
            return
        first = next(iter(refused.values()))
        if not some_work:
            raise first
        if not self._session.options.skip_impossible:
            raise UserError(f"{first} {LEAVES_OUT}")
        for sentence in refused:
            print(f"Left out: {sentence}", file=sys.stderr)

    def _composed(self, overrides: list[str]) -> tuple[DictConfig, list[str]]:
        """The configuration of a point, and its overrides without those for a slot that its method does not fill.

        ``++method.adapt.target_modules=[…]`` is for the methods of a grid that have an adapter.
        """
        added = [override for override in overrides if messages.slot(override)]
        if not added:
            composed = self._compose(overrides)
            if note := messages.dtype_note(overrides, composed):
                self._say_once(note)
            return composed, overrides
        composed = self._compose([override for override in overrides if override not in added])
        applicable = [o for o in overrides if o not in added or composed.method[messages.slot(o)] is not None]
        for override in overrides:
            if override not in applicable:
                self._say_once(f"{override.lstrip('+')} does not apply to method={composed.method.name}.")
        return self._compose(applicable), applicable

    def _ordered(self, points: list[Point], pending: list[Point], study: Study) -> list[Point]:
        """`pending` in the order in which they run, with the repeats that --drift asks for.

        points: all of the sweep. Raises UserError if there is nothing to repeat.
        """
        options = self._session.options
        if options.order == "random":
            points, pending = (sorted(some, key=lambda p: random_key(p.cell, study.name)) for some in (points, pending))
        if options.drift is None or not pending:
            return pending
        recorded = {point.cell.id: study.recorded(point.cell) for point in points}
        cell = repeated([p.cell for p in points], recorded, {p.cell.id for p in pending})
        if cell is None:
            raise UserError("--drift requires a cell that is trained on this machine; the sweep has none.")
        point = next(point for point in points if point.cell.id == cell.id)
        first = next((point for point in pending if point.cell.id == cell.id), None)
        order = with_repeats(pending, first, point.to_repeat(), options.drift)
        times = units.plural(len(order) - len(pending), "time")
        print(f"{cell.name} is repeated {times}, to measure drift.", file=sys.stderr)
        return order

    def _say_once(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            print(note, file=sys.stderr)

    def _fitting(self, pending: list[Point], study: Study) -> list[Point]:
        """The points that are predicted to fit into memory; the others are recorded as unfit."""
        fitting = [point for point in pending if not point.is_local]  # which take no memory here
        local = [point for point in pending if point.is_local]
        if not local:
            return fitting
        options = self._session.options
        plan = planner.make(
            [(point.cell.name, point.cell) for point in local],
            architectures(local),
            local[0].request.data_root,
            options.memory,
            options.device,
            options.card,
        )
        for prediction, point in zip(plan.points, local, strict=True):
            if isinstance(prediction, planner.Impossible) or plan.fits(prediction):  # its job says why it can't run
                fitting.append(point)
                continue
            self._leave_out(point, study, plan.environment, Failure("plan", None, planner.refusal(plan, prediction)))
        for remedy in plan.remedies:
            print(remedy, file=sys.stderr)
        return fitting

    def _possible(self, pending: list[Point], impossible: dict[str, dict[str, Any]], study: Study) -> list[Point]:
        """The points that can run; the others, `impossible` by id of the cell, are recorded as unfit."""
        for point in pending:
            if (refused := impossible.get(point.cell.id)) is not None:
                self._leave_out(point, study, refused["environment"], Failure("check", None, refused["reason"]))
        return [point for point in pending if point.cell.id not in impossible]

    def _leave_out(self, point: Point, study: Study, environment: dict[str, Any], failure: Failure) -> None:
        """Record that `point` is not run, and say so."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        unfit = Record(point.cell, study.name, "unfit", now, 0.0, environment, failure)
        unfit.confirmation = point.request.confirmation
        with contextlib.suppress(Held), study.lease(point.cell):  # another sweep may have a larger budget for it
            if study.recorded(point.cell) == self._session.recorded[point.cell.id]:
                record.write(unfit, study.path(point.cell))
        print(f"{point.cell.name} is skipped. {failure.reason}", file=sys.stderr)

    @contextlib.contextmanager
    def _shown(self, study: Study, points: list[Point]) -> Iterator[None]:
        """Within this context the launcher runs `points`, and their progress is shown."""
        cells = [point.cell for point in points]
        progress = self._session.progress = self._session.progress or SweepProgress(cells)
        display = contextlib.nullcontext() if self._launcher.in_this_process else following(study, cells, progress)
        try:
            with display:
                yield
        except KeyboardInterrupt:
            self._launcher.interrupted()
            raise


def _outcome(point: Point, answer: Answer) -> Outcome | UserError:
    """What became of `point`, of which its launcher says `answer`; says so of a worker that is lost."""
    if not isinstance(answer, Lost):
        return answer
    print(f"{point.cell.name} is lost: its worker {answer.why}. The same command runs it again.", file=sys.stderr)
    return Outcome("lost", None)


def _freed(study: Study, elsewhere: list[Point]) -> tuple[list[Point], list[Point]]:
    """Of the points that other sweeps hold, those that no other runs any more, once there are some, and the others."""
    if not elsewhere:
        return [], []
    print(f"Waiting for other sweeps to finish {', '.join(point.cell.name for point in elsewhere)}.", file=sys.stderr)
    free = study.wait([point.cell for point in elsewhere])
    return [p for p in elsewhere if p.cell in free], [p for p in elsewhere if p.cell not in free]


def _announce(study: Study, points: int, left_out: int, cells: int, pending: int) -> None:
    without = [f"{left_out} left out"] if left_out else []
    same = ["equal ones run once"] if cells < points - left_out else []
    grid = f" ({', '.join([f'{points} points of the grid', *without, *same])})" if without or same else ""
    print(
        f"{study.name}: {units.plural(cells, 'cell')}{grid}, {cells - pending} recorded, {pending} to run.",
        file=sys.stderr,
    )
