"""Hydra's sweeper of a grid: composes and checks every point, skips what is recorded, launches the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, flag_override

from harness import record, units
from harness.errors import UserError
from harness.record import Failure, Record
from harness.sweep import planner
from harness.sweep.app import advising, messages, predicting
from harness.sweep.app.checking import Point, architectures, check, point_of
from harness.sweep.app.composing import Composer
from harness.sweep.app.confirmation import MARK, fresh_points
from harness.sweep.app.grid import grid
from harness.sweep.app.order import random_key, repeated, with_repeats
from harness.sweep.app.pending import lacks_weights, study_of, to_run, warn_of_missing_weights
from harness.sweep.app.session import Outcome
from harness.sweep.launchers import lost_workers, ray_cluster
from harness.sweep.launchers.local_parallel import LocalParallel, require_gpus
from harness.sweep.launchers.lost_workers import Lost
from harness.sweep.lease import Held
from harness.sweep.progress import SweepProgress, following
from harness.sweep.store import Study

STOP = ("stop", "stop.first", "stop.factor")


class GridSweeper(Sweeper):
    """Plans the product of all axes, then hands the points that still have to run to the launcher."""

    __module__ = "hydra_plugins.harness"  # Hydra instantiates no sweeper from elsewhere

    # `plan` replaces any other sweeper by this one, so it accepts their parameters.
    def __init__(self, params: dict[str, Any] | None, candidates: list[str] | None = None, **_):
        self._params, self._candidates = params, candidates
        self._said: set[str] = set()
        self._points: dict[str, Point] = {}  # by the id of the cell

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.config, self._loader = config, hydra_context.config_loader
        self._compose = Composer(self._compose_in_full)
        self._session = task_function.session
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list:
        requested = grid(self._params, self._candidates, arguments)
        options = self._session.options
        if options.advise:
            advising.advise(requested, self._composed, options, self.config.hydra.job.config_name)
            return []
        if options.plan:
            predicting.predict(requested, self._composed, options)
            return []
        returns = self._run(requested)
        if options.confirm:
            returns += self._confirm(self._session.study)
        return returns

    def _confirm(self, study: Study) -> list[JobReturn]:
        """Run fresh seeds of each method's chosen setting, as --confirm asks for."""
        options = self._session.options
        records, _ = record.read_study(study.folder)
        overrides = {cell: point.overrides for cell, point in self._points.items()}
        fresh = fresh_points(options.choose(records), records, overrides, options.confirm)
        if not fresh:
            print("Nothing to confirm: no setting of this sweep was chosen.", file=sys.stderr)
            return []
        print(f"Confirming: {options.confirm} fresh seeds of each chosen setting.", file=sys.stderr)
        return self._run(fresh)

    def _run(self, requested: list[list[str]]) -> list[JobReturn]:
        study, pending, unfit = self._plan(requested)
        self._session.study = study
        statuses = ["unfit"] * unfit
        returns: list[JobReturn] = []
        if pending:
            self._session.progress = SweepProgress(len(pending))
            returns = self._run_all(study, pending)
            self._session.progress.close()
            outcomes = [job.return_value for job in returns]
            self._session.outcomes.extend(outcomes)
            statuses += ["refused" if isinstance(o, UserError) else o.status for o in outcomes]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
        done = f"Done: {counts}." if counts else "Nothing to run: all cells are recorded."
        print(f"{done} `{study.command('table')}` renders the table.", file=sys.stderr)
        return returns

    def _plan(self, requested: list[list[str]]) -> tuple[Study, list[Point], int]:
        """The study, its points that still have to run, and how many of them do not fit into memory.

        Of equal points one runs, and none that is recorded. Raises UserError if a point can't work, unless the user
        asked to skip such ones.
        """
        for key in ("study", "results_dir", "data_root", "eval.vllm_python", "eval.include_path", *STOP):
            if len({o for overrides in requested for o in overrides if o.startswith(f"{key}=")}) > 1:
                raise UserError(f"{key} is not an axis: a sweep is one study. Run one sweep for each {key}.")
        unique: dict[str, Point] = {}
        refused: dict[str, UserError] = {}
        for overrides in requested:
            composed, applicable = self._composed(overrides)
            try:
                point = point_of(composed, applicable)
            except UserError as error:
                refused.setdefault(str(error), error)
            else:
                unique.setdefault(point.cell.id, point)
        self._skip(refused, some_work=bool(unique))
        self._points |= unique
        study = study_of(composed)
        pending, without_weights = [], []
        for point in unique.values():
            found = study.recorded(point.cell)
            if to_run(found, composed):
                pending.append(point)
                self._session.recorded[point.cell.id] = found
            elif found.status == "ok":
                # The job removes its checkpoints, unless it was killed at that moment.
                shutil.rmtree(study.checkpoints(point.cell), ignore_errors=True)
                without_weights += [found] if lacks_weights(found, study, composed.save) else []
        _announce(study, len(requested), len(unique), len(pending))
        warn_of_missing_weights(without_weights, study, composed.save)
        if pending:
            if type(self._launcher).__name__ in ("BasicLauncher", "LocalParallel"):  # others run cells elsewhere
                require_gpus(max(point.cell.settings.train.devices for point in pending))
            if type(self._launcher).__name__ == "RayLauncher":
                ray_cluster.require_gpus(self.config.hydra.launcher.ray)
            self._require_nodes({point.cell.settings.train.nodes for point in pending})
            check(pending, composed, self._session.options)
            study.plan(point.cell for point in unique.values())
            if typed := self._session.options.typed:
                record.note_command(study.folder, typed)
            if self._session.options.fit:
                requested_here = len(pending)
                pending = self._fitting(pending, study, composed.data_root)
                return study, self._ordered(list(unique.values()), pending, study), requested_here - len(pending)
        return study, self._ordered(list(unique.values()), pending, study), 0

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
            raise UserError(f"{first} `sweep --skip-impossible` leaves such cells out.")
        for sentence in refused:
            print(f"Left out: {sentence}", file=sys.stderr)

    def _composed(self, overrides: list[str]) -> tuple[DictConfig, list[str]]:
        """The configuration of a point, and its overrides without those for a slot that its method does not fill.

        ``++method.adapt.target_modules=[…]`` is for the methods of a grid that have an adapter.
        """
        added = [override for override in overrides if messages.slot(override)]
        if not added:
            return self._compose(overrides), overrides
        composed = self._compose([override for override in overrides if override not in added])
        kept = [o for o in overrides if o not in added or composed.method[messages.slot(o)] is not None]
        for override in overrides:
            if override not in kept:
                self._say_once(f"{override.lstrip('+')} does not apply to method={composed.method.name}.")
        return self._compose(kept), kept

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
        repeat = dataclasses.replace(point, overrides=[*point.overrides, "repeat=true"])
        order = with_repeats(pending, first, repeat, options.drift)
        times = units.plural(len(order) - len(pending), "time")
        print(f"{cell.name} is repeated {times}, to measure drift.", file=sys.stderr)
        return order

    def _say_once(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            print(note, file=sys.stderr)

    def _require_nodes(self, counts: set[int]) -> None:
        """Raise UserError if the launcher can't give cells that many machines; a cell of one can do without the others.

        counts: values of train.nodes.
        """
        for count in sorted(counts - {1}):
            if type(self._launcher).__name__ != "SlurmLauncher":
                raise UserError(
                    f"train.nodes={count} requires hydra/launcher=slurm for a sweep; without Slurm, `run` the cell on "
                    "each machine."
                )
            if count != (given := self.config.hydra.launcher.nodes):
                raise UserError(
                    f"hydra.launcher.nodes must be {count}, as train.nodes, got {given}; run one sweep for each number."
                )

    def _compose_in_full(self, overrides: Sequence[str]) -> DictConfig:
        composed = self._loader.load_sweep_config(self.config, list(overrides))
        with flag_override(composed, ["struct", "readonly"], False):
            del composed["hydra"]  # it has values that only a launched job fills in
        messages.require_settings(composed)
        return composed

    def _fitting(self, pending: list[Point], study: Study, data_root: str | None) -> list[Point]:
        """The points that are predicted to fit into memory; the others are recorded as unfit."""
        fitting = [point for point in pending if point.cell.settings.behind_api]  # which take no memory here
        local = [point for point in pending if not point.cell.settings.behind_api]
        if not local:
            return fitting
        options = self._session.options
        plan = planner.make(
            [(point.cell.name, point.cell) for point in local],
            architectures(local),
            data_root,
            options.memory,
            options.device,
            options.card,
        )
        for prediction, point in zip(plan.points, local, strict=True):
            if plan.fits(prediction):
                fitting.append(point)
                continue
            reason = planner.refusal(plan, prediction)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            unfit = Record(point.cell, study.name, "unfit", now, 0.0, plan.environment, Failure("plan", None, reason))
            unfit.confirmation = MARK in point.overrides
            with contextlib.suppress(Held), study.lease(point.cell):  # another sweep may have a larger budget for it
                if study.recorded(point.cell) == self._session.recorded[point.cell.id]:
                    record.write(unfit, study.path(point.cell))
            print(f"{point.cell.name} is skipped. {reason}", file=sys.stderr)
        for remedy in plan.remedies:
            print(remedy, file=sys.stderr)
        return fitting

    def _run_all(self, study: Study, pending: list[Point]) -> list[JobReturn]:
        """Run all points: first those that no other sweep runs, then those that other sweeps leave unfinished."""
        returns: list[JobReturn] = []
        held: list[Point] = []
        while pending:
            jobs = self._launch(study, pending, len(returns))
            held += [point for point, job in zip(pending, jobs, strict=True) if isinstance(job.return_value, Held)]
            returns += [job for job in jobs if not isinstance(job.return_value, Held)]
            if not held:
                break
            cells = [point.cell for point in held]
            print(f"Waiting for other sweeps to finish {', '.join(c.name for c in cells)}.", file=sys.stderr)
            free = study.wait(cells)
            pending, held = [p for p in held if p.cell in free], [p for p in held if p.cell not in free]
        return returns

    def _launch(self, study: Study, pending: list[Point], first: int) -> Sequence[JobReturn]:
        """What the launcher returns for `pending`; UserError if it can't run them (without Slurm or Ray, for example).

        first: the number of the first of them among all points of this sweep.
        """
        points = [point.overrides for point in pending]
        if type(self._launcher).__name__ == "BasicLauncher":  # Hydra's scan for plugins makes its class anew
            return self._launcher.launch(points, initial_job_idx=first)
        cells = [point.cell for point in pending]
        try:
            with following(study, cells, self._session.progress), lost_workers.lost_jobs_answer(self._launcher):
                jobs = self._launcher.launch(points, initial_job_idx=first)
        except KeyboardInterrupt:
            if type(self._launcher).__name__ == "SlurmLauncher":
                name = self.config.hydra.launcher.name
                print(f"What Slurm holds goes on there; `scancel --name={name}` ends it.", file=sys.stderr)
            raise
        except Exception as error:
            if isinstance(self._launcher, LocalParallel):
                raise
            raise UserError(f"{type(self._launcher).__name__} broke off: {messages.first_line(error)}") from error
        for cell, job in zip(cells, jobs, strict=True):
            if isinstance(job.return_value, Lost):
                why = job.return_value.why
                print(f"{cell.name} is lost: its worker {why}. The same command runs it again.", file=sys.stderr)
                job.return_value = Outcome("lost", None)
        return jobs


def _announce(study: Study, points: int, cells: int, pending: int) -> None:
    same = "" if cells == points else f" ({points} points of the grid, equal ones run once)"
    print(
        f"{study.name}: {units.plural(cells, 'cell')}{same}, {cells - pending} recorded, {pending} to run.",
        file=sys.stderr,
    )
